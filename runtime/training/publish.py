"""What a training made goes into a pack: a new one, or the user's own in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...engines.errors import InputError, StyleclipError
from .kept import Kept
from .pack import DATA, Pack
from .pack_format import MANIFEST, read_manifest
from .pack_writer import Component, PackWriter


def destination(pack: Pack, out: Path | None, makes: Iterable[str] = ()) -> Path:
    """Where results for `pack` are written: `out`, else the pack's own folder. Call it before a long training.

    makes: components that the training will write; one that ends in "/" stands for all of that kind.
    Raises InputError for a pack that ships inside the package, which is not changed, and where `out` is another pack
    with components that would be lost: it is written anew from `pack`.
    """
    if out is None and pack.path.resolve().is_relative_to(DATA.resolve()):
        raise InputError(
            f"the pack {pack.name!r} ships with the package and is not changed; name a new pack with --out"
        )
    if out is not None and (out / MANIFEST).is_file() and out.resolve() != pack.path.resolve():
        _refuse_loss(pack, out, tuple(makes))
    return out if out is not None else pack.path


def _refuse_loss(pack: Pack, out: Path, makes: tuple[str, ...]) -> None:
    there = set(read_manifest(out)[0]["components"]) - set(pack.components)
    kinds = tuple(name for name in makes if name.endswith("/"))
    lost = sorted(name for name in there if name not in makes and not (kinds and name.startswith(kinds)))
    if lost:
        raise InputError(
            f"{out} is a pack with {', '.join(lost)}, which would be lost; to add to it give --pack {out} "
            "without --out, or name a new folder"
        )


def publish(
    pack: Pack,
    out: Path | None,
    components: Mapping[str, Component],
    prompts: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    kept: Path | Kept,
    record: Any = None,
) -> Path:
    """Everything that `pack` holds with `components` added or replaced, in `destination(pack, out)`, atomically.

    Args:
        prompts: entries that are merged into those of the same name ({"bob-cut": {"mapper": "mapper/bob-cut"}}).
        kept: the checkpoint that holds the finished work; or, where a training has none, the `Kept` that gets
            `components` and `record` if the pack cannot be written, and is dropped once it is.
    Returns:
        The folder of the pack.
    Raises:
        StyleclipError: the pack cannot be written (a full disk). What stood there stays, and the work is kept.
    """
    folder = destination(pack, out, components)
    try:
        with PackWriter(folder, pack.name, base=pack.path) as writer:
            writer.components.update(components)
            for name, entry in (prompts or {}).items():
                writer.prompts[name] = {**writer.prompts.get(name, {}), **entry}
    except OSError as error:
        why = error.strerror or error
        if isinstance(kept, Kept):
            _keep(kept, components, record, f"cannot write the pack {folder}: {why}")
        raise StyleclipError(
            f"cannot write the pack {folder}: {why}; the finished work is kept in "
            f"{kept.file if isinstance(kept, Kept) else kept}. Mend that and run the same command again"
        ) from error
    if isinstance(kept, Kept):
        kept.drop()
    return folder


def _keep(kept: Kept, components: Mapping[str, Component], record: Any, what: str) -> None:
    try:
        kept.save(components, record)
    except StyleclipError as error:
        raise StyleclipError(f"{what}; nor can the finished work be kept: {error}") from error
