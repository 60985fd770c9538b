"""What an edit gives back: the picture, how it came about, and how long each stage took."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .align_frame import Frame
from .steps import Step

T = TypeVar("T")


@dataclass(frozen=True)
class EditResult:
    """An edit and how it came about.

    image: RGB, R x R pixels. w: the photo's latents [1, L, W]; None where the edit began with styles. delta_s: the
    direction in style space, before alpha: [S] for one prompt, [P, S] for P of them. channels: indices of the style
    channels that move. timings: milliseconds by stage (the first run of a graph includes loading it).
    identity: cosine of the identity embeddings of photo and edit, None unless asked for. notes: what the
    user should know. Of several prompts or directions, prompt, alpha and beta are tuples. frame: where in the photo the
    picture lies; None for latents. pasted: the whole photo with the edit in
    it, if asked for.
    """

    image: Image.Image
    w: NDArray[np.float32] | None
    delta_s: NDArray[np.float32]
    channels: NDArray[np.int64]
    steps: tuple[Step, ...]
    timings: dict[str, float]
    identity: float | None = None
    notes: tuple[str, ...] = ()
    frame: Frame | None = None
    pasted: Image.Image | None = None

    @property
    def prompt(self) -> str | tuple[str, ...]:
        """The target text; of a named direction its name."""
        return _only(tuple(step.prompt.label for step in self.steps))

    @property
    def alpha(self) -> float | tuple[float, ...]:
        """The strength that was used."""
        return _only(tuple(step.alpha for step in self.steps))

    @property
    def beta(self) -> float | tuple[float | None, ...] | None:
        """The threshold that was used ("auto" resolved); None for a mapper, and for a direction without one."""
        return _only(tuple(None if step.beta is None else float(step.beta) for step in self.steps))


@dataclass
class Clock:
    """Wall time by stage, in milliseconds."""

    laps_ms: dict[str, float] = field(default_factory=dict)
    _start: float = field(default_factory=time.perf_counter)
    _last: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str) -> None:
        """Book the time since the last lap on `stage`."""
        now = time.perf_counter()
        self.laps_ms[stage] = round(1e3 * (now - self._last), 3)
        self._last = now

    def total(self) -> None:
        """Book the time since the start on "total"."""
        self.laps_ms["total"] = round(1e3 * (time.perf_counter() - self._start), 3)


def _only(values: tuple[T, ...]) -> T | tuple[T, ...]:
    """The value itself where there is but one."""
    return values[0] if len(values) == 1 else values
