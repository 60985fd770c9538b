"""Imported kinds of networks as bundles: mappers of w+ and of style space, an encoder whose picture is no square, and
the identity network with the published crop and poolings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")

from styleclip_rt.engines.bundle import open_bundle  # noqa: E402
from styleclip_rt.engines.errors import InputError, PackError  # noqa: E402
from styleclip_rt.export.bundle_writer import export_bundle  # noqa: E402
from styleclip_rt.export.graphs import GraphFactory, graph_list  # noqa: E402
from styleclip_rt.export.prompts import make_plan  # noqa: E402
from styleclip_rt.runtime import grids  # noqa: E402
from styleclip_rt.runtime.images import pm1_from_image  # noqa: E402
from styleclip_rt.runtime.training.networks.arcface import ArcFace, ArcFaceConfig  # noqa: E402
from styleclip_rt.runtime.training.networks.e4e import E4EConfig, Encoder4Editing  # noqa: E402
from styleclip_rt.runtime.training.networks.mapper import MapperConfig, build_mapper  # noqa: E402
from styleclip_rt.runtime.training.pack import PackWriter, load_pack  # noqa: E402

CHANNELS = (24, 24, 24, 24, 24, 24, 16, 16, 16, 12, 12)  # style space of the miniature generator: 8 layers of w+
CONFIGS = {
    "single": MapperConfig(8, 16, kind="single"),
    "conv": MapperConfig(8, 16, kind="style", channels=CHANNELS),
}
IDENTITY = replace(ArcFaceConfig.ir_se50(), stem=4, stages=((4, 1), (8, 1), (12, 1), (16, 1)), reduction=4, embed_dim=8)
CARS = E4EConfig(8, 16, 32, 8, ((8, 1), (12, 1), (16, 2)), 4, 16, 2, 5, 1, input_height=24, input_width=32)


def loud(mapper):
    """Weights that give offsets one can see; the training's start is next to nothing."""
    for parameter in mapper.parameters():
        torch.nn.init.normal_(parameter, std=180.0)
    return mapper.eval()


@pytest.fixture(scope="module")
def pack(write_part_pack_once, tmp_path_factory):
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("kinds") / "kinds"
    with PackWriter(folder, "kinds", base=write_part_pack_once) as writer:
        for name, config in CONFIGS.items():
            writer.add(f"mapper/{name}", loud(build_mapper(config)))
            writer.prompts[name] = {"target": f"a {name} face", "neutral": "a face"}
        writer.add("inverter", Encoder4Editing(CARS).eval())
        writer.add("identity", ArcFace(IDENTITY).eval())
    return load_pack(folder)


@pytest.fixture(scope="module")
def write_part_pack_once(tmp_path_factory):
    from styleclip_rt.runtime.training.networks.stylegan2 import Generator, GeneratorConfig

    torch.manual_seed(2)
    generator = Generator(GeneratorConfig(32, 16, 16, 2, {4: 24, 8: 24, 16: 16, 32: 12})).eval()
    folder = tmp_path_factory.mktemp("base") / "base"
    with PackWriter(folder, "base") as writer:
        writer.add("generator", generator)
    return folder


@pytest.fixture(scope="module")
def bundle(pack, tmp_path_factory):
    plan = replace(make_plan(pack, list(CONFIGS)), slider=False)
    report = export_bundle(pack, plan, tmp_path_factory.mktemp("out") / "bundle")
    with open_bundle(report.path, device="cpu") as opened:
        yield opened


def faces(pack, batch=3):
    return GraphFactory(pack).latents(batch, torch.Generator().manual_seed(8))


def graph_of(name):
    return f"style_mapper/{name}" if name == "conv" else f"mapper/{name}"


def test_each_kind_has_its_graph_and_its_prompt_names_it(bundle):
    for name in CONFIGS:
        assert graph_of(name) in bundle.graphs
        assert f"edit_mapper/{name}" in bundle.graphs
        assert bundle.manifest["prompts"][name]["mapper"] == graph_of(name)


@pytest.mark.parametrize("name", CONFIGS)
def test_graphs_equal_the_networks(bundle, pack, name):
    w = faces(pack)
    mapper, generator = pack.mapper(name), pack.generator
    latents = generator.styles(w) if graph_of(name).startswith("style") else w
    with torch.no_grad():
        expected = mapper.delta(latents).numpy()
        strength = torch.tensor([0.0, 1.0, -2.0])
        moved = strength.reshape(-1, *[1] * (latents.ndim - 1)) * mapper.delta(latents)
        s = latents + moved if latents.ndim == 2 else generator.styles(w + moved)
        image = ((generator.synthesize(s) + 1) * 127.5).clamp(0, 255).round().permute(0, 2, 3, 1).numpy()
    feeds = {"s" if latents.ndim == 2 else "w": latents.numpy()}
    (got,) = bundle.run(graph_of(name), **feeds).values()
    assert np.abs(got - expected).max() < 1e-4
    assert np.abs(expected).max() > 0.05
    edited = bundle.run(f"edit_mapper/{name}", w=w.numpy(), strength=strength.numpy())["image_u8"]
    assert np.abs(edited - image).max() <= 1
    assert (
        np.abs(
            image[1] - bundle.run(f"edit_mapper/{name}", w=w.numpy(), strength=0 * strength.numpy())["image_u8"][1]
        ).max()
        > 3
    )


