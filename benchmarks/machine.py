"""Which machine this is: the name of a result file and the head of every record. No torch."""

from __future__ import annotations

import ctypes
import datetime as dt
import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from ..engines.cpu import physical_cores
from ..engines.driver import cuda_driver

PACKAGES = ("styleclip-rt", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "torch", "triton", "tensorrt",
            "tensorrt-rtx", "mlcommons-loadgen")  # fmt: skip


def processor_name() -> str:
    """The CPU's model as the system gives it, for example "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine() or "unknown processor"
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def gpu_name() -> str:
    """Name of the first CUDA device, "" without a driver or device."""
    if cuda_driver().devices == 0:
        return ""
    cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    name, device = ctypes.create_string_buffer(256), ctypes.c_int(0)
    if cuda.cuDeviceGet(ctypes.byref(device), 0) != 0 or cuda.cuDeviceGetName(name, 256, device) != 0:
        return ""
    return name.value.decode("utf-8", "replace").strip()


def memory_mib() -> int:
    """Main memory of the machine in MiB, 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    except (AttributeError, ValueError, OSError):
        return 0


def slug(name: str) -> str:
    """A file-name form of a processor's or card's name: marks and clock rates left out."""
    text = re.sub(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@.*$", " ", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-") or "unknown"


def environment(device: str, threads: int) -> dict[str, Any]:
    """What a record must say about where it was measured; `device` is "cpu" or "cuda"."""
    return {
        "device": device,
        "gpu": gpu_name() if device == "cuda" else "",
        "cpu": processor_name(),
        "cores": physical_cores(),
        "threads": threads,
        "memory_mib": memory_mib(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "driver_cuda": cuda_driver().version,
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
    }


def stem(record: dict[str, Any], size: int) -> str:
    """`<cpu-or-gpu>-<cores>c-<size>px-<date>`, the name of a run's files."""
    name = slug(record["gpu"] or record["cpu"])
    return f"{name}-{record['cores']}c-{size}px-{record['date'][:10]}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
