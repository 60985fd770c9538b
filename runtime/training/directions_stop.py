"""When a channel's direction has converged: sums over the images so far, and the cosine to expect of the whole table.

A row is the mean of unit vectors delta_i, one an image. After m of N images, with t = |mean|^2, the jackknife estimate
of the variance of one delta_i is sigma^2 = m / (m - 1) * (mean |delta_i|^2 - t), and |mu|^2 = t - sigma^2 / m. Then

    E <mean_m, mean_N> = |mu|^2 + sigma^2 / N,    E |mean_k|^2 = |mu|^2 + sigma^2 / k

so that the cosine of the row after m images with that after N is about  sqrt((|mu|^2 + sigma^2 / N) / t). The images
are a random draw, and the lengths average over E numbers, so the estimate is less noisy than the row itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHECKS = (8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 72, 80, 90)
"""After how many images channels may stop. Fewer than 8 say too little about the variance."""


def unit(x: Tensor) -> Tensor:
    """Vectors of unit length; a zero vector stays zero."""
    norm = x.norm(dim=-1, keepdim=True)
    return torch.where(norm > 0, x / norm, 0.0)


def differences(features: Tensor) -> Tensor:
    """Embeddings [..., 2, E] of a channel pushed down and up -> unit vectors delta_i [..., E], float64 (GetFs)."""
    features = unit(features.double())
    return unit(features[..., 1, :] - features[..., 0, :])


def expected_cosine(total: Tensor, squares: Tensor, seen: int, images: int) -> Tensor:
    """The expected cosine of rows after `seen` of `images` images with the finished ones.

    total [C, E]: sums of delta_i; squares [C]: sums of |delta_i|^2. A channel that moved no embedding has cosine 1.
    """
    t = (total / seen).square().sum(1)
    variance = (squares / seen - t).clamp(min=0) * (seen / max(seen - 1, 1))
    signal = (t - variance / seen).clamp(min=0)
    cosine = ((signal + variance / images) / t).clamp(max=1).sqrt()
    return torch.where(squares > 0, cosine, 1.0)


def replay(delta: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """What a run with `tolerance` makes of delta_i [n, C, E]: rows [C, E], and of how many images [C] each."""
    images, channels = delta.shape[:2]
    total, squares = torch.zeros_like(delta[0]), torch.zeros(channels, dtype=delta.dtype)
    used, active = torch.full((channels,), images), torch.ones(channels, dtype=torch.bool)
    for i in range(images):
        total[active] += delta[i, active]
        squares[active] += delta[i, active].square().sum(1)
        stop = active & converged(total, squares, i + 1, images, tolerance)
        used[stop], active[stop] = i + 1, False
    return unit(total), used


def converged(total: Tensor, squares: Tensor, seen: int, images: int, tolerance: float) -> Tensor:
    """Which channels [C] may stop: their expected cosine is at least 1 - tolerance. Only at the counts of `CHECKS`."""
    if seen not in CHECKS or not tolerance:
        return torch.zeros(len(total), dtype=torch.bool)
    return expected_cosine(total, squares, seen, images) >= 1 - tolerance
