"""Where bundles live: exports under the user's data folder, and the ready-made bundles that ship with the package.

`STYLECLIP_RT_HOME` moves everything; otherwise `$XDG_DATA_HOME/styleclip-rt` or `~/.local/share/styleclip-rt`.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..engines.errors import BundleError

MANIFEST = "bundle.json"
DATA = Path(__file__).resolve().parent / "data"
_SHIPPED_SUFFIX = "-bundle"


@dataclass(frozen=True)
class Found:
    """A bundle on disk. origin: "export", "shipped" or "path"."""

    name: str
    path: Path
    origin: str

    def __str__(self) -> str:
        words = {"export": "newest export", "shipped": "shipped with the package"}
        return f"{self.name} ({words[self.origin]}, {self.path})" if self.origin in words else str(self.path)


def home() -> Path:
    """The folder for exports and caches; it need not exist yet."""
    own = os.environ.get("STYLECLIP_RT_HOME")
    if own:
        return Path(own).expanduser()
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "styleclip-rt"


def export_folder(pack: str, prompt: str) -> Path:
    """Where `export` publishes a bundle when no --out is given: home/bundles/<pack>-<prompt>."""
    name = re.sub(r"[^\w.-]+", "-", f"{pack}-{prompt}").strip("-.") or "bundle"
    return home() / "bundles" / name[:120]


def exports() -> list[Found]:
    """Exported bundles, newest first. Unfinished ones (hidden, or without a manifest) are not listed."""
    found = [Found(p.parent.name, p.parent, "export") for p in _manifests(home() / "bundles")]
    return sorted(found, key=lambda f: (f.path / MANIFEST).stat().st_mtime, reverse=True)


def shipped() -> list[Found]:
    """Bundles inside the package: folder `<name>-bundle` is bundle `<name>`."""
    return [
        Found(p.parent.name.removesuffix(_SHIPPED_SUFFIX), p.parent, "shipped")
        for p in _manifests(DATA)
        if p.parent.name.endswith(_SHIPPED_SUFFIX)
    ]


def find_bundle(name_or_path: str | os.PathLike[str] | None = None) -> Found:
    """Resolve a bundle: a path, the name of an export or shipped bundle, or None for the newest export, else shipped.

    Raises BundleError that lists the names there are.
    """
    there = [*exports(), *shipped()]
    if name_or_path is None:
        if not there:
            raise BundleError("no bundle was found; make one with `styleclip-rt export --prompt bob-cut`")
        return there[0]
    path = Path(name_or_path).expanduser()
    path = path.parent if path.name == MANIFEST else path
    if (path / MANIFEST).is_file():
        return Found(path.name, path, "path")
    for found in there:
        if found.name == os.fspath(name_or_path):
            return found
    names = ", ".join(dict.fromkeys(f.name for f in there)) or "none"
    raise BundleError(
        f"no bundle {os.fspath(name_or_path)!r}: no folder with {MANIFEST}, and no such name; names: {names}"
    )


def prompts_of(bundle: Path) -> dict[str, bool]:
    """Names of a bundle's prompts, the default first, and whether each has a mapper; none if unreadable."""
    try:
        manifest = json.loads((bundle / MANIFEST).read_text("utf-8"))
        names = {str(name): bool(entry.get("mapper")) for name, entry in manifest.get("prompts", {}).items()}
    except (OSError, ValueError, AttributeError):
        return {}
    default = manifest.get("default_prompt")
    return {name: names[name] for name in sorted(names, key=lambda name: name != default)}


def directions_of(bundle: Path) -> list[str]:
    """Names of a bundle's directions; none if unreadable."""
    try:
        return [str(name) for name in json.loads((bundle / MANIFEST).read_text("utf-8")).get("directions") or ()]
    except (OSError, ValueError, AttributeError, TypeError):
        return []


def sample_portrait() -> Path:
    """The portrait that ships as an example input."""
    return DATA / "portrait.png"


def input_path(image: str) -> str:
    """The input file of a command: `sample` is the portrait that ships, unless a file of that name is there."""
    portrait = sample_portrait()
    return str(portrait) if image == "sample" and not Path(image).exists() and portrait.exists() else image


def _manifests(folder: Path) -> list[Path]:
    try:
        entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError:
        return []
    return [p / MANIFEST for p in entries if (p / MANIFEST).is_file()]
