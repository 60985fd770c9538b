"""The library of kernels as an attacker, a crash, a second process and a machine without a compiler meet it.

A shell script stands in for the compiler; tests/engines/test_ort_kernels.py builds the real library.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from styleclip_rt.engines import kernels, plan_cache
from styleclip_rt.engines.errors import EngineError, EngineUnavailable, MissingDependency
from styleclip_rt.engines.plan_cache import PlanCache, Refused

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernels are for Linux")

SCRIPT = """#!/bin/sh
if [ "$1" = --version ]; then echo "fake compiler 1.0"; echo "more of it"; exit 0; fi
echo "$@" >> {log}
{before}
while [ "$1" != -o ]; do shift; done
printf library > "$2"
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home where nothing was built, on a machine that the kernels are for."""
    monkeypatch.setenv("STYLECLIP_RT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(kernels, "unsupported", lambda: "")
    kernels._version_line.cache_clear()
    return tmp_path / "home"


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A stand-in, $CXX; `write(before)` puts other commands into it, `runs()` are the arguments of its runs."""
    path, log = tmp_path / "compiler", tmp_path / "log"

    def write(before=""):
        path.write_text(SCRIPT.format(log=log, before=before))
        path.chmod(0o755)

    write()
    monkeypatch.setenv("CXX", str(path))
    return SimpleNamespace(path=path, write=write, runs=lambda: log.read_text().splitlines() if log.exists() else [])


def build(wrong="", rebuild=False):
    return kernels.build(lambda content: wrong, "1.31.1", lambda text: None, rebuild)


def files(home):
    """What stands in the cache but its key and its locks."""
    return sorted(path.name for path in (home / "plans").iterdir() if path.suffix != ".lock" and path.name != "key")


# Building and finding ---------------------------------------------------------------------------------------------


def test_a_library_is_built_once_and_found_without_its_compiler(compiler):
    library, fresh = build()
    assert fresh
    assert library.content == b"library"
    assert library.made == kernels.Made(f"{compiler.path} (fake compiler 1.0)", "1.31.1")
    (run,) = compiler.runs()
    assert set(kernels.FLAGS) <= set(run.split())
    assert run.split()[-1] == str(kernels.SOURCES / kernels.MAIN)
    compiler.path.unlink()
    assert build() == (library, False)
    assert kernels.built() == library
    assert kernels.fault() == ""
    assert library.path.parent == library.path.parent.parent / "plans"


def test_it_says_what_takes_time_and_only_then(compiler):
    said = []
    kernels.build(lambda content: "", "1.31.1", said.append)
    kernels.build(lambda content: "", "1.31.1", said.append)
    assert said == [f"compiling the kernels with {compiler.path} (fake compiler 1.0), once on this machine"]


def test_a_look_at_a_machine_without_kernels_leaves_nothing(home, compiler):
    assert kernels.fault() == kernels.NOT_BUILT
    assert kernels.built() is None
    assert kernels.mend(kernels.NOT_BUILT) == "styleclip-rt kernels"
    assert not home.exists()
    assert compiler.runs() == []


