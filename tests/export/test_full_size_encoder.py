"""An e4e checkpoint of the published size, from its file to a checked ONNX graph, against the published definition."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")
onnxruntime = pytest.importorskip("onnxruntime")

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


@pytest.mark.slow
def test_e4e_of_the_published_size_exports(root, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "tests" / "training" / "checkpoints"))
    import writers_encoders as writers

    file = writers.write_encoder()
    torch.save(file, tmp_path / "e4e_ffhq_encode.pt")
    assert (tmp_path / "e4e_ffhq_encode.pt").stat().st_size > 1_000_000_000
    write_pack(tmp_path / "pack", tmp_path / "e4e_ffhq_encode.pt")
    (tmp_path / "e4e_ffhq_encode.pt").unlink()
    image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        expected = writers.encoder_of(image, file).numpy()
    del file
    sys.modules.pop("writers_encoders")

    pack = load_pack(tmp_path / "pack")
    with torch.no_grad():
        ours = pack.inverter(image).numpy()
    assert ours.shape == (1, 18, 512)
    assert np.abs(ours - expected).max() < 1e-4 * np.abs(expected).max()

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
