"""`styleclip-rt optimize`: its files are those of any edit, and every refusal is one line with an exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from styleclip_rt.runtime.cli import cli
from styleclip_rt.runtime.editor import Editor
from styleclip_rt.runtime.images import psnr_db
from styleclip_rt.runtime.latents import load_latents, load_styles, save_latents
from styleclip_rt.runtime.training import optimize_loss


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(cli, ["optimize", *arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def editor() -> Editor:
    return Editor.open("toyfaces", device="cpu")


def test_a_photo_becomes_an_edit_like_any_other(here: Path, editor: Editor) -> None:
    arguments = ["sample", "--prompt", "purple-hair", "--steps", "6", "--save-every", "2", "--out", "a.png", "--json"]
    record = json.loads(run(*arguments).stdout)
    face = record["faces"][0]
    assert face["losses"]["loss"] < face["losses_before"]["loss"]
    assert face["clip_score"] > face["clip_score_before"]
    assert {"clip", "l2"} <= face["losses"].keys()
    assert face["steps"] == 6
    assert 0 < face["identity"] <= 1
    assert record["prompt"]["target"] == "a face with purple hair"
    assert sorted(p.name for p in here.iterdir()) == ["a-strip.png", "a.json", "a.npz", "a.png"]
    assert json.loads((here / "a.json").read_text())["losses"] == face["losses"]
    picture = Image.open(here / "a.png")
    again = Image.fromarray(editor.synthesize(editor.styles(load_latents(here / "a.npz", editor)))[0])
    assert psnr_db(picture.convert("RGB"), again) > 40
    assert Image.open(here / "a-strip.png").width > 3 * 128


def test_a_batch_of_all_kinds_in_style_space(here: Path, editor: Editor) -> None:
    save_latents(here / "two.npz", editor.sample([4, 5]), "toyfaces")
    arguments = ["sample", "two.npz", "--seed", "9", "--prompt", "glasses", "--space", "s", "--steps", "3", "--batch"]
    record = json.loads(run(*arguments, "2", "--out", "many/", "--work", "kept", "--json").stdout)
    assert [face["name"] for face in record["faces"]] == ["portrait", "two-0", "two-1", "seed000009"]
    files = {p.name for p in (here / "many").iterdir()}
    assert {"sheet.png", "run.json", "portrait.png", "two-1.npy", "seed000009.json"} <= files
    assert sorted(p.name for p in (here / "kept").iterdir()) == [
        "batch-0000.pt", "batch-0001.pt", "optimize-run.json"
    ]  # fmt: skip
    picture = Image.open(here / "many" / "two-1.png").convert("RGB")
    again = Image.fromarray(editor.synthesize(load_styles(here / "many" / "two-1.npy", editor))[0])
    assert psnr_db(picture, again) > 40
    refused = run(*arguments, "3", "--out", "many/", "--work", "kept", code=2)
    assert "kept holds another run (other batch)" in refused.stderr


def test_free_generation(here: Path) -> None:
    run("--free", "--prompt", "a face with glasses", "--steps", "3", "--lr", "0.2", "--out", "free.jpg")
    assert Image.open(here / "free.jpg").format == "JPEG"
    record = json.loads((here / "free.json").read_text())
    assert record["name"] == "mean-face"
    assert record["losses"]["loss"] == pytest.approx(record["losses"]["clip"])


def test_a_dry_run_writes_nothing(here: Path) -> None:
    found = run("--seed", "1", "--count", "2", "--prompt", "beard", "--preset", "published", "--dry-run", "--json")
    record = json.loads(found.stdout)
    assert record["settings"]["lambda_l2"] == 0.008
    assert [face["image"] for face in record["faces"]] == [
        "optimized-beard/seed000001.png", "optimized-beard/seed000002.png"
    ]  # fmt: skip
    assert list(here.iterdir()) == []
    assert "2 faces of toyfaces" in run("--seed", "1", "--count", "2", "--prompt", "beard", "--dry-run").output


REFUSED = {
    "--free starts": ["sample", "--free", "--prompt", "x"],
    "no face to start from": ["--prompt", "x"],
    "give --seed N": ["sample", "--count", "2", "--prompt", "x"],
    "go into a folder": ["sample", "sample", "--prompt", "x", "--out", "a.png"],
    "cannot write a picture": ["sample", "--prompt", "x", "--out", "a.gif"],
    "more than 100 pictures": ["sample", "--prompt", "x", "--steps", "300", "--save-every", "1"],
    "would be replaced": ["face.npz", "--prompt", "x", "--out", "face.png"],
    "no preset": ["sample", "--prompt", "x", "--preset", "best"],
    "go with a photo": ["--seed", "1", "--no-align", "--prompt", "x"],
    "the prompt is empty": ["sample", "--prompt", " "],
    "holds no face": ["none.npy", "--prompt", "x"],
    "cannot read": ["absent.jpg", "--prompt", "x"],
}


@pytest.mark.parametrize("message", list(REFUSED))
def test_refusals_are_one_line(here: Path, message: str) -> None:
    np.savez(here / "face.npz", w=np.zeros((1, 10, 128), np.float32))
    np.save(here / "none.npy", np.zeros((0, 10, 128), np.float32))
    found = run(*REFUSED[message], code=2)
    assert message in found.stderr
    assert found.stderr.count("error:") == 1
    assert {p.name for p in here.iterdir()} <= {"face.npz", "none.npy"}


def test_a_loss_that_is_no_number_is_one_line_and_the_checkpoint_stays(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = optimize_loss.Objective.render, []

    def breaks(self: optimize_loss.Objective, latent: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return plain(self, latent) * (float("nan") if len(calls) > 3 else 1.0)  # the start and two steps are sound

    monkeypatch.setattr(optimize_loss.Objective, "render", breaks)
    asked = ("--seed", "3", "--prompt", "hat", "--steps", "5", "--warm", "0", "--out", "x.png")
    found = run(*asked, code=2)
    assert "loss of seed000003 is not finite at step 2 of 5" in found.stderr
    assert sorted(p.name for p in (here / "x-work").iterdir()) == ["batch-0000.pt", "optimize-run.json"]
    monkeypatch.undo()
    monkeypatch.chdir(here)
    run(*asked)
    assert sorted(p.name for p in here.iterdir()) == ["x.json", "x.npz", "x.png"]
    assert json.loads((here / "x.json").read_text())["steps"] == 5
