"""What files of the pSp family share: e4e, pSp and StyleCLIP's mappers save {"state_dict", "opts", "latent_avg"}.

Beside its own network each holds the generator that it was trained with (`decoder.*`, rosinality's layout).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ....engines.errors import PackError
from ...archives import Opaque, Source, flat_arrays
from .rows import Array, Row

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
    """The training options of the file (a dict, or the state of an argparse.Namespace); None where it has none."""
    opts = source.tree.get("opts") if isinstance(source.tree, Mapping) else None
    state = opts.state if isinstance(opts, Opaque) else opts
    return {str(key): value for key, value in state.items()} if isinstance(state, Mapping) else None


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
