"""How the C library deals with the memory of large tensors."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
LARGEST = 2**31 - 1


def keep_freed_memory() -> None:
    """Has glibc keep freed memory in this process, for the tensors that come next.

    By default every tensor above 32 MB is mapped when it is made and unmapped when it is freed, and the kernel clears
    its pages each time: a good part of the time of a backward pass through a generator of 1024 px. The process grows to
    its peak, somewhat above the peak without, and stays there. It is a setting of the whole process, so the commands
    that train and optimise make it, and no function of the library. Other C libraries are left as they are.
    """
    if sys.platform != "linux":
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # musl
        return
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, LARGEST)
