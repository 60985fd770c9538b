"""Large tensors get the memory of those before them, where the C library is glibc."""

from __future__ import annotations

import platform
import subprocess
import sys
from types import ModuleType

import pytest

pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")

from click.testing import CliRunner

from styleclip_rt.runtime.cli import cli
from styleclip_rt.runtime.training import cli_optimize, command

CHILD = """
import resource, sys, torch
from styleclip_rt.runtime.training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(8):
    torch.ones(1 << 24)  # 64 MB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    """Page faults of making eight tensors of 64 MB one after another."""
    done = subprocess.run([sys.executable, "-c", CHILD, mode], capture_output=True, text=True, check=True, timeout=120)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_used_again() -> None:
    kept, default = faults("keep"), faults("default")
    assert default > 50  # some hundred huge pages, or some hundred thousand small ones
    assert kept < default / 4


@pytest.mark.parametrize(
    ("module", "line"),
    [(command, ["train", "directions", "--out", "new", "--dry-run"]),
     (cli_optimize, ["optimize", "sample", "--prompt", "glasses", "--dry-run"])],
)  # fmt: skip
def test_the_commands_ask_for_it(module: ModuleType, line: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(module, "keep_freed_memory", lambda: asked.append(True))
    result = CliRunner().invoke(cli, line)
    assert result.exit_code == 0, result.output
    assert asked == [True]
