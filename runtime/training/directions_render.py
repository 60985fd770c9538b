"""Pictures of single moved style channels, as large as CLIP sees them and no larger, without an approximation.

The layer l of the channel c reads x with the style s. Four identities make a picture cheap; each holds within rounding:

1. What lies below l does not depend on the channel: x, and the RGB of the layers below, are computed once an image.
2. Only one channel of the style moves, and a convolution is linear:  conv(x * s', W) = conv(x * s, W) + (s'_c - s_c) *
   conv(x_c, W_c). The second term reads one channel, and serves both signs; the squares under the root of the
   demodulation change by (s'_c^2 - s_c^2) * sum_k W_c^2.
3. Above l all pictures of an image have the same styles, so modulation, demodulation, gains and bias are folded into
   one set of weights an image, and a layer is one plain convolution.
4. The RGB skip, its up-sampling and CLIP's resize are linear and separable: the picture at CLIP's size is
   sum_r A_r T_r A_r^T, with T_r the output of the toRGB layer at r pixels and A_r a [size, r] matrix. The picture at
   full size is never made, and a channel of toRGB moves one term alone: nothing above it is computed.

What is left is the convolutions above l, at their full size: the activations between them are not linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import directions_engine, directions_kernels
from .directions_engine import Rgbs
from .directions_kernels import EPS, SMALLEST_MAP, KernelLayer, KernelNetwork
from .networks.clip import area_matrix
from .networks.stylegan2 import SQRT2, Generator, Layer, ToRGB, fir_kernel

CPU_PIXELS, GPU_PIXELS = 16 * 64 * 64, 1 << 25
"""Pixels of the generator's pictures in one batch. On a CPU larger batches leave its cache (1.5 times slower)."""
WIDE = 256
"""Pixels from which a resize is worth its bands."""
Folded = tuple[int, "FoldedLayer"]
Bands = list[tuple[slice, Tensor]]


@dataclass(frozen=True)
class Front:
    """CLIP's picture: its side in pixels, and the resize that makes it (one of `networks.clip.RESIZES`)."""

    size: int
    mode: str = "bicubic"


def resize_matrix(source: int, target: int, mode: str) -> Tensor:
    """[target, source] float32: what `networks.clip.resize_image` does to one line of `source` pixels."""
    if source == target:
        return torch.eye(source)
    if mode == "area":
        return area_matrix(source, target)
    # Each unit line in a map of its own, two pixels wide: maps of one pixel are resized wrongly (torch 2.15, CPU).
    lines = torch.eye(source, dtype=torch.float64)[:, None, :, None].expand(-1, -1, -1, 2).contiguous()
    resized = F.interpolate(lines, (target, 2), mode=mode, align_corners=False, antialias=True)
    return resized[:, 0, :, 0].T.float()


def up_matrix(source: int) -> Tensor:
    """[2 source, source]: the generator's up-sampling of one line, zeros between pixels and the filter [1, 3, 3, 1]."""
    taps = torch.tensor([[[0.25, 0.75, 0.75, 0.25]]])
    return F.conv_transpose1d(torch.eye(source)[:, None], taps, stride=2, padding=1)[:, 0].T


def view_matrices(resolutions: Sequence[int], front: Front | None) -> dict[int, Tensor | None]:
    """A_r of every resolution, [size, r]; None is the identity. Without a front-end the size is the generator's own."""
    largest = resolutions[-1]
    whole = front is None or front.size == largest
    a = torch.eye(largest) if front is None else resize_matrix(largest, front.size, front.mode)
    views: dict[int, Tensor | None] = {largest: None if whole else a}
    for r in reversed(resolutions[:-1]):
        a = a @ up_matrix(r)
        views[r] = a
    return views


