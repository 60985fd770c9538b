"""What is measured, inside a worker process: each subject takes host arrays and gives a finished result on the host."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engines.errors import InputError
from ..engines.select import engine_class
from ..engines.session import Engine
from .workload import HALF, HEAD, MATMUL, TAIL, TASKS, Workload

KINDS = ("torch", "aoti", "engine", "slider", "matmul", "copy")
COPY_BYTES = 256 << 20


@dataclass(frozen=True)
class SubjectSpec:
    """One subject.

    Attributes:
        name: how rows call it.
        kind: one of `KINDS`.
        task: "synthesize", "edit", "slider"; "matmul" or "copy" for a ceiling.
        device: "cpu" or "cuda".
        library: the engine of `engine`; the library of a ceiling.
        technique: the switches of `baseline.Technique` that are on.
        compiled: mode of torch.compile, "" for none.
        precision: "fp32" or "fp16".
        threads: CPU threads.
        cut: where a slider starts, the name of a layer.
        role: "baseline", "technique" (a step of the waterfall), "engine", or "ceiling".
    """

    name: str
    kind: str
    task: str
    device: str = "cpu"
    library: str = ""
    technique: tuple[str, ...] = ()
    compiled: str = ""
    precision: str = "fp32"
    threads: int = 1
    cut: str = ""
    role: str = "engine"

    @property
    def itemsize(self) -> int:
        """Bytes of an activation."""
        return 2 if self.precision == "fp16" else 4


class Subject(ABC):
    """A loaded subject. `feed` sets the batch; `call` runs once, its result complete on the host when it returns."""

    def __init__(self, spec: SubjectSpec, workload: Workload) -> None:
        self.spec, self.workload = spec, workload
        self.feeds: dict[str, np.ndarray] = {}

    def feed(self, batch: int) -> None:
        """Use the first `batch` rows of the workload from now on."""
        self.feeds = self.workload.feeds(self.spec.task, batch)

    @abstractmethod
    def call(self) -> Any:
        """One run on the current feeds."""

    def picture(self) -> np.ndarray | None:
        """The pictures of a run, uint8 [N, R, R, 3]; None for a ceiling."""
        return np.asarray(self.call())

    def split_ms(self, calls: int) -> dict[str, float]:
        """Medians of h2d_ms, compute_ms and d2h_ms on a device; empty where the subject cannot tell them apart."""
        return {}

    def flop_and_bytes(self, batch: int) -> tuple[float, float]:
        """Operations and least traffic of one call."""
        total = self.workload.count(self.spec.task, batch, self.spec.itemsize)
        return total.flop, total.bytes

    def peak_device_bytes(self) -> int | None:
        """Peak of device memory that this process allocated, None where it cannot tell."""
        return None


class EngineSubject(Subject):
    """A graph of the workload on one of the project's engines."""

    def __init__(self, spec: SubjectSpec, workload: Workload) -> None:
        super().__init__(spec, workload)
        prefix = HALF if spec.precision == "fp16" else ""
        self.engine = self._load(prefix + TASKS[spec.task])

    def _load(self, graph: str) -> Engine:
        make = engine_class(self.spec.library)
        return make(self.workload.file(graph), None, device=self.spec.device, threads=self.spec.threads)

    def call(self) -> Any:
        """One `Engine.run`, checks included, as a user pays for them."""
        return self.engine.run(self.feeds)["image_u8"]

    def split_ms(self, calls: int) -> dict[str, float]:
        """As the engine tells them apart; medians."""
        laps = [self.engine.split_ms(self.feeds) for _ in range(calls)]
        return {part: float(np.median([lap[part] for lap in laps])) for part in laps[0]}


class SliderSubject(EngineSubject):
    """One step of a slider: the synthesis from a cut on, with what enters the cut computed before."""

    def __init__(self, spec: SubjectSpec, workload: Workload) -> None:
        Subject.__init__(self, spec, workload)
        self.engine, self.head = self._load(TAIL + spec.cut), self._load(HEAD + spec.cut)

    def feed(self, batch: int) -> None:
        """The head runs here, once."""
        super().feed(batch)
        self.feeds |= self.head.run(self.feeds)

    def flop_and_bytes(self, batch: int) -> tuple[float, float]:
        """Those of the layers from the cut on."""
        total = self.workload.count("synthesize", batch, self.spec.itemsize, self.spec.cut)
        return total.flop, total.bytes


