"""Trains a latent mapper for one prompt (Patashnik et al. 2021, section 5).

w_hat = w + 0.1 * mapper(w), or s_hat = s + 0.1 * mapper(s) for a mapper of style space; the loss is equation 1 on the
rendered pair, with StyleGAN-NADA's directional CLIP loss as an option. Training sees the generator, CLIP and the
identity network: no factors, no captions, no judge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...engines.errors import InputError
from .loop import device, rng_for, train
from .loop_ranks import parallel, ranks
from .losses import ImageEncoder, ImageLoss
from .mapper_presets import PRESETS, PUBLISHED, MapperPreset, preset
from .networks.mapper import GroupMapper, LatentMapper, MapperConfig, StyleSpaceMapper, build_mapper
from .networks.stylegan2 import Generator
from .texts import TextPair

__all__ = ["PRESETS", "PUBLISHED", "MapperNetworks", "MapperPreset", "preset", "train_mapper", "training_faces"]

Faces = Callable[[int], Tensor]
"""Index of a step -> w+ [batch,L,W] of its training faces: a function of the step alone."""


@dataclass(frozen=True)
class MapperNetworks:
    """What the training sees; `encode_image` carries the image front-end of the loss."""

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
    """Sizes of the generator with the preset's kind and groups; InputError for those that cannot be."""
    settings.check()
    sizes = (generator.num_ws, generator.config.w_dim)
    if settings.kind == "single":
        return MapperConfig(*sizes, kind="single")
    if settings.kind == "style":
        channels = tuple(layer.channels for layer in generator.style_layers)
        return MapperConfig(*sizes, kind="style", channels=channels, torgb=settings.torgb)
    coarse, medium, fine = (group in settings.groups for group in ("coarse", "medium", "fine"))
    config = MapperConfig(*sizes, coarse, medium, fine)
    if not config.bounds():
        raise InputError(f"the groups {settings.groups} hold none of the generator's {generator.num_ws} layers")
    return config


@torch.no_grad()
def training_faces(generator: Generator, settings: MapperPreset, seed: int, step: int) -> Tensor:
    """Sampled w+ [batch,L,W] of one step: a function of (seed, step) alone."""
    rng, config = rng_for(seed, step), generator.config
    z = torch.from_numpy(rng.standard_normal((settings.batch, config.z_dim), dtype="float32"))
    w = generator.mapping(z.to(device()), settings.psi)
    w_plus = generator.broadcast(w)
    noise = torch.from_numpy(rng.standard_normal(tuple(w_plus.shape), dtype="float32")).to(w_plus)
    return w_plus + settings.jitter * w.std() * noise


def start_small(mapper: LatentMapper, gain: float = 0.1) -> LatentMapper:
    """Scales the last layers down, so that training starts next to the unedited face and the loss is smooth there."""
    with torch.no_grad():
        for part in mapper.modules():
            if isinstance(part, GroupMapper):
                part.layers[-1].weight.mul_(gain)  # type: ignore[operator, union-attr]
    return mapper


class _Delta(nn.Module):
    """`delta` of a mapper as a forward pass: what DistributedDataParallel watches."""

    def __init__(self, mapper: LatentMapper) -> None:
        super().__init__()
        self.mapper = mapper

    def forward(self, latents: Tensor) -> Tensor:
        """See the mapper's `delta`."""
        return self.mapper.delta(latents)


def edited_faces(
    generator: Generator, mapper: LatentMapper, w: Tensor, delta_of: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """w+ [N,L,W] -> (edited pictures [N,3,R,R], the offset in the mapper's own space, [N,L,W] or [N,S])."""
    delta_of = delta_of or mapper.delta
    if isinstance(mapper, StyleSpaceMapper):
        s = generator.styles(w)
        delta_s = delta_of(s)
        return generator.synthesize(s + delta_s), delta_s
    delta_w = delta_of(w)
    return generator(w + delta_w), delta_w


class _Step:
    """Faces -> pictures before and after -> losses. Of several processes each takes its share of the batch."""

    def __init__(self, mapper: LatentMapper, generator: Generator, loss: ImageLoss, faces: Faces) -> None:
        self.mapper, self.generator, self.loss, self.faces = mapper, generator, loss, faces
        self._delta: nn.Module | None = None

    def __call__(self, i: int) -> dict[str, Tensor]:
        if self._delta is None:  # now, after a resumed mapper was loaded: the processes must start from its weights
            self._delta = parallel(_Delta(self.mapper))
        w = ranks().share(self.faces(i))
        with torch.no_grad():
            source = self.generator(w)
        edited, delta = edited_faces(self.generator, self.mapper, w, self._delta)
        return self.loss(edited, source, delta)


def train_mapper(
    name: str,
    work: Path,
    networks: MapperNetworks,
    text: TextPair,
    settings: MapperPreset | None = None,
    *,
    seed: int = 40,
    scale: float = 1.0,
    faces: Faces | None = None,
    **loop: Any,
) -> LatentMapper:
    """Trains the mapper of prompt `name`, resumably, in `work/mapper-<name>.pt`.

    Args:
        text: embeddings of the prompt pair.
        settings: default: the prompt's preset.
        scale: factor on the number of steps, for smoke runs.
        faces: where the training faces come from; default: sampled, see `training_faces`.
        loop: more of `loop.train`: store, watch, save_every, log_every.
    Returns:
        The mapper, in eval mode and without gradients.
    """
    settings = settings or preset(name)
    settings = replace(settings, steps=max(2, int(settings.steps * scale)))
    ranks().check_batch(settings.batch)
    torch.manual_seed(seed)
    mapper = start_small(build_mapper(mapper_config(networks.generator, settings)), settings.gain)
    generator, target, delta_t = networks.generator.to(device()), text.target.to(device()), text.delta_t.to(device())
    loss = ImageLoss(networks.encode_image, target, delta_t, settings.weights, networks.identify)
    step = _Step(mapper, generator, loss, faces or (lambda i: training_faces(generator, settings, seed, i)))
    with frozen(generator, networks.encode_image, networks.identify):
        trained = train(
            f"mapper-{name}",
            work,
            mapper,
            step,
            steps=settings.steps,
            lr=settings.lr,
            ema=settings.ema,
            schedule=settings.schedule,
            warmup=settings.warmup,
            optimizer=settings.make_optimizer(),
            **loop,
        )
    return trained.requires_grad_(False)
