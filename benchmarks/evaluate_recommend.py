"""Settings for a pack: texts, alpha, beta and strength of each prompt, chosen on faces that no report uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..engines.errors import StyleclipError
from ..runtime.model import Prompt
from ..runtime.training import publish, search
from ..runtime.training.kept import Kept, digests
from ..runtime.training.pack import Pack
from ..runtime.training.subject import Faces, Subject
from .evaluate_methods import CONV, tables_of

Row = dict[str, Any]
COARSE_FACES = 40


def recommend(
    subject: Subject,
    prompts: Sequence[Prompt],
    faces: Faces,
    neutrals: Sequence[str] = (),
    mappers: bool = True,
    directions: bool = True,
) -> tuple[dict[str, Row], dict[str, str]]:
    """The entry of pack.json that each prompt should have, and why others have none.

    Args:
        faces: the selection faces; those that lack a prompt's target are edited.
        neutrals: candidates for the neutral text, besides each prompt's own.
        mappers: choose the strength of the prompts' mappers.
        directions: choose texts, alpha, beta and resolutions.
    Returns:
        ({prompt: {target, neutral, alpha, beta, resolutions, strength?, merit}}, {prompt: reason}).
    """
    found: dict[str, Row] = {}
    reasons: dict[str, str] = {}
    for prompt in tqdm(prompts, "recommend", unit="prompt", disable=None):
        try:
            entry = _entry(subject, prompt, faces, neutrals) if directions else {"merit": {}}
            if mappers and (prompt.mapper or not directions):
                entry["strength"] = search.choose_strength(subject, prompt.name, faces, prompt.mapper)
            found[prompt.name] = entry
        except StyleclipError as error:
            reasons[prompt.name] = str(error)
    return found, reasons


def _entry(subject: Subject, prompt: Prompt, faces: Faces, neutrals: Sequence[str]) -> Row:
    """The settings of one prompt over the whole table, which is what `edit` moves; merits of the best, by table."""
    texts = ([prompt.target], list(dict.fromkeys([prompt.neutral, *neutrals])))
    chosen = {
        name: search.choose(table, prompt.name, faces, texts, coarse_faces=COARSE_FACES)
        for name, table in tables_of(subject).items()
    }
    merits = {name: _merit(subject, name, prompt, faces, setting) for name, setting in chosen.items()}
    return {**asdict(chosen["global"]), "merit": merits}


def _merit(subject: Subject, table: str, prompt: Prompt, faces: Faces, setting: search.Setting) -> float:
    lacking = subject.lacking(prompt.name, faces)
    edited, _ = search.try_setting(tables_of(subject)[table], prompt.name, lacking, setting)
    return round(search.merit(edited, setting.alpha), 4)


def table_notes(subject: Subject, entries: Mapping[str, Row]) -> list[str]:
    """What a user should know of the pack's table of directions: one note for a table without toRGB's rows, or else one
    for the prompts that do better without them. Settings are those of the whole table, which is what `edit` moves.
    """
    if len(tables_of(subject)) == 1:
        advice = "`styleclip-rt train directions --channels all --out PACK` measures them; --recommend compares both"
        return [f"the table of directions has no rows for toRGB channels, where many generators keep colour; {advice}"]
    better = [
        f"{name} ({entry['merit'][CONV]:.2f} against {entry['merit']['global']:.2f})"
        for name, entry in entries.items()
        if entry["merit"][CONV] > entry["merit"]["global"]
    ]
    if not better:
        return []
    advice = "`edit` moves all; `styleclip-rt train directions --channels conv --out PACK` makes a table without them"
    return [f"without toRGB channels the merit is higher for {', '.join(better)}. {advice}"]


def with_settings(prompts: Sequence[Prompt], entries: Mapping[str, Row]) -> list[Prompt]:
    """The prompts with what was chosen for them."""
    out = []
    for prompt in prompts:
        entry = entries.get(prompt.name, {})
        known = {key: value for key, value in entry.items() if key != "merit"}
        out.append(replace(prompt, **known))
    return out


def kept_choice(pack: Pack, out: Path | None, prompts: Sequence[Prompt], **asked: Any) -> Kept:
    """Where what was chosen waits if the pack cannot be written. `asked`: what else the choice depends on."""
    folder = publish.destination(pack, out).absolute()
    names = ("generator", "clip", "tokenizer", "directions", "statistics", "judge", "identity")
    parts = digests(pack, *names, *(prompt.mapper for prompt in prompts if prompt.mapper))
    stamp = {"prompts": [asdict(prompt) for prompt in prompts], "parts": parts, "templates": pack.templates, **asked}
    return Kept(folder.with_name(f"{folder.name}-work") / "recommended.safetensors", stamp)


def write(pack: Pack, out: Path | None, entries: Mapping[str, Row], reasons: Mapping[str, str], kept: Kept) -> Path:
    """Merges the entries into the pack's prompts, in `publish.destination(pack, out)`; returns the pack's folder.

    Raises StyleclipError where the pack cannot be written: `kept` then gets {"entries", "reasons"} as its record.
    """
    prompts = {name: {key: value for key, value in entry.items() if key != "merit"} for name, entry in entries.items()}
    record = {"entries": dict(entries), "reasons": dict(reasons)}
    return publish.publish(pack, out, {}, prompts, kept=kept, record=record)
