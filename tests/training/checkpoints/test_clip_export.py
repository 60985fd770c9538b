"""Imported CLIPs as engines: both graphs of each kind of tower, and ViT-B/32 at full size."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")
onnx = pytest.importorskip("onnx", reason="export needs the extra 'torch'")
pytest.importorskip("open_clip", reason="the PyTorch path needs the extra 'torch'")

from styleclip_rt.export.bundle_writer import Plan, export_bundle  # noqa: E402
from styleclip_rt.runtime.archives import read_source  # noqa: E402
from styleclip_rt.runtime.model import Tokens  # noqa: E402
from styleclip_rt.runtime.tokenizer import Tokenizer  # noqa: E402
from styleclip_rt.runtime.training.checkpoints.clip import import_clip  # noqa: E402
from styleclip_rt.runtime.training.pack import load_pack  # noqa: E402
from styleclip_rt.runtime.training.pack_writer import Component, save_pack  # noqa: E402

from . import openai_clip as openai  # noqa: E402
from .test_clip import MEAN, STD, cosine  # noqa: E402
from .test_clip_architectures import TOWERS, open_clip_model  # noqa: E402

pytestmark = pytest.mark.slow
EXPORTED = ("SigLIP text", "timm image", "CoCa")  # masks, pooling and trunks of every kind
PROMPTS = ["a photo of a face with glasses", "He\u2019s  smiling &amp; bald"]


def exported(path, folder):
    """(bundle folder, its manifest) of the CLIP in a file: imported, packed and exported alone."""
    parts = import_clip(read_source(path))
    components = {p.component: Component(p.content, p.config, p.licence, exact=True) for p in parts}
    pack = load_pack(save_pack(folder / "pack", "clip", components))
    export_bundle(pack, Plan("clip"), folder / "bundle")
    return folder / "bundle", json.loads((folder / "bundle" / "bundle.json").read_text())


def run(bundle, manifest, name: str, **feeds) -> torch.Tensor:
    """One graph in ONNX Runtime, straight from the file as any host would."""
    onnxruntime = pytest.importorskip("onnxruntime")
    path = bundle / manifest["graphs"][name]["file"]
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, feeds)[0])


def token_rows(bundle, manifest) -> np.ndarray:
    return Tokenizer.open(bundle / manifest["tokenizer"], Tokens(**manifest["tokens"])).encode(PROMPTS)


def assert_equal_to_the_maths(bundle, manifest, state, size: int) -> None:
    """Tokens by the bundle's own tokenizer, images in -1..1; the reference is the straight-line implementation."""
    rows = token_rows(bundle, manifest)
    ours = run(bundle, manifest, "encode_text", tokens=rows)
    assert cosine(ours, openai.encode_text(state, torch.from_numpy(rows))) > 0.99999
    image = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(8))
    ours = run(bundle, manifest, "encode_image", image=(image * 2 - 1).numpy())
    assert cosine(ours, openai.encode_image(state, (image - MEAN) / STD)) > 0.99999


@pytest.mark.parametrize("sizes", [openai.VIT, openai.RESNET], ids=["ViT", "ResNet"])
def test_openais_archive_as_engines(tmp_path, sizes):
    path = openai.write_archive(tmp_path / "clip.pt", openai.random_state(sizes), sizes)
    bundle, manifest = exported(path, tmp_path)
    state = {name: value.float() for name, value in openai.halved(openai.random_state(sizes)).items()}
    assert set(manifest["graphs"]) == {"encode_text", "encode_image"}
    assert_equal_to_the_maths(bundle, manifest, state, 64)


@pytest.mark.parametrize("config", [TOWERS[name] for name in EXPORTED], ids=EXPORTED)
def test_other_towers_as_engines(tmp_path, config):
    model = open_clip_model(config)
    torch.save(model.state_dict(), tmp_path / "model.bin")
    front = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": front}))
    bundle, manifest = exported(tmp_path / "model.bin", tmp_path)
    size = manifest["model"]["clip"]["image_size"]
    image, rows = torch.rand(2, 3, size, size) * 2 - 1, token_rows(bundle, manifest)
    with torch.no_grad():
        theirs = model.encode_image(image), model.encode_text(torch.from_numpy(rows))
    assert cosine(run(bundle, manifest, "encode_image", image=image.numpy()), theirs[0]) > 0.99999
    assert cosine(run(bundle, manifest, "encode_text", tokens=rows), theirs[1]) > 0.99999


def test_vit_b_32_at_full_size(tmp_path):
    """OpenAI's archive with random weights: exported, checked, each weight stored once and as the file's float16."""
    sizes = openai.Sizes(512, 768, 12, 32, 224, None, 512, 12)
    state = openai.random_state(sizes)
    path = openai.write_archive(tmp_path / "ViT-B-32.pt", state, sizes)
    bundle, manifest = exported(path, tmp_path)
    assert manifest["model"]["clip"]["image_size"] == 224
    stored = (bundle / "graphs" / "weights.bin").stat().st_size
    assert stored < 1.05 * path.stat().st_size  # twice the matrices in float32, or two copies, would be far beyond
    state = {name: value.float() for name, value in openai.halved(state).items()}
    assert_equal_to_the_maths(bundle, manifest, state, 224)
