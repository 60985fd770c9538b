"""What a file of weights is once read: a tree of plain values and arrays, and the limits that hold while it is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...engines.errors import PackError

Array = NDArray[Any]

MAX_DEPTH = 64  # of nested containers; a TorchScript CLIP needs about 20
SHOWN = 12


@dataclass(frozen=True)
class Limits:
    """What a file may cost.

    file_bytes: its size. operations: of a pickle, which bounds the time. nodes: of the tree, shared parts counted at
    each place; small files may have fewer. copied_bytes: memory beyond the memory map (inflated parts, widened
    bfloat16); None: four times the file and 64 MiB. entries: of a zip archive. header_bytes: of a safetensors file.
    """

    file_bytes: int = 8 << 30
    operations: int = 5_000_000
    nodes: int = 1_000_000
    copied_bytes: int | None = None
    entries: int = 100_000
    header_bytes: int = 8 << 20


class Budget:
    """Counts down what `Limits` allow to one file; every overrun is a PackError."""

    def __init__(self, limits: Limits, file_bytes: int):
        self.limits = limits
        self.operations, self.nodes = limits.operations, min(limits.nodes, 10_000 + 4 * file_bytes)
        self.bytes = limits.copied_bytes if limits.copied_bytes is not None else 4 * file_bytes + (64 << 20)

    def operation(self) -> None:
        """One opcode of a pickle."""
        self.operations -= 1
        if self.operations < 0:
            raise PackError(f"it holds more than {self.limits.operations} pickle operations; no checkpoint does")

    def node(self) -> None:
        """One value of the tree."""
        self.nodes -= 1
        if self.nodes < 0:
            raise PackError("it unfolds to more values than a file of its size may; it looks hostile")

    def copy(self, size: int) -> None:
        """`size` bytes of memory outside the memory map, before they are taken."""
        self.bytes -= size
        if self.bytes < 0:
            raise PackError(f"it asks for {size} bytes of memory more than a file of its size may; it looks hostile")


@dataclass(frozen=True)
class Opaque:
    """An object of a class that is not built: the class's name and what the file says its state is."""

    name: str
    state: Any = None


@dataclass(frozen=True)
class Source:
    """A file of weights, read without running anything of it.

    kind: "torch", "torchscript", "nvidia", "tensorflow", "pickle", "safetensors", "npy" or "npz". tree: nested dict,
    list and tuple of read-only arrays (views of the file where it allows), scalars, strings and `Opaque`. bytes: its
    size. metadata: the strings in the header of a safetensors file.
    """

    path: Path
    kind: str
    sha256: str
    bytes: int
    tree: Any
    metadata: Mapping[str, str] = field(default_factory=dict)

    def child(self, *keys: str) -> Any:
        """The value at nested keys of dicts and of objects' states; PackError says what there is instead."""
        value = self.tree
        for key in keys:
            found = members(value)
            if key not in found:
                raise PackError(f"{self.path.name} has no {key!r}; it holds {listed(found) or describe(value)}")
            value = found[key]
        return value

    def has(self, *keys: str) -> bool:
        """Whether there is a value at the nested keys."""
        value = self.tree
        for key in keys:
            found = members(value)
            if key not in found:
                return False
            value = found[key]
        return True


def members(value: Any) -> Mapping[Any, Any]:
    """The named parts of a dict or of an object's state; a module's parameters, buffers and parts are on one level."""
    state = value.state if isinstance(value, Opaque) else value
    if not isinstance(state, dict):
        return {}
    if isinstance(value, Opaque) and isinstance(state.get("_modules"), dict):
        plain = {key: part for key, part in state.items() if key not in ("_parameters", "_buffers", "_modules")}
        for group in ("_parameters", "_buffers", "_modules"):
            if isinstance(state.get(group), dict):
                plain.update(state[group])
        return plain
    return state


def flat_arrays(tree: Any, prefix: str = "") -> dict[str, Array]:
    """{dotted key: array} of every array in a tree; positions in lists count as keys, objects as dicts of their state.

    PackError where two places come to the same key, or where the tree is deeper than any that `read_source` gives.
    """
    result: dict[str, Array] = {}
    for key, array in _walk(tree, prefix, 0):
        if key in result:
            raise PackError(f"two tensors are called {key!r}; expected one")
        result[key] = array
    return result


def _walk(value: Any, key: str, depth: int) -> Iterator[tuple[str, Array]]:
    if depth > 2 * MAX_DEPTH:
        raise PackError("containers are nested too deeply; no checkpoint is")
    if isinstance(value, np.ndarray):
        yield key, value
        return
    items = enumerate(value) if isinstance(value, list | tuple) else members(value).items()
    for name, part in items:
        if isinstance(part, np.ndarray | dict | list | tuple | Opaque):
            yield from _walk(part, f"{key}.{name}" if key else str(name), depth + 1)


def describe(value: Any) -> str:
    """What a value of a tree is, in words for a message."""
    if isinstance(value, np.ndarray):
        return f"an array {list(value.shape)} of {value.dtype.name}"
    if isinstance(value, Opaque):
        return f"an object of {value.name[:80]}"
    if isinstance(value, dict | list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def listed(names: Any) -> str:
    """The first names, in order, and how many more there are."""
    shown = [str(name)[:80] for name in list(names)[:SHOWN]]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(shown) + more
