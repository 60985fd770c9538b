"""`styleclip-rt train directions` on a small pack: what it writes, what it refuses, and that a killed run goes on."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")
pytest.importorskip("open_clip", reason="CLIP needs the extra 'torch'")

from click.testing import CliRunner, Result  # noqa: E402

from styleclip_rt.runtime.cli import cli  # noqa: E402
from styleclip_rt.runtime.training.directions import TOLERANCE, DirectionTable  # noqa: E402
from styleclip_rt.runtime.training.directions_finite import base_faces, front_of, mean_images  # noqa: E402
from styleclip_rt.runtime.training.directions_plain import plain_rows  # noqa: E402
from styleclip_rt.runtime.training.networks.clip import Clip  # noqa: E402
from styleclip_rt.runtime.training.networks.stylegan2 import Generator, GeneratorConfig  # noqa: E402
from styleclip_rt.runtime.training.pack import PackWriter, load_pack  # noqa: E402

from .conftest import Kill  # noqa: E402

CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 8, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4},
    "text_cfg": {"context_length": 4, "vocab_size": 9, "width": 8, "heads": 1, "layers": 1},
}
SMALL = ["--images", "3", "--samples", "300"]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator of 16 px and a CLIP of 8 px, nothing else."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("packs") / "mini"
    with PackWriter(folder, "mini") as writer:
        writer.add("generator", Generator(GeneratorConfig(16, 8, 8, 1, {4: 6, 8: 5, 16: 4})), licence="MIT")
        writer.add("clip", Clip(CLIP), licence="MIT")
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["train", "directions", *map(str, arguments)])


def test_the_table_and_the_statistics_go_into_the_pack(pack: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("--pack", pack, "--out", out, *SMALL, "--channels", "all", "--convention", "torch", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    made = load_pack(out)
    layout = made.layout
    assert record["rows"] == record["moving"] == layout.style_channels
    assert record["mean_images"] == 3
    config = made.config("directions")
    assert config["method"] == "finite"
    assert (config["images"], config["sigmas"], config["channels"], config["tolerance"]) == (3, 5.0, "all", TOLERANCE)
    assert config["convention"] == made.config("statistics")["convention"] == "torch-cutoff8"
    assert made.config("statistics")["samples"] == 300
    assert made.licences["directions"] == "MIT"
    generator, statistics = made.generator, made.statistics
    asked = list(range(layout.style_channels))
    styles = generator.styles(base_faces(generator, 3, 0.7))
    plain = plain_rows(generator.synthesize, made.clip.encode_image, styles, statistics.s_mean, statistics.s_std, asked)
    assert ((plain * made.directions).sum(1) > 0.999).all()
    assert front_of(made.clip).size == 8


def test_a_second_run_goes_on_from_the_first_and_keeps_statistics(pack: Path, tmp_path: Path) -> None:
    first = run("--pack", pack, "--out", tmp_path / "a", *SMALL)
    assert first.exit_code == 0, first.output
    rest = ["--images", "3", "--work", tmp_path / "a-work", "--out", tmp_path / "b", "--json"]
    again = run("--pack", tmp_path / "a", *rest)
    assert again.exit_code == 0, again.output
    assert not list((tmp_path / "a-work").glob("*.other.pt"))
    one, two = load_pack(tmp_path / "a"), load_pack(tmp_path / "b")
    assert torch.equal(one.directions, two.directions)
    assert one.config("statistics") == two.config("statistics")


EAGER = """
from styleclip_rt.runtime.training import directions
class Eager(directions.Progress):
    def __init__(self, *given):
        super().__init__(*given[:-1], 0.0)  # a checkpoint after every image, not once in half a minute
