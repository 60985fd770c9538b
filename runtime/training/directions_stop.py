"""When a channel's direction has converged, and what its row is then: a mean over N images from the first n of them.

Let x_i be a channel's unit difference in image i, and y_i what the gradients of that image say of it
(`directions_predicted`), known for all N images at a small cost. Of the n images rendered so far only the residuals
z_i = x_i - b y_i are new, b = sum <x_i, y_i> / sum |y_i|^2, and the row wanted, mean_N x = b mean_N y + mean_N z, needs
an estimate of their mean alone (a control variate). With zbar = mean_n z, t = |zbar|^2 and v the variance of one z_i,

    row    = b mean_N y + w zbar,    w = n / N + (1 - n / N) a,    a = max(0, 1 - v / (n t))

The images rendered count as they are; of the others zbar is an estimate, shrunk by a as James and Stein (1961) do, for
most of a short mean is noise. Its error has two parts, that of the shrunk mean and that of the images not rendered:

    error  = (1 - n / N)^2 (a v / n + v / (N - n)),    expected cosine = 1 / sqrt(1 + error / |row|^2)

Without predictions y = 0: the row is the mean's direction, and the cosine is sqrt(w), the jackknife's, where a > 0.

Shape alphabet: C channels, E CLIP width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHECKS = (6, 8, 10, 12, 14, 16, 18, 20, 24, 28, 32, 40, 48, 56, 64, 72, 80, 90)
"""After how many images channels may stop. Fewer than 6 say too little about the variance."""


@dataclass(frozen=True)
class Predicted:
    """Sums of the predictions y_i of channels, float64, beside those of their differences x_i.

    cross [C]: <x_i, y_i>, squares [C]: |y_i|^2, seen [C,E]: y_i, all three over the images seen; every [C,E]: y_i over
    all images.
    """

    cross: Tensor
    squares: Tensor
    seen: Tensor
    every: Tensor


def unit(x: Tensor) -> Tensor:
    """Vectors of unit length; a zero vector stays zero."""
    norm = x.norm(dim=-1, keepdim=True)
    return torch.where(norm > 0, x / norm, 0.0)


def differences(features: Tensor) -> Tensor:
    """Embeddings [..., 2, E] of a channel pushed down and up -> unit vectors delta_i [..., E], float64 (GetFs)."""
    features = unit(features.double())
    return unit(features[..., 1, :] - features[..., 0, :])


def estimate(
    total: Tensor, squares: Tensor, seen: int, images: int, predicted: Predicted | None = None
) -> tuple[Tensor, Tensor]:
    """After `seen` of `images` images: rows [C,E], not of unit length, and their expected cosines [C] with the whole.

    total [C,E]: sums of x_i; squares [C]: sums of |x_i|^2. A channel that moved no embedding has cosine 1.
    """
    if seen == images:
        return total / images, torch.ones_like(squares)
    known, residual, residual_squares = torch.zeros_like(total), total, squares
    if predicted is not None:
        b = torch.where(predicted.squares > 0, predicted.cross / predicted.squares, 0.0).clamp(min=0)
        known, residual = b[:, None] * predicted.every / images, total - b[:, None] * predicted.seen
        residual_squares = squares - 2 * b * predicted.cross + b.square() * predicted.squares
    mean = residual / seen
    t = mean.square().sum(1)
    variance = (residual_squares / seen - t).clamp(min=0) * (seen / max(seen - 1, 1))
    shrunk = torch.where(t > 0, 1 - variance / (seen * t), 0.0).clamp(min=0)
    rest = 1 - seen / images
    rows = known + (1 - rest + rest * shrunk)[:, None] * mean
    error = rest**2 * variance * (shrunk / seen + 1 / (images - seen))
    cosine = (1 + error / rows.square().sum(1)).rsqrt()
    return rows, torch.where(squares > 0, cosine, 1.0)


def may_stop(seen: int, tolerance: float) -> bool:
    """Whether channels are looked at after `seen` images: at the counts of `CHECKS`, where there is a tolerance."""
    return bool(tolerance) and seen in CHECKS
