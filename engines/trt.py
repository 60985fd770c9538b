"""TensorRT as an engine: plans from this machine's own cache, each proven against ONNX Runtime when it is built.

Built and parsed in CI, not yet run on hardware: everything around the library is tested with a stand-in that
computes on the CPU, and every graph is built with TensorRT-RTX.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from . import nvinfer
from .build import FINISHED, BuildOptions, GraphProgress, Progress, options_from, plan_from_onnx
from .device_arrays import DeviceArray, DeviceView, device_view, stream_handle
from .device_memory import Cuda
from .driver import cuda_driver
from .errors import EngineUnavailable, InputError
from .gate import BATCHES, gate_fault
from .onnx_bytes import inline_weights
from .ort import OrtEngine
from .plan_cache import PlanCache, Refused
from .session import PARTS, Engine, agreed_spec, model_name
from .spec import GraphSpec, check_types, describe
from .trt_plan import Plan
from .trt_run import Pool

Reference = Callable[[Path | bytes], Engine]


@dataclass(frozen=True)
class Setup:
    """What TensorRT engines of a process share.

    Attributes:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        cuda: the context to run in.
        cache: where plans are kept.
        options: how they are built.
        workers: calls that may be in progress at once on one engine; each holds its own activations.
        reference: makes the engine that a new plan is compared with; None skips the gate.
        progress: hears how builds go on, with the name of the graph.
    """

    trt: Any
    cuda: Cuda
    cache: PlanCache
    options: BuildOptions = field(default_factory=BuildOptions)
    workers: int = 2
    reference: Reference | None = OrtEngine
    progress: GraphProgress | None = None


def default_setup(options: BuildOptions | None = None, progress: GraphProgress | None = None) -> Setup:
    """The installed TensorRT on the current context, or the first device.

    Args:
        options: how plans are built; None takes `options_from()`, the environment.
        progress: hears how builds go on.

    Raises:
        EngineUnavailable: no driver with a device; nothing of TensorRT was touched then.
        MissingDependency: TensorRT or cuda-bindings is not installed.
        EngineError: the plan cache cannot be used.
        InputError: a variable of the environment cannot be used.
    """
    return replace(_machine(), options=options or options_from(), progress=progress)


@lru_cache(maxsize=1)
def _machine() -> Setup:
    """Library, context and cache, which every engine of the process shares."""
    driver = cuda_driver()
    if driver.devices == 0:  # without one the library ends the process, so this question comes first
        raise EngineUnavailable(f"TensorRT cannot run: {driver.reason}")
    return Setup(nvinfer.library(), Cuda(), PlanCache())


class TensorRtEngine(Engine):
    """One ONNX file as a TensorRT plan, run by CUDA graph replay. The batch is free; a large one is run in pieces."""

    backend: ClassVar[str] = "tensorrt"

    def __init__(
        self,
        model: Path | bytes,
        spec: GraphSpec | None = None,
        device: str = "cuda",
        threads: int | None = None,
        setup: Setup | None = None,
    ) -> None:
        """Take the plan of `model` from the cache, or build it, which takes seconds to minutes once per machine.

        Args:
            model: a file or its bytes.
            spec: what it must be, if given.
            device: `"cuda"` is the only one.
            threads: not used; every engine takes it.
            setup: library, context and cache; None takes `default_setup()`.

        Raises:
            EngineUnavailable: there is no driver, or another device was asked for.
            EngineError: the plan cannot be built, loaded, or does not compute what the graph says.
            BundleError: the file is not what `spec` says.
        """
        if device != "cuda":
            raise EngineUnavailable(f"TensorRT runs on CUDA, not on {device!r}; use device='cuda'.")
        self._setup = setup or default_setup()
        with self._setup.cuda.current():
            plan = _load(self._setup, model, spec)
        super().__init__(agreed_spec(spec, plan.spec, model), device)
        self._pool: Pool | None = Pool(plan, self._setup.workers)

    def _run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        pool = self._open_pool()
        batch = _batch(pool.plan, {name: array.shape for name, array in feeds.items()})
        with pool.worker() as worker:
            if batch <= max(1, pool.plan.largest):
                return worker.run(feeds, batch)
            pieces = [worker.run(piece, size) for size, piece in _pieces(pool.plan, feeds, batch)]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def _split_ms(self, feeds: dict[str, np.ndarray]) -> dict[str, float]:
        """By events in the stream; empty for a batch that is run in pieces."""
        pool = self._open_pool()
        batch = _batch(pool.plan, {name: array.shape for name, array in feeds.items()})
        if batch > max(1, pool.plan.largest):
            return {}
        with pool.worker() as worker:
            return dict(zip(PARTS, worker.split(feeds, batch), strict=True))

    def run_device(
        self, feeds: Mapping[str, Any], outputs: Mapping[str, Any] | None = None, stream: Any = None
    ) -> dict[str, Any]:
        """As `run`, over arrays that lie on the device, without a copy.

        Args:
            feeds: arrays with `__cuda_array_interface__` or DLPack, C-contiguous: torch, CuPy, PyCUDA, JAX, numba.
            outputs: arrays to write into; what is not given comes as a new `DeviceArray`, which is the caller's.
            stream: the caller's stream; the work is put into it, and the call does not wait. The feeds must then stay
                as they are until the stream has come past. None waits until the outputs are there.

        Raises:
            InputError: an array does not fit, lies elsewhere, or the batch is larger than the plan's largest.
            EngineError: TensorRT failed, or the engine is closed.
        """
        pool = self._open_pool()
        with pool.worker() as worker:
            target = worker.stream if stream is None else stream_handle(stream)
            views = self._views("input", feeds, target)
            check_types(self.spec, {name: (view.dtype, view.shape) for name, view in views.items()})
            batch = _batch(pool.plan, {name: view.shape for name, view in views.items()})
            if batch > max(1, pool.plan.largest):
                raise InputError(f"graph {self.spec.name!r}: batch {batch}, at most {pool.plan.largest} on the device.")
            results = self._results(pool.plan, worker.shapes(batch), outputs or {}, target)
            given = {**views, **self._output_views(results, worker.shapes(batch), target)}
            order = [tensor.name for tensor in (*self.spec.inputs, *self.spec.outputs)]
            held = [] if stream is None else list(given.values())
            worker.run_device(tuple(given[name].address for name in order), batch, target, held)
            if stream is None:
                self._setup.cuda.wait(target)
        return results

    def _views(self, kind: str, arrays: Mapping[str, Any], stream: int) -> dict[str, DeviceView]:
        """Views whose content is ready by the time `stream` comes to it."""
        cuda, views = self._setup.cuda, {}
        for name, array in arrays.items():
            view = device_view(array, cuda, stream, f"graph {self.spec.name!r}, {kind} {name!r}")
            if view.stream is not None and view.stream != stream:
                cuda.order(view.stream, stream)
            views[name] = view
        return views

    def _results(
        self, plan: Plan, shapes: dict[str, tuple[int, ...]], given: Mapping[str, Any], stream: int
    ) -> dict[str, Any]:
        """The caller's outputs, and new ones for the rest."""
        names = [tensor.name for tensor in self.spec.outputs]
        unknown = [str(name) for name in given if name not in names]
        if unknown:
            raise InputError(
                f"graph {self.spec.name!r}: unknown output {', '.join(unknown)}; its outputs are: {', '.join(names)}."
            )
        return {
            tensor.name: given[tensor.name]
            if tensor.name in given
            else DeviceArray(plan.cuda, tensor.dtype, shapes[tensor.name], stream)
            for tensor in self.spec.outputs
        }

    def _output_views(
        self, results: dict[str, Any], shapes: dict[str, tuple[int, ...]], stream: int
    ) -> dict[str, DeviceView]:
        views = self._views("output", results, stream)
        for tensor in self.spec.outputs:
            view, wanted = views[tensor.name], describe(tensor.dtype, shapes[tensor.name])
            if view.read_only or describe(view.dtype, view.shape) != wanted:
                came = ("read-only " if view.read_only else "") + describe(view.dtype, view.shape)
                raise InputError(f"graph {self.spec.name!r}, output {tensor.name!r}: got {came}, expected {wanted}.")
        return views

    def _open_pool(self) -> Pool:
        pool = self._pool  # close() in another thread must not take it away half-way
        if pool is None:
            raise self._closed_error()
        return pool

    def close(self) -> None:
        """Free contexts and buffers, those of runs in progress when they have ended."""
        super().close()
        pool, self._pool = self._pool, None
        if pool is not None:
            with pool.plan.cuda.current():
                pool.close()
                del pool  # and with it the plan, while its context is current


