"""OpenVINO on CPU, reading the same ONNX files. The only module that imports `openvino`, when an engine is wanted."""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .cpu import thread_count
from .errors import EngineError, EngineUnavailable, MissingDependency
from .openvino_forms import rewrite
from .session import Engine, agreed_spec, first_line, model_name
from .spec import GraphSpec, TensorSpec

SHAPES = 8
"""Shapes of feeds that stay compiled; the one that was used longest ago gives way."""

Shapes = tuple[tuple[int, ...], ...]


class _PerShape:
    """A graph and what was compiled of it, by the shapes of the feeds; None where a free size is not the batch."""

    def __init__(self, graph: Any, spec: GraphSpec, settings: dict[str, Any]) -> None:
        self.graph, self.spec, self.settings = graph, spec, settings
        shapes = [tensor.shape for tensor in spec.inputs]
        self.by_batch = not any(isinstance(size, str) for shape in shapes for size in shape[1:])
        # A request runs one call at a time; one is kept per caller that was ever in here at the same moment.
        self.compiled: OrderedDict[Shapes | None, tuple[Any, queue.SimpleQueue[Any]]] = OrderedDict()
        self.lock = threading.Lock()
        try:
            self.request(tuple(tuple(1 if isinstance(size, str) else size for size in shape) for shape in shapes))
        except RuntimeError:
            if not self.by_batch:
                raise
            self.by_batch = False  # a graph that is wrong at batch 1 may be right at another one: a run tells
            self.request(())

    def request(self, shapes: Shapes) -> tuple[queue.SimpleQueue[Any], Any]:
        """An idle request for feeds of these shapes, and the queue to put it into after the run."""
        key = shapes if self.by_batch else None
        with self.lock:
            if key not in self.compiled:
                self.compiled[key] = _core().compile_model(self._fixed(key), "CPU", self.settings), queue.SimpleQueue()
                if len(self.compiled) > SHAPES:
                    self.compiled.popitem(last=False)
            self.compiled.move_to_end(key)
            model, idle = self.compiled[key]
        try:
            return idle, idle.get_nowait()
        except queue.Empty:
            return idle, model.create_infer_request()

    def _fixed(self, shapes: Shapes | None) -> Any:
        """The graph with feeds of these shapes; the constants are shared, not copied."""
        graph = self.graph.clone()
        if shapes is not None:
            names = (tensor.name for tensor in self.spec.inputs)
            graph.reshape(dict(zip(names, map(list, shapes), strict=True)))
        return graph


class OpenVinoEngine(Engine):
    """One ONNX file compiled by OpenVINO for the CPU, in the precision of the file (never silently bfloat16).

    Where only the batch is free, the graph is compiled for each batch size when it first comes (batch 1 on opening):
    with a free batch OpenVINO leaves element-wise work unfused.
    """

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
        try:
            graph = _core().read_model(model if isinstance(model, bytes) else str(model))
            spec = agreed_spec(spec, _spec_of(graph, model_name(model)), model)
            rewrite(graph, library())
            compiled = _PerShape(graph, spec, _settings(thread_count(threads)))
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot load {model_name(model)}: {gist(error)}") from error
        super().__init__(spec, device)
        self._compiled: _PerShape | None = compiled

    def _run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        compiled = self._compiled
        if compiled is None:
            raise self._closed_error()
        try:
            idle, request = compiled.request(tuple(feed.shape for feed in feeds.values()))
            try:
                results = request.infer(feeds, share_inputs=True, share_outputs=False)
                return {tensor.name: np.asarray(results[tensor.name]) for tensor in self.spec.outputs}
            finally:
                idle.put(request)
        except RuntimeError as error:
            raise EngineError(f"graph {self.spec.name!r} failed in OpenVINO: {gist(error)}") from error

    def close(self) -> None:
        """Free the compiled model, once the runs in progress have ended."""
        super().close()
        self._compiled = None


def version() -> str:
    """Version of OpenVINO; imports it.

    Raises:
        MissingDependency: it is not installed.
    """
    return str(library().__version__)


def compiled_constants(model: Any, threads: int) -> Any:
    """A request for an openvino.Model that was put together in this process, with constant weights and shapes.

    Raises:
        EngineError: OpenVINO cannot compile it.
    """
    try:
        return _core().compile_model(model, "CPU", _settings(threads)).create_infer_request()
    except RuntimeError as error:
        raise EngineError(f"OpenVINO cannot compile a graph: {gist(error)}") from error


@lru_cache(maxsize=1)
def library() -> Any:
    """The module `openvino`, with its `passes`.

    Raises:
        MissingDependency: it cannot be imported.
    """
    try:
        import openvino
        import openvino.passes
    except ImportError as error:
        raise MissingDependency(
            f"OpenVINO cannot be imported ({first_line(error)}); run: python -m pip install 'styleclip-rt[openvino]'"
        ) from error
    return openvino


@lru_cache(maxsize=1)
def _core() -> Any:
    return library().Core()


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
