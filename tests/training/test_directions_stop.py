"""The rule that stops a channel: its expected cosine against the cosine of drawn vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from styleclip_rt.runtime import edits
from styleclip_rt.runtime.training.directions_stop import CHECKS, converged, differences, expected_cosine, unit


def drawn(images: int, spread: float, channels: int = 400, width: int = 24) -> torch.Tensor:
    """Unit vectors [images, channels, width] around one direction a channel."""
    rng = torch.Generator().manual_seed(3)
    middle = unit(torch.randn(channels, width, generator=rng, dtype=torch.float64))
    noise = torch.randn(images, channels, width, generator=rng, dtype=torch.float64)
    return unit(middle + spread / width**0.5 * noise)


@pytest.mark.parametrize("spread", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("seen", [8, 24, 64])
def test_the_expected_cosine_is_the_mean_cosine(seen: int, spread: float) -> None:
    delta = drawn(100, spread)
    total, squares = delta[:seen].sum(0), delta[:seen].square().sum((0, 2))
    expected = expected_cosine(total, squares, seen, 100)
    real = (unit(total) * unit(delta.sum(0))).sum(1)
    assert float(expected.mean()) == pytest.approx(float(real.mean()), abs=0.08 * (1 - float(real.mean())) + 0.002)


def test_a_converged_channel_stops_and_a_noisy_one_does_not() -> None:
    for spread, stops in ((0.2, True), (3.0, False)):
        delta = drawn(8, spread)
        done = converged(delta.sum(0), delta.square().sum((0, 2)), 8, 100, 0.01)
        assert bool(done.all()) is stops
        assert bool(done.any()) is stops


def test_nothing_stops_between_checks_nor_without_a_tolerance() -> None:
    delta = drawn(9, 0.1)
    total, squares = delta.sum(0), delta.square().sum((0, 2))
    assert 9 not in CHECKS
    assert not converged(total, squares, 9, 100, 0.01).any()
    delta = delta[:8]
    assert not converged(delta.sum(0), delta.square().sum((0, 2)), 8, 100, 0.0).any()


def test_a_channel_that_moves_nothing_has_converged() -> None:
    assert expected_cosine(torch.zeros(2, 5), torch.zeros(2), 8, 100).tolist() == [1.0, 1.0]


def test_all_images_seen_is_cosine_one() -> None:
    delta = drawn(30, 1.0)
    expected = expected_cosine(delta.sum(0), delta.square().sum((0, 2)), 30, 30)
    torch.testing.assert_close(expected, torch.ones_like(expected))


def test_differences_are_those_of_getfs() -> None:
    features = torch.randn(3, 7, 2, 5, generator=torch.Generator().manual_seed(0))
    rows = unit(differences(features).mean(1))
    np.testing.assert_allclose(rows.numpy(), edits.channel_directions(features.double().numpy()), atol=1e-12)