def test_a_flipped_byte_is_built_again_and_never_given_back(compiler):
    library, _ = build()
    good = library.path.read_bytes()
    for spot in (0, 50, len(good) // 2, len(good) - 1):
        bad = bytearray(good)
        bad[spot] ^= 1
        library.path.write_bytes(bad)
        assert kernels.built() is None, spot
        assert kernels.fault() == kernels.NOT_BUILT
    assert build() == (library, True)
    assert len(compiler.runs()) == 2


def test_other_sources_and_flags_are_another_library(compiler, tmp_path, monkeypatch):
    build()
    shutil.copytree(kernels.SOURCES, tmp_path / "cpp")
    monkeypatch.setattr(kernels, "SOURCES", tmp_path / "cpp")
    assert kernels.fault() == "", "the folder has another name, the sources are the same"
    (tmp_path / "cpp/aoti_run.cpp").write_text("// another program")
    assert kernels.fault() == "", "it takes no part"
    header = next((tmp_path / "cpp").glob("*.h"))
    text = header.read_text()
    header.write_text(text + "\n")
    assert kernels.fault() == kernels.NOT_BUILT
    header.write_text(text)
    (tmp_path / "cpp/another.h").write_text("")
    assert kernels.fault() == kernels.NOT_BUILT
    (tmp_path / "cpp/another.h").unlink()
    assert kernels.fault() == ""
    monkeypatch.setattr(kernels, "FLAGS", (*kernels.FLAGS, "-g"))
    assert kernels.fault() == kernels.NOT_BUILT


def test_sources_that_are_gone_are_a_reason_not_a_crash(compiler, tmp_path, monkeypatch):
    build()
    monkeypatch.setattr(kernels, "SOURCES", tmp_path / "nowhere")
    assert kernels.fault().startswith("the sources of the kernels cannot be read")


def test_a_library_found_wrong_is_kept_as_such_until_it_is_asked_for_again(home, compiler):
    with pytest.raises(Refused, match=r"built with .*fake compiler 1\.0\) are not used: it computes wrongly"):
        build(wrong="it computes wrongly")
    reason = kernels.fault()
    assert "it computes wrongly (as found before" in reason
    assert kernels.mend(reason) == "styleclip-rt kernels --rebuild"
    with pytest.raises(Refused, match="as found before"):
        build()
    assert len(compiler.runs()) == 1
    assert build(rebuild=True)[1]
    assert kernels.fault() == ""
    assert build(rebuild=True)[1]
    assert len(compiler.runs()) == 3


# Compilers that fail ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("commands", "message"),
    [
        ("echo 'a.cpp: In function f:' >&2; echo 'a.cpp:3:1: error: no such thing' >&2; exit 2",
         r"failed \(exit code 2\): a\.cpp:3:1: error: no such thing$"),
        ("echo 'out of memory'; exit 1", r"failed \(exit code 1\): out of memory$"),
        ("exit 3", r"failed \(exit code 3\): it says nothing$"),
        ("exit 0", "ended well and wrote no library"),
    ],
)  # fmt: skip
def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(home, compiler, commands, message):
    compiler.write(commands)
    with pytest.raises(EngineError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)
    assert files(home) == []
    assert kernels.fault() == kernels.NOT_BUILT
    compiler.write()
    assert build()[1], "a compiler that was mended is tried again"


@pytest.mark.parametrize("command", ["/nowhere/c++", "'never closed"])
def test_a_compiler_that_cannot_be_run_is_named(monkeypatch, command):
    monkeypatch.setenv("CXX", command)
    with pytest.raises(EngineError, match=r"the compiler .* cannot be run \(.*\); set CXX"):
        build()


def test_a_compiler_that_does_not_end_is_stopped(home, compiler, monkeypatch):
    compiler.write("exec sleep 60")
    monkeypatch.setattr(kernels, "PATIENCE_S", 1.0)
    with pytest.raises(EngineError, match="was stopped after 1 s"):
        build()
    assert files(home) == []


