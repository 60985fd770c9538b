"""float16 graphs against PyTorch in float32, with every float16 tensor really rounded.

ONNX Runtime has no float16 arithmetic on a CPU: it computes such nodes in float32 and drops the casts between them, so
that a graph which overflows on a GPU looks perfect here. `rounding` puts two Identities behind every node that gives
float16 (one alone it would move to float32 as well); the value then is stored as float16, as a GPU does, where sums are
kept in float32.

| graphs                        | figure             | limit                                          |
|-------------------------------|--------------------|------------------------------------------------|
| images                        | PSNR, worst image  | 45 dB at alpha 0, 40 dB at |alpha| = 10        |
| unit embeddings               | cosine, worst row  | 0.9995                                         |
| w of the inverter             | max error/max |w|  | 1e-2                                           |
| features of a head            | max error/max |x|  | 2e-2; the tail's image is what counts          |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper, shape_inference
from torch import Tensor

from ..engines.errors import ToleranceError
from ..engines.gate import ALPHA, MIN_PSNR_DB
from .graphs import Feeds, Graph, GraphFactory
from .onnx_writer import feeds_as_numpy
from .precision import picture_psnr
from .ranges import directions
from .verify import Array, Check, min_cosine, relative

MIN_COSINE = 0.9995
MAX_RELATIVE = {"invert": 1e-2}
MAX_RELATIVE_FEATURES = 2e-2
BATCH = 2
BETA = 0.05
LEVELS = {"image": 1.0, "u8": 127.5}
"""Size of one unit of -1..1 in each kind of image."""


@dataclass(frozen=True)
class Gate:
    """One comparison: its name ("plain", "edited" or "feeds") and the feeds to make it with."""

    name: str
    feeds: Callable[[int, torch.Generator], Feeds]


def rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model in which every float16 result is stored as float16; run it unoptimised (`RoundingRunner`)."""
    typed = shape_inference.infer_shapes(model)
    infos = (*typed.graph.value_info, *typed.graph.output)
    half = {info.name for info in infos if info.type.tensor_type.elem_type == TensorProto.FLOAT16}
    copy, nodes = onnx.ModelProto(), []
    copy.CopyFrom(model)
    for node in copy.graph.node:
        mine = [name for name in node.output if name in half and node.op_type != "Identity"]
        node.output[:] = [f"{name}.exact" if name in mine else name for name in node.output]
        nodes.append(node)
        for name in mine:
            nodes.append(helper.make_node("Identity", [f"{name}.exact"], [f"{name}.stored"]))
            nodes.append(helper.make_node("Identity", [f"{name}.stored"], [name]))
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del copy.graph.node[:], copy.graph.value_info[:]
    copy.graph.node.extend(nodes)
    return copy


class RoundingRunner:
    """A graph file in ONNX Runtime on the CPU, float16 tensors rounded; feeds by name -> list of outputs."""

    def __init__(self, path: Path, threads: int = 1):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # An optimiser would remove what `rounding` has put in.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        rounded = path.with_suffix(".rounding.onnx")  # beside the weights, which it shares
        try:
            rounded.write_bytes(rounding(onnx.load(path, load_external_data=False)).SerializeToString())
            self.session = onnxruntime.InferenceSession(str(rounded), options, providers=["CPUExecutionProvider"])
        finally:
            rounded.unlink(missing_ok=True)

    def __call__(self, feeds: Mapping[str, object]) -> list[Array]:
        """The outputs, in the order of the model."""
        return list(self.session.run(None, dict(feeds)))


def gates(graph: Graph, factory: GraphFactory) -> list[Gate]:
    """The comparisons of a graph: images at alpha 0 and at |alpha| = 10, anything else on its example feeds."""
    if graph.metric not in LEVELS:
        return [Gate("feeds", graph.feeds)]
    return [Gate(name, feeds_at(graph, factory, alpha)) for name, alpha in (("plain", 0.0), ("edited", ALPHA))]


