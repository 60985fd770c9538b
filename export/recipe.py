"""How the graphs of one bundle are made: precision, form of the up-sampling convolution, slices for sliders.

`Recipe.made` is what the bundle writer calls for every graph. Under `auto` a graph that misses its float16 limits is
made in float32, and its entry says why; under `fp16` that is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from ..engines.errors import PackError, ToleranceError
from ..runtime.training.pack import Pack
from .forms import form_for
from .fuse import Part, fuse
from .graphs import Graph, GraphFactory
from .onnx_writer import ModelMaker, clean, feeds_as_numpy, onnx_from_module, set_ports, value_info
from .precision import Choice, checked_precision, digits, settle
from .precision_gate import gate, gates
from .precision_layers import TypedSynthesis
from .precision_onnx import half_model, islands_of, measured_ranges
from .ranges import sample_styles
from .slices import extract
from .slider import HEAD, PREVIEW, TAIL, Slice, SliceFactory, slice_names
from .verify import Check
from .weights import WeightFile, known_gains

NETWORKS = ("invert", "identify", "encode_text", "encode_image")
"""Graphs that are typed as they stand; the generator is rewritten (`precision_layers`)."""
MEASURE_SEEDS = (11, 12)


@dataclass(frozen=True)
class Made:
    """A model as written. check: its comparison with PyTorch, None where the writer makes it; precision: its entry."""

    model: onnx.ModelProto
    check: Check | None = None
    precision: dict[str, Any] = field(default_factory=lambda: {"type": "fp32"})


class SliceMaker(ModelMaker):
    """A ModelMaker whose synthesis, and every slice of it, is cut from one trace (`SliceFactory.taps`)."""

    def __init__(self, weights: WeightFile, slices: SliceFactory | None, half: bool = False) -> None:
        super().__init__(weights)
        self.slices, self.half = slices, half
        self.islands: dict[str, dict[str, float]] = {}

    @cached_property
    def table(self) -> dict[str, Slice]:
        """The slices by name; none without a generator."""
        return {} if self.slices is None else self.slices.slices()

    @cached_property
    def taps(self) -> onnx.ModelProto:
        """The traced synthesis with all its named values."""
        if self.slices is None:
            raise PackError("the pack has no generator, so there is no synthesis to trace")
        return clean(onnx_from_module(self.slices.taps(), self.weights))

    def trace(self, graph: Graph) -> onnx.ModelProto:
        """The part of a graph; see `ModelMaker.trace`."""
        if graph.name not in self.traced:
            if graph.name == "synthesize":
                self.traced[graph.name] = extract(self.taps, {"s": "s"}, {"image": "image"})
            elif self.half and graph.name in NETWORKS:
                self.traced[graph.name] = self.typed_network(graph)
        return super().trace(graph)

    def typed_network(self, graph: Graph) -> onnx.ModelProto:
        """A network in float16, its islands where measured values leave float16's range."""
        model = clean(onnx_from_module(graph))
        feeds = [graph.feeds(2, torch.Generator().manual_seed(seed)) for seed in MEASURE_SEEDS]
        peaks = measured_ranges(model, (feeds_as_numpy(graph, feed) for feed in feeds))
        self.islands[graph.name] = {name: peaks[name] for name in islands_of(model, peaks)}
        typed = ir.from_proto(half_model(model, self.islands[graph.name]))
        self.weights.take(typed, known_gains(graph.module))
        return ir.to_proto(typed)

    def model(self, graph: Graph, parts: Mapping[str, Graph]) -> onnx.ModelProto:
        """The finished model of a graph, slices included."""
        if not is_slice(graph.name):
            return super().model(graph, parts)
        piece = self.table[graph.name]
        model = extract(self.taps, piece.inputs, piece.outputs)
        if graph.metric == "u8":
            ports = [value_info(spec) for spec in graph.inputs]
            first = Part("synthesize", model, {spec.name: spec.name for spec in graph.inputs})
            tune = [] if piece.tune is None else [Part("tune", colour_map(*piece.tune), {"rgb": "synthesize/image"})]
            end = self.tail("tune/image" if tune else "synthesize/image")
            model = fuse(graph.name, [first, *tune, end], ports, "tail/image_u8")
        set_ports(model, graph)
        return model


def colour_map(weight: Tensor, bias: Tensor) -> onnx.ModelProto:
    """Glue: rgb [N,3,r,r] -> image = weight @ rgb + bias, per pixel."""
    tensors = [
        numpy_helper.from_array(weight[:, :, None, None].numpy(), "weight"),
        numpy_helper.from_array(bias.numpy(), "bias"),
    ]
    ports = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", 3, "R", "R"]) for n in ("rgb", "image")]
    node = helper.make_node("Conv", ["rgb", "weight", "bias"], ["image"])
    return helper.make_model(helper.make_graph([node], "tune", ports[:1], ports[1:], tensors))


