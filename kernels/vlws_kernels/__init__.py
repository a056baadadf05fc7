"""Kernels between sequences and between points that never hold what they need not hold; see kernels/README.md."""

from vlws_kernels.alignment import alignment_path, dtw, expected_alignment, gak, soft_dtw, triple_distance

__all__ = ["alignment_path", "dtw", "expected_alignment", "gak", "soft_dtw", "triple_distance"]
