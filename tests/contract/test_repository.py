"""What tracked files may not hold: paths of one machine, unfinished work, stray binaries."""

from __future__ import annotations

import re
from pathlib import Path

TEXT = {".py", ".cpp", ".h", ".md", ".toml", ".json", ".csv", ".txt", ".yml", ".yaml", ".cfg", ""}
# Written in pieces, so that this file does not find itself.
FORBIDDEN = [re.compile(p) for p in (r"\.\./" + "shared", "/" + r"work/main\b", "/" + r"opt/\w", "/" + r"root\b")]
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b|raise NotImplemented" + "Error")
BINARIES = {".png", ".jpg", ".safetensors", ".onnx", ".bin", ".npz", ".gz"}


def _texts(root: Path, tracked: list[Path]) -> list[tuple[Path, str]]:
    names = [path for path in tracked if path.suffix in TEXT and not (root / path).is_symlink()]
    return [(path, (root / path).read_text(encoding="utf-8")) for path in names]


def test_no_path_of_one_machine(root: Path, tracked: list[Path]) -> None:
    found = [
        f"{path}: {match.group()}"
        for path, text in _texts(root, tracked)
        for pattern in FORBIDDEN
        if (match := pattern.search(text))
    ]
    assert not found


def test_nothing_unfinished(root: Path, tracked: list[Path]) -> None:
    found = [str(path) for path, text in _texts(root, tracked) if path.suffix == ".py" and UNFINISHED.search(text)]
    assert not found


def test_only_known_kinds_of_files_are_tracked(root: Path, tracked: list[Path]) -> None:
    unknown = [str(p) for p in tracked if p.suffix not in TEXT | BINARIES | {".typed"} and not (root / p).is_symlink()]
    assert not unknown


def test_no_tracked_file_is_ignored_by_git(tracked: list[Path]) -> None:
    built = [str(p) for p in tracked if {"__pycache__", "build", ".venv", "demo-out"} & set(p.parts)]
    assert not built
