"""What a run measures on this machine: the subjects of each task, and for each that is left out the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec

from ..engines import kernels, ort_kernels
from ..engines.errors import InputError, StyleclipError
from ..engines.select import probe
from .scenarios import SCENARIOS
from .subjects import SubjectSpec

STEPS = ("static_weights", "one_fir", "fused", "folded")
"""The techniques of the waterfall, in the order in which they are added."""
STEP_NAMES = {
    "static_weights": "+ modulate activations",
    "one_fir": "+ one filter per FIR",
    "fused": "+ fused noise, bias, gain",
    "folded": "+ folded constants",
}
ORIGINAL = "original (eager)"
KERNELS = "onnxruntime-kernels"
ENGINE_NAMES = {
    "onnxruntime": "ONNX Runtime",
    KERNELS: "ONNX Runtime with own kernels",
    "onnxruntime-tensorrt": "ONNX Runtime, TensorRT provider",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
}
"""The project's engines, as rows call them."""
ENGINES = (*ENGINE_NAMES, "aotinductor", "torch")
TASKS = ("synthesize", "edit", "slider")
EXTRAS = ("stages", "sliders", "cold", "opening")
ALL_LAYERS = "all layers"
"""What follows the name of a prompt, behind a comma, in the row of a slider that is not kept to recommended ones."""
COLOUR_PROMPTS = ("purple-hair", "blond-hair", "grey-hair", "lipstick")
"""Prompts that a slider is also measured with under a share that may be left out."""
LOAD_EDIT, LOAD_ALL = "open and load the edit", "open and load every graph"
OPENING_STEPS = ("open", LOAD_EDIT, LOAD_ALL)
"""Of a bundle, each in a fresh process; the edit is one session, ready for its first run."""
MAX_AUTOTUNE = "max-autotune"


@dataclass(frozen=True)
class Options:
    """What the user asked for.

    Attributes:
        device: "cpu" or "cuda".
        engines: of `ENGINES`; "torch" stands for every PyTorch row.
        tasks: of `TASKS`.
        scenarios: of `SCENARIOS`.
        extras: of `EXTRAS`.
        batches: batch sizes; 1 is always measured.
        seconds: time for each subject and task, all rounds together.
        rounds: turns of the alternation.
        scenario_seconds: time for each scenario and engine.
        bound_ms: latency bound of Server, 0 for five times the median.
        threads: CPU threads of every library.
        precisions: of the engines' graphs, "fp32" and "fp16".
        loadgen: drive the scenarios by LoadGen.
        patience_s: a subject that takes longer to answer is stopped.
        compiled: include torch.compile and AOTInductor, which take minutes to build at full size.
        bundle: what the extras edit with.
        cold_runs: fresh processes of the command `edit`, and of each step of opening.
        editing_calls: calls of each stage and slider.
    """

    device: str = "cpu"
    engines: tuple[str, ...] = ENGINES
    tasks: tuple[str, ...] = TASKS
    scenarios: tuple[str, ...] = SCENARIOS
    extras: tuple[str, ...] = EXTRAS
    batches: tuple[int, ...] = (1, 2, 4, 8)
    seconds: float = 20.0
    rounds: int = 6
    scenario_seconds: float = 30.0
    bound_ms: float = 0.0
    threads: int = 1
    precisions: tuple[str, ...] = ("fp32",)
    loadgen: bool = False
    patience_s: float = 600.0
    compiled: bool = True
    bundle: str = "toyfaces"
    cold_runs: int = 7
    editing_calls: int = 70


@dataclass
class Plan:
    """Subjects by task, ceilings, {what: why it is left out}, and the project's engines that run here."""

    subjects: dict[str, list[SubjectSpec]] = field(default_factory=dict)
    ceilings: list[SubjectSpec] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    engines: tuple[str, ...] = ()

    @property
    def precisions(self) -> tuple[str, ...]:
        """Of the graphs that the engines need; none where no engine runs."""
        specs = [spec for specs in self.subjects.values() for spec in specs if spec.kind == "engine"]
        return tuple(p for p in ("fp32", "fp16") if any(spec.precision == p for spec in specs))


def build_kernels(options: Options, say: Callable[[str], None]) -> dict[str, str]:
    """Compile the kernels where they are asked for and are not there; {engine: why} where that fails."""
    if KERNELS in options.engines and options.device == "cpu" and kernels.fault() == kernels.NOT_BUILT:
        try:
            ort_kernels.build_kernels(say)
        except StyleclipError as error:
            return {ENGINE_NAMES[KERNELS]: str(error)}
    return {}


