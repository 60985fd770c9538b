"""What an edit is measured by: labels before and after, read by a judge or by CLIP itself.

A `Scorer` says what pictures show. The demonstration pack has one that knows the truth (`demo/scores.py`, an attribute
classifier that never saw the generator or CLIP); for every other pack `ClipScorer` asks the pack's own CLIP, which is
an opinion: the same CLIP steered the edit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .chunks import in_chunks
from .texts import TextPair

Labels = dict[str, NDArray[Any]]
"""What pictures show: classes of a judge (int64 [n]) or scores of CLIP (float32 [n]), by name."""
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Outcome:
    """Result of one edit over a set of faces; shares in 0..1, `others` per attribute (NaN where none was visible)."""

    faces: int
    success: float
    others: dict[str, float]

    @property
    def others_changed(self) -> float:
        """Mean over the other attributes; 0 where none could be seen."""
        seen = [share for share in self.others.values() if not np.isnan(share)]
        return float(np.mean(seen)) if seen else 0.0

    @property
    def worst(self) -> tuple[str, float]:
        """The other attribute that changed most often, and its share."""
        seen = {name: share for name, share in self.others.items() if not np.isnan(share)}
        name = max(seen, key=lambda key: seen[key], default="none")
        return name, seen.get(name, 0.0)


NOBODY = Outcome(0, 0.0, {})
"""The outcome over no faces."""


class Scorer(Protocol):
    """Reads labels off pictures, and knows for each prompt which label it asks for."""

    @property
    def opinion(self) -> str:
        """Whose labels they are, for a table: "judge" or "CLIP"."""

    def knows(self, prompt: str) -> bool:
        """Whether it can tell that the prompt was followed."""

    def read(self, images: Tensor) -> Labels:
        """Pictures [n,3,R,R] in -1..1 -> labels {name: [n]}."""

    def lacking(self, labels: Labels, prompt: str) -> Mask:
        """bool [n]: the faces on which the prompt's target is not there yet."""

    def outcome(self, prompt: str, before: Labels, after: Labels) -> Outcome:
        """Labels before and after of faces that all lacked the target."""


ATTRIBUTES: dict[str, tuple[str, str]] = {
    "sex": ("a face of a woman", "a face of a man"),
    "age": ("an old face", "a young face"),
    "expression": ("a smiling face", "a face with a neutral expression"),
    "mouth": ("a face with an open mouth", "a face with a closed mouth"),
    "glasses": ("a face with glasses", "a face"),
    "beard": ("a face with a beard", "a clean-shaven face"),
    "make-up": ("a face with lipstick", "a face without make-up"),
    "hat": ("a face with a hat", "a face with hair"),
    "hair length": ("a face with long hair", "a face with short hair"),
    "hair shade": ("a face with blond hair", "a face with black hair"),
    "skin": ("a face with dark skin", "a face with pale skin"),
}
"""What CLIP is asked about besides the prompt: attribute -> two opposite texts."""

RELATED = 0.5
"""An attribute whose pair of texts has this cosine (of either sign) with the prompt's is part of what was asked for."""


STEP = 1.0
"""In standard deviations of unedited faces: what counts as reached, and what as changed.

Not which text is nearer: the cosines of pictures with two texts differ by a constant that says nothing about a picture.
"""


class ClipScorer:
    """CLIP's own opinion. A label is a score: the cosine with one text less that with its opposite, as a z-score.

    Mean and standard deviation are those of unedited faces. The target is there where the score of its texts is above
    `STEP`; an attribute changed where its score moved by more than that. Attributes that the prompt itself speaks of
    (`RELATED`) do not count as collateral.

    Args:
        encode_image: image [N,3,R,R] in -1..1 -> unit embedding [N,E], with CLIP's own front-end.
        reference: embeddings [n,E] of unedited faces, n > 1.
        prompts: name -> embeddings of the prompt's texts.
        attributes: name -> embeddings of an attribute's two texts.
    """

    opinion = "CLIP"

    def __init__(
        self,
        encode_image: Callable[[Tensor], Tensor],
        reference: Tensor,
        prompts: Mapping[str, TextPair],
        attributes: Mapping[str, TextPair],
    ) -> None:
        self.encode_image, self.prompts, self.attributes = encode_image, prompts, attributes
        named = [(_prompt(name), pair) for name, pair in prompts.items()]
        named += [(_other(name), pair) for name, pair in attributes.items()]
        self.names = [name for name, _ in named]
        self.axes = torch.stack([pair.target - pair.neutral for _, pair in named])
        scores = reference @ self.axes.T
        self.mean, self.std = scores.mean(0), scores.std(0, correction=0).clamp(min=1e-6)

    def knows(self, prompt: str) -> bool:
        """Whether the prompt's texts were given."""
        return prompt in self.prompts

    def read(self, images: Tensor) -> Labels:
        """Scores of every prompt and attribute."""
        return self.scores(in_chunks(self.encode_image, images))

    def scores(self, embeddings: Tensor) -> Labels:
        """The same of embeddings [n,E]."""
        scores = (embeddings @ self.axes.T - self.mean) / self.std
        return dict(zip(self.names, scores.T.numpy(), strict=True))

    def lacking(self, labels: Labels, prompt: str) -> Mask:
        """The faces whose score is not above that of most."""
        return np.asarray(labels[_prompt(prompt)] <= STEP)

    def related(self, prompt: str) -> list[str]:
        """The attributes that the prompt itself speaks of."""
        asked = self.prompts[prompt].delta_t
        return [name for name, pair in self.attributes.items() if abs(float(asked @ pair.delta_t)) >= RELATED]

    def outcome(self, prompt: str, before: Labels, after: Labels) -> Outcome:
        """Shares of faces that show the target afterwards, and whose other scores moved."""
        reached = after[_prompt(prompt)] > STEP
        if not len(reached):
            return NOBODY
        others = [name for name in self.attributes if name not in self.related(prompt)]
        moved = {name: np.abs(after[_other(name)] - before[_other(name)]) > STEP for name in others}
        return Outcome(len(reached), float(reached.mean()), {name: float(part.mean()) for name, part in moved.items()})


class Panel:
    """Several scorers as one: a prompt is scored by the first that knows it."""

    def __init__(self, members: Sequence[Scorer]) -> None:
        self.members = members

    @property
    def opinion(self) -> str:
        """The members' names."""
        return ", ".join(member.opinion for member in self.members)

    def member(self, prompt: str) -> Scorer:
        """The scorer of a prompt; KeyError where none knows it."""
        for member in self.members:
            if member.knows(prompt):
                return member
        raise KeyError(prompt)

    def knows(self, prompt: str) -> bool:
        """Whether any member does."""
        return any(member.knows(prompt) for member in self.members)

    def read(self, images: Tensor) -> Labels:
        """The labels of all members."""
        return {name: label for member in self.members for name, label in member.read(images).items()}

    def lacking(self, labels: Labels, prompt: str) -> Mask:
        """As the prompt's scorer says."""
        return self.member(prompt).lacking(labels, prompt)

    def outcome(self, prompt: str, before: Labels, after: Labels) -> Outcome:
        """As the prompt's scorer says."""
        return self.member(prompt).outcome(prompt, before, after)


def _prompt(name: str) -> str:
    return f"clip: {name}"


def _other(name: str) -> str:
    return f"clip, other: {name}"
