"""What glibc does with memory that was freed; elsewhere these functions do nothing."""

import ctypes
import gc
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of mallopt(3)


def keep() -> None:
    """Let freed memory be kept: a step frees and asks for the same large tensors, and fresh pages cost more than a
    third of a small model's step."""
    libc = ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(libc, "mallopt"):
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 * 2**20)):
            libc.mallopt(option, value)


def give_back() -> None:
    """Give what was kept back to the system: the next stage asks for tensors of other sizes."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
