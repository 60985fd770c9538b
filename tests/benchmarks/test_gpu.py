"""AOTInductor on a card: a package, recorded as a CUDA graph, draws what PyTorch draws on the CPU."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="AOTInductor needs the extra 'torch'")

from styleclip_rt.benchmarks.aoti import AotiEngine, export_graph, fixed_spec, package_of  # noqa: E402
from styleclip_rt.benchmarks.network import NetworkSpec, load_network, make_inputs  # noqa: E402

NAMES = ("w", "delta_t", "alpha", "beta")


@pytest.mark.gpu
@pytest.mark.slow
def test_a_package_on_the_card_agrees_with_pytorch_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA here")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # float32 is float32, as in the benchmarks
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    network = load_network(NetworkSpec(size=64, width="sixteenth"))
    feeds = {name: array for name, array in make_inputs(network, 2, seed=5).items() if name in NAMES}
    graph = export_graph(network, "edit_global")
    assert [port.name for port in graph.inputs] == list(NAMES)
    plain = feeds | {"alpha": np.zeros(2, np.float32)}
    with torch.no_grad():
        expected, unedited = (
            graph.module(*(torch.from_numpy(given[name]) for name in NAMES)).numpy().astype(int)
            for given in (feeds, plain)
        )
    assert np.abs(expected - unedited).mean() > 0.5, "the edit shows"
    inputs = tuple(torch.from_numpy(feeds[name]).cuda() for name in NAMES)
    package, output = package_of(graph.module.cuda(), inputs), graph.outputs[0].name
    with AotiEngine(package, fixed_spec(graph, 2), device="cuda") as engine:
        first = engine.run(feeds)[output]
        assert np.abs(first.astype(int) - expected).max() <= 1
        kept = first.copy()
        assert np.abs(engine.run(plain)[output].astype(int) - unedited).max() <= 1
        assert (first == kept).all(), "a later run does not touch an output"
        assert np.abs(engine.run(feeds)[output].astype(int) - expected).max() <= 1
