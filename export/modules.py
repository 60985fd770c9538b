"""The graphs of a bundle as small torch modules in export form.

Static weights, modulation on the activations, constants folded, batch free. They are also the PyTorch reference that
every exported graph is checked against.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..runtime.training.networks.clip import Clip
from ..runtime.training.networks.mapper import LatentMapper, StyleSpaceMapper
from ..runtime.training.networks.stylegan2 import Generator


class MappingGraph(nn.Module):
    """z [N,Z], psi [N] -> w [N,L,W]."""

    def __init__(self, generator: Generator):
        super().__init__()
        self.generator = generator

    def forward(self, z: Tensor, psi: Tensor) -> Tensor:
        """psi is 1 for no truncation and 0 for the mean latent."""
        return self.generator.broadcast(self.generator.mapping(z, psi[:, None]))


class StyleGraph(nn.Module):
    """w [N,L,W] -> s [N,S]."""

    def __init__(self, generator: Generator):
        super().__init__()
        self.generator = generator

    def forward(self, w: Tensor) -> Tensor:
        """All modulation vectors in layer order, toRGB included."""
        return self.generator.styles(w)


class SynthesizeGraph(nn.Module):
    """s [N,S] -> image [N,3,R,R] in -1..1, not clamped."""

    def __init__(self, generator: Generator):
        super().__init__()
        self.generator = generator

    def forward(self, s: Tensor) -> Tensor:
        """Synthesis with constant noise."""
        return self.generator.synthesize(s)


def to_u8(image: Tensor) -> Tensor:
    """image [N,3,R,R] in -1..1 -> uint8 [N,R,R,3], round(clip((x + 1) * 127.5, 0, 255))."""
    levels = torch.round(torch.clamp((image + 1) * 127.5, 0.0, 255.0))
    return levels.permute(0, 2, 3, 1).to(torch.uint8)


class SynthesizeU8Graph(SynthesizeGraph):
    """s [N,S] -> image_u8 [N,R,R,3] uint8."""

    def forward(self, s: Tensor) -> Tensor:
        """The host copies the bytes; no host code touches pixels."""
        return to_u8(super().forward(s))


class DirectionGraph(nn.Module):
    """StyleCLIP's global direction (Patashnik et al. 2021, section 6): delta_t [N,E], beta [N] -> delta_s, relevance.

    r = delta_i_c @ delta_t; channels with |r| >= beta stay; d = r / max|r| of those; delta_s = sigma * d. Where no
    channel is left delta_s is 0, never NaN: the host reads `relevance` and says which beta would work.
    """

    table: Tensor
    sigma: Tensor

    def __init__(self, table: Tensor, sigma: Tensor):
        super().__init__()
        self.register_buffer("table", table)  # [S,E]
        self.register_buffer("sigma", sigma)  # [S]

    def forward(self, delta_t: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        """delta_t is unit length; both outputs are [N,S]."""
        relevance = delta_t @ self.table.T  # [N,S]
        kept = torch.where(relevance.abs() >= beta[:, None], relevance, 0.0)
        peak = kept.abs().amax(dim=1, keepdim=True)  # [N,1]
        delta_s = self.sigma * kept / torch.where(peak > 0, peak, 1.0)
        return delta_s, relevance


class MapperGraph(nn.Module):
    """w [N,L,W] -> delta_w [N,L,W], or s [N,S] -> delta_s [N,S] for a mapper of style space; the 0.1 inside."""

    def __init__(self, mapper: LatentMapper):
        super().__init__()
        self.mapper = mapper

    def forward(self, latents: Tensor) -> Tensor:
        """The edit is latents + strength * delta."""
        return self.mapper.delta(latents)


class EncodeTextGraph(nn.Module):
    """tokens [N,T] int64 -> unit embedding [N,E]."""

    def __init__(self, clip: Clip):
        super().__init__()
        self.clip = clip

    def forward(self, tokens: Tensor) -> Tensor:
        """bos ids eos pad...; CLIP pools at eos."""
        return self.clip.encode_text(tokens)


class EncodeImageGraph(nn.Module):
    """image [N,3,R',R'] in -1..1 at CLIP's size -> unit embedding [N,E]; CLIP's mean and std are applied inside."""

    def __init__(self, clip: Clip):
        super().__init__()
        self.clip = clip

    def forward(self, image: Tensor) -> Tensor:
        """The host resizes; at CLIP's size the front-end is the normalisation alone."""
        return self.clip.encode_image(image)


class EditGlobalGraph(nn.Module):
    """The fused global edit: w [N,L,W], delta_t [N,E], alpha [N], beta [N] -> image_u8 [N,R,R,3]."""

    def __init__(self, generator: Generator, direction: DirectionGraph):
        super().__init__()
        self.generator = generator
        self.direction = direction

    def forward(self, w: Tensor, delta_t: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        """s' = s + alpha * delta_s, then synthesis."""
        delta_s, _ = self.direction(delta_t, beta)
        return to_u8(self.generator.synthesize(self.generator.styles(w) + alpha[:, None] * delta_s))


class EditMapperGraph(nn.Module):
    """The fused mapper edit: w [N,L,W], strength [N] -> image_u8 [N,R,R,3]."""

    def __init__(self, generator: Generator, mapper: LatentMapper):
        super().__init__()
        self.generator = generator
        self.mapper = mapper

    def forward(self, w: Tensor, strength: Tensor) -> Tensor:
        """w' = w + strength * delta_w, or s' = s + strength * delta_s, then synthesis."""
        if isinstance(self.mapper, StyleSpaceMapper):
            s = self.generator.styles(w)
            return to_u8(self.generator.synthesize(s + strength[:, None] * self.mapper.delta(s)))
        return to_u8(self.generator(w + strength[:, None, None] * self.mapper.delta(w)))
