"""The agreement study: its figures against the runtime's maths, and its table."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the study needs the extra `torch`")

import torch
from PIL import Image

from styleclip_rt.benchmarks.gradient_report import (
    Estimate,
    Slopes,
    agreement,
    by_cosine,
    spearman,
    step,
    strongest,
    write,
)
from styleclip_rt.benchmarks.gradient_tables import GRADIENT_TABLES, NAME, TIMES
from styleclip_rt.benchmarks.gradient_times import first_picture_s, preview_line, times, without
from styleclip_rt.benchmarks.report import TABLES
from styleclip_rt.engines.errors import InputError
from styleclip_rt.runtime import edits
from styleclip_rt.runtime.training.demo.scores import judged
from styleclip_rt.runtime.training.directions import TOLERANCE
from styleclip_rt.runtime.training.gradient import GradientRecipe
from styleclip_rt.runtime.training.pack import load_pack

RNG = np.random.default_rng(3)


def test_a_step_is_the_edit_at_the_threshold_that_keeps_so_many() -> None:
    r, sigma = RNG.uniform(-0.5, 0.5, 40), RNG.uniform(0.1, 2, 40)
    beta = float(np.sort(np.abs(r))[-7])
    wanted = edits.direction(r[:, None], np.ones(1), beta, sigma)
    np.testing.assert_allclose(step(r, 7, sigma), wanted, atol=1e-6)
    assert set(strongest(r, 7)) == set(edits.channels(wanted))


def test_agreement_of_a_relevance_with_itself_and_its_opposite() -> None:
    r, sigma = RNG.uniform(-0.5, 0.5, 40), np.ones(40)
    same, other = agreement(r, r, 5, sigma, range(40)), agreement(r, -r, 5, sigma, range(40))
    assert (same["spearman"], same["overlap"], same["cosine"]) == (1, 1, 1)
    assert (other["spearman"], other["overlap"], other["cosine"]) == (-1, 1, -1)
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])) == pytest.approx(0.5)


def test_the_command_s_own_row_keeps_what_the_command_keeps() -> None:
    r = RNG.permutation(np.linspace(-0.5, 0.4, 160))
    ways = [Estimate("a", 1, 1, lambda t: r, own) for own in (False, True)]
    assert [way.count(r, 33) for way in ways] == [33, 13]


def test_slopes_give_the_mean_unit_rows_times_the_text() -> None:
    rng = torch.Generator().manual_seed(1)
    rows = torch.randn(5, 9, 4, generator=rng, dtype=torch.float64)
    text = torch.nn.functional.normalize(torch.randn(4, generator=rng, dtype=torch.float64), dim=0)
    slopes = Slopes(rows, torch.eye(4, dtype=torch.float64), torch.zeros(5, 4))
    unit = rows / rows.norm(dim=2, keepdim=True)
    mean = unit.mean(0)
    wanted = (mean / mean.norm(dim=1, keepdim=True)) @ text
    np.testing.assert_allclose(by_cosine(slopes, text, alike=True), wanted.numpy(), atol=1e-9)
    mean = (rows / rows.square().sum((1, 2), keepdim=True).sqrt()).mean(0)
    np.testing.assert_allclose(by_cosine(slopes, text), (mean @ text / mean.norm(dim=1)).numpy(), atol=1e-9)
    turned = torch.linalg.qr(torch.randn(4, 4, generator=rng, dtype=torch.float64))[0]
    assert torch.allclose(slopes.along(turned), rows @ turned.T)


def test_the_table_means_over_prompts(tmp_path: Path) -> None:
    assert GRADIENT_TABLES.keys() <= TABLES.keys()
    table = GRADIENT_TABLES["gradient-agreement"]
    assert "gradient_report" in table(tmp_path)
    shared = {"prompt": "hat", "estimate": "gradient", "images": 32, "passes": 992, "channels": 40, "spearman": 0.5,
              "overlap": 0.5, "cosine": 0.5}  # fmt: skip
    write(tmp_path / NAME, [{**shared, "success": 1.0, "others_changed": 0.02},
                            {**shared, "success": 0.5, "others_changed": 0.04}])  # fmt: skip
    assert "| gradient | 32 | 992 | 40 | 0.50 | 50% | 0.50 | 75% | 50% (hat) | 3.0% |" in table(tmp_path)


# Times ----------------------------------------------------------------------------------------------------------------


def test_ratios_are_taken_within_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from styleclip_rt.benchmarks import directions_bench, gradient_times

    subject = judged(load_pack("toyfaces"))
    seconds = iter([99.0, 1.0, 2.0, 4.0])  # the first call is no part of it
    monkeypatch.setattr(gradient_times, "gradient_s", lambda subject: next(seconds))
    monkeypatch.setattr(gradient_times, "first_picture_s", lambda pack, prompt, threads: 7.0)
    original = iter([10.0, 40.0, 30.0])

    def race(bench: object, count: int, rounds: int) -> list[dict[str, float | str]]:
        ms = next(original)
        layer = {"layer": "b4.conv1", "channels": 50, "original_ms": ms, "ours_ms": ms / 5, "times_faster": 5.0}
        return [layer, {**layer, "layer": "table"}]

    monkeypatch.setattr(directions_bench, "race", race)
    monkeypatch.setattr(directions_bench, "gradient_ms", lambda bench, probes: 5.0 * probes)
    with pytest.raises(InputError, match="directions_bench error"):
        times(subject, tmp_path, 1, 2)
    seconds = iter([99.0, 1.0, 2.0, 4.0])
    original = iter([10.0, 40.0, 30.0])
    (tmp_path / "directions-error-toyfaces.csv").write_text(
        f"tolerance,layer,mean_images\n{TOLERANCE},b4.conv1,80\n{TOLERANCE},table,80\n"
    )
    row = times(subject, tmp_path, 3, 2)
    assert row["original_s"] == pytest.approx(30e-3 * 50 * 100)  # 30 ms a sample, 50 channels, 100 images
    assert row["original_ratio"] == pytest.approx(50.0)  # of 50/1, 200/2, 150/4
    assert row["finite_ratio"] == pytest.approx(10.0)
    # 80 of 100 images, and 6 probes of 5 ms an image shared by 50 channels: of 11/1, 35/2, 27/4
    assert row["stopped_ratio"] == pytest.approx(11.0)
    assert (row["rounds"], row["first_picture_s"], row["passes"]) == (3, 7.0, GradientRecipe().passes())
    write(tmp_path / TIMES, [row])
    table = TABLES["gradient-times"](tmp_path)
    assert "| the original's loop | 100 | 50 |" in table
    assert "first edited picture: 7.0 s" in table


def test_the_gradients_that_are_timed_are_those_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from styleclip_rt.benchmarks import gradient_times

    seen: list[torch.Tensor] = []
    full = gradient_times.gradient_relevance

    def once(*arguments: Any, **options: Any) -> torch.Tensor:
        seen.append(full(*arguments, **options))
        return seen[-1]

    small = GradientRecipe(images=1, components=1, random=1)
    monkeypatch.setattr(gradient_times, "GradientRecipe", lambda: small)
    monkeypatch.setattr(gradient_times, "gradient_relevance", once)
    subject = judged(load_pack("toyfaces"))
    assert 0 < gradient_times.gradient_s(subject) < 60
    assert 0 < float(seen[0].abs().max()) <= 1.0001


def test_a_first_picture_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mean the same"):
        first_picture_s(load_pack("toyfaces"), "a face", 1)


@pytest.mark.timing
def test_a_pack_without_a_table_gives_its_first_edited_picture_within_20_s(tmp_path: Path) -> None:
    pack = without(load_pack("toyfaces"), tmp_path / "bare", "directions", "statistics")
    line = preview_line(pack, "a face with purple hair", tmp_path / "sheet.png", threads=2)
    began = time.perf_counter()
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    wall = time.perf_counter() - began
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "sheet.png").width > 4 * 128
    assert wall < 20
