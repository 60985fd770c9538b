"""The generator as the original code computes it, and each technique that makes it faster, one switch at a time.

Written from the maths of StyleGAN2 (Karras et al. 2020, section 2.2). With every switch off it does what the published
PyTorch code does: per sample a modulated and demodulated weight tensor, one grouped convolution over the batch, the FIR
filter by zero insertion and a convolution over N * C single-channel maps, noise, bias, leaky ReLU and gain one by one.
All variants read the weights of a `Generator`, so they differ by rounding alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..runtime.training.networks.stylegan2 import SQRT2, Generator, Layer, ToRGB, fir_kernel

EPS = 1e-8
F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Technique:
    """What a variant does differently from the original.

    Attributes:
        static_weights: modulate the activations, keep the weights constant.
        one_fir: the filter as one depthwise (transposed) convolution, in place of zero insertion on N * C maps.
        fused: demodulation, noise, bias and gain in one multiply-add.
        folded: gains, noise planes and demodulation matrices computed once.
        half: FP16, channels last; styles and weights normalised first, demodulation and the RGB skip in FP32.
    """

    static_weights: bool = False
    one_fir: bool = False
    fused: bool = False
    folded: bool = False
    half: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Type of activations and weights."""
        return torch.float16 if self.half else torch.float32


ORIGINAL = Technique()
FOLDED = Technique(static_weights=True, one_fir=True, fused=True, folded=True)


class StyledConv(nn.Module):
    """One 3x3 layer: [N, Ci, r, r], s [N, Ci] -> [N, Co, r', r']."""

    weight: Tensor
    bias: Tensor
    noise: Tensor
    strength: Tensor
    squares: Tensor
    offset: Tensor
    kernel: Tensor

    def __init__(self, layer: Layer, technique: Technique) -> None:
        super().__init__()
        self.technique, self.up, self.clamp, self.gain = technique, layer.up, layer.clamp, layer.gain
        weight = layer.weight.detach()
        if technique.half:  # the demodulation cancels a factor per output channel
            weight = weight / weight.abs().amax((1, 2, 3), keepdim=True) / self.gain / math.sqrt(weight[0].numel())
        self.register_buffer("weight", (weight * self.gain if technique.folded else weight).clone())
        self.register_buffer("squares", (weight * self.gain).square().sum((2, 3)).T.contiguous())
        self.register_buffer("bias", layer.bias.detach().clone())
        self.register_buffer("noise", layer.noise_const.detach().clone())
        self.register_buffer("strength", layer.noise_strength.detach().clone())
        offset = (self.noise * self.strength + self.bias[:, None, None]) * SQRT2
        self.register_buffer("offset", offset.to(technique.dtype) if technique.folded else torch.zeros(0))
        self.register_buffer("kernel", (fir_kernel() * 4).to(technique.dtype))
        if technique.folded:
            self.weight = self.weight.to(technique.dtype)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """Convolve with the style s, then noise, bias and activation."""
        t = self.technique
        if t.half:
            s = s / s.abs().amax(1, keepdim=True)
        weight = self.weight if t.folded else self.weight * self.gain
        if not t.static_weights:
            return self.activate(self.filter(by_weights(x, s, weight, self.up)), None)
        x = x * s.to(x.dtype)[:, :, None, None]
        weight = weight.to(x.dtype)
        if self.up:
            x = self.filter(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2))
        else:
            x = F.conv2d(x, weight, padding=1)
        squares = self.squares if t.folded else weight.float().square().sum((2, 3)).T
        return self.activate(x, torch.rsqrt(s.square() @ squares + EPS))

    def filter(self, x: Tensor) -> Tensor:
        """The FIR filter after an up-sampling convolution, [N, C, 2r + 1, ...] -> [N, C, 2r, ...]."""
        if not self.up:
            return x
        if not self.technique.one_fir:
            return fir_by_zeros(x, self.kernel, up=1, before=1, after=1)
        return F.conv2d(x, self.kernel.expand(x.shape[1], 1, 4, 4), padding=1, groups=x.shape[1])

    def activate(self, x: Tensor, d: Tensor | None) -> Tensor:
        """Demodulation d [N, Co] (None: already in the weights), noise, bias, leaky ReLU times sqrt(2), clamp."""
        if self.technique.fused and d is not None:
            offset = self.offset
            if not self.technique.folded:
                offset = (self.noise * self.strength + self.bias[:, None, None]) * SQRT2
            scale = (d * SQRT2).to(x.dtype)[:, :, None, None]
            x = F.leaky_relu(torch.addcmul(offset.to(x.dtype), x, scale), 0.2)
        else:
            x = x if d is None else x * d.to(x.dtype)[:, :, None, None]
            x = x + (self.noise * self.strength).to(x.dtype)
            x = x + self.bias.to(x.dtype)[:, None, None]
            x = F.leaky_relu(x, 0.2) * SQRT2
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class ToPicture(nn.Module):
    """Modulated 1x1 convolution without demodulation, plus the up-sampled RGB below: float32 [N, 3, r, r]."""

    weight: Tensor
    bias: Tensor
    kernel: Tensor

    def __init__(self, layer: ToRGB, technique: Technique) -> None:
        super().__init__()
        self.technique, self.clamp, self.gain = technique, layer.clamp, layer.gain
        weight = layer.weight.detach()
        self.register_buffer("weight", (weight * self.gain if technique.folded else weight).clone())
        self.register_buffer("bias", layer.bias.detach().clone())
        self.register_buffer("kernel", fir_kernel() * 4)

    def forward(self, x: Tensor, s: Tensor, rgb: Tensor | None) -> Tensor:
        """x [N, C, r, r], s [N, C], rgb [N, 3, r / 2, r / 2] or None at the first resolution."""
        weight = self.weight if self.technique.folded else self.weight * self.gain
        if self.technique.static_weights:
            new = F.conv2d(x * s.to(x.dtype)[:, :, None, None], weight.to(x.dtype)).float()
        else:
            new = by_weights(x, s, weight, up=False, demodulate=False).float()
        new = new + self.bias[:, None, None]
        if self.clamp is not None:
            new = new.clamp(-self.clamp, self.clamp)
        if rgb is None:
            return new
        if self.technique.one_fir:
            return new + F.conv_transpose2d(rgb, self.kernel.expand(3, 1, 4, 4), stride=2, padding=1, groups=3)
        return new + fir_by_zeros(rgb, self.kernel, up=2, before=2, after=1)


