"""What a latent is optimised for: the terms of one prompt for every face of a batch, and their gradient.

Each face has its own loss; the gradient is that of their sum, so that faces do not see one another.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...engines.errors import InputError
from ..prompts import Prompt
from .loop import device, rng_for
from .optimize_settings import OptimizeSettings
from .pack import Pack
from .texts import PackTexts

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
SHORT = 0.1  # changes of an embedding below this length count in proportion to it
SEED = 7  # of the other faces of a step
FIRST_SCALE = 2.0**16  # of float16 losses; halved until no gradient overflows


def along(change: Tensor, direction: Tensor) -> Tensor:
    """Cosine [n] of changes [n,E] with a unit direction [E], linear in the change where that is short.

    Every face starts with no change at all, where the plain cosine has a gradient without bound; a single one of those
    would stay in Adam's second moment for a thousand steps.
    """
    return change @ direction / change.norm(dim=1).clamp(min=SHORT)


@dataclass(frozen=True)
class Start:
    """Where faces come from: latent [n,L,W] or [n,S], unit CLIP embedding [n,E], unit identity embedding [n,D]."""

    latent: Tensor
    embedding: Tensor
    identity: Tensor | None

    def take(self, index: Tensor) -> Start:
        """Some of the faces."""
        identity = None if self.identity is None else self.identity[index]
        return Start(self.latent[index], self.embedding[index], identity)


@dataclass(frozen=True)
class Evaluation:
    """Losses and gradient at a latent. total [n]; terms: each [n], before its weight; scale: of float16 losses."""

    total: Tensor
    terms: dict[str, Tensor]
    gradient: Tensor
    scale: float


class Objective:
    """The loss of one prompt under given settings, with the pack's networks on the device.

    Raises PackError where the pack lacks the generator or CLIP, InputError where it lacks the identity network that
    lambda_id asks for.
    """

    def __init__(self, pack: Pack, prompt: Prompt, settings: OptimizeSettings) -> None:
        if settings.lambda_id and not pack.has("identity"):
            raise InputError(
                f"lambda_id is {settings.lambda_id:g}, and the pack {pack.name} has no identity network; "
                "set lambda_id to 0, or import one (styleclip-rt pack import --identity FILE)"
            )
        self.settings = settings
        self.weights = {
            "clip": settings.lambda_clip,
            "directional": settings.lambda_directional,
            "l2": settings.lambda_l2,
            "identity": settings.lambda_id,
        }
        self.generator = pack.generator.to(device())
        self.clip = pack.clip.to(device())
        self.identity = pack.identity.to(device()) if pack.has("identity") else None
        texts = PackTexts(pack)
        self.unknown_words = texts.tokenizer.unknown_words(prompt.target)
        self.target = texts.embed(prompt.target, alone=not settings.templates).to(device())
        self.delta_t = texts.pair(prompt.target, prompt.neutral).delta_t.to(device()) if self._directional else None
        self.mask = self._mask()

    @property
    def _directional(self) -> bool:
        return self.settings.lambda_directional > 0

    def _mask(self) -> Tensor | None:
        """Float [S], 1 where a channel of style space may move; None where everything may."""
        if self.settings.space != "s" or self.settings.channels == "all":
            return None
        layers = self.generator.style_layers
        parts = [torch.full((layer.channels,), float(layer.kind == "conv")) for layer in layers]
        return torch.cat(parts).to(device())

    def latent_of(self, w: Tensor) -> Tensor:
        """w+ [n,L,W] -> the latent that is optimised: itself, or s [n,S]."""
        if self.settings.space != "s":
            return w
        with torch.no_grad():
            return self.generator.styles(w)

    def styles(self, latent: Tensor) -> Tensor:
        """A latent of either space -> s [n,S]."""
        return latent if self.settings.space == "s" else self.generator.styles(latent)

    def render(self, latent: Tensor) -> Tensor:
        """A latent of either space -> pictures [n,3,R,R], nominally -1..1, not clipped."""
        return self.generator.synthesize(self.styles(latent))

    def embed(self, images: Tensor) -> Tensor:
        """Pictures -> unit CLIP embeddings [n,E] float32 through the front-end of the loss."""
        return functional.normalize(self.clip.encode_image(images, self.settings.front_end).float(), dim=-1)

    def identify(self, images: Tensor) -> Tensor | None:
        """Pictures -> unit identity embeddings [n,D] float32; None for a pack without that network."""
        return None if self.identity is None else functional.normalize(self.identity(images).float(), dim=-1)

    @torch.no_grad()
    def start(self, latent: Tensor) -> Start:
        """What the terms compare with, computed once."""
        with self._autocast():
            images = self.render(latent)
            identity = self.identify(images) if self.settings.lambda_id else None
            return Start(latent, self.embed(images), identity)

    def evaluate(self, latent: Tensor, start: Start, scale: float, step: int = 0) -> Evaluation:
        """Losses and their gradient. Neither is checked for being finite, but for float16's overflows.

        scale: what float16 losses are multiplied by; it is halved where a gradient overflows, and returned.
        step: which of the run, for the other faces that `views` asks for.
        """
        shifts = self._shifts(start, step)
        while True:
            leaf = latent.detach().requires_grad_()
            total, terms = self._losses(leaf, start, shifts)
            (gradient,) = torch.autograd.grad((total * scale).sum(), leaf)
            gradient = gradient / scale
            if scale <= 1 or bool(gradient.isfinite().all()) or not bool(total.isfinite().all()):
                break
            scale /= 2
        if self.mask is not None:
            gradient = gradient * self.mask
        if self.settings.space == "w":  # Adam then moves all layers alike
            gradient = gradient.mean(1, keepdim=True).expand_as(gradient)
        return Evaluation(total.detach(), {name: term.detach() for name, term in terms.items()}, gradient, scale)

    @torch.no_grad()
    def _shifts(self, start: Start, step: int) -> list[tuple[Tensor, Tensor]]:
        """(what leads from each start to another face, that face's CLIP embedding) for every view of a step.

        The random faces are the same for all of a batch: a face's result does not depend on who else is in it.
        """
        if not self.settings.views:
            return []
        rng, (views, z_dim) = rng_for(SEED, step), (self.settings.views, self.generator.config.z_dim)
        z = torch.from_numpy(rng.standard_normal((views, z_dim), dtype="float32")).to(device())
        shares = (rng.random(views) * self.settings.mix).tolist()
        faces = self.latent_of(self.generator.broadcast(self.generator.mapping_network(z)))
        shifts = [share * (face - start.latent) for share, face in zip(shares, faces, strict=True)]
        with self._autocast():
            return [(shift, self.embed(self.render(start.latent + shift))) for shift in shifts]

    def _losses(
        self, latent: Tensor, start: Start, shifts: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with self._autocast():
            images = self.render(latent)
            embeddings = [self.embed(images), *(self.embed(self.render(latent + shift)) for shift, _ in shifts)]
            identity = self.identify(images) if self.settings.lambda_id else None
        starts = [start.embedding, *(embedding for _, embedding in shifts)]
        terms = {
            "clip": torch.stack([1 - embedding @ self.target for embedding in embeddings]).mean(0),
            "l2": (latent - start.latent).square().flatten(1).sum(1),
        }
        if self.delta_t is not None:
            moves = [along(to - of, self.delta_t) for to, of in zip(embeddings, starts, strict=True)]
            terms["directional"] = 1 - torch.stack(moves).mean(0)
        if identity is not None and start.identity is not None:
            terms["identity"] = 1 - (identity * start.identity).sum(1)
        weighted = [self.weights[name] * term for name, term in terms.items() if self.weights[name]]
        return torch.stack(weighted).sum(0) if weighted else torch.zeros_like(terms["l2"]), terms

    def _autocast(self) -> AbstractContextManager[object]:
        kind = AUTOCAST.get(self.settings.precision)
        return torch.autocast(device().type, dtype=kind or torch.bfloat16, enabled=kind is not None)

    @property
    def first_scale(self) -> float:
        """The scale that float16 starts with; 1 for the others, which need none."""
        return FIRST_SCALE if self.settings.precision == "fp16" else 1.0
