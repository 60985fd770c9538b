"""The rule that stops a channel: its expected cosine against the cosine of drawn vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from styleclip_rt.runtime import edits
from styleclip_rt.runtime.training.directions_predicted import Predictions
from styleclip_rt.runtime.training.directions_stop import (
    CHECKS,
    Predicted,
    differences,
    estimate,
    may_stop,
    unit,
)

WIDTH = 24


def drawn(images: int, spread: float, channels: int = 400) -> torch.Tensor:
    """Unit vectors [images, channels, width] around one direction a channel."""
    rng = torch.Generator().manual_seed(3)
    middle = unit(torch.randn(channels, WIDTH, generator=rng, dtype=torch.float64))
    noise = torch.randn(images, channels, WIDTH, generator=rng, dtype=torch.float64)
    return unit(middle + spread / WIDTH**0.5 * noise)


def foreseen(x: torch.Tensor, share: float, bias: float = 0.0) -> Predictions:
    """Predictions that explain about `share` of each vector of x, and are wrong by the same in every image."""
    rng = torch.Generator().manual_seed(4)
    wrong = unit(torch.randn(x.shape[1:], generator=rng, dtype=x.dtype))
    noise = unit(torch.randn(x.shape, generator=rng, dtype=x.dtype))
    y = unit(share * x + bias * wrong + (1 - share) * noise)
    return Predictions(torch.eye(WIDTH, dtype=torch.float64), y.half())


def sums(x: torch.Tensor, seen: int, predictions: Predictions | None = None) -> tuple[torch.Tensor, ...]:
    """What `estimate` takes of the first `seen` images."""
    plain = x[:seen].sum(0), x[:seen].square().sum((0, 2))
    return (*plain, seen, len(x), predicted(x, seen, predictions))  # type: ignore[return-value]


def predicted(x: torch.Tensor, seen: int, predictions: Predictions | None) -> Predicted | None:
    if predictions is None:
        return None
    channels = range(x.shape[1])
    cross = torch.stack([predictions.cross(i, list(channels), x[i]) for i in range(seen)]).sum(0)
    return predictions.sums(list(channels), seen, cross)


@pytest.mark.parametrize("spread", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("seen", [8, 24, 64])
def test_without_predictions_the_row_is_the_mean_and_the_cosine_what_to_expect(seen: int, spread: float) -> None:
    delta = drawn(100, spread)
    rows, expected = estimate(*sums(delta, seen))
    torch.testing.assert_close(unit(rows), unit(delta[:seen].sum(0)))
    real = (unit(rows) * unit(delta.sum(0))).sum(1)
    assert float(expected.mean()) == pytest.approx(float(real.mean()), abs=0.08 * (1 - float(real.mean())) + 0.002)


@pytest.mark.parametrize("bias", [0.0, 0.3])
@pytest.mark.parametrize("spread", [1.0, 3.0])
@pytest.mark.parametrize("seen", [8, 24, 64])
def test_predictions_bring_the_row_nearer_and_the_cosine_says_how_near(seen: int, spread: float, bias: float) -> None:
    delta = drawn(100, spread)
    whole = unit(delta.sum(0))
    rows, expected = estimate(*sums(delta, seen, foreseen(delta, 0.8, bias)))
    real = (unit(rows) * whole).sum(1)
    alone = (unit(delta[:seen].sum(0)) * whole).sum(1)
    assert 1 - float(real.mean()) < 0.75 * (1 - float(alone.mean()))
    assert float(expected.mean()) == pytest.approx(float(real.mean()), abs=0.35 * (1 - float(real.mean())) + 0.002)


@pytest.mark.parametrize("seen", [8, 40])
def test_predictions_that_say_nothing_do_no_harm(seen: int) -> None:
    delta = drawn(100, 1.5)
    whole = unit(delta.sum(0))
    noise = foreseen(delta, 0.0)
    rows, _ = estimate(*sums(delta, seen, noise))
    alone = (unit(delta[:seen].sum(0)) * whole).sum(1)
    assert float((unit(rows) * whole).sum(1).mean()) > float(alone.mean()) - 0.01


def test_the_finished_row_is_the_mean_whatever_was_predicted() -> None:
    delta = drawn(30, 1.0)
    rows, expected = estimate(*sums(delta, 30, foreseen(delta, 0.5)))
    torch.testing.assert_close(rows, delta.mean(0))
    assert expected.tolist() == [1.0] * len(rows)


def test_sums_are_those_of_the_vectors() -> None:
    """The coordinates are in a basis of fewer dimensions than the embedding; sums are in the embedding's."""
    rng = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(WIDTH, 5, generator=rng, dtype=torch.float64)).Q.T
    predictions = Predictions(basis, unit(torch.randn(9, 7, 5, generator=rng, dtype=torch.float64)).half())
    y, x = predictions.rows.double() @ basis, torch.randn(9, 7, WIDTH, generator=rng, dtype=torch.float64)
    channels = [1, 4, 6]
    cross = sum(predictions.cross(i, channels, x[i, channels]) for i in range(4))
    found = predictions.sums(channels, 4, torch.as_tensor(cross))
    torch.testing.assert_close(found.cross, (x[:4, channels] * y[:4, channels]).sum((0, 2)))
    torch.testing.assert_close(found.squares, y[:4, channels].square().sum((0, 2)))
    torch.testing.assert_close(found.seen, y[:4, channels].sum(0))
    torch.testing.assert_close(found.every, y[:, channels].sum(0))


def test_channels_are_looked_at_at_the_checks_and_with_a_tolerance() -> None:
    assert 9 not in CHECKS
    assert [may_stop(seen, tolerance) for seen, tolerance in ((8, 0.01), (9, 0.01), (8, 0.0))] == [True, False, False]


def test_a_channel_that_moves_nothing_has_converged() -> None:
    assert estimate(torch.zeros(2, 5), torch.zeros(2), 8, 100)[1].tolist() == [1.0, 1.0]


def test_differences_are_those_of_getfs() -> None:
    features = torch.randn(3, 7, 2, 5, generator=torch.Generator().manual_seed(0))
    rows = unit(differences(features).mean(1))
    np.testing.assert_allclose(rows.numpy(), edits.channel_directions(features.double().numpy()), atol=1e-12)
