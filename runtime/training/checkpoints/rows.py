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


@dataclass(frozen=True)
class Row:
    """Source keys that match `pattern` (whole) go to `target` (a template for `re.Match.expand`; None: left out).

    `transform` maps the array to the form of the pack.
    """

    pattern: str
    target: str | None
    transform: Callable[[Array], Array] | None = None


@dataclass(frozen=True)
class Imported:
    """A component read from a public checkpoint, ready for `PackWriter.add`.

    component: its name in the pack. content: float32 tensors by pack name, or the bytes of a file (tokenizer).
    config: as in pack.json. format: what the file was recognised as. licence: of the weights, "unknown" where the file
    cannot tell. notes: what the user should know, one sentence each.
    """

    component: str
    content: dict[str, Tensor] | bytes
    config: dict[str, Any]
    format: str
    licence: str = "unknown"
    notes: tuple[str, ...] = field(default_factory=tuple)


def convert(
    source: Mapping[str, Array], rows: Sequence[Row], expected: Mapping[str, tuple[int, ...]], what: str
) -> dict[str, Tensor]:
    """Tensors of the pack, float32, from a checkpoint's arrays.

    The first row that matches a key decides. Raises PackError that lists, at once, every source key that no row
    accounts for, two keys with one target, every expected name that nothing fills, every other shape, and values that
    are not finite. `what` names the checkpoint in the message.
    """
    result: dict[str, Tensor] = {}
    problems: dict[str, list[str]] = {}

    def report(kind: str, text: str) -> None:
        problems.setdefault(kind, []).append(text)

    for key, array in source.items():
        row, match = _row_for(key, rows)
        if row is None or match is None:
            report("not accounted for", f"{key} {list(np.shape(array))}")
            continue
        if row.target is None:
            continue
        name = match.expand(row.target)
        if name not in expected or name in result:
            report("filled twice" if name in result else "no place for", f"{key} {list(np.shape(array))}")
            continue
        try:
            value = row.transform(array) if row.transform else array
        except (ValueError, IndexError, TypeError):
            report("wrong shape", f"{key} is {list(np.shape(array))}")
            continue
        if tuple(value.shape) != tuple(expected[name]):
            report(
                "wrong shape", f"{key} is {list(np.shape(array))}, which does not give {name} {list(expected[name])}"
            )
        elif not np.issubdtype(value.dtype, np.number) or not np.isfinite(value).all():
            report("not finite", key)
        result[name] = torch.from_numpy(np.array(value, dtype=np.float32))  # a copy: the source may be a memory map
    missing = sorted(set(expected) - set(result))
    if missing:
        problems["missing"] = missing
    if problems:
        raise PackError(f"{what} does not fit. " + "; ".join(f"{kind}: {_short(v)}" for kind, v in problems.items()))
    return result


def _row_for(key: str, rows: Sequence[Row]) -> tuple[Row | None, re.Match[str] | None]:
    for row in rows:
        match = re.fullmatch(row.pattern, key)
        if match:
            return row, match
    return None, None


def _short(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
