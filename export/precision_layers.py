"""The generator in export form with typed arithmetic: float16 where it is safe, float32 everywhere else.

float16 layers use the exact identity (a = max |s| per sample, m_o a power of two times the layer's gain, per output):

    y_o = conv(x * s/a, W_o/m_o) * d_o,    d_o = rsqrt(sum_i (s_i/a)^2 sum_k (W_oik/m_o)^2 + eps / (a m_o)^2)

a and m cancel in the demodulation up to its eps, which therefore is divided by (a m_o)^2: nothing is approximated.
With max |W_o/m_o| near 1/sqrt(9 Ci) neither the sum nor a product can overflow while x is in range. x itself is held in
range by a power of two per tensor, measured (`ranges`): x = scale * stored, which every consumer undoes in its float32
factor (leaky ReLU commutes with a positive factor). So a generator without conv_clamp needs no clamp.

Style normalisation, demodulation and the RGB skip are float32. A layer that float16 cannot compute well is an *island*:
it runs in float32, and a tensor between two islands stays float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..runtime.training.networks.stylegan2 import SQRT2, Generator, Layer, ToRGB
from .forms import UpConvolution, UpRgb, convolve

HALF = torch.float16
EPS = 1e-8
TINY = 1e-12
"""Least max |s|: a dead style then gives 0 through a finite rsqrt, as in float32."""

Observer = Callable[[str, str, Tensor], None]
"""Called with (layer, quantity, tensor) while ranges are measured."""
State = tuple[Tensor, "Tensor | None"]
States = dict[str, State]


def power_of_two(value: Tensor) -> Tensor:
    """The power of two next to a positive value; multiplying by it loses no bit."""
    return torch.exp2(torch.round(torch.log2(value.clamp(min=2.0**-30))))


def normalised(weight: Tensor, gain: float) -> tuple[Tensor, Tensor]:
    """(W', m) with gain * weight = W' * m: W' [Co,...] at most about 1/sqrt(fan in), m [Co] a power of two times gain.

    `weight` is as the pack stores it; where that is float16, so is W', exactly.
    """
    outputs = weight.shape[0]
    fan_in = torch.tensor(float(weight[0].numel()))
    factor = power_of_two(weight.reshape(outputs, -1).abs().amax(1)) * power_of_two(fan_in.sqrt())  # [Co]
    return weight / factor.reshape(-1, 1, 1, 1), factor * gain


def weight_and_factor(layer: Layer | ToRGB, normalise: bool) -> tuple[Tensor, Tensor]:
    """(W', m) as `normalised` gives them, or gain * weight and ones where the layer is not normalised."""
    weight = layer.weight.detach()
    if normalise:
        return normalised(weight, layer.gain)
    return weight * layer.gain, torch.ones(weight.shape[0])


class TypedLayer(nn.Module):
    """A modulated 3x3 convolution with demodulation, noise, bias and leaky ReLU, in float16 or float32.

    scale_in, scale_out: powers of two; x arrives divided by the first and leaves divided by the second.
    normalise: the form with a and m, which float16 needs. dtype: of the feature maps; ranges are measured in float32.
    """

    weight: Tensor
    square: Tensor
    eps: Tensor
    noise: Tensor
    bias: Tensor

    def __init__(
        self, name: str, layer: Layer, form: str, normalise: bool, dtype: torch.dtype, scale_in: float, scale_out: float
    ) -> None:
        super().__init__()
        self.name, self.layer, self.normalise, self.dtype = name, layer, normalise, dtype
        self.observer: Observer | None = None
        weight, factor = weight_and_factor(layer, normalise)
        self.factor_out = SQRT2 * scale_in / scale_out  # sqrt(2) is the gain of the activation
        self.clamp = None if layer.clamp is None else layer.clamp / scale_out
        self.up = UpConvolution(weight, form, dtype) if layer.up else None
        self.offset_gain = SQRT2 / scale_out
        keep = {
            "weight": None if layer.up else weight.to(dtype),
            "square": weight.square().sum((2, 3)).T.contiguous(),  # [Ci,Co]
            "eps": EPS / factor.square(),  # [Co]
            # Apart: their sum [Co,r,r] is 0.5 GB in a bundle of 1024 px, and a runtime folds it on loading the graph.
            "noise": (layer.noise_const * layer.noise_strength).detach(),  # [r,r]
            "bias": layer.bias.detach()[:, None, None].clone(),
        }
        for key, tensor in keep.items():
            self.register_buffer(key, tensor, persistent=False)

    def forward(self, x: Tensor, s: Tensor, peak: Tensor | None) -> Tensor:
        """x [N,Ci,r,r], style s [N,Ci] float32 (divided by `peak` [N,1] if the layer normalises) -> [N,Co,r',r']."""
        x = x.to(self.dtype) * s.to(self.dtype)[:, :, None, None]
        y = convolve(F.conv2d, x, self.weight, padding=1) if self.up is None else self.up(x)
        eps = EPS if peak is None else self.eps / peak.square()
        d = torch.rsqrt(s.square() @ self.square + eps) * self.factor_out  # [N,Co], float32
        if self.observer is not None:
            for quantity, tensor in (("product", x), ("sum", y), ("demodulation", d)):
                self.observer(self.name, quantity, tensor)
        offset = ((self.noise + self.bias) * self.offset_gain).to(self.dtype)
        x = F.leaky_relu(torch.addcmul(offset, y, d.to(self.dtype)[:, :, None, None]), 0.2)
        x = x if self.clamp is None else x.clamp(-self.clamp, self.clamp)
        if self.observer is not None:
            self.observer(self.name, "output", x)
        return x


class TypedToRGB(nn.Module):
    """A modulated 1x1 convolution to RGB: its sum in float16 or float32, scaled and biased in float32."""

    weight: Tensor
    factor: Tensor
    bias: Tensor

    def __init__(self, name: str, layer: ToRGB, normalise: bool, dtype: torch.dtype, scale_in: float) -> None:
        super().__init__()
        self.name, self.layer, self.normalise, self.dtype = name, layer, normalise, dtype
        self.observer: Observer | None = None
        weight, factor = weight_and_factor(layer, normalise)
        self.clamp = layer.clamp
        self.register_buffer("weight", weight.to(dtype), persistent=False)
        self.register_buffer("factor", factor * scale_in, persistent=False)  # [3]
        self.register_buffer("bias", layer.bias.detach()[:, None, None].clone(), persistent=False)
        self.plain = not normalise and scale_in == 1.0

    def forward(self, x: Tensor, s: Tensor, peak: Tensor | None) -> Tensor:
        """x [N,C,r,r], its style s [N,C] float32 (over `peak` [N,1] if the layer normalises) -> [N,3,r,r] float32."""
        x = x.to(self.dtype) * s.to(self.dtype)[:, :, None, None]
        if self.plain:
            rgb = F.conv2d(x, self.weight, self.bias.flatten())
        else:
            scale = self.factor if peak is None else self.factor * peak  # [3] or [N,3]
            y = convolve(F.conv2d, x, self.weight)
            if self.observer is not None:
                self.observer(self.name, "sum", y)
            rgb = torch.addcmul(self.bias, y.float(), scale.reshape(-1, 3, 1, 1))
        return rgb if self.clamp is None else rgb.clamp(-self.clamp, self.clamp)


class Peaks(nn.Module):
    """max |s| of every layer at once: s [N,S] -> (s over its layer's peak [N,S], peaks [N,layers]), float32."""

    gather: Tensor
    owner: Tensor

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        layers = generator.style_layers
        width = max(layer.channels for layer in layers)
        rows = [layer.offset + torch.arange(width) % layer.channels for layer in layers]  # short layers repeat
        owner = torch.cat([torch.full((layer.channels,), i) for i, layer in enumerate(layers)])
        self.register_buffer("gather", torch.stack(rows), persistent=False)
        self.register_buffer("owner", owner, persistent=False)

    def forward(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """A handful of kernels for all layers, where one amax per layer would be twenty."""
        peaks = s[:, self.gather].abs().amax(2).clamp(min=TINY)
        return s / peaks[:, self.owner], peaks


class TypedSynthesis(nn.Module):
    """The synthesis of a generator: s [N,S] float32 -> image [N,3,R,R] float32, in a form and a precision.

    islands: names of layers in float32; None computes all of it in float32 as the generator does. scales: power of two
    that each tensor is divided by, by the name of the layer that makes it ("const" for the learned input).
    measuring: the maths of float16 carried out in float32, to see its ranges.
    """

    const: Tensor

    def __init__(
        self,
        generator: Generator,
        form: str = "fir",
        islands: Collection[str] | None = None,
        scales: Mapping[str, float] | None = None,
        measuring: bool = False,
    ) -> None:
        super().__init__()
        self.generator = generator
        self.islands = None if islands is None else frozenset(islands)
        self.scales, self.measuring = dict(scales or {}), measuring
        self.names = [layer.name for layer in generator.style_layers]
        self.layers = nn.ModuleDict(self._typed(form))
        self.ups = nn.ModuleDict({name: UpRgb(form) for name in list(generator.blocks)[1:]})
        self.peaks = None if self.islands is None else Peaks(generator)
        first = next(iter(generator.blocks.values()))
        const = first.const.detach() / self.scale("const")
        dtype = next(iter(self.layers.values())).dtype
        self.register_buffer("const", const.to(dtype), persistent=False)

    def _typed(self, form: str) -> dict[str, nn.Module]:
        """The typed layer of every style layer; ModuleDict keys hold no dots."""
        typed, source = {}, "const"
        for name in self.names:
            layer = self.generator.layer(name)
            normalise = self.islands is not None and name not in self.islands
            dtype = HALF if normalise and not self.measuring else torch.float32
            scale = self.scale(source)
            if isinstance(layer, Layer):
                typed[key(name)] = TypedLayer(name, layer, form, normalise, dtype, scale, self.scale(name))
                source = name
            else:
                typed[key(name)] = TypedToRGB(name, layer, normalise, dtype, scale)
        return typed

    def scale(self, name: str) -> float:
        """The power of two by which the tensor of this name is stored smaller."""
        return float(self.scales.get(name, 1.0))

    def observe(self, observer: Observer | None) -> None:
        """Report ranges to `observer` from now on."""
        for layer in self.layers.values():
            layer.observer = observer

    def styles(self, s: Tensor) -> dict[str, tuple[Tensor, Tensor | None]]:
        """What each layer multiplies by: (its style, None), or (its style over the peak, the peak [N,1])."""
        widths = [layer.channels for layer in self.generator.style_layers]
        plain = s.split(widths, 1)
        if self.peaks is None:
            return {name: (part, None) for name, part in zip(self.names, plain, strict=True)}
        units, peaks = self.peaks(s)
        unit = units.split(widths, 1)
        return {
            name: (unit[i], peaks[:, i : i + 1]) if self.layers[key(name)].normalise else (plain[i], None)
            for i, name in enumerate(self.names)
        }

    def states(self, s: Tensor, start: str | None = None, state: State | None = None) -> tuple[States, Tensor]:
        """({conv layer: the features and the RGB skip that enter it}, image).

        The features are as stored: in the dtype of the layer that made them, divided by its scale. The RGB skip is
        float32 at the resolution of the block below; None for the first block. With `start` and the `state` that
        enters that layer, what lies below is left out.
        """
        styles, states = self.styles(s), {}
        x, rgb = state or (self.const.expand(s.shape[0], -1, -1, -1), None)
        for name in self.names[self.names.index(start) if start else 0 :]:
            block, part = name.split(".")
            if part == "torgb":
                skip = self.layers[key(name)](x, *styles[name])
                rgb = skip if rgb is None else skip + self.ups[block](rgb)
            else:
                states[name] = (x, rgb)
                x = self.layers[key(name)](x, *styles[name])
        return states, cast(Tensor, rgb)

    def forward(self, s: Tensor) -> Tensor:
        """s [N,S] -> image [N,3,R,R] in -1..1, not clamped."""
        return self.states(s)[1]


def key(name: str) -> str:
    """A layer's name as a ModuleDict key."""
    return name.replace(".", "_")


def scale_for(peak: float, target: float = 2048.0) -> float:
    """The power of two that brings a measured max |x| to `target` or under; 1 where it already is."""
    return 1.0 if peak <= target else 2.0 ** math.ceil(math.log2(peak / target))
