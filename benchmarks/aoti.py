"""AOTInductor packages: the export form of a generator compiled ahead of time, with no Python in the hot path.

A package (.pt2) holds native code for this machine, so it is a cache, never a shipped artefact: it lives in a folder of
mode 0700 under the user's data, is keyed by network, task, batch, precision, torch and processor, and appears whole or
not at all. On CUDA the package is recorded once into a CUDA graph and replayed.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..engines.errors import EngineError, EngineUnavailable
from ..engines.session import Engine, first_line
from ..engines.spec import GraphSpec
from ..runtime.store import home
from .machine import processor_name
from .subjects import SubjectSpec
from .workload import Workload

WARM_UP = 3


def package_file(key: str) -> Path:
    """Where the package of a key is cached; makes the folder, for this user alone."""
    folder = home() / "aoti"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if os.name == "posix" and folder.stat().st_uid != os.getuid():
        raise EngineUnavailable(f"{folder} belongs to another user; its packages are native code and are not loaded.")
    folder.chmod(0o700)
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.pt2"


def package_key(network: str, spec: SubjectSpec, batch: int) -> str:
    """What a package depends on: network, task, form and its source, batch, precision, torch, processor or card."""
    sources = [
        Path(__file__).with_name(name).read_bytes() for name in ("baseline.py", "network.py", "torch_subjects.py")
    ]
    code = hashlib.sha256(b"".join(sources)).hexdigest()
    place = torch.cuda.get_device_name() if spec.device == "cuda" else processor_name()
    parts = (network, spec.task, spec.technique, batch, spec.precision, torch.__version__, spec.device, place, code)
    return json.dumps(parts)


def build_package(module: nn.Module, inputs: tuple[Tensor, ...], file: Path, max_autotune: bool = False) -> Path:
    """Compile `module` for exactly these shapes into `file`; a file that is there is kept.

    Raises:
        EngineError: the compiler failed, for example because no C++ compiler is installed.
    """
    if file.is_file():
        return file
    handle, name = tempfile.mkstemp(suffix=".pt2", prefix=".building-", dir=file.parent)
    os.close(handle)
    settings: dict[str, Any] = {"max_autotune": True} if max_autotune else {}
    try:
        with torch.no_grad():
            program = torch.export.export(module, inputs)
            built = torch._inductor.aoti_compile_and_package(program, package_path=name, inductor_configs=settings)
        os.replace(built, file)
    except Exception as error:  # the compiler raises anything
        raise EngineError(f"AOTInductor cannot compile {file.stem}: {first_line(error)}") from error
    finally:
        Path(name).unlink(missing_ok=True)
    return file


class Replay:
    """A callable recorded into a CUDA graph on fixed input buffers: a call replays it on what they hold then."""

    def __init__(self, callee: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                callee(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        self.graph, self.inputs = torch.cuda.CUDAGraph(), inputs
        with torch.cuda.graph(self.graph):
            self.out = callee(*inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The output buffer, overwritten by the next call. `inputs` other than the recorded buffers are copied in."""
        for mine, given in zip(self.inputs, inputs, strict=True):
            if mine.data_ptr() != given.data_ptr():
                mine.copy_(given)
        self.graph.replay()
        return self.out


def load_package(file: Path, inputs: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    """A package as a callable; on CUDA as a graph replay, or plainly where the package cannot be recorded."""
    on_cuda = inputs[0].is_cuda
    loaded = torch._inductor.aoti_load_package(str(file), run_single_threaded=on_cuda)

    def call(*given: Tensor) -> Tensor:
        result = loaded(*given)
        return result[0] if isinstance(result, (tuple, list)) else result

    return Replay(call, inputs) if on_cuda else call


def load_aoti(
    module: nn.Module, inputs: tuple[Tensor, ...], spec: SubjectSpec, workload: Workload
) -> Callable[..., Tensor]:
    """The package of a subject, built on first use, ready to call on `inputs`."""
    file = package_file(package_key(workload.path.name, spec, len(inputs[0])))
    build_package(module, inputs, file, max_autotune=spec.device == "cuda")
    return load_package(file, inputs)


class AotiEngine(Engine):
    """A package under the engine contract: fixed batch, fresh outputs, every feed checked."""

    backend: ClassVar[str] = "aotinductor"

    def __init__(self, file: Path, spec: GraphSpec, device: str = "cpu") -> None:
        """Load the package `file` of a module with the ports of `spec` (all dimensions fixed, one output).

        Raises:
            EngineUnavailable: CUDA was asked for and torch sees none.
            EngineError: the package cannot be loaded.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise EngineUnavailable("AOTInductor was asked for CUDA, and torch sees no CUDA device; use device='cpu'.")
        super().__init__(spec, device)
        self._buffers = tuple(
            torch.zeros([int(size) for size in port.shape], dtype=getattr(torch, port.dtype), device=device)
            for port in spec.inputs
        )
        try:
            self._callee: Callable[..., Tensor] | None = load_package(file, self._buffers)
        except Exception as error:  # the loader raises RuntimeError and its own classes
            raise EngineError(f"AOTInductor cannot load {file}: {first_line(error)}") from error

    def _run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        callee = self._callee
        if callee is None:
            raise self._closed_error()
        given = [torch.from_numpy(feeds[port.name]).to(self.device) for port in self.spec.inputs]
        try:
            with torch.no_grad():
                out = callee(*given)
        except RuntimeError as error:
            raise EngineError(f"graph {self.spec.name!r} failed in AOTInductor: {first_line(error)}") from error
        return {self.spec.outputs[0].name: np.array(out.cpu().numpy())}

    def close(self) -> None:
        """Free the package."""
        super().close()
        self._callee = None
