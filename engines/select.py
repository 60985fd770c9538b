"""Which engine and device to use here, and for each one that cannot run the reason and the line that mends it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec

from .distributions import distribution_version, ort_clash, ort_repair
from .driver import cuda_driver
from .errors import EngineUnavailable, InputError, MissingDependency, StyleclipError
from .openvino import OpenVinoEngine
from .ort import OrtEngine, unusable_reason
from .ort import version as ort_version
from .session import Engine
from .trial import trial

DEVICES = ("auto", "cpu", "cuda")
ENGINES = ("onnxruntime", "openvino", "tensorrt")

_TENSORRT_REASON = "TensorRT is not yet run by this version of styleclip-rt"
_ASKED = {"cpu": "the CPU was asked for", "cuda": "CUDA was asked for"}
_GPU_EXTRA = "python -m pip install 'styleclip-rt[gpu]'"
_OPENVINO_EXTRA = "python -m pip install 'styleclip-rt[openvino]'"


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
    """

    name: str
    device: str
    installed: bool
    version: str
    usable: bool
    reason: str = ""
    mend: str = ""


@dataclass(frozen=True)
class Choice:
    """The engine and device to use, and a phrase that says why."""

    engine: str
    device: str
    reason: str


def probe() -> list[BackendStatus]:
    """One row per engine and device, each tried with a one-node graph; imports every backend that is installed."""
    return [_probe_ort_cpu(), _probe_ort_cuda(), _probe_openvino(), _probe_tensorrt()]


def choose(device: str = "auto", engine: str | None = None) -> Choice:
    """The engine and device for a bundle.

    With `device="auto"` it is CUDA where CUDA runs, else the CPU, and the reason says why CUDA was not taken. With
    `engine=None` it is ONNX Runtime where it is installed (it starts several times faster), else OpenVINO.

    Raises:
        InputError: a name that is not in `DEVICES` or `ENGINES`.
        EngineUnavailable: what was asked for cannot run here.
        MissingDependency: the engine's library is not installed.
    """
    if device not in DEVICES:
        raise InputError(f"unknown device {device!r}; the devices are: {', '.join(DEVICES)}.")
    if engine is not None and engine not in ENGINES:
        raise InputError(f"unknown engine {engine!r}; the engines are: {', '.join(ENGINES)}.")
    if engine == "tensorrt":
        raise EngineUnavailable(f"{_TENSORRT_REASON}; use engine='onnxruntime'.")
    if engine is None:
        engine = "openvino" if not _installed("onnxruntime") and _installed("openvino") else "onnxruntime"
    if not _installed(engine):
        mend = _OPENVINO_EXTRA if engine == "openvino" else ort_repair()
        raise MissingDependency(f"the engine {engine!r} is not installed; run: {mend}")
    return _choose_openvino(device) if engine == "openvino" else _choose_ort(device)


def engine_class(engine: str) -> Callable[..., Engine]:
    """The `Engine` subclass of a name that `choose` returned."""
    return {"onnxruntime": OrtEngine, "openvino": OpenVinoEngine}[engine]


def _choose_ort(device: str) -> Choice:
    if device == "cpu":
        return Choice("onnxruntime", "cpu", _ASKED["cpu"])
    reason = _cuda_trial()
    if not reason:
        return Choice("onnxruntime", "cuda", _ASKED["cuda"] if device == "cuda" else "CUDA runs here")
    mend = _cuda_mend(reason)
    reason += f"; run: {mend}" if mend else ""
    if device == "cuda":
        raise EngineUnavailable(f"device 'cuda' cannot be used: {reason}. Or use device='cpu'.")
    return Choice("onnxruntime", "cpu", f"CUDA is not used: {reason}")


def _choose_openvino(device: str) -> Choice:
    if device == "cuda":
        raise EngineUnavailable("OpenVINO runs on the CPU here; use device='cpu', or engine='onnxruntime' for CUDA.")
    return Choice("openvino", "cpu", _ASKED.get(device, "OpenVINO runs on the CPU"))


@lru_cache(maxsize=1)
def _cuda_trial() -> str:
    """Why ONNX Runtime does not run on CUDA, "" if a trial graph has run there. Asked once per process."""
    return unusable_reason("cuda") or trial(OrtEngine, "cuda")


def _cuda_mend(reason: str) -> str:
    if not reason or cuda_driver().devices == 0:
        return ""  # a driver and a card come from no package index
    return f"{ort_repair()} && {_GPU_EXTRA}" if ort_clash() else _GPU_EXTRA


def _probe_ort_cpu() -> BackendStatus:
    fault, clash = trial(OrtEngine, "cpu"), ort_clash()
    mend = ort_repair() if fault or clash else ""
    return _ort_status("cpu", fault, clash, mend)


def _probe_ort_cuda() -> BackendStatus:
    fault = _cuda_trial()
    return _ort_status("cuda", fault, ort_clash() if fault else "", _cuda_mend(fault))


def _ort_status(device: str, fault: str, clash: str, mend: str) -> BackendStatus:
    reason = "; ".join(filter(None, (fault, clash)))
    try:
        version = ort_version()
    except StyleclipError:
        version = ""
    return BackendStatus("onnxruntime", device, _installed("onnxruntime"), version, not fault, reason, mend)


def _probe_openvino() -> BackendStatus:
    installed, version = _installed("openvino"), distribution_version("openvino")
    fault = trial(OpenVinoEngine, "cpu") if installed else "not installed"
    return BackendStatus("openvino", "cpu", installed, version, not fault, fault, _OPENVINO_EXTRA if fault else "")


def _probe_tensorrt() -> BackendStatus:
    installed, version = _installed("tensorrt"), distribution_version("tensorrt")
    return BackendStatus("tensorrt", "cuda", installed, version, False, _TENSORRT_REASON)


def _installed(module: str) -> bool:
    return find_spec(module) is not None
