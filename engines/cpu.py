"""How many threads an engine should take: the physical cores that this process may really use."""

from __future__ import annotations

import math
import os
from pathlib import Path

from .errors import InputError

_MAX_THREADS = 1024


def thread_count(threads: int | None = None) -> int:
    """`threads` if given, else the variable STYLECLIP_RT_THREADS, else the physical cores; always 1 or more.

    Raises:
        InputError: the number is not a whole number from 1 to 1024.
    """
    if threads is not None:
        return _checked(threads, "threads")
    variable = os.environ.get("STYLECLIP_RT_THREADS", "").strip()
    return _checked(variable, "STYLECLIP_RT_THREADS") if variable else physical_cores()


def _checked(value: int | str, source: str) -> int:
    text = str(value)
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= _MAX_THREADS):
        raise InputError(f"{source} is {value!r}, expected a whole number from 1 to {_MAX_THREADS}.")
    return int(text)


def physical_cores(root: Path = Path("/")) -> int:
    """Cores open to this process: its CPU affinity without hyper-threads, capped by the container's CPU quota."""
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    topology = root / "sys/devices/system/cpu"
    cores = {_read(topology / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus}
    return max(1, min(len(cores), _quota(root / "sys/fs/cgroup")))


def _quota(cgroup: Path) -> int:
    """CPUs of the cgroup quota, rounded up: a container with 2 of 64 cores must not start 64 threads."""
    words = _read(cgroup / "cpu.max").split() or [  # version 2, else version 1
        _read(cgroup / "cpu/cpu.cfs_quota_us"),
        _read(cgroup / "cpu/cpu.cfs_period_us"),
    ]
    if len(words) == 2 and all(word.isdigit() and int(word) > 0 for word in words):
        return math.ceil(int(words[0]) / int(words[1]))
    return _MAX_THREADS


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
