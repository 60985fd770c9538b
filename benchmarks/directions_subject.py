"""What the benchmark of channel directions measures: a pack's networks, or random weights of a published size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..runtime.training.directions_finite import PSI, base_faces
from ..runtime.training.networks.clip import Clip
from ..runtime.training.networks.stylegan2 import Generator, StyleLayer
from ..runtime.training.pack import load_pack
from .network import NetworkSpec, random_network

VIT_B32 = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
    "text_cfg": {"context_length": 8, "vocab_size": 16, "width": 64, "heads": 1, "layers": 1},
    "quick_gelu": True,
}
"""StyleCLIP's CLIP with random weights; its text tower is not run here and is kept small."""
SIGMAS, IMAGES = 5.0, 100


@dataclass(frozen=True)
class Subject:
    """What is measured: a generator, CLIP, the moments of style space [S] and the styles of base images [n,S]."""

    name: str
    generator: Generator
    clip: Clip
    mean: Tensor
    std: Tensor
    styles: Tensor

    def layers(self) -> list[tuple[int, StyleLayer]]:
        """Index and layer of every convolution: the published table's."""
        return [(i, layer) for i, layer in enumerate(self.generator.style_layers) if layer.kind == "conv"]


def pack_subject(name: str, images: int) -> Subject:
    """The networks and statistics of a pack, with the base images of its tables."""
    pack = load_pack(name)
    statistics = pack.statistics
    w = base_faces(pack.generator, images, float(statistics.config.get("psi", PSI)))
    styles = pack.generator.styles(w)
    return Subject(pack.name, pack.generator, pack.clip, statistics.s_mean, statistics.s_std, styles)


def random_subject(size: int, width: str, images: int) -> Subject:
    """A generator of `size` px and a ViT-B/32 with seeded random weights: time does not depend on weights."""
    network = random_network(NetworkSpec(size=size, width=width))
    generator = network.generator
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = Clip(VIT_B32).eval().requires_grad_(False)
    many = generator.styles(base_faces(generator, max(256, images), PSI))
    return Subject(f"{size}px-{width}", generator, clip, many.mean(0), many.std(0), many[:images].clone())


def spread(layer: StyleLayer, count: int) -> list[int]:
    """`count` channels evenly over a layer, numbered within it; all where it has fewer."""
    return [int(c) for c in np.unique(np.linspace(0, layer.channels - 1, min(count, layer.channels)).round())]
