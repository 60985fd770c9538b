"""ONNX bytes -> a serialised TensorRT plan. Precision lives in the graph: the network is always strongly typed.

Needs a driver with `tensorrt`, none with `tensorrt_rtx`; nothing is run here. The same graph serves TensorRT 10 (where
strong typing is a flag), 11 and RTX (where there is nothing else).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from . import nvinfer
from .errors import EngineError, InputError

Progress = Callable[[str, int, int], bool]
"""(phase, steps done, steps in all) -> go on? False ends the build."""
GraphProgress = Callable[[str, str, int, int], bool]
"""The same with the name of the graph before it; its last call of a build has the phase `FINISHED`."""
FINISHED = "finished"
VARIABLES = {
    "batches": "STYLECLIP_RT_TENSORRT_BATCHES",
    "max_batch": "STYLECLIP_RT_TENSORRT_MAX_BATCH",
    "workspace_mib": "STYLECLIP_RT_TENSORRT_WORKSPACE_MIB",
}
"""Field of `BuildOptions` -> the environment variable that sets it where the caller gives no options."""
_MAX_DIGITS = 9


@dataclass(frozen=True)
class BuildOptions:
    """How a plan is built; part of its key in the cache.

    Attributes:
        batches: an optimisation profile of its own for each of these, tuned for exactly that batch.
        max_batch: one more profile serves every batch from 1 to this one; 0 leaves it out. Larger batches are run in
            pieces.
        workspace_mib: scratch memory that a layer's implementation may use, MiB.
        tf32: whether float32 products may round their factors to 10 bits of mantissa.
        level: the builder's optimisation level, 0 to 5; None is the library's own.
    """

    batches: tuple[int, ...] = (1, 2, 4, 8)
    max_batch: int = 16
    workspace_mib: int = 4096
    tf32: bool = False
    level: int | None = None

    def __post_init__(self) -> None:
        sizes = (*self.batches, *([self.max_batch] if self.max_batch else ()))
        if not sizes or min(sizes) < 1 or len(set(self.batches)) < len(self.batches):
            raise InputError(
                f"batches {self.batches} with max_batch {self.max_batch}: give distinct sizes of 1 or more."
            )
        if self.workspace_mib < 1:
            raise InputError(f"workspace_mib is {self.workspace_mib}, expected 1 or more.")

    def as_json(self) -> dict[str, Any]:
        """For the key of a plan."""
        return {**asdict(self), "batches": list(self.batches)}

    def ranges(self) -> list[tuple[int, int, int]]:
        """(smallest, tuned-for, largest) batch of each profile, in the order of the plan."""
        fixed = [(n, n, n) for n in self.batches]
        return [*fixed, (1, min(4, self.max_batch), self.max_batch)] if self.max_batch else fixed


def options_from(environment: Mapping[str, str] = os.environ) -> BuildOptions:
    """The options of this process: what `VARIABLES` say, else the defaults. Batches are a list such as 1,2,4.

    Raises:
        InputError: a variable is no whole number, or the options do not fit together.
    """
    given = {field: environment.get(name, "").strip() for field, name in VARIABLES.items()}
    numbers = {field: _whole_numbers(field, text) for field, text in given.items() if text}
    options: dict[str, Any] = {name: found if name == "batches" else found[0] for name, found in numbers.items()}
    return BuildOptions(**options)


def _whole_numbers(field: str, text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")] if field == "batches" else [text]
    if not all(part.isascii() and part.isdigit() and len(part) <= _MAX_DIGITS for part in parts):
        wanted = "whole numbers such as 1,2,4" if field == "batches" else "a whole number"
        raise InputError(f"{VARIABLES[field]} is {text!r}, expected {wanted} of at most {_MAX_DIGITS} digits.")
    return tuple(map(int, parts))


def plan_from_onnx(
    trt: Any,
    model: bytes,
    options: BuildOptions | None = None,
    timings: bytes | None = None,
    progress: Progress | None = None,
) -> tuple[bytes, bytes | None]:
    """Build `model`, ONNX with its weights inside.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        model: bytes as `inline_weights` gives them.
        options: profiles and limits.
        timings: the timing cache of an earlier build on this machine; it makes this one several times faster.
        progress: called as the build goes on; it may end it.

    Returns:
        the plan, and the new timing cache where the library has one.

    Raises:
        EngineError: the graph cannot be parsed or built; the message carries the library's own.
    """
    options = options or BuildOptions()
    journal = nvinfer.journal(trt)
    journal.take()
    builder = trt.Builder(journal)
    if builder is None:
        raise EngineError(f"{nvinfer.product(trt)} gave no builder; {journal.take() or 'is there a driver?'}")
    network, parser = _parse(trt, builder, model, journal)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    _set_flags(trt, config, options)
    _add_profiles(builder, config, network, options)
    cache = _timing_cache(trt, config, timings)
    monitor = _monitor(trt, progress) if progress else None
    if monitor is not None:
        config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    del parser  # it owns the weights that the network refers to, so it must live until here
    if monitor is not None:
        monitor.reraise()
    if plan is None:
        why = journal.take() or "it gave no reason"
        raise EngineError(f"{nvinfer.product(trt)} cannot build the graph {network.name!r}: {why}")
    return bytes(plan), bytes(cache.serialize()) if cache is not None else None


def _parse(trt: Any, builder: Any, model: bytes, journal: Any) -> tuple[Any, Any]:
    """The network and its parser."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    typed = 1 << int(flag) if flag is not None and nvinfer.major(trt) == 10 and not nvinfer.is_rtx(trt) else 0
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, journal)
    if not parser.parse(model):
        faults = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
        why = nvinfer.one_line(faults) or journal.take() or "it gave no reason"
        raise EngineError(f"{nvinfer.product(trt)} cannot parse the graph: {why}")
    return network, parser


