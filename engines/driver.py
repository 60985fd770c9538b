"""Is there an NVIDIA driver with a device? Asked of the driver itself, before any GPU library is touched.

Without a driver a GPU library may print to stdout, fall back to the CPU silently or end the process, so this question
comes first and costs under a millisecond where the answer is no.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from functools import lru_cache

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


@dataclass(frozen=True)
class Driver:
    """Answer of the CUDA driver; `version` as in 13.0 (the newest CUDA it serves), `reason` says why `devices` is 0."""

    devices: int
    version: str
    reason: str


@lru_cache(maxsize=1)
def cuda_driver() -> Driver:
    """Ask once per process: a driver that appears later needs a new process anyway."""
    return ask_driver(_LIBRARY)


def ask_driver(library: str) -> Driver:
    """Load `library`, initialise it and count its devices; never raises."""
    try:
        cuda = ctypes.CDLL(library)
        status = int(cuda.cuInit(0))
    except (OSError, AttributeError):
        return Driver(0, "", f"no NVIDIA driver on this machine ({library} cannot be loaded)")
    if status != 0:
        return Driver(0, "", f"the NVIDIA driver does not start (cuInit returned {status})")
    count, number = ctypes.c_int(0), ctypes.c_int(0)
    cuda.cuDeviceGetCount(ctypes.byref(count))
    cuda.cuDriverGetVersion(ctypes.byref(number))
    version = f"{number.value // 1000}.{number.value % 1000 // 10}"
    return Driver(count.value, version, "" if count.value else "the NVIDIA driver shows no device to this process")
