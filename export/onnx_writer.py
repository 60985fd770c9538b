"""Torch module -> clean ONNX model: traced by the dynamo exporter, typed ports, no trace of the machine it ran on."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx import helper
from torch import Tensor

from ..engines.errors import PackError
from ..engines.spec import TensorSpec
from .fuse import ADD_DIRECTION, ADD_OFFSET, OPSET, TO_U8, Part, fuse, glue
from .graphs import Graph
from .simplify import simplify
from .weights import WeightFile, frozen_float32, known_gains

try:
    from torch.onnx._internal.exporter._registration import ONNXRegistry
except ImportError:  # no public name: see `one_registry`
    ONNXRegistry = None

TRACE_BATCH = 3  # neither 0 nor 1, which the exporter would specialise
OUTPUT = "output."
MAKER = "from_torchlib"
DTYPES = {"float32": onnx.TensorProto.FLOAT, "int64": onnx.TensorProto.INT64, "uint8": onnx.TensorProto.UINT8}


class ModelMaker:
    """ONNX models of graphs, their weights in the shared file; parts that several graphs share are traced once."""

    def __init__(self, weights: WeightFile) -> None:
        self.weights = weights
        self.traced: dict[str, onnx.ModelProto] = {}

    def model(self, graph: Graph, parts: Mapping[str, Graph]) -> onnx.ModelProto:
        """The finished model of `graph`; `parts` are the graphs that fused ones are made of."""
        if graph.name == "synthesize_u8":
            model = self.fused(graph, [self.part("synthesize", parts, {"s": "s"}), self.tail()])
        elif graph.name == "edit_global":
            model = self.fused(graph, self.global_parts(parts))
        elif graph.name.startswith("edit_mapper/"):
            model = self.fused(graph, self.mapper_parts(graph.name.removeprefix("edit_mapper/"), parts))
        else:
            model = onnx.ModelProto()
            model.CopyFrom(self.trace(graph))
        set_ports(model, graph)
        return model

    def trace(self, graph: Graph) -> onnx.ModelProto:
        """The graph as the exporter gives it, cleaned, its weights in the file; cached."""
        if graph.name not in self.traced:
            self.traced[graph.name] = clean(onnx_from_module(graph, self.weights))
        return self.traced[graph.name]

    def part(self, name: str, parts: Mapping[str, Graph], feeds: dict[str, str]) -> Part:
        """A traced graph as part of a fused one; the prefix is the graph's kind."""
        return Part(name.split("/")[0], self.trace(parts[name]), feeds)

    @staticmethod
    def tail(image: str = "synthesize/image") -> Part:
        """The uint8 ending."""
        return Part("tail", glue(TO_U8), {"image": image})

    def global_parts(self, parts: Mapping[str, Graph]) -> list[Part]:
        """s' = style(w) + alpha * direction(delta_t, beta)."""
        return [
            self.part("style", parts, {"w": "w"}),
            self.part("direction", parts, {"delta_t": "delta_t", "beta": "beta"}),
            Part("mix", glue(ADD_DIRECTION), {"s": "style/s", "delta_s": "direction/delta_s", "alpha": "alpha"}),
            self.part("synthesize", parts, {"s": "mix/edited"}),
            self.tail(),
        ]

    def mapper_parts(self, name: str, parts: Mapping[str, Graph]) -> list[Part]:
        """w' = w + strength * mapper(w), or s' = s + strength * mapper(s) for a mapper of style space."""
        if f"style_mapper/{name}" in parts:
            step = {"s": "style/s", "delta_s": "style_mapper/delta_s", "alpha": "strength"}
            return [
                self.part("style", parts, {"w": "w"}),
                self.part(f"style_mapper/{name}", parts, {"s": "style/s"}),
                Part("mix", glue(ADD_DIRECTION), step),
                self.part("synthesize", parts, {"s": "mix/edited"}),
                self.tail(),
            ]
        return [
            self.part(f"mapper/{name}", parts, {"w": "w"}),
            Part("mix", glue(ADD_OFFSET), {"w": "w", "delta_w": "mapper/delta_w", "strength": "strength"}),
            self.part("style", parts, {"w": "mix/edited"}),
            self.part("synthesize", parts, {"s": "style/s"}),
            self.tail(),
        ]

    @staticmethod
    def fused(graph: Graph, parts: Sequence[Part]) -> onnx.ModelProto:
        """The fused model of `graph`."""
        return fuse(graph.name, parts, [value_info(spec) for spec in graph.inputs], f"tail/{graph.outputs[0].name}")


