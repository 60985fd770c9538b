"""The kernels of `cpp/plain_calls.h` on arrays: layers of StyleGAN2 for callers that are no graph.

Only a library that was built on this machine and kept is loaded, see `kernels`. Arrays are float32 in C order.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import numpy as np

from . import kernels
from .errors import EngineError, EngineUnavailable

Array = np.ndarray[Any, Any]
_SIZE, _FLOAT, _POINTER = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


class ConvKernel:
    """A 3x3 convolution with a border of 1, or an up-sampling one, with everything around it fused.

    y = lrelu(demod * conv(x * style) + gain * (noise + bias)), of slope 0.2.
    """

    SLOPE = 0.2

    def __init__(self, weight: Array, fir: Array | None = None) -> None:
        """Transform the weights, once for all runs.

        Args:
            weight: [O, I, 3, 3]; with `fir`, of the transposed convolution of stride 2, [I, O, 3, 3].
            fir: [4, 4], what filters the doubled map (border 1); None for a plain convolution.

        Raises:
            ValueError: shapes do not fit, channels are no multiples of 4, or `fir` is no outer product.
            EngineUnavailable: the library is not built, or cannot run here.
            EngineError: memory cannot be had.
        """
        if weight.ndim != 4 or weight.shape[2:] != (3, 3) or any(c % 4 for c in weight.shape[:2]):
            raise ValueError(f"weight is {weight.shape}, expected [O, I, 3, 3] with multiples of 4 channels")
        if fir is not None and fir.shape != (4, 4):
            raise ValueError(f"fir is {fir.shape}, expected (4, 4)")
        if fir is not None and np.linalg.matrix_rank(fir) > 1:
            raise ValueError("fir is no outer product of two filters, as every FIR of StyleGAN2 is")
        self.scale = 1 if fir is None else 2
        self.outputs, self.inputs = weight.shape[:2] if fir is None else weight.shape[1::-1]
        self._library = _library()
        held = _held(weight, fir)
        self._layer = self._library.styleclip_conv_new(*_pointers(*held), self.inputs, self.outputs)
        if not self._layer:
            raise EngineError("the kernels: no memory for the weights of a layer")

    def __call__(
        self,
        x: Array,
        style: Array | None = None,
        demod: Array | None = None,
        noise: Array | None = None,
        bias: Array | None = None,
        gain: float = 1.0,
        threads: int = 1,
        out: Array | None = None,
    ) -> Array:
        """Run the layer.

        Args:
            x: [N, I, h, w].
            style: [I], demod: [O], bias: [O], noise: [scale h, scale w]; each for all N images, None for none.
            gain: of noise and bias.
            threads: how many.
            out: where the result goes, in its shape; None for fresh memory, whose pages the system must clear.

        Returns:
            [N, O, scale h, scale w].

        Raises:
            ValueError: shapes do not fit.
            EngineError: memory cannot be had.
        """
        n, _, height, width = x.shape
        shape = (n, self.outputs, self.scale * height, self.scale * width)
        y = np.empty(shape, np.float32) if out is None else out
        self._run(x, y, (style, demod, noise, bias, None, None, None), gain, threads)
        return y

    def with_colours(
        self,
        x: Array,
        weight: Array,
        rgb_bias: Array | None = None,
        *,
        out: Array | None,
        style: Array | None = None,
        demod: Array | None = None,
        noise: Array | None = None,
        bias: Array | None = None,
        gain: float = 1.0,
        threads: int = 1,
    ) -> Array:
        """Run a plain layer, and on what it makes, while it is in the cache, the 1x1 convolution of `rgb`.

        Args:
            weight: [3, O]. rgb_bias: [3], None for none.
            out: where the features go, [N, O, h, w]; None where they are not wanted.
            x, style, demod, noise, bias, gain, threads: as for the layer alone; h even, w a multiple of 16.

        Returns:
            rgb [N, 3, h, w].

        Raises:
            ValueError: shapes do not fit, or the layer doubles the map.
            EngineError: memory cannot be had.
        """
        n, _, height, width = x.shape
        if self.scale == 2:
            raise ValueError("a layer that doubles the map has no colours")
        _check_colours((n, self.outputs, height, width), weight, rgb_bias)
        found = np.empty((n, 3, height, width), np.float32)
        self._run(x, out, (style, demod, noise, bias, weight, rgb_bias, found), gain, threads)
        return found

    def _run(self, x: Array, y: Array | None, rest: tuple[Array | None, ...], gain: float, threads: int) -> None:
        n, _, height, width = x.shape
        size = (self.scale * height, self.scale * width)
        wanted: dict[str, tuple[Array | None, tuple[int, ...]]] = {
            "x": (x, (n, self.inputs, height, width)),
            "style": (rest[0], (self.inputs,)),
            "demod": (rest[1], (self.outputs,)),
            "noise": (rest[2], size),
            "bias": (rest[3], (self.outputs,)),
            "out": (y, (n, self.outputs, *size)),
        }
        for name, (array, shape) in wanted.items():
            if array is not None and array.shape != shape:
                raise ValueError(f"{name} is {array.shape}, expected {shape}")
        if y is not None and (y.dtype != np.float32 or not y.flags.c_contiguous):
            raise ValueError(f"out is {y.dtype}, or not in C order; expected float32 in C order")
        held = _held(x, y, *rest)
        px, py, style, demod, noise, bias, *colours = _pointers(*held)
        numbers = _FLOAT(gain), _FLOAT(self.SLOPE)
        layer = (style, demod, noise, bias, *numbers, *colours, threads)
        if self._library.styleclip_conv_run(self._layer, px, py, n, height, width, *layer):
            raise EngineError("the kernels: no memory for a convolution")

    def __del__(self) -> None:
        layer = getattr(self, "_layer", None)
        if layer:
            self._library.styleclip_conv_free(layer)


def rgb(x: Array, weight: Array, bias: Array | None = None, threads: int = 1) -> Array:
    """x [N, C, h, w], weight [3, C] -> [N, 3, h, w], the 1x1 convolution plus bias [3]; h even, w a multiple of 16.

    Raises:
        ValueError: shapes do not fit, or C is no multiple of 4.
        EngineUnavailable: the library is not built, or cannot run here.
        EngineError: memory cannot be had.
    """
    n, channels, height, width = x.shape
    _check_colours(x.shape, weight, bias)
    out = np.empty((n, 3, height, width), np.float32)
    held = _held(x, weight, bias, out)
    if _library().styleclip_rgb_run(*_pointers(*held), n, channels, height, width, threads):
        raise EngineError("the kernels: no memory for an image")
    return out


def _check_colours(shape: tuple[int, ...], weight: Array, bias: Array | None) -> None:
    _, channels, height, width = shape
    if weight.shape != (3, channels) or channels % 4 or (bias is not None and bias.shape != (3,)):
        raise ValueError(f"weight is {weight.shape}, expected (3, {channels}), a multiple of 4; bias (3,) or None")
    if width % 16 or height % 2:
        raise ValueError(f"the map is {height} x {width}, expected an even height and a multiple of 16")


def _held(*arrays: Array | None) -> list[Array | None]:
    """The arrays as the library reads them, kept by the caller while it does."""
    return [None if array is None else np.ascontiguousarray(array, np.float32) for array in arrays]


def _pointers(*arrays: Array | None) -> list[Any]:
    return [None if array is None else array.ctypes.data_as(_POINTER) for array in arrays]


@lru_cache(maxsize=1)
def _library() -> Any:
    """The kept library of this machine.

    Raises:
        EngineUnavailable: it is not built, or cannot run here.
    """
    fault = kernels.fault()
    found = None if fault else kernels.built()
    if found is None:
        mend = kernels.mend(fault)
        raise EngineUnavailable(f"the kernels cannot be used: {fault}" + (f"; run: {mend}" if mend else ""))
    library = ctypes.CDLL(kernels.path_in_memory(found.content))
    library.styleclip_conv_new.restype = _POINTER
    library.styleclip_conv_new.argtypes = [_POINTER, _POINTER, _SIZE, _SIZE]
    library.styleclip_conv_free.argtypes = [_POINTER]
    library.styleclip_conv_free.restype = None
    layer: list[Any] = [*[_POINTER] * 4, _FLOAT, _FLOAT]
    library.styleclip_conv_run.argtypes = [*[_POINTER] * 3, *[_SIZE] * 3, *layer, *[_POINTER] * 3, _SIZE]
    library.styleclip_rgb_run.argtypes = [*[_POINTER] * 4, *[_SIZE] * 5]
    return library
