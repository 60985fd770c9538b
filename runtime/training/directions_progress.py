"""The sums of a table under way, on disk: a kill at any moment loses half a minute, never the file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from ...engines.errors import InputError
from ...engines.session import first_line
from .loop import save_atomically

NAMES = ("rows", "total", "squares", "cross", "seen", "active", "block", "image", "saved")


@dataclass(frozen=True)
class Probe:
    """What tells one table's inputs from another's: moments and CLIP's view of a base image, and the settings."""

    numbers: Tensor
    settings: dict[str, Any]


def matching(path: Path, names: Sequence[str], probe: Probe) -> dict[str, Any] | None:
    """What a checkpoint holds that was written for the same inputs and settings; None where there is none.

    One of another run is set aside as NAME.other.pt: hours of work are not thrown away. InputError for a damaged file.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise InputError(f"{path} cannot be read ({first_line(error)}); delete it to begin anew") from None
    known, numbers = state.get("probe"), probe.numbers
    same = all(name in state for name in names) and state.get("settings") == probe.settings
    if same and known is not None and known.shape == numbers.shape and torch.allclose(known, numbers, atol=1e-3):
        return dict(state)
    path.replace(path.with_suffix(".other" + path.suffix))
    return None


class Progress:
    """Sums of the unit differences, and where the run stands: `image` of `block`.

    total [S,E] float64, squares [S] float64, cross [S] float64 products with the predictions (`directions_predicted`),
    seen [S] images summed, active [S] channels that have not stopped; rows [S,E] float32 of those that are done.
    The sums change between images only on disk, so that a resumed run adds the same numbers in the same order.
    """

    def __init__(
        self, path: Path | None, probe: Probe, channels: Sequence[int], styles: int, width: int, save_every_s: float
    ) -> None:
        self.path, self.probe, self.save_every_s = path, probe, save_every_s
        self.rows = torch.zeros(styles, width)
        self.total = torch.zeros(styles, width, dtype=torch.float64)
        self.squares = torch.zeros(styles, dtype=torch.float64)
        self.cross = torch.zeros(styles, dtype=torch.float64)
        self.seen = torch.zeros(styles, dtype=torch.int64)
        self.active = torch.zeros(styles, dtype=torch.bool)
        self.active[list(channels)] = True
        self.block = self.image = self.saved = 0
        found = None if path is None else matching(path, NAMES, probe)
        self.__dict__.update({name: found[name] for name in NAMES} if found else {})
        self._saved_at = time.monotonic()

    @property
    def pairs(self) -> int:
        """Pairs of renders done so far."""
        return int(self.seen.sum())

    def reached(self, image: int) -> None:
        """All channels of the block have seen `image` images."""
        self.image = image
        if time.monotonic() - self._saved_at >= self.save_every_s:
            self.save()

    def next_block(self) -> None:
        """The block is done."""
        self.block, self.image = self.block + 1, 0

    def save(self) -> None:
        """Writes the file; StyleclipError where the disk is full, and the old file stays."""
        if self.path is None:
            return
        state = {name: getattr(self, name) for name in NAMES}
        save_atomically({**state, "probe": self.probe.numbers, "settings": self.probe.settings}, self.path)
        self._saved_at = time.monotonic()
