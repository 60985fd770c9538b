"""Peak memory of a process and free memory of a GPU, from the system itself."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from ..engines.driver import cuda_driver


def peak_rss_mib() -> int | None:
    """High-water mark of this process's resident memory in MiB, None where the system does not say.

    VmHWM belongs to the address space: unlike `ru_maxrss` it does not inherit the size of the parent at the fork.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return _peak_of_usage()
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(found[0]) >> 10 if found else _peak_of_usage()


def _peak_of_usage() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> 20 if sys.platform == "darwin" else peak >> 10


def device_free_bytes() -> int | None:
    """Free memory of the first CUDA device, None without one; makes its primary context current."""
    if cuda_driver().devices == 0:
        return None
    cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    device, context = ctypes.c_int(0), ctypes.c_void_p()
    free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
    steps = (
        lambda: cuda.cuDeviceGet(ctypes.byref(device), 0),
        lambda: cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device),
        lambda: cuda.cuCtxSetCurrent(context),
        lambda: cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)),
    )
    return None if any(step() != 0 for step in steps) else free.value
