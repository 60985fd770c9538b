"""Every method on the same faces and prompts: what was reached, what else changed, how far the latents moved.

Definitions (a row of the table is a mean over the faces that LACKED the target before):

- success, others changed: shares by the scorer (`runtime/training/outcomes.py`): the judge of a demonstration pack,
  else CLIP's own opinion.
- CLIP gain: cosine of the picture with the target text, after - before. CLIP direction: cosine between the picture's
  move in CLIP space and that of the texts (target - neutral).
- CLIP's success and others changed: its own opinion, whoever scored the row.
- identity: cosine of the identity embeddings before and after.
- seconds_per_face: of the edit and its picture, all faces of the row together, the text known before, on the machine
  at hand. It compares no methods: `evaluate_times` does, where they take turns.
- delta_w: length of the offset in w+, of methods that work there. delta_s: length of the offset in style space, each
  channel in units of its standard deviation.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from ..runtime import edits
from ..runtime.model import Prompt
from ..runtime.training.chunks import in_chunks
from ..runtime.training.outcomes import ClipScorer
from ..runtime.training.search import merit
from ..runtime.training.subject import Faces, Moved, Subject
from .evaluate_methods import Edit, Ways, edits_of, global_edit, opinion

Row = dict[str, Any]
SHEET_FACES = 8
ALPHA_FACTORS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
BETA_FACTORS = (0.5, 0.75, 1.0, 1.5, 2.0)


@dataclass
class Report:
    """Everything of one evaluation. sheet: pictures [k,3,R,R] of the contact sheet, row by row."""

    rows: list[Row] = field(default_factory=list)
    curves: list[Row] = field(default_factory=list)
    mappers: list[Row] = field(default_factory=list)
    times: list[Row] = field(default_factory=list)
    recommended: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    sheet: dict[str, Tensor] = field(default_factory=dict)


def measure(subject: Subject, edit: Edit, faces: Faces, clip: ClipScorer) -> tuple[Row, Tensor]:
    """One edit over faces that lack the target: its row, and the pictures [n,3,R,R]."""
    began = time.perf_counter()
    moved = edit.move(faces, edit.alpha)
    images = subject.render(moved.s)
    seconds = time.perf_counter() - began
    row: Row = {
        "prompt": edit.prompt.name,
        "method": edit.method,
        "scored_by": opinion(subject.scorer, edit.prompt.name),
    }
    row |= {"alpha": edit.alpha, "beta": None, "resolutions": None, "channels": None, "steps": None, **edit.settings}
    row |= subject.compare(edit.prompt.name, faces, images).shares()
    row["seconds_per_face"] = float(f"{seconds / len(faces):.3g}")
    return row | clip_measures(subject, edit.prompt, faces.images, images, clip) | distances(
        subject, faces, moved
    ), images


def clip_measures(subject: Subject, prompt: Prompt, before: Tensor, after: Tensor, clip: ClipScorer) -> Row:
    """CLIP's gain, direction and opinion of pictures [n,3,R,R] before and after."""
    first, last = (in_chunks(subject.clip.encode_image, images) for images in (before, after))
    text = subject.pair(prompt.target, prompt.neutral)
    gain = ((last - first) @ text.target).mean()
    cosine = functional.cosine_similarity(last - first, text.delta_t[None], dim=1, eps=1e-6).mean()
    found = clip.outcome(prompt.name, clip.scores(first), clip.scores(last))
    return {
        "clip_gain": round(float(gain), 4),
        "clip_direction": round(float(cosine), 4),
        "clip_success": round(found.success, 4),
        "clip_others": round(found.others_changed, 4),
    }


def distances(subject: Subject, faces: Faces, moved: Moved) -> Row:
    """Mean lengths of the offsets in w+ and, in standard deviations, in style space; None where there is none."""
    delta_w = None if moved.w is None else (moved.w - faces.w).flatten(1).norm(dim=1).mean()
    delta_s = None
    if subject.pack.has("statistics"):
        sigma = subject.pack.statistics.s_std
        free = sigma > 1e-6 * sigma.max()  # constant channels have no standard deviation to be counted in
        delta_s = ((moved.s - faces.s)[:, free] / sigma[free]).norm(dim=1).mean()
    return {name: rounded(value, 3) for name, value in (("delta_w", delta_w), ("delta_s", delta_s))}