def bands(a: Tensor) -> Bands:
    """The rows of a matrix in parts, each with the columns that are not zero in it.

    A resize reads a few pixels around each of its own: of a large picture, an eighth of the rows needs an eighth of it.
    """
    found = []
    for part in a.split(-(-len(a) // (8 if a.shape[1] >= WIDE else 1))):
        columns = part.ne(0).any(0).nonzero()[:, 0]
        first, last = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 1)
        found.append((slice(first, last), part[:, first:last].contiguous()))
    return found


def along_rows(a: Bands, x: Tensor) -> Tensor:
    """A x for x [..., r, w]."""
    return torch.cat([part @ x[..., columns, :] for columns, part in a], -2)


class FoldedLayer:
    """A layer for one style: x [N, Ci, r, r] -> [N, Co, r', r'], all that multiplies folded into its weights.

    weight [Co,Ci,k,k], bias [Co], noise [r',r'] or None, fir [Co,1,4,4] of an up-sampling layer, else None.
    """

    def __init__(self, layer: Layer | ToRGB, s: Tensor) -> None:
        """s [Ci]: the style of every picture that comes."""
        weight = layer.weight * layer.gain * s[None, :, None, None]
        self.layer, self.is_rgb = layer, isinstance(layer, ToRGB)
        self.noise: Tensor | None = None
        self.fir: Tensor | None = layer.fir if isinstance(layer, Layer) and layer.up else None
        self.bias = layer.bias
        if isinstance(layer, Layer):
            d = torch.rsqrt(weight.square().sum((1, 2, 3), keepdim=True) + EPS) * SQRT2
            weight, self.bias = weight * d, layer.bias * SQRT2
            if layer.noise_strength != 0:
                self.noise = layer.noise_const * (layer.noise_strength * SQRT2)
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.spread = None if self.fir is None else SpreadConvolution(weight)

    def __call__(self, x: Tensor) -> Tensor:
        """Features, or RGB where the layer is a toRGB."""
        layer = self.layer
        if isinstance(layer, ToRGB):
            return clamped(F.conv2d(x, self.weight, self.bias), layer.clamp)
        if self.spread is not None:
            x = F.conv2d(self.spread(x), self.fir, self.bias, padding=1, groups=len(self.fir))  # type: ignore[arg-type]
        else:
            x = F.conv2d(x, self.weight, self.bias, padding=1)
        if self.noise is not None:
            x.add_(self.noise)
        return clamped(F.leaky_relu_(x, 0.2), layer.clamp)


class SpreadConvolution:
    """conv_transpose2d with stride 2 of a weight [Co, Ci, 3, 3]: x [N, Ci, r, r] -> [N, Co, 2r + 1, 2r + 1].

    On a CPU as four convolutions, one for each phase of an output pixel: even places read the taps 2 and 0, odd ones
    tap 1. The products are the same, and plain convolutions run nearer to the speed of the machine.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.phases = weight, []
        if weight.device.type == "cpu":
            taps = ([2, 0], [1])
            parts = [(p, q, weight[:, :, taps[p]][:, :, :, taps[q]]) for p in (0, 1) for q in (0, 1)]
            self.phases = [(p, q, part.contiguous(memory_format=torch.channels_last)) for p, q, part in parts]

    def __call__(self, x: Tensor) -> Tensor:
        """The convolution."""
        if not self.phases:
            return F.conv_transpose2d(x, self.weight.transpose(0, 1), stride=2)
        shape = (len(x), len(self.weight), 2 * x.shape[2] + 1, 2 * x.shape[3] + 1)
        out = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        for p, q, taps in self.phases:
            out[:, :, p::2, q::2] = F.conv2d(x, taps, padding=(1 - p, 1 - q))
        return out


def clamped(x: Tensor, limit: float | None) -> Tensor:
    """x within -limit .. limit, where the network has a limit."""
    return x if limit is None else x.clamp(-limit, limit)


def six_taps(weight: Tensor) -> Tensor:
    """[Co, G, 3, 3] -> [G, 4 Co, 9]: an up-sampling convolution as four 3x3 ones, one for each phase of a pixel.

    The 3x3 taps and the 4x4 filter fold into 6x6; the phase (p, q) reads the taps p - 2e, e = -1, 0, 1.
    """
    outputs, inputs = weight.shape[:2]
    planes = weight.reshape(outputs * inputs, 1, 3, 3)
    taps = F.conv2d(planes, (fir_kernel() * 4).to(planes)[None, None], padding=3)
    order = torch.tensor([[4, 2, 0], [5, 3, 1]], device=weight.device)
    phases = taps[:, 0][:, order][:, :, :, order]  # [Co*G, 2, 3, 2, 3]
    phases = phases.permute(0, 1, 3, 2, 4).reshape(outputs, inputs, 4, 9)
    return phases.permute(1, 0, 2, 3).flatten(1, 2)


class Opened:
    """The layer of the moved channels for one image: its sums before demodulation, activation and clamp.

    y [C, r, r] is the sum at the image's own style, energy [Co] what stands under the root; `pin` moves them for good.
    """

    def __init__(self, layer: Layer | ToRGB, x: Tensor, s: Tensor) -> None:
        """x [1, Ci, r, r] enters the layer; s [Ci] is its style."""
        self.layer, self.x, self.s = layer, x, s.clone()
        self.weight = layer.weight * layer.gain
        modulated = x * s[None, :, None, None]
        if isinstance(layer, Layer) and layer.up:
            y = F.conv_transpose2d(modulated, self.weight.transpose(0, 1), stride=2)
            self.y = F.conv2d(y, layer.fir, padding=1, groups=len(layer.fir))[0]
        else:
            self.y = F.conv2d(modulated, self.weight, padding=layer.weight.shape[-1] // 2)[0]
        self.squares = self.weight.square().sum((2, 3)).T.double()  # [Ci, Co]
        self.energy = s.double().square() @ self.squares

    def unmoved(self) -> Tensor:
        """What leaves the layer at the image's own style, [1, C, r', r']."""
        return self._leave(self.y[None], self.energy[None])

    def terms(self, channels: Sequence[int]) -> Tensor:
        """What one unit of style in each channel adds to y: [G, C, r', r']."""
        maps = self.x[0, channels]
        weight = self.weight[:, channels]
        if weight.shape[-1] == 1:
            return weight[:, :, 0, 0].T[:, :, None, None] * maps[:, None]
        columns = F.unfold(maps[:, None], 3, padding=1)  # [G, 9, r*r]
        up = isinstance(self.layer, Layer) and self.layer.up
        kernel = six_taps(weight) if up else weight.transpose(0, 1).flatten(2)
        y = (kernel @ columns).unflatten(2, maps.shape[1:])
        return F.pixel_shuffle(y, 2) if up else y

    def moved(self, channels: Sequence[int], values: Tensor, means: Tensor | None = None) -> Tensor:
        """Channels set to values [G, 2], one at a time -> what leaves the layer, [G*2, C, r', r'].

        means [G]: each channel stays at its mean for those after it, as in the published code (see `DirectionRecipe`).
        """
        terms, s = self.terms(channels), self.s[list(channels)]
        step, rise = values - s[:, None], values.double().square() - s.double().square()[:, None]
        y, energy = self.y[None], self.energy[None]
        if means is not None:
            y, energy = self._pinned(channels, terms, means)
        y = y[:, None] + step[:, :, None, None, None] * terms[:, None]
        energy = energy[:, None] + rise[:, :, None] * self.squares[list(channels)][:, None]
        return self._leave(y.flatten(0, 1), energy.flatten(0, 1))

    def _pinned(self, channels: Sequence[int], terms: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
        """y and energy before each channel, those before it at their means; the layer keeps the last state."""
        s = self.s[list(channels)]
        moves = (means - s)[:, None, None, None] * terms
        rises = (means.double().square() - s.double().square())[:, None] * self.squares[list(channels)]
        y, energy = self.y + moves.cumsum(0), self.energy + rises.cumsum(0)
        before = torch.cat([self.y[None], y[:-1]]), torch.cat([self.energy[None], energy[:-1]])
        self.y, self.energy = y[-1], energy[-1]
        return before

    def _leave(self, y: Tensor, energy: Tensor) -> Tensor:
        layer = self.layer
        if isinstance(layer, ToRGB):
            return clamped(y + layer.bias[:, None, None], layer.clamp)
        d = (torch.rsqrt(energy.clamp(min=0) + EPS) * SQRT2).to(y.dtype)
        offset = (layer.noise_const * layer.noise_strength + layer.bias[:, None, None]) * SQRT2
        return clamped(F.leaky_relu_(torch.addcmul(offset, y, d[:, :, None, None]), 0.2), layer.clamp)


def best_engine(generator: Generator) -> str:
    """The fastest way to render `generator` here: "kernels", "openvino" or "torch"."""
    if directions_kernels.usable(generator):
        return "kernels"
    return "openvino" if directions_engine.usable(generator) else "torch"


class Renderer:
    """Pictures of one generator for CLIP. `front` None: at full size, for an encoder that resizes by itself.

    render_at: pictures are followed up to the layers of this resolution alone; what those above add to the RGB skip is
    taken from the unmoved image. An approximation, for channels of that resolution and below. None: all layers.
    batch: channels that are rendered together, both signs of each.
    engine: "kernels" for every other layer than the moved one, "openvino" for those above it, or "torch"; None: the
    first of these that is usable.
    """

    def __init__(
        self,
        generator: Generator,
        front: Front | None = None,
        render_at: int | None = None,
        engine: str | None = None,
    ) -> None:
        self.generator, self.layers, self.render_at = generator, generator.style_layers, render_at
        self.engine = engine or best_engine(generator)
        self.network = KernelNetwork(generator) if self.engine == "kernels" else None
        self.resolutions = [int(layer.name.split(".")[0][1:]) for layer in self.layers]
        views = view_matrices(generator.config.resolutions, front)
        home = next(generator.parameters()).device
        self.views = {r: None if a is None else bands(a.to(home)) for r, a in views.items()}
        self.largest = generator.config.resolution
        pixels = CPU_PIXELS if home.type == "cpu" else GPU_PIXELS
        self.batch = max(1, pixels // (2 * self.largest**2))

    def kernel(self, index: int, s: Tensor) -> KernelLayer | None:
        """The style layer `index` at the style s [Ci] by our own kernels, where they render it."""
        if self.network is None or self.network.sides[index] < SMALLEST_MAP:
            return None
        return self.network.layer(index, s)

    def look(self, rgb: Tensor, resolution: int) -> Tensor:
        """The share of a toRGB output [N, 3, r, r] in the picture that CLIP sees, [N, 3, size, size]."""
        a = self.views[resolution]
        return rgb if a is None else along_rows(a, along_rows(a, rgb).mT).mT

    def open(self, s: Tensor, index: int) -> OpenedImage:
        """The image of styles s [S], rendered up to the style layer `index`."""
        return OpenedImage(self, s, index)


class OpenedImage:
    """One image opened at a layer: single channels of it are moved, and what lies below is never computed again."""

    def __init__(self, renderer: Renderer, s: Tensor, index: int) -> None:
        self.renderer = renderer
        styles = s.split([layer.channels for layer in renderer.layers])
        modules = [renderer.generator.layer(layer.name) for layer in renderer.layers]
        first = next(iter(renderer.generator.blocks.values()))
        x: Tensor = first.const[None].contiguous(memory_format=torch.channels_last)  # type: ignore[operator]
        self.below: Tensor | float = 0.0  # what the toRGB layers below add to the picture
        for i in range(index):
            kernel = renderer.kernel(i, styles[i])
            y = kernel(x) if kernel else modules[i](x, styles[i][None])
            if isinstance(modules[i], ToRGB):
                self.below = self.below + renderer.look(y, renderer.resolutions[i])
            else:
                x = y
        rest = range(index + 1, len(modules))
        self.resolution = renderer.resolutions[index]
        self.above: list[tuple[int, FoldedLayer | KernelLayer]] = [
            (renderer.resolutions[i], renderer.kernel(i, styles[i]) or FoldedLayer(modules[i], styles[i])) for i in rest
        ]
        self.layer = Opened(modules[index], x.clone() if renderer.network else x, styles[index])  # x may be overwritten
        self.compiled: tuple[tuple[int, ...], Rgbs] | None = None
        if isinstance(modules[index], ToRGB):  # its channels change nothing above: that is rendered once
            self.below, self.above = self.below + self._sum(self._rgbs(x)), []
        elif renderer.render_at is not None and self.resolution <= renderer.render_at:
            unmoved = self._rgbs(self.layer.unmoved())
            self.below = self.below + self._sum([(r, rgb) for r, rgb in unmoved if r > renderer.render_at])
            self.above = [(r, layer) for r, layer in self.above if r <= renderer.render_at]

    def pictures(self, channels: Sequence[int], values: Tensor, means: Tensor | None = None) -> Tensor:
        """Channels (numbered within the layer) set to values [G, 2] -> [G, 2, 3, size, size] in -1..1, not clipped."""
        y = self.layer.moved(channels, values, means)
        if isinstance(self.layer.layer, ToRGB):
            picture = self.below + self.renderer.look(y, self.resolution)
        else:
            picture = self.below + self._sum(self._run(y))
        return picture.unflatten(0, (len(channels), 2))

    def _run(self, x: Tensor) -> list[tuple[int, Tensor]]:
        """What every toRGB above adds to the skip of moved features x, by the renderer's engine."""
        if self.renderer.engine == "kernels":
            return self._rgbs(x)
        if self.renderer.engine == "torch" or not self.above:
            return self._rgbs(x.contiguous(memory_format=torch.channels_last))
        if self.compiled is None or self.compiled[0] != tuple(x.shape):
            folded = [(r, layer) for r, layer in self.above if isinstance(layer, FoldedLayer)]  # without kernels, all
            self.compiled = tuple(x.shape), directions_engine.compiled(folded, x.shape)
        return self.compiled[1](x)

    def _rgbs(self, x: Tensor) -> list[tuple[int, Tensor]]:
        """The same layer by layer."""
        found, colours = [], None
        for place, (resolution, layer) in enumerate(self.above):
            after = self.above[place + 1][1] if place + 1 < len(self.above) else None
            if layer.is_rgb:
                found.append((resolution, layer(x) if colours is None else colours))
                colours = None
            elif isinstance(layer, KernelLayer) and layer.shows(after):
                features, colours = layer.with_colours(x, after, keep=place + 2 < len(self.above))
                x = x if features is None else features
            else:
                x = layer(x)
        return found

    def _sum(self, rgbs: Sequence[tuple[int, Tensor]]) -> Tensor | float:
        """What RGB of several resolutions adds to the picture that CLIP sees."""
        return sum((self.renderer.look(rgb, resolution) for resolution, rgb in rgbs), start=0.0)
