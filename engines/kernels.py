"""The library of custom operators (`cpp/ort_kernels.cpp`), compiled on this machine and kept as TensorRT's plans are.

Loading it is running native code, so it comes from nowhere but `plan_cache.PlanCache`, and the bytes that were
authenticated there are the bytes that are loaded: they go into a sealed file in memory, which no path leads to. This
module knows no ONNX Runtime; who builds says how a new library proves itself (`ort_kernels.build_kernels`).

An edit asks `fault()` at every start, so nothing here imports more than it needs for its answer, and the key of the
library in the cache names no compiler: which one it was is written beside the library.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import EngineError, EngineUnavailable, MissingDependency, StyleclipError

if TYPE_CHECKING:
    from .plan_cache import PlanCache

SOURCES = Path(__file__).resolve().parent / "cpp"
"""`MAIN` and every header beside it take part."""
MAIN = "ort_kernels.cpp"
FLAGS = ("-O3", "-std=c++17", "-mavx2", "-mfma", "-mf16c", "-fPIC", "-shared", "-pthread", "-Wall")
FEATURES = ("avx2", "fma", "f16c")
"""What `FLAGS` asks of the CPU, as /proc/cpuinfo calls it."""
COMPILERS = ("c++", "g++", "clang++")
"""In this order, after $CXX and before the wheel ziglang."""
ZIG_FLAGS = ("-target", "x86_64-linux-gnu.2.17", "-s")
"""Zig takes this machine's own CPU and C library for its target where it is told none, and keeps symbols."""
MEND = "styleclip-rt kernels"
EXTRA = "python -m pip install 'styleclip-rt[kernels]'"
PATIENCE_S = 600.0
"""A compiler that takes longer is stopped."""
NOT_BUILT = "its library is not built yet"
_CPUINFO = Path("/proc/cpuinfo")
_ENOUGH = 8192
"""Bytes that hold the first processor of /proc/cpuinfo; the system writes the others when they are read."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Made:
    """How a library was made. compiler: its command and the first line of its version; onnxruntime: what tried it."""

    compiler: str
    onnxruntime: str


@dataclass(frozen=True)
class Library:
    """A library from the cache, authenticated, and where it stands there."""

    made: Made
    content: bytes
    path: Path


def unsupported() -> str:
    """Why the library cannot run on this machine, whoever builds it; "" if it can."""
    machine = os.uname().machine if hasattr(os, "uname") else "another machine"
    if not (sys.platform.startswith("linux") and machine in ("x86_64", "AMD64")):
        return f"its library is written for Linux on x86-64, this is {sys.platform} on {machine}"
    lacks = [name for name in FEATURES if name not in _cpu_features()]
    return f"this CPU has no {', '.join(lacks)}, which its library needs" if lacks else ""


@lru_cache(maxsize=1)
def _cpu_features() -> frozenset[str]:
    try:
        with _CPUINFO.open(encoding="utf-8", errors="replace") as file:
            text = file.read(_ENOUGH)
    except OSError:
        return frozenset()
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())


def key() -> dict[str, Any]:
    """What a library depends on, for `PlanCache`: the text of its sources, the flags, the platform.

    Raises:
        EngineError: the sources are not there.
    """
    digest = hashlib.sha256()
    try:
        for path in (SOURCES / MAIN, *sorted(SOURCES.glob("*.h"))):
            text = path.read_bytes()
            digest.update(f"{path.name} {len(text)}\n".encode() + text)
    except OSError as error:
        raise EngineError(f"the sources of the kernels cannot be read ({error}); install the package again") from error
    flags = [*FLAGS, *ZIG_FLAGS]
    return {"kind": "ort-kernels", "sources": digest.hexdigest(), "flags": flags, "platform": "linux-x86_64"}


def built() -> Library | None:
    """The library of these sources from the cache, None if it is not there intact; makes and compiles nothing.

    Raises:
        Refused: it was built before and found wrong.
        EngineError: the cache cannot be used.
    """
    from .plan_cache import PlanCache, default_folder

    try:
        folder = default_folder()
    except RuntimeError:  # a user without a home, as in some containers
        return None
    if not os.path.exists(folder / "key"):  # nothing was ever built here; an edit must not make the folder
        return None
    cache, wanted = PlanCache(folder), key()
    content = cache.get(wanted)
    return None if content is None else _library(content, cache.path(wanted))


def fault() -> str:
    """Why the library cannot be used here, "" if nothing speaks against it; loads and compiles nothing."""
    reason = unsupported()
    if reason:
        return reason
    try:
        return NOT_BUILT if built() is None else ""
    except StyleclipError as error:
        return str(error)


def mend(reason: str) -> str:
    """The command that mends a fault of the library, "" where none could."""
    from .plan_cache import Refused

    if not reason or unsupported():
        return ""
    try:
        there = built() is not None
    except Refused:
        there = True
    except StyleclipError:  # of the cache: its message says what to do
        return ""
    if there:
        return f"{MEND} --rebuild"
    return MEND if compiler() else f"{EXTRA} && {MEND}"


def compiler() -> list[str]:
    """The command of the C++ compiler: $CXX, else `COMPILERS` on the path, else zig's; empty if there is none."""
    from shlex import split
    from shutil import which

    own = os.environ.get("CXX", "").strip()
    if own:
        try:
            return split(own)
        except ValueError:  # a quote that is never closed: what cannot be run says so when it is run
            return [own]
    found = next(filter(None, map(which, COMPILERS)), None)
    if found:
        return [found]
    return [sys.executable, "-m", "ziglang", "c++"] if find_spec("ziglang") else []


