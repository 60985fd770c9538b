"""The serving path runs without torch and onnx, and every module imports without any backend installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TRAINING_LIBRARIES = ("torch", "torchvision", "open_clip", "onnx", "onnxscript", "safetensors", "timm", "tqdm")
BACKENDS = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "pycuda", "cuda")

BLOCK = """
import importlib, pkgutil, sys

class Blocked:
    def __init__(self, names):
        self.names = names
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked by a test)", name=name)

sys.meta_path.insert(0, Blocked(%(blocked)r))
"""

IMPORT_ALL = """
import styleclip_rt
imported = []
for package in ("styleclip_rt.engines", "styleclip_rt.runtime"):
    folder = importlib.import_module(package)
    for module in pkgutil.walk_packages(folder.__path__, package + ".", onerror=lambda name: None):
        if not module.name.startswith("styleclip_rt.runtime.training"):
            importlib.import_module(module.name)
            imported.append(module.name)
print(len(imported), "modules")
"""

EDIT = """
import numpy as np
from PIL import Image
import styleclip_rt
with styleclip_rt.Editor.open("toyfaces") as editor:
    result = editor.edit(Image.open(%(portrait)r), "purple hair", alpha=3, beta=0.12)
assert result.image.size[0] >= 64 and len(result.channels) > 0 and np.isfinite(result.delta_s).all()
print(len(result.channels), "channels")
"""

EXPORT = """
from styleclip_rt.runtime.cli import main
sys.argv = ["styleclip-rt", "export", "--prompt", "bob-cut"]
main()
"""


def _python(source: str, **values: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", source % values]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)


@pytest.mark.parametrize(
    "blocked",
    [TRAINING_LIBRARIES, (*TRAINING_LIBRARIES, *BACKENDS)],
    ids=["without torch and onnx", "without any backend either"],
)
def test_every_serving_module_imports(blocked: tuple[str, ...]) -> None:
    result = _python(BLOCK + IMPORT_ALL, blocked=blocked)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("modules\n")


def test_an_edit_runs_without_torch(root: Path) -> None:
    portrait = str(root / "runtime" / "data" / "portrait.png")
    result = _python(BLOCK + EDIT, blocked=TRAINING_LIBRARIES, portrait=portrait)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("channels\n")


def test_importing_the_package_loads_no_backend() -> None:
    heavy = ("numpy", "PIL", "click", *TRAINING_LIBRARIES, *BACKENDS)
    result = _python("import sys, styleclip_rt; print([m for m in %(heavy)r if m in sys.modules])", heavy=heavy)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_public_names_resolve() -> None:
    import styleclip_rt

    assert {name for name in styleclip_rt.__all__ if not hasattr(styleclip_rt, name)} == set()
    assert {"Editor", "open_bundle", "edits", "__version__"} <= set(dir(styleclip_rt))
    with pytest.raises(AttributeError, match="public names"):
        _ = styleclip_rt.editor_typo  # type: ignore[attr-defined]


def test_torch_commands_name_the_extra() -> None:
    """A command that needs torch says which extra to install, on one line, with the exit code of its error."""
    result = _python(BLOCK + EXPORT, blocked=TRAINING_LIBRARIES)
    assert result.returncode == 7, result.stderr
    assert "styleclip-rt[torch]" in result.stderr
    assert "Traceback" not in result.stderr
