"""The kernels on arrays, against the sums written out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from styleclip_rt.engines import kernel_calls, kernels
from styleclip_rt.engines.errors import EngineUnavailable
from styleclip_rt.engines.kernel_calls import ConvKernel, rgb

Array = np.ndarray[Any, Any]
FIR = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 16
LOPSIDED = np.outer([1, 2, 3, 4], [0.5, -1, 2, 0.25])


def convolution(x: Array, weight: Array) -> Array:
    """x [N, I, h, w], weight [O, I, k, k] -> [N, O, h - k + 1, w - k + 1] in float64."""
    side = weight.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), (side, side), (2, 3))
    return np.einsum("nihwyx,oiyx->nohw", windows, weight.astype(np.float64), optimize=True)


def upsampled(x: Array, weight: Array, fir: Array) -> Array:
    """The transposed convolution of stride 2 by weight [I, O, 3, 3], then fir with a border of 1."""
    n, _, h, w = x.shape
    t = np.zeros((n, weight.shape[1], 2 * h + 1, 2 * w + 1))
    for a in range(3):
        for b in range(3):
            t[:, :, a : a + 2 * h : 2, b : b + 2 * w : 2] += np.einsum("nihw,io->nohw", x, weight[:, :, a, b])
    bordered = np.pad(t, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return convolution(bordered.reshape(-1, 1, *bordered.shape[2:]), fir[None, None]).reshape(
        *t.shape[:2], 2 * h, 2 * w
    )


def wanted(x: Array, weight: Array, fir: Array | None, rest: dict[str, Array], gain: float) -> Array:
    """The layer as its equation stands."""
    scaled = x * rest["style"][:, None, None]
    bordered = np.pad(scaled, ((0, 0), (0, 0), (1, 1), (1, 1)))
    y = convolution(bordered, weight) if fir is None else upsampled(scaled, weight, fir)
    y = y * rest["demod"][:, None, None] + gain * (rest["noise"] + rest["bias"][:, None, None])
    return np.where(y > 0, y, 0.2 * y)


SIZES = [(1, 1), (4, 4), (7, 45), (9, 33), (64, 64), (130, 32), (5, 96)]


@pytest.mark.parametrize("fir", [None, FIR, LOPSIDED], ids=["plain", "up", "lopsided"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("threads", [1, 3])
def test_a_layer_is_its_equation(with_kernels: Path, size: tuple[int, int], fir: Array | None, threads: int) -> None:
    """Maps of any size: tiles and units that the border cuts, and those that end at it."""
    draw = np.random.default_rng(0)
    inputs, outputs, scale = 12, 20, 1 if fir is None else 2
    shape = (outputs, inputs, 3, 3) if fir is None else (inputs, outputs, 3, 3)
    weight = draw.standard_normal(shape).astype(np.float32)
    x = draw.standard_normal((2, inputs, *size)).astype(np.float32)
    sizes = {"style": (inputs,), "demod": (outputs,), "noise": (scale * size[0], scale * size[1]), "bias": (outputs,)}
    rest = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in sizes.items()}
    found = ConvKernel(weight, fir)(x, **rest, gain=1.5, threads=threads)
    expected = wanted(x, weight, fir, rest, 1.5)
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_everything_but_the_weight_may_be_left_out(with_kernels: Path) -> None:
    draw = np.random.default_rng(1)
    weight, x = (draw.standard_normal(shape).astype(np.float32) for shape in ((8, 4, 3, 3), (1, 4, 16, 16)))
    y = convolution(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), weight)
    found = ConvKernel(weight)(x)
    assert np.abs(found - np.where(y > 0, y, 0.2 * y)).max() < 1e-5 * np.abs(y).max()
    given = np.empty((1, 8, 16, 16), np.float32)
    assert ConvKernel(weight)(x, out=given) is given
    assert np.array_equal(given, found)


def test_colours(with_kernels: Path) -> None:
    draw = np.random.default_rng(2)
    x, weight, bias = (draw.standard_normal(s).astype(np.float32) for s in ((2, 8, 6, 48), (3, 8), (3,)))
    expected = np.einsum("kc,nchw->nkhw", weight, x) + bias[:, None, None]
    assert np.abs(rgb(x, weight, bias, threads=2) - expected).max() < 1e-5
    assert np.abs(rgb(x, weight) - (expected - bias[:, None, None])).max() < 1e-5


@pytest.mark.parametrize("size", [(2, 16), (6, 48), (10, 272), (64, 64)], ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("outputs", [20, 72])
def test_colours_in_the_pass_of_their_layer(
    with_kernels: Path, size: tuple[int, int], count: int, outputs: int
) -> None:
    """The colours of the features, whether these are wanted or not; more channels than one output transform takes."""
    draw = np.random.default_rng(3)
    shapes = {"style": (12,), "demod": (outputs,), "noise": size, "bias": (outputs,)}
    rest: dict[str, Any] = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    weight, x, colours, bias = (
        draw.standard_normal(shape).astype(np.float32)
        for shape in ((outputs, 12, 3, 3), (count, 12, *size), (3, outputs), (3,))
    )
    layer = ConvKernel(weight)
    features = layer(x, **rest, gain=1.5)
    out = np.full_like(features, np.nan)
    for wanted_bias, wanted_out, threads in ((bias, out, 1), (bias, None, 3), (None, None, 1)):
        expected = np.einsum("kc,nchw->nkhw", colours.astype(np.float64), features)
        expected += 0 if wanted_bias is None else bias[:, None, None]
        found = layer.with_colours(x, colours, wanted_bias, out=wanted_out, **rest, gain=1.5, threads=threads)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    assert np.array_equal(out, features)


@pytest.mark.parametrize("fir", [None, FIR], ids=["plain", "up"])
def test_many_channels_are_added_in_parts(with_kernels: Path, fir: Array | None) -> None:
    draw = np.random.default_rng(4)
    inputs, outputs, scale = 516, 8, 1 if fir is None else 2
    weight = draw.standard_normal((outputs, inputs, 3, 3) if fir is None else (inputs, outputs, 3, 3), np.float32)
    x = draw.standard_normal((1, inputs, 9, 37), np.float32)
    shapes = {"style": (inputs,), "demod": (outputs,), "noise": (scale * 9, scale * 37), "bias": (outputs,)}
    rest = {name: draw.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    expected = wanted(x, weight, fir, rest, 1.5)
    assert np.abs(ConvKernel(weight, fir)(x, **rest, gain=1.5) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("fir", [None, FIR], ids=["plain", "up"])
def test_a_map_that_goes_past_the_cache_is_the_same(with_kernels: Path, fir: Array | None) -> None:
    """From 8 Mi floats on, in lines of the cache; a map that begins between two lines is written as small ones are."""
    draw = np.random.default_rng(5)
    side, scale = (1456, 1) if fir is None else (728, 2)
    layer = ConvKernel(draw.standard_normal((4, 4, 3, 3), np.float32), fir)
    x, bias = draw.standard_normal((1, 4, side, side), np.float32), draw.standard_normal(4, np.float32)
    shape = (1, 4, scale * side, scale * side)
    memory = np.empty(math.prod(shape) + 64, np.float32)
    line = -memory.ctypes.data // 4 % 16
    past, through = (memory[at : at + math.prod(shape)].reshape(shape) for at in (line, line + 1))
    expected = layer(x, bias=bias, out=through).copy()
    assert np.array_equal(layer(x, bias=bias, out=past, threads=2), expected)


def test_what_does_not_fit_is_named(with_kernels: Path) -> None:
    weight, x = np.ones((8, 4, 3, 3), np.float32), np.ones((1, 4, 16, 16), np.float32)
    layer = ConvKernel(weight)
    for name, value in {"style": np.ones(8), "demod": np.ones(4), "noise": np.ones((4, 4)), "bias": np.ones(3)}.items():
        with pytest.raises(ValueError, match=f"{name} is "):
            layer(x, **{name: value})
    with pytest.raises(ValueError, match=r"x is \(1, 8, 16, 16\), expected \(1, 4, 16, 16\)"):
        layer(np.ones((1, 8, 16, 16), np.float32))
    with pytest.raises(ValueError, match="out is float64"):
        layer(x, out=np.ones((1, 8, 16, 16)))
    with pytest.raises(ValueError, match="multiples of 4"):
        ConvKernel(np.ones((6, 4, 3, 3), np.float32))
    with pytest.raises(ValueError, match=r"fir is \(3, 3\)"):
        ConvKernel(weight, np.ones((3, 3)))
    with pytest.raises(ValueError, match="multiple of 16"):
        rgb(np.ones((1, 4, 4, 24), np.float32), np.ones((3, 4), np.float32))
    with pytest.raises(ValueError, match="multiple of 16"):
        layer.with_colours(np.ones((1, 4, 4, 24), np.float32), np.ones((3, 8), np.float32), out=None)
    with pytest.raises(ValueError, match=r"weight is \(3, 4\), expected \(3, 8\)"):
        layer.with_colours(x, np.ones((3, 4), np.float32), out=None)
    with pytest.raises(ValueError, match=r"out is \(1, 4, 16, 16\), expected \(1, 8, 16, 16\)"):
        layer.with_colours(x, np.ones((3, 8), np.float32), out=x)
    with pytest.raises(ValueError, match="doubles the map"):
        ConvKernel(weight, FIR).with_colours(x, np.ones((3, 8), np.float32), out=None)


def test_a_filter_that_is_no_outer_product_is_refused(with_kernels: Path) -> None:
    fir = FIR.copy()
    fir[0, 0] = 2
    with pytest.raises(ValueError, match="outer product"):
        ConvKernel(np.ones((4, 4, 3, 3), np.float32), fir)


def test_without_the_library_the_command_that_builds_it_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if kernels.unsupported():
        pytest.skip(kernels.unsupported())
    monkeypatch.setenv("STYLECLIP_RT_HOME", str(tmp_path))
    kernel_calls._library.cache_clear()
    with pytest.raises(EngineUnavailable, match=r"not built yet.*styleclip-rt kernels"):
        ConvKernel(np.ones((4, 4, 3, 3), np.float32))
