"""A small graph in the form of an export by which a library of kernels proves itself, and its feeds.

Two layers of a synthesis and their RGB: one layer doubles maps of 32 px and the other does not, one weight is float32
and the other float16 with a gain, noise and bias are one constant or two, one RGB is added to that of the size below.
Two plain convolutions of an odd map: one of stride 1 with a gain and a slope by channel, one of stride 2 with a bias.
"""

from __future__ import annotations

import struct
from functools import lru_cache

import numpy as np

from .onnx_graph import FLOAT, FLOAT16, INT64, message_field
from .onnx_wire import varint

SIDE, CHANNELS = 32, 8
STYLES = ("s0", "s1", "s2", "s3")
OUTPUTS = ("rgb0", "rgb1")
PHOTO, FEATURES = (3, 61, 63), (128, 31, 32)
"""Of the plain convolutions: what they read, and what they make, for which a kernel of ours pays."""
_CODES = {"float32": FLOAT, "int64": INT64, "float16": FLOAT16}
_FIR = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 16


def feeds(batch: int) -> dict[str, np.ndarray]:
    """x [N,8,32,32], rgb [N,3,32,32], photo [N,3,61,63], styles s0 to s3 [N,8] around 1; the same in every call."""
    rng = np.random.default_rng(batch)
    arrays = {name: 1 + 0.2 * rng.standard_normal((batch, CHANNELS)) for name in STYLES}
    arrays |= {
        "x": rng.standard_normal((batch, CHANNELS, SIDE, SIDE)),
        "rgb": rng.standard_normal((batch, 3, SIDE, SIDE)),
        "photo": rng.standard_normal((batch, *PHOTO)),
    }
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
        _node("LeakyRelu", ("z" + n,), "y" + n, alpha=0.2),
    ]


def _rgb(number: int, x: str, output: str) -> list[bytes]:
    """A 1x1 convolution of x * s to three channels."""
    n, s = str(number), f"s{number}"
    return [
        _node("Unsqueeze", (s, "axes"), "u" + n),
        _node("Mul", (x, "u" + n), "m" + n),
        _node("Conv", ("m" + n, "w" + n, "bias" + n), output, kernel_shape=(1, 1)),
    ]


def _plain() -> tuple[list[bytes], dict[str, np.ndarray]]:
    """features = leaky_relu(conv(prelu(conv(photo)))), the second of stride 2, and their constants."""
    rng, c = np.random.default_rng(1), FEATURES[0]
    nodes = [
        _node("Cast", ("w4.f16",), "w4.f32", to=FLOAT),
        _node("Mul", ("w4.f32", "w4.gain"), "w4"),
        _node("Conv", ("photo", "w4"), "c4", pads=(1, 1, 1, 1), kernel_shape=(3, 3)),
        _node("PRelu", ("c4", "slope4"), "y4"),
        _node("Conv", ("y4", "w5", "bias5"), "c5", pads=(1, 1, 1, 1), strides=(2, 2), kernel_shape=(3, 3)),
        _node("LeakyRelu", ("c5",), "features", alpha=0.1),
    ]
    tensors: dict[str, np.ndarray] = {
        "w4.f16": rng.standard_normal((c, PHOTO[0], 3, 3)).astype(np.float16),
        "w4.gain": rng.uniform(0.1, 0.3, (c, 1, 1, 1)).astype(np.float32),
        "slope4": rng.uniform(-0.5, 1.5, (c, 1, 1)).astype(np.float32),
        "w5": rng.standard_normal((c, c, 3, 3)).astype(np.float32) / 32,
        "bias5": rng.standard_normal(c).astype(np.float32),
    }
    return nodes, tensors


@lru_cache(maxsize=1)
def graph() -> bytes:
    """The ONNX file, opset 18: x, rgb, photo, s0 to s3 -> rgb0 and rgb1 [N,3,64,64], features [N,128,31,32]."""
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
        "w2": rng.standard_normal((3, c, 1, 1)).astype(np.float32) / 3,
        "bias2": rng.standard_normal(3).astype(np.float32),
        "w3": rng.standard_normal((3, c, 1, 1)).astype(np.float32) / 3,
        "bias3": rng.standard_normal(3).astype(np.float32),
        "fir3": np.broadcast_to(_FIR, (3, 1, 4, 4)).astype(np.float32),
    }
    up = [
        _node("ConvTranspose", ("m0", "w0"), "t0", strides=(2, 2), kernel_shape=(3, 3)),
        _node("Conv", ("t0", "fir"), "c0", pads=(1, 1, 1, 1), kernel_shape=(4, 4), group=c),
    ]
    plain = [_node("Conv", ("m1", "w1"), "c1", pads=(1, 1, 1, 1), kernel_shape=(3, 3))]
    nodes = [
        _node("Cast", ("w1.f16",), "w1.f32", to=FLOAT),
        _node("Mul", ("w1.f32", "w1.gain"), "w1"),
        _node("Add", ("noise", "bias"), "offset1"),
        *_layer(0, "x", up, "offset"),
        *_layer(1, "y0", plain, "offset1"),
        *_rgb(2, "y0", OUTPUTS[0]),
        *_rgb(3, "y1", "c3"),
        _node("ConvTranspose", ("rgb", "fir3"), "t3", group=3, strides=(2, 2), pads=(1, 1, 1, 1), kernel_shape=(4, 4)),
        _node("Add", ("c3", "t3"), OUTPUTS[1]),
    ]
    others, constants = _plain()
    nodes, tensors = nodes + others, tensors | constants
    inputs: dict[str, tuple[int | str, ...]] = {"x": ("N", c, SIDE, SIDE), "rgb": ("N", 3, SIDE, SIDE)}
    inputs |= {"photo": ("N", *PHOTO)}
    inputs |= dict.fromkeys(STYLES, ("N", c))
    outputs = {**dict.fromkeys(OUTPUTS, ("N", 3, double, double)), "features": ("N", *FEATURES)}
    parts = [_field(1, node) for node in nodes]
    parts += [_field(2, "trial"), *(_field(5, _tensor(name, np.asarray(a))) for name, a in tensors.items())]
    parts += [_field(11, _port(name, shape)) for name, shape in inputs.items()]
    parts += [_field(12, _port(name, shape)) for name, shape in outputs.items()]
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
    return _field(1, name) + varint(2 << 3 | 5) + struct.pack("<f", value) + _field(20, 1)


def _tensor(name: str, array: np.ndarray) -> bytes:
    dims = b"".join(_field(1, size) for size in array.shape)
    return dims + _field(2, _CODES[array.dtype.name]) + _field(8, name) + _field(9, array.tobytes())


def _port(name: str, shape: tuple[int | str, ...]) -> bytes:
    dims = b"".join(_field(1, _field(2 if isinstance(size, str) else 1, size)) for size in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, FLOAT) + _field(2, dims)))


def _field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return message_field(number, value.encode() if isinstance(value, str) else value)