class Variant(nn.Module):
    """A generator under a technique. Shapes as in `Generator`: s [N, S] -> image [N, 3, R, R] float32."""

    const: Tensor

    def __init__(self, generator: Generator, technique: Technique) -> None:
        super().__init__()
        self.technique, self.layers = technique, generator.style_layers
        first = generator.blocks["b4"]
        self.register_buffer("const", first.const.detach().clone().to(technique.dtype))
        self.parts = nn.ModuleList(self._part(generator.layer(layer.name)) for layer in self.layers)
        self.affine = nn.ModuleList(generator.layer(layer.name).affine for layer in self.layers)
        self.requires_grad_(False).eval()

    def _part(self, layer: Layer | ToRGB) -> nn.Module:
        return StyledConv(layer, self.technique) if isinstance(layer, Layer) else ToPicture(layer, self.technique)

    def styles(self, w: Tensor) -> Tensor:
        """w [N, L, W] -> s [N, S]."""
        return torch.cat([affine(w[:, at.w_index]) for at, affine in zip(self.layers, self.affine, strict=True)], 1)

    def forward(self, s: Tensor) -> Tensor:
        """s [N, S] -> image [N, 3, R, R] in -1..1."""
        x = self.const.expand(s.shape[0], -1, -1, -1)
        if self.technique.half:
            x = x.contiguous(memory_format=torch.channels_last)
        rgb: Tensor | None = None
        for part, style in zip(self.parts, s.split([layer.channels for layer in self.layers], 1), strict=True):
            if isinstance(part, ToPicture):
                rgb = part(x, style, rgb)
            else:
                x = part(x, style)
        if rgb is None:  # a generator has a toRGB at every resolution
            raise RuntimeError("the generator has no toRGB layer")
        return rgb


def by_weights(x: Tensor, s: Tensor, weight: Tensor, up: bool, demodulate: bool = True) -> Tensor:
    """Equations 1 to 3 of StyleGAN2 as published: a weight tensor per sample, the batch as groups."""
    n, inputs, height, width = x.shape
    outputs, _, k, _ = weight.shape
    own = weight[None] * s[:, None, :, None, None]  # [N, Co, Ci, k, k]
    if demodulate:
        own = own * torch.rsqrt(own.square().sum((2, 3, 4), keepdim=True) + EPS)
    own = own.to(x.dtype)
    x = x.reshape(1, n * inputs, height, width)
    if up:
        own = own.transpose(1, 2).reshape(n * inputs, outputs, k, k)
        x = F.conv_transpose2d(x, own, stride=2, groups=n)
    else:
        x = F.conv2d(x, own.reshape(n * outputs, inputs, k, k), padding=k // 2, groups=n)
    return x.reshape(n, outputs, *x.shape[2:])


def fir_by_zeros(x: Tensor, kernel: Tensor, up: int, before: int, after: int) -> Tensor:
    """Up-sample by inserting zeros, pad, and filter every channel of every sample as a picture of its own."""
    n, c, height, width = x.shape
    x = x.reshape(n * c, 1, height, 1, width, 1)
    x = F.pad(x, (0, up - 1, 0, 0, 0, up - 1)).reshape(n * c, 1, height * up, width * up)
    x = F.conv2d(F.pad(x, (before, after, before, after)), kernel[None, None].to(x.dtype))
    return x.reshape(n, c, *x.shape[2:])


# The edit ---------------------------------------------------------------------------------------------------------


def original_boundary(table: F32, sigma: F32, delta_t: F32, beta: float) -> F32:
    """The global direction in numpy, as the original computes it on every edit: delta_s [S] of one text direction [E].

    table: channel directions [S, E]; sigma [S]. Where no channel passes beta the original divides by zero; this is 0.
    """
    relevance = table @ delta_t
    kept = np.where(np.abs(relevance) >= beta, relevance, np.float32(0))
    peak = np.abs(kept).max()
    return (sigma * kept / peak if peak > 0 else kept).astype(np.float32)


def image_u8(image: F32) -> NDArray[np.uint8]:
    """The original's conversion on the host: [N, 3, R, R] in -1..1 -> uint8 [N, R, R, 3]."""
    return np.clip(np.rint((image.transpose(0, 2, 3, 1) + 1) * 127.5), 0, 255).astype(np.uint8)


def original_edit(variant: Variant, table: F32, sigma: F32, feeds: dict[str, Any], device: str) -> NDArray[np.uint8]:
    """The whole edit as the original runs it: direction in numpy, styles and synthesis in torch, pixels in numpy."""
    pairs = zip(feeds["delta_t"], feeds["alpha"], feeds["beta"], strict=True)
    moves = np.stack([alpha * original_boundary(table, sigma, delta_t, float(beta)) for delta_t, alpha, beta in pairs])
    with torch.no_grad():
        s = variant.styles(torch.from_numpy(feeds["w"]).to(device)) + torch.from_numpy(moves).to(device)
        return image_u8(variant(s).float().cpu().numpy())