class CeilingSubject(Subject):
    """What the machine can do at most: `_run` once per call, one size, no picture."""

    _run: Callable[[], Any]

    def feed(self, batch: int) -> None:
        """Ceilings have one size."""

    def call(self) -> Any:
        """One product, or one copy."""
        return self._run()

    def picture(self) -> None:
        """A ceiling draws nothing."""
        return


class MatmulSubject(CeilingSubject):
    """The ceiling of arithmetic: a large matrix product through the library that an engine uses."""

    def __init__(self, spec: SubjectSpec, workload: Workload) -> None:
        super().__init__(spec, workload)
        self.side = matmul_side(spec.device)
        self._run = self._product()

    def _product(self) -> Any:
        rng = np.random.RandomState(0)
        a, b = (rng.standard_normal((self.side, self.side)).astype(np.float32) for _ in range(2))
        library = self.spec.library
        if library == "torch":
            return _torch_matmul(a, b, self.spec)
        if library == "numpy":
            out = np.empty_like(a)
            return lambda: np.matmul(a, b, out=out)
        engine = engine_class(library)(self.workload.file(MATMUL), None, device="cpu", threads=self.spec.threads)
        return lambda: engine.run({"a": a, "b": b})

    def flop_and_bytes(self, batch: int) -> tuple[float, float]:
        """2 n^3 operations; the three matrices."""
        return 2.0 * self.side**3, 3.0 * self.spec.itemsize * self.side**2


class CopySubject(CeilingSubject):
    """The ceiling of traffic: a copy far larger than any cache; bytes read plus bytes written (STREAM's copy)."""

    def __init__(self, spec: SubjectSpec, workload: Workload) -> None:
        super().__init__(spec, workload)
        self.moved = copy_bytes(spec.device)
        self._run = (
            _torch_copy(spec, int(self.moved) // 2) if spec.library == "torch" else _numpy_copy(int(self.moved) // 2)
        )

    def flop_and_bytes(self, batch: int) -> tuple[float, float]:
        """No arithmetic."""
        return 0.0, self.moved


def matmul_side(device: str) -> int:
    """Rows of the square matrices of the ceiling: large enough to fill the machine."""
    return 8192 if device == "cuda" else 2048


def copy_bytes(device: str) -> float:
    """Bytes read plus bytes written by the ceiling's copy."""
    return 2.0 * COPY_BYTES * (8 if device == "cuda" else 1)


def _numpy_copy(size: int) -> Any:
    source, target = np.ones(size, np.uint8), np.empty(size, np.uint8)
    return lambda: np.copyto(target, source)


def _torch_copy(spec: SubjectSpec, size: int) -> Any:
    import torch

    torch.set_num_threads(spec.threads)
    source = torch.ones(size, dtype=torch.uint8, device=spec.device)
    target = torch.empty_like(source)

    def run() -> None:
        target.copy_(source)
        if spec.device == "cuda":
            torch.cuda.synchronize()

    return run


def _torch_matmul(a: np.ndarray, b: np.ndarray, spec: SubjectSpec) -> Any:
    import torch

    torch.set_num_threads(spec.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    dtype = torch.float16 if spec.precision == "fp16" else torch.float32
    left, right = (torch.from_numpy(x).to(spec.device, dtype) for x in (a, b))
    out = torch.empty_like(left)

    def run() -> None:
        torch.mm(left, right, out=out)
        if spec.device == "cuda":
            torch.cuda.synchronize()

    return run


def make_subject(spec: SubjectSpec, workload: Workload) -> Subject:
    """Load a subject; torch is imported only for kinds that need it."""
    if spec.kind in ("torch", "aoti"):
        from .torch_subjects import TorchSubject

        return TorchSubject(spec, workload)
    simple: dict[str, type[Subject]] = {
        "engine": EngineSubject,
        "slider": SliderSubject,
        "matmul": MatmulSubject,
        "copy": CopySubject,
    }
    if spec.kind not in simple:
        raise InputError(f"unknown kind of subject {spec.kind!r}; expected one of {', '.join(KINDS)}")
    return simple[spec.kind](spec, workload)
