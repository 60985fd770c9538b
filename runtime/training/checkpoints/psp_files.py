"""What files of the pSp family share: e4e, pSp and StyleCLIP's mappers save {"state_dict", "opts", "latent_avg"}.

Beside its own network each holds the generator that it was trained with (`decoder.*`, rosinality's layout).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ....engines.errors import PackError
from ...archives import Array, Source, flat_arrays, members
from . import generators_rosinality
from .rows import Row

LEFT_OUT = (
    Row(r".*\.num_batches_tracked", None),
    Row(r"decoder\..*", None),
    Row(r"(optimizer|discriminator_state_dict|discriminator_optimizer_state_dict)(\..*)?", None),
    Row(r"(opts\..*|global_step|best_val_loss)", None),
)
"""What such a file may hold beside the network and is not read: the generator, counters, what training resumes from."""


def file_arrays(source: Source) -> dict[str, Array]:
    """All arrays of the file by dotted key; those of `state_dict` under their own names."""
    arrays = {}
    for key, array in flat_arrays(source.tree).items():
        name = key.removeprefix("state_dict.")
        if name in arrays:
            raise PackError(f"{source.path.name}: key {name!r} is there twice, in and beside its state_dict")
        arrays[name] = array
    return arrays


def options(source: Source) -> dict[str, Any] | None:
    """The plain values among the training options (a dict or an argparse.Namespace); None where the file has none."""
    if not source.has("opts"):
        return None
    found = members(source.child("opts")).items()
    return {str(key): value for key, value in found if value is None or isinstance(value, bool | int | float | str)}


def has_key(arrays: Mapping[str, Array], pattern: str) -> bool:
    """Whether a key matches the whole pattern."""
    return any(re.fullmatch(pattern, key) for key in arrays)


def shape_of(arrays: Mapping[str, Array], key: str, what: str, ndim: int) -> tuple[int, ...]:
    """Shape of an array that must be there with `ndim` dimensions, none of them 0; else PackError."""
    if key not in arrays:
        raise PackError(f"{what}: {key} is missing")
    shape = tuple(int(side) for side in arrays[key].shape)
    if len(shape) != ndim or 0 in shape:
        raise PackError(f"{what}: {key} is {list(shape)}; expected {ndim} dimensions")
    return shape


def generator_inside(source: Source) -> dict[str, Array] | None:
    """The arrays of the generator in the file, in rosinality's names without `decoder.`; None where there is none."""
    inside = {
        key.removeprefix("decoder."): array for key, array in file_arrays(source).items() if key.startswith("decoder.")
    }
    return inside or None


@dataclass(frozen=True)
class Difference:
    """How the generator in a file differs from the pack's. serious: the pictures do, not only their finest detail."""

    text: str
    serious: bool

    def __str__(self) -> str:
        return self.text


SAME = 1e-5  # of a tensor's largest value: what a conversion through another project's layout may cost


def compare_generators(inside: Mapping[str, Array], pack_tensors: Mapping[str, Tensor]) -> Difference | None:
    """How the generator inside a file (see `generator_inside`) differs from the pack's tensors; None: not at all.

    Both are read in the pack's names. The mapping network is left aside: mappers and encoders work on w. PackError
    where the arrays inside are no generator.
    """
    config = generators_rosinality.config_of(inside, "the generator inside")
    gaps: dict[str, float] = {}
    for key, name, value in placed(inside, generators_rosinality.rows(config)):
        if name.startswith("mapping."):
            continue
        ours = pack_tensors.get(name)
        if ours is None or tuple(ours.shape) != value.shape:
            sizes = "none" if ours is None else list(ours.shape)
            return Difference(f"its generator is another: {key} is {list(value.shape)}, the pack has {sizes}", True)
        gap = relative_gap(value, ours.numpy())
        if not gap <= SAME:
            gaps[name] = gap
    for serious in (True, False):
        part = {name: gap for name, gap in gaps.items() if name.endswith(("noise_const", "noise_strength")) != serious}
        if part:
            return Difference(describe_gaps(part, serious), serious)
    return None


def placed(arrays: Mapping[str, Array], rows: Sequence[Row]) -> Iterator[tuple[str, str, Array]]:
    """(source key, pack name, array in the pack's form) of every array that a row gives a place."""
    for key, array in arrays.items():
        for row in rows:
            match = re.fullmatch(row.pattern, key)
            if match is None:
                continue
            if row.target is not None:
                try:
                    value = row.transform(array) if row.transform else array
                except (ValueError, IndexError, TypeError):
                    raise PackError(f"the generator inside: {key} is {list(array.shape)}, which is no weight") from None
                yield key, match.expand(row.target), value
            break


def relative_gap(value: Array, ours: Array) -> float:
    """max |a - b| over max |b|; infinite where a value is not finite or no number."""
    if value.dtype.kind not in "fiu":
        return np.inf
    gap = float(np.abs(np.asarray(value, np.float32) - ours).max(initial=0.0))
    return gap / max(float(np.abs(ours).max(initial=0.0)), 1e-12) if np.isfinite(gap) else np.inf


def describe_gaps(gaps: Mapping[str, float], serious: bool) -> str:
    """One sentence with the largest difference."""
    name, gap = max(gaps.items(), key=lambda item: item[1])
    largest = f"{len(gaps)} tensors differ, {name} most, by {gap:.3g} of its largest value"
    if serious:
        return f"it was trained with another generator than the pack's ({largest}): its edits will look different"
    return f"its generator has other noise than the pack's ({largest}): only finest detail such as single hairs differs"