def _parser_error(error: Any) -> str:
    node = error.node_name() if hasattr(error, "node_name") else ""
    operator = error.node_operator() if hasattr(error, "node_operator") else ""
    where = f"node {node!r} ({operator}): " if node else ""
    return f"{where}{error.desc()}"


def _set_flags(trt: Any, config: Any, options: BuildOptions) -> None:
    flag = getattr(trt.BuilderFlag, "TF32", None)
    if flag is not None:
        (config.set_flag if options.tf32 else config.clear_flag)(flag)
    if options.level is not None:
        config.builder_optimization_level = options.level


def _add_profiles(builder: Any, config: Any, network: Any, options: BuildOptions) -> None:
    """One profile per range of the batch; none for a graph whose shapes are all fixed."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    shapes = {tensor.name: tuple(tensor.shape) for tensor in inputs}
    if not any(-1 in shape for shape in shapes.values()):
        return
    for name, shape in shapes.items():
        if -1 in shape[1:]:
            raise EngineError(f"input {name!r} is {list(shape)}: only the first dimension, the batch, may be free.")
    for sizes in options.ranges():
        profile = builder.create_optimization_profile()
        for name, shape in shapes.items():
            if shape and shape[0] == -1:
                profile.set_shape(name, *((size, *shape[1:]) for size in sizes))
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f"TensorRT refuses the profile for batch {sizes}.")


def _timing_cache(trt: Any, config: Any, timings: bytes | None) -> Any:
    """The cache of tactics' timings, set into `config`; None with RTX, where it does nothing."""
    if nvinfer.is_rtx(trt):
        return None
    cache = config.create_timing_cache(timings or b"")
    if cache is None or not config.set_timing_cache(cache, False):  # of another card or version: start anew
        cache = config.create_timing_cache(b"")
        if not config.set_timing_cache(cache, False):
            warnings.warn("TensorRT takes no timing cache; builds will be slower.", stacklevel=4)
            return None
    return cache


def _monitor(trt: Any, progress: Progress) -> Any:
    """An `IProgressMonitor` that reports to `progress`, ends the build when told so, and keeps what it raised."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.error: BaseException | None = None
            self.go_on = True

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            self.tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.tell(phase_name, step + 1)
            return self.go_on

        def phase_finish(self, phase_name: str) -> None:
            self.tell(phase_name, self.steps.pop(phase_name, 0))

        def tell(self, phase: str, done: int) -> None:
            try:
                self.go_on = self.go_on and bool(progress(phase, done, self.steps.get(phase, done)))
            except BaseException as error:  # the library's C++ must not see it; `reraise` gives it back
                self.error, self.go_on = self.error or error, False

        def reraise(self) -> None:
            if self.error is not None:
                raise self.error
            if not self.go_on:
                raise EngineError("the build of the plan was ended by its caller; nothing was kept.")

    return Monitor()
