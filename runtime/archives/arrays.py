"""Containers of bare arrays: .npy, .npz and safetensors, as read-only views of the file. Nothing is ever unpickled."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from ...engines.errors import PackError
from .source import Array, Budget
from .tensors import Storage, Tensor, is_count, shaped
from .zips import Zip

NPY = b"\x93NUMPY"
# What numpy writes of numbers and of plain text; anything else (objects, structures, named fields) is refused.
NPY_HEADER = re.compile(
    r"\{'descr': '([<>|=]?(?:f[248]|[iu][1248]|b1|U\d{1,4}))', 'fortran_order': (True|False), "
    r"'shape': \(((?:\d{1,18}, )*(?:\d{1,18},?)?)\), ?\}\s*"
)
SAFETENSORS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64", "BOOL": "bool",
}  # fmt: skip


def read_npy(data: memoryview) -> Array:
    """The array of a .npy file of plain numbers."""
    if bytes(data[:6]) != NPY or len(data) < 12 or data[6] not in (1, 2, 3):
        raise PackError("it is not a .npy file of version 1, 2 or 3")
    width = 2 if data[6] == 1 else 4
    length = int.from_bytes(data[8 : 8 + width], "little")
    start = 8 + width + length
    if start > len(data) or length > 4096:
        raise PackError(f"its .npy header states {length} bytes; the file is cut, damaged or holds more than numbers")
    match = NPY_HEADER.fullmatch(str(data[8 + width : start], "latin-1"))
    if match is None:
        raise PackError("its .npy header is not that of plain numbers; arrays of objects are pickles, and are refused")
    shape = tuple(int(part) for part in match[3].replace(",", " ").split())
    return shaped(data[start:], np.dtype(match[1]), shape, match[2] == "True", "the array")


def read_npz(archive: Zip) -> dict[str, Array]:
    """The arrays of a .npz file by name."""
    return {name.removesuffix(".npy"): read_npy(archive.read(name)) for name in archive.entries}


def read_safetensors(data: memoryview, budget: Budget) -> tuple[dict[str, Array], dict[str, str]]:
    """The tensors of a safetensors file, and the strings of its metadata."""
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8 or length > budget.limits.header_bytes:
        raise PackError(f"its safetensors header states {length} bytes; the file is cut, or no safetensors file")
    try:
        header = json.loads(bytes(data[8 : 8 + length]))
    except (ValueError, RecursionError):
        raise PackError("its safetensors header is not JSON; the file is damaged") from None
    if not isinstance(header, dict):
        raise PackError("its safetensors header is not an object; the file is damaged")
    notes = header.pop("__metadata__", {})
    body = data[8 + length :]
    _check_cover(header, len(body))
    tree = {}
    for name, row in header.items():
        budget.node()
        tree[name] = _tensor(name, row, body).array(budget)
    return tree, {str(k): str(v) for k, v in notes.items()} if isinstance(notes, dict) else {}


def _check_cover(header: dict[str, Any], size: int) -> None:
    """The tensors must cover the file exactly, without gaps or overlaps, as the format demands."""
    spans = []
    for name, row in header.items():
        span = row.get("data_offsets") if isinstance(row, dict) else None
        if not isinstance(span, list) or len(span) != 2 or not all(map(is_count, span)) or span[0] > span[1]:
            raise PackError(f"{name[:80]!r} has no proper place in the safetensors file; it is damaged")
        spans.append((span[0], span[1]))
    end = 0
    for first, last in sorted(spans):
        if first != end:
            raise PackError("the tensors of the safetensors file overlap or leave gaps; it is damaged or hostile")
        end = last
    if end != size:
        raise PackError(f"the tensors of the safetensors file need {end} bytes and it has {size}; it is cut or damaged")


def _tensor(name: str, row: dict[str, Any], body: memoryview) -> Tensor:
    shape, element = row.get("shape"), SAFETENSORS.get(str(row.get("dtype")))
    if element is None:
        raise PackError(f"{name[:80]!r} has elements {str(row.get('dtype'))[:20]!r}, which are not read")
    if not isinstance(shape, list) or len(shape) > 32 or not all(map(is_count, shape)):
        raise PackError(f"{name[:80]!r} has no proper shape in the safetensors file; it is damaged")
    first, last = row["data_offsets"]
    stride, count = [], 1
    for size in reversed(shape):
        stride.append(count)
        count *= size
    storage = Storage(element, count)
    storage.fill(body[first:last], f"tensor {name[:80]!r}")
    if storage.data is None or len(storage.data) != last - first:
        raise PackError(f"{name[:80]!r} has more bytes than its shape {shape} needs; the file is damaged")
    return Tensor(storage, element, 0, tuple(shape), tuple(reversed(stride)))
