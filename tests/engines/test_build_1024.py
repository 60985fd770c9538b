"""TensorRT-RTX builds the synthesis of a full-width 1024 px generator of random weights, in float32 and float16."""

from __future__ import annotations

import pytest

from styleclip_rt.engines.build import BuildOptions, plan_from_onnx
from styleclip_rt.engines.onnx_bytes import inline_weights
from styleclip_rt.engines.spec import TensorSpec

torch = pytest.importorskip("torch", reason="the export needs the extra 'torch'")

CHANNELS = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}
"""Config-f of StyleGAN2 at 1024 px."""


@pytest.fixture(scope="module")
def generator():
    from styleclip_rt.runtime.training.networks.stylegan2 import Generator, GeneratorConfig

    torch.manual_seed(0)
    return Generator(GeneratorConfig(1024, 512, 512, 1, CHANNELS)).eval()


@pytest.mark.slow
@pytest.mark.parametrize("islands", [None, ("b1024.conv1",)], ids=["fp32", "fp16"])
def test_it_builds_for_one_and_for_any_batch(rtx, generator, tmp_path, islands):
    import onnx

    from styleclip_rt.export.graphs import Graph, normal, together
    from styleclip_rt.export.onnx_writer import onnx_from_module
    from styleclip_rt.export.precision_layers import TypedSynthesis
    from styleclip_rt.export.weights import WeightFile

    width = generator.style_channels
    assert width == 9088
    ports = (TensorSpec("s", "float32", ("N", width)),), (TensorSpec("image", "float32", ("N", 3, 1024, 1024)),)
    module = TypedSynthesis(generator, "fir", islands).eval()
    weights = WeightFile(tmp_path / "weights.bin")
    model = onnx_from_module(Graph("synthesize", module, *ports, together(normal(width))), weights)
    weights.close()
    onnx.save(model, tmp_path / "synthesize.onnx")
    halves = [n for n in model.graph.node if n.op_type == "Cast" and n.attribute[0].i == onnx.TensorProto.FLOAT16]
    assert bool(halves) == (islands is not None)  # computed in float16, not only stored so
    data = inline_weights(tmp_path / "synthesize.onnx")
    plan, _ = plan_from_onnx(rtx, data, BuildOptions((1,), max_batch=4))
    assert len(plan) > 40 << 20
