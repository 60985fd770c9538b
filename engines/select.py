"""Which engine and device to use here, and for each one that cannot run the reason and the line that mends it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from . import kernels, nvinfer
from .distributions import distribution_version, ort_clash, ort_repair, tensorrt_version
from .driver import cuda_driver
from .errors import EngineUnavailable, InputError, MissingDependency, StyleclipError
from .fallback import kernels_engine, kernels_or_onnxruntime, tensorrt_engine, tensorrt_or_onnxruntime
from .openvino import OpenVinoEngine
from .ort import OrtEngine, OrtTensorRtEngine, unusable_reason
from .ort import version as ort_version
from .session import Engine
from .trial import trial

if TYPE_CHECKING:
    from .build import BuildOptions, GraphProgress

DEVICES = ("auto", "cpu", "cuda")
ENGINES = ("onnxruntime", "onnxruntime-kernels", "onnxruntime-tensorrt", "openvino", "tensorrt")

_ASKED = {"cpu": "the CPU was asked for", "cuda": "CUDA was asked for"}
_GPU_EXTRA = "python -m pip install 'styleclip-rt[gpu]'"
_OPENVINO_EXTRA = "python -m pip install 'styleclip-rt[openvino]'"
_TENSORRT_10 = "python -m pip install 'tensorrt>=10.13,<11'"


@dataclass(frozen=True)
class BackendStatus:
    """One row of `probe()`.

    Attributes:
        name: engine, as in `ENGINES`.
        device: `"cpu"` or `"cuda"`.
        installed: its library is there.
        version: of the library, "" if not installed.
        usable: a one-node graph has run there just now.
        reason: why it is not usable, or what is wrong although it is; "" if all is well.
        mend: the command that mends it; "" if there is nothing to mend, or no command that could.
        note: what to know about it in any case; mostly "".
    """

    name: str
    device: str
    installed: bool
    version: str
    usable: bool
    reason: str = ""
    mend: str = ""
    note: str = ""


@dataclass(frozen=True)
class Choice:
    """The engine and device to use, and a phrase that says why.

    `fallback`: nobody named the engine, so a graph that it cannot build or open may run in ONNX Runtime instead.
    """

    engine: str
    device: str
    reason: str
    fallback: bool = False


@dataclass(frozen=True)
class _Backend:
    """One engine on one device: its class, is it there, why does it not run ("" if it does), and what mends that."""

    load: Callable[[], Callable[..., Engine]]
    installed: Callable[[], bool]
    version: Callable[[], str]
    fault: Callable[[], str]
    mend: Callable[[str], str]
    clash: bool = False
    note: str = ""


def probe() -> list[BackendStatus]:
    """One row per engine and device, each tried with a one-node graph; imports every backend that is installed."""
    return [_status(name, device) for name, device in _BACKENDS]


def choose(device: str = "auto", engine: str | None = None) -> Choice:
    """The engine and device for a bundle.

    With `engine=None` and a device that is not `"cpu"` it is the first that really runs of TensorRT and ONNX Runtime
    on CUDA; on the CPU ONNX Runtime where it is installed (it starts several times faster), with our own kernels where
    their library was built, else OpenVINO. With `device="auto"` the CPU comes last, and the reason says why CUDA was
    not taken.

    Raises:
        InputError: a name that is not in `DEVICES` or `ENGINES`.
        EngineUnavailable: what was asked for cannot run here.
        MissingDependency: the engine's library is not installed.
    """
    if device not in DEVICES:
        raise InputError(f"unknown device {device!r}; the devices are: {', '.join(DEVICES)}.")
    if engine is not None and engine not in ENGINES:
        raise InputError(f"unknown engine {engine!r}; the engines are: {', '.join(ENGINES)}.")
    if engine is not None:
        return _named(device, engine)
    installed = [name for name in _ORDER if _installed(name)]
    if not installed:
        raise MissingDependency(f"the engine 'onnxruntime' is not installed; run: {ort_repair()}")
    return _best(device, installed)


def engine_class(
    engine: str,
    fallback: bool = False,
    tensorrt: BuildOptions | None = None,
    progress: GraphProgress | None = None,
) -> Callable[..., Engine]:
    """What makes the `Engine` of a name that `choose` returned: (model, spec, device=, threads=) -> Engine.

    tensorrt, progress: how TensorRT builds its plans, and what hears of it; see `open_bundle`.
    """
    if engine == "tensorrt":
        make = partial(tensorrt_or_onnxruntime, cuda_fault=_cuda_trial) if fallback else tensorrt_engine
        return partial(make, options=tensorrt, progress=progress)
    if engine == _OWN and fallback:
        return kernels_or_onnxruntime
    return next(backend.load() for (name, _), backend in _BACKENDS.items() if name == engine)


def _named(device: str, engine: str) -> Choice:
    devices = [at for name, at in _BACKENDS if name == engine]
    if device != "auto" and device not in devices:
        other = "engine='onnxruntime' for CUDA" if device == "cuda" else "engine='onnxruntime' for the CPU"
        place = {"cpu": "the CPU", "cuda": "CUDA"}[devices[0]]
        raise EngineUnavailable(f"{_TITLES[engine]} runs on {place} here; use device={devices[0]!r}, or {other}.")
    if not _installed(engine):
        mend = _BACKENDS[engine, devices[0]].mend("not installed")
        raise MissingDependency(f"the engine {engine!r} is not installed; run: {mend}")
    if engine == _OWN and (fault := kernels.fault()):
        raise EngineUnavailable(_with_mend(f"{_TITLES[engine]} cannot be used: {fault}", kernels.mend(fault)))
    if device == "cpu" or devices == ["cpu"]:
        return Choice(engine, "cpu", _ASKED.get(device, f"{_TITLES[engine]} runs on the CPU"))
    reason = _why_not(engine)
    if not reason:
        return Choice(engine, "cuda", _ASKED["cuda"] if device == "cuda" else f"{_TITLES[engine]} runs on CUDA here")
    if device == "auto" and "cpu" in devices:
        return Choice(engine, "cpu", f"CUDA is not used: {reason}")
    way_out = "Or use device='cpu'" if "cpu" in devices else "Or use engine='onnxruntime'"
    raise EngineUnavailable(f"device 'cuda' cannot be used: {reason}. {way_out}.")


def _best(device: str, installed: list[str]) -> Choice:
    if device == "cpu" or installed == ["openvino"]:
        name = "onnxruntime" if "onnxruntime" in installed else "openvino"
        return _with_own_kernels(_named(device, name))
    reasons = [cuda_driver().reason] if _no_card() else []
    for name in installed if not reasons else ():
        if (name, "cuda") not in _BACKENDS:
            continue
        reason = _why_not(name)
        if not reason:
            why = [f"{_TITLES[name]} runs on CUDA here", *reasons]
            return Choice(name, "cuda", _ASKED["cuda"] if device == "cuda" else "; ".join(why), name == "tensorrt")
        reasons.append(reason if name == "onnxruntime" else f"{_TITLES[name]} is not used: {reason}")
    said = "; ".join(dict.fromkeys(reasons))
    if device == "cuda":
        raise EngineUnavailable(f"device 'cuda' cannot be used: {said}. Or use device='cpu'.")
    cpu = next((name for name in installed if (name, "cpu") in _BACKENDS), None)
    if cpu is None:
        raise EngineUnavailable(f"no engine runs here: {said}. On the CPU: {ort_repair()}")
    return _with_own_kernels(Choice(cpu, "cpu", f"CUDA is not used: {said}"))


def _with_own_kernels(choice: Choice) -> Choice:
    """Our own kernels in place of plain ONNX Runtime on the CPU, where they were built; a look at a file, no more.

    Where they could be and are not (after an update of the package, too), the reason says so.
    """
    if choice.engine != "onnxruntime":
        return choice
    fault = kernels.fault()
    if fault:
        missing = fault == kernels.NOT_BUILT and kernels.compiler()
        advice = f"; `{kernels.MEND}` would build faster kernels for this CPU" if missing else ""
        return replace(choice, reason=choice.reason + advice)
    return Choice(_OWN, "cpu", f"{choice.reason}; our own kernels are built here", fallback=True)


def _why_not(engine: str) -> str:
    """Why `engine` does not run on CUDA, with the line that mends it; "" if it does."""
    backend = _BACKENDS[engine, "cuda"]
    fault = backend.fault()
    return _with_mend(fault, backend.mend(fault) if fault else "")


def _with_mend(fault: str, mend: str) -> str:
    return f"{fault}; run: {mend}" if mend else fault


def _status(name: str, device: str) -> BackendStatus:
    backend = _BACKENDS[name, device]
    installed = backend.installed()
    fault = backend.fault() if installed else "not installed"
    if not installed and device == "cuda" and cuda_driver().devices == 0:
        fault = f"not installed; {cuda_driver().reason}"
    clash = ort_clash() if backend.clash and (fault or device == "cpu") else ""
    mend = backend.mend(fault or clash) if fault or clash else ""
    try:
        version = backend.version() if installed else ""
    except StyleclipError:
        version = ""
    reason = "; ".join(filter(None, (fault, clash)))
    return BackendStatus(name, device, installed, version, not fault, reason, mend, backend.note)


@lru_cache(maxsize=1)
def _cuda_trial() -> str:
    """Why ONNX Runtime does not run on CUDA, "" if a trial graph has run there. Asked once per process."""
    return unusable_reason("cuda") or trial(OrtEngine, "cuda")


@lru_cache(maxsize=1)
def _ort_tensorrt_trial() -> str:
    """The same for its TensorRT provider."""
    return unusable_reason("tensorrt") or trial(OrtTensorRtEngine, "cuda")


def _kernels_trial() -> str:
    """The same for our own kernels; asked anew each time, since they may be built meanwhile."""
    from .ort_kernels import engine_fault

    return engine_fault()


@lru_cache(maxsize=1)
def _tensorrt_trial() -> str:
    """Why TensorRT does not run, "" if it has just built, proven and run a trial graph. The driver is asked first."""
    if cuda_driver().devices == 0:
        return cuda_driver().reason
    if not _has("cuda.bindings"):
        return "cuda-bindings is not installed"
    return trial(tensorrt_engine, "cuda")


def _no_card() -> bool:
    """Whether there is no driver or no card, which no package index brings."""
    return cuda_driver().devices == 0


def _cuda_mend(reason: str) -> str:
    if not reason or _no_card():
        return ""
    return f"{ort_repair()} && {_GPU_EXTRA}" if ort_clash() else _GPU_EXTRA


def _ort_tensorrt_mend(reason: str) -> str:
    if not reason or _no_card():
        return ""
    return _TENSORRT_10 if "TensorRT 10 libraries" in reason else _cuda_mend(reason)


def _tensorrt_mend(reason: str) -> str:
    if reason == "cuda-bindings is not installed":
        return nvinfer.MEND_CUDA
    missing = not nvinfer.installed() or "cannot be imported" in reason
    return nvinfer.MEND if missing else ""


def _installed(engine: str) -> bool:
    if engine == "tensorrt":
        return bool(nvinfer.installed())
    return _has(engine.split("-")[0])


def _has(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is not there
        return False


def _ort_installed() -> bool:
    return _installed("onnxruntime")


_OWN = "onnxruntime-kernels"
_TITLES = {
    "onnxruntime": "ONNX Runtime",
    _OWN: "ONNX Runtime with own kernels",
    "onnxruntime-tensorrt": "ONNX Runtime's TensorRT provider",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
}
_ORDER = ("tensorrt", "onnxruntime", "openvino")
"""What `choose` takes by itself, best first, with our own kernels in ONNX Runtime; the rest is taken by name only."""

# The functions stand in lambdas so that what they do is looked up when it is asked.
_BACKENDS: dict[tuple[str, str], _Backend] = {
    ("onnxruntime", "cpu"): _Backend(
        lambda: OrtEngine,
        _ort_installed,
        ort_version,
        lambda: trial(OrtEngine, "cpu"),
        lambda _: ort_repair(),
        clash=True,
    ),
    ("onnxruntime", "cuda"): _Backend(
        lambda: OrtEngine,
        _ort_installed,
        ort_version,
        lambda: _cuda_trial(),
        lambda fault: _cuda_mend(fault),
        clash=True,
    ),
    (_OWN, "cpu"): _Backend(
        lambda: kernels_engine,
        _ort_installed,
        ort_version,
        lambda: _kernels_trial(),
        lambda fault: kernels.mend(fault) if _ort_installed() else ort_repair(),
    ),
    ("onnxruntime-tensorrt", "cuda"): _Backend(
        lambda: OrtTensorRtEngine,
        _ort_installed,
        ort_version,
        lambda: _ort_tensorrt_trial(),
        _ort_tensorrt_mend,
        note="builds its plans anew at every start",
    ),
    ("openvino", "cpu"): _Backend(
        lambda: OpenVinoEngine,
        lambda: _installed("openvino"),
        lambda: distribution_version("openvino"),
        lambda: trial(OpenVinoEngine, "cpu"),
        lambda _: _OPENVINO_EXTRA,
    ),
    ("tensorrt", "cuda"): _Backend(
        lambda: tensorrt_engine,
        lambda: _installed("tensorrt"),
        lambda: tensorrt_version(nvinfer.installed()),
        lambda: _tensorrt_trial(),
        _tensorrt_mend,
        note=nvinfer.LABEL,
    ),
}
