"""Measures the embedded pack's CLIP on unseen renders: zero-shot accuracy, prompt ranking, directions, rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ...templates import STYLECLIP_TEMPLATES
from ..networks.clip import Clip
from .dataset import RenderedFaces
from .factors import ATTRIBUTES
from .vocabulary import Encoder

Array = NDArray[np.float32]

# One phrase per class, as a user would write it; the zero-shot classifier takes the nearest.
CLASS_TEXTS: dict[str, tuple[str, ...]] = {
    "hair_color": tuple(f"a face with {color} hair" for color in ATTRIBUTES["hair_color"]),
    "hair_style": (
        "a bald face", "a face with short hair", "a face with a bob-cut", "a face with long hair",
        "a face with an afro", "a face with a mohawk",
    ),
    "glasses": ("a face without glasses", "a face with glasses"),
    "beard": ("a face without a beard", "a face with a beard"),
    "hat": ("a face without a hat", "a face with a hat"),
    "expression": ("a face with a neutral expression", "a smiling face", "a surprised face", "an angry face"),
    "lipstick": ("a face without lipstick", "a face with lipstick"),
    "age": ("a young face", "an old face"),
    "skin": ("a face with light skin", "a face with tanned skin", "a face with dark skin"),
}  # fmt: skip

# The twelve prompts of the pack: what is written, and the attribute and class that it asks for.
PROMPTS: dict[str, tuple[str, str, str]] = {
    "purple-hair": ("a face with purple hair", "hair_color", "purple"),
    "blond-hair": ("a face with blond hair", "hair_color", "blond"),
    "grey-hair": ("a face with grey hair", "hair_color", "grey"),
    "bob-cut": ("a face with a bob-cut", "hair_style", "bob-cut"),
    "afro": ("a face with an afro", "hair_style", "afro"),
    "mohawk": ("a face with a mohawk", "hair_style", "mohawk"),
    "glasses": ("a face with glasses", "glasses", "yes"),
    "beard": ("a face with a beard", "beard", "yes"),
    "hat": ("a face with a hat", "hat", "yes"),
    "surprised": ("a surprised face", "expression", "surprised"),
    "smiling": ("a smiling face", "expression", "smiling"),
    "lipstick": ("a face with lipstick", "lipstick", "yes"),
}


@torch.no_grad()
def embed_text(clip: Clip, encoder: Encoder, text: str) -> Array:
    """Unit embedding [E] of a text, averaged over StyleCLIP's templates."""
    home = next(clip.parameters()).device
    rows = torch.from_numpy(encoder([t.format(text) for t in STYLECLIP_TEMPLATES], full=True)).to(home)
    mean = functional.normalize(clip.encode_text(rows), dim=-1).mean(0)
    return functional.normalize(mean, dim=0).float().cpu().numpy()


@torch.no_grad()
def embed_pictures(clip: Clip, faces: RenderedFaces, chunk: int = 250) -> Array:
    """Unit embeddings [n, E] of renders."""
    home = next(clip.parameters()).device
    parts: list[Tensor] = []
    for start in range(0, len(faces), chunk):
        index = np.arange(start, min(start + chunk, len(faces)))
        parts.append(clip.encode_image(faces.batch(index).to(home)).float().cpu())
    return torch.cat(parts).numpy()


def zero_shot(pictures: Array, texts: dict[str, Array], labels: dict[str, NDArray[np.int64]]) -> dict[str, float]:
    """Accuracy of the nearest class text per attribute; texts {attribute: [classes, E]}."""
    out = {}
    for name, rows in texts.items():
        seen = labels[name] >= 0
        guess = (pictures[seen] @ rows.T).argmax(1)
        out[name] = round(float((guess == labels[name][seen]).mean()), 4)
    return out


def ranking(score: Array, positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative."""
    order = np.empty(len(score))
    order[score.argsort()] = np.arange(1, len(score) + 1)
    p, n = int(positive.sum()), int((~positive).sum())
    return float((order[positive].sum() - p * (p + 1) / 2) / max(1, p * n))


def class_ranking(pictures: Array, texts: dict[str, Array], labels: dict[str, NDArray[np.int64]]) -> dict[str, float]:
    """Mean AUC of an attribute's classes, each along its text minus the mean of the others: free of any threshold."""
    out = {}
    for name, rows in texts.items():
        seen = labels[name] >= 0
        areas = []
        for value, row in enumerate(rows):
            others = (rows.sum(0) - row) / (len(rows) - 1)
            areas.append(ranking((pictures @ (row - others))[seen], (labels[name] == value)[seen]))
        out[name] = round(float(np.mean(areas)), 4)
    return out


def effective_rank(rows: Array) -> float:
    """exp of the entropy of the covariance spectrum of rows [n, E]."""
    spectrum = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
    p = spectrum / spectrum.sum()
    return float(np.exp(-(p * np.log(p + 1e-12)).sum()))


def class_direction(pictures: Array, label: NDArray[np.int64], value: int) -> Array:
    """Unit difference of mean embeddings: pictures of this class minus the others (undefined ones left out)."""
    gap = pictures[label == value].mean(0) - pictures[(label != value) & (label >= 0)].mean(0)
    return gap / np.linalg.norm(gap)


def _prompt_rows(clip: Clip, encoder: Encoder, pictures: Array, labels: dict[str, NDArray[np.int64]]) -> dict[str, Any]:
    """Per prompt: AUC along delta_t, its cosine with its own class direction, the largest with another attribute's."""
    neutral = embed_text(clip, encoder, "a face")
    directions = {n: class_direction(pictures, labels[a], ATTRIBUTES[a].index(v)) for n, (_, a, v) in PROMPTS.items()}
    rows = {}
    for name, (text, attribute, value) in PROMPTS.items():
        delta = embed_text(clip, encoder, text) - neutral
        delta /= np.linalg.norm(delta)
        label = labels[attribute]
        seen = label >= 0
        cosines = {n: round(float(delta @ d), 3) for n, d in directions.items()}
        others = {n: abs(c) for n, c in cosines.items() if PROMPTS[n][1] != attribute}
        auc = ranking((pictures @ delta)[seen], (label == ATTRIBUTES[attribute].index(value))[seen])
        worst = max(others, key=lambda n: others[n])
        rows[name] = {"auc": round(auc, 4), "cosine": cosines[name], "worst_other": [worst, others[worst]]}
    return rows


def write_report(path: Path, clip: Clip, encoder: Encoder, faces: RenderedFaces) -> Path:
    """Measure on unseen faces and write JSON; returns its path."""
    clip.eval()
    pictures = embed_pictures(clip, faces)
    texts = {a: np.stack([embed_text(clip, encoder, t) for t in words]) for a, words in CLASS_TEXTS.items()}
    report = {
        "faces": len(faces),
        "parameters": sum(p.numel() for p in clip.model.parameters()),
        "zero_shot": zero_shot(pictures, texts, faces.labels),
        "class_auc": class_ranking(pictures, texts, faces.labels),
        "prompts": _prompt_rows(clip, encoder, pictures, faces.labels),
        "effective_rank": round(effective_rank(pictures), 1),
    }
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path
