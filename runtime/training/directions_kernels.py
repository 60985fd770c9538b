"""The layers around a moved channel by our own kernels (`engines.kernels`): weights are transformed once for all.

Style and demodulation come with every image, so that nothing is folded and nothing compiled for an image or a block.
"""

from __future__ import annotations

import math
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from ...engines import kernel_calls, kernels
from .networks.stylegan2 import SQRT2, Generator, Layer, ToRGB

EPS = 1e-8
"""Under the root of the demodulation."""
SMALLEST_MAP = 32
"""Pixels a side of what enters a layer from which the kernels are faster than PyTorch (measured at 512 channels)."""

SMALLEST_SHOWN = 128
"""Pixels a side of features from which their RGB is made in the same pass: smaller maps are shared out by channels."""
LINE = 16
"""Floats in a line of the cache."""


def usable(generator: Generator) -> bool:
    """Whether the kernels can render this generator: on the CPU, in float32, and the library is built."""
    first = next(generator.parameters())
    return first.device.type == "cpu" and first.dtype == torch.float32 and not kernels.fault()


class KernelNetwork:
    """The style layers of a generator with their weights transformed, each when it is first wanted."""

    def __init__(self, generator: Generator) -> None:
        self.modules = [generator.layer(layer.name) for layer in generator.style_layers]
        self.made: dict[int, tuple[kernel_calls.ConvKernel, Tensor]] = {}
        self.memory = Memory()
        up = (isinstance(module, Layer) and module.up for module in self.modules)
        sides = (int(layer.name.split(".")[0][1:]) for layer in generator.style_layers)
        self.sides = [side // 2 if doubled else side for side, doubled in zip(sides, up, strict=True)]

    def layer(self, index: int, s: Tensor) -> KernelLayer:
        """The style layer `index` at the style s [Ci]."""
        module = self.modules[index]
        if isinstance(module, ToRGB):
            return KernelLayer(module, s, self.memory)
        if index not in self.made:
            weight = (module.weight * module.gain).detach()
            squares = weight.square().sum((2, 3)).double()  # [Co, Ci]
            taps, fir = (weight.transpose(0, 1), module.fir[0, 0]) if module.up else (weight, None)
            self.made[index] = kernel_calls.ConvKernel(_numbers(taps), None if fir is None else _numbers(fir)), squares
        return KernelLayer(module, s, self.memory, *self.made[index])


class Memory:
    """Two arrays in turn for the features of one layer after the other: what is written stays for one more layer."""

    def __init__(self) -> None:
        self.arrays = [np.empty(0, np.float32), np.empty(0, np.float32)]

    def next(self, *shape: int) -> np.ndarray[Any, Any]:
        """An array whose values may be anything."""
        self.arrays.reverse()
        size = math.prod(shape)
        if self.arrays[0].size < size:
            spare = np.empty(size + LINE, np.float32)  # NumPy aligns to 16 bytes: half of the vectors span two lines
            self.arrays[0] = spare[-spare.ctypes.data // spare.itemsize % LINE :]
        return self.arrays[0][:size].reshape(shape)


class KernelLayer:
    """A layer at one image's style: x [N, Ci, r, r] -> features, or RGB where it is a toRGB.

    Both lie in C order; r is `SMALLEST_MAP` or more. The features of a layer stand in `Memory`: the next layer but one
    overwrites them.
    """

    def __init__(
        self,
        layer: Layer | ToRGB,
        s: Tensor,
        memory: Memory,
        kernel: kernel_calls.ConvKernel | None = None,
        squares: Tensor | None = None,
    ) -> None:
        self.layer, self.is_rgb, self.memory, self.kernel = layer, isinstance(layer, ToRGB), memory, kernel
        self.bias = _numbers(layer.bias)
        if isinstance(layer, ToRGB):
            self.weight = _numbers((layer.weight * layer.gain)[:, :, 0, 0] * s)
            return
        assert squares is not None
        self.side = layer.noise_const.shape[-1]
        self.constants: dict[str, Any] = {
            "style": _numbers(s),
            "demod": _numbers(torch.rsqrt(squares @ s.double().square() + EPS) * SQRT2),
            "noise": _numbers(layer.noise_const * layer.noise_strength) if layer.noise_strength != 0 else None,
            "bias": self.bias,
            "gain": SQRT2,
        }

    def __call__(self, x: Tensor) -> Tensor:
        """Features [N, Co, r', r'], or RGB [N, 3, r, r]."""
        threads = torch.get_num_threads()
        if self.kernel is not None:
            out = self._features(self.kernel, x)
            found = self.kernel(_numbers(x), out=out, threads=threads, **self.constants)
        else:
            found = kernel_calls.rgb(_numbers(x), self.weight, self.bias, threads)
        return self._clamped(torch.from_numpy(found))

    def shows(self, after: object) -> TypeGuard[KernelLayer]:
        """Whether `with_colours` makes the RGB of `after` too: it is a toRGB, and reads this layer unclamped."""
        if self.kernel is None or self.kernel.scale == 2 or self.layer.clamp is not None:
            return False
        return self.side >= SMALLEST_SHOWN and isinstance(after, KernelLayer) and after.is_rgb

    def with_colours(self, x: Tensor, rgb: KernelLayer, keep: bool) -> tuple[Tensor | None, Tensor]:
        """This layer and the toRGB layer after it in one pass: (features, None unless `keep`; RGB [N, 3, r, r])."""
        assert self.kernel is not None
        out = self._features(self.kernel, x) if keep else None
        threads = torch.get_num_threads()
        found = self.kernel.with_colours(_numbers(x), rgb.weight, rgb.bias, out=out, threads=threads, **self.constants)
        return None if out is None else torch.from_numpy(out), rgb._clamped(torch.from_numpy(found))

    def _features(self, kernel: kernel_calls.ConvKernel, x: Tensor) -> np.ndarray[Any, Any]:
        return self.memory.next(len(x), kernel.outputs, *(kernel.scale * side for side in x.shape[2:]))

    def _clamped(self, y: Tensor) -> Tensor:
        return y if self.layer.clamp is None else y.clamp_(-self.layer.clamp, self.layer.clamp)


def _numbers(tensor: Tensor) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(tensor.detach().float().numpy())
