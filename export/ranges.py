"""What values a generator's tensors take, over sampled faces and over edits as strong as |alpha| = 10."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..engines.gate import ALPHA
from ..runtime.training.networks.stylegan2 import Generator
from ..runtime.training.pack import Pack
from .precision_layers import TypedSynthesis

KEPT = (0.02, 0.3)
"""Share of the channels that a random direction moves."""
SIGMA_SAMPLES = 512


@dataclass(frozen=True)
class Samples:
    """Style vectors to judge a precision by: plain [n,S] of random faces, edited [2n,S] at alpha = +10 and -10."""

    plain: Tensor
    edited: Tensor

    def all(self) -> Tensor:
        """Both, [3n,S]."""
        return torch.cat([self.plain, self.edited])


@torch.no_grad()
def sample_styles(pack: Pack, count: int = 4, seed: int = 0) -> Samples:
    """`count` faces without truncation, each edited both ways along a direction of its own."""
    rng = torch.Generator().manual_seed(seed)
    generator = pack.generator
    plain = latent_styles(generator, count, rng)
    delta_s = directions(pack, count, rng)
    return Samples(plain, torch.cat([plain + ALPHA * delta_s, plain - ALPHA * delta_s]))


@torch.no_grad()
def latent_styles(generator: Generator, count: int, rng: torch.Generator) -> Tensor:
    """s [count,S] of random z at psi 1."""
    z = torch.randn(count, generator.config.z_dim, generator=rng)
    return generator.styles(generator.broadcast(generator.mapping(z)))


@torch.no_grad()
def directions(pack: Pack, count: int, rng: torch.Generator) -> Tensor:
    """delta_s [count,S]: every other one as the pack's table gives it, the others sparse and random; max |d| is 1.

    A row of the table, taken as the text direction, moves the channels that a prompt about that channel would move. A
    random direction knows no correlation between channels and so reaches places that no prompt was tried for.
    """
    generator = pack.generator
    sigma = pack.statistics.s_std if pack.has("statistics") else style_sigma(generator, rng)
    kept = torch.rand(count, 1, generator=rng) * (KEPT[1] - KEPT[0]) + KEPT[0]
    d = torch.randn(count, generator.style_channels, generator=rng)
    d = d * (torch.rand(d.shape, generator=rng) < kept)
    for layer in generator.style_layers:
        if layer.kind == "torgb":  # directions never move these
            d[:, layer.offset : layer.offset + layer.channels] = 0
    if pack.has("directions"):
        table = pack.directions
        rows = table.abs().sum(1).nonzero().flatten()
        chosen = rows[torch.randint(0, len(rows), (count,), generator=rng)]
        relevance = table[chosen] @ table.T
        d[::2] = torch.where(relevance.abs() >= 0.1, relevance, 0.0)[::2]
    return sigma * d / d.abs().amax(1, keepdim=True).clamp(min=1e-12)


def style_sigma(generator: Generator, rng: torch.Generator) -> Tensor:
    """Standard deviation of every style channel [S], where the pack records none."""
    return latent_styles(generator, SIGMA_SAMPLES, rng).std(0)


class Ranges:
    """max |x| by layer and quantity; pass it to `TypedSynthesis.observe`."""

    def __init__(self) -> None:
        self.peaks: dict[str, dict[str, float]] = {}

    def __call__(self, layer: str, quantity: str, tensor: Tensor) -> None:
        """Take a tensor into account."""
        row = self.peaks.setdefault(layer, {})
        row[quantity] = max(row.get(quantity, 0.0), float(tensor.abs().amax()))


@torch.no_grad()
def measure(generator: Generator, styles: Tensor, form: str = "fir") -> dict[str, dict[str, float]]:
    """Ranges of the float16 maths, carried out in float32, over style vectors [n,S].

    By layer: `product` (what the convolution reads), `sum` (what it gives), `demodulation` (the factor after it),
    `output` (after the activation); toRGB layers have `sum` alone. "const" has the `output` of the learned input.
    """
    typed, ranges = TypedSynthesis(generator, form, (), measuring=True), Ranges()
    typed.observe(ranges)
    ranges("const", "output", typed.const)
    for part in batches(generator, styles):
        typed(part)
    return ranges.peaks


def batches(generator: Generator, styles: Tensor, pixels: int = 1 << 20) -> Iterator[Tensor]:
    """Slices of styles whose pictures have about `pixels` pixels together, so that memory stays bounded."""
    size = max(1, pixels // generator.config.resolution**2)
    return iter(styles.split(size))
