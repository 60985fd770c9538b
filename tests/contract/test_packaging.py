"""What the wheel holds: every source file of the four folders, the data that the manifests name, and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="Python 3.10 reads pyproject.toml with tomli")

FOLDERS = ("engines", "runtime", "export", "benchmarks")
DATA = Path("runtime") / "data"
MB = 1_000_000


@pytest.fixture(scope="module")
def pyproject(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no build folder of the checkout can leak into it."""
    copy = tmp_path_factory.mktemp("wheel") / "source"
    copy.mkdir()
    for name in (".package", *FOLDERS):
        shutil.copytree(root / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, copy / name)
    out = copy.parent / "dist"
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", out, copy]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return next(out.glob("*.whl"))


def _manifest_files(folder: Path, manifest: str) -> set[Path]:
    """A manifest and every file that it names, relative to the root of the repository."""
    content = json.loads((folder / manifest).read_text(encoding="utf-8"))
    if manifest == "bundle.json":
        names = set(content["files"])
    else:
        names = {component["file"] for component in content["components"].values()}
    return {folder / manifest, *(folder / name for name in names)}


def test_setuptools_lists_every_package(root: Path, pyproject: dict) -> None:
    """A package that is not listed works in editable mode and is silently absent from the wheel."""
    found = {
        ".".join(("styleclip_rt", *path.parent.relative_to(root).parts))
        for folder in FOLDERS
        for path in (root / folder).rglob("__init__.py")
    }
    assert set(pyproject["tool"]["setuptools"]["packages"]) == found | {"styleclip_rt"}


def test_no_source_file_stands_outside_a_package(root: Path) -> None:
    lost = [
        str(path.relative_to(root))
        for folder in FOLDERS
        for path in (root / folder).rglob("*.py")
        if not (path.parent / "__init__.py").exists()
    ]
    assert not lost, "a folder without __init__.py is not in the wheel"


def test_wheel_holds_what_the_readme_promises(root: Path, wheel: Path) -> None:
    sources = {path for folder in FOLDERS for path in (root / folder).rglob("*.py")}
    data = _manifest_files(root / DATA / "toyfaces", "pack.json")
    data |= _manifest_files(root / DATA / "toyfaces-bundle", "bundle.json")
    data |= {root / DATA / "portrait.png", root / "engines/cpp/aoti_run.cpp", root / "engines/cpp/ort_kernels.cpp"}
    data |= set((root / "engines/cpp").glob("*.h"))
    expected = {f"styleclip_rt/{path.relative_to(root).as_posix()}" for path in sources | data}
    expected |= {f"styleclip_rt/{name}" for name in ("__init__.py", "__main__.py", "py.typed")}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected


def test_wheel_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = {
            name.split(".dist-info/")[1]: archive.read(name) for name in archive.namelist() if ".dist-info/" in name
        }
    assert {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"} <= set(info)
    assert b"styleclip-rt = styleclip_rt.runtime.cli:main" in info["entry_points.txt"]
    assert b"License-Expression: Apache-2.0" in info["METADATA"]


def test_sizes(root: Path, wheel: Path) -> None:
    """Limits of the project: wheel 40 MB, embedded pack 16 MB, its bundle 20 MB."""
    sizes = {
        name: sum(path.stat().st_size for path in (root / DATA / name).rglob("*") if path.is_file())
        for name in ("toyfaces", "toyfaces-bundle")
    }
    assert wheel.stat().st_size < 40 * MB
    assert 0 < sizes["toyfaces"] < 16 * MB
    assert 0 < sizes["toyfaces-bundle"] < 20 * MB


def test_base_dependencies_hold_one_onnx_runtime(pyproject: dict) -> None:
    """onnxruntime and onnxruntime-gpu overwrite each other: on no platform may the base or an extra ask for both."""
    requirements = pytest.importorskip("packaging.requirements")
    project = pyproject["project"]
    platforms = [
        {"sys_platform": "linux", "platform_machine": "x86_64"},
        {"sys_platform": "linux", "platform_machine": "aarch64"},
        {"sys_platform": "win32", "platform_machine": "AMD64"},
        {"sys_platform": "darwin", "platform_machine": "arm64"},
    ]
    base = [requirements.Requirement(line) for line in project["dependencies"]]
    for platform in platforms:
        asked = {r.name for r in base if r.marker is None or r.marker.evaluate(platform)}
        assert len({name for name in asked if name.startswith("onnxruntime")}) == 1, platform
        assert not asked & {"torch", "onnx", "onnxscript", "safetensors"}
    extras = [
        requirements.Requirement(line).name for lines in project["optional-dependencies"].values() for line in lines
    ]
    assert "onnxruntime" not in extras, (
        "an extra that names the CPU package would overwrite the one of the base install"
    )
