"""`bundle.json`, format version 1: read and checked as a file from a stranger, before anything else is opened.

What is refused: a manifest that is too large, not JSON, not a dictionary, of another format or version; a path that is
absolute, climbs out with `..` or leaves the bundle through a symbolic link; a file that is missing or has another
size; a graph whose file is not listed or whose tensors are malformed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import Any

from .errors import BundleError
from .spec import DTYPES, GraphSpec, TensorSpec

FORMAT = "styleclip-rt/bundle"
VERSION = 1
FILENAME = "bundle.json"
MAX_BYTES = 4 << 20
MAX_RANK = 8
_SHA256 = re.compile(r"[0-9a-f]{64}")
_AGAIN = "export the bundle again"


@dataclass(frozen=True)
class FileEntry:
    """One file of a bundle: where it really is, its SHA-256 in hex, and its size."""

    path: Path
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """A checked manifest: `raw` is the JSON as read, the rest is what the engines need of it."""

    raw: dict[str, Any]
    files: dict[str, FileEntry]
    graphs: dict[str, GraphSpec]
    graph_files: dict[str, Path]


def read_manifest(root: Path) -> Manifest:
    """Read and check `root/bundle.json`; hashes are not computed here.

    Raises:
        BundleError: the bundle is missing, malformed or of an unknown version; the message says what and where.
    """
    where = root / FILENAME
    raw = _read_json(where)
    _check_version(raw, where)
    files = {name: _file_entry(root, name, row, where) for name, row in _table(raw, "files", where).items()}
    graphs, graph_files = {}, {}
    for name, row in _table(raw, "graphs", where).items():
        graphs[name] = _graph_spec(name, row, where)
        file = row.get("file")
        if not isinstance(file, str) or file not in files:
            raise BundleError(f"{where}: graph {name!r} is in {file!r}, which is not in its `files`; {_AGAIN}.")
        graph_files[name] = files[file].path
    return Manifest(raw, files, graphs, graph_files)


def path_inside(root: Path, relative: object) -> Path:
    """The real path of `relative`, a POSIX path below `root`.

    Raises:
        BundleError: it is absolute, contains `..`, or leaves `root` through a symbolic link.
    """
    given = f"{root}: the path {str(relative)[:200]!r}"
    if not isinstance(relative, str) or not relative or any(c in "\\:" or ord(c) < 32 for c in relative):
        raise BundleError(f"{given} is not a plain relative path with forward slashes; {_AGAIN}.")
    parts = PurePosixPath(relative)
    if parts.is_absolute() or ".." in parts.parts:
        raise BundleError(f"{given} points outside the bundle; a bundle may only name its own files.")
    try:
        real, base = (root / relative).resolve(), root.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a loop of links, before Python 3.13
        why = getattr(error, "strerror", None) or type(error).__name__
        raise BundleError(f"{given} cannot be followed ({why}); {_AGAIN}.") from error
    if base not in real.parents:
        raise BundleError(
            f"{given} leaves the bundle through a symbolic link; copy the bundle with its links resolved."
        )
    return real


def _read_json(where: Path) -> dict[str, Any]:
    try:
        with where.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BundleError(
            f"no bundle at {where.parent}: cannot read {where.name} ({error.strerror or error}); "
            "give the directory that `styleclip-rt export` wrote."
        ) from error
    if len(data) > MAX_BYTES:
        raise BundleError(f"{where}: larger than {MAX_BYTES} bytes, which no manifest is; {_AGAIN}.")
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: not JSON ({error}); {_AGAIN}.") from error
    if not isinstance(raw, dict):
        raise BundleError(f"{where}: holds a {type(raw).__name__}, expected a JSON object; {_AGAIN}.")
    return raw


def _check_version(raw: dict[str, Any], where: Path) -> None:
    if raw.get("format") != FORMAT:
        raise BundleError(f"{where}: format is {_short(raw.get('format'))}, expected {FORMAT!r}; is this a bundle?")
    version = raw.get("version")
    if type(version) is not int or version != VERSION:
        raise BundleError(
            f"{where}: format version is {_short(version)}, this release reads version {VERSION}; "
            "upgrade styleclip-rt, or export the bundle with this release."
        )


def _table(raw: dict[str, Any], key: str, where: Path) -> dict[str, dict[str, Any]]:
    table = raw.get(key)
    if not isinstance(table, dict) or not table or not all(isinstance(row, dict) for row in table.values()):
        raise BundleError(f"{where}: `{key}` must be a non-empty object of objects, got {_short(table)}; {_AGAIN}.")
    return table


def _file_entry(root: Path, name: str, row: dict[str, Any], where: Path) -> FileEntry:
    path = path_inside(root, name)
    sha256, size = row.get("sha256"), row.get("bytes")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise BundleError(f"{where}: {name}: sha256 is {_short(sha256)}, expected 64 hex digits; {_AGAIN}.")
    if type(size) is not int or size < 0:
        raise BundleError(f"{where}: {name}: bytes is {_short(size)}, expected the size of the file; {_AGAIN}.")
    found = _size_of(path)
    if found is None:
        raise BundleError(f"{root}: the file {name[:200]} is missing; copy the bundle again, or {_AGAIN}.")
    if found != size:
        raise BundleError(f"{path}: has {found} bytes, the manifest says {size}; copy the bundle again, or {_AGAIN}.")
    return FileEntry(path, sha256, size)


def _size_of(path: Path) -> int | None:
    """Bytes of a regular file; None for anything else, a name that no file can have included."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_size if S_ISREG(found.st_mode) else None


def _graph_spec(name: str, row: dict[str, Any], where: Path) -> GraphSpec:
    inputs, outputs = (_tensors(row.get(key), f"{where}: graph {name!r}, `{key}`") for key in ("inputs", "outputs"))
    return GraphSpec(name, inputs, outputs)


def _tensors(rows: object, where: str) -> tuple[TensorSpec, ...]:
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise BundleError(f"{where} must be a non-empty list of objects, got {_short(rows)}; {_AGAIN}.")
    tensors = tuple(_tensor(row, where) for row in rows)
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise BundleError(f"{where} names one tensor twice; {_AGAIN}.")
    return tensors


def _tensor(row: dict[str, Any], where: str) -> TensorSpec:
    name, dtype, shape = row.get("name"), row.get("dtype"), row.get("shape")
    if not isinstance(name, str) or not name:
        raise BundleError(f"{where}: a tensor has the name {_short(name)}, expected a string; {_AGAIN}.")
    if dtype not in DTYPES:
        raise BundleError(f"{where}: {name} has dtype {_short(dtype)}, expected one of {', '.join(DTYPES)}; {_AGAIN}.")
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(map(_is_size, shape)):
        raise BundleError(
            f"{where}: {name} has shape {_short(shape)}, expected a list of positive integers and names; {_AGAIN}."
        )
    return TensorSpec(name, dtype, tuple(shape))


def _is_size(size: object) -> bool:
    return (type(size) is int and size > 0) or (isinstance(size, str) and size.isidentifier())


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