class Recipe:
    """The makers of one export. Raises InputError for an unknown precision or form."""

    def __init__(
        self, pack: Pack, weights: WeightFile, precision: str = "fp32", form: str = "auto", slider: bool = True
    ) -> None:
        self.pack, self.weights, self.slider = pack, weights, slider
        self.precision = checked_precision(precision)
        self.form = form_for(form, precision)
        self.factory = GraphFactory(pack)

    @cached_property
    def choice(self) -> Choice:
        """The float16 form of the generator, settled on samples of its faces and edits."""
        return settle(self.pack.generator, sample_styles(self.pack), self.form)

    def maker_of(self, islands: Collection[str] | None, half: bool = False) -> SliceMaker:
        """A maker whose synthesis has these islands, and the scales of the choice; None: plain float32."""
        if not self.pack.has("generator"):
            return SliceMaker(self.weights, None, half)
        scales = {} if islands is None else self.choice.scales
        typed = TypedSynthesis(self.pack.generator, self.form, islands, scales)
        return SliceMaker(self.weights, SliceFactory(self.factory, typed), half)

    @cached_property
    def maker(self) -> SliceMaker:
        """Makes the graphs in the precision that was asked for."""
        if self.precision == "fp32" or not self.pack.has("generator"):
            return self.maker_of(None, half=self.precision != "fp32")
        return self.maker_of(self.choice.islands, half=True)

    @cached_property
    def spare(self) -> SliceMaker:
        """Makes in float32 what fails in float16.

        Its synthesis keeps the scales, which as powers of two change nothing there, so that a head in one precision
        fits a tail in the other.
        """
        generator = self.pack.layout if self.pack.has("generator") else None
        spare = self.maker_of(None if generator is None else [layer.name for layer in generator.style_layers])
        spare.traced |= {name: model for name, model in self.maker.traced.items() if not self.is_half(name)}
        return spare

    def is_half(self, name: str) -> bool:
        """Whether a graph is tried in float16."""
        of_synthesis = name.startswith(("synthesize", "edit_", f"{PREVIEW}/"))
        return self.precision != "fp32" and (of_synthesis or name in NETWORKS)

    def slice_graphs(self) -> list[Callable[[], Graph]]:
        """Builders of the graphs of interactive edits; none without a generator, or where they are not wanted."""
        if not self.slider or not self.pack.has("generator"):
            return []
        return [partial(self.slice_graph, name) for name in slice_names(self.pack.layout)]

    def slice_graph(self, name: str) -> Graph:
        """The graph of a slice."""
        return self.maker.table[name].graph

    def made(self, graph: Graph, parts: Mapping[str, Graph], path: Path) -> Made:
        """Writes the graph to `path`, beside the weights, in the precision that it passes in.

        ToleranceError where `fp16` was asked for and the graph misses its limits.
        """
        model = self.maker.model(graph, parts)
        save(model, path)
        if not self.is_half(graph.name):
            return Made(model)
        compared = self.maker.table[graph.name].gates if is_slice(graph.name) else gates(graph, self.factory)
        try:
            check, figures = gate(graph, path, compared)
        except ToleranceError as error:
            if self.precision == "fp16":
                raise ToleranceError(f"{error}. Export with --precision auto to keep that graph in float32") from None
            model = self.spare.model(graph, parts)
            save(model, path)
            return Made(model, None, {"type": "fp32", "reason": str(error)})
        figures = {name: digits(value) for name, value in figures.items()}
        return Made(model, check, self.entry(graph.name) | {"gate": figures})

    def entry(self, name: str) -> dict[str, Any]:
        """The `precision` entry of a float16 graph; the generator's ranges stand once, at `synthesize`."""
        if name in NETWORKS:
            peaks = self.maker.islands[name]
            return {"type": "fp16", "islands": list(peaks), "ranges": {key: digits(peaks[key]) for key in peaks}}
        if name == "synthesize":
            return self.choice.as_json()
        return {"type": "fp16", "islands": list(self.choice.islands), "as": "synthesize"}


def is_slice(name: str) -> bool:
    """Whether a graph belongs to interactive edits."""
    return name.split("/")[0] in (HEAD, TAIL, PREVIEW)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Writes a model whose large weights are in the shared file beside it."""
    path.write_bytes(model.SerializeToString(deterministic=True))
