"""`train directions --method gradient`: components, previews and errors, on the shipped pack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from styleclip_rt.benchmarks.gradient_times import without
from styleclip_rt.engines.errors import PackError
from styleclip_rt.runtime import edits
from styleclip_rt.runtime.cli import cli
from styleclip_rt.runtime.training import gradient_run, named
from styleclip_rt.runtime.training.directions import conv_channels
from styleclip_rt.runtime.training.gradient import GradientRecipe
from styleclip_rt.runtime.training.gradient_run import GradientRequest, make_plan, step_of, train_gradient
from styleclip_rt.runtime.training.pack import load_pack

SMALL = GradientRecipe(images=2, components=2, random=1)


def bare(folder: Path, *components: str) -> Path:
    """The shipped pack less some components."""
    return without(load_pack("toyfaces"), folder / "bare", *components)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["train", "directions", "--method", "gradient", *arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A pack without table and statistics after one prompt, and the summary."""
    folder = tmp_path_factory.mktemp("gradient")
    pack = load_pack(bare(folder, "directions", "statistics"))
    request = GradientRequest(prompt="a face with glasses", neutral="a face", recipe=SMALL, out=folder / "out",
                              name="specs", samples=200, preview=("3",), sheet=folder / "sheet.png")  # fmt: skip
    return folder, train_gradient(make_plan(pack, request))


def test_a_pack_without_table_gets_the_direction_and_statistics(made: tuple[Path, dict[str, Any]]) -> None:
    folder, record = made
    pack = load_pack(folder / "out")
    direction = named.read(pack, "specs")
    assert record["component"] == "direction/specs"
    assert pack.config("statistics")["samples"] == 200
    assert not pack.has("directions")
    assert direction.config["method"] == "gradient"
    assert direction.config["target"] == "a face with glasses"
    assert 0 < direction.config["beta"] <= 1


def test_the_step_is_the_runtime_s_edit_of_the_relevance(made: tuple[Path, dict[str, Any]]) -> None:
    pack = load_pack(made[0] / "out")
    direction, sigma = named.read(pack, "specs"), pack.statistics.s_std
    assert direction.relevance is not None
    assert direction.relevance.abs().max() <= 1
    for beta in (0.0, 0.1, 0.2):
        one = np.ones((1,), np.float64)
        wanted = edits.direction(direction.relevance.double().numpy()[:, None], one, beta, sigma.numpy())
        np.testing.assert_allclose(direction.step(beta)[0].numpy(), wanted, atol=1e-6)
    assert torch.allclose(direction.delta_s, step_of(direction.relevance, sigma))


def test_beta_is_chosen_for_the_gradients_and_not_the_pack_s(made: tuple[Path, dict[str, Any]]) -> None:
    pack = load_pack(made[0] / "out")
    direction, own = named.read(pack, "specs"), pack.prompts["glasses"]["beta"]
    assert direction.config["beta"] != own
    kept = int(np.count_nonzero(direction.step()[0].numpy()))
    rows = len(conv_channels(pack.layout))
    assert round(rows / 12) <= kept <= rows / 12 + 3  # the threshold is cut to three digits
    assert made[1]["channels_moved"] == kept
    assert made[1]["beta"] == direction.config["beta"]
    assert direction.alpha == pack.prompts["glasses"]["alpha"]
    assert direction.config["spread"] == SMALL.spread > 0


def test_the_preview_is_a_sheet(made: tuple[Path, dict[str, Any]]) -> None:
    picture = Image.open(made[0] / "sheet.png")
    assert picture.width > 5 * 128
    assert made[1]["sheet"].endswith("sheet.png")


def test_a_preview_alone_leaves_the_shipped_pack_as_it_is(tmp_path: Path) -> None:
    before = load_pack("toyfaces").sha256
    result = run("--prompt", "glasses", "--images", "2", "--preview", "1", "--sheet", str(tmp_path / "a.png"), "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["out"] is None
    assert record["passes"] * 100 < record["finite_passes"]
    assert (tmp_path / "a.png").is_file()
    assert load_pack("toyfaces").sha256 == before


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    result = run("--out", str(tmp_path / "out"), "--dry-run", "--json")
    record = json.loads(result.stdout)
    assert record["component"] == "directions"
    assert record["passes"] == 64 * 513
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", "hat"), "--out"),
        (("--neutral", "a face", "--out", "x"), "belong to one prompt"),
        (("--prompt", "hat", "--preview", "1"), "--sheet FILE together"),
        (("--prompt", "hat", "--preview", "1", "--sheet", "a.txt"), "cannot write a picture"),
        (("--prompt", "hat", "--sigmas", "3", "--out", "x"), "does not know --sigmas"),
        (("--render-at", "clip", "--block", "4", "--out", "x"), "gradient does not know --block, --render-at; see"),
        (("--prompt", "hat", "--name", "A hat", "--out", "x"), "may hold only"),
        (("--prompt", "a face", "--neutral", "a face", "--images", "2", "--out", "x"), "mean the same"),
    ],
)
def test_what_cannot_be_done_is_said(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with CliRunner().isolated_filesystem(tmp_path):
        result = run(*arguments)
        assert result.exit_code != 0
        assert message in result.output
        assert not Path("x").exists()


def test_the_finite_method_does_not_take_a_prompt() -> None:
    result = CliRunner().invoke(cli, ["train", "directions", "--prompt", "hat", "--out", "x"])
    assert result.exit_code != 0
    assert "does not know --prompt" in result.output


@pytest.mark.parametrize("component", ["generator", "clip"])
def test_a_pack_that_lacks_a_network_is_told_so(component: str, tmp_path: Path) -> None:
    pack = load_pack(bare(tmp_path, component))
    with pytest.raises(PackError, match=f"has no '{component}'"):
        make_plan(pack, GradientRequest(prompt="hat", out=tmp_path / "out"))


def test_the_whole_table_goes_into_the_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = load_pack(bare(tmp_path, "directions"))
    rows = torch.nn.functional.normalize(torch.randn(pack.layout.style_channels, 512), dim=1)

    def table(generator: Any, encode: Any, s: Any, recipe: GradientRecipe, s_std: Any) -> torch.Tensor:
        assert s.shape == (3, len(rows))
        return rows  # 512 passes an image: tests/training/test_gradient.py makes tables of a small generator

    monkeypatch.setattr(gradient_run, "gradient_table", table)
    train_gradient(make_plan(pack, GradientRequest(recipe=GradientRecipe(images=3), out=tmp_path / "out")))
    made = load_pack(tmp_path / "out")
    assert torch.allclose(made.directions, rows, atol=1e-3)
    assert made.config("directions")["method"] == "gradient"
    assert made.config("directions")["images"] == 3
