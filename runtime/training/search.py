"""Chooses a prompt's settings: texts, alpha, beta and resolutions of a direction, and the strength of a mapper.

They are searched by the outcome on faces. The text is part of what a user chooses, so it is chosen like alpha and
beta are: on one set of faces. What is reported must come from another set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...engines.errors import InputError
from .. import edits
from ..resolutions import lowest
from .subject import Edited, Faces, Subject

ALPHAS = (2.0, 3.0, 4.0, 5.0, 6.5, 8.0, 10.0)
BETAS = (0.09, 0.12, 0.14, 0.16, 0.22, 0.3)
STRENGTHS = (0.5, 0.7, 0.85, 1.0, 1.2, 1.5)
HOPELESS = 0.18
"""Above this share of changed others, a larger alpha is not tried."""

CUTS = 3
"""Resolutions at most at which the layers are parted; on either side lies a range that is tried."""
LOWEST_CUT = 16
TIE = 0.01
"""Of settings whose merits differ by less, the one that starts at the highest layer wins: its sliders are faster."""

Texts = tuple[Sequence[str], Sequence[str]]
"""Target texts and neutral texts; every pair is tried."""


@dataclass(frozen=True)
class Setting:
    """One edit: a pair of texts, strength and threshold, and the layers that may move (None: all)."""

    target: str
    neutral: str
    alpha: float
    beta: float
    resolutions: str | None = None


def merit(edited: Edited, alpha: float) -> float:
    """Success, less what else changed: little up to 6% (a judge flips borderline faces), much beyond.

    Identity counts, since a smeared picture loses it before the judge sees another class; a small alpha breaks ties;
    nothing is gained by the last four per cent of success.
    """
    identity = 0.0 if np.isnan(edited.identity) else 0.3 * (1 - edited.identity)
    changed = edited.outcome.others_changed
    return min(edited.outcome.success, 0.96) - 0.3 * changed - 3.0 * max(0.0, changed - 0.06) - identity - 0.003 * alpha


def try_setting(subject: Subject, prompt: str, lacking: Faces, setting: Setting) -> tuple[Edited, int]:
    """The outcome of a setting on faces that lack the target, and how many channels it moves."""
    delta_s = subject.direction(setting.target, setting.neutral, setting.beta, setting.resolutions)
    edited = subject.compare(prompt, lacking, subject.edit(lacking, delta_s, setting.alpha))
    return edited, int(np.count_nonzero(delta_s))


def map_faces(subject: Subject, prompt: str, lacking: Faces, strength: float, mapper: str | None = None) -> Edited:
    """The outcome of the prompt's mapper; `mapper` where it has another name than the prompt."""
    return subject.compare(prompt, lacking, subject.map(lacking, mapper or prompt, strength))


def _thresholds(relevance: np.ndarray) -> list[float]:
    """The betas of BETAS that keep different sets of channels; a suggested one where all of them keep none."""
    counts = {int(np.count_nonzero(np.abs(relevance) >= beta)): beta for beta in reversed(BETAS)}
    kept = sorted(beta for count, beta in counts.items() if count)
    return kept or ([edits.suggested_beta(relevance)] if np.any(relevance) else [])


def ranges(resolutions: Sequence[int]) -> list[str]:
    """Ranges of layers to try for a generator of these resolutions: above and below at most `CUTS` cuts.

    >>> ranges([4, 8, 16, 32, 64])
    ['16-', '-8', '32-', '-16']
    """
    cuts = [r for r in resolutions if LOWEST_CUT <= r < resolutions[-1]]
    step = -(-len(cuts) // CUTS) or 1
    return [text for cut in cuts[::step] for text in (f"{cut}-", f"-{cut // 2}")]


def _coarse(
    subject: Subject, prompt: str, lacking: Faces, texts: Texts, resolutions: str | None = None
) -> Iterator[tuple[float, Setting]]:
    for target, neutral in ((t, n) for t in texts[0] for n in texts[1]):
        for beta in _thresholds(subject.relevance(target, neutral, resolutions)):
            for alpha in ALPHAS:
                setting = Setting(target, neutral, alpha, beta, resolutions)
                edited, _ = try_setting(subject, prompt, lacking, setting)
                yield merit(edited, alpha), setting
                if edited.outcome.others_changed > HOPELESS:
                    break


Ranked = list[tuple[float, Setting]]


def choose(
    subject: Subject, prompt: str, faces: Faces, texts: Texts, *, coarse_faces: int = 64, finalists: int = 3
) -> Setting:
    """The best setting of a prompt: all candidates on a part of the faces, then the finalists on all of them.

    Ranges of layers are tried with the texts that did best with all layers.

    Args:
        faces: the selection set; only the faces that lack the target are edited.
        texts: candidates of target and neutral text.
        finalists: settings that are tried again on all faces, with alpha 15% lower and higher; and the best of each
            range of layers that comes close.
    Raises:
        InputError: no face of the set lacks the target, or no channel answers to the texts.
    """
    lacking = subject.lacking(prompt, faces)
    if not len(lacking):
        raise InputError(f"{prompt}: all {len(faces)} selection faces show the target already; give more faces")
    part = lacking.take(np.arange(min(coarse_faces, len(lacking))))
    ranked = _best_first(_coarse(subject, prompt, part, texts))
    if not ranked:
        raise InputError(f"{prompt}: no style channel answers to {texts[0][0]!r}; give other texts")
    best = ranked[0][1]
    for resolutions in ranges(subject.block_resolutions):
        ranked += _coarse(subject, prompt, part, ([best.target], [best.neutral]), resolutions)
    tried = [
        (merit(try_setting(subject, prompt, lacking, setting)[0], setting.alpha), setting)
        for finalist in _finalists(_best_first(ranked), finalists)
        for setting in (replace(finalist, alpha=round(finalist.alpha * factor, 2)) for factor in (0.85, 1.0, 1.15))
    ]
    return _settled(tried)


def _best_first(found: Iterable[tuple[float, Setting]]) -> Ranked:
    return sorted(found, key=lambda row: -row[0])


def _finalists(ranked: Ranked, count: int) -> list[Setting]:
    """The first `count`, and the best of each range of layers whose merit is within two ties of the first."""
    bests: dict[str | None, Setting] = {}
    for found, setting in ranked:
        if found > ranked[0][0] - 2 * TIE:
            bests.setdefault(setting.resolutions, setting)
    return list(dict.fromkeys([*(setting for _, setting in ranked[:count]), *bests.values()]))


def _settled(tried: Ranked) -> Setting:
    """The best; of those within a tie of it the one that starts at the highest layer, and of these the best."""
    top = max(found for found, _ in tried)
    near = [(lowest(setting.resolutions), found, setting) for found, setting in tried if found > top - TIE]
    return max(near, key=lambda row: row[:2])[2]


def choose_strength(subject: Subject, prompt: str, faces: Faces, mapper: str | None = None) -> float:
    """The best strength of the prompt's mapper on the selection faces; `mapper` where it has another name."""
    lacking = subject.lacking(prompt, faces)
    scores = {k: merit(map_faces(subject, prompt, lacking, k, mapper), k) for k in STRENGTHS}
    return max(scores, key=lambda k: scores[k])
