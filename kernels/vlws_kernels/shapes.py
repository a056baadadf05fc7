"""The shapes that alignment kernels are compiled for, and which of them a GPU can launch. Pure functions of integers.

On CUDA, KeOps keeps all variables of x_i and the table's rows in the local memory of a thread, and all variables of
`block` sequences y_j in shared memory, where its host code takes block = min(192, 48 KB / bytes of y_j). It divides by
`block`: where one y_j does not fit, the process dies of SIGFPE and raises nothing. `launch_refusal` tells beforehand.
"""

import math

SHORT = 16  # to this length and dim, one thread of a GPU does a pair
WIDE = 32  # from this dim on, costs are formed as inner products
SHARED_BYTES = 48 * 1024  # shared memory of a block without opting in to more: what KeOps asks for
LOCAL_BYTES = 512 * 1024  # local memory of a thread, compute capability 5.0 to 12.x (CUDA C++ Programming Guide)


def bucket_length(length: int) -> int:
    """8, 32, 128, 512, ...: each new shape would compile for seconds. What is padded is never computed."""
    return 8 * 4 ** max(0, math.ceil(math.log2(length / 8) / 2))


def bucket_dim(dim: int) -> int:
    """2, 4, 8, 16, 32, 48, ..."""
    return max(2, 1 << (dim - 1).bit_length()) if dim <= 16 else -(-dim // 16) * 16


def is_short(cost: str, n: int, m: int, dim: int) -> bool:
    """Whether a GPU's thread does a pair alone, by KeOps: its table and its sequences are small."""
    return max(n, m) <= SHORT and (cost == "table" or dim <= SHORT)


def is_wide(cost: str, dim: int) -> bool:
    """Whether the costs come from inner products."""
    return cost != "table" and dim >= WIDE


def cuda_bytes(rule: str, cost: str, n: int, m: int, dim: int, itemsize: int) -> tuple[int, int]:
    """Bytes of shared memory that one y_j takes and of local memory that one thread takes, of one CUDA launch.

    `cost` is "points" or "table" (whose `dim` does not matter), `n` and `m` are lengths and `itemsize` is 4 or 8. The
    shapes are those compiled for: bucketed. The rows of the table stand twice in the code, with an exponent each but
    for dtw; the compiler keeps both (`16 m` bytes in float32).
    """
    n, m, dim = bucket_length(n), bucket_length(m), bucket_dim(dim)
    scale = int(rule != "dtw")
    if cost == "table":
        of_y, of_x = 0, n * m + 2 + scale
    else:
        copies, norms = (2, 1) if is_wide(cost, dim) else (1, 0)
        of_y, of_x = m * dim * copies + m * norms + 1, n * dim * copies + n * norms + 1 + scale
    rows, out = 2 * m * (1 + scale), 1 + scale
    return of_y * itemsize, (of_x + rows + out) * itemsize


def local_limit(total_memory: int, threads: int) -> int:
    """Bytes of local memory a thread may have on a card of `total_memory` bytes that holds `threads` threads at once.

    The driver sets it aside for all of them at the first launch: at most half of the card's memory is asked for.
    """
    return min(LOCAL_BYTES, total_memory // 2 // threads)


def launch_refusal(
    rule: str, cost: str, n: int, m: int, dim: int, itemsize: int, local_bytes: int = LOCAL_BYTES
) -> str | None:
    """Why KeOps cannot launch this alignment on CUDA, as the end of a sentence; None where it can.

    `local_bytes` is what a thread may have of local memory: CUDA's limit, or less on a card with little memory.
    """
    shared, local = cuda_bytes(rule, cost, n, m, dim, itemsize)
    if shared > SHARED_BYTES:
        return f"one sequence needs more than the {SHARED_BYTES // 1024} KB of shared memory of a block"
    if local > local_bytes:
        return f"one pair needs more than the {local_bytes // 1024} KB of local memory of a thread"
    return None
