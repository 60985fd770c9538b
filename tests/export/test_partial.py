"""Packs that hold a part: the graphs that it allows are exported and run, and every other says what it needs."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")

from click.testing import CliRunner  # noqa: E402

from styleclip_rt.engines.errors import InputError, StyleclipError  # noqa: E402
from styleclip_rt.export.bundle_writer import Plan, export_bundle  # noqa: E402
from styleclip_rt.runtime.cli import cli  # noqa: E402
from styleclip_rt.runtime.editor import Editor  # noqa: E402
from styleclip_rt.runtime.training.needs import NEEDS, lacking  # noqa: E402
from styleclip_rt.runtime.training.networks.stylegan2 import Generator, GeneratorConfig  # noqa: E402
from styleclip_rt.runtime.training.pack import PackWriter, load_pack  # noqa: E402
from styleclip_rt.runtime.training.pack_writer import Component  # noqa: E402

GENERATOR = ("mapping", "style", "synthesize", "synthesize_u8")
PHOTO = np.zeros((40, 40, 3), np.uint8)


@pytest.fixture
def make(write_part_pack, tmp_path):
    """A function (parts) -> folder of the bundle of a pack that holds only these."""

    def build(parts):
        return export_bundle(load_pack(write_part_pack(parts)), Plan("part", slider=False), tmp_path / "bundle").path

    return build


def test_a_generator_alone_draws_faces_and_says_why_it_cannot_edit(make, tmp_path):
    folder = make(["generator"])
    with Editor.open(folder, device="cpu") as editor:
        assert set(GENERATOR) <= set(editor.bundle.graphs)
        w = editor.sample([1, 2])
        assert editor.synthesize(editor.styles(w)).shape == (2, 32, 32, 3)
        with pytest.raises(StyleclipError, match="has no inverter"):
            editor.edit(PHOTO, "glasses")
        with pytest.raises(StyleclipError, match="has no text encoder; export it from a pack with CLIP"):
            editor.edit_latents(w[:1], "glasses")
        with pytest.raises(InputError, match=r"no graph 'direction' .* lacked clip, statistics, directions\."):
            editor.bundle.run("direction")
        assert editor.bundle.manifest["missing"]["invert"] == ["inverter"]
    out = tmp_path / "faces.png"
    result = CliRunner().invoke(cli, ["generate", "--bundle", str(folder), "--count", "2", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert out.exists()


def test_clip_alone_opens_and_embeds(make):
    with Editor.open(make(["clip"]), device="cpu") as editor:
        assert set(editor.bundle.graphs) == {"encode_text", "encode_image"}
        assert editor.model.resolution == editor.model.num_ws == 0
        image = np.zeros((1, 3, 32, 32), np.float32)
        embedding = editor.bundle.run("encode_image", image=image)["embedding"]
        assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)
        with pytest.raises(InputError, match=r"no graph 'mapping' .* lacked generator\."):
            editor.sample([1])
        with pytest.raises(StyleclipError, match="has no inverter"):
            editor.photo(PHOTO)


def test_an_inverter_without_clip_inverts(make):
    with Editor.open(make(["generator", "inverter"]), device="cpu") as editor:
        assert editor.invert(editor.photo(PHOTO)).shape == (1, editor.model.num_ws, editor.model.w_dim)
        assert editor.bundle.manifest["missing"] == {
            "identify": ["identity"],
            "encode_text": ["clip"],
            "encode_image": ["clip"],
            "direction": ["clip", "statistics", "directions"],
            "edit_global": ["clip", "statistics", "directions"],
        }


def test_the_table_of_needs():
    assert lacking(["generator", "mapper/a"], ["a", "b"])["edit_mapper/b"] == ["mapper/b"]
    complete = {part for parts in NEEDS.values() for part in parts}
    assert not any(lacking(complete).values())


def test_weights_of_an_imported_pack_stay_exact_and_are_stored_once(tmp_path):
    import onnx
    from onnx.external_data_helper import load_external_data_for_model

    torch.manual_seed(3)
    generator = Generator(GeneratorConfig(16, 8, 8, 2, {4: 32, 8: 24, 16: 20})).eval()
    writer = PackWriter(tmp_path / "pack", "exact")
    writer.components["generator"] = Component(generator, exact=True)
    writer.publish()
    folder = (
        export_bundle(load_pack(tmp_path / "pack"), Plan("exact", slider=False), tmp_path / "bundle").path / "graphs"
    )
    weight = generator.layer("b16.conv1").weight.detach()
    forms = [weight.numpy(), (weight * generator.layer("b16.conv1").gain).numpy()]  # as it is, or its gain folded in
    places = set()
    for name in ("synthesize", "synthesize_u8"):
        model = onnx.load(folder / f"{name}.onnx", load_external_data=False)
        named = [t for t in model.graph.initializer if tuple(t.dims) == forms[0].shape]
        offsets = {t.name: entry.value for t in named for entry in t.external_data if entry.key == "offset"}
        load_external_data_for_model(model, str(folder))
        same = [
            tensor.name
            for tensor in model.graph.initializer
            if tensor.name in offsets
            if any(np.array_equal(onnx.numpy_helper.to_array(tensor), form) for form in forms)
        ]
        assert len(same) == 1, name
        places.add(offsets[same[0]])
    assert len(places) == 1
