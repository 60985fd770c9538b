"""Engines that are imported when one is wanted, and ONNX Runtime in their place where nobody named them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from .errors import BundleError, EngineError
from .ort import OrtEngine
from .session import Engine
from .spec import GraphSpec


def tensorrt_engine(
    model: Path | bytes, spec: GraphSpec | None = None, device: str = "cuda", threads: int | None = None, **build: Any
) -> Engine:
    """TensorRT; `build` is `options` and `progress` of `trt.default_setup`."""
    from .trt import TensorRtEngine, default_setup  # a third of a second that an edit on the CPU does not need

    return TensorRtEngine(model, spec, device, threads, default_setup(**build))


def tensorrt_or_onnxruntime(
    model: Path | bytes,
    spec: GraphSpec | None = None,
    device: str = "cuda",
    threads: int | None = None,
    *,
    cuda_fault: Callable[[], str],
    **build: Any,
) -> Engine:
    """TensorRT where it can build `model` and the plan passes its gate, else ONNX Runtime, and says so once.

    cuda_fault: why ONNX Runtime does not run on CUDA, "" if it does.
    """
    try:
        return tensorrt_engine(model, spec, device, threads, **build)
    except BundleError:
        raise
    except EngineError as error:
        instead = "cpu" if cuda_fault() else "cuda"
        engine = OrtEngine(model, spec, instead, threads)
        _say(f"TensorRT is not used: {error}. ONNX Runtime runs the graph, on {instead!r}.")
        return engine


def kernels_engine(
    model: Path | bytes, spec: GraphSpec | None = None, device: str = "cpu", threads: int | None = None
) -> Engine:
    """ONNX Runtime with own kernels."""
    from .ort_kernels import OrtKernelsEngine  # an edit without them need not import it

    return OrtKernelsEngine(model, spec, device, threads)


def kernels_or_onnxruntime(
    model: Path | bytes, spec: GraphSpec | None = None, device: str = "cpu", threads: int | None = None
) -> Engine:
    """ONNX Runtime with own kernels where it can open `model` with them, else without, and says so once."""
    try:
        return kernels_engine(model, spec, device, threads)
    except BundleError:
        raise
    except EngineError as error:
        engine = OrtEngine(model, spec, device, threads)
        _say(f"ONNX Runtime runs without own kernels: {error}.")
        return engine


@lru_cache(maxsize=1)
def _said() -> list[str]:
    return []


def _say(message: str) -> None:
    """One warning a process, however many graphs fall back."""
    if not _said():
        warnings.warn(message, stacklevel=3)
    _said().append(message)
