"""A bundle in float16 with sliders: typed throughout, recorded, and the same edits in fewer steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")

from styleclip_rt.engines.bundle import open_bundle  # noqa: E402
from styleclip_rt.engines.errors import InputError, ToleranceError  # noqa: E402
from styleclip_rt.engines.onnx_bytes import inline_weights  # noqa: E402
from styleclip_rt.export import precision_gate  # noqa: E402
from styleclip_rt.export.bundle_writer import Plan, export_bundle  # noqa: E402
from styleclip_rt.export.prompts import make_plan  # noqa: E402
from styleclip_rt.export.slider import cuts, macs, slice_names  # noqa: E402
from styleclip_rt.runtime.training.pack import load_pack  # noqa: E402

pytestmark = pytest.mark.slow  # exports three bundles
SAME_TYPES = {"Add", "Conv", "ConvTranspose", "Div", "Gemm", "LeakyRelu", "MatMul", "Mul", "PRelu", "Relu", "Sub"}


@pytest.fixture(scope="module")
def pack(mini_pack):
    return load_pack(mini_pack)


@pytest.fixture(scope="module")
def bundle(pack, tmp_path_factory):
    plan = replace(make_plan(pack, ["bob-cut"]), precision="fp16", form="separable")
    report = export_bundle(pack, plan, tmp_path_factory.mktemp("half") / "bundle")
    with open_bundle(report.path, device="cpu") as opened:
        yield opened


def models(bundle):
    for name, entry in bundle.manifest["graphs"].items():
        yield name, entry, onnx.load(bundle.path / entry["file"], load_external_data=False)


def test_the_manifest_records_precision_and_form(bundle):
    manifest = bundle.manifest
    assert manifest["precision"] == "fp16"
    assert manifest["form"] == "separable"
    graphs = manifest["graphs"]
    exact = {name for name, entry in graphs.items() if entry["precision"]["type"] == "fp32"}
    assert exact == {"mapping", "style", "direction", "mapper/bob-cut"}
    whole = graphs["synthesize"]["precision"]
    assert set(whole["ranges"]) == {"const"} | {layer["name"] for layer in manifest["model"]["layers"]}
    assert graphs["edit_global"]["precision"]["as"] == "synthesize"
    for name in ("synthesize", "edit_global", "edit_mapper/bob-cut", "synthesize_tail/b16.conv1"):
        gate = graphs[name]["precision"]["gate"]
        assert gate["plain"] >= 45, name
        assert gate["edited"] >= 40, name
    assert graphs["encode_text"]["precision"]["gate"]["feeds"] >= 0.9995
    assert graphs["invert"]["precision"]["gate"]["feeds"] <= 1e-2
    bundle.verify()


def test_ports_stay_float32_and_uint8(bundle):
    for name in bundle.graphs:
        spec = bundle.spec(name)
        assert {tensor.dtype for tensor in (*spec.inputs, *spec.outputs)} <= {"float32", "int64", "uint8"}, name


def test_every_node_reads_one_floating_type(bundle):
    """What a strongly typed network asks for; float16 is really there, and the skip and the end are float32."""
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    for name, entry, model in models(bundle):
        graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
        infos = (*graph.input, *graph.value_info, *graph.output)
        kinds = {info.name: info.type.tensor_type.elem_type for info in infos}
        kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        for node in graph.node:
            types = {kinds[value] for value in node.input if kinds.get(value) in (half, full)}
            if node.op_type in SAME_TYPES:
                assert len(types | {kinds[node.output[0]]}) == 1, (name, node.op_type, node.name)
        convolved = {kinds[node.output[0]] for node in graph.node if node.op_type in ("Conv", "MatMul", "Gemm")}
        assert (half in convolved) == (entry["precision"]["type"] == "fp16"), name


def test_tensorrt_builds_every_graph(bundle, build_with_rtx):
    """Its networks are strongly typed: a float32 factor of a float16 tensor is an error there."""
    sizes = build_with_rtx({name: inline_weights(bundle.path / entry["file"]) for name, entry, _ in models(bundle)})
    assert set(sizes) == set(bundle.graphs)
    assert {"synthesize", "edit_global", "invert", "encode_text", "synthesize_tail/b16.conv1"} <= set(sizes)
    assert min(sizes.values()) > 5_000, sizes


def test_openvino_runs_float16(bundle, pack):
    pytest.importorskip("openvino", reason="the second CPU engine needs the extra 'openvino'")
    s = pack.generator.styles(torch.randn(2, pack.generator.num_ws, 16)).detach()
    with torch.no_grad():
        expected = pack.generator.synthesize(s).numpy()
    with open_bundle(bundle.path, device="cpu", engine="openvino") as other:
        assert np.abs(other.run("synthesize", s=s.numpy())["image"] - expected).max() < 0.05


def test_slices_add_nodes_and_no_weights(bundle):
    files = bundle.manifest["files"]
    slices = [name for name in bundle.graphs if name.split("/")[0] in ("synthesize_head", "synthesize_tail")]
    assert slices
    for name in slices:
        assert files[bundle.manifest["graphs"][name]["file"]]["bytes"] < 30_000
    whole = bundle.manifest["graphs"]["synthesize"]["bytes"]
    assert files["graphs/weights.bin"]["bytes"] < 1.2e6 + whole


def test_a_head_and_its_tail_are_the_synthesis(bundle, pack):
    s = pack.generator.styles(torch.randn(3, pack.generator.num_ws, 16)).detach().numpy()
    whole = bundle.run("synthesize_u8", s=s)["image_u8"]
    for layer in cuts(pack.generator):
        state = bundle.run(f"synthesize_head/{layer}", s=s)
        got = bundle.run(f"synthesize_tail/{layer}", s=s, **state)["image_u8"]
        assert np.abs(got.astype(int) - whole).max() <= 1, layer


def test_cuts_stand_where_they_save_something(pack):
    """By hand for the miniature: 9 Ci Co r^2, an up-sampling layer by its input pixels."""
    counts = macs(pack.generator)
    assert counts["b4.conv1"] == 9 * 24 * 24 * 16
    assert counts["b32.conv0"] == 9 * 16 * 12 * 16 * 16
    assert counts["b32.conv1"] == 9 * 12 * 12 * 32 * 32
    total, names = sum(counts.values()), list(counts)
    for layer in cuts(pack.generator):
        assert sum(counts[name] for name in names[: names.index(layer)]) >= 0.05 * total
    assert set(slice_names(pack.generator)) == {
        f"synthesize_{part}/{layer}" for layer in cuts(pack.generator) for part in ("head", "tail")
    }


def test_a_slider_gives_the_edit(editor):
    w = editor.sample([4])
    slider = editor.slider(w, "bob-cut", beta=0.3)
    for alpha in (-10.0, 0.0, 2.5):
        edit = editor.edit_latents(w, "bob-cut", alpha=alpha, beta=0.3).image
        assert np.abs(np.asarray(slider.at(alpha)).astype(int) - np.asarray(edit)).max() <= 1
    grid = slider.grid([-1, 0, 1, 2, 3])
    assert np.abs(np.asarray(grid[3]).astype(int) - np.asarray(slider.at(2))).max() <= 1
    assert not np.array_equal(np.asarray(grid[0]), np.asarray(grid[4]))
    mapped = editor.slider(w, "bob-cut", method="mapper")
    edit = editor.edit_latents(w, "bob-cut", alpha=1.5, method="mapper").image
    assert np.abs(np.asarray(mapped.at(1.5)).astype(int) - np.asarray(edit)).max() <= 1


@pytest.fixture(scope="module")
def generator_pack(tmp_path_factory):
    from styleclip_rt.runtime.training.pack import PackWriter

    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("generator") / "pack"
    with PackWriter(folder, "part") as writer:
        writer.add("generator", _generator())
    return load_pack(folder)


def _generator():
    from styleclip_rt.runtime.training.networks.stylegan2 import Generator, GeneratorConfig

    return Generator(GeneratorConfig(8, 8, 8, 1, {4: 8, 8: 8})).eval()


def test_auto_keeps_float32_where_a_limit_is_missed(generator_pack, tmp_path, monkeypatch):
    monkeypatch.setitem(precision_gate.MIN_PSNR_DB, "edited", 500.0)
    report = export_bundle(generator_pack, Plan("part", precision="auto"), tmp_path / "bundle")
    rows = {row.spec.name: row for row in report.rows}
    for name in ("synthesize", "synthesize_u8", "synthesize_tail/b8.conv1"):
        assert rows[name].precision["type"] == "fp32", name
        assert "limit 500" in rows[name].precision["reason"]
        assert rows[name].check.metric in ("max_abs_error", "max_level_error")
    with open_bundle(report.path, device="cpu") as bundle:  # a float16 head still fits a float32 tail
        s = generator_pack.generator.styles(torch.randn(2, 4, 8)).detach().numpy()
        state = bundle.run("synthesize_head/b8.conv1", s=s)
        got = bundle.run("synthesize_tail/b8.conv1", s=s, **state)["image_u8"]
        assert np.abs(got.astype(int) - bundle.run("synthesize_u8", s=s)["image_u8"]).max() <= 1


def test_a_network_alone_falls_back_too(write_part_pack, tmp_path, monkeypatch):
    monkeypatch.setattr(precision_gate, "MIN_COSINE", 2.0)
    pack = load_pack(write_part_pack(["identity"]))
    (row,) = export_bundle(pack, Plan("part", precision="auto"), tmp_path / "bundle").rows
    assert row.precision["type"] == "fp32"
    assert "limit 2" in row.precision["reason"]
    assert row.check.tolerance == 0.99999


def test_fp16_is_an_error_where_a_limit_is_missed(generator_pack, tmp_path, monkeypatch):
    monkeypatch.setitem(precision_gate.MIN_PSNR_DB, "plain", 500.0)
    with pytest.raises(ToleranceError, match=r"synthesize in float16, plain: min_psnr_db .* --precision auto"):
        export_bundle(generator_pack, Plan("part", precision="fp16"), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_unknown_precisions_and_forms_are_refused_before_any_work(generator_pack, tmp_path):
    with pytest.raises(InputError, match="precision is 'int8'"):
        export_bundle(generator_pack, Plan("part", precision="int8"), tmp_path / "a")
    with pytest.raises(InputError, match="'winograd'"):
        export_bundle(generator_pack, Plan("part", form="winograd"), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
