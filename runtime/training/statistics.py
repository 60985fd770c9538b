"""Statistics of W and of style space S: what "set a channel to its mean" and "move it by 5 sigma" refer to.

StyleCLIP (Patashnik et al. 2021) measures S over 100,000 w drawn at truncation 0.7. Its two code bases disagree: the
TensorFlow files truncate every layer, the PyTorch port only layers below 8, which gives larger sigmas for the finer
layers. Tables made under one convention are not comparable with the other, so the convention is recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from ...engines.errors import InputError


class StyleSource(Protocol):
    """The part of a generator that statistics need."""

    def mapping(self, z: Tensor, psi: float = 1.0) -> Tensor:
        """z [N,Z] -> w [N,W]."""

    def broadcast(self, w: Tensor) -> Tensor:
        """w [N,W] -> w+ [N,L,W]."""

    def styles(self, w_plus: Tensor) -> Tensor:
        """w+ [N,L,W] -> s [N,S]."""


class StyleMoments(Protocol):
    """Mean and standard deviation of S [S]: of fresh statistics, or of those in a pack."""

    @property
    def s_mean(self) -> Tensor: ...  # noqa: D102

    @property
    def s_std(self) -> Tensor: ...  # noqa: D102


@dataclass(frozen=True)
class StyleStatistics:
    """Mean of W [W], mean and standard deviation (ddof 0) of S [S], with what they were measured on.

    `cutoff` is the number of leading layers that were truncated to `psi`; None means all of them.
    """

    w_mean: Tensor
    s_mean: Tensor
    s_std: Tensor
    samples: int
    psi: float
    cutoff: int | None = None
    seed: int = 5

    @property
    def convention(self) -> str:
        """The sigma convention in words, for the pack."""
        reach = "all layers" if self.cutoff is None else f"layers below {self.cutoff}"
        return f"standard deviation (ddof 0) of S, psi {self.psi:g} on {reach}"

    def config(self) -> dict[str, Any]:
        """The `config` entry of the statistics in pack.json."""
        return {
            "samples": self.samples,
            "psi": self.psi,
            "cutoff": self.cutoff,
            "seed": self.seed,
            "convention": self.convention,
        }


class RunningMoments:
    """Mean and standard deviation of rows seen in batches (Chan et al. 1979), in float64: 100k rows stay exact."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self._squares = torch.zeros(())

    def add(self, rows: Tensor) -> None:
        """Takes rows [N,D] of any float dtype."""
        rows = rows.double()
        n, total = len(rows), self.count + len(rows)
        batch_mean = rows.mean(0)
        shift = batch_mean - self.mean.to(rows.device)
        self._squares = self._squares.to(rows.device) + (rows - batch_mean).square().sum(0)
        self._squares = self._squares + shift.square() * (self.count * n / total)
        self.mean = self.mean.to(rows.device) + shift * (n / total)
        self.count = total

    @property
    def std(self) -> Tensor:
        """Population standard deviation [D] (ddof 0)."""
        return (self._squares / max(self.count, 1)).clamp(min=0).sqrt()


def sample_w_plus(generator: StyleSource, z: Tensor, psi: float, cutoff: int | None = None) -> Tensor:
    """z [N,Z] -> w+ [N,L,W], the first `cutoff` layers (None: all) truncated to `psi`."""
    w_plus = generator.broadcast(generator.mapping(z, psi))
    if cutoff is None:
        return w_plus
    rest = generator.broadcast(generator.mapping(z, 1.0))
    return torch.cat([w_plus[:, :cutoff], rest[:, cutoff:]], 1)


def latent_batches(count: int, z_dim: int, seed: int, batch: int = 1000) -> Iterator[Tensor]:
    """Standard normal z in batches [<=batch, Z]; always drawn on the CPU, so that a seed means the same everywhere."""
    rng = torch.Generator().manual_seed(seed)
    for start in range(0, count, batch):
        yield torch.randn(min(batch, count - start), z_dim, generator=rng)


@torch.no_grad()
def style_statistics(
    generator: StyleSource,
    z_dim: int,
    *,
    samples: int = 100_000,
    psi: float = 0.7,
    cutoff: int | None = None,
    seed: int = 5,
    batch: int = 1000,
    device: torch.device | str = "cpu",
) -> StyleStatistics:
    """Measures W and S of `generator` over `samples` random latents.

    Args:
        z_dim: width of z.
        psi: truncation; 0.7 is StyleCLIP's.
        cutoff: layers that are truncated; None (all) is the convention of the published FFHQ files, 8 that of the port.
    Returns:
        float32 statistics on the CPU.
    Raises:
        InputError: for fewer than two samples.
    """
    if samples < 2:
        raise InputError(f"{samples} samples were asked for; a standard deviation needs at least 2")
    w_moments, s_moments = RunningMoments(), RunningMoments()
    rounds = -(-samples // batch)
    for z in tqdm(latent_batches(samples, z_dim, seed, batch), "style statistics", rounds, unit="batch", disable=None):
        w_plus = sample_w_plus(generator, z.to(device), psi, cutoff)
        w_moments.add(w_plus[:, 0])
        s_moments.add(generator.styles(w_plus))
    parts = (w_moments.mean, s_moments.mean, s_moments.std)
    w_mean, s_mean, s_std = (part.float().cpu() for part in parts)
    return StyleStatistics(w_mean, s_mean, s_std, samples, psi, cutoff, seed)
