"""The losses of inversion: pictures compared, features compared, e4e's offsets and its adversary in W.

e4e: Tov et al. 2021, arXiv:2102.02766. Perceptual terms use the networks that a pack has, its identity network and
CLIP: the weights of LPIPS are not ours to ship. Pictures are [N,3,H,W] in -1..1; a loss is a scalar, the mean over N.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .networks.arcface import ArcFace

# Pictures ------------------------------------------------------------------------------------------------------------


def psnr_db(image: Tensor, target: Tensor) -> Tensor:
    """PSNR [N] in dB of pictures [N,3,H,W] in -1..1, after clipping."""
    return 10 * torch.log10(4.0 / (image.clamp(-1, 1) - target).square().mean((1, 2, 3)).clamp_min(1e-10))


def gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbours [N,3,H-1,W] and [N,3,H,W-1]."""
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def edge_loss(image: Tensor, target: Tensor, scales: Sequence[int] = (1, 2, 4)) -> Tensor:
    """L1 of the gradients at full, half and quarter size, the mean over scales: lines and borders in their places."""
    losses = []
    for scale in scales:
        pair = [functional.avg_pool2d(x, scale) if scale > 1 else x for x in (image, target)]
        losses.append(sum(functional.l1_loss(a, b) for a, b in zip(*map(gradients, pair), strict=True)))
    return torch.stack([torch.as_tensor(loss) for loss in losses]).mean()


def features(identity: ArcFace, image: Tensor) -> list[Tensor]:
    """The maps of the identity network after every stage, of unit length over channels at each pixel, as in LPIPS."""
    return [functional.normalize(x, dim=1) for x in identity.backbone(identity.prepare(image))]


def feature_loss(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """LPIPS (Zhang et al. 2018) with weights of 1: squared distance of `features` per pixel, the mean over stages."""
    distances = [(a - b).square().sum(1).mean() for a, b in zip(found, wanted, strict=True)]
    return torch.stack(distances).mean()


# The space W ---------------------------------------------------------------------------------------------------------


def known_w_loss(w_plus: Tensor, w: Tensor) -> Tensor:
    """Mean square of w+ [N,L,W] from the w [N,W] that a sample was drawn from, in every layer."""
    return functional.mse_loss(w_plus, w[:, None].expand_as(w_plus))


def offset_square(offsets: Tensor) -> Tensor:
    """Mean square of offsets [N,L-1,W] from the first layer."""
    return offsets.square().mean()


def offset_norm(offsets: Tensor) -> Tensor:
    """e4e's regularisation of the offsets [N,K,W], K of them unlocked: their L2 norms, summed over layers."""
    return torch.linalg.vector_norm(offsets, dim=-1).sum(1).mean()


class LatentDiscriminator(nn.Module):
    """Tells w of the mapping from w of the encoder: a perceptron of `depth` layers, w [N,W] -> logit [N].

    It sees (w - mean) / scale, so that its rate and R1's weight mean the same for every generator.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor, depth: int = 4) -> None:
        super().__init__()
        width = len(mean)
        layers: list[nn.Module] = []
        for _ in range(depth - 1):
            layers += [nn.Linear(width, width), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 1))
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("scale", scale.detach().clone())

    def forward(self, w: Tensor) -> Tensor:
        """w [N,W] -> logit [N], above 0 for the mapping's."""
        return self.layers((w - self.mean) / self.scale)[:, 0]


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's side of the non-saturating loss (Goodfellow et al. 2014) on logits [N] and [M]."""
    return functional.softplus(-real).mean() + functional.softplus(fake).mean()


def encoder_adversarial_loss(fake: Tensor) -> Tensor:
    """The encoder's side: its w should pass for the mapping's. Logits [M]."""
    return functional.softplus(-fake).mean()


def r1_penalty(logits: Tensor, real: Tensor) -> Tensor:
    """R1 (Mescheder et al. 2018): mean squared gradient of logits [N] by the real w [N,W], which must require it."""
    (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    return gradient.square().sum(1).mean()
