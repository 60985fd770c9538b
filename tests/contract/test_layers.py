"""Who may import whom: import-linter's contracts, relative imports only, and the rule where a reader stands."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

FOLDERS = ("engines", "runtime", "export", "benchmarks")


def _imports(path: Path) -> list[tuple[int, str, int]]:
    """(line, module, level) of every import statement in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.lineno, node.module or "", node.level))
    return found


def _sources(root: Path, *folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (root / folder).rglob("*.py"))


def test_import_linter_contracts_hold(root: Path) -> None:
    pytest.importorskip("importlinter", reason="import-linter comes with the extra `dev`")
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as m; m()", "--no-cache"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("folder", [*FOLDERS, "tests"])
def test_no_folder_is_imported_as_a_root(root: Path, folder: str) -> None:
    """From the repository's root `import engines` works by accident, and loads every class a second time."""
    wrong = [
        f"{path.relative_to(root)}:{line}: import {module}"
        for path in _sources(root, folder)
        for line, module, level in _imports(path)
        if level == 0 and module.split(".")[0] in FOLDERS
    ]
    assert not wrong, "import them relatively, or as styleclip_rt.<folder>"


def test_the_package_imports_itself_relatively(root: Path) -> None:
    """Absolute imports of styleclip_rt inside the package leave the type checker blind."""
    wrong = [
        f"{path.relative_to(root)}:{line}: {module}"
        for path in _sources(root, *FOLDERS)
        for line, module, level in _imports(path)
        if level == 0 and module.split(".")[0] == "styleclip_rt"
    ]
    assert not wrong


def test_every_package_says_what_it_may_import(root: Path) -> None:
    silent = [
        str(path.relative_to(root))
        for path in _sources(root, *FOLDERS)
        if path.name == "__init__.py"
        and "may import" not in (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0].lower()
    ]
    assert not silent, "the first line of the docstring states the layer"


@pytest.mark.parametrize("library", ["onnxruntime", "openvino", "tensorrt", "cuda"])
def test_each_backend_library_is_imported_in_one_module(root: Path, library: str) -> None:
    importers = {
        str(path.relative_to(root))
        for path in _sources(root, "engines", "runtime")
        for _, module, level in _imports(path)
        if level == 0 and module.split(".")[0] == library
    }
    assert len(importers) <= 1, importers
