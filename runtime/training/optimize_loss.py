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
from .loop import device
from .optimize_settings import OptimizeSettings
from .optimize_start import STEPS, Whitened, first_step
from .pack import Pack
from .texts import PackTexts

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
SHORT = 0.1  # changes of an embedding below this length count in proportion to it
FIRST_SCALE = 2.0**16  # of float16 losses; halved until no gradient overflows


def along(change: Tensor, direction: Tensor) -> Tensor:
    """Cosine [n] of changes [n,E] with a unit direction [E], linear in the change where that is short.

    Every face starts with no change at all, where the plain cosine has a gradient without bound; a single one of those
    would stay in Adam's second moment for a thousand steps.
    """
    return change @ direction / change.norm(dim=1).clamp(min=SHORT)


@dataclass(frozen=True)
class Faces:
    """Latents [n,L,W] or [n,S] and unit rows of their pictures: of CLIP [n,E] and of the identity network [n,D]."""

    latent: Tensor
    embedding: Tensor
    identity: Tensor | None

    def take(self, index: Tensor) -> Faces:
        """Some of the faces."""
        identity = None if self.identity is None else self.identity[index]
        return Faces(self.latent[index], self.embedding[index], identity)


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
        self.whitened = Whitened(self.generator) if settings.whiten else None
        self.step = self._first_step() if settings.warm else None

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

    def _first_step(self) -> Tensor:
        sought = self.target if self.delta_t is None else self.delta_t

        def score(latent: Tensor) -> Tensor:
            with self._autocast():
                embedding = self.embed(self.render(latent))
            return embedding @ sought

        step = first_step(self.generator, self.settings.warm, self.latent_of, score)
        return step if self.mask is None else step * self.mask

    def latent_of(self, w: Tensor) -> Tensor:
        """w+ [n,L,W] -> the latent that is optimised: itself, its whitened form, or s [n,S]."""
        if self.whitened is not None:
            return self.whitened.of(w)
        if self.settings.space != "s":
            return w
        with torch.no_grad():
            return self.generator.styles(w)

    def w_of(self, latent: Tensor) -> Tensor | None:
        """The w+ [n,L,W] of a latent; None in style space, which has none."""
        if self.settings.space == "s":
            return None
        return latent if self.whitened is None else self.whitened.w(latent)

    def styles(self, latent: Tensor) -> Tensor:
        """A latent of any space -> s [n,S]."""
        w = self.w_of(latent)
        return latent if w is None else self.generator.styles(w)

    def render(self, latent: Tensor) -> Tensor:
        """A latent of any space -> pictures [n,3,R,R], nominally -1..1, not clipped."""
        return self.generator.synthesize(self.styles(latent))

    def embed(self, images: Tensor) -> Tensor:
        """Pictures -> unit CLIP embeddings [n,E] float32 through the front-end of the loss."""
        return functional.normalize(self.clip.encode_image(images, self.settings.front_end).float(), dim=-1)

    def identify(self, images: Tensor) -> Tensor | None:
        """Pictures -> unit identity embeddings [n,D] float32; None for a pack without that network."""
        return None if self.identity is None else functional.normalize(self.identity(images).float(), dim=-1)

    @torch.no_grad()
    def start(self, latent: Tensor) -> Faces:
        """What the terms compare with, computed once."""
        with self._autocast():
            images = self.render(latent)
            identity = self.identify(images) if self.settings.lambda_id else None
            return Faces(latent, self.embed(images), identity)

    @torch.no_grad()
    def first(self, start: Faces) -> tuple[Tensor, dict[str, Tensor]]:
        """Where the descent begins, [n,...]: of the points along the first step the one of the least loss, by face.

        Also every term of the loss at the start itself, and their weighted sum "loss".
        """
        total, terms = self._sum(start, start)
        latent, least = start.latent, total
        if self.step is None:
            return latent, {**terms, "loss": total}
        for share in STEPS[1:]:
            tried = start.latent + share * self.step
            loss, _ = self._losses(tried, start)
            better = loss < least
            least = torch.where(better, loss, least)
            latent = torch.where(better.reshape(-1, *[1] * (latent.ndim - 1)), tried, latent)
        return latent, {**terms, "loss": total}

    def evaluate(self, latent: Tensor, start: Faces, scale: float) -> Evaluation:
        """Losses and their gradient. Neither is checked for being finite, but for float16's overflows.

        scale: what float16 losses are multiplied by; it is halved where a gradient overflows, and returned.
        """
        while True:
            leaf = latent.detach().requires_grad_()
            total, terms = self._losses(leaf, start)
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

    def _losses(self, latent: Tensor, start: Faces) -> tuple[Tensor, dict[str, Tensor]]:
        with self._autocast():
            images = self.render(latent)
            identity = self.identify(images) if self.settings.lambda_id else None
            seen = Faces(latent, self.embed(images), identity)
        return self._sum(seen, start)  # outside: the losses stay in float32

    def _sum(self, at: Faces, start: Faces) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum [n] of the terms, and the terms, each [n]."""
        terms = {
            "clip": 1 - at.embedding @ self.target,
            "l2": (at.latent - start.latent).square().flatten(1).sum(1),
        }
        if self.delta_t is not None:
            terms["directional"] = 1 - along(at.embedding - start.embedding, self.delta_t)
        if at.identity is not None and start.identity is not None:
            terms["identity"] = 1 - (at.identity * start.identity).sum(1)
        weighted = [self.weights[name] * term for name, term in terms.items() if self.weights[name]]
        return torch.stack(weighted).sum(0) if weighted else torch.zeros_like(terms["l2"]), terms

    def _autocast(self) -> AbstractContextManager[object]:
        kind = AUTOCAST.get(self.settings.precision)
        return torch.autocast(device().type, dtype=kind or torch.bfloat16, enabled=kind is not None)

    @property
    def first_scale(self) -> float:
        """The scale that float16 starts with; 1 for the others, which need none."""
        return FIRST_SCALE if self.settings.precision == "fp16" else 1.0
