"""What a graph takes and gives: names, dtypes and shapes, and the one check of feeds before every run.

A shape mixes integers and names: `("N", 3, 64, 64)` is any batch of 64 px RGB images. A name stands for one size
throughout a call, so two inputs with `"N"` must carry the same batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import InputError

DTYPES = ("float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "uint16", "bool")
# Finite-ness is worth checking where a bad number comes from (latents, directions, small images) and costs under
# 0.1 ms; a batch of large images would pay milliseconds for it.
FINITE_CHECK_MAX_SIZE = 1 << 16


@dataclass(frozen=True)
class TensorSpec:
    """Name, numpy dtype name and shape of one input or output; a `str` in the shape is a free dimension."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {describe(self.dtype, self.shape)}"

    def as_json(self) -> dict[str, Any]:
        """The row of `bundle.json`: `{"name": "w", "dtype": "float32", "shape": ["N", 10, 128]}`."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}


@dataclass(frozen=True)
class GraphSpec:
    """Inputs and outputs of one graph, in the order of the file."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __str__(self) -> str:
        return f"{self.name}: {', '.join(map(str, self.inputs))} -> {', '.join(map(str, self.outputs))}"


def describe(dtype: object, shape: tuple[int | str, ...]) -> str:
    """`float32 [N, 3, 64, 64]`, the one way this package writes a tensor type."""
    return f"{dtype} [{', '.join(map(str, shape))}]"


def check_feeds(spec: GraphSpec, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The feeds as C-contiguous native arrays in the order of `spec.inputs`; copies only what is not so already.

    Raises:
        InputError: a name is missing or unknown, a dtype or shape differs, two inputs disagree on a free dimension,
            a dimension is 0, or a small floating-point input holds NaN or infinity. The message names the tensor.
    """
    _check_names(spec, feeds)
    sizes: dict[str, tuple[int, str]] = {}
    return {tensor.name: _check_tensor(spec.name, tensor, feeds[tensor.name], sizes) for tensor in spec.inputs}


def check_types(spec: GraphSpec, types: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """As `check_feeds`, for (dtype name, shape) of arrays that numpy does not hold; their content is not looked at.

    Raises:
        InputError: as `check_feeds`.
    """
    _check_names(spec, types)
    sizes: dict[str, tuple[int, str]] = {}
    for tensor in spec.inputs:
        where = f"graph {spec.name!r}, input {tensor.name!r}"
        dtype, shape = types[tensor.name]
        if dtype != tensor.dtype:
            came, wanted = describe(dtype, shape), describe(tensor.dtype, tensor.shape)
            raise InputError(f"{where}: got {came}, expected {wanted}; convert it on the device.")
        _check_shape(where, tensor, shape, sizes)


def _check_names(spec: GraphSpec, feeds: Mapping[str, object]) -> None:
    expected = [tensor.name for tensor in spec.inputs]
    missing = [name for name in expected if name not in feeds]
    unknown = [str(name) for name in feeds if name not in expected]
    if missing or unknown:
        faults = [f"{what} {', '.join(names)}" for what, names in (("missing", missing), ("unknown", unknown)) if names]
        wanted = ", ".join(map(str, spec.inputs))
        raise InputError(f"graph {spec.name!r}: {' and '.join(faults)}; its inputs are: {wanted}.")


def _check_tensor(graph: str, tensor: TensorSpec, value: object, sizes: dict[str, tuple[int, str]]) -> np.ndarray:
    where = f"graph {graph!r}, input {tensor.name!r}"
    wanted = describe(tensor.dtype, tensor.shape)
    if not isinstance(value, np.ndarray):
        raise InputError(f"{where}: got {type(value).__name__}, expected a numpy array {wanted}; use numpy.asarray.")
    if value.dtype.name != tensor.dtype:
        came = describe(value.dtype.name, value.shape)
        raise InputError(f"{where}: got {came}, expected {wanted}; convert it with .astype('{tensor.dtype}').")
    _check_shape(where, tensor, value.shape, sizes)
    array = np.ascontiguousarray(value, dtype=tensor.dtype)
    if array.dtype.kind == "f" and array.size <= FINITE_CHECK_MAX_SIZE and not np.isfinite(array).all():
        raise InputError(f"{where}: holds NaN or infinity; check the step that made it.")
    return array


def _check_shape(where: str, tensor: TensorSpec, shape: tuple[int, ...], sizes: dict[str, tuple[int, str]]) -> None:
    came, wanted = describe(tensor.dtype, shape), describe(tensor.dtype, tensor.shape)
    if len(shape) != len(tensor.shape) or any(
        isinstance(want, int) and size != want for size, want in zip(shape, tensor.shape, strict=True)
    ):
        raise InputError(f"{where}: got {came}, expected {wanted}; reshape it, the batch dimension included.")
    for size, want in zip(shape, tensor.shape, strict=True):
        if size == 0:
            raise InputError(f"{where}: got {came}, an empty array; give at least one item, as in {wanted}.")
        if isinstance(want, str):
            known, owner = sizes.setdefault(want, (size, tensor.name))
            if size != known:
                raise InputError(
                    f"{where}: {want} is {size}, but {known} in input {owner!r}; give both the same {want}."
                )


def spec_differences(promised: GraphSpec, found: GraphSpec) -> list[str]:
    """One sentence per tensor on which two specs disagree; free dimensions agree with anything, in either spec."""
    faults = []
    for kind, left, right in (
        ("input", promised.inputs, found.inputs),
        ("output", promised.outputs, found.outputs),
    ):
        there = {tensor.name: tensor for tensor in right}
        faults += [f"{kind} {t} is missing" for t in left if t.name not in there]
        promised_names = {tensor.name for tensor in left}
        faults += [f"{kind} {t} is extra" for t in right if t.name not in promised_names]
        pairs = [(t, there[t.name]) for t in left if t.name in there]
        faults += [f"{kind} {a} is {describe(b.dtype, b.shape)}" for a, b in pairs if not _compatible(a, b)]
    return faults


def _compatible(a: TensorSpec, b: TensorSpec) -> bool:
    fits = all(isinstance(x, str) or isinstance(y, str) or x == y for x, y in zip(a.shape, b.shape, strict=False))
    return a.dtype == b.dtype and len(a.shape) == len(b.shape) and fits
