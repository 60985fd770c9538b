"""The agreement study: its figures against the runtime's maths, and its table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the study needs the extra `torch`")

import torch

from styleclip_rt.benchmarks.gradient_report import Slopes, agreement, by_cosine, spearman, step, strongest, write
from styleclip_rt.benchmarks.gradient_tables import NAME, gradient_agreement
from styleclip_rt.runtime import edits

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


def test_slopes_give_the_mean_unit_rows_times_the_text() -> None:
    rng = torch.Generator().manual_seed(1)
    rows = torch.randn(5, 9, 4, generator=rng, dtype=torch.float64)
    text = torch.nn.functional.normalize(torch.randn(4, generator=rng, dtype=torch.float64), dim=0)
    slopes = Slopes(rows, torch.eye(4, dtype=torch.float64), torch.zeros(5, 4))
    unit = rows / rows.norm(dim=2, keepdim=True)
    mean = unit.mean(0)
    wanted = (mean / mean.norm(dim=1, keepdim=True)) @ text
    np.testing.assert_allclose(by_cosine(slopes, text), wanted.numpy(), atol=1e-9)
    turned = torch.linalg.qr(torch.randn(4, 4, generator=rng, dtype=torch.float64))[0]
    assert torch.allclose(slopes.along(turned), rows @ turned.T)


def test_the_table_means_over_prompts(tmp_path: Path) -> None:
    assert "gradient_report" in gradient_agreement(tmp_path)
    shared = {"estimate": "gradient", "images": 32, "passes": 992, "spearman": 0.5, "overlap": 0.5, "cosine": 0.5}
    write(tmp_path / NAME, [{**shared, "success": 1.0, "others_changed": 0.02},
                            {**shared, "success": 0.5, "others_changed": 0.04}])  # fmt: skip
    assert "| gradient | 32 | 992 | 0.50 | 50% | 0.50 | 75% | 3.0% |" in gradient_agreement(tmp_path)
