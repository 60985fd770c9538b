from __future__ import annotations

import numpy as np
import pytest

from styleclip_rt.engines.gate import gate_fault
from styleclip_rt.engines.spec import GraphSpec, TensorSpec

W = TensorSpec("w", "float32", ("N", 16))
TOKENS = TensorSpec("tokens", "int64", ("N", 8))


def spec(dtype="float32", name="y"):
    return GraphSpec("g", (W, TOKENS), (TensorSpec(name, dtype, ("N", 16)),))


def run(change=lambda y: y, dtype="float32"):
    seen = []

    def go(feeds):
        seen.append({name: array.shape for name, array in feeds.items()})
        y = feeds["w"] * 100 + 128 if dtype == "uint8" else feeds["w"]
        y = np.clip(y, 0, 255).astype(dtype) if dtype == "uint8" else y.astype(dtype)
        return {"y": change(y)}

    go.seen = seen
    return go


def test_what_agrees_passes_at_one_and_several_images():
    found = run()
    assert gate_fault(spec(), found, run()) == ""
    assert found.seen == [{"w": (1, 16), "tokens": (1, 8)}, {"w": (3, 16), "tokens": (3, 8)}]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda y: y * 1.005, ""),
        (lambda y: y * 1.02, r"output 'y' at batch 1: relative error 2.0e-02, at most 1e-02 is allowed"),
        (lambda y: y * np.float32(np.nan), "output 'y' at batch 1: holds NaN or infinity"),
        (lambda y: y[:, :8], "output 'y' at batch 1: float32 [1, 8], expected float32 [1, 16]"),
        (lambda y: np.where(len(y) == 3, 0, y).astype(np.float32), "output 'y' at batch 3: relative error 1.0e+00"),
    ],
)
def test_floats_by_their_relative_error(change, fault):
    found = gate_fault(spec(), run(change), run())
    assert found.startswith(fault)
    assert bool(found) == bool(fault)


def test_images_by_their_psnr():
    near = run(lambda y: y ^ 1, "uint8")
    assert gate_fault(spec("uint8"), near, run(dtype="uint8")) == ""
    far = run(lambda y: y ^ 4, "uint8")
    assert "PSNR 36.1 dB, at least 45 dB are needed" in gate_fault(spec("uint8"), far, run(dtype="uint8"))


def test_zeros_agree_with_zeros_and_feeds_that_break_the_reference_do_not_count():
    zero = run(lambda y: y * 0)
    assert gate_fault(spec(), zero, zero) == ""
    assert "relative error" in gate_fault(spec(), run(), zero)
    assert gate_fault(spec(), run(), run(lambda y: y / np.float32(0))) == ""


def test_integers_must_be_equal():
    whole = GraphSpec("g", (W, TOKENS), (TensorSpec("y", "int64", ("N", 8)),))
    same = lambda feeds: {"y": feeds["tokens"]}  # noqa: E731
    assert gate_fault(whole, same, same) == ""
    assert "at most 0e+00" in gate_fault(whole, lambda feeds: {"y": feeds["tokens"] + 1}, same)