def make_plan(options: Options) -> Plan:
    """Everything that can run here; InputError for an unknown engine."""
    unknown = sorted(set(options.engines) - set(ENGINES))
    if unknown:
        raise InputError(f"unknown engine {', '.join(unknown)}; the bench knows {', '.join(ENGINES)}")
    plan, torch_reason = Plan(), _torch_reason(options)
    if torch_reason:
        plan.left_out["PyTorch"] = torch_reason
    plan.engines = usable_engines(options, plan.left_out)
    for task in options.tasks:
        found = [] if torch_reason or task == "slider" else torch_subjects(task, options)
        plan.subjects[task] = found + engine_subjects("edit" if task == "slider" else task, options, plan.engines)
    plan.ceilings = ceilings(options, plan.engines, with_torch=not torch_reason)
    return plan


def torch_subjects(task: str, options: Options) -> list[SubjectSpec]:
    """The original, the waterfall (on `synthesize`), and what compiles; FP16 from the second row on a GPU."""
    base = SubjectSpec(ORIGINAL, "torch", task, options.device, threads=options.threads, role="baseline")
    found, on_cuda = [base], options.device == "cuda"
    compiled = options.compiled
    if on_cuda:
        base = replace(base, name="original (eager, FP16 channels last)", precision="fp16")
        found.append(base)
    if "torch" in options.engines:
        if compiled and (task == "synthesize" or not on_cuda):  # minutes of tuning on a GPU: once is enough
            found.append(_compiled(base, "torch.compile of the original", on_cuda))
        if task == "synthesize":
            found += waterfall(base)
    folded = replace(base, technique=STEPS, role="engine")
    if compiled and "torch" in options.engines and on_cuda and task == "synthesize":
        found.append(_compiled(replace(folded, role="technique"), "+ torch.compile", on_cuda))
    if compiled and "aotinductor" in options.engines:
        found.append(replace(folded, name="AOTInductor", kind="aoti"))
    return found


def waterfall(base: SubjectSpec) -> list[SubjectSpec]:
    """One row per technique, each with all that came before it."""
    return [
        replace(base, name=STEP_NAMES[step], technique=STEPS[: number + 1], role="technique")
        for number, step in enumerate(STEPS)
    ]


def _compiled(spec: SubjectSpec, name: str, on_cuda: bool) -> SubjectSpec:
    return replace(spec, name=name, compiled=MAX_AUTOTUNE if on_cuda else "default")


def usable_engines(options: Options, left_out: dict[str, str]) -> tuple[str, ...]:
    """The asked engines of the project that run on the device; the others go to `left_out` with their reason."""
    found, rows = [], probe()
    for engine in (name for name in ENGINE_NAMES if name in options.engines):
        places = {status.device: status for status in rows if status.name == engine}
        status = places.get(options.device)
        if status is not None and status.usable:
            found.append(engine)
        elif status is not None:
            left_out[ENGINE_NAMES[engine]] = status.reason
        else:
            left_out[ENGINE_NAMES[engine]] = f"runs on {' and '.join(places)} only; this run is on {options.device}"
    return tuple(found)


def engine_subjects(task: str, options: Options, engines: Sequence[str]) -> list[SubjectSpec]:
    """A task on the project's engines, in each precision that was asked for."""
    found = []
    for engine in engines:
        one = SubjectSpec(ENGINE_NAMES[engine], "engine", task, options.device, engine, threads=options.threads)
        typed = replace(one, name=f"{one.name}, typed FP16", precision="fp16")
        found += [spec for spec in (one, typed) if spec.precision in options.precisions]
    return found


def slider_subjects(cuts: Sequence[str], engine: SubjectSpec) -> list[SubjectSpec]:
    """Steps of a slider from every cut, on the engine of `engine`."""
    steps = replace(engine, kind="slider", task="slider", precision="fp32")
    return [replace(steps, name=f"{engine.name} from {cut}", cut=cut) for cut in cuts]


def ceilings(options: Options, engines: Sequence[str], with_torch: bool) -> list[SubjectSpec]:
    """What this machine can do at most: matrix products through each library, and a copy."""

    def one(kind: str, library: str, precision: str = "fp32") -> SubjectSpec:
        name = f"{kind} ({library}{', ' + precision if precision != 'fp32' else ''})"
        return SubjectSpec(
            name, kind, kind, options.device, library, precision=precision, threads=options.threads, role="ceiling"
        )

    if options.device == "cuda":
        return [one("matmul", "torch"), one("matmul", "torch", "fp16"), one("copy", "torch")] if with_torch else []
    products = dict.fromkeys(
        "onnxruntime" if engine == KERNELS else engine for engine in engines
    )  # the kernels have none
    libraries = ["torch" if with_torch else "numpy", *products]
    return [*(one("matmul", library) for library in libraries), one("copy", "torch" if with_torch else "numpy")]


def _torch_reason(options: Options) -> str:
    """Why there are no PyTorch rows, "" if there are."""
    missing = [name for name in ("torch", "safetensors") if find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed; pip install 'styleclip-rt[torch]'"
    return "" if {"torch", "aotinductor"} & set(options.engines) else "not asked for"
