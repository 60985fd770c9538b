"""TensorRT-RTX builds every graph of exported bundles: 64 px and 1024 px, float32 and float16, free and fixed batch.

The networks are narrow, and two cuts stand for the ten: width and height of a cut change sizes and no operator. The
encoders know nothing of the resolution: in float16 test_precision_bundle.py builds the very same. The bundle that
ships, and the synthesis of full width at 1024 px, are built in tests/engines.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("torch", reason="the export needs the extra 'torch'")

from styleclip_rt.engines.bundle import open_bundle
from styleclip_rt.engines.gate import MIN_PSNR_DB
from styleclip_rt.engines.onnx_bytes import inline_weights
from styleclip_rt.export import bundle_writer, recipe, slider
from styleclip_rt.export.bundle_writer import export_bundle
from styleclip_rt.export.graphs import graph_list
from styleclip_rt.export.prompts import make_plan
from styleclip_rt.export.verify import Check
from styleclip_rt.runtime.training.pack import load_pack

pytestmark = pytest.mark.slow
EDITS = {"synthesize", "synthesize_u8", "edit_global", "edit_mapper/bob-cut"}
NETWORKS = {"invert", "identify", "encode_text", "encode_image"}
EXACT = {"mapping", "style", "direction", "mapper/bob-cut"}
CUTS = {64: ("b32.conv0", "b64.conv1"), 1024: ("b64.conv0", "b512.conv1")}
PREVIEWS = {64: set(), 1024: {"preview/256"}}


def without_networks(pack, mappers):
    """`graph_list` for a bundle of the generator and what edits with it."""
    builders, missing = graph_list(pack, mappers)
    return [build for build in builders if build.__name__ not in NETWORKS], missing


@pytest.mark.parametrize(("resolution", "precision"), [(64, "fp16"), (1024, "fp16"), (1024, "fp32")])
def test_every_graph_builds_with_a_free_and_a_fixed_batch(
    resolution, precision, pack_of, tmp_path, build_with_rtx, monkeypatch
):
    """At 64 px the export's own float16 gate is passed on the way, at alpha 0 and +-10."""
    pack, cuts = load_pack(pack_of(resolution)), CUTS[resolution]
    assert set(cuts) <= set(slider.cuts(pack.layout))
    monkeypatch.setattr(slider, "cuts", lambda generator: list(cuts))
    gated = resolution == 64
    if not gated:  # minutes of PyTorch at 1024 px; test_full_size.py compares there, at full width
        unchecked = Check("none", 0.0, 0.0, 1)
        monkeypatch.setattr(bundle_writer, "check_graph", lambda graph, path: unchecked)
        monkeypatch.setattr(recipe, "gate", lambda graph, path, compared: (unchecked, {}))
    networks = NETWORKS if precision == "fp32" else set()
    if not networks:
        monkeypatch.setattr(bundle_writer, "graph_list", without_networks)
    report = export_bundle(pack, replace(make_plan(pack, ["bob-cut"]), precision=precision), tmp_path / "bundle")
    with open_bundle(report.path, device="cpu") as bundle:
        graphs = bundle.manifest["graphs"]
    slices = {f"synthesize_{part}/{layer}" for part in ("head", "tail") for layer in cuts} | PREVIEWS[resolution]
    assert set(graphs) == EDITS | networks | EXACT | slices
    assert graphs["edit_global"]["outputs"][0]["shape"] == ["N", resolution, resolution, 3]
    exact = {name for name, entry in graphs.items() if entry["precision"]["type"] == "fp32"}
    assert exact == (EXACT if precision == "fp16" else set(graphs))
    for name in EDITS if gated else ():
        gate = graphs[name]["precision"]["gate"]
        assert all(gate[kind] >= limit for kind, limit in MIN_PSNR_DB.items()), (name, gate)
    sizes = build_with_rtx({name: inline_weights(report.path / entry["file"]) for name, entry in graphs.items()})
    assert set(sizes) == set(graphs)
    assert min(sizes.values()) > 5_000, sizes
