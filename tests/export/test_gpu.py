"""A float16 bundle on a card: ONNX Runtime's CUDA provider against the float32 bundle on the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("torch", reason="the export needs the extra 'torch'")

from styleclip_rt.engines import ort
from styleclip_rt.engines.bundle import open_bundle
from styleclip_rt.engines.gate import feeds, gate_fault
from styleclip_rt.export.bundle_writer import export_bundle
from styleclip_rt.export.precision_gate import MAX_RELATIVE, MIN_COSINE
from styleclip_rt.export.prompts import make_plan
from styleclip_rt.export.verify import min_cosine, relative
from styleclip_rt.runtime.training.pack import load_pack

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
PICTURES = ("synthesize", "synthesize_u8", "edit_global", "edit_mapper/bob-cut")


@pytest.fixture(scope="module")
def bundles(mini_pack, tmp_path_factory):
    """(float16 on the card, float32 on the CPU), of one pack."""
    if ort.unusable_reason("cuda"):
        pytest.skip(ort.unusable_reason("cuda"))
    pack, folder = load_pack(mini_pack), tmp_path_factory.mktemp("both")
    plan = make_plan(pack, ["bob-cut"])
    half, full = (
        export_bundle(pack, replace(plan, precision=precision), folder / precision).path
        for precision in ("fp16", "fp32")
    )
    with (
        open_bundle(half, device="cuda", engine="onnxruntime") as on_card,
        open_bundle(full, device="cpu", engine="onnxruntime") as reference,
    ):
        yield on_card, reference


@pytest.mark.parametrize("graph", PICTURES)
def test_pictures_keep_their_limits_at_every_strength(bundles, graph):
    on_card, reference = bundles
    assert on_card.engine(graph).device == "cuda"
    assert on_card.manifest["graphs"][graph]["precision"]["type"] == "fp16"
    assert gate_fault(reference.spec(graph), on_card.engine(graph).run, reference.engine(graph).run) == ""


@pytest.mark.parametrize("graph", ["encode_text", "encode_image", "identify"])
def test_embeddings_keep_their_direction(bundles, graph):
    fed = feeds(bundles[0].spec(graph), 3)
    found, wanted = (bundle.run(graph, **fed)["embedding"] for bundle in bundles)
    assert min_cosine(found, wanted) >= MIN_COSINE


def test_the_inverter_keeps_its_latents(bundles):
    fed = feeds(bundles[0].spec("invert"), 3)
    found, wanted = (bundle.run("invert", **fed)["w"] for bundle in bundles)
    assert relative(found, wanted) <= MAX_RELATIVE["invert"]
