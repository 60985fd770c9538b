"""Trains an encoder picture -> w+ for a pack's generator, as e4e does (Tov et al. 2021, arXiv:2102.02766).

First on samples whose w is known, then end to end through the generator, on samples and photos: the picture, its
features and its identity come back, the offsets between layers stay small, are unlocked layer by layer, and every layer
has to pass for a w of the mapping before a discriminator. What stays near W is what edits well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from .inverter_losses import (
    LatentDiscriminator,
    discriminator_loss,
    edge_loss,
    encoder_adversarial_loss,
    feature_loss,
    features,
    known_w_loss,
    offset_norm,
    r1_penalty,
)
from .inverter_photos import Photos
from .inverter_presets import InverterPreset, unlocked
from .loop import Watch, device, mixed_precision, rng_for, train
from .loop_store import SafetensorsStore
from .losses import identity_loss
from .networks.clip import area_resize
from .networks.e4e import E4EConfig, Encoder4Editing
from .networks.stylegan2 import Generator
from .pack import Pack
from .ranger import Ranger

WARM, END_TO_END = "inverter-w", "inverter"
MOMENT_SAMPLES = 4096


class InverterNetworks(nn.Module):
    """What a training changes: the encoder, and the discriminator of its w."""

    def __init__(self, encoder: Encoder4Editing, discriminator: LatentDiscriminator) -> None:
        super().__init__()
        self.encoder, self.discriminator = encoder, discriminator


class Critics:
    """The terms that compare pictures by the pack's frozen networks; those that the pack lacks are left out."""

    def __init__(self, pack: Pack, settings: InverterPreset) -> None:
        weights, home = settings.weights, device()
        by_identity = (weights.features or weights.identity) and pack.has("identity")
        self.identity = pack.identity.to(home) if by_identity else None
        self.clip = pack.clip.to(home) if weights.clip and pack.has("clip") else None
        self.weights = weights

    def __call__(self, image: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Pictures [N,3,I,I] drawn and wanted -> unweighted terms."""
        terms = {"pixels": functional.mse_loss(image, target)}
        if self.weights.edges:
            terms["edges"] = edge_loss(image, target)
        if self.identity is not None and self.weights.features:
            with torch.no_grad():
                wanted = features(self.identity, target)
            terms["features"] = feature_loss(features(self.identity, image), wanted)
        for name, embed in self._embedders().items():
            with torch.no_grad():
                embedding = embed(target)
            terms[name] = identity_loss(embed(image), embedding)
        return terms

    def _embedders(self) -> dict[str, Callable[[Tensor], Tensor]]:
        found: dict[str, Callable[[Tensor], Tensor]] = {}
        if self.identity is not None and self.weights.identity:
            found["identity"] = self.identity
        if self.clip is not None:
            found["clip"] = self.clip.encode_image
        return found


class Faces:
    """The pictures of a step, a function of (seed, step) alone: photos first, then samples with their w."""

    def __init__(self, generator: Generator, size: int, settings: InverterPreset, photos: Photos | None) -> None:
        self.generator, self.size, self.settings, self.photos = generator, size, settings, photos

    def w(self, rng: np.random.Generator, count: int) -> Tensor:
        """w [count,W] of the mapping."""
        z = torch.from_numpy(rng.standard_normal((count, self.generator.config.z_dim), dtype=np.float32))
        with torch.no_grad():
            return self.generator.mapping(z.to(device()), self.settings.psi).float()

    def drawn(self, w: Tensor) -> Tensor:
        """Pictures [n,3,I,I] in -1..1 of w [n,W], as the encoder sees them."""
        with torch.no_grad(), mixed_precision(device()):
            return resized(self.generator(self.generator.broadcast(w)).float(), self.size).clamp(-1, 1)

    def batch(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        """(pictures [count,3,I,I], w [m,W] of the last m of them, the samples)."""
        share = 0.0 if self.photos is None else self.settings.photo_share
        real = round(count * share)
        w = self.w(rng, count - real)
        parts = [self.drawn(w)] if len(w) else []
        if self.photos is not None and real:
            index = rng.choice(self.photos.training, real)
            parts.insert(0, self.photos.batch(index, rng.random(real) < 0.5).to(device()))
        return torch.cat(parts), w


def resized(image: Tensor, size: int) -> Tensor:
    """Pictures at the encoder's size, by area averages."""
    return image if image.shape[-1] == size else area_resize(image, size)


def new_networks(pack: Pack, config: E4EConfig, psi: float, seed: int) -> InverterNetworks:
    """A fresh encoder that starts at the mean of W, and a discriminator that sees W with mean 0 and deviation 1."""
    generator = pack.generator
    with torch.no_grad():
        z = torch.from_numpy(rng_for(seed, 0).standard_normal((MOMENT_SAMPLES, generator.config.z_dim), np.float32))
        w = generator.mapping(z.to(generator.mapping_network.w_avg), psi).float().cpu()
    torch.manual_seed(seed)
    encoder = Encoder4Editing(config)
    encoder.w_avg.copy_(w.mean(0).expand_as(encoder.w_avg))
    return InverterNetworks(encoder, LatentDiscriminator(w.mean(0), w.var(0).mean().sqrt().clamp_min(1e-6)))


class WarmStep:
    """A step of the first pass: w of samples, in every layer."""

    def __init__(self, networks: InverterNetworks, faces: Faces, seed: int) -> None:
        self.networks, self.faces, self.seed = networks, faces, seed

    def __call__(self, i: int) -> dict[str, Tensor]:
        """Losses of step `i`."""
        w = self.faces.w(rng_for(self.seed, i), self.faces.settings.warm_batch)
        image = self.faces.drawn(w)
        with mixed_precision(device()):
            w_plus = self.networks.encoder(image)
        loss = known_w_loss(w_plus.float(), w)
        return {"loss": loss, "nmse": loss / self.networks.discriminator.scale.square()}


class EndToEndStep:
    """A step of the second pass: pictures in, w+, pictures out. One loss for both networks, in separate terms.

    The encoder's term sees the discriminator's weights as constants, the discriminator's sees w as constants, so that
    one backward pass gives both their own gradients, and one checkpoint holds both.
    """

    def __init__(
        self, networks: InverterNetworks, faces: Faces, critics: Critics, settings: InverterPreset, seed: int
    ) -> None:
        self.networks, self.faces, self.critics, self.settings, self.seed = networks, faces, critics, settings, seed

    def free(self, i: int) -> int:
        """How many layers' offsets are unlocked at step `i`."""
        layers = self.faces.generator.num_ws - 1
        return unlocked(i, self.settings.steps, layers, self.settings.unlock)

    def invert(self, target: Tensor, free: int) -> Tensor:
        """Pictures [N,3,I,I] -> w+ [N,L,W], whose layers after the first `free` offsets repeat the base."""
        with mixed_precision(device()):
            w_plus = self.networks.encoder(target)
        base = w_plus[:, :1].float()
        return torch.cat([base, w_plus[:, 1 : 1 + free].float(), base.expand(-1, w_plus.shape[1] - 1 - free, -1)], 1)

    def __call__(self, i: int) -> dict[str, Tensor]:
        """Losses of step `i`; "loss" is the sum, "encoder" the encoder's part of it."""
        rng, weights, free = rng_for(self.seed, i), self.settings.weights, self.free(i)
        target, w = self.faces.batch(rng, self.settings.batch)
        w_plus = self.invert(target, free)
        with mixed_precision(device()):
            image = resized(self.faces.generator(w_plus).float(), self.faces.size)
            terms = self.critics(image, target)
        terms["offsets"] = offset_norm(w_plus[:, 1 : 1 + free] - w_plus[:, :1]) if free else w_plus.new_zeros(())
        if weights.known_w and len(w):
            terms["known_w"] = known_w_loss(w_plus[-len(w) :], w)
        other = w_plus.new_zeros(())
        if weights.adversary:
            fake = w_plus[:, : 1 + free].flatten(0, 1)
            terms["adversary"] = self.pass_for_real(fake)
            other = self.tell_apart(self.faces.w(rng, self.settings.batch), fake.detach(), i)
        encoder = sum(
            (getattr(weights, name) * term.float() for name, term in terms.items()), start=other.new_zeros(())
        )
        return {"loss": encoder + other, "encoder": encoder, "discriminator": other, **terms}

    def pass_for_real(self, fake: Tensor) -> Tensor:
        """The encoder's adversarial term on w [M,W]; no gradient reaches the discriminator."""
        net = self.networks.discriminator
        constants = {name: tensor.detach() for name, tensor in (*net.named_parameters(), *net.named_buffers())}
        return encoder_adversarial_loss(functional_call(net, constants, (fake,)))

    def tell_apart(self, real: Tensor, fake: Tensor, i: int) -> Tensor:
        """The discriminator's loss on w [N,W] of the mapping and [M,W] of the encoder; every so often with R1."""
        net, settings = self.networks.discriminator, self.settings
        penalised = settings.r1 > 0 and i % settings.r1_every == 0
        real = real.requires_grad_(penalised)
        logits = net(real)
        loss = discriminator_loss(logits, net(fake))
        if penalised:
            loss = loss + settings.r1 / 2 * settings.r1_every * r1_penalty(logits, real)
        return loss


def train_inverter(
    work: Path,
    pack: Pack,
    networks: InverterNetworks,
    settings: InverterPreset,
    *,
    photos: Photos | None = None,
    stamp: Mapping[str, Any] | None = None,
    seed: int = 60,
    watch: Watch | None = None,
    save_every: int | None = None,
) -> Encoder4Editing:
    """Both passes, resumable in `work` (`inverter-w.safetensors`, then `inverter.safetensors`).

    Args:
        networks: as `new_networks` makes them, or with an encoder that goes on.
        stamp: what the run depends on besides the settings; a checkpoint with another is refused.
        watch: see `loop.train`; it is called in the second pass, with an `InverterNetworks`.
    Returns:
        The encoder (its moving average), in eval mode and without gradients.
    Raises:
        InputError: a loss that is not finite, or a checkpoint of other settings.
        PackError: the pack lacks a generator.
    """
    generator = pack.generator.to(device())
    faces = Faces(generator, networks.encoder.config.input_size, settings, photos)
    known = {**settings.to_dict(), **(stamp or {}), "seed": seed}
    loop = partial(train, ema=settings.ema, save_every=save_every, log_every=10 if settings.steps <= 2000 else 50)
    if settings.warm_steps:
        networks.to(device())
        store = SafetensorsStore(work / f"{WARM}.safetensors", known)
        step = WarmStep(networks, faces, seed + 1)
        warm = loop(WARM, work, networks, step, steps=settings.warm_steps, lr=settings.warm_lr,
                    parameters=[{"params": list(networks.encoder.parameters())}],
                    store=store, warmup=min(100, settings.warm_steps))  # fmt: skip
        networks.load_state_dict(warm.state_dict())
    networks.to(device())
    step_two = EndToEndStep(networks, faces, Critics(pack, settings), settings, seed + 2)
    groups: list[dict[str, Any]] = [
        {"params": list(networks.encoder.parameters())},
        {"params": list(networks.discriminator.parameters()), "scale": settings.discriminator_lr / settings.lr},
    ]
    make = Ranger if settings.optimizer == "ranger" else None
    store = SafetensorsStore(work / f"{END_TO_END}.safetensors", known)
    trained = loop(END_TO_END, work, networks, step_two, steps=settings.steps, lr=settings.lr, parameters=groups,
                   optimizer=make, store=store, watch=watch, warmup=min(50, settings.steps))  # fmt: skip
    return trained.encoder.eval().requires_grad_(False)
