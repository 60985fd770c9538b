"""A 1024 px model of full width, from a public checkpoint to an edit, with the memory of each step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc"),
]

ROOT = Path(__file__).resolve().parents[2]
IMPORT_BYTES, EXPORT_BYTES, EDIT_BYTES = 2e9, 6e9, 3e9
E, PIXELS = 16, 32
CLIP_CONFIG = {
    "embed_dim": E,
    "quick_gelu": True,
    "vision_cfg": {"layers": 1, "width": 64, "head_width": 64, "patch_size": 8, "image_size": PIXELS},
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 40,
        "width": 32,
        "heads": 2,
        "layers": 1,
        "eos_id": 1,
        "pad_id": 2,
    },
}

PEAK = """
import re, sys
from pathlib import Path
from styleclip_rt.runtime.cli import cli
cli.main(sys.argv[1:], standalone_mode=False)
print("PEAK", 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]))
"""


def peak_of(*arguments: object) -> int:
    """Largest resident size of a command, in bytes, in a process of its own."""
    command = [sys.executable, "-c", PEAK, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1500)
    assert result.returncode == 0, result.stderr[-3000:]
    peak = int(result.stdout.rsplit("PEAK", 1)[1])
    print(f"{' '.join(map(str, arguments[:2]))}: at most {peak / 1e9:.2f} GB resident")  # shown by pytest -rP
    return peak


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A 1024 px generator of random weights as rosinality's converter saves it: 171 tensors, 30 million numbers."""
    sys.path.insert(0, str(ROOT / "tests" / "training" / "checkpoints"))
    import writers

    path = tmp_path_factory.mktemp("full") / "ffhq.pt"
    arrays = writers.write_rosinality(path, size=1024)["g_ema"]
    assert len(arrays) == 171
    learnt = [array for name, array in arrays.items() if not name.startswith("noises.") and "kernel" not in name]
    assert sum(array.size for array in learnt) == 30_370_060
    return path


@pytest.fixture(scope="module")
def small_parts(tmp_path_factory) -> Path:
    """A pack of small networks around the generator: CLIP, tokenizer and inverter; and a table of directions."""
    tokenizers = pytest.importorskip("tokenizers")

    from styleclip_rt.runtime.training.networks.clip import Clip
    from styleclip_rt.runtime.training.networks.e4e import E4EConfig, Encoder4Editing
    from styleclip_rt.runtime.training.pack import PackWriter

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("small")
    words = {word: i for i, word in enumerate(["<bos>", "<eos>", "<pad>", "<unk>", "a", "face", "with", "glasses"])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.save(str(folder / "tokenizer.json"))
    with PackWriter(folder / "small", "small") as writer:
        writer.add("clip", Clip(CLIP_CONFIG).eval())
        writer.add("tokenizer", folder / "tokenizer.json", {"bos": 0, "eos": 1, "pad": 2, "context_length": 16})
        sizes = E4EConfig(18, 512, 64, 8, ((8, 1), (12, 1), (16, 1), (16, 1)), 4, 16, 3, 7, 1)
        writer.add("inverter", Encoder4Editing(sizes).eval())
        writer.templates = ["a {}."]
    rows = np.random.default_rng(0).normal(size=(5376, E)).astype(np.float32)
    np.save(folder / "fs3.npy", rows / np.linalg.norm(rows, axis=1, keepdims=True))
    return folder


@pytest.fixture(scope="module")
def pack(checkpoint, small_parts, tmp_path_factory) -> tuple[Path, int]:
    """(the pack, peak bytes of its import)."""
    out = tmp_path_factory.mktemp("packs") / "ffhq"
    files = ("--generator", checkpoint, "--directions", small_parts / "fs3.npy", "--statistics", "compute:2000")
    return out, peak_of("pack", "import", *files, "--pack", small_parts / "small", "--name", "ffhq", "--out", out)


def test_the_import_takes_less_than_two_gigabytes(pack):
    folder, peak = pack
    assert peak < IMPORT_BYTES
    record = json.loads((folder / "pack.json").read_text())
    assert record["components"]["generator"]["config"]["resolution"] == 1024
    assert record["components"]["statistics"]["config"]["convention"] == "tf"
    assert record["components"]["generator"]["bytes"] > 4 * 30_370_060


def test_export_and_edit_at_1024_px(pack, tmp_path):
    """Export itself compares each graph with PyTorch; here that it ends, in which memory, and that it edits."""
    from PIL import Image

    folder, bundle = pack[0], tmp_path / "bundle"
    peak = peak_of(
        "export", "--pack", folder, "--prompt", "a face with glasses", "--no-slider", "--no-kernels", "--out", bundle
    )
    assert peak < EXPORT_BYTES
    manifest = json.loads((bundle / "bundle.json").read_text())
    assert {"synthesize", "synthesize_u8", "invert", "edit_global"} <= set(manifest["graphs"])
    assert manifest["graphs"]["synthesize"]["check"]["value"] <= 1e-3
    assert manifest["missing"] == {"identify": ["identity"]}
    whole = sum(entry["bytes"] for entry in manifest["files"].values())
    assert whole < 1.2 * sum(path.stat().st_size for path in folder.iterdir())  # one copy of the weights, not four
    out = tmp_path / "edit.png"
    portrait = ROOT / "runtime" / "data" / "portrait.png"
    peak = peak_of("edit", portrait, "--bundle", bundle, "--alpha", "2", "--beta", "0.1", "--out", out)
    assert peak < EDIT_BYTES
    assert Image.open(out).size == (1024, 1024)
