"""Chooses each prompt's texts and settings: a search over (target, neutral, alpha, beta) on the selection faces.

The text is part of what a user chooses, so it is chosen like alpha and beta are: by the outcome on one set of faces.
What is reported comes from another set (`evaluate.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .scores import TARGETS
from .subject import Edited, Faces, Subject

_HAIR = ("a face", "a face with hair")
_CUT = ("a face", "a face with short hair", "a face with long hair")

CANDIDATES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "purple-hair": (("a face with purple hair",), _HAIR),
    "blond-hair": (("a face with blond hair",), _HAIR),
    "grey-hair": (("a face with grey hair",), _HAIR),
    "bob-cut": (("a face with a bob-cut",), _CUT),
    "afro": (("a face with an afro",), _CUT),
    "mohawk": (("a face with a mohawk",), ("a face with a hat", "a face with short hair")),
    "glasses": (("a face with glasses",), ("a face",)),
    "beard": (("a face with a beard",), ("a face", "a clean-shaven face")),
    "hat": (("a face with a hat",), ("a face", "a face with hair")),
    "surprised": (("a surprised face",), ("a face", "a face with a neutral expression")),
    "smiling": (("a smiling face",), ("a face", "a face with a neutral expression")),
    "lipstick": (("a face with lipstick",), ("a face without lipstick", "a face with pale lips")),
}
"""Prompt -> (target texts, neutral texts); every pair is tried."""

ALPHAS = (2.0, 3.0, 4.0, 5.0, 6.5, 8.0, 10.0)
BETAS = (0.09, 0.12, 0.14, 0.16, 0.22, 0.3)
STRENGTHS = (0.5, 0.7, 0.85, 1.0, 1.2, 1.5)
FACES, COARSE_FACES, SELECTION_SEED = 256, 40, 71
HOPELESS = 0.18
"""Above this share of changed others, a larger alpha is not tried."""


@dataclass(frozen=True)
class Setting:
    """One edit: a pair of texts and the two strengths."""

    target: str
    neutral: str
    alpha: float
    beta: float


def merit(edited: Edited, alpha: float) -> float:
    """Success, less what else changed: little up to 6% (a judge flips borderline faces), much beyond.

    Identity and a small alpha break ties; nothing is gained by the last four per cent of success.
    """
    identity = 0.0 if np.isnan(edited.identity) else 0.1 * (1 - edited.identity)
    changed = edited.outcome.others_changed
    return min(edited.outcome.success, 0.96) - 0.3 * changed - 3.0 * max(0.0, changed - 0.06) - identity - 0.003 * alpha


def try_setting(subject: Subject, prompt: str, lacking: Faces, setting: Setting) -> tuple[Edited, int]:
    """The outcome of a setting on faces that lack the target, and how many channels it moves."""
    delta_s = subject.direction(setting.target, setting.neutral, setting.beta)
    edited = subject.compare(prompt, lacking, subject.edit(lacking, delta_s, setting.alpha))
    return edited, int(np.count_nonzero(delta_s))


def _coarse(subject: Subject, prompt: str, lacking: Faces) -> Iterator[tuple[float, Setting]]:
    targets, neutrals = CANDIDATES[prompt]
    for target, neutral in ((t, n) for t in targets for n in neutrals):
        seen: set[int] = set()
        for beta in BETAS:
            count = int(np.count_nonzero(np.abs(subject.relevance(target, neutral)) >= beta))
            if count == 0 or count in seen:
                continue
            seen.add(count)
            for alpha in ALPHAS:
                setting = Setting(target, neutral, alpha, beta)
                edited, _ = try_setting(subject, prompt, lacking, setting)
                yield merit(edited, alpha), setting
                if edited.outcome.others_changed > HOPELESS:
                    break


def choose(subject: Subject, prompt: str, faces: Faces, *, coarse_faces: int = 64, finalists: int = 3) -> Setting:
    """The best setting of a prompt: all candidates on a part of the faces, then the finalists on all of them.

    Args:
        faces: the selection set; only the faces that lack the target are edited.
        finalists: settings that are tried again on all faces, with alpha 15% lower and higher.
    """
    lacking = faces.lacking(prompt)
    part = lacking.take(np.arange(min(coarse_faces, len(lacking))))
    ranked = sorted(_coarse(subject, prompt, part), key=lambda row: -row[0])
    if not ranked:
        targets, neutrals = CANDIDATES[prompt]
        return Setting(targets[0], neutrals[0], 3.0, 0.12)
    best: tuple[float, Setting] | None = None
    for _, setting in ranked[:finalists]:
        for factor in (0.85, 1.0, 1.15):
            tried = Setting(setting.target, setting.neutral, round(setting.alpha * factor, 2), setting.beta)
            edited, _ = try_setting(subject, prompt, lacking, tried)
            if best is None or merit(edited, tried.alpha) > best[0]:
                best = (merit(edited, tried.alpha), tried)
    assert best is not None
    return best[1]


def choose_settings(subject: Subject, *, scale: float = 1.0, memory: Path | None = None) -> dict[str, dict[str, Any]]:
    """Texts, alpha and beta of all prompts: the start of the `prompts` entry of pack.json.

    Args:
        scale: below 1, fewer faces are tried (smoke runs).
        memory: JSON file that keeps finished prompts of the same pack, so that a killed search continues.
    """
    faces = subject.faces(max(8, int(FACES * min(1.0, scale))), SELECTION_SEED)
    coarse_faces = max(4, int(COARSE_FACES * min(1.0, scale)))
    stamp = subject.pack.sha256
    stored = json.loads(memory.read_text()) if memory is not None and memory.exists() else {}
    chosen: dict[str, dict[str, Any]] = stored.get(stamp, {})
    for prompt in tqdm(TARGETS, "choose settings", unit="prompt", disable=None):
        if prompt not in chosen:
            chosen[prompt] = asdict(choose(subject, prompt, faces, coarse_faces=coarse_faces))
            if memory is not None:
                memory.write_text(json.dumps({stamp: chosen}, indent=1) + "\n")
    return chosen


def choose_strengths(subject: Subject, *, scale: float = 1.0) -> dict[str, float]:
    """The best strength of every mapper of the pack that the judge can measure, on the selection faces."""
    faces = subject.faces(max(8, int(FACES * min(1.0, scale))), SELECTION_SEED)
    chosen = {}
    for prompt in (name for name in subject.pack.mappers if name in TARGETS):
        lacking = faces.lacking(prompt)
        scores = {k: merit(map_faces(subject, prompt, lacking, k), k) for k in STRENGTHS}
        chosen[prompt] = max(scores, key=lambda k: scores[k])
    return chosen


def map_faces(subject: Subject, prompt: str, lacking: Faces, strength: float) -> Edited:
    """The outcome of the prompt's mapper."""
    return subject.compare(prompt, lacking, subject.map(lacking, prompt, strength))
