"""What an edit is measured by: labels that the judge gives before and after, distances between sets of pictures.

Definitions, used everywhere in the reports:

- A face LACKED the target when the judge sees another class of the target's attribute on the unedited face.
- SUCCESS is the share of the faces that lacked the target on which the judge sees it after the edit.
- OTHERS CHANGED is the mean over the other attributes of the share of faces (that lacked the target) whose label
  changed. A face counts for an attribute only where the attribute can be seen before and after: there is no hair colour
  on a bald head, and no telling bald, short hair and mohawk apart under a hat.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..loop import device
from ..outcomes import NOBODY, Labels, Mask, Outcome
from ..pack import Pack
from ..subject import Subject
from .factors import ATTRIBUTES
from .judge import Judge, JudgeNet

TARGETS: dict[str, tuple[str, str]] = {
    "purple-hair": ("hair_color", "purple"),
    "blond-hair": ("hair_color", "blond"),
    "grey-hair": ("hair_color", "grey"),
    "bob-cut": ("hair_style", "bob-cut"),
    "afro": ("hair_style", "afro"),
    "mohawk": ("hair_style", "mohawk"),
    "glasses": ("glasses", "yes"),
    "beard": ("beard", "yes"),
    "hat": ("hat", "yes"),
    "surprised": ("expression", "surprised"),
    "smiling": ("expression", "smiling"),
    "lipstick": ("lipstick", "yes"),
}
"""Prompt name -> (attribute, class): how the judge tells that a prompt was followed."""

_HIDDEN_STYLES = tuple(ATTRIBUTES["hair_style"].index(style) for style in ("bald", "short", "mohawk"))
_BALD = ATTRIBUTES["hair_style"].index("bald")


def visible(labels: Labels) -> dict[str, Mask]:
    """{attribute: bool [n]}: where the attribute can be seen in the picture, judged by the other labels."""
    n = len(labels["hat"])
    covered = (labels["hat"] == 1) & np.isin(labels["hair_style"], _HIDDEN_STYLES)
    out = {name: np.ones(n, bool) for name in labels}
    out["hair_style"] = ~covered
    out["hair_color"] = ~covered & (labels["hair_style"] != _BALD)
    return out


def target_class(prompt: str) -> tuple[str, int]:
    """The attribute of a prompt and the index of the class that it asks for."""
    attribute, value = TARGETS[prompt]
    return attribute, ATTRIBUTES[attribute].index(value)


def lacking(labels: Labels, prompt: str) -> Mask:
    """bool [n]: faces whose attribute can be seen and is another class than the prompt's."""
    attribute, wanted = target_class(prompt)
    return visible(labels)[attribute] & (labels[attribute] != wanted)


def outcome(prompt: str, before: Labels, after: Labels) -> Outcome:
    """Compares labels before and after for faces that all lacked the target; see the module's definitions."""
    attribute, wanted = target_class(prompt)
    n = len(before[attribute])
    if n == 0:
        return NOBODY
    seen_before, seen_after = visible(before), visible(after)
    reached = (after[attribute] == wanted) & seen_after[attribute]
    others = {}
    for name in ATTRIBUTES:
        both = seen_before[name] & seen_after[name]
        if name != attribute:
            others[name] = float((before[name] != after[name])[both].mean()) if both.any() else float("nan")
    return Outcome(n, float(reached.mean()), others)


class JudgeScorer:
    """The judge of a demonstration pack as a scorer: it knows the prompts of TARGETS."""

    opinion = "judge"

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    @classmethod
    def of(cls, pack: Pack) -> JudgeScorer:
        """The judge that `pack` holds; PackError for a pack without one."""
        net = JudgeNet()
        net.load_state_dict(pack.judge, strict=False)
        return cls(Judge(net.to(device())))

    def knows(self, prompt: str) -> bool:
        """Whether the prompt is one of TARGETS."""
        return prompt in TARGETS

    def read(self, images: Tensor) -> Labels:
        """The judge's classes, by attribute."""
        return self.judge.predict(images)

    def lacking(self, labels: Labels, prompt: str) -> Mask:
        """See the function `lacking`."""
        return lacking(labels, prompt)

    def outcome(self, prompt: str, before: Labels, after: Labels) -> Outcome:
        """See the function `outcome`."""
        return outcome(prompt, before, after)


def judged(pack: Pack) -> Subject:
    """A demonstration pack under examination by its own judge."""
    return Subject(pack, JudgeScorer.of(pack))


def psnr_db(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """PSNR of pictures [N,...] in -1..1, one figure each, in dB; identical pictures give 100."""
    error = np.square(np.asarray(a, np.float64) - b).reshape(len(a), -1).mean(1)
    return 10 * np.log10(4.0 / np.maximum(error, 4e-10))


def _root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Square root of a symmetric positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def frechet_distance(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Frechet distance of two Gaussians fitted to features [N,D] and [M,D] (the formula of FID, Heusel et al. 2017).

    |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2). Figures of different feature spaces do not compare.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = _root(cov_a)
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)).sum()
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)
