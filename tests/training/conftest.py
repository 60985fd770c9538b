"""Shared by the tests of trainings: a pack that is small enough to train in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A pack with a random generator of 16 px and an identity network, the same in every run."""
    torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")
    from styleclip_rt.runtime.training.networks.arcface import ArcFace, ArcFaceConfig
    from styleclip_rt.runtime.training.networks.stylegan2 import Generator, GeneratorConfig
    from styleclip_rt.runtime.training.pack import PackWriter, load_pack

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("packs") / "tiny"
    channels = {4: 8, 8: 8, 16: 6}
    with PackWriter(folder, "tiny") as writer:
        writer.add("generator", Generator(GeneratorConfig(16, z_dim=12, w_dim=12, mapping_layers=2, channels=channels)))
        writer.add("identity", ArcFace(ArcFaceConfig(16, 8, 8, ((8, 1), (8, 1)), 4)))
    return load_pack(folder)


# Kills ---------------------------------------------------------------------------------------------------------------

DYING = """
import os, signal, sys, threading
when, at, delay = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
genuine, saved = os.replace, 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def replace(source, target, **options):
    global saved
    saved += str(target).endswith((".pt", ".safetensors"))
    if saved == at and when == "before":
        die()
    genuine(source, target, **options)
    if saved == at:
        die() if delay == 0 else threading.Timer(delay, die).start()

os.replace = replace
"""
COMMAND = """
from styleclip_rt.runtime.cli import cli
cli(sys.argv[4:])
"""


@dataclass(frozen=True)
class Kill:
    """A moment to die at: "before" or "after" the checkpoint number `at` of the process gets its name.

    delay: seconds after that, in the middle of whatever the process then does.
    """

    when: str
    at: int
    delay: float = 0.0


@pytest.fixture
def killed():
    """A function (kill, *arguments) that runs a command, or the code `body`, until SIGKILL ends it at that moment."""

    def run(kill: Kill, *arguments: object, body: str = COMMAND, prelude: str = "") -> None:
        moment = [kill.when, str(kill.at), str(kill.delay)]
        command = [sys.executable, "-c", DYING + prelude + body, *moment, *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
        assert done.returncode == -signal.SIGKILL, f"not killed at {kill}: {done.stdout}{done.stderr}"

    return run


@pytest.fixture
def one_thread():
    """PyTorch with one thread, as in the processes of `killed`: sums in the same order."""
    torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def check_same():
    """A function that holds two checkpoints of a training against each other: every float32, and every number."""
    import torch
    from safetensors import safe_open

    def read(path: Path):
        with safe_open(path, "pt") as file:
            head = json.loads(file.metadata()["training"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        head.pop("seconds")
        return tensors, head

    def check(mine: Path, theirs: Path) -> None:
        (tensors, head), (expected, expected_head) = read(mine), read(theirs)
        assert head == expected_head
        assert tensors.keys() == expected.keys()
        assert {name.partition(".")[0] for name in expected} >= {"model", "optimizer"}
        assert {tensor.dtype for name, tensor in expected.items() if name.startswith("model.")} >= {torch.float32}
        different = [name for name, tensor in tensors.items() if not torch.equal(tensor, expected[name])]
        assert not different

    return check
