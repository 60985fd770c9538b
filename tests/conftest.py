"""Shared by all tests: the repository's root, an isolated home folder, and the rule for the marker `gpu`."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root folder."""
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def isolated_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Exports and caches of the tests never touch the user's own."""
    home = tmp_path_factory.mktemp("home")
    before = os.environ.get("STYLECLIP_RT_HOME")
    os.environ["STYLECLIP_RT_HOME"] = str(home)
    yield home
    if before is None:
        del os.environ["STYLECLIP_RT_HOME"]
    else:
        os.environ["STYLECLIP_RT_HOME"] = before


@pytest.fixture
def full_disk() -> Callable[[], AbstractContextManager[None]]:
    """A block in which the files of a pack in the making go to a full disk: the error is the system's own.

    What the pack takes over is copied as ever, so that the disk is full half-way through.
    """
    full, genuine = Path("/dev/full"), Path.open
    if not full.exists():
        pytest.skip("this system has no /dev/full")

    def opened(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        making = self.parent.name == "new" and self.parent.parent.name.startswith(".")
        return genuine(full if making and "w" in mode else self, mode, *arguments, **options)

    @contextmanager
    def block() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "open", opened)
            yield

    return block


@pytest.fixture(scope="session")
def tracked(root: Path) -> list[Path]:
    """Every file that git tracks, relative to the root."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: the list of tracked files is unknown")
    return [Path(name) for name in listed.stdout.split("\0") if name and (root / name).exists()]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where no CUDA driver loads, and say so; several workers take the slow files first."""
    if hasattr(config, "workerinput"):  # set by pytest-xdist
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)
    if sys.platform == "win32" or _has_cuda_driver():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA driver (libcuda.so.1) on this machine"))


def _has_cuda_driver() -> bool:
    try:
        return ctypes.CDLL("libcuda.so.1").cuInit(0) == 0
    except OSError:
        return False
