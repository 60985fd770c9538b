"""The main path on the bundle that ships with the package, in this process and as a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import styleclip_rt
from styleclip_rt.engines.errors import InputError
from styleclip_rt.runtime import edits, images, store

TWELVE = ("purple-hair", "blond-hair", "grey-hair", "bob-cut", "afro", "mohawk", "glasses", "beard", "hat", "surprised",
          "smiling", "lipstick")  # fmt: skip
PORTRAIT = store.sample_portrait()


@pytest.fixture(scope="module")
def result(shipped_editor):
    return shipped_editor.edit(PORTRAIT, "bob-cut", alpha=3, beta=0.12, identity=True)


def command(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "styleclip_rt", *map(str, args)]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def test_the_bundle_knows_the_twelve_prompts_and_four_mappers(shipped_editor):
    prompts = shipped_editor.model.prompts
    assert set(TWELVE) <= set(prompts)
    assert {"bob-cut", "purple-hair", "glasses", "surprised"} <= {p.name for p in prompts.values() if p.mapper}
    assert shipped_editor.model.default_prompt == "bob-cut"


def test_open_by_name(shipped_editor):
    with styleclip_rt.Editor.open("toyfaces") as editor:
        assert editor.model.name == "toyfaces"
        assert editor.origin.origin == "shipped"


def test_an_edit_has_the_documented_fields(shipped_editor, result):
    model = shipped_editor.model
    assert result.image.size == (model.resolution, model.resolution)
    assert result.w.shape == (1, model.num_ws, model.w_dim)
    assert result.delta_s.shape == (model.style_channels,)
    assert result.delta_s.dtype == result.w.dtype == np.float32
    np.testing.assert_array_equal(result.channels, np.flatnonzero(result.delta_s))
    assert {"decode", "invert", "text", "direction", "synthesize", "total"} <= set(result.timings)
    assert 0 < result.identity <= 1
    assert result.notes == ()


def test_torgb_channels_never_move(shipped_editor, result):
    rgb = [layer for layer in shipped_editor.model.layers if layer.kind == "torgb"]
    assert rgb
    for layer in rgb:
        assert not result.delta_s[layer.offset : layer.offset + layer.channels].any()


def test_alpha_zero_gives_the_inverted_portrait_back_exactly(shipped_editor):
    w = shipped_editor.invert(shipped_editor.photo(PORTRAIT))
    inverted = shipped_editor.synthesize(shipped_editor.styles(w))[0]
    for settings in ({}, {"method": "mapper"}, {"prompt": ["bob-cut", "glasses"]}):
        edited = shipped_editor.edit(PORTRAIT, **{"prompt": "bob-cut", "alpha": 0, **settings})
        np.testing.assert_array_equal(np.asarray(edited.image), inverted)


def test_the_fused_edit_equals_its_stages(shipped_editor, result):
    s = edits.apply(shipped_editor.styles(result.w), result.delta_s[None], 3)
    stages = shipped_editor.synthesize(s)[0].astype(int)
    assert np.abs(np.asarray(result.image, int) - stages).max() <= 1


@pytest.mark.parametrize("prompt", TWELVE)
def test_the_recommended_settings_change_the_picture(shipped_editor, prompt):
    edited = shipped_editor.edit(PORTRAIT, prompt)
    before = shipped_editor.edit(PORTRAIT, prompt, alpha=0)
    assert 12 < images.psnr_db(edited.image, before.image) < 45


def test_a_higher_beta_moves_fewer_channels(shipped_editor):
    largest = largest_relevance(shipped_editor, "bob-cut")
    betas = [0.0, 0.05, 0.12, 0.5 * largest, 0.999 * largest]
    counts = [len(shipped_editor.edit(PORTRAIT, "bob-cut", beta=beta).channels) for beta in sorted(betas)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1] >= 1


def largest_relevance(editor, prompt: str) -> float:
    delta_t = editor.text.delta_t(editor.model.prompts[prompt])
    return float(
        np.abs(editor.bundle.run("direction", delta_t=delta_t[None], beta=np.zeros(1, "f"))["relevance"]).max()
    )


def test_a_beta_without_channels_is_an_error_and_auto_is_not(shipped_editor):
    with pytest.raises(InputError, match="largest relevance"):
        shipped_editor.edit(PORTRAIT, "bob-cut", beta=1.0)
    assert len(shipped_editor.edit(PORTRAIT, "bob-cut", beta="auto").channels) >= 1


def test_free_text_and_nonsense(shipped_editor):
    assert shipped_editor.edit(PORTRAIT, "a face with red hair").notes == ()
    assert "zyzzyva" in shipped_editor.edit(PORTRAIT, "a face with a zyzzyva").notes[0]


def test_the_portrait_survives_inversion(shipped_editor):
    photo = shipped_editor.photo(PORTRAIT)
    inverted = shipped_editor.edit(PORTRAIT, alpha=0).image
    assert images.psnr_db(inverted, photo.resize(inverted.size)) > 20


@pytest.mark.timing
def test_the_command_writes_the_same_picture_twice_and_quickly(shipped_editor, tmp_path):
    args = ("edit", PORTRAIT, "--bundle", "toyfaces", "--device", "cpu", "--alpha", 3, "--beta", 0.12, "--json")
    first = command(*args, "--out", "a.png", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    walls = []
    for _ in range(3):
        start = time.perf_counter()
        second = command(*args, "--out", "b.png", cwd=tmp_path)
        walls.append(time.perf_counter() - start)
    assert json.loads(second.stdout)["prompts"][0]["name"] == "bob-cut"
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "a.png")), np.asarray(Image.open(tmp_path / "b.png"))
    )
    assert min(walls) < 1.5


def test_an_edit_imports_no_torch_and_no_tokenizer_when_the_text_is_known(shipped_editor, tmp_path):
    code = (
        "import sys, styleclip_rt\n"
        f"editor = styleclip_rt.Editor.open('toyfaces', device='cpu')\n"
        f"editor.edit({str(PORTRAIT)!r}, 'bob-cut')\n"
        "print(*sorted({'torch', 'onnx', 'tokenizers', 'onnxruntime'} & set(sys.modules)))"
    )
    for expected in ("onnxruntime tokenizers", "onnxruntime"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
        assert done.stdout.strip() == expected


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_an_interrupted_command_leaves_nothing(shipped_editor, tmp_path):
    import signal

    line = [sys.executable, "-m", "styleclip_rt", "generate", "--count", "400", "--out", "g.png"]
    process = subprocess.Popen(line, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("bundle: ")  # it is at work
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    if process.returncode != 0:  # a fast machine may have finished
        assert process.returncode == 130
        assert not list(tmp_path.glob("*.png"))
        assert not list(tmp_path.glob(".*.tmp"))
