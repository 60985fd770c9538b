"""Importers as tables: rows of (pattern, target, transform) carry a source's arrays into a pack, all accounted for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....engines.errors import PackError

Array = NDArray[Any]
SHOWN = 12  # mismatches listed by name; the rest are counted
LONG = 200  # characters of a mismatch; a hostile key may have any number


@dataclass(frozen=True)
class Row:
    """Source keys that match `pattern` (whole) go to `target` (a template for `re.Match.expand`; None: left out).

    `transform` maps the array to the form of the pack; for an array that is left out it is only a check. It raises
    ValueError, IndexError or TypeError where the array cannot be used; the text of a `Mismatch` reaches the user.
    """

    pattern: str
    target: str | None
    transform: Callable[[Array], Array] | None = None


@dataclass(frozen=True)
class Imported:
    """A component read from a public checkpoint, ready for `PackWriter.add`.

    component: its name in the pack. content: float32 tensors by pack name, or the bytes of a file (tokenizer).
    config: as in pack.json. format: what the file was recognised as. licence: of the weights, "unknown" where the file
    cannot tell. notes: what the user should know, one sentence each. origin: {"file", "sha256", "bytes", "name"} where
    the importer itself fetched the file.
    """

    component: str
    content: dict[str, Tensor] | bytes
    config: dict[str, Any]
    format: str
    licence: str = "unknown"
    notes: tuple[str, ...] = field(default_factory=tuple)
    origin: Mapping[str, Any] = field(default_factory=dict)


class Mismatch(ValueError):
    """Why a transform cannot use an array, in words for the user."""


def convert(
    source: Mapping[str, Array], rows: Sequence[Row], expected: Mapping[str, tuple[int, ...]], what: str
) -> dict[str, Tensor]:
    """Tensors of the pack, float32, from a checkpoint's arrays.

    The first row that matches a key decides. Raises PackError that lists, at once, every source key that no row
    accounts for, two keys with one target, every expected name that nothing fills, every other shape, every array that
    a transform cannot use, and values that are not finite. `what` names the checkpoint in the message.
    """
    conversion = _Conversion(expected)
    for key, array in source.items():
        conversion.take(key, array, *_row_for(key, rows))
    problems = conversion.problems
    missing = sorted(expected.keys() - conversion.result.keys() - conversion.spoilt)
    if missing:
        problems["missing"] = missing
    if problems:
        raise PackError(f"{what} does not fit. " + "; ".join(f"{kind}: {_short(v)}" for kind, v in problems.items()))
    return conversion.result


class _Conversion:
    """Collects tensors, and what is wrong by kind; `spoilt` are names whose array was there and could not be used."""

    def __init__(self, expected: Mapping[str, tuple[int, ...]]):
        self.expected = expected
        self.result: dict[str, Tensor] = {}
        self.spoilt: set[str] = set()
        self.problems: dict[str, list[str]] = {}

    def take(self, key: str, array: Array, row: Row | None, match: re.Match[str] | None) -> None:
        """Places one array of the source, or notes why it has no place."""
        shape = list(np.shape(array))
        if row is None or match is None:
            return self._report("not accounted for", f"{key} {shape}")
        name = None if row.target is None else match.expand(row.target)
        if name is not None and (name not in self.expected or name in self.result):
            return self._report("filled twice" if name in self.result else "no place for", f"{key} {shape}")
        try:
            value = row.transform(array) if row.transform else array
        except (ValueError, IndexError, TypeError) as error:
            self.spoilt.add(name or "")
            reason = f"{key} {error}" if isinstance(error, Mismatch) else f"{key} is {shape}"
            return self._report("cannot be used" if isinstance(error, Mismatch) else "wrong shape", reason)
        if name is not None:
            self._place(key, name, value, shape)
        return None

    def _place(self, key: str, name: str, value: Array, shape: list[int]) -> None:
        want = list(self.expected[name])
        if list(value.shape) != want:
            self.spoilt.add(name)
            return self._report("wrong shape", f"{key} is {shape}, which does not give {name} {want}")
        with np.errstate(over="ignore", invalid="ignore"):  # a float64 beyond float32 is found below, as infinity
            numbers = value.dtype.kind in "fiub"
            copied = np.array(value, dtype=np.float32) if numbers else None  # a copy: the source may be a memory map
        if copied is None or not np.isfinite(copied).all():
            self._report("not finite", key)
        if copied is not None:
            self.result[name] = torch.from_numpy(copied)
        return None

    def _report(self, kind: str, text: str) -> None:
        self.problems.setdefault(kind, []).append(text)


def targets(source: Mapping[str, Array], rows: Sequence[Row]) -> set[str]:
    """The names that the rows give to the keys of a source."""
    found = (_row_for(key, rows) for key in source)
    return {match.expand(row.target) for row, match in found if row and match and row.target is not None}


def _row_for(key: str, rows: Sequence[Row]) -> tuple[Row | None, re.Match[str] | None]:
    for row in rows:
        match = re.fullmatch(row.pattern, key)
        if match:
            return row, match
    return None, None


def _short(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(name if len(name) <= LONG else name[:LONG] + "..." for name in names[:SHOWN]) + more
