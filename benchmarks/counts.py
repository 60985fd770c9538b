"""What a generator must compute and move, counted from its config: FLOPs and bytes, layer by layer. No torch.

FLOPs are two per multiply-add of convolutions and matrix products, as torch's FlopCounterMode counts them (a transposed
convolution by its input pixels). Additions, activations and the demodulation's root are not counted: they cost no
arithmetic worth naming, but bytes, which stand beside.

Bytes are the least that a layer-by-layer evaluation can move with everything point-wise fused: each layer reads its
input and its weights once and writes its output once. An implementation that moves less has fused layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

FIR_TAPS = 16


@dataclass(frozen=True)
class LayerCount:
    """One layer for one image. macs: multiply-adds; weights, activations: elements; activations are in plus out."""

    name: str
    macs: int
    weights: int
    activations: int


@dataclass(frozen=True)
class Count:
    """Totals of a run. flop: operations; bytes: the least traffic at `itemsize` bytes an element."""

    flop: float
    bytes: float

    def floor_ms(self, flop_s: float, bytes_s: float) -> float:
        """The larger of compute time and traffic time, in milliseconds: no layer-by-layer version runs faster."""
        return 1e3 * max(self.flop / flop_s, self.bytes / bytes_s)


def layers(channels: Mapping[int, int], w_dim: int, styles: bool = True) -> list[LayerCount]:
    """The layers of a synthesis, in order.

    channels: feature maps by resolution, 4 up to R, as in `GeneratorConfig.channels`. styles: count the affine maps
    w -> s too (a fused edit does them, `synthesize` does not).
    """
    found: list[LayerCount] = []
    sizes = sorted(channels)
    for r in sizes:
        c, below = channels[r], channels.get(r // 2, 0)
        if r != sizes[0]:
            found += _up(r, below, c)
        found.append(_conv(f"b{r}.conv1", c, c, r))
        found.append(LayerCount(f"b{r}.torgb", 3 * c * r * r, 3 * c, (c + 3) * r * r))
        if r != sizes[0]:
            found.append(
                LayerCount(f"b{r}.skip", 3 * FIR_TAPS * (r // 2) ** 2, FIR_TAPS, 3 * r * r + 3 * (r // 2) ** 2)
            )
    if styles:
        found.append(_affine(channels, w_dim))
    return found


def _up(r: int, below: int, c: int) -> list[LayerCount]:
    """The up-sampling convolution (by input pixels) and its FIR filter, on (r + 1)^2 pixels in between."""
    half = r // 2
    conv = LayerCount(
        f"b{r}.conv0", 9 * below * c * half * half + below * c, 9 * below * c, below * half * half + c * (r + 1) ** 2
    )
    return [conv, LayerCount(f"b{r}.fir", FIR_TAPS * c * r * r, FIR_TAPS, c * (r + 1) ** 2 + c * r * r)]


def _conv(name: str, inputs: int, outputs: int, r: int) -> LayerCount:
    """A 3x3 convolution with its demodulation (one matrix product) and noise plane."""
    macs = 9 * inputs * outputs * r * r + inputs * outputs
    return LayerCount(name, macs, 9 * inputs * outputs + r * r, (inputs + outputs) * r * r)


def _affine(channels: Mapping[int, int], w_dim: int) -> LayerCount:
    sizes = sorted(channels)
    total = sum(channels[r] * 2 for r in sizes) + sum(channels[r // 2] for r in sizes[1:])
    return LayerCount("affine", w_dim * total, w_dim * total, w_dim * len(sizes) * 2 + total)


def count(
    channels: Mapping[int, int], w_dim: int, batch: int = 1, itemsize: int = 4, styles: bool = True, start: str = ""
) -> Count:
    """FLOPs and least bytes of a batch; weights are read once per batch. `start`: only from this layer on."""
    rows = layers(channels, w_dim, styles)
    names = [row.name for row in rows]
    rows = rows[names.index(start) if start else 0 :]
    flop = 2.0 * batch * sum(row.macs for row in rows)
    moved = sum(row.weights for row in rows) + batch * sum(row.activations for row in rows)
    return Count(flop, float(itemsize * moved))


def full_width(resolution: int, base: int = 32768, most: int = 512) -> dict[int, int]:
    """Feature maps of config F (Karras et al. 2020): 32768 / r, at most 512; at 1024 px 32 on the last level."""
    return {2**i: min(base // 2**i, most) for i in range(2, int(math.log2(resolution)) + 1)}
