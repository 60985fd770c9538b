"""The layers above a moved channel, compiled by OpenVINO: the same folded weights, kernels nearer to a CPU's speed.

Everything that multiplies is folded into the weights (`directions_render.FoldedLayer`), so that a layer is one
convolution with a bias, the noise, and the activation. Compiling them takes a second or two at 1024 px and is done once
for an image and a block of channels, whose pictures take minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...engines.openvino import compiled_constants, library
from ...engines.openvino_forms import convolution_3x3, upsampling_3x3

if TYPE_CHECKING:
    from .directions_render import Folded, FoldedLayer
    from .networks.stylegan2 import Generator

SMALLEST = 256
"""Pixels of the generator from which compiling for every image and block pays."""
Rgbs = Callable[[Tensor], list[tuple[int, Tensor]]]


def usable(generator: Generator) -> bool:
    """Whether pictures of this generator are rendered by OpenVINO: large, on the CPU, and the extra is installed."""
    here = next(generator.parameters()).device.type == "cpu"
    return here and generator.config.resolution >= SMALLEST and find_spec("openvino") is not None


def compiled(above: Sequence[Folded], shape: Sequence[int]) -> Rgbs:
    """A function from features of `shape` [N,C,r,r] to (resolution, what toRGB adds [N,3,r',r']) for every toRGB."""
    ops: Any = library().opset13
    x = inputs = ops.parameter(list(shape), np.float32)
    results, resolutions = [], []
    for resolution, folded in above:
        if folded.is_rgb:
            results.append(ops.result(_rgb(x, folded, ops)))
            resolutions.append(resolution)
        else:
            x = _features(x, folded, ops)
    request = compiled_constants(library().Model(results, [inputs]), torch.get_num_threads())

    def run(features: Tensor) -> list[tuple[int, Tensor]]:
        found = request.infer([features.contiguous().numpy()], share_inputs=True)
        return list(zip(resolutions, (torch.from_numpy(found[i].copy()) for i in range(len(resolutions))), strict=True))

    return run


def _numbers(tensor: Tensor) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(tensor.detach().float().numpy())


def _rgb(x: Any, folded: FoldedLayer, ops: Any) -> Any:
    y = ops.convolution(x, ops.constant(_numbers(folded.weight)), [1, 1], [0, 0], [0, 0], [1, 1])
    return _clamped(ops.add(y, ops.constant(_numbers(folded.bias[None, :, None, None]))), folded, ops)


def _features(x: Any, folded: FoldedLayer, ops: Any) -> Any:
    weight = _numbers(folded.weight)
    if folded.fir is None:
        y = convolution_3x3(x, weight, ops)
    else:
        y = upsampling_3x3(x, weight, ops.constant(_numbers(folded.fir[:, None])), ops)
    y = ops.add(y, ops.constant(_numbers(folded.bias[None, :, None, None])))
    if folded.noise is not None:
        y = ops.add(y, ops.constant(_numbers(folded.noise[None, None])))
    return _clamped(ops.prelu(y, ops.constant(np.array([0.2], np.float32))), folded, ops)


def _clamped(y: Any, folded: FoldedLayer, ops: Any) -> Any:
    limit = folded.layer.clamp
    return y if limit is None else ops.clamp(y, -float(limit), float(limit))