directions.Progress = Eager
"""


@pytest.mark.slow
def test_sigkill_costs_only_the_images_since_the_checkpoint(
    pack: Path, tmp_path: Path, killed: Callable[..., None], one_thread: None
) -> None:
    """Killed in the middle of one block of channels, and in another while a checkpoint is written."""
    given = ["--pack", pack, "--images", "6", "--samples", "300", "--block", "8", "--tolerance", "0", "--threads", "1"]
    moments, places = random.Random(11), []
    for kill in (Kill("after", moments.randint(3, 5), moments.uniform(0.0, 0.01)), Kill("before", 8)):
        killed(kill, "train", "directions", *given, "--out", tmp_path / "mine", prelude=EAGER)
        state = torch.load(tmp_path / "mine-work" / "directions.pt", weights_only=True)
        places.append((state["block"], state["image"]))
    assert places == sorted(set(places)), "the second run got further"
    assert places[-1] > (0, 6)
    assert not (tmp_path / "mine").exists()
    for name in ("mine", "whole"):
        result = run(*given, "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
    states = [torch.load(tmp_path / f"{name}-work" / "directions.pt", weights_only=True) for name in ("mine", "whole")]
    for key in ("total", "squares", "seen", "active"):
        assert torch.equal(states[0][key], states[1][key]), key
    assert torch.equal(load_pack(tmp_path / "mine").directions, load_pack(tmp_path / "whole").directions)


def test_compat_never_stops_early_and_gives_another_table(pack: Path, tmp_path: Path) -> None:
    for name, arguments in (("plain", []), ("compat", ["--compat"])):
        result = run("--pack", pack, "--out", tmp_path / name, *SMALL, *arguments)
        assert result.exit_code == 0, result.output
    plain, compat = load_pack(tmp_path / "plain"), load_pack(tmp_path / "compat")
    assert compat.config("directions")["cumulative"] is True
    assert compat.config("directions")["tolerance"] == 0
    assert (plain.directions - compat.directions).abs().max() > 0.01
    refused = run("--pack", pack, "--out", tmp_path / "c", "--compat", "--tolerance", "0.01")
    assert refused.exit_code == 2
    assert "never stops early" in refused.output


def test_a_lower_resolution_is_recorded_and_a_wrong_one_refused(pack: Path, tmp_path: Path) -> None:
    for name, arguments in (("full", []), ("near", ["--render-at", "4"])):
        result = run("--pack", pack, "--out", tmp_path / name, *SMALL, *arguments)
        assert result.exit_code == 0, result.output
    full, near = load_pack(tmp_path / "full"), load_pack(tmp_path / "near")
    assert full.config("directions")["render_at"] == "full"
    assert near.config("directions")["render_at"] == 4
    assert (full.directions - near.directions).abs().max() > 0.01
    refused = run("--pack", pack, "--out", tmp_path / "c", "--render-at", "100")
    assert refused.exit_code == 2
    assert "expected full, clip, or one of the generator's resolutions" in refused.output


def test_channels_that_never_move_do_not_count_as_images() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    assert mean_images(DirectionTable(rows, torch.tensor([20, 100, 40]))) == 30
    assert mean_images(DirectionTable(0 * rows, torch.tensor([100, 100, 0]))) == 0


def test_a_dry_run_counts_and_writes_nothing(tmp_path: Path) -> None:
    result = run("--out", tmp_path / "out", "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["renders"] == 2 * 100 * record["rows"]
    assert record["gradient_passes"] == 512 + 100 * (1 + 96)
    assert record["statistics"] == "the pack's"
    assert not list(tmp_path.iterdir())


def test_the_shipped_pack_is_not_changed() -> None:
    result = run("--images", "1")
    assert result.exit_code == 2
    assert "--out" in result.output


def test_a_pack_without_clip_is_refused_at_once(tmp_path: Path) -> None:
    with PackWriter(tmp_path / "half", "half") as writer:
        writer.add("generator", Generator(GeneratorConfig(8, 4, 4, 1, {4: 4, 8: 4})))
    result = run("--pack", tmp_path / "half", "--out", tmp_path / "out")
    assert result.exit_code == 3
    assert "has no 'clip'" in result.output
    assert not (tmp_path / "out-work").exists()
