"""The graphs that a pack allows: module, ports, example feeds and metric of each, and what a missing one needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..engines.errors import PackError
from ..engines.spec import TensorSpec
from ..runtime.training.needs import lacking
from ..runtime.training.networks.clip import area_resize
from ..runtime.training.networks.mapper import LatentMapper
from ..runtime.training.pack import Pack
from .modules import (
    DirectionGraph,
    EditGlobalGraph,
    EditMapperGraph,
    EncodeImageGraph,
    EncodeTextGraph,
    MapperGraph,
    MappingGraph,
    StyleGraph,
    SynthesizeGraph,
    SynthesizeU8Graph,
)

Feeds = tuple[Tensor, ...]


@dataclass(frozen=True)
class Graph:
    """One graph to export: its module, its ports, example feeds, and the metric that checks it (see `verify`)."""

    name: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    feeds: Callable[[int, torch.Generator], Feeds] = field(repr=False)
    metric: str = "latent"


def normal(*shape: int) -> Callable[[int, torch.Generator], Tensor]:
    """Feeds of standard normal values, [batch, *shape]."""
    return lambda batch, rng: torch.randn(batch, *shape, generator=rng)


def uniform(low: float, high: float, *shape: int) -> Callable[[int, torch.Generator], Tensor]:
    """Feeds of uniform values in low..high, [batch, *shape]."""
    return lambda batch, rng: torch.rand(batch, *shape, generator=rng) * (high - low) + low


def unit(width: int) -> Callable[[int, torch.Generator], Tensor]:
    """Feeds of unit vectors, [batch, width]."""
    return lambda batch, rng: nn.functional.normalize(torch.randn(batch, width, generator=rng), dim=-1)


def together(*makers: Callable[[int, torch.Generator], Tensor]) -> Callable[[int, torch.Generator], Feeds]:
    """Several feeds as one tuple."""
    return lambda batch, rng: tuple(make(batch, rng) for make in makers)


class GraphFactory:
    """Builds the graphs of one pack; example feeds are latents of its own generator, so that errors are realistic."""

    def __init__(self, pack: Pack):
        self.pack = pack
        self.drawn: dict[tuple[int, int], Tensor] = {}

    def latents(self, batch: int, rng: torch.Generator) -> Tensor:
        """w+ [batch,L,W] of random z."""
        generator = self.pack.generator
        with torch.no_grad():
            z = torch.randn(batch, generator.config.z_dim, generator=rng)
            return generator.broadcast(generator.mapping(z)).contiguous()

    def styles(self, batch: int, rng: torch.Generator) -> Tensor:
        """s [batch,S] of random z."""
        with torch.no_grad():
            return self.pack.generator.styles(self.latents(batch, rng))

    def edited_styles(self, batch: int, rng: torch.Generator) -> Tensor:
        """s [batch,S] outside the training range, as edits push it: channel by channel up to 20% off."""
        s = self.styles(batch, rng)
        return s * uniform(0.8, 1.2, s.shape[1])(batch, rng)

    def images(self, height: int, width: int | None = None) -> Callable[[int, torch.Generator], Tensor]:
        """Feeds of images [batch,3,height,width] in -1..1 (a square of `height` without `width`).

        The generator's pictures, or noise where there is no generator.
        """
        width = width or height
        if not self.pack.has("generator"):
            return uniform(-1.0, 1.0, 3, height, width)

        def faces(batch: int, rng: torch.Generator) -> Tensor:
            return area_resize(self.faces(batch, rng), height, width)

        return faces

    def faces(self, batch: int, rng: torch.Generator) -> Tensor:
        """Pictures [batch,3,R,R] in -1..1 of random z, drawn one by one, once per seed: at 1024 px it takes long."""
        key = batch, rng.initial_seed()
        if key not in self.drawn:
            with torch.no_grad():
                self.drawn[key] = torch.cat([self.pack.generator(w[None]) for w in self.latents(batch, rng)])
        return self.drawn[key].clamp(-1, 1)

    def tokens(self, batch: int, rng: torch.Generator) -> Tensor:
        """Token rows [batch,T] of random length: bos, ids, eos, pad."""
        length, config = self.pack.clip.context_length, self.pack.config("clip")["text_cfg"]
        special = self.pack.config("tokenizer") if self.pack.has("tokenizer") else {}
        vocab = int(config.get("vocab_size", 49408))
        eos = int(special.get("eos", config.get("eos_id", vocab - 1)))
        rows = torch.randint(0, vocab, (batch, length), generator=rng)
        rows = torch.where(rows == eos, (eos + 1) % vocab, rows)
        ends = torch.randint(2, length, (batch,), generator=rng)
        after = torch.arange(length)[None] > ends[:, None]
        rows[after] = int(special.get("pad", config.get("pad_id", 0)))
        if special.get("bos") is not None:
            rows[:, 0] = int(special["bos"])
        return rows.scatter(1, ends[:, None], eos)

    def check_latents(self, what: str, num_ws: int, w_dim: int) -> None:
        """PackError unless a part's w+ [num_ws, w_dim] is that of the pack's generator."""
        generator = self.pack.layout
        if (num_ws, w_dim) != (generator.num_ws, generator.config.w_dim):
            raise PackError(
                f"{what} is for w+ [{num_ws}, {w_dim}]; the pack's generator has [{generator.num_ws}, "
                f"{generator.config.w_dim}]. Import the one that belongs to it"
            )

    def w_port(self, name: str = "w") -> TensorSpec:
        """The port of a w+ tensor."""
        config = self.pack.generator.config
        return TensorSpec(name, "float32", ("N", self.pack.generator.num_ws, config.w_dim))

    def s_port(self, name: str = "s") -> TensorSpec:
        """The port of a style vector."""
        return TensorSpec(name, "float32", ("N", self.pack.generator.style_channels))

    def u8_port(self) -> TensorSpec:
        """The port of a finished image."""
        size = self.pack.generator.config.resolution
        return TensorSpec("image_u8", "uint8", ("N", size, size, 3))

    def embedding_port(self, name: str, width: int) -> TensorSpec:
        """The port of an embedding."""
        return TensorSpec(name, "float32", ("N", width))

    @staticmethod
    def image_port(height: int, width: int | None = None) -> TensorSpec:
        """The port of an image in -1..1, a square of `height` without `width`."""
        return TensorSpec("image", "float32", ("N", 3, height, width or height))

    def mapping(self) -> Graph:
        """Graph `mapping`."""
        width = self.pack.generator.config.z_dim
        ports = (TensorSpec("z", "float32", ("N", width)), TensorSpec("psi", "float32", ("N",)))
        feeds = together(normal(width), uniform(0.0, 1.0))
        return Graph("mapping", MappingGraph(self.pack.generator), ports, (self.w_port(),), feeds)

    def style(self) -> Graph:
        """Graph `style`."""
        return Graph(
            "style", StyleGraph(self.pack.generator), (self.w_port(),), (self.s_port(),), together(self.latents)
        )

    def synthesize(self) -> Graph:
        """Graph `synthesize`."""
        module, out = SynthesizeGraph(self.pack.generator), self.image_port(self.pack.generator.config.resolution)
        return Graph("synthesize", module, (self.s_port(),), (out,), together(self.edited_styles), "image")

    def synthesize_u8(self) -> Graph:
        """Graph `synthesize_u8`."""
        module = SynthesizeU8Graph(self.pack.generator)
        return Graph("synthesize_u8", module, (self.s_port(),), (self.u8_port(),), together(self.edited_styles), "u8")

    def invert(self) -> Graph:
        """Graph `invert`."""
        inverter = self.pack.inverter
        height, width = inverter.config.input_shape
        self.check_latents("the inverter", inverter.config.num_ws, inverter.config.w_dim)
        feeds = together(self.images(height, width))
        return Graph("invert", inverter, (self.image_port(height, width),), (self.w_port(),), feeds)

    def identify(self) -> Graph:
        """Graph `identify`."""
        config = self.pack.identity.config
        feeds = together(self.images(config.input_size))
        out = self.embedding_port("embedding", config.embed_dim)
        return Graph("identify", self.pack.identity, (self.image_port(config.input_size),), (out,), feeds, "cosine")

    def encode_text(self) -> Graph:
        """Graph `encode_text`."""
        clip = self.pack.clip
        tokens = TensorSpec("tokens", "int64", ("N", clip.context_length))
        out = self.embedding_port("embedding", clip.embed_dim)
        return Graph("encode_text", EncodeTextGraph(clip), (tokens,), (out,), together(self.tokens), "cosine")

    def encode_image(self) -> Graph:
        """Graph `encode_image`."""
        clip, size = self.pack.clip, self.pack.clip.image_size
        out = self.embedding_port("embedding", clip.embed_dim)
        feeds = together(self.images(size))
        return Graph("encode_image", EncodeImageGraph(clip), (self.image_port(size),), (out,), feeds, "cosine")

    def direction_module(self) -> DirectionGraph:
        """The direction module with the pack's table and sigma."""
        return DirectionGraph(self.pack.directions, self.pack.statistics.s_std)

    def direction_feeds(self, batch: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """delta_t [batch,E] and beta [batch]; the last beta is out of reach, so that the 0-channel case is checked."""
        delta_t = unit(self.pack.directions.shape[1])(batch, rng)
        beta = uniform(0.01, 0.1)(batch, rng)
        beta[-1] = 2.0 if batch > 1 else beta[-1]
        return delta_t, beta

    def direction(self) -> Graph:
        """Graph `direction`."""
        ports = (self.embedding_port("delta_t", self.pack.directions.shape[1]), TensorSpec("beta", "float32", ("N",)))
        outs = (self.s_port("delta_s"), self.s_port("relevance"))
        return Graph("direction", self.direction_module(), ports, outs, self.direction_feeds)

    def edit_global(self) -> Graph:
        """Graph `edit_global`."""
        module = EditGlobalGraph(self.pack.generator, self.direction_module())
        ports = (
            self.w_port(),
            self.embedding_port("delta_t", self.pack.directions.shape[1]),
            TensorSpec("alpha", "float32", ("N",)),
            TensorSpec("beta", "float32", ("N",)),
        )

        def feeds(batch: int, rng: torch.Generator) -> Feeds:
            delta_t, beta = self.direction_feeds(batch, rng)
            return self.latents(batch, rng), delta_t, uniform(-3.0, 3.0)(batch, rng), beta

        return Graph("edit_global", module, ports, (self.u8_port(),), feeds, "u8")

    def mapper(self, name: str) -> Graph:
        """Graph `mapper/<name>`, or `style_mapper/<name>` for a mapper of style space."""
        network = self.fitting_mapper(name)
        if network.config.kind == "style":
            ports = (self.s_port(),), (self.s_port("delta_s"),)
            return Graph(mapper_graph_name(self.pack, name), MapperGraph(network), *ports, together(self.styles))
        ports = (self.w_port(),), (self.w_port("delta_w"),)
        return Graph(mapper_graph_name(self.pack, name), MapperGraph(network), *ports, together(self.latents))

    def fitting_mapper(self, name: str) -> LatentMapper:
        """The mapper `name`; PackError unless its latents are those of the pack's generator."""
        network = self.pack.mapper(name)
        config, widths = network.config, tuple(layer.channels for layer in self.pack.layout.style_layers)
        self.check_latents(f"mapper {name!r}", config.num_ws, config.w_dim)
        if config.kind == "style" and config.channels != widths:
            raise PackError(
                f"mapper {name!r} is for style layers of {list(config.channels)} channels; the pack's generator has "
                f"{list(widths)}. Import the mapper that belongs to it"
            )
        return network

    def edit_mapper(self, name: str) -> Graph:
        """Graph `edit_mapper/<name>`."""
        module = EditMapperGraph(self.pack.generator, self.fitting_mapper(name))
        ports = (self.w_port(), TensorSpec("strength", "float32", ("N",)))
        feeds = together(self.latents, uniform(0.0, 1.5))
        return Graph(f"edit_mapper/{name}", module, ports, (self.u8_port(),), feeds, "u8")


def mapper_graph_name(pack: Pack, name: str) -> str:
    """`mapper/<name>`, or `style_mapper/<name>` where it works in style space."""
    return f"style_mapper/{name}" if pack.config(f"mapper/{name}").get("kind") == "style" else f"mapper/{name}"


def graph_list(pack: Pack, mappers: Sequence[str] = ()) -> tuple[list[Callable[[], Graph]], dict[str, list[str]]]:
    """(builders of the graphs that the pack allows, {graph: components it lacks} for the others)."""
    factory, builders, missing = GraphFactory(pack), [], {}
    for name, parts in lacking(pack.components).items():
        if parts:
            missing[name] = parts
        else:
            builders.append(getattr(factory, name))
    for name in mappers:
        if pack.has("generator"):
            builders += [lambda name=name: factory.mapper(name), lambda name=name: factory.edit_mapper(name)]
        else:
            missing[f"edit_mapper/{name}"] = ["generator"]
    return builders, missing
