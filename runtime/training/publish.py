"""What a training made goes into a pack: a new one, or the user's own in place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...engines.errors import InputError
from .pack import DATA, Pack
from .pack_writer import Component, PackWriter


def destination(pack: Pack, out: Path | None) -> Path:
    """Where results for `pack` are written: `out`, else the pack's own folder.

    Raises InputError for a pack that ships inside the package: it is not changed. Call it before a long training.
    """
    if out is None and pack.path.resolve().is_relative_to(DATA.resolve()):
        raise InputError(
            f"the pack {pack.name!r} ships with the package and is not changed; name a new pack with --out"
        )
    return out if out is not None else pack.path


def publish(
    pack: Pack,
    out: Path | None,
    components: Mapping[str, Component],
    prompts: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Everything that `pack` holds with `components` added or replaced, in `destination(pack, out)`, atomically.

    prompts: entries that are merged into those of the same name ({"bob-cut": {"mapper": "mapper/bob-cut"}}).
    Returns the folder of the pack.
    """
    with PackWriter(destination(pack, out), pack.name, base=pack.path) as writer:
        writer.components.update(components)
        for name, entry in (prompts or {}).items():
            writer.prompts[name] = {**writer.prompts.get(name, {}), **entry}
    return writer.path
