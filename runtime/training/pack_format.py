"""The model pack as a file format: manifest, paths, hashes, safetensors headers; nothing here builds a network.

A pack is a folder with `pack.json` and the files it names. What is refused, always with PackError: a manifest that is
not an object, over 4 MiB or of another format or version; component names outside [a-z0-9_-]; a path that is absolute,
climbs out, or leads out through a symbolic link; a size or SHA-256 that differs; a safetensors header that is larger
than 8 MiB or than its file.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from ...engines.bundle import sha256_of
from ...engines.errors import InputError, PackError
from .swap import put_in_place, recover

FORMAT = "styleclip-rt/pack"
VERSION = 1
MANIFEST = "pack.json"
MAX_MANIFEST_BYTES = 4 << 20
MAX_HEADER_BYTES = 8 << 20
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
COMPONENT = re.compile(rf"{NAME.pattern}(/{NAME.pattern})?")


def safe_path(root: Path, relative: object) -> Path:
    """The regular file `relative` inside `root`; PackError when it is missing or lies outside."""
    if not isinstance(relative, str) or not relative or "\\" in relative or "\0" in relative:
        raise PackError(f"file name {relative!r} in {MANIFEST} is not a plain relative path")
    parts = PurePosixPath(relative).parts
    if PurePosixPath(relative).is_absolute() or ".." in parts or ":" in parts[0]:
        raise PackError(f"file name {relative!r} in {MANIFEST} leaves the pack; expected a path inside {root}")
    path = root / relative
    if not path.resolve().is_relative_to(root.resolve()):
        raise PackError(f"file {relative!r} is a link out of the pack {root}")
    if not path.is_file():
        raise PackError(f"file {relative!r} is named in {MANIFEST} but is not in {root}; the pack is incomplete")
    return path


def check_file(root: Path, component: str, entry: Mapping[str, Any]) -> Path:
    """The component's file after checks of path, size and SHA-256."""
    path = safe_path(root, entry.get("file"))
    size = path.stat().st_size
    if size != entry.get("bytes"):
        raise PackError(
            f"{component}: {path.name} has {size} bytes, pack.json says {entry.get('bytes')}; fetch it again"
        )
    if sha256_of(path) != entry.get("sha256"):
        raise PackError(f"{component}: SHA-256 of {path.name} differs from pack.json; fetch the pack again")
    return path


def check_header(path: Path) -> None:
    """Refuses a safetensors file whose header is larger than 8 MiB, or than the file, before anything parses it."""
    with path.open("rb") as stream:
        prefix = stream.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length + 8 > path.stat().st_size or length > MAX_HEADER_BYTES:
        raise PackError(f"{path.name}: header of {length} bytes is larger than its file or than {MAX_HEADER_BYTES}")


def read_manifest(root: Path) -> tuple[dict[str, Any], str]:
    """(checked manifest, SHA-256 of pack.json) of the pack folder `root`."""
    path = root / MANIFEST
    if not path.is_file():
        raise PackError(f"{root} holds no {MANIFEST}; expected the folder of a model pack")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise PackError(f"{path} has {path.stat().st_size} bytes; a manifest has at most {MAX_MANIFEST_BYTES}")
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise PackError(f"{path} is not JSON: {error}") from None
    check_manifest(manifest, path)
    return manifest, sha256_of(path)


def check_manifest(manifest: Any, path: Path) -> None:
    """Raises PackError unless `manifest` has this version's structure."""
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise PackError(f"{path} is not a {FORMAT} manifest")
    if manifest.get("version") != VERSION:
        raise PackError(f"{path} has format version {manifest.get('version')!r}; this program reads version {VERSION}")
    for key, kind in {"name": str, "components": dict, "templates": list, "prompts": dict, "alignment": dict}.items():
        if not isinstance(manifest.get(key), kind):
            raise PackError(f"{path}: {key!r} is {type(manifest.get(key)).__name__}; expected {kind.__name__}")
    if not NAME.fullmatch(manifest["name"]):
        raise PackError(f"{path}: pack name {manifest['name']!r} may hold only a-z, 0-9, '-' and '_'")
    for component, entry in manifest["components"].items():
        if not COMPONENT.fullmatch(component) or not isinstance(entry, dict):
            raise PackError(f"{path}: component {component!r} is misnamed or not an object")
        if not isinstance(entry.get("config", {}), dict):
            raise PackError(f"{path}: config of {component!r} is not an object")


@contextmanager
def atomic_directory(target: Path, marker: str) -> Iterator[Path]:
    """Yields an empty folder beside `target`; it becomes `target` when the block ends, and vanishes when it raises.

    A folder already there is replaced only if it is empty or holds `marker` (the manifest of the same kind of folder).
    At every moment the old or the new one stands at `target`; where the system cannot swap two folders, a kill may
    leave none, and the next start puts the old one back (`swap.recover`). Raises InputError when something else stands
    there.
    """
    target = target.absolute()
    recover(target, marker)
    if target.exists() and not (target.is_dir() and ((target / marker).is_file() or not any(target.iterdir()))):
        raise InputError(f"{target} exists and holds no {marker}; give an empty or a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        fresh = work / "new"
        fresh.mkdir()
        yield fresh
        put_in_place(fresh, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
