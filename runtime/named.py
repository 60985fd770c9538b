"""Named directions of a bundle: rows of one table, read when first asked for, as a file from a stranger.

The table is a .npy file, float32 [K, S], K rows for the steps and the relevances together. Its header is read by numpy
without pickle, and nothing is allocated before the sizes have been compared with the file's.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..engines.errors import BundleError, InputError
from .model import Direction, Model
from .resolutions import resolution_mask
from .steps import Step, settled, too_high

if TYPE_CHECKING:
    from ..engines.bundle import Bundle

F32 = NDArray[np.float32]
_AGAIN = "export the bundle again"


class NamedDirections:
    """The directions that a bundle serves by name; `names` in the order of the manifest."""

    def __init__(self, bundle: Bundle, model: Model) -> None:
        self._bundle, self._model = bundle, model
        self.names: tuple[str, ...] = tuple(model.directions)

    def step(self, step: Step) -> tuple[Step, F32]:
        """(the step with an "auto" threshold resolved, its delta_s [S]) of a step whose `prompt` is a Direction.

        Within the step's layers its channels move as they do in the whole direction.
        Raises InputError where beta or the layers leave no channel, BundleError for a table that is not what the
        manifest says.
        """
        direction = step.prompt
        if not isinstance(direction, Direction):
            raise InputError(f"{step.prompt.label!r} is a prompt, not a named direction")
        inside = resolution_mask(self._model, step.resolutions) if step.resolutions else np.bool_(True)
        delta_s = np.where(inside, self._row(direction.row), np.float32(0))
        if step.resolutions and not delta_s.any():
            raise InputError(
                f"the direction {direction.name!r} moves nothing in resolutions {step.resolutions}; widen the range"
            )
        if direction.relevance_row is None:
            return step, delta_s
        relevance = np.where(inside, self._row(direction.relevance_row), np.float32(0))
        step = settled(step, relevance)
        kept = np.abs(relevance) >= np.float32(step.beta or 0)  # type: ignore[arg-type]  # settled: a number
        if not delta_s[kept].any():
            raise InputError(too_high(step, relevance))
        return step, np.where(kept, delta_s, np.float32(0))

    def _row(self, index: int) -> F32:
        return self.table[index]  # type: ignore[no-any-return]

    @cached_property
    def table(self) -> F32:
        """[K, S], finite; BundleError where the file says otherwise or the manifest names a row beyond it."""
        if self._model.direction_table is None:
            raise BundleError(f"bundle.json: directions without direction_table; {_AGAIN}")
        path = self._bundle.file(self._model.direction_table)
        with path.open("rb") as stream:
            table = read_table(stream, path.stat().st_size, self._model.style_channels, str(path))
        rows = [row for d in self._model.directions.values() for row in (d.row, d.relevance_row) if row is not None]
        if max(rows, default=-1) >= len(table):
            raise BundleError(f"{path}: has {len(table)} rows, the manifest names row {max(rows)}; {_AGAIN}")
        if not np.isfinite(table).all():
            raise BundleError(f"{path}: holds values that are no finite numbers; {_AGAIN}")
        return table


def read_table(stream: BinaryIO, size: int, style_channels: int, where: str) -> F32:
    """The array [K, style_channels] of a .npy file of `size` bytes; BundleError for anything else."""
    try:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"version {version} of the format, expected 1.0")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except (ValueError, OSError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise BundleError(f"{where}: is no .npy file ({str(error)[:120]}); {_AGAIN}") from None
    if dtype != np.dtype("<f4") or fortran or len(shape) != 2 or shape[1] != style_channels:
        raise BundleError(
            f"{where}: holds {dtype} {list(shape)[:8]}; expected row-major float32 [K, {style_channels}]; {_AGAIN}"
        )
    if shape[0] < 0 or size - stream.tell() != shape[0] * style_channels * 4:
        raise BundleError(
            f"{where}: has {size - stream.tell()} bytes of data for an array of {list(shape)}; copy the bundle again"
        )
    return np.frombuffer(stream.read(), dtype="<f4").reshape(shape).astype(np.float32)
