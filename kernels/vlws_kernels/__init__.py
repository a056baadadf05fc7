"""Kernels between sequences and between points that never hold what they need not hold; see kernels/README.md."""

from vlws_kernels.api import alignment_path, dtw, expected_alignment, gak, soft_dtw
from vlws_kernels.costs import squared_distance, triple_distance
from vlws_kernels.neighbours import kmeans, knn, nearest_code
from vlws_kernels.reductions import info_nce, max_sim, mmd

# The version of what the functions return: it goes up with a change beyond rounding, and all that was computed with the
# functions is stale then. How they compute it may change without.
VALUES = 1

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
    "squared_distance",
    "triple_distance",
]