def compare(subject: Subject, prompts: Sequence[Prompt], ways: Ways, faces: Faces, clip: ClipScorer) -> Report:
    """Rows and pictures of every way and prompt; why others are left out. `of` is how many faces a row looked at."""
    report = Report()
    for prompt in tqdm(prompts, "evaluate", unit="prompt", disable=None):
        lacking = subject.lacking(prompt.name, faces)
        if not len(lacking):
            report.left_out[prompt.name] = _all_show(len(faces))
            continue
        found, reasons = edits_of(subject, prompt, ways)
        report.left_out |= reasons
        report.sheet[f"{prompt.name}: before"] = lacking.images[:SHEET_FACES]
        for edit in found:
            tried = ways.faces_for(edit.method, faces)
            part = subject.lacking(prompt.name, tried)
            if not len(part):
                report.left_out[f"{prompt.name}, {edit.method}"] = _all_show(len(tried))
                continue
            row, images = measure(subject, edit, part, clip)
            report.rows.append({**row, "of": len(tried)})
            report.sheet[f"{prompt.name}: {edit.label}"] = images[:SHEET_FACES]
    return report


def _all_show(count: int) -> str:
    return f"all {count} faces show the target already"


# Trade-off --------------------------------------------------------------------------------------------------------


def curves(subject: Subject, prompts: Sequence[Prompt], ways: Ways, faces: Faces) -> list[Row]:
    """Success against collateral change: global directions over alpha and beta, mappers and named ones over strength.

    alpha and beta run over multiples of the prompt's own; of thresholds that keep the same channels one is tried.
    """
    rows = []
    varied = ways.with_strength()
    for prompt in tqdm(prompts, "trade-off", unit="prompt", disable=None):
        lacking = subject.lacking(prompt.name, faces)
        if len(lacking):
            for edit in _families(subject, prompt, varied):
                rows += [_point(subject, edit, lacking, edit.alpha * factor) for factor in ALPHA_FACTORS]
    return rows


def _families(subject: Subject, prompt: Prompt, ways: Ways) -> list[Edit]:
    """The edits whose strength is varied: the mapper, named directions, and the global one at each threshold."""
    found = []
    for edit in edits_of(subject, prompt, ways)[0]:
        if edit.method != "global":
            found.append(edit)
            continue
        betas = [min(1.0, round(edit.settings["beta"] * factor, 4)) for factor in BETA_FACTORS]
        others = [global_edit(subject, prompt, beta=beta) for beta in betas]
        found += {other.settings["channels"]: other for other in others if other.settings["channels"]}.values()
    return found


def _point(subject: Subject, edit: Edit, lacking: Faces, alpha: float) -> Row:
    edited = subject.compare(edit.prompt.name, lacking, subject.render(edit.move(lacking, alpha).s))
    place = {"prompt": edit.prompt.name, "method": edit.method, "alpha": round(alpha, 4)}
    seen = edited.shares()
    measured = {name: seen[name] for name in ("faces", "success", "others_changed", "identity_cosine")}
    return {**place, "beta": edit.settings.get("beta"), "channels": edit.settings.get("channels"), **measured,
            "merit": round(merit(edited, alpha), 4)}  # fmt: skip


# Table 2 of the paper ---------------------------------------------------------------------------------------------


def mapper_agreement(subject: Subject, names: Sequence[str], faces: Faces) -> list[Row]:
    """Mean cosine between a mapper's offsets for different images (Table 2 of the paper), per mapper."""
    rows = []
    for name in names if len(faces) > 1 else ():
        moved = subject.mapped(faces, name, 1.0)
        delta = (moved.s - faces.s if moved.w is None else moved.w - faces.w).flatten(1)
        unit = torch.from_numpy(edits.normalise(delta.numpy()))
        cosines = (unit @ unit.T)[tuple(np.triu_indices(len(unit), 1))]
        space = "s" if moved.w is None else "w+"
        row = {"prompt": name, "space": space, "faces": len(unit), "mean_cosine": round(float(cosines.mean()), 4)}
        rows.append({**row, "p10_cosine": round(float(np.percentile(cosines.numpy(), 10)), 4)})
    return rows


def rounded(value: Tensor | float | None, places: int = 4) -> float | None:
    """A figure for a table; None where there is none or it is NaN."""
    return None if value is None or np.isnan(float(value)) else round(float(value), places)
