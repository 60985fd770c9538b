"""Two hundred damaged checkpoints: each is read or refused with one clear error; none crashes, hangs or runs code."""

from __future__ import annotations

import io
import time
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")

from styleclip_rt.engines.errors import PackError  # noqa: E402
from styleclip_rt.runtime.archives import flat_arrays, read_source  # noqa: E402
from styleclip_rt.runtime.training.checkpoints import generators_common  # noqa: E402
from styleclip_rt.runtime.training.checkpoints.generators import import_generator, recognises  # noqa: E402

from .generator_helpers import SMALL, SMALL_NVIDIA, imported_file  # noqa: E402
from .mutations import mutated  # noqa: E402
from .writers import write_rosinality  # noqa: E402
from .writers_nvidia import write_nvidia, write_tensorflow  # noqa: E402

PER_FILE = 25


def _safetensors(path):
    from safetensors.torch import save_file

    write_rosinality(path, **SMALL)
    save_file(imported_file(path).content, path)


def _torchscript(path):
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.part = torch.nn.Linear(3, 4)

        def forward(self, x: torch.Tensor):
            return self.part(x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Module()), path)


def _npz(path):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, a=np.ones((3, 4)), b=np.arange(50, dtype=np.float32))
    path.write_bytes(buffer.getvalue())


FILES = {
    "rosinality zip": lambda path: write_rosinality(path, "trained", **SMALL),
    "rosinality stream": lambda path: write_rosinality(path, legacy=True, **SMALL),
    "nvidia": lambda path: write_nvidia(path, **SMALL_NVIDIA),
    "tensorflow": lambda path: write_tensorflow(path, **SMALL),
    "safetensors": _safetensors,
    "torchscript": _torchscript,
    "npz": _npz,
    "npy": lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v\x00" + _header() + bytes(48)),
}


def _header():
    return b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }".ljust(117) + b"\n"


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    """The average of w is not what is tested here."""
    monkeypatch.setattr(generators_common, "AVERAGE_SAMPLES", 16)


def outcome(path):
    """The message with which the file is refused; empty where it is read. Anything but PackError is a failure."""
    try:
        source = read_source(path)
        flat_arrays(source.tree)
        if recognises(source):
            import_generator(source)
    except PackError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_end_in_success_or_one_error(tmp_path, name):
    path, random = tmp_path / "x", np.random.default_rng(sorted(FILES).index(name))
    FILES[name](path)
    content, refused = path.read_bytes(), 0
    read_source(path)
    for index in range(PER_FILE):
        path.write_bytes(mutated(content, random))
        start = time.process_time()
        message = outcome(path)
        refused += bool(message)
        assert "\n" not in message[:200], f"mutation {index} of {name}"
        assert time.process_time() - start < 10, f"mutation {index} of {name}"
    assert refused > PER_FILE // 4, "the damage does not damage"


def test_there_are_two_hundred():
    assert PER_FILE * len(FILES) == 200
