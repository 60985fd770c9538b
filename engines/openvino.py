"""OpenVINO on CPU, reading the same ONNX files. The only module that imports `openvino`, when an engine is wanted."""

from __future__ import annotations

import queue
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .cpu import thread_count
from .errors import EngineError, EngineUnavailable, MissingDependency
from .session import Engine, agreed_spec, first_line, model_name
from .spec import GraphSpec, TensorSpec


class OpenVinoEngine(Engine):
    """One ONNX file compiled by OpenVINO for the CPU, in the precision of the file (never silently bfloat16)."""

    backend: ClassVar[str] = "openvino"

    def __init__(
        self, model: Path | bytes, spec: GraphSpec | None = None, device: str = "cpu", threads: int | None = None
    ) -> None:
        """Compile `model`, a file or its bytes; `spec`, if given, is what it must be.

        Raises:
            EngineUnavailable: `device` is not `"cpu"`.
            EngineError: the file cannot be loaded.
            BundleError: the file is not what `spec` says.
        """
        if device != "cpu":
            raise EngineUnavailable(f"OpenVINO runs on the CPU here, not on {device!r}; use device='cpu'.")
        core, settings = _core(), _settings(thread_count(threads))
        try:
            graph = core.read_model(model if isinstance(model, bytes) else str(model))
            self._model = core.compile_model(graph, "CPU", settings)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot load {model_name(model)}: {gist(error)}") from error
        super().__init__(agreed_spec(spec, _spec_of(graph, model_name(model)), model), device)
        # A request runs one call at a time; one is kept per caller that was ever in here at the same moment.
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def _run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        idle = self._idle  # close() replaces it: a request that ends later must not survive in the new one
        try:
            request = idle.get_nowait()
        except queue.Empty:
            request = self._new_request()
        try:
            results = request.infer(feeds, share_inputs=True, share_outputs=False)
            return {tensor.name: np.asarray(results[tensor.name]) for tensor in self.spec.outputs}
        except RuntimeError as error:
            raise EngineError(f"graph {self.spec.name!r} failed in OpenVINO: {gist(error)}") from error
        finally:
            idle.put(request)

    def _new_request(self) -> Any:
        model = self._model
        if model is None:
            raise self._closed_error()
        return model.create_infer_request()

    def close(self) -> None:
        """Free the compiled model, once the runs in progress have ended."""
        super().close()
        self._model = None
        self._idle = queue.SimpleQueue()


def version() -> str:
    """Version of OpenVINO; imports it.

    Raises:
        MissingDependency: it is not installed.
    """
    return str(_library().__version__)


@lru_cache(maxsize=1)
def _library() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise MissingDependency(
            f"OpenVINO cannot be imported ({first_line(error)}); run: python -m pip install 'styleclip-rt[openvino]'"
        ) from error
    return openvino


@lru_cache(maxsize=1)
def _core() -> Any:
    return _library().Core()


def _settings(threads: int) -> dict[str, Any]:
    return {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        # On CPUs with AMX the default is bfloat16, whose error is a hundred times the tolerance of an export.
        "INFERENCE_PRECISION_HINT": "f32",
    }


def _spec_of(model: Any, name: str) -> GraphSpec:
    inputs, outputs = (tuple(map(_tensor_of, ports)) for ports in (model.inputs, model.outputs))
    return GraphSpec(name, inputs, outputs)


def _tensor_of(port: Any) -> TensorSpec:
    name = port.get_any_name()
    sizes = enumerate(port.get_partial_shape())
    shape = tuple(f"{name}_{axis}" if size.is_dynamic else size.get_length() for axis, size in sizes)
    return TensorSpec(name, np.dtype(port.get_element_type().to_dtype()).name, shape)


def gist(error: BaseException) -> str:
    """The telling line of an OpenVINO error, whose first lines name its own source files."""
    lines = [line.strip() for line in str(error).splitlines()]
    noise = ("Exception from ", "Check '", "Loading input model")
    telling = [line for line in lines if line and not line.startswith(noise)]
    return telling[0][:300] if telling else first_line(error)
