"""The graphs of interactive edits: `synthesize_head/<layer>`, `synthesize_tail/<layer>` and `preview/<r>`.

An edit leaves everything below its first changed layer as it is. The head computes what enters that layer, once; the
tail goes on from there, for every step of a slider. Cuts stand before the convolutions where a cut saves a share worth
having; a runtime takes the last one that is not above the first changed layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..engines.gate import ALPHA
from ..engines.spec import TensorSpec
from ..runtime.training.networks.clip import area_resize
from ..runtime.training.networks.stylegan2 import Generator
from .graphs import Feeds, Graph, GraphFactory
from .modules import to_u8
from .precision_gate import Gate, styles_at
from .precision_layers import State, TypedSynthesis

MIN_SAVED = 0.05
"""Share of the multiply-adds that a cut must save to be exported."""
FIT_SAMPLES = 8
HEAD, TAIL, PREVIEW = "synthesize_head", "synthesize_tail", "preview"


@dataclass(frozen=True)
class Slice:
    """A graph made of nodes of the whole synthesis: inputs and outputs as {port: value of the trace}.

    tune: (weight [3,3], bias [3]) of a preview's colours. gates: what a float16 version is compared on.
    """

    graph: Graph
    inputs: dict[str, str]
    outputs: dict[str, str]
    gates: tuple[Gate, ...] = ()
    tune: tuple[Tensor, Tensor] | None = None


def macs(generator: Generator) -> dict[str, int]:
    """Multiply-adds of every conv layer for one picture; the transposed convolution counts its input pixels."""
    counts = {}
    for layer in generator.style_layers:
        if layer.kind == "conv":
            resolution = int(layer.name.split(".")[0][1:])
            size = resolution // 2 if layer.name.endswith("conv0") else resolution
            counts[layer.name] = generator.layer(layer.name).weight.numel() * size * size
    return counts


def cuts(generator: Generator, least: float = MIN_SAVED) -> list[str]:
    """The conv layers before which a cut saves at least the share `least`, lowest first."""
    counts = macs(generator)
    total, below, chosen = sum(counts.values()), 0, []
    for name, count in counts.items():
        if below >= least * total:
            chosen.append(name)
        below += count
    return chosen


def entering(layer: str) -> int:
    """Resolution of the RGB skip that enters a layer: that of the block below."""
    return int(layer.split(".")[0][1:]) // 2


def preview_size(generator: Generator) -> int | None:
    """The resolution of previews, a quarter of the whole; None where that is under 32 px."""
    size = generator.config.resolution // 4
    return size if size >= 32 else None


def slice_names(generator: Generator) -> list[str]:
    """Names of all slices, in the order of the bundle."""
    names = [f"{kind}/{layer}" for layer in cuts(generator) for kind in (HEAD, TAIL)]
    size = preview_size(generator)
    return [*names, *([f"{PREVIEW}/{size}"] if size else [])]


class Taps(nn.Module):
    """s [N,S] -> image, the features before every cut, and the RGB skips there: what the slices are cut from."""

    def __init__(self, synthesis: TypedSynthesis, layers: Sequence[str], sizes: Sequence[int]) -> None:
        super().__init__()
        self.synthesis, self.layers, self.sizes = synthesis, list(layers), list(sizes)

    @property
    def names(self) -> list[str]:
        """Names of the outputs."""
        return ["image", *(f"x.{layer}" for layer in self.layers), *(f"rgb.{size}" for size in self.sizes)]

    def forward(self, s: Tensor) -> Feeds:
        """The outputs in the order of `names`."""
        states, image = self.synthesis.states(s)
        features = [states[layer][0] for layer in self.layers]
        return (image, *features, *(skip_of(states, size) for size in self.sizes))


def skip_of(states: dict[str, State], size: int) -> Tensor:
    """The RGB skip [N,3,size,size]."""
    rgb = states[f"b{2 * size}.conv0"][1]
    if rgb is None:
        raise ValueError(f"no RGB skip enters b{2 * size}")  # only b4 has none, and no size names it
    return rgb


class HeadGraph(nn.Module):
    """s [N,S] -> the features (over their scale) and the RGB skip that enter a layer, in float32."""

    def __init__(self, exact: TypedSynthesis, layer: str, scale: float) -> None:
        super().__init__()
        self.exact, self.layer, self.scale = exact, layer, scale

    def forward(self, s: Tensor) -> Feeds:
        """Reads only the styles below the layer."""
        x, rgb = self.exact.states(s)[0][self.layer]
        return (x / self.scale, rgb) if rgb is not None else (x / self.scale,)


class TailGraph(HeadGraph):
    """s [N,S], what the head of the same bundle gives -> image_u8."""

    def forward(self, s: Tensor, x: Tensor, rgb: Tensor) -> Tensor:  # type: ignore[override]
        """Reads only the styles from the layer on."""
        return to_u8(self.exact.states(s, self.layer, (x * self.scale, rgb))[1])


class PreviewGraph(nn.Module):
    """s [N,S] -> image_u8 [N,r,r,3]: the RGB skip of a lower resolution, its colours moved to those of the picture."""

    weight: Tensor
    bias: Tensor

    def __init__(self, exact: TypedSynthesis, size: int, tune: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.exact, self.size = exact, size
        self.register_buffer("weight", tune[0][:, :, None, None], persistent=False)
        self.register_buffer("bias", tune[1], persistent=False)

    def forward(self, s: Tensor) -> Tensor:
        """A quarter of the side, a small part of the work."""
        rgb = skip_of(self.exact.states(s)[0], self.size)
        return to_u8(nn.functional.conv2d(rgb, self.weight, self.bias))


@torch.no_grad()
def fit_colours(exact: TypedSynthesis, styles: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(weight [3,3], bias [3]) that bring the RGB skip nearest to the finished picture at that size (least squares).

    The layers above add contrast as well as detail; this is the part of it that does not depend on the place.
    """
    pairs = []
    for s in styles.split(1):
        states, image = exact.states(s)
        pairs.append((skip_of(states, size).flatten(2)[0], area_resize(image, size).flatten(2)[0]))
    rgb = torch.cat([a for a, _ in pairs], 1).double()  # [3,P]
    wanted = torch.cat([b for _, b in pairs], 1).double()
    rows = torch.cat([rgb, torch.ones(1, rgb.shape[1], dtype=torch.float64)]).T  # [P,4]
    solution = torch.linalg.lstsq(rows, wanted.T).solution  # [4,3]
    return solution[:3].T.float().contiguous(), solution[3].float()


