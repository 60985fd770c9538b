"""ONNX Runtime, on CPU or CUDA. The only module that imports `onnxruntime`, and only when an engine is wanted."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .cpu import thread_count
from .distributions import ort_repair
from .driver import cuda_driver
from .errors import EngineError, EngineUnavailable, MissingDependency
from .session import PARTS, Engine, agreed_spec, first_line, model_name
from .spec import GraphSpec, TensorSpec

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
CUDA_OPTIONS = {
    "use_tf32": "0",  # a float32 graph is computed in float32: the library's own default rounds factors to 10 bits
    "cudnn_conv_algo_search": "EXHAUSTIVE",  # convolutions are timed once per shape, at the first run of a batch size
    "cudnn_conv_use_max_workspace": "1",  # and the ones that need scratch memory may take part
}
"""Of the CUDA provider, named here so that they do not change with a library's defaults."""
_ERRORS_ONLY = 3
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
"""The option that says where the external weights of a graph lie that is opened from bytes."""
_DTYPES = {"float": "float32", "double": "float64", **{n: n for n in ("float16", "bool")}}
_DTYPES |= {f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_redirect = threading.Lock()


class OrtEngine(Engine):
    """One ONNX file in ONNX Runtime; external weights are memory-mapped by the library on CPU."""

    backend: ClassVar[str] = "onnxruntime"
    providers: ClassVar[dict[str, str]] = {"cpu": "cpu", "cuda": "cuda"}
    """device -> key of `PROVIDERS`."""

    def __init__(
        self, model: Path | bytes, spec: GraphSpec | None = None, device: str = "cpu", threads: int | None = None
    ) -> None:
        """Load `model`, a file or its bytes; `spec`, if given, is what it must be (it may name its free dimensions).

        Raises:
            EngineUnavailable: `device` cannot be had; ONNX Runtime would fall back to the CPU without a word.
            EngineError: the file cannot be loaded.
            BundleError: the file is not what `spec` says.
        """
        if device not in self.providers:
            raise EngineUnavailable(f"the engine {self.backend!r} runs on {'/'.join(self.providers)}, not {device!r}.")
        self._session = self._open(model, self.providers[device], thread_count(threads))
        super().__init__(agreed_spec(spec, _spec_of(self._session, model_name(model)), model), device)
        self._outputs = [tensor.name for tensor in self.spec.outputs]

    def _open(self, model: Path | bytes, provider: str, threads: int) -> Any:
        """The session of `model`; provider: a key of `PROVIDERS`."""
        return open_session(model, provider, threads)

    def _run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        session = self._session  # close() in another thread must not take it away half-way
        if session is None:
            raise self._closed_error()
        try:
            outputs = session.run(self._outputs, feeds)
        except Exception as error:  # the library's own exception classes share no base of their own
            raise EngineError(f"graph {self.spec.name!r} failed in ONNX Runtime: {first_line(error)}") from error
        return dict(zip(self._outputs, outputs, strict=True))

    def _split_ms(self, feeds: dict[str, np.ndarray]) -> dict[str, float]:
        """By the host's clock, since ONNX Runtime hands out no stream: the device is waited for after each part."""
        session = self._session
        if session is None:
            raise self._closed_error()
        if self.device == "cpu":
            return {}
        try:
            return _parts_of_run(session, feeds, self._outputs, self.device)
        except Exception as error:  # as in `_run`
            raise EngineError(f"graph {self.spec.name!r} failed in ONNX Runtime: {first_line(error)}") from error

    def close(self) -> None:
        """Free the session, once the runs in progress have ended."""
        super().close()
        self._session = None


class OrtTensorRtEngine(OrtEngine):
    """ONNX Runtime's TensorRT provider: it builds plans of its own at every start, and keeps none on disk.

    Its cache of plans would be read without any check of who wrote them.
    """

    backend: ClassVar[str] = "onnxruntime-tensorrt"
    providers: ClassVar[dict[str, str]] = {"cuda": "tensorrt"}


def version() -> str:
    """Version of ONNX Runtime; imports it.

    Raises:
        MissingDependency: it is not installed.
        EngineUnavailable: its files are damaged.
    """
    return str(_library().__version__)


def unusable_reason(device: str) -> str:
    """Why a key of `PROVIDERS` cannot be had, "" if nothing speaks against it; nothing is run."""
    if device != "cpu" and cuda_driver().devices == 0:
        return cuda_driver().reason
    try:
        ort = _library()
    except (MissingDependency, EngineUnavailable) as error:
        return str(error)
    if PROVIDERS[device] not in ort.get_available_providers():
        return f"the installed onnxruntime {ort.__version__} has no {PROVIDERS[device]}"
    return "" if device == "cpu" else _libraries_missing(device)


@lru_cache(maxsize=2)
def _libraries_missing(device: str) -> str:
    """Why the CUDA or TensorRT provider cannot be loaded, "" if it can.

    The build for GPUs lists both as available on every machine. The provider's library, loaded here by itself, names
    the first library that is missing; a session would print that and go on with the CPU.
    """
    ort = _library()
    windows = sys.platform == "win32"
    name = f"onnxruntime_providers_{device}.dll" if windows else f"libonnxruntime_providers_{device}.so"
    with stdout_to_stderr(), open(os.devnull, "w") as void, redirect_stdout(void):
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # finds CUDA and cuDNN in the nvidia-* wheels where the system has none
    try:
        ctypes.CDLL(str(Path(ort.__file__).parent / "capi" / name))
    except OSError as error:
        kind = {"cuda": "CUDA", "tensorrt": "TensorRT 10"}[device]
        return f"the {kind} libraries are missing ({first_line(error)})"
    return ""


@lru_cache(maxsize=1)
def _library() -> Any:
    """Import ONNX Runtime; the GPU build prints to stdout without a driver, which would corrupt `--json`."""
    try:
        with stdout_to_stderr():
            import onnxruntime
    except ImportError as error:
        raise MissingDependency(
            f"ONNX Runtime cannot be imported ({first_line(error)}); run: {ort_repair()}"
        ) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise EngineUnavailable(
            f"the files of onnxruntime are damaged, as when one of its distributions was removed; run: {ort_repair()}"
        )
    onnxruntime.set_default_logger_severity(_ERRORS_ONLY)
    return onnxruntime


def open_session(
    model: Path | bytes, device: str, threads: int, graph: bytes | None = None, operators: str = ""
) -> Any:
    """An onnxruntime.InferenceSession.

    Args:
        model: a file or its bytes.
        device: a key of `PROVIDERS`.
        threads: of the CPU.
        graph: bytes that are opened in place of those of `model`, over the same external weights.
        operators: the path of a library with custom operators that `graph` needs.

    Raises:
        EngineUnavailable: `device` cannot be had.
        EngineError: the graph or the library cannot be loaded.
    """
    reason = unusable_reason(device)
    if reason:
        raise EngineUnavailable(f"ONNX Runtime cannot run on {device!r}: {reason}")
    ort, provider = _library(), PROVIDERS[device]
    source = graph or (model if isinstance(model, bytes) else str(model))
    options = _options(ort, threads)
    if graph is not None and isinstance(model, Path):
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(model.parent))
    try:
        with stdout_to_stderr(device != "cpu"):
            if operators:
                options.register_custom_ops_library(operators)
            session = ort.InferenceSession(source, options, providers=_providers(device))
    except Exception as error:  # the library's own exception classes share no base of their own
        raise EngineError(f"ONNX Runtime cannot load {model_name(model)}: {first_line(error)}") from error
    if session.get_providers()[0] != provider:
        raise EngineUnavailable(f"ONNX Runtime was asked for {provider} and fell back to {session.get_providers()[0]}")
    return session