def onnx_from_module(graph: Graph, weights: WeightFile | None = None) -> onnx.ModelProto:
    """Traces a graph's module with a free batch; PackError when the module is not float32 on the CPU.

    Large weights go to `weights` if given, else they stay inside the model.
    """
    if not frozen_float32(graph.module):
        raise PackError(
            f"graph {graph.name!r}: export expects float32 weights on the CPU; load the pack with load_pack"
        )
    feeds = tuple(trace_feed(spec) for spec in graph.inputs)
    batch = torch.export.Dim("N", min=1, max=1 << 16)
    with quiet(), one_registry(), torch.no_grad():
        program = torch.onnx.export(
            graph.module.eval(),
            feeds,
            dynamo=True,
            verbose=False,
            optimize=False,  # see `simplify`
            opset_version=OPSET,
            input_names=[spec.name for spec in graph.inputs],
            output_names=[OUTPUT + spec.name for spec in graph.outputs],
            dynamic_shapes=tuple({0: batch} for _ in feeds),
        )
        if program is None:
            raise PackError(f"graph {graph.name!r}: the exporter gave no model; check torch and onnxscript")
        traced = simplify(program.model)
        if weights is not None:
            weights.take(traced, known_gains(graph.module))
        model = ir.to_proto(traced)
    name_outputs(model, [spec.name for spec in graph.outputs])
    return model


def trace_feed(spec: TensorSpec) -> Tensor:
    """A feed of the right shape: the exporter looks at nothing else."""
    shape = [TRACE_BATCH if isinstance(size, str) else size for size in spec.shape]
    return torch.zeros(shape, dtype=getattr(torch, spec.dtype))


def name_outputs(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Gives the outputs their final names; an inner value that has such a name already (an op's own) makes way.

    The exporter itself does not see that clash: an output "embedding" and an inner Gather "embedding" stay two values
    of one name.
    """
    new = {name: f"inner.{name}" for name in names} | {OUTPUT + name: name for name in names}
    for holder in (*model.graph.initializer, *model.graph.output):
        holder.name = new.get(holder.name, holder.name)
    for node in model.graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporter's progress lines and warnings off the terminal; errors still raise."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@functools.cache
def registry_of(make: Callable[..., Any], **options: Any) -> Any:
    """The exporter's table of operators, made at the first call."""
    return make(**options)


@contextlib.contextmanager
def one_registry() -> Iterator[None]:
    """Has all graphs share one table of the exporter's operators.

    The exporter makes it anew for every graph, from the source text of 500 functions: a second, which is a quarter of
    the export of a small model. It takes no table from its caller, so the maker is replaced while the block runs. Where
    torch has moved it, nothing is, and the export takes longer.
    """
    made = vars(ONNXRegistry).get(MAKER) if ONNXRegistry is not None else None
    if not isinstance(made, classmethod):
        yield
        return
    shared = functools.partial(registry_of, getattr(ONNXRegistry, MAKER))
    setattr(ONNXRegistry, MAKER, staticmethod(shared))
    try:
        yield
    finally:
        setattr(ONNXRegistry, MAKER, made)


def clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drops stack traces, paths of this machine, and inferred shapes of intermediates; keeps the maths."""
    for holder in (model, model.graph, *model.graph.node, *model.graph.initializer):
        holder.doc_string = ""
        if hasattr(holder, "metadata_props"):
            del holder.metadata_props[:]
    del model.graph.value_info[:]
    return model


def value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    """The typed port of a graph, free dimensions by name."""
    return helper.make_tensor_value_info(spec.name, DTYPES[spec.dtype], list(spec.shape))


def set_ports(model: onnx.ModelProto, graph: Graph) -> None:
    """Writes the graph's declared ports and name into the model; PackError if the traced names differ."""
    for have, want in ((model.graph.input, graph.inputs), (model.graph.output, graph.outputs)):
        names, expected = [value.name for value in have], [spec.name for spec in want]
        if names != expected:
            raise PackError(f"graph {graph.name!r}: traced ports are {names}, expected {expected}")
        del have[:]
        have.extend(value_info(spec) for spec in want)
    model.graph.name = graph.name
    model.producer_name = "styleclip-rt"


def feeds_as_numpy(graph: Graph, feeds: tuple[Tensor, ...]) -> dict[str, object]:
    """Torch feeds -> the dict that ONNX Runtime takes."""
    return {spec.name: tensor.contiguous().numpy() for spec, tensor in zip(graph.inputs, feeds, strict=True)}
