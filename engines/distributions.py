"""Which installed distributions stand behind `import onnxruntime`, and the command that leaves one intact.

`onnxruntime`, `onnxruntime-gpu` and their kin install the same files: the one unpacked last runs, and removing one
breaks the other.
"""

from __future__ import annotations

ORT_DISTRIBUTIONS = (
    "onnxruntime-gpu",
    "onnxruntime",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-rocm",
    "onnxruntime-migraphx",
    "onnxruntime-qnn",
    "ort-nightly-gpu",
    "ort-nightly",
)

# Each of these brings one of the import names of `nvinfer.MODULES`.
TENSORRT_DISTRIBUTIONS = {
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
    "tensorrt_rtx_bindings": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings"),
}


def tensorrt_version(module: str) -> str:
    """Version of the distribution behind an import name of TensorRT, "" if it is not known; imports nothing of it."""
    return next(filter(None, map(distribution_version, TENSORRT_DISTRIBUTIONS.get(module, ()))), "")


def distribution_version(name: str) -> str:
    """Version of an installed distribution, "" if there is none."""
    from importlib import metadata  # 15 ms that only `info` and errors need

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def ort_distributions() -> list[str]:
    """The installed distributions that claim the import name `onnxruntime`, the one to keep first."""
    return [name for name in ORT_DISTRIBUTIONS if distribution_version(name)]


def ort_clash() -> str:
    """One sentence if several distributions overwrite each other, else ""."""
    present = ort_distributions()
    if len(present) < 2:
        return ""
    return f"{' and '.join(present)} are both installed and overwrite each other's files"


def ort_repair() -> str:
    """The command after which exactly one distribution is installed, with all its files."""
    present = ort_distributions()
    if not present:
        return "python -m pip install onnxruntime"
    keep, *others = present
    install = f"python -m pip install --force-reinstall --no-deps {keep}=={distribution_version(keep)}"
    return f"python -m pip uninstall -y {' '.join(others)} && {install}" if others else install
