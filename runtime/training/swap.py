"""One folder in place of another: in one step where the system can, else in two, with a way back after a kill."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

AT_FDCWD = -100
RENAME_EXCHANGE = 2
OLD = "old"


def exchange(a: Path, b: Path) -> bool:
    """Swaps two paths of one file system atomically; False, and nothing changed, where the system does not do it."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # a C library without it
        return False
    rename.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    return bool(rename(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE) == 0)


def put_in_place(fresh: Path, target: Path) -> None:
    """Makes the folder `fresh` the folder `target`; what stood there ends up beside `fresh`, or in its place."""
    if not target.exists():
        fresh.rename(target)
    elif not exchange(fresh, target):
        old = fresh.with_name(OLD)
        target.rename(old)
        try:
            fresh.rename(target)
        except OSError:
            old.rename(target)
            raise


def recover(target: Path, marker: str) -> None:
    """Puts back what a kill between the two renames of `put_in_place` left aside, if `target` is missing.

    Looked for are folders `.<name>.*/old` beside `target` that hold `marker`, the newest one first.
    """
    if target.exists() or not target.parent.is_dir():
        return
    left = [path for path in target.parent.glob(f".{_literal(target.name)}.*/{OLD}") if (path / marker).is_file()]
    for old in sorted(left, key=lambda path: path.parent.stat().st_mtime_ns, reverse=True)[:1]:
        with contextlib.suppress(OSError):  # another process was first
            old.rename(target)


def _literal(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)
