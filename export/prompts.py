"""Which prompts a bundle carries: the pack's own table, with those that were asked for settled and first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..engines.errors import InputError
from ..runtime.prompts import DEFAULT_NEUTRAL, MAX_PROMPT_CHARS, slug
from ..runtime.resolutions import checked_resolutions
from ..runtime.training.pack import Pack
from .bundle_writer import Plan
from .graphs import mapper_graph_name


def make_plan(pack: Pack, asked: Sequence[str], neutral: str | None = None, name: str | None = None) -> Plan:
    """The plan for `asked` prompts (names of the pack or free text); the first becomes the bundle's default.

    The pack's other prompts come along: they cost nothing. A mapper is exported only for prompts that were asked for.
    Without any prompt the pack's first is the default. `neutral` replaces the neutral text of the asked prompts.
    Raises InputError for an empty or overlong text.
    """
    for text in [*asked, *([neutral] if neutral is not None else [])]:
        check_text(text)
    table = {key: entry_of(entry) for key, entry in pack.prompts.items()}
    keys = list(dict.fromkeys(find(pack, text) or text.strip() for text in asked or list(pack.prompts)[:1]))
    for key in keys:
        table.setdefault(key, entry_of({"target": key, "neutral": usual_neutral(pack)}))
        if neutral is not None:
            table[key]["neutral"] = neutral.strip()
    mappers = tuple(key for key in keys if key in pack.mappers and asked)
    for key, entry in table.items():
        entry["mapper"] = mapper_graph_name(pack, key) if key in mappers else None
        entry.setdefault("strength", 1.0)
    ordered = {key: table[key] for key in [*keys, *(key for key in table if key not in keys)]}
    return Plan(name or pack.name, ordered, keys[0] if keys else None, mappers)


def entry_of(entry: dict[str, Any]) -> dict[str, Any]:
    """A prompt of the pack as the bundle states it."""
    resolutions = checked_resolutions(entry.get("resolutions"))
    return {**entry, "alpha": entry.get("alpha"), "beta": entry.get("beta"), "resolutions": resolutions}


def find(pack: Pack, text: str) -> str | None:
    """The pack's name for a prompt given by name, slug or target text: "Bob cut" is "bob-cut"; None for free text."""
    wanted = slug(text).replace("-", "")
    for key, entry in pack.prompts.items():
        if text == key or (wanted and wanted in (slug(key).replace("-", ""), slug(str(entry.get("target", ""))))):
            return key
    for key in pack.mappers:
        if slug(key).replace("-", "") == wanted:
            return key
    return None


def usual_neutral(pack: Pack) -> str:
    """The neutral text of most of the pack's prompts; "a face" for a pack without prompts."""
    counts = Counter(str(entry["neutral"]) for entry in pack.prompts.values() if entry.get("neutral"))
    return counts.most_common(1)[0][0] if counts else DEFAULT_NEUTRAL


def check_text(text: str) -> None:
    """Raises InputError for a text that is empty, too long, or holds control characters."""
    if not text.strip() or len(text) > MAX_PROMPT_CHARS or not text.isprintable():
        raise InputError(
            f"prompt {text[:60]!r}... cannot be used; expected 1 to {MAX_PROMPT_CHARS} printable characters"
        )