def _load(setup: Setup, model: Path | bytes, spec: GraphSpec | None) -> Plan:
    """The plan from the cache, else built, proven and kept."""
    data = inline_weights(model)
    name = spec.name if spec is not None else model_name(model)
    machine = {**asdict(setup.cuda.card()), "library": nvinfer.product(setup.trt)}
    key = {**machine, "graph": hashlib.sha256(data).hexdigest(), "options": setup.options.as_json()}
    built: list[Plan] = []

    def build() -> bytes:
        timings = {**machine, "timings": True}
        kept = setup.cache.get(timings)
        with _told(setup, name) as progress:
            plan, measured = plan_from_onnx(setup.trt, data, setup.options, kept, progress)
            if measured is not None and measured != kept:
                setup.cache.put(timings, measured)
            built.append(Plan(setup.trt, setup.cuda, plan, name))
            if progress is not None:
                progress("accuracy gate", 0, 1)
            _prove(setup, built[-1], model)
        return plan

    plan = setup.cache.get_or_build(key, build)
    return built[0] if built else Plan(setup.trt, setup.cuda, plan, name)


@contextmanager
def _told(setup: Setup, name: str) -> Iterator[Progress | None]:
    """What hears of the build of the graph `name`; it hears of the end however that comes."""
    if setup.progress is None:
        yield None
        return
    try:
        yield partial(setup.progress, name)
    finally:
        setup.progress(name, FINISHED, 1, 1)


