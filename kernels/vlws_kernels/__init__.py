"""Kernels between sequences and between points that never hold what they need not hold; see kernels/README.md."""

from vlws_kernels.alignment import alignment_path, dtw, expected_alignment, gak, soft_dtw, triple_distance
from vlws_kernels.reductions import info_nce, kmeans, knn, max_sim, mmd, nearest_code

__all__ = [
    "alignment_path",
    "dtw",
    "expected_alignment",
    "gak",
    "info_nce",
    "kmeans",
    "knn",
    "max_sim",
    "mmd",
    "nearest_code",
    "soft_dtw",
    "triple_distance",
]
