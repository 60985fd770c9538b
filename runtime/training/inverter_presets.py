"""How an inverter is trained: sizes of the encoder by generator, weights of the losses, steps and rates."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ...engines.errors import InputError
from .networks.e4e import E4EConfig
from .networks.stylegan2 import GeneratorConfig

LARGEST_INPUT = 256  # px; the published encoders see 256 px whatever the generator draws
ENCODERS, OPTIMIZERS = ("narrow", "e4e"), ("adam", "ranger")


@dataclass(frozen=True)
class InverterWeights:
    """Weights of the terms; 0 leaves one out. See `inverter_losses` for what each of them is.

    `features`, `clip` and `identity` need the pack's identity network and CLIP; without them they are left out.
    """

    pixels: float = 1.0
    edges: float = 0.5
    features: float = 0.2
    clip: float = 0.1
    identity: float = 0.1
    known_w: float = 0.15
    offsets: float = 2e-3
    adversary: float = 0.02


@dataclass(frozen=True)
class InverterPreset:
    """One training in two passes: w of samples alone, then end to end through the generator.

    `warm_steps`, `warm_lr`, `warm_batch`: the first pass. `unlock`: the shares of the second pass between which the
    offsets of the layers are unlocked one by one. `photo_share`: of a batch, where there are photos. `psi`: truncation
    of the samples. `r1` is R1's weight, applied every `r1_every` steps and so many times as strongly.
    """

    encoder: str = "narrow"
    weights: InverterWeights = field(default_factory=InverterWeights)
    warm_steps: int = 1500
    warm_batch: int = 32
    warm_lr: float = 1.5e-3
    steps: int = 1000
    batch: int = 16
    lr: float = 6e-4
    optimizer: str = "adam"
    unlock: tuple[float, float] = (0.1, 0.5)
    photo_share: float = 0.5
    psi: float = 1.0
    discriminator_lr: float = 2e-4
    r1: float = 1.0
    r1_every: int = 16
    ema: float = 0.998

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "unlock": list(self.unlock)}


# e4e: the published rates, steps and weights (Tov et al. 2021; offsets are unlocked from step 20,000 to 52,000), with
# features of the identity network in place of LPIPS. Samples take no part where there are photos.
PRESETS: dict[str, InverterPreset] = {
    "narrow": InverterPreset(),
    "e4e": InverterPreset(
        encoder="e4e",
        weights=InverterWeights(
            pixels=1.0, edges=0.0, features=0.8, clip=0.0, identity=0.1, known_w=0.0, offsets=2e-4, adversary=0.1
        ),
        warm_steps=0,
        warm_batch=8,
        warm_lr=1e-4,
        steps=200_000,
        batch=8,
        lr=1e-4,
        optimizer="ranger",
        unlock=(0.1, 0.26),
        photo_share=1.0,
        discriminator_lr=2e-5,
        r1=10.0,
        ema=0.999,
    ),
}


def named_preset(name: str, resolution: int) -> InverterPreset:
    """The preset `name`; "auto" is "narrow" below 256 px and "e4e" from there on."""
    if name == "auto":
        name = "narrow" if resolution < LARGEST_INPUT else "e4e"
    if name not in PRESETS:
        raise InputError(f"no preset {name!r}; expected auto or one of {', '.join(PRESETS)}")
    return PRESETS[name]


def check_preset(settings: InverterPreset) -> None:
    """InputError names the first setting that is out of its range."""
    first, last = settings.unlock
    smallest = min(settings.steps, settings.batch, settings.warm_batch)
    rules = (
        (settings.encoder in ENCODERS, f"encoder {settings.encoder!r}: expected one of {', '.join(ENCODERS)}"),
        (
            settings.optimizer in OPTIMIZERS,
            f"optimizer {settings.optimizer!r}: expected one of {', '.join(OPTIMIZERS)}",
        ),
        (smallest >= 1 and settings.warm_steps >= 0, "steps and batches are at least 1, warm_steps at least 0"),
        (0 <= first <= last <= 1, f"unlock {settings.unlock}: expected two shares, 0 <= first <= last <= 1"),
        (0 <= settings.photo_share <= 1, f"photo_share {settings.photo_share}: expected 0 to 1"),
    )
    for fine, message in rules:
        if not fine:
            raise InputError(message)


def encoder_config(encoder: str, generator: GeneratorConfig) -> E4EConfig:
    """Sizes of a fresh encoder for a generator: the published ones ("e4e"), or narrow ones that train in minutes."""
    size, layers = min(generator.resolution, LARGEST_INPUT), generator.num_ws
    if encoder == "e4e":
        return replace(E4EConfig.published(layers), w_dim=generator.w_dim, input_size=size)
    depth = max(3, int(math.log2(size)) - 2)  # the coarsest map has 4 px
    wide = 1 if generator.w_dim <= 128 else 2
    widths = [24] * depth + [48, 64, 96]
    stages = tuple((wide * width, 1 if width == 24 else 2) for width in widths[-depth:])
    coarse, middle = (3, 7) if layers >= 10 else (max(1, layers // 3), max(2, 2 * layers // 3))
    return E4EConfig(
        layers, generator.w_dim, size, 16 * wide, stages, 8, 48 * wide, coarse_layers=coarse, middle_layers=middle
    )


def unlocked(step: int, steps: int, layers: int, unlock: tuple[float, float]) -> int:
    """How many of `layers` offsets are free at a step: none before the first share of `steps`, all from the last on."""
    first, last = (share * steps for share in unlock)
    if step < first:
        return 0
    if step >= last:
        return layers
    return min(layers, 1 + int((step - first) / (last - first) * (layers - 1)))
