"""Memory of a process on the host and on a GPU, from the system itself."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from ..engines.driver import cuda_driver

_MOST_PROCESSES = 256
_UNKNOWN = 1 << 62  # NVML says -1 where it may not tell


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


class _Process(ctypes.Structure):
    """nvmlProcessInfo_t."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


def device_bytes() -> int | None:
    """Memory of the first CUDA device that this process holds now, its context included; None where NVML cannot say."""
    if cuda_driver().devices == 0:
        return None
    try:
        nvml = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
        device, count = ctypes.c_void_p(), ctypes.c_uint(_MOST_PROCESSES)
        processes = (_Process * _MOST_PROCESSES)()
        if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)):
            return None
        if nvml.nvmlDeviceGetComputeRunningProcesses_v3(device, ctypes.byref(count), processes):
            return None
    except (OSError, AttributeError):
        return None
    own = [p.used for p in processes[: count.value] if p.pid == os.getpid() and p.used < _UNKNOWN]
    return own[0] if own else None
