"""TensorRT on a card: plans of the bundle that ships are built, pass their gate, run, and agree with the CPU."""

from __future__ import annotations

import numpy as np
import pytest

from styleclip_rt.engines import nvinfer, select
from styleclip_rt.engines.bundle import open_bundle
from styleclip_rt.engines.gate import ALPHA, feeds, gate_fault

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
BUNDLE = "runtime/data/toyfaces-bundle"
GRAPHS = ("mapping", "synthesize", "edit_global", "edit_mapper/bob-cut", "encode_text", "invert")


@pytest.fixture(scope="module")
def bundles(root):
    """(TensorRT, ONNX Runtime on the CPU); the plans are built into the home folder of the tests."""
    name = nvinfer.installed()
    if not name or not select._has("cuda.bindings"):
        pytest.skip("TensorRT or cuda-bindings is not installed")
    fault = select._tensorrt_trial()
    if fault and "rtx" in name:
        pytest.skip(f"TensorRT-RTX serves GeForce and RTX cards: {fault}")
    assert fault == ""
    with (
        open_bundle(root / BUNDLE, device="cuda", engine="tensorrt") as on_card,
        open_bundle(root / BUNDLE, device="cpu", engine="onnxruntime") as reference,
    ):
        yield on_card, reference


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_graph_is_built_and_agrees_at_any_batch(bundles, graph):
    """5 has no profile of its own, 17 is more than the plan holds and runs in pieces."""
    on_card, reference = bundles
    engine = on_card.engine(graph)
    assert (engine.backend, engine.device) == ("tensorrt", "cuda")
    assert gate_fault(reference.spec(graph), engine.run, reference.engine(graph).run, (1, 5, 17)) == ""


def test_replays_read_what_is_fed_now(bundles):
    on_card, _ = bundles
    spec = on_card.spec("edit_global")
    plain, edited = feeds(spec, 2), feeds(spec, 2, ALPHA)
    first = on_card.run("edit_global", **plain)["image_u8"].astype(int)
    for _ in range(3):  # the first run is plain, the later ones replay what was captured
        other = on_card.run("edit_global", **edited)["image_u8"].astype(int)
        again = on_card.run("edit_global", **plain)["image_u8"].astype(int)
        assert np.abs(other - first).mean() > 1
        assert np.abs(again - first).max() <= 1


def test_arrays_of_torch_are_read_and_written_where_they_lie(bundles):
    torch = pytest.importorskip("torch", reason="the arrays are torch's")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA here")
    on_card, _ = bundles
    engine = on_card.engine("synthesize_u8")
    fed = feeds(on_card.spec("synthesize_u8"), 2)
    wanted = engine.run(fed)["image_u8"]
    image = torch.zeros(wanted.shape, dtype=torch.uint8, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        given = {name: torch.from_numpy(array).cuda() for name, array in fed.items()}
        results = engine.run_device(given, {"image_u8": image}, stream)
    stream.synchronize()
    assert results["image_u8"] is image
    assert np.abs(image.cpu().numpy().astype(int) - wanted).max() <= 1
