"""What the importers of generators share: sizes, what missing arrays are filled with, the finished component."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....engines.errors import PackError
from ...archives import Array
from ..networks.stylegan2 import Generator, GeneratorConfig
from ..networks.stylegan2 import Mapping as MappingNetwork
from ..pack_writer import state_of
from .rows import Imported, Mismatch, Row, convert, targets

MAX_RESOLUTION = 2048
MAX_WIDTH = 1 << 14  # of z, w and the feature maps; published generators have 512
MAX_DEPTH = 64  # of the mapping; published ones have 2 or 8
AVERAGE_SAMPLES = 16384
SEED = 0
FILTER = np.outer([1.0, 3.0, 3.0, 1.0], [1.0, 3.0, 3.0, 1.0]) / 64.0


@dataclass
class Draft:
    """A generator on its way: the arrays by source key, rows that name them, and what was noticed.

    what: the file, for messages. form: the format's name. zeros: pack names that are zero, where the file says that
    the network has no such part.
    """

    what: str
    form: str
    config: GeneratorConfig
    arrays: dict[str, Array]
    rows: Sequence[Row]
    notes: list[str] = field(default_factory=list)
    zeros: Sequence[str] = ()

    def fill_noise(self, missing: Mapping[str, int]) -> None:
        """Seeded normal numbers for noise buffers that the file lacks: {source key: side in pixels}, noted."""
        for key, side in missing.items():
            index = int(re.sub(r"\D", "", key) or 0)
            random = np.random.default_rng([SEED, index])
            self.arrays[key] = random.standard_normal((1, 1, side, side), dtype=np.float32)
        if missing:
            names = ", ".join(list(missing)[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
            self.notes.append(
                f"the file has no noise buffers {names}: they were drawn anew (seed {SEED}), so fine detail such as "
                "single hairs differs from pictures made with the original's"
            )

    def finish(self) -> Imported:
        """The component. Where the file has no average of w, it is computed and noted. Raises PackError."""
        expected = expected_shapes(self.config)
        average = "mapping.w_avg" in targets(self.arrays, self.rows)
        wanted = {name: s for name, s in expected.items() if name not in self.zeros}
        if not average:
            wanted.pop("mapping.w_avg")
        content = convert(self.arrays, self.rows, wanted, self.what)
        content |= {name: torch.zeros(expected[name]) for name in self.zeros}
        if not average:
            content["mapping.w_avg"] = average_w(content, self.config)
            self.notes.append(
                f"the file has no average of w: it was computed as the mean over {AVERAGE_SAMPLES} z (seed {SEED})"
            )
        ordered = {name: content[name] for name in expected}
        return Imported("generator", ordered, self.config.to_dict(), self.form, notes=tuple(self.notes))


def expected_shapes(config: GeneratorConfig) -> dict[str, tuple[int, ...]]:
    """{pack name: shape} of a generator; no memory is taken for its weights."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in state_of(Generator(config)).items()}


def average_w(content: Mapping[str, Tensor], config: GeneratorConfig) -> Tensor:
    """Mean of w over `AVERAGE_SAMPLES` standard normal z, seeded: [W]."""
    network = MappingNetwork(config).eval().requires_grad_(False)
    for name, tensor in network.named_parameters():
        tensor.copy_(content[f"mapping.{name}"])
    random = torch.Generator().manual_seed(SEED)
    total = torch.zeros(config.w_dim, dtype=torch.float64)
    for _ in range(16):
        total += network(torch.randn(AVERAGE_SAMPLES // 16, config.z_dim, generator=random)).sum(0, dtype=torch.float64)
    return (total / AVERAGE_SAMPLES).float()


def sides(arrays: Mapping[str, Array], key: str, what: str, ndim: int) -> tuple[int, ...]:
    """Shape of an array that must be there with `ndim` dimensions of sensible size; else PackError."""
    if key not in arrays:
        raise PackError(f"{what}: {key} is missing; this is not a whole StyleGAN2 generator")
    shape = tuple(int(side) for side in arrays[key].shape)
    if len(shape) != ndim or not all(0 < side <= MAX_WIDTH for side in shape):
        raise PackError(f"{what}: {key} is {list(shape)}; expected {ndim} dimensions of 1 to {MAX_WIDTH}")
    return shape


def run_length(arrays: Mapping[str, Array], pattern: str, first: int = 0) -> int:
    """How many of the keys `pattern` (with {} for a number) are there, counted from `first` without a gap."""
    count = 0
    while pattern.format(first + count) in arrays:
        count += 1
    return count


def sized(
    resolution: int, z_dim: int, w_dim: int, mapping: int, channels: dict[int, int], clamp: float | None, what: str
) -> GeneratorConfig:
    """The config, once its sizes are those of a generator; else PackError."""
    if not 8 <= resolution <= MAX_RESOLUTION or resolution & (resolution - 1):
        raise PackError(f"{what}: a generator of {resolution} px; expected a power of two from 8 to {MAX_RESOLUTION}")
    if not 1 <= mapping <= MAX_DEPTH:
        raise PackError(f"{what}: the mapping has {mapping} layers; expected 1 to {MAX_DEPTH}")
    return GeneratorConfig(resolution, z_dim, w_dim, mapping, channels, clamp)


def check_filter(gain: float) -> Any:
    """A transform that lets only StyleGAN2's filter [1, 3, 3, 1] pass, times `gain`."""

    def check(array: Array) -> Array:
        if array.shape != (4, 4) or not np.allclose(np.asarray(array, np.float64), FILTER * gain, rtol=1e-3, atol=1e-6):
            raise Mismatch("is not the filter [1, 3, 3, 1] of StyleGAN2; generators with other filters are not read")
        return array

    return check


def first(array: Array) -> Array:
    """[1, ...] -> [...]."""
    if array.shape[0] != 1:
        raise ValueError
    return array[0]


def scalar(array: Array) -> Array:
    """[] or [1] -> []."""
    return array.reshape(())


def flat(array: Array) -> Array:
    """[1, C, 1, 1] -> [C]."""
    if array.size != max(array.shape):
        raise ValueError
    return array.reshape(-1)


def plane(array: Array) -> Array:
    """[1, 1, r, r] or [r, r] -> [r, r]."""
    return array.reshape(array.shape[-2:])


def average(array: Array) -> Array:
    """An average of w: [W], [1, W], or [L, W] with the same row L times (e4e and pSp save it so) -> [W]."""
    rows = array.reshape(-1, array.shape[-1])
    if not np.array_equal(rows, np.broadcast_to(rows[:1], rows.shape)):
        raise Mismatch("holds a different average for each layer; expected one for all")
    return rows[0]
