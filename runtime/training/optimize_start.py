"""Where a descent takes place and where it begins: coordinates of unit variance, and a first step seen on random faces.

Both are ours, not published. The loss of a text has many minima around a face: of another colour or background, with
the haircut still there. In w the generator draws far along some directions and hardly along others, while Adam
moves all alike, and so leaves what is ever drawn; and a haircut is further away than the next minimum.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from .chunks import in_chunks
from .loop import device, rng_for
from .networks.stylegan2 import Generator

SEED = 7  # of the random faces
SPREAD = 8192
"""Random w whose covariance makes the coordinates."""
FLOOR = 0.05
"""Least standard deviation of a direction of w that counts, as a share of the largest: below lies what is never drawn,
and inverted photos may lie there a little."""
TOP = 0.05
"""Share of the random faces that count as showing the target."""
STEPS = (0.0, 0.5, 1.0, 1.5, 2.0)
"""Points along the first step that are tried for each face."""


def random_z(generator: Generator, count: int) -> Tensor:
    """z [count,Z], the same at every call."""
    rng = rng_for(SEED, 0)
    return torch.from_numpy(rng.standard_normal((count, generator.config.z_dim), dtype="float32"))


class Whitened:
    """p = (w - mean) C^(-1/2) for w [..., W] with the mean and covariance C that the generator's mapping gives.

    The symmetric root is taken, so that p does not hang on signs and orders of eigenvectors. Works on w+ row by row.
    """

    def __init__(self, generator: Generator) -> None:
        w = in_chunks(generator.mapping_network, random_z(generator, SPREAD)).double()
        self.mean = w.mean(0)
        deviations = w - self.mean
        variances, directions = torch.linalg.eigh(deviations.T @ deviations / len(w))
        sigma = variances.clamp(min=0).sqrt()
        sigma = sigma.clamp(min=float(FLOOR * sigma.max()))
        self.root = ((directions * sigma) @ directions.T).float().to(device())
        self.inverse = ((directions / sigma) @ directions.T).float().to(device())
        self.mean = self.mean.float().to(device())

    def of(self, w: Tensor) -> Tensor:
        """p of w."""
        return (w - self.mean) @ self.inverse

    def w(self, p: Tensor) -> Tensor:
        """w of p."""
        return p @ self.root + self.mean


def first_step(
    generator: Generator, count: int, latent_of: Callable[[Tensor], Tensor], score: Callable[[Tensor], Tensor]
) -> Tensor:
    """The mean latent of those of `count` random faces that score best, less the mean of all: one latent, [...].

    latent_of: w+ [n,L,W] -> latents; score: latents -> [n]. What the best have in common is what the text asks for;
    what they differ in cancels. (InterFaceGAN's linear boundary, Shen et al. 2020, with CLIP in place of labels.)
    """

    def both(z: Tensor) -> tuple[Tensor, Tensor]:
        latent = latent_of(generator.broadcast(generator.mapping_network(z.to(device()))))
        return latent.cpu(), score(latent).float().cpu()

    with torch.no_grad():
        parts = random_z(generator, count).split(16)
        found = [both(z) for z in tqdm(parts, "first step", unit="batch", disable=None, leave=False)]
    latents, scores = torch.cat([latent for latent, _ in found]), torch.cat([score for _, score in found])
    best = scores.topk(max(1, round(TOP * count))).indices
    return (latents[best].mean(0) - latents.mean(0)).to(device())
