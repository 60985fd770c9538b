"""The layers around a moved channel by our own kernels (`engines.kernels`): weights are transformed once for all.

Style and demodulation come with every image, so that nothing is folded and nothing compiled for an image or a block.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...engines import kernel_calls, kernels
from .networks.stylegan2 import SQRT2, Generator, Layer, ToRGB

EPS = 1e-8
"""Under the root of the demodulation."""
SMALLEST_MAP = 32
"""Pixels a side of what enters a layer from which the kernels are faster than PyTorch (measured at 512 channels)."""


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
        if self.arrays[0].size < math.prod(shape):
            self.arrays[0] = np.empty(math.prod(shape), np.float32)
        return self.arrays[0][: math.prod(shape)].reshape(shape)


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
        self.style = _numbers(s)
        if isinstance(layer, ToRGB):
            self.weight = _numbers((layer.weight * layer.gain)[:, :, 0, 0] * s)
            return
        assert squares is not None
        self.demod = _numbers(torch.rsqrt(squares @ s.double().square() + EPS) * SQRT2)
        self.noise = _numbers(layer.noise_const * layer.noise_strength) if layer.noise_strength != 0 else None

    def __call__(self, x: Tensor) -> Tensor:
        """Features [N, Co, r', r'], or RGB [N, 3, r, r]."""
        threads = torch.get_num_threads()
        if self.kernel is not None:
            size = (self.kernel.scale * side for side in x.shape[2:])
            out = self.memory.next(len(x), self.kernel.outputs, *size)
            constants = self.style, self.demod, self.noise, self.bias, SQRT2
            found = self.kernel(_numbers(x), *constants, threads, out)
        else:
            found = kernel_calls.rgb(_numbers(x), self.weight, self.bias, threads)
        y = torch.from_numpy(found)
        return y if self.layer.clamp is None else y.clamp_(-self.layer.clamp, self.layer.clamp)


def _numbers(tensor: Tensor) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(tensor.detach().float().numpy())
