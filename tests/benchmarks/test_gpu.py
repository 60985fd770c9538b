"""AOTInductor on a card: a package, recorded as a CUDA graph, draws what PyTorch draws on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="AOTInductor needs the extra 'torch'")

from styleclip_rt.benchmarks.aoti import AotiEngine, build_package  # noqa: E402
from styleclip_rt.benchmarks.baseline import FOLDED, Variant  # noqa: E402
from styleclip_rt.benchmarks.network import NetworkSpec, load_network, make_inputs  # noqa: E402
from styleclip_rt.benchmarks.torch_subjects import Edit  # noqa: E402
from styleclip_rt.engines.spec import GraphSpec, TensorSpec  # noqa: E402

NAMES = ("w", "delta_t", "alpha", "beta")


@pytest.mark.gpu
@pytest.mark.slow
def test_a_package_on_the_card_agrees_with_pytorch_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA here")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # float32 is float32, as in the benchmarks
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    network = load_network(NetworkSpec(size=64, width="sixteenth"))
    feeds = {name: array for name, array in make_inputs(network, 2, seed=5).items() if name in NAMES}
    module = Edit(Variant(network.generator, FOLDED), network.directions, network.sigma).eval()
    plain = feeds | {"alpha": np.zeros(2, np.float32)}
    with torch.no_grad():
        expected, unedited = (
            module(*(torch.from_numpy(given[name]) for name in NAMES)).numpy().astype(int) for given in (feeds, plain)
        )
    assert np.abs(expected - unedited).mean() > 0.5, "the edit shows"
    inputs = tuple(torch.from_numpy(feeds[name]).cuda() for name in NAMES)
    file = build_package(module.cuda(), inputs, tmp_path / "edit.pt2")
    ports = tuple(TensorSpec(name, "float32", feeds[name].shape) for name in NAMES)
    spec = GraphSpec("edit_global", ports, (TensorSpec("image_u8", "uint8", expected.shape),))
    with AotiEngine(file, spec, device="cuda") as engine:
        first = engine.run(feeds)["image_u8"]
        assert np.abs(first.astype(int) - expected).max() <= 1
        kept = first.copy()
        assert np.abs(engine.run(plain)["image_u8"].astype(int) - unedited).max() <= 1
        assert (first == kept).all(), "a later run does not touch an output"
        assert np.abs(engine.run(feeds)["image_u8"].astype(int) - expected).max() <= 1
