"""Trains a latent mapper for one prompt (Patashnik et al. 2021, section 5).

w_hat = w + 0.1 * mapper(w); the loss is equation 1 on the rendered pair, with StyleGAN-NADA's directional CLIP loss as
an option. Training sees the generator, CLIP and the identity network: no factors, no captions, no judge.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ...engines.errors import InputError
from .loop import device, rng_for, train
from .losses import ImageEncoder, ImageLoss, LossWeights
from .networks.mapper import LevelsMapper, MapperConfig
from .networks.stylegan2 import Generator
from .texts import TextPair


@dataclass(frozen=True)
class MapperPreset:
    """How one mapper is trained.

    `groups` are the layer groups that may move: colours need the fine layers, shapes do without them and then keep
    colours in place. `psi` is the truncation of the training faces; `jitter` is the standard deviation of the noise per
    layer that is added to them, in units of the standard deviation of W: inverted photographs have layers that differ,
    samples have not, and the mapper's normalisation over layers sees nothing else.
    """

    weights: LossWeights = field(default_factory=lambda: LossWeights(clip=0.4, directional=1.0, l2=0.2, identity=0.1))
    groups: tuple[str, ...] = ("coarse", "medium", "fine")
    steps: int = 300
    batch: int = 12
    lr: float = 3.0
    psi: float = 1.0
    jitter: float = 0.05


PUBLISHED = MapperPreset(LossWeights(clip=1.0, l2=0.8, identity=0.1), steps=50_000, batch=2, lr=0.5, jitter=0.0)
"""The published settings (with Adam in place of Ranger); for generators of the published size."""

# Settings of the embedded pack: a few hundred steps in place of 50,000, so the rate is higher than the published one
# (the mapper's equalised layers divide it by 100). The directional term keeps other attributes in place; it ignores how
# far an edit goes, so that D_CLIP stays in the sum to drive it home. With D_CLIP and L2 alone, other attributes follow.
PRESETS: dict[str, MapperPreset] = {
    "bob-cut": MapperPreset(),
    "purple-hair": MapperPreset(),
    "glasses": MapperPreset(steps=240),
    "surprised": MapperPreset(steps=240),
}


def preset(name: str) -> MapperPreset:
    """The preset of a prompt, or the default one for a prompt without its own."""
    return PRESETS.get(name, MapperPreset())


@dataclass(frozen=True)
class MapperNetworks:
    """What the training sees; `encode_image` carries the image front-end that CLIP was trained with."""

    generator: Generator
    encode_image: ImageEncoder
    identify: ImageEncoder | None = None


@contextmanager
def frozen(*modules: object) -> Iterator[None]:
    """Switches off the parameters' gradients inside the block; gradients still flow through the modules."""
    parameters = [p for module in modules if isinstance(module, nn.Module) for p in module.parameters()]
    wanted = [p.requires_grad for p in parameters]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p, flag in zip(parameters, wanted, strict=True):
            p.requires_grad_(flag)


def mapper_config(generator: Generator, settings: MapperPreset) -> MapperConfig:
    """Sizes of the generator with the preset's groups switched on; InputError names an unknown group."""
    known = ("coarse", "medium", "fine")
    unknown = set(settings.groups) - set(known)
    if unknown or not settings.groups:
        raise InputError(f"mapper groups {settings.groups}: expected one or more of {', '.join(known)}")
    coarse, medium, fine = (group in settings.groups for group in known)
    return MapperConfig(generator.num_ws, generator.config.w_dim, coarse, medium, fine)


@torch.no_grad()
def training_faces(generator: Generator, settings: MapperPreset, seed: int, step: int) -> Tensor:
    """w+ [batch,L,W] of one step: a function of (seed, step) alone."""
    rng, config = rng_for(seed, step), generator.config
    z = torch.from_numpy(rng.standard_normal((settings.batch, config.z_dim), dtype="float32"))
    w = generator.mapping(z.to(device()), settings.psi)
    w_plus = generator.broadcast(w)
    noise = torch.from_numpy(rng.standard_normal(tuple(w_plus.shape), dtype="float32")).to(w_plus)
    return w_plus + settings.jitter * w.std() * noise


def start_small(mapper: LevelsMapper, gain: float = 0.1) -> LevelsMapper:
    """Scales the last layers down, so that training starts next to the unedited face and the loss is smooth there."""
    with torch.no_grad():
        for group in mapper.groups.values():
            group.layers[-1].weight.mul_(gain)  # type: ignore[index, union-attr, operator]
    return mapper


def train_mapper(
    name: str,
    work: Path,
    networks: MapperNetworks,
    text: TextPair,
    settings: MapperPreset | None = None,
    *,
    seed: int = 40,
    scale: float = 1.0,
) -> LevelsMapper:
    """Trains the mapper of prompt `name`, resumably, in `work/mapper-<name>.pt`.

    Args:
        text: embeddings of the prompt pair.
        settings: default: the prompt's preset.
        scale: factor on the number of steps, for smoke runs.
    Returns:
        The mapper, in eval mode and without gradients.
    """
    settings = settings or preset(name)
    settings = replace(settings, steps=max(2, int(settings.steps * scale)))
    torch.manual_seed(seed)
    mapper = start_small(LevelsMapper(mapper_config(networks.generator, settings)))
    generator, target, delta_t = networks.generator.to(device()), text.target.to(device()), text.delta_t.to(device())
    loss = ImageLoss(networks.encode_image, target, delta_t, settings.weights, networks.identify)

    def step(i: int) -> dict[str, Tensor]:
        w = training_faces(generator, settings, seed, i)
        with torch.no_grad():
            source = generator(w)
        delta_w = mapper.delta(w)
        return loss(generator(w + delta_w), source, delta_w)

    with frozen(generator, networks.encode_image, networks.identify):
        trained = train(f"mapper-{name}", work, mapper, step, steps=settings.steps, lr=settings.lr, ema=0.98)
    return trained.requires_grad_(False)
