"""Texts, alpha and beta of the demonstration pack's prompts, chosen by `..search` on the selection faces.

What is reported comes from another set (`evaluate.py`).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ....engines.errors import InputError
from .. import search
from ..search import Setting
from ..subject import Faces, Subject
from .scores import TARGETS

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

FACES, COARSE_FACES, SELECTION_SEED = 256, 40, 71


def choose(subject: Subject, prompt: str, faces: Faces, *, coarse_faces: int) -> Setting:
    """The best setting of a prompt; alpha 3 and beta 0.12 where the networks of a smoke run tell nothing."""
    texts = CANDIDATES[prompt]
    try:
        return search.choose(subject, prompt, faces, texts, coarse_faces=coarse_faces)
    except InputError:
        return Setting(texts[0][0], texts[1][0], 3.0, 0.12)


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
    known = [name for name in subject.pack.mappers if name in TARGETS]
    return {prompt: search.choose_strength(subject, prompt, faces) for prompt in known}