def build(check: Callable[[bytes], str], onnxruntime: str, say: Say, rebuild: bool = False) -> tuple[Library, bool]:
    """The library, and whether it was built just now: from the cache, else compiled, tried by `check`, and kept.

    Args:
        check: says what is wrong with a library, "" if it computes rightly.
        onnxruntime: the version that `check` tries it with.
        say: hears what takes time.
        rebuild: build it in any case, also where one was found wrong before.

    Raises:
        EngineUnavailable: it cannot run on this machine.
        MissingDependency: there is no compiler.
        EngineError: the compiler failed, or the cache cannot be used.
        Refused: `check` found fault with it, now or before.
    """
    from .plan_cache import PlanCache, Refused

    reason = unsupported()
    if reason:
        raise EngineUnavailable(f"the kernels cannot be built for use here: {reason}")
    cache, wanted, fresh = PlanCache(), key(), []

    def compile_and_check() -> bytes:
        fresh.append(True)
        command = compiler()
        if not command:
            raise MissingDependency(
                f"the kernels need a C++ compiler: $CXX, or {', '.join(COMPILERS)} on the path (of a package such as "
                f"g++); or run: {EXTRA}"
            )
        content = _compiled(command, cache, wanted, say)
        wrong = check(content)
        if wrong:
            raise Refused(f"the kernels built with {_version(command)} are not used: {wrong}")
        return _kept(Made(_version(command), onnxruntime), content)

    if rebuild:
        cache.path(wanted).unlink(missing_ok=True)
    return _library(cache.get_or_build(wanted, compile_and_check), cache.path(wanted)), bool(fresh)


def try_again(library: Library, check: Callable[[bytes], str], onnxruntime: str) -> None:
    """Try a library with another ONNX Runtime than it was tried with, and keep what came of it.

    Raises:
        Refused: `check` found fault with it.
    """
    from .plan_cache import PlanCache, Refused

    wrong = check(library.content)
    with suppress(OSError):  # a full disk costs the next start, not this one
        content = b"" if wrong else _kept(Made(library.made.compiler, onnxruntime), library.content)
        PlanCache().put(key(), content, refused=wrong and f"the kernels are not used: {wrong}")
    if wrong:
        raise Refused(f"the kernels are not used with ONNX Runtime {onnxruntime}: {wrong}; run: {MEND} --rebuild")


def _kept(made: Made, content: bytes) -> bytes:
    """What stands in the cache: how it was made in one line, then the library."""
    return json.dumps(asdict(made), sort_keys=True).encode() + b"\n" + content


def _library(content: bytes, path: Path) -> Library:
    about, _, code = content.partition(b"\n")
    return Library(Made(**json.loads(about)), code, path)


def _compiled(command: list[str], cache: PlanCache, wanted: dict[str, Any], say: Say) -> bytes:
    """The bytes of the shared object, compiled in a folder of the cache; called under the lock of its key."""
    import tempfile
    from shutil import rmtree

    stem = cache.path(wanted).stem
    for left in cache.folder.glob(f".{stem}.*.build"):  # of a build that was killed
        rmtree(left, ignore_errors=True)
    say(f"compiling the kernels with {_version(command)}, once on this machine")
    with tempfile.TemporaryDirectory(prefix=f".{stem}.", suffix=".build", dir=cache.folder) as folder:
        out = Path(folder) / "kernels.so"
        flags = [*FLAGS, *(ZIG_FLAGS if "ziglang" in command else ())]
        _run([*command, *flags, "-o", str(out), str(SOURCES / MAIN)], TMPDIR=folder)
        try:
            return out.read_bytes()
        except OSError as error:
            raise EngineError(
                f"the compiler {command[0]} ended well and wrote no library ({error.strerror})"
            ) from error


@lru_cache(maxsize=4)
def _version_line(command: tuple[str, ...]) -> str:
    lines = _run([*command, "--version"]).strip().splitlines()
    return lines[0].strip()[:200] if lines else "of no version"


def _version(command: list[str]) -> str:
    return f"{' '.join(command)} ({_version_line(tuple(command))})"


def _run(command: list[str], **variables: str) -> str:
    """What a compiler prints; EngineError with its first error line where it fails."""
    import subprocess

    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=PATIENCE_S,
            env={**os.environ, "LC_ALL": "C", **variables},
        )
    except OSError as error:
        raise EngineError(f"the compiler {command[0]} cannot be run ({error.strerror or error}); set CXX") from error
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"the compiler {command[0]} was stopped after {PATIENCE_S:g} s") from error
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        telling = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "it says nothing")
        raise EngineError(f"the compiler {command[0]} failed (exit code {done.returncode}): {telling[:300]}")
    return done.stdout


_loaded: dict[bytes, str] = {}
_loading = threading.Lock()


def path_in_memory(content: bytes) -> str:
    """A path of this process under which exactly these bytes can be loaded; the same for the same bytes.

    It is a sealed file in memory that stays open as long as the process: the loader takes an equal path for the same
    library, so that its number must never come back with other bytes behind it.

    Raises:
        EngineError: the system has no memory for it, or forbids such files.
    """
    digest = hashlib.sha256(content).digest()
    with _loading:
        if digest not in _loaded:
            try:
                _loaded[digest] = f"/proc/self/fd/{_sealed(content)}"
            except OSError as error:
                raise EngineError(f"the kernels cannot be put into memory ({error.strerror or error})") from error
        return _loaded[digest]


def _sealed(content: bytes) -> int:
    """The descriptor of a file in memory that nobody can change any more, this process included."""
    import fcntl

    descriptor = os.memfd_create("styleclip-rt-kernels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor
