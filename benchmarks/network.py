"""The network that is measured: the generator of a pack, or one of any size with seeded random weights.

The time of a generator does not depend on its weights, so a full-size network needs no checkpoint; its accuracy figures
are those of a random network and are labelled so.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engines.errors import InputError
from .counts import full_width

if TYPE_CHECKING:
    import torch

    from ..runtime.training.networks.stylegan2 import Generator

WIDTHS = {"full": 1, "half": 2, "quarter": 4, "eighth": 8, "sixteenth": 16}
SIZES = tuple(2**i for i in range(5, 12))
_RGB_GAIN = 0.15  # nine RGB layers of unit-variance features add up to a picture that mostly stays in -1..1


@dataclass(frozen=True)
class NetworkSpec:
    """Which network: `pack` (a name or folder), or else size (pixels), width (a key of `WIDTHS`) and seed."""

    pack: str | None = None
    size: int = 1024
    width: str = "full"
    seed: int = 0

    @property
    def key(self) -> str:
        """A file name that is different for every network."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]
        return f"{'pack' if self.pack else f'{self.size}px-{self.width}'}-{digest}"

    @property
    def label(self) -> str:
        """How tables name it."""
        return f"pack {self.pack}" if self.pack else f"random weights, {self.size} px, {self.width} width"


@dataclass
class Network:
    """A generator with what an edit needs: statistics (s_std [S]) and directions [S, E], as a pack has them."""

    generator: Generator
    sigma: torch.Tensor
    directions: torch.Tensor

    @property
    def statistics(self) -> Network:
        """Where `GraphFactory` looks for `s_std`."""
        return self

    def has(self, component: str) -> bool:
        """Whether the exporter finds a component here."""
        return component in ("generator", "statistics", "directions")

    @property
    def layout(self) -> Generator:
        """Where `GraphFactory` looks for the style layers."""
        return self.generator

    @property
    def s_std(self) -> torch.Tensor:
        """Standard deviation of every style channel, [S]."""
        return self.sigma


def load_network(spec: NetworkSpec) -> Network:
    """Build the network on the CPU in float32.

    Raises:
        PackError: no such pack, or it has no generator.
        InputError: a size or width that is not offered.
    """
    if spec.pack is None:
        return random_network(spec)
    from ..runtime.training.pack import load_pack

    pack = load_pack(spec.pack)
    if pack.has("statistics") and pack.has("directions"):
        return Network(pack.generator, pack.statistics.s_std, pack.directions)
    return Network(pack.generator, *random_edits(pack.generator, spec.seed))


def random_network(spec: NetworkSpec) -> Network:
    """A generator of config F's shape with seeded weights that a pack could hold (FP16 values), biases and noise."""
    import torch

    from ..runtime.training.networks.stylegan2 import Generator, GeneratorConfig

    if spec.size not in SIZES or spec.width not in WIDTHS:
        raise InputError(
            f"got size {spec.size}, width {spec.width!r}; expected a size of {', '.join(map(str, SIZES))} "
            f"and a width of {', '.join(WIDTHS)}"
        )
    divisor = WIDTHS[spec.width]
    channels = {r: max(c // divisor, 2) for r, c in full_width(spec.size).items()}
    width = 512 // divisor
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        generator = Generator(GeneratorConfig(spec.size, width, width, 8, channels))
        with torch.no_grad():
            for name, parameter in generator.named_parameters():
                if name.endswith(("noise_strength", "bias")):
                    parameter.normal_(float("affine" in name), 0.1)
                elif "torgb.weight" in name:
                    parameter.mul_(_RGB_GAIN)
                parameter.copy_(parameter.half())
    generator.eval().requires_grad_(False)
    return Network(generator, *random_edits(generator, spec.seed))


def random_edits(generator: Generator, seed: int, embed_dim: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    """(s_std [S], directions [S, E]) with seeded values; rows of toRGB channels are zero, as in a pack."""
    import torch

    rng = torch.Generator().manual_seed(seed + 1)
    sigma = torch.rand(generator.style_channels, generator=rng) * 0.3 + 0.05
    table = torch.nn.functional.normalize(torch.randn(generator.style_channels, embed_dim, generator=rng), dim=-1)
    for layer in generator.style_layers:
        if layer.kind == "torgb":
            table[layer.offset : layer.offset + layer.channels] = 0
    return sigma, table


def make_inputs(network: Network, batch: int, seed: int) -> dict[str, np.ndarray]:
    """Feeds for both tasks: latents w of random z (psi 0.7), their styles s, text directions, alpha 3 and beta 0.12."""
    import torch

    rng = torch.Generator().manual_seed(seed)
    generator = network.generator
    with torch.no_grad():
        w = generator.broadcast(
            generator.mapping(torch.randn(batch, generator.config.z_dim, generator=rng), 0.7)
        ).contiguous()
        s = generator.styles(w)
    # A few channels' own directions: like a text, they pass beta 0.12 on some channels and fail on most.
    rows = network.directions[network.directions.any(1)]
    picked = torch.stack([rows[torch.randperm(len(rows), generator=rng)[:12]].sum(0) for _ in range(batch)])
    delta_t = torch.nn.functional.normalize(picked, dim=-1)
    arrays: dict[str, Any] = {"w": w, "s": s, "delta_t": delta_t}
    feeds = {name: tensor.numpy() for name, tensor in arrays.items()}
    return feeds | {"alpha": np.full(batch, 3.0, np.float32), "beta": np.full(batch, 0.12, np.float32)}
