"""A small graph in the form of an export by which a library of kernels proves itself, and its feeds.

Two layers of a synthesis on maps of 32 px: one that doubles them and one that does not, one weight in float32 and one in
float16 with a gain, noise and bias in one constant and in two.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

SIDE, CHANNELS = 32, 8
_FLOAT, _INT64, _HALF = 1, 7, 10
_CODES = {"float32": _FLOAT, "int64": _INT64, "float16": _HALF}
_FIR = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 16


def feeds(batch: int) -> dict[str, np.ndarray]:
    """x [N,8,32,32], styles s0 and s1 [N,8] around 1; the same in every call."""
    rng = np.random.default_rng(batch)
    styles = {name: 1 + 0.2 * rng.standard_normal((batch, CHANNELS)) for name in ("s0", "s1")}
    arrays = {"x": rng.standard_normal((batch, CHANNELS, SIDE, SIDE)), **styles}
    return {name: array.astype(np.float32) for name, array in arrays.items()}


# The graph --------------------------------------------------------------------------------------------------------


def _layer(number: int, x: str, convolved: list[bytes], offset: str) -> list[bytes]:
    """y = leaky_relu(offset * gain + value * convolution(x * s) * d), d = gain / sqrt(s^2 @ square + eps)."""
    n, s = str(number), f"s{number}"
    return [
        _node("Unsqueeze", (s, "axes"), "u" + n),
        _node("Mul", (x, "u" + n), "m" + n),
        *convolved,
        _node("Pow", (s, "two"), "p" + n),
        _node("MatMul", ("p" + n, "square"), "q" + n),
        _node("Add", ("q" + n, "eps"), "e" + n),
        _node("Sqrt", ("e" + n,), "r" + n),
        _node("Reciprocal", ("r" + n,), "i" + n),
        _node("Mul", ("i" + n, "gain"), "g" + n),
        _node("Unsqueeze", ("g" + n, "axes"), "d" + n),
        _node("Mul", (offset, "gain"), "o" + n),
        _node("Mul", ("value", "c" + n), "k" + n),
        _node("Mul", ("k" + n, "d" + n), "l" + n),
        _node("Add", ("o" + n, "l" + n), "z" + n),
        _node("LeakyRelu", ("z" + n,), ("y0", "y")[number], alpha=0.2),
    ]


@lru_cache(maxsize=1)
def graph() -> bytes:
    """The ONNX file, opset 18: x, s0, s1 -> y [N,8,64,64]."""
    rng, c, double = np.random.default_rng(0), CHANNELS, 2 * SIDE
    tensors = {
        "axes": np.array([2, 3], np.int64),
        "two": np.float32(2),
        "eps": np.float32(1e-8),
        "gain": np.float32(2**0.5),
        "value": np.float32(0.9),
        "square": np.abs(rng.standard_normal((c, c))).astype(np.float32) / c,
        "w0": rng.standard_normal((c, c, 3, 3)).astype(np.float32) / 8,
        "fir": np.broadcast_to(_FIR, (c, 1, 4, 4)).astype(np.float32),
        "offset": rng.standard_normal((c, double, double)).astype(np.float32) / 4,
        "w1.f16": rng.standard_normal((c, c, 3, 3)).astype(np.float16),
        "w1.gain": np.float32(1 / 8),
        "noise": rng.standard_normal((double, double)).astype(np.float32) / 4,
        "bias": rng.standard_normal((c, 1, 1)).astype(np.float32),
    }
    up = [
        _node("ConvTranspose", ("m0", "w0"), "t0", strides=(2, 2), kernel_shape=(3, 3)),
        _node("Conv", ("t0", "fir"), "c0", pads=(1, 1, 1, 1), kernel_shape=(4, 4), group=c),
    ]
    plain = [_node("Conv", ("m1", "w1"), "c1", pads=(1, 1, 1, 1), kernel_shape=(3, 3))]
    nodes = [
        _node("Cast", ("w1.f16",), "w1.f32", to=_FLOAT),
        _node("Mul", ("w1.f32", "w1.gain"), "w1"),
        _node("Add", ("noise", "bias"), "offset1"),
        *_layer(0, "x", up, "offset"),
        *_layer(1, "y0", plain, "offset1"),
    ]
    inputs = {"x": ("N", c, SIDE, SIDE), "s0": ("N", c), "s1": ("N", c)}
    parts = [_field(1, node) for node in nodes]
    parts += [_field(2, "trial"), *(_field(5, _tensor(name, np.asarray(a))) for name, a in tensors.items())]
    parts += [_field(11, _port(name, shape)) for name, shape in inputs.items()]
    parts += [_field(12, _port("y", ("N", c, double, double)))]
    return _field(1, 9) + _field(7, b"".join(parts)) + _field(8, _field(1, "") + _field(2, 18))


# Messages of onnx.proto; the numbers of their fields are stable since IR version 3 ----------------------------------


def _node(kind: str, inputs: tuple[str, ...], output: str, **attributes: float | tuple[int, ...]) -> bytes:
    """A NodeProto."""
    values = [_field(1, name) for name in inputs] + [_field(2, output), _field(3, output), _field(4, kind)]
    return b"".join([*values, *(_field(5, _attribute(name, value)) for name, value in attributes.items())])


def _attribute(name: str, value: float | tuple[int, ...]) -> bytes:
    if isinstance(value, tuple):
        return b"".join([_field(1, name), *(_field(8, size) for size in value), _field(20, 7)])
    if isinstance(value, int):
        return _field(1, name) + _field(3, value) + _field(20, 2)
    return _field(1, name) + _varint(2 << 3 | 5) + struct.pack("<f", value) + _field(20, 1)


def _tensor(name: str, array: np.ndarray) -> bytes:
    dims = b"".join(_field(1, size) for size in array.shape)
    return dims + _field(2, _CODES[array.dtype.name]) + _field(8, name) + _field(9, array.tobytes())


def _port(name: str, shape: tuple[int | str, ...]) -> bytes:
    dims = b"".join(_field(1, _field(2 if isinstance(size, str) else 1, size)) for size in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, _FLOAT) + _field(2, dims)))


def _field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    return bytes(_septets(number))


def _septets(number: int) -> Iterator[int]:
    while number > 0x7F:
        yield number & 0x7F | 0x80
        number >>= 7
    yield number
