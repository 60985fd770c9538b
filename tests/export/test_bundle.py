"""One export of the miniature pack, looked at from every side."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")

from styleclip_rt.engines.bundle import open_bundle  # noqa: E402
from styleclip_rt.engines.errors import InputError, PackError, ToleranceError  # noqa: E402
from styleclip_rt.export import bundle_writer, verify  # noqa: E402
from styleclip_rt.export.bundle_writer import Plan, export_bundle  # noqa: E402
from styleclip_rt.export.graphs import GraphFactory, graph_list  # noqa: E402
from styleclip_rt.export.prompts import make_plan  # noqa: E402
from styleclip_rt.export.slider import slice_names  # noqa: E402
from styleclip_rt.runtime import edits  # noqa: E402
from styleclip_rt.runtime.training.needs import NEEDS  # noqa: E402
from styleclip_rt.runtime.training.pack import load_pack  # noqa: E402

GRAPHS = [
    "mapping",
    "style",
    "synthesize",
    "synthesize_u8",
    "invert",
    "identify",
    "encode_text",
    "encode_image",
    "direction",
    "edit_global",
    "mapper/bob-cut",
    "edit_mapper/bob-cut",
]


@pytest.fixture(scope="module")
def pack(mini_pack):
    return load_pack(mini_pack)


@pytest.fixture(scope="module")
def loaded():
    """{graph: networks that were loaded, besides the generator, when `report` checked it}."""
    return {}


@pytest.fixture(scope="module")
def report(mini_pack, loaded, tmp_path_factory):
    own, real = load_pack(mini_pack), bundle_writer.check_graph

    def look(graph, path):
        loaded[graph.name] = {part for part in ("inverter", "clip", "identity") if part in vars(own)}
        return real(graph, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_writer, "check_graph", look)
        return export_bundle(own, make_plan(own, ["bob-cut"]), tmp_path_factory.mktemp("out") / "bundle")


@pytest.fixture(scope="module")
def bundle(report):
    with open_bundle(report.path, device="cpu") as opened:
        yield opened


def example(pack, name, batch=2):
    graph = next(g for g in (build() for build in graph_list(pack, ["bob-cut"])[0]) if g.name == name)
    feeds = graph.feeds(batch, torch.Generator().manual_seed(9))
    with torch.no_grad():
        out = graph.module(*feeds)
    outs = out if isinstance(out, tuple) else (out,)
    names = [spec.name for spec in graph.inputs], [spec.name for spec in graph.outputs]
    return (
        {k: v.contiguous().numpy() for k, v in zip(names[0], feeds, strict=True)},
        {k: v.numpy() for k, v in zip(names[1], outs, strict=True)},
    )


def test_all_graphs_are_there_and_verified(pack, bundle):
    slices = slice_names(pack.generator)  # more of them in test_precision_bundle
    assert list(bundle.graphs) == [*GRAPHS, *slices]
    bundle.verify()
    limits = {"max_abs_error": 1e-3, "max_level_error": 1, "relative_error": 1e-3}
    for name, entry in bundle.manifest["graphs"].items():
        check = entry["check"]
        if check["metric"] == "min_cosine":
            assert check["value"] >= 0.99999, name
        else:
            assert check["value"] <= limits[check["metric"]], name


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_runs_through_the_engines_at_other_batches(bundle, pack, name):
    feeds, expected = example(pack, name, batch=5)
    for key, got in bundle.run(name, **feeds).items():
        assert got.shape == expected[key].shape
        tolerance = 1 if got.dtype == np.uint8 else 1e-3
        assert np.abs(got.astype(np.float64) - expected[key]).max() <= tolerance


def test_openvino_agrees(report, pack):
    pytest.importorskip("openvino", reason="the second CPU engine needs the extra 'openvino'")
    with open_bundle(report.path, device="cpu", engine="openvino") as bundle:
        for name in ("synthesize", "invert", "identify", "encode_text", "encode_image", "edit_global"):
            feeds, expected = example(pack, name)
            for key, got in bundle.run(name, **feeds).items():
                tolerance = 1 if got.dtype == np.uint8 else 1e-3
                assert np.abs(got.astype(np.float64) - expected[key]).max() <= tolerance, name


@pytest.mark.parametrize("name", GRAPHS)
def test_files_are_plain_onnx_with_named_axes_and_no_traces(bundle, name):
    path = bundle.path / bundle.manifest["graphs"][name]["file"]
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert [opset.domain for opset in model.opset_import] == [""]
    assert not model.functions
    for value in [*model.graph.input, *model.graph.output]:
        assert value.type.tensor_type.shape.dim[0].dim_param == "N", value.name
    data = path.read_bytes()
    assert b"stack_trace" not in data
    assert b".py" not in data


def test_weights_are_shared(bundle):
    """The four graphs that hold the synthesis add nothing but nodes."""
    sizes = {name: entry["bytes"] for name, entry in bundle.manifest["files"].items()}
    heavy = sum(
        entry["bytes"] for name, entry in bundle.manifest["graphs"].items() if "synth" in name or "edit" in name
    )
    assert sum(sizes.values()) < 1.6e6
    assert sizes["graphs/weights.bin"] + heavy > sum(sizes.values())


def test_the_direction_graph_equals_the_numpy_reference(bundle, pack):
    feeds, _ = example(pack, "direction", 4)
    out = bundle.run("direction", **feeds)
    table, sigma = pack.directions.numpy(), pack.statistics.s_std.numpy()
    for i in range(3):
        r = table @ feeds["delta_t"][i]
        assert np.allclose(out["relevance"][i], r, atol=1e-6)
        expected = edits.direction(table, feeds["delta_t"][i], float(feeds["beta"][i]), sigma)
        assert np.allclose(out["delta_s"][i], expected, atol=1e-5)
    assert feeds["beta"][3] == 2.0
    assert not out["delta_s"][3].any()  # nothing left: zero, never NaN


def test_fused_edits_equal_their_parts(bundle, pack):
    feeds, _ = example(pack, "edit_global")
    s = bundle.run("style", w=feeds["w"])["s"]
    delta_s = bundle.run("direction", delta_t=feeds["delta_t"], beta=feeds["beta"])["delta_s"]
    parts = bundle.run("synthesize_u8", s=s + feeds["alpha"][:, None] * delta_s)["image_u8"]
    assert np.abs(parts.astype(int) - bundle.run("edit_global", **feeds)["image_u8"]).max() <= 1
    zero = {**feeds, "alpha": np.zeros(2, np.float32)}
    still = bundle.run("synthesize_u8", s=s)["image_u8"]
    assert np.array_equal(bundle.run("edit_global", **zero)["image_u8"], still)
    mapped = bundle.run("edit_mapper/bob-cut", w=feeds["w"], strength=np.zeros(2, np.float32))["image_u8"]
    assert np.array_equal(mapped, still)


def test_the_manifest_says_what_the_bundle_is(bundle, pack):
    manifest = bundle.manifest
    assert manifest["pack"]["sha256"] == pack.sha256
    assert manifest["pack"]["licences"]["clip"] == "Apache-2.0"
    assert manifest["default_prompt"] == "bob-cut"
    assert manifest["prompts"]["bob-cut"]["mapper"] == "mapper/bob-cut"
    assert manifest["prompts"]["glasses"]["mapper"] is None
    model = manifest["model"]
    assert sum(layer["channels"] for layer in model["layers"]) == model["style_channels"]
    assert model["clip"]["mean"] == pytest.approx([0.5, 0.45, 0.4])
    assert manifest["tokens"] == {"bos": 0, "eos": 1, "pad": 2, "context_length": 16}
    assert set(manifest["files"]) == {
        path.relative_to(bundle.path).as_posix()
        for path in bundle.path.rglob("*")
        if path.is_file() and path.name != "bundle.json"
    }
    text = (bundle.path / "bundle.json").read_text()
    assert "/" + "tmp" not in text
    assert json.loads(text) == manifest


def test_the_editor_edits_with_the_bundle(report, tmp_path, monkeypatch):
    from styleclip_rt.runtime.editor import Editor

    monkeypatch.setenv("STYLECLIP_RT_HOME", str(tmp_path))
    photo = np.random.default_rng(0).integers(0, 255, (50, 50, 3), dtype=np.uint8)
    with Editor.open(report.path, device="cpu") as editor:
        assert editor.edit(photo, "bob-cut", alpha=2, beta=0.05).image.size == (32, 32)
        assert editor.edit(photo, "bob-cut", method="mapper").image.size == (32, 32)


def test_networks_are_dropped_when_the_next_graph_does_not_need_them(report, loaded):
    """At no graph is another network loaded than the generator and those that the graph is made from."""
    assert list(loaded) == [row.spec.name for row in report.rows]
    assert loaded["invert"] == {"inverter"}
    assert loaded["identify"] == {"identity"}
    assert loaded["encode_text"] == loaded["encode_image"] == {"clip"}
    assert loaded["mapping"] == loaded["synthesize"] == set()
    assert all(found <= set(NEEDS.get(name, ())) for name, found in loaded.items())


def test_a_graph_out_of_tolerance_leaves_no_bundle(mini_pack, tmp_path, monkeypatch):
    """Weights that change after the trace are caught, and nothing appears."""
    pack = load_pack(mini_pack)
    real = bundle_writer.check_graph

    def spoil_then_check(graph, path):
        if graph.name == "style":
            pack.generator.layer("b4.conv1").affine.bias.data += 0.5
        return real(graph, path)

    monkeypatch.setattr(bundle_writer, "check_graph", spoil_then_check)
    with pytest.raises(ToleranceError, match=r"style: s at batch 1: relative_error .* at most 0\.001"):
        export_bundle(pack, Plan("mini"), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_keeps_the_older_bundle(write_part_pack, tmp_path, monkeypatch):
    pack = load_pack(write_part_pack(["directions"]))
    with pytest.raises(PackError, match="allows no graph"):
        export_bundle(pack, Plan("part"), tmp_path / "none")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "cat.png").write_bytes(b"x")
    identity = load_pack(write_part_pack(["identity"]))
    with pytest.raises(InputError, match=r"holds no bundle\.json"):
        export_bundle(identity, Plan("part"), tmp_path / "mine")
    out = tmp_path / "part"
    first = export_bundle(identity, Plan("part"), out)
    assert [row.spec.name for row in first.rows] == ["identify"]
    assert first.missing["edit_global"] == ["generator", "clip", "statistics", "directions"]
    before = (out / "bundle.json").read_bytes()

    def fail(*_):
        raise ToleranceError("too far")

    monkeypatch.setattr(bundle_writer, "check_graph", fail)
    with pytest.raises(ToleranceError):
        export_bundle(identity, Plan("part"), out)
    assert (out / "bundle.json").read_bytes() == before
    with open_bundle(out, device="cpu") as opened:
        assert opened.graphs == ("identify",)


def test_metrics():
    a = np.array([[0.6, 0.8]], np.float32)
    assert verify.min_cosine(a, a) == pytest.approx(1)
    assert verify.min_cosine(2 * a, a) == 0  # not of unit length
    assert verify.psnr_db(a, a, 2.0) == 200
    assert verify.psnr_db(a, a + 0.2, 2.0) == pytest.approx(20, abs=1e-4)
    assert verify.relative(a, 2 * a) == pytest.approx(0.5)
    image = verify.METRICS["image"]
    assert not image.passes(float("nan"))
    with pytest.raises(ToleranceError, match="NaN or infinity"):
        verify.compare("g", image, a * np.nan, a, 1)
    with pytest.raises(ToleranceError, match="float64"):
        verify.compare("g", image, a.astype(np.float64), a, 1)
    with pytest.raises(ToleranceError, match=r"max_abs_error 0\.002"):
        verify.compare("g", image, a, a + 0.002, 1)


def test_example_tokens_have_one_eos_then_padding(pack):
    rows = GraphFactory(pack).tokens(50, torch.Generator().manual_seed(0))
    assert (rows[:, 0] == 0).all()
    assert ((rows == 1).sum(dim=1) == 1).all()
    for row in rows.tolist():
        assert set(row[row.index(1) + 1 :]) <= {2}