def feeds_at(graph: Graph, factory: GraphFactory, alpha: float) -> Callable[[int, torch.Generator], Feeds]:
    """Feeds of an image graph at +alpha and -alpha in turn."""

    def feeds(batch: int, rng: torch.Generator) -> Feeds:
        signed = alpha * torch.tensor([1.0, -1.0]).repeat(batch)[:batch]  # [batch]
        if graph.name.startswith("edit_mapper/"):
            return factory.latents(batch, rng), signed
        if graph.name == "edit_global":
            return factory.latents(batch, rng), text_directions(factory, batch, rng), signed, torch.full((batch,), BETA)
        return (styles_at(factory, signed, rng)[1],)

    return feeds


def styles_at(factory: GraphFactory, alpha: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """(s of random faces [N,S], the same edited with alpha [N] along directions of their own)."""
    s = factory.pack.generator.styles(factory.latents(len(alpha), rng))
    return s, s + alpha[:, None] * directions(factory.pack, len(alpha), rng)


def text_directions(factory: GraphFactory, batch: int, rng: torch.Generator) -> Tensor:
    """delta_t [batch,E] unit: rows of the pack's table, so that many channels move far."""
    table = factory.pack.directions
    rows = table.abs().sum(1).nonzero().flatten()
    return torch.nn.functional.normalize(table[rows[torch.randint(0, len(rows), (batch,), generator=rng)]], dim=1)


def gate(graph: Graph, path: Path, comparisons: Sequence[Gate], seed: int = 1) -> tuple[Check, dict[str, float]]:
    """(check of the float16 graph at `path`, its figures by comparison); ToleranceError where a limit is missed."""
    run, checks = RoundingRunner(path), {}
    for comparison in comparisons:
        feeds = comparison.feeds(BATCH, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            out = graph.module(*feeds)
        got = run(feeds_as_numpy(graph, feeds))
        pairs = zip(graph.outputs, got, out if isinstance(out, tuple) else (out,), strict=True)
        found = [compare(graph, a, b) for _, a, b in pairs]
        checks[comparison.name] = worst(found)
    for name, check in checks.items():
        limit = limit_of(graph, name)
        if not passes(check, limit):
            raise ToleranceError(f"{graph.name} in float16, {name}: {check.metric} {check.value:.4g}; limit {limit:g}")
    name, check = next(iter(checks.items()))
    settled = Check(check.metric, check.value, limit_of(graph, name), check.batch, check.psnr_db)
    return settled, {name: check.value for name, check in checks.items()}


def limit_of(graph: Graph, comparison: str) -> float:
    """The limit of a comparison; see the table above."""
    if graph.metric in LEVELS:
        return MIN_PSNR_DB[comparison]
    return MIN_COSINE if graph.metric == "cosine" else MAX_RELATIVE.get(graph.name, MAX_RELATIVE_FEATURES)


def passes(check: Check, limit: float) -> bool:
    """Whether the figure is inside its limit; NaN never is."""
    return check.value <= limit if check.metric == "relative_error" else check.value >= limit


def worst(checks: list[Check]) -> Check:
    """The check of the worst output."""
    return max(checks, key=lambda check: check.value if check.metric == "relative_error" else -check.value)


def compare(graph: Graph, got: Array, expected: Tensor) -> Check:
    """One output as a Check whose tolerance is still open."""
    reference = expected.numpy()
    if got.shape != reference.shape or got.dtype != reference.dtype:
        raise ToleranceError(f"{graph.name} gives {got.dtype} {got.shape}; PyTorch {reference.dtype} {reference.shape}")
    if graph.metric in LEVELS:
        unit, offset = LEVELS[graph.metric], graph.metric == "u8"
        images = [torch.from_numpy(a).double() / unit - float(offset) for a in (got, reference)]
        worst_db = min(picture_psnr(images[0], images[1]))
        return Check("min_psnr_db", worst_db, math.nan, BATCH, worst_db)
    if graph.metric == "cosine":
        return Check("min_cosine", min_cosine(got, reference), math.nan, BATCH)
    return Check("relative_error", relative(got, reference), math.nan, BATCH)
