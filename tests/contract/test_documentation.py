"""The documentation is executed: marked shell blocks, every Python block, links, and the names it promises.

A fenced block of `bash` runs if the line before it is `<!-- run -->`; a block of `python` runs unless the line before
it is `<!-- no-run: why -->`. Blocks of one file share a folder in which `portrait.png` lies.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(
    r"(?P<mark>^<!--[^\n]*-->\n)?^```(?P<kind>bash|python)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def _blocks() -> list[tuple[str, str, str]]:
    """(id, kind, body) of every block that has to run."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            kind, mark = match["kind"], match["mark"] or ""
            if mark.startswith("<!-- run") if kind == "bash" else not mark.startswith("<!-- no-run"):
                line = text[: match.start("body")].count("\n")
                found.append((f"{page.name}:{line}", kind, match["body"]))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the blocks run: a folder with the sample portrait, as a reader has it, and a home where nothing is yet."""
    place = tmp_path_factory.mktemp("documentation")
    shutil.copy(ROOT / "runtime" / "data" / "portrait.png", place)
    return place


@pytest.mark.parametrize(("kind", "body"), [b[1:] for b in _blocks()], ids=[b[0] for b in _blocks()])
def test_block_runs(folder: Path, kind: str, body: str) -> None:
    if "styleclip-rt export" in body:
        pytest.importorskip("torch", reason="export needs the extra `torch`")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = ["bash", "-euo", "pipefail", "-c", body] if kind == "bash" else [sys.executable, "-c", body]
    result = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PATH": path, "STYLECLIP_RT_HOME": str(folder / "home")},
    )
    assert result.returncode == 0, f"{body}\n{result.stdout}\n{result.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    dead = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert not dead


def test_readme_names_the_two_commands_and_they_exist() -> None:
    readme, makefile = (ROOT / "README.md").read_text(encoding="utf-8"), (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "test", "check"):
        assert f"make {target}" in readme
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("page", ["README.md", "docs/engines.md"])
def test_tensorrt_has_the_label_that_info_gives_it(page: str) -> None:
    from styleclip_rt.engines.nvinfer import LABEL

    text = (ROOT / page).read_text(encoding="utf-8")
    rows = re.findall(r"^\| `?tensorrt`? \|.*$", text, re.MULTILINE | re.IGNORECASE)
    assert len(rows) == 1
    assert LABEL in rows[0]


def test_changelog_has_an_entry_for_this_version() -> None:
    import styleclip_rt

    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[?{re.escape(styleclip_rt.__version__)}\b", text, re.MULTILINE)


def test_tables_are_those_of_the_committed_figures() -> None:
    from styleclip_rt.benchmarks.report import fill

    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        filled = fill(text, ROOT / "benchmarks" / "results")
        assert text == filled, f"{page.name}: run python -m styleclip_rt.benchmarks.report"