class SliceFactory:
    """The slices of one pack's generator; `typed` is the synthesis whose trace they are cut from."""

    def __init__(self, factory: GraphFactory, typed: TypedSynthesis) -> None:
        self.factory, self.typed = factory, typed
        self.generator: Generator = factory.pack.generator
        self.exact = TypedSynthesis(self.generator)
        self.layers = cuts(self.generator)

    def sizes(self) -> list[int]:
        """Resolutions whose RGB skip the slices need."""
        preview = preview_size(self.generator)
        return sorted({entering(layer) for layer in self.layers} | ({preview} if preview else set()))

    def taps(self) -> Graph:
        """The one graph that is traced."""
        module = Taps(self.typed, self.layers, self.sizes())
        outputs = tuple(TensorSpec(name, "float32", ("N",)) for name in module.names)
        feeds = self.factory.edited_styles
        return Graph("taps", module, (self.factory.s_port(),), outputs, lambda n, rng: (feeds(n, rng),))

    def slices(self) -> dict[str, Slice]:
        """All slices by the graph's name."""
        found = [piece for layer in self.layers for piece in (self.head(layer), self.tail(layer))]
        size = preview_size(self.generator)
        found += [self.preview(size)] if size else []
        return {piece.graph.name: piece for piece in found}

    def state_ports(self, layer: str) -> tuple[TensorSpec, TensorSpec]:
        """The ports between a head and its tail."""
        channels = self.generator.layer(layer).weight.shape[1]
        size = entering(layer)
        side = size if layer.endswith("conv0") else 2 * size
        return (
            TensorSpec("x", "float32", ("N", channels, side, side)),
            TensorSpec("rgb", "float32", ("N", 3, size, size)),
        )

    def scale(self, layer: str) -> float:
        """The power of two by which the features that enter a layer are stored smaller."""
        return self.typed.scale(source_of(self.typed.names, layer))

    def head(self, layer: str) -> Slice:
        """`synthesize_head/<layer>`."""
        module, ports = HeadGraph(self.exact, layer, self.scale(layer)), self.state_ports(layer)
        name, feeds = f"{HEAD}/{layer}", self.factory.edited_styles
        graph = Graph(name, module, (self.factory.s_port(),), ports, lambda n, rng: (feeds(n, rng),), "latent")
        plain = Gate("feeds", lambda n, rng: (self.factory.styles(n, rng),))
        return Slice(graph, {"s": "s"}, state_values(layer), (plain,))

    def tail(self, layer: str) -> Slice:
        """`synthesize_tail/<layer>`."""
        module = TailGraph(self.exact, layer, self.scale(layer))
        ports = (self.factory.s_port(), *self.state_ports(layer))
        feeds = self.tail_feeds(layer, ALPHA / 2)
        graph = Graph(f"{TAIL}/{layer}", module, ports, (self.factory.u8_port(),), feeds, "u8")
        gates = (Gate("plain", self.tail_feeds(layer, 0.0)), Gate("edited", self.tail_feeds(layer, ALPHA)))
        return Slice(graph, {"s": "s"} | state_values(layer), {"image": "image"}, gates)

    def tail_feeds(self, layer: str, alpha: float) -> Callable[[int, torch.Generator], Feeds]:
        """Feeds of a tail: faces up to the layer, edited with +alpha and -alpha in turn from there on."""
        offset = next(entry.offset for entry in self.generator.style_layers if entry.name == layer)

        def feeds(batch: int, rng: torch.Generator) -> Feeds:
            signs = alpha * torch.tensor([1.0, -1.0]).repeat(batch)[:batch]
            with torch.no_grad():
                s, edited = styles_at(self.factory, signs, rng)
                x, rgb = HeadGraph(self.exact, layer, self.scale(layer))(s)
            return torch.cat([s[:, :offset], edited[:, offset:]], 1), x, rgb

        return feeds

    def preview(self, size: int) -> Slice:
        """`preview/<r>`."""
        rng = torch.Generator().manual_seed(0)
        tune = fit_colours(self.exact, self.factory.styles(FIT_SAMPLES, rng), size)
        out, feeds = TensorSpec("image_u8", "uint8", ("N", size, size, 3)), self.factory.edited_styles
        module, ports = PreviewGraph(self.exact, size, tune), (self.factory.s_port(),)
        graph = Graph(f"{PREVIEW}/{size}", module, ports, (out,), lambda n, rng: (feeds(n, rng),), "u8")
        gates = (Gate("plain", self.preview_feeds(0.0)), Gate("edited", self.preview_feeds(ALPHA)))
        return Slice(graph, {"s": "s"}, {"image": f"rgb.{size}"}, gates, tune)

    def preview_feeds(self, alpha: float) -> Callable[[int, torch.Generator], Feeds]:
        """Feeds of a preview: faces edited with alpha."""
        return lambda batch, rng: (styles_at(self.factory, torch.full((batch,), alpha), rng)[1],)


def state_values(layer: str) -> dict[str, str]:
    """{port: value of the trace} of what enters a layer."""
    return {"x": f"x.{layer}", "rgb": f"rgb.{entering(layer)}"}


def source_of(names: Sequence[str], layer: str) -> str:
    """The tensor that enters a conv layer: the name of the conv layer below, "const" for the first."""
    below = [name for name in names[: names.index(layer)] if not name.endswith("torgb")]
    return below[-1] if below else "const"
