"""Times every form of the up-sampling convolution on this machine's engine: what `--form measure` decides by."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ..engines.select import choose, engine_class
from ..engines.session import Engine
from ..engines.spec import GraphSpec, TensorSpec
from ..runtime.training.networks.stylegan2 import Generator
from ..runtime.training.pack import Pack
from .forms import FORMS
from .graphs import Graph, GraphFactory
from .onnx_writer import clean, onnx_from_module, set_ports
from .precision_layers import TypedSynthesis
from .weights import WeightFile

WARM_UP, REPEATS = 2, 7


def measure_forms(
    pack: Pack, precision: str = "fp32", device: str = "auto", engine: str | None = None, repeats: int = REPEATS
) -> dict[str, float]:
    """{form: median milliseconds of one picture}, fastest first, on the engine that would serve the bundle.

    The forms take turns, so that a machine which slows down meanwhile slows all of them. float16 is timed without
    islands. Raises what opening an engine raises.
    """
    chosen = choose(device, engine)
    spec = ports(pack)
    s = GraphFactory(pack).styles(1, torch.Generator().manual_seed(0)).numpy()
    with tempfile.TemporaryDirectory() as folder:
        engines = {}
        for form in FORMS:
            file = write_form(Path(folder), pack.generator, spec, form, precision)
            engines[form] = engine_class(chosen.engine, chosen.fallback)(file, spec, device=chosen.device)
        times = in_turns({form: runner(one, {"s": s}) for form, one in engines.items()}, repeats)
        for one in engines.values():
            one.close()
    return dict(sorted(times.items(), key=lambda item: item[1]))


def fastest_form(pack: Pack, precision: str) -> str:
    """The form that this machine runs fastest."""
    return next(iter(measure_forms(pack, "fp32" if precision == "fp32" else "fp16")))


def ports(pack: Pack) -> GraphSpec:
    """The ports of the synthesis."""
    size = pack.generator.config.resolution
    s = TensorSpec("s", "float32", ("N", pack.generator.style_channels))
    return GraphSpec("synthesize", (s,), (TensorSpec("image", "float32", ("N", 3, size, size)),))


def write_form(folder: Path, generator: Generator, spec: GraphSpec, form: str, precision: str) -> Path:
    """The synthesis in one form as an ONNX file with its weights beside it."""
    module = TypedSynthesis(generator, form, None if precision == "fp32" else ())
    graph = Graph(spec.name, module, spec.inputs, spec.outputs, lambda n, rng: (), "image")
    weights = WeightFile(folder / f"{form}.bin")
    try:
        model = clean(onnx_from_module(graph, weights))
    finally:
        weights.close()
    set_ports(model, graph)
    path = folder / f"{form}.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def runner(engine: Engine, feeds: Mapping[str, object]) -> Callable[[], object]:
    """A call that runs the engine once."""
    return lambda: engine.run(dict(feeds))  # type: ignore[arg-type]


def in_turns(calls: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = WARM_UP) -> dict[str, float]:
    """{name: median milliseconds}: every call once per round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warm_up + repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= warm_up:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: round(statistics.median(values), 3) for name, values in times.items()}
