"""Latents of style space, as `optimize --space s` writes them, edited like any others: on the shipped bundle."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from styleclip_rt.engines.errors import InputError
from styleclip_rt.runtime import store
from styleclip_rt.runtime.cli import cli
from styleclip_rt.runtime.editor import Editor
from styleclip_rt.runtime.latents import PATCH, load_face, load_styles, save_latents

BUNDLE = str(store.DATA / "toyfaces-bundle")


@pytest.fixture(scope="module")
def editor() -> Iterator[Editor]:
    with Editor.open(BUNDLE, device="cpu") as editor:
        yield editor


@pytest.fixture(scope="module")
def w(editor: Editor) -> np.ndarray:
    return editor.sample([4])


@pytest.fixture
def file(editor: Editor, w: np.ndarray, tmp_path: Path) -> Path:
    """styles(w) in StyleCLIP's padded form."""
    s, path = editor.styles(w), tmp_path / "face.npy"
    parts = [s[:, layer.offset : layer.offset + layer.channels] for layer in editor.model.layers]
    padded = [np.pad(part, ((0, 0), (0, PATCH - part.shape[1]))) for part in parts]
    np.save(path, np.concatenate(padded, axis=1)[:, None, :, None, None])
    return path


def edit(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["edit", *map(str, arguments), "--bundle", BUNDLE, "--device", "cpu"])


def levels(a: object, b: object) -> int:
    """The largest difference of two pictures, in levels of 255."""
    return int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max())


def test_a_file_is_read_as_what_it_holds(editor: Editor, w: np.ndarray, file: Path, tmp_path: Path) -> None:
    s = load_face(file, editor)
    assert s.shape == (1, editor.model.style_channels)
    assert np.array_equal(s, editor.styles(w))
    assert np.array_equal(s, load_styles(file, editor))
    assert np.array_equal(load_face(save_latents(tmp_path / "w.npz", w, "x"), editor), w)


def test_alpha_zero_is_the_picture_of_the_styles(editor: Editor, file: Path) -> None:
    s = load_face(file, editor)
    s = s + np.random.default_rng(0).normal(0, 0.2, s.shape).astype(np.float32)  # of no w
    expected = editor.synthesize(s)[0]
    for prompts in (["glasses"], ["glasses", "hat"]):
        result = editor.edit_latents(s, prompts, alpha=0)
        assert levels(result.image, expected) == 0
        assert result.w is None
    assert levels(editor.edit_latents(s, "glasses", alpha=4).image, expected) > 20


@pytest.mark.parametrize("prompts", [["glasses"], ["purple-hair", "glasses"]], ids=["one", "two"])
def test_styles_of_w_are_edited_as_w_is(editor: Editor, w: np.ndarray, prompts: list[str]) -> None:
    """The fused graph starts from w: it agrees with the graphs one by one to within a level, as an export does."""
    of_w, of_s = editor.edit_latents(w, prompts), editor.edit_latents(editor.styles(w), prompts)
    assert levels(of_w.image, of_s.image) <= 1
    assert levels(of_s.image, editor.synthesize(editor.styles(w))[0]) > 20
    assert np.array_equal(of_w.delta_s, of_s.delta_s)
    assert (of_w.steps, of_w.notes) == (of_s.steps, of_s.notes)


def test_a_slider_starts_from_styles_too(editor: Editor, w: np.ndarray) -> None:
    slider = editor.slider(editor.styles(w), "glasses")
    assert levels(slider.at(2.5), editor.slider(w, "glasses").at(2.5)) == 0


def test_the_command_edits_a_file_of_styles(editor: Editor, w: np.ndarray, file: Path, tmp_path: Path) -> None:
    out, expected = tmp_path / "out.png", editor.edit_latents(w, "glasses", alpha=2, beta=0.1).image
    result = edit(file, "--prompt", "glasses", "--alpha", 2, "--beta", 0.1, "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["prompts"][0]["name"] == "glasses"
    assert levels(Image.open(out), expected) <= 1
    sheet, of_w = tmp_path / "sheet.png", tmp_path / "of-w.png"
    np.save(tmp_path / "w.npy", w)
    for source, target in ((file, sheet), (tmp_path / "w.npy", of_w)):
        given = ("--prompt", "glasses", "--alpha", "0..2", "--beta", 0.1, "--out", target)
        assert edit(source, *given).exit_code == 0
    assert levels(Image.open(sheet), Image.open(of_w)) <= 1


@pytest.mark.parametrize("alpha", ["1", "0..2"], ids=["picture", "sheet"])
def test_a_mapper_refuses_styles_in_one_line(file: Path, tmp_path: Path, alpha: str) -> None:
    out = tmp_path / "out.png"
    result = edit(file, "--prompt", "bob-cut", "--method", "mapper", "--alpha", alpha, "--out", out)
    assert result.exit_code == InputError.exit_code
    assert result.stderr == (
        "error: these are latents of style space, and a mapper needs w; use directions (--method global)\n"
    )
    assert not out.exists()


def test_styles_that_do_not_fit_are_refused(editor: Editor, w: np.ndarray) -> None:
    s = editor.styles(w)
    for wrong, message in ((s[:, :-1], "expected finite"), (np.repeat(s, 2, 0), "expected finite"),
                           (np.full_like(s, np.nan), "not finite")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            editor.edit_latents(wrong, "glasses")