def test_the_compilers_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    assert kernels.compiler() == []
    assert kernels.mend(kernels.NOT_BUILT) == "python -m pip install 'styleclip-rt[kernels]' && styleclip-rt kernels"
    with pytest.raises(MissingDependency, match=r"need a C\+\+ compiler: \$CXX, or c\+\+, .*'styleclip-rt\[kernels\]'"):
        build()
    monkeypatch.setattr(kernels, "find_spec", lambda name: name == "ziglang" or None)
    assert kernels.compiler() == [sys.executable, "-m", "ziglang", "c++"]
    for name in ("clang++", "g++", "c++"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
        assert kernels.compiler() == [str(tmp_path / name)]
    monkeypatch.setenv("CXX", "ccache 'my compiler'")
    assert kernels.compiler() == ["ccache", "my compiler"]


def test_zig_is_told_its_target(compiler, monkeypatch):
    monkeypatch.setenv("CXX", f"{compiler.path} ziglang")
    compiler.write()
    compiler.path.write_text(compiler.path.read_text().replace('"$1" = --version', '"$2" = --version'))
    build()
    assert " ".join(kernels.ZIG_FLAGS) in compiler.runs()[0]


# Two processes, a kill, other people's folders --------------------------------------------------------------------

CHILD = """
from styleclip_rt.engines import kernels, plan_cache
kernels.unsupported = lambda: ""
print(kernels.build(lambda content: "", "1.31.1", lambda text: None)[0].content.decode())
"""


def start():
    return subprocess.Popen(
        [sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True, env={**os.environ}, start_new_session=True
    )


def test_two_processes_that_start_together_build_once(compiler):
    compiler.write("sleep 1")
    children = [start() for _ in range(2)]
    assert [child.communicate(timeout=60)[0] for child in children] == ["library\n"] * 2
    assert len(compiler.runs()) == 1


def test_a_build_that_is_killed_leaves_nothing_that_a_later_one_does_not_remove(home, compiler):
    compiler.write("sleep 600")
    child = start()
    while not compiler.runs():
        assert child.poll() is None
        threading.Event().wait(0.05)
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate(timeout=60)
    (left,) = files(home)
    assert left.endswith(".build")
    assert kernels.fault() == kernels.NOT_BUILT
    compiler.write()
    library, fresh = build()
    assert fresh
    assert files(home) == [library.path.name]


def test_a_folder_open_to_others_is_a_reason_with_its_own_way_out(home, compiler):
    build()
    (home / "plans").chmod(0o755)
    reason = kernels.fault()
    assert "must be a folder of yours" in reason
    assert kernels.mend(reason) == ""
    with pytest.raises(EngineError, match="must be a folder of yours"):
        build()


def test_a_user_without_a_home_has_no_kernels_and_no_error(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("STYLECLIP_RT_HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(plan_cache.Path, "home", no_home)
    assert kernels.fault() == kernels.NOT_BUILT


def test_a_library_open_to_others_is_not_taken(compiler):
    library, _ = build()
    library.path.chmod(0o644)
    assert kernels.built() is None


def test_the_compiler_works_in_the_private_folder(home, compiler, tmp_path):
    compiler.write(f'echo "$TMPDIR" > {tmp_path}/folder; stat -c %a "$TMPDIR" >> {tmp_path}/folder')
    build()
    folder, mode = (tmp_path / "folder").read_text().split()
    assert folder.startswith(f"{home}/plans/")
    assert mode == "700"
    assert not os.path.exists(folder)


# The machine ------------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A function that pretends to be another machine."""
    monkeypatch.undo()  # `home` says that every machine will do

    def pretend(platform="linux", name="x86_64", flags="fpu avx2 fma f16c sse"):
        monkeypatch.setattr(kernels.sys, "platform", platform)
        monkeypatch.setattr(kernels.os, "uname", lambda: SimpleNamespace(machine=name))
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t: none\n")
        monkeypatch.setattr(kernels, "_CPUINFO", tmp_path / "cpuinfo")
        kernels._cpu_features.cache_clear()
        return kernels.unsupported()

    yield pretend
    kernels._cpu_features.cache_clear()


def test_machines_that_the_kernels_are_not_for_say_so(machine, tmp_path, monkeypatch):
    assert machine() == ""
    assert machine(platform="darwin", name="arm64") == (
        "its library is written for Linux on x86-64, this is darwin on arm64"
    )
    assert "this is linux on aarch64" in machine(name="aarch64")
    assert machine(flags="avx2 fma_ sse") == "this CPU has no fma, f16c, which its library needs"
    assert kernels.fault().startswith("this CPU has no fma")
    assert kernels.mend(kernels.fault()) == ""
    with pytest.raises(EngineUnavailable, match="cannot be built for use here: this CPU has no fma, f16c"):
        build()
    (tmp_path / "cpuinfo").unlink()
    kernels._cpu_features.cache_clear()
    assert "avx2, fma, f16c" in kernels.unsupported()


# Memory -----------------------------------------------------------------------------------------------------------


def test_what_is_loaded_is_sealed_in_memory():
    path = kernels.path_in_memory(b"\x7fELF one")
    assert kernels.path_in_memory(b"\x7fELF one") == path
    other = kernels.path_in_memory(b"\x7fELF two")
    assert other != path
    with open(path, "rb") as file:
        assert file.read() == b"\x7fELF one"
    with pytest.raises(PermissionError), open(path, "r+b", buffering=0) as file:
        file.write(b"x")
    descriptor = int(path.rpartition("/")[2])
    assert not os.get_inheritable(descriptor)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    assert fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) == seals


def test_a_system_without_such_files_is_an_engine_error(monkeypatch):
    def refuse(name, flags):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(os, "memfd_create", refuse)
    with pytest.raises(EngineError, match="cannot be put into memory"):
        kernels.path_in_memory(b"three")


def test_the_cache_is_that_of_the_plans(home, compiler):
    library, _ = build()
    assert PlanCache().path(kernels.key()) == library.path