def _prove(setup: Setup, plan: Plan, model: Path | bytes) -> None:
    """Compare a new plan with the reference, batch by batch.

    Raises:
        Refused: it strays too far; it is not kept, the reason is.
    """
    if setup.reference is None:
        return
    pool = Pool(plan, 1)
    try:
        with setup.reference(model) as reference, pool.worker() as worker:
            served = tuple(n for n in BATCHES if any(low <= n <= high for low, high in plan.ranges))
            fault = gate_fault(
                plan.spec,
                lambda feeds: worker.run(feeds, _batch(plan, {name: array.shape for name, array in feeds.items()})),
                reference.run,
                served or tuple(low for low, _ in plan.ranges[:1]),
            )
    finally:
        pool.close()
    if fault:
        raise Refused(f"the plan of {plan.spec.name!r} fails its accuracy gate: {fault}")


def _batch(plan: Plan, shapes: Mapping[str, tuple[int, ...]]) -> int:
    return shapes[plan.batched[0]][0] if plan.batched else 1


def _pieces(plan: Plan, feeds: dict[str, np.ndarray], batch: int) -> list[tuple[int, dict[str, np.ndarray]]]:
    """Feeds of at most the largest batch each; what has no batch goes to every piece."""
    whole = [tensor.name for tensor in plan.spec.outputs if "N" not in tensor.shape]
    if whole:
        raise InputError(
            f"graph {plan.spec.name!r}: batch {batch}, at most {plan.largest}: its output {whole[0]!r} has no batch."
        )
    starts = range(0, batch, plan.largest)
    return [
        (
            min(plan.largest, batch - start),
            {n: a[start : start + plan.largest] if n in plan.batched else a for n, a in feeds.items()},
        )
        for start in starts
    ]