@pytest.mark.parametrize("names", [["conv"], ["conv", "single"]], ids="+".join)
def test_the_editor_moves_both_spaces(editor, pack, names):
    w = faces(pack, 1)
    strengths = [1.5, -1.0][: len(names)]
    result = editor.edit_latents(w.numpy(), names, alpha=strengths, method="mapper")
    generator = pack.generator
    with torch.no_grad():
        s0, plus, s = generator.styles(w), w.clone(), 0
        for name, strength in zip(names, strengths, strict=True):
            if graph_of(name).startswith("style"):
                s = s + strength * pack.mapper(name).delta(s0)
            else:
                plus = plus + strength * pack.mapper(name).delta(w)
        image = generator.synthesize(generator.styles(plus) + s)
    expected = ((image + 1) * 127.5).clamp(0, 255).round()[0].permute(1, 2, 0).numpy()
    assert np.abs(np.asarray(result.image, dtype=np.float32) - expected).max() <= 1
    assert result.delta_s.shape[-1] == sum(CHANNELS)
    assert len(result.channels)


def test_grids_show_style_mappers(editor, pack):
    grid = grids.prompt_grid(editor, faces(pack, 1).numpy(), ["conv", "single"], (0.0, 2.0), method="mapper")
    for row in grid.rows:
        assert np.abs(row.styles[0] - editor.styles(faces(pack, 1).numpy())[0]).max() < 1e-5
        assert np.abs(row.styles[1] - row.styles[0]).max() > 0.05


def test_an_inverter_of_another_shape_says_so_in_ports_and_manifest(bundle, pack):
    entry = bundle.manifest["graphs"]["invert"]["inputs"][0]
    assert entry["shape"] == ["N", 3, 24, 32]
    assert bundle.manifest["model"]["invert_shape"] == [24, 32]
    image = torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        expected = pack.inverter(image).numpy()
    assert np.abs(bundle.run("invert", image=image.numpy())["w"] - expected).max() < 1e-4
    model = onnx.load(bundle.path / bundle.manifest["graphs"]["invert"]["file"], load_external_data=False)
    modes = [
        attribute.s
        for node in model.graph.node
        if node.op_type == "Resize"
        for attribute in node.attribute
        if attribute.name == "coordinate_transformation_mode"
    ]
    assert modes == [b"align_corners"] * 2


def test_whole_photos_of_another_shape_are_resized_for_such_an_inverter(editor, bundle):
    photo = Image.fromarray(np.random.default_rng(4).integers(0, 255, (60, 100, 3), dtype=np.uint8))
    frame = editor.frame(photo)
    assert frame.crop.size == (32, 24)
    assert np.array_equal(frame.crop, photo.resize((32, 24), Image.Resampling.BILINEAR))
    assert frame.quad.tolist() == [[0, -10], [0, 70], [100, 70], [100, -10]]  # rows 4 to 28 of 32 are the photo
    result = editor.edit(photo, "conv", alpha=2.0, method="mapper", paste="crop")
    assert result.image.size == (32, 32)
    assert result.pasted.size == (100, 60)
    assert np.array_equal(result.w, bundle.run("invert", image=pm1_from_image(frame.crop))["w"])
    with pytest.raises(InputError, match="whole photos at 32 x 24 px"):
        editor.frame(photo, editor.framing(align=True))


def test_the_published_crop_and_pooling_are_in_the_identity_graph(bundle, pack):
    """188 px to 112 px is no whole ratio, which ONNX has no adaptive pooling for."""
    image = torch.rand(3, 3, 256, 256, generator=torch.Generator().manual_seed(1)) * 2 - 1
    outside = image.clone()
    outside[:, :, :35], outside[:, :, :, 220:] = 0, 0
    face = torch.nn.functional.adaptive_avg_pool2d(image[:, :, 35:223, 32:220], 112)
    with torch.no_grad():
        features = pack.identity.norm(pack.identity.backbone(face)[-1]).flatten(1)
        expected = torch.nn.functional.normalize(pack.identity.embed_norm(pack.identity.embed(features))).numpy()
    for feed in (image, outside):
        assert np.abs(bundle.run("identify", image=feed.numpy())["embedding"] - expected).max() < 1e-5
    assert np.abs(expected[0] - expected[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "network", "message"),
    [
        ("mapper/x", MapperConfig(10, 16), r"mapper 'x' is for w\+ \[10, 16\]; the pack's generator has \[8, 16\]"),
        ("mapper/x", MapperConfig(8, 16, kind="style", channels=(8,) * 11), r"style layers of \[8, 8,"),
        ("inverter", E4EConfig(8, 12, 32, 8, ((8, 1), (12, 1), (16, 1)), 4, 8, 2, 5), r"inverter is for w\+ \[8, 12\]"),
    ],
    ids=["layers", "channels", "inverter"],
)
def test_parts_of_another_generator_are_refused(write_part_pack_once, tmp_path, name, network, message):
    module = Encoder4Editing(network) if name == "inverter" else build_mapper(network)
    with PackWriter(tmp_path / "p", "p", base=write_part_pack_once) as writer:
        writer.add(name, module)
    builders, _ = graph_list(load_pack(tmp_path / "p"), ["x"] if name != "inverter" else [])
    with pytest.raises(PackError, match=message):
        _ = [build() for build in builders]
