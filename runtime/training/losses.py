"""The losses of StyleCLIP (Patashnik et al. 2021, equation 1) and StyleGAN-NADA's directional CLIP loss.

All take unit embeddings [N,D] and return a scalar: the mean over N. `ImageLoss` joins them for one prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from ...engines.errors import InputError

ImageEncoder = Callable[[Tensor], Tensor]
"""image [N,3,R,R] in -1..1 -> unit embedding [N,D]; the caller chooses the front-end (CLIP's or the raw one)."""


def clip_loss(image: Tensor, text: Tensor) -> Tensor:
    """D_CLIP = 1 - cos(E_image, E_text): unit [N,E] and [E] or [N,E] -> scalar."""
    return (1 - functional.cosine_similarity(image, text.expand_as(image), dim=-1)).mean()


def directional_clip_loss(edited: Tensor, source: Tensor, delta_t: Tensor) -> Tensor:
    """1 - cos(E(edited) - E(source), delta_t) (Gal et al. 2021, StyleGAN-NADA).

    It asks the edit to move along the text difference and nowhere else, so that it disturbs other attributes less than
    D_CLIP, which also rewards everything else that the caption goes with.

    Args:
        edited, source: unit image embeddings [N,E]; no gradient is needed through `source`.
        delta_t: text difference [E], target minus neutral, of any length.
    """
    delta_i = edited - source.detach()
    return (1 - functional.cosine_similarity(delta_i, delta_t.expand_as(delta_i), dim=-1, eps=1e-4)).mean()


def latent_l2(delta_w: Tensor, reduction: str = "mean") -> Tensor:
    """lambda_L2's term for an offset delta_w [N,L,W].

    The published code uses two: the mapper the mean square ("mean"), the optimisation the sum of squares of one latent
    ("sum", here averaged over N). Their lambdas (0.8 and 0.008) are not comparable.
    """
    if reduction == "mean":
        return delta_w.square().mean()
    if reduction == "sum":
        return delta_w.square().sum(dim=(1, 2)).mean()
    raise InputError(f"reduction is {reduction!r}; expected 'mean' (mapper) or 'sum' (optimisation)")


def identity_loss(edited: Tensor, source: Tensor) -> Tensor:
    """1 - <R(edited), R(source)> of unit identity embeddings [N,D]; no gradient flows through the source."""
    return (1 - (edited * source.detach()).sum(-1)).mean()


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of equation 1; `directional` adds StyleGAN-NADA's, 0 leaves a term out."""

    clip: float = 1.0
    directional: float = 0.0
    l2: float = 0.8
    identity: float = 0.1


@dataclass(frozen=True)
class ImageLoss:
    """Equation 1 for one prompt: the CLIP terms and identity on images, L2 on the latent offset.

    `target` and `delta_t` are unit text embeddings [E]: the target prompt, and target minus neutral.
    """

    encode_image: ImageEncoder
    target: Tensor
    delta_t: Tensor
    weights: LossWeights
    identify: ImageEncoder | None = None
    reduction: str = "mean"

    def __call__(self, edited: Tensor, source: Tensor, delta_w: Tensor) -> dict[str, Tensor]:
        """Images [N,3,R,R] in -1..1 before and after, delta_w [N,L,W] -> every term and their weighted sum "loss"."""
        weights, terms = self.weights, {"l2": latent_l2(delta_w, self.reduction)}
        embedding = self.encode_image(edited)
        terms["clip"] = clip_loss(embedding, self.target)
        if weights.directional:
            terms["directional"] = directional_clip_loss(embedding, self.encode_image(source), self.delta_t)
        if weights.identity and self.identify is not None:
            terms["identity"] = identity_loss(self.identify(edited), self.identify(source))
        total = sum((getattr(weights, name) * term for name, term in terms.items()), start=terms["l2"].new_zeros(()))
        return {"loss": total, **terms}