def _parts_of_run(session: Any, feeds: dict[str, np.ndarray], outputs: list[str], device: str) -> dict[str, float]:
    """Milliseconds of each of `PARTS` of one run over memory of `device` that is bound to the session."""
    binding = session.io_binding()
    make = _library().OrtValue.ortvalue_from_shape_and_type
    bound = {name: make(list(array.shape), array.dtype.type, device, 0) for name, array in feeds.items()}
    for name, value in bound.items():
        binding.bind_ortvalue_input(name, value)
    for name in outputs:
        binding.bind_output(name, device)
    marks = [time.perf_counter()]
    for name, array in feeds.items():
        bound[name].update_inplace(array)
    binding.synchronize_inputs()
    marks.append(time.perf_counter())
    session.run_with_iobinding(binding)
    binding.synchronize_outputs()
    marks.append(time.perf_counter())
    binding.copy_outputs_to_cpu()
    marks.append(time.perf_counter())
    return {part: 1e3 * (b - a) for part, (a, b) in zip(PARTS, pairwise(marks), strict=True)}


def _providers(device: str) -> list[Any]:
    """What a session is asked for, best first; the CUDA provider with its options."""
    names = dict.fromkeys((device, *(["cuda"] if device == "tensorrt" else []), "cpu"))
    return [(PROVIDERS[name], CUDA_OPTIONS) if name == "cuda" else PROVIDERS[name] for name in names]


def _options(ort: Any, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _ERRORS_ONLY
    # A bundle holds several sessions, each with its own pool: threads of one must not spin while another computes.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _spec_of(session: Any, name: str) -> GraphSpec:
    inputs, outputs = (tuple(map(_tensor_of, nodes)) for nodes in (session.get_inputs(), session.get_outputs()))
    return GraphSpec(name, inputs, outputs)


def _tensor_of(node: Any) -> TensorSpec:
    kind: str = node.type.removeprefix("tensor(").removesuffix(")")
    shape = (size if size is not None else f"{node.name}_{axis}" for axis, size in enumerate(node.shape))
    return TensorSpec(node.name, _DTYPES.get(kind, kind), tuple(shape))


@contextmanager
def stdout_to_stderr(active: bool = True) -> Iterator[None]:
    """Send file descriptor 1 to 2 meanwhile, for native code that prints; does nothing where there is no stdout."""
    with _redirect if active else nullcontext():
        saved = _point_stdout_at_stderr() if active else None
        try:
            yield
        finally:
            if saved is not None:
                _flush_stdout()
                os.dup2(saved, 1)
                os.close(saved)


def _point_stdout_at_stderr() -> int | None:
    """A copy of the old descriptor 1, None where descriptor 1 or 2 is closed, as in some services."""
    try:
        os.fstat(2)
        saved = os.dup(1)
    except OSError:
        return None
    _flush_stdout()
    os.dup2(2, 1)
    return saved


def _flush_stdout() -> None:
    """What Python has buffered belongs to where descriptor 1 points now."""
    with suppress(AttributeError, OSError, ValueError):  # no stdout, a broken pipe, a closed file
        sys.stdout.flush()
