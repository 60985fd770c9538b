"""Encoders of the published size against the published definition: pSp, and e4e up to a checked ONNX graph."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")
onnxruntime = pytest.importorskip("onnxruntime")

from styleclip_rt.export import verify  # noqa: E402
from styleclip_rt.export.bundle_writer import Plan, write_graphs  # noqa: E402
from styleclip_rt.export.graphs import GraphFactory  # noqa: E402
from styleclip_rt.runtime.archives import read_source  # noqa: E402
from styleclip_rt.runtime.training.checkpoints.encoders import import_inverter  # noqa: E402
from styleclip_rt.runtime.training.networks.stylegan2 import Generator, GeneratorConfig  # noqa: E402
from styleclip_rt.runtime.training.pack import PackWriter, load_pack  # noqa: E402
from styleclip_rt.runtime.training.pack_writer import Component  # noqa: E402


def write_pack(folder, file):
    """A pack with the encoder of `file` and a thin generator of the same size of w+."""
    imported = import_inverter(read_source(file))
    generator = Generator(GeneratorConfig(1024, 8, 512, 1, {4 << k: 2 for k in range(9)}))
    with PackWriter(folder, "p") as writer:
        writer.add("generator", generator.eval())
        writer.components["inverter"] = Component(imported.content, imported.config, exact=True)


@pytest.fixture
def encoder(root, tmp_path, monkeypatch):
    """A function (opts) -> (the pack, an image, the w+ that the definition gives for it)."""
    monkeypatch.syspath_prepend(str(root / "tests" / "training" / "checkpoints"))
    import writers_encoders as writers

    def imported(**opts):
        file = writers.write_encoder(**opts)
        torch.save(file, tmp_path / "encoder.pt")
        assert (tmp_path / "encoder.pt").stat().st_size > 1_000_000_000
        write_pack(tmp_path / "pack", tmp_path / "encoder.pt")
        (tmp_path / "encoder.pt").unlink()
        image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(1)) * 2 - 1
        with torch.no_grad():
            return load_pack(tmp_path / "pack"), image, writers.encoder_of(image, file).numpy()

    yield imported
    sys.modules.pop("writers_encoders", None)


def assert_equal(pack, image, expected):
    """The network of the pack against the definition."""
    with torch.no_grad():
        ours = pack.inverter(image).numpy()
    assert ours.shape == (1, 18, 512)
    assert np.abs(ours - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.slow
def test_psp_of_the_published_size(encoder):
    pack, image, expected = encoder(encoder_type="GradualStyleEncoder")
    assert pack.config("inverter")["kind"] == "psp"
    assert_equal(pack, image, expected)


@pytest.mark.slow
def test_e4e_of_the_published_size_exports(encoder, tmp_path, monkeypatch):
    """Checked at a batch of 2 here, and at 1 in the end; small encoders are checked at 1 and 3."""
    pack, image, expected = encoder()
    assert_equal(pack, image, expected)
    monkeypatch.setattr(verify, "BATCHES", (2,))

    (row,) = write_graphs(tmp_path, pack, Plan("p", slider=False), [GraphFactory(pack).invert])
    assert row.check.metric == "relative_error"
    assert row.check.value < 1e-3
    model = onnx.load(tmp_path / row.file, load_external_data=False)
    resizes = [node for node in model.graph.node if node.op_type == "Resize"]
    settings = [{a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} for node in resizes]
    assert [s["coordinate_transformation_mode"] for s in settings] == [b"align_corners"] * 2
    assert [s["mode"] for s in settings] == [b"linear"] * 2
    pack.release()
    session = onnxruntime.InferenceSession(str(tmp_path / row.file), providers=["CPUExecutionProvider"])
    got = session.run(None, {"image": image.numpy()})[0]
    assert np.abs(got - expected).max() < 1e-3 * np.abs(expected).max()
