"""Storages and tensors of torch as numpy views, and numpy's own pickled arrays; every size is checked before use."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...engines.errors import PackError
from .source import Array, Budget

MAX_RANK = 32
# Names of element types as torch's storages and dtypes have them. bfloat16 has no numpy type: it is widened.
ELEMENTS = {
    "Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
    "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "Untyped": "untyped",
}  # fmt: skip
DTYPES = {
    "float32": "<f4", "float": "<f4", "float64": "<f8", "double": "<f8", "float16": "<f2", "half": "<f2",
    "bfloat16": "<u2", "int64": "<i8", "long": "<i8", "int32": "<i4", "int": "<i4", "int16": "<i2", "short": "<i2",
    "int8": "<i1", "uint8": "<u1", "bool": "<u1", "uint16": "<u2", "uint32": "<u4", "uint64": "<u8", "untyped": "<u1",
}  # fmt: skip
NUMPY_CODE = re.compile(r"[<>=|]?(f[248]|[iu][1248]|b1|\?)")


def item_size(element: str) -> int:
    """Bytes of one element of a torch type such as "float32"."""
    return np.dtype(DTYPES[element]).itemsize


def is_count(value: object) -> bool:
    """Whether a value from a file is a plain int, zero or more, that fits 63 bits."""
    return type(value) is int and 0 <= value < 2**63


@dataclass
class Storage:
    """A block of elements. `data` is None until its bytes are found (torch's old format has them at the end)."""

    element: str
    count: int
    data: memoryview | None = None
    swapped: bool = False  # stored big-endian

    def fill(self, data: memoryview, where: str) -> None:
        """Takes its bytes; PackError where there are fewer than it claims."""
        needed = self.count * item_size(self.element)
        if len(data) < needed:
            raise PackError(f"{where} claims {needed} bytes and the file holds {len(data)}; it is cut or hostile")
        self.data = data[:needed]


@dataclass(frozen=True)
class Tensor:
    """A tensor as the file describes it, until `array` makes the view."""

    storage: Storage
    element: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def array(self, budget: Budget) -> Array:
        """The view, read-only; bfloat16, bool and swapped numbers become small copies within the budget."""
        if self.storage.data is None:
            raise PackError("a tensor has no data: the file names its storage and does not hold it")
        dtype = np.dtype(DTYPES[self.element])
        flat = from_buffer(self.storage.data, dtype.newbyteorder(">") if self.storage.swapped else dtype)
        count = math.prod(self.size)
        self._check(len(flat), count)
        if count == 0:
            return frozen(np.zeros(self.size, widened(flat[:0], self.element).dtype))
        steps = tuple(stride * dtype.itemsize for stride in self.stride)
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.size, steps, writeable=False)
        if self.element in ("bfloat16", "bool") or self.storage.swapped:
            budget.copy(4 * count if self.element == "bfloat16" else count * dtype.itemsize)
            view = frozen(widened(view.astype(dtype), self.element))
        return view

    def _check(self, available: int, count: int) -> None:
        last = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        if count and (count > available or last >= available):
            raise PackError(
                f"a tensor of shape {list(self.size)}, strides {list(self.stride)} and offset {self.offset} does not "
                f"fit its storage of {available} values; the file is damaged or hostile"
            )


def make_tensor(storage: Any, element: str | None, offset: Any, size: Any, stride: Any) -> Tensor:
    """A tensor from the values in a file; PackError for anything but counts of equal number."""
    if not isinstance(storage, Storage):
        raise PackError("a tensor is built on something that is not a storage")
    size, stride = (tuple(v) if isinstance(v, list) else v for v in (size, stride))
    if not isinstance(size, tuple) or not isinstance(stride, tuple) or len(size) != len(stride):
        raise PackError("a tensor has no shape and strides of equal length")
    if len(size) > MAX_RANK or not all(map(is_count, (offset, *size, *stride))):
        raise PackError("a tensor has a negative or impossible shape, stride or offset; the file is damaged or hostile")
    element = storage.element if element is None else element
    if element == "untyped" or (storage.element not in ("untyped", element)):
        raise PackError(f"a tensor of {element} is built on a storage of {storage.element}")
    return Tensor(storage, element, offset, size, stride)


def from_buffer(data: memoryview | bytes, dtype: np.dtype[Any]) -> Array:
    """All whole elements of a buffer as a read-only vector; empty buffers included."""
    count = len(data) // dtype.itemsize
    if count == 0:
        return frozen(np.zeros(0, dtype))
    return frozen(np.frombuffer(data, dtype, count))


def frozen(array: Array) -> Array:
    """The array itself, made read-only."""
    array.flags.writeable = False
    return array


def widened(array: Array, element: str) -> Array:
    """bfloat16 (as uint16) to float32, bytes to bool; others unchanged. bfloat16 is the upper half of a float32."""
    if element == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(bool) if element == "bool" else array


@dataclass
class NumpyType:
    """A numpy dtype in the making: only plain numbers are known."""

    code: str

    def with_order(self, state: Any) -> NumpyType:
        """The state that numpy pickles: (version, byte order, and then nothing for plain numbers)."""
        order = state[1] if isinstance(state, tuple) and 8 <= len(state) <= 9 else None
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise PackError("a numpy array has structured or unknown elements; expected plain numbers")
        return NumpyType(order + self.code.lstrip("<>=|"))

    @property
    def dtype(self) -> np.dtype[Any]:
        """As numpy has it."""
        return np.dtype(self.code)


@dataclass
class NumpyArray:
    """A numpy array in the making: `state` is what numpy pickles, (version, shape, dtype, fortran order, bytes)."""

    state: Any = None

    def array(self) -> Array:
        """The view, read-only."""
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            raise PackError("a numpy array has no data, or a state that numpy does not write")
        _, shape, kind, fortran, data = self.state
        data = data.encode("latin-1") if isinstance(data, str) else data
        if not isinstance(kind, NumpyType) or not isinstance(data, bytes | memoryview):
            raise PackError("a numpy array holds objects; expected plain numbers")
        return shaped(data, kind.dtype, shape, bool(fortran), "a numpy array")


def numpy_type(code: Any) -> NumpyType:
    """The dtype of a code such as "f4"; PackError for anything but plain numbers."""
    if not isinstance(code, str) or not NUMPY_CODE.fullmatch(code):
        raise PackError(f"a numpy array has elements {str(code)[:20]!r}; expected plain numbers")
    return NumpyType(code)


def shaped(data: memoryview | bytes, dtype: np.dtype[Any], shape: Any, fortran: bool, what: str) -> Array:
    """A buffer as an array of that shape, read-only; PackError unless the sizes agree exactly."""
    if not isinstance(shape, tuple) or len(shape) > MAX_RANK or not all(map(is_count, shape)):
        raise PackError(f"{what} has no proper shape")
    needed = math.prod(shape) * dtype.itemsize
    if needed != len(data):
        raise PackError(f"{what} of shape {list(shape)} needs {needed} bytes and has {len(data)}; it is cut or damaged")
    return from_buffer(data, dtype).reshape(shape, order="F" if fortran else "C")
