"""What a channel's difference will be in an image, from the gradients of that image: for the early stop.

The finite difference of a channel and its slope at the same face differ, but they vary together from image to image:
most of what makes a row need a hundred images is in the gradient too. And gradients are cheap: a backward pass gives
one number of every channel, where the finite procedure renders two pictures for each. The unit slopes of all images
stand in for the differences that are not rendered; those that are correct them (`directions_stop`).

The embeddings of pictures span few of CLIP's dimensions, so the probes are the principal components of embeddings: of
the base images with every channel moved at random by its own standard deviation.

Shape alphabet: N images, S style channels, C channels of a block, E CLIP width, K probes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from .directions_progress import Probe, matching
from .directions_stop import CHECKS, Predicted, unit
from .jacobian import ImageEncoder, around, chunk_size, embed, principal_components, pullbacks
from .loop import save_atomically
from .networks.stylegan2 import Generator

PROBES = 96
CHANNELS_A_PROBE = 8
"""A probe costs about a sample in every image: at most an eighth of a table's renders goes to gradients."""
FACES, SEED = 512, 5
"""Pictures whose embeddings' principal components are the probes."""
NAMES = ("basis", "rows")


@dataclass(frozen=True)
class Predictions:
    """y of every image and channel.

    basis [K,E] float64, orthonormal; rows [N,S,K] float16: coordinates in it of unit vectors, or zero.
    """

    basis: Tensor
    rows: Tensor

    def cross(self, image: int, channels: Sequence[int] | Tensor, delta: Tensor) -> Tensor:
        """<x_i, y_i> [C] of differences `delta` [C,E] of one image."""
        return ((delta @ self.basis.T) * self.rows[image, channels].double()).sum(1)

    def sums(self, channels: Sequence[int] | Tensor, seen: int, cross: Tensor) -> Predicted:
        """What `directions_stop.estimate` takes of channels that saw the first `seen` images; cross [C] over those."""
        y = self.rows[:, channels].double()
        squares = y[:seen].square().sum((0, 2))
        return Predicted(cross, squares, y[:seen].sum(0) @ self.basis, y.sum(0) @ self.basis)


def probes_for(tolerance: float, images: int, channels: int) -> int:
    """How many probes a table is worth: none where nothing can stop early, or where it has few channels."""
    return min(PROBES, channels // CHANNELS_A_PROBE) if tolerance and images > CHECKS[0] else 0


def predict(
    generator: Generator,
    encode_image: ImageEncoder,
    base: Tensor,
    s_std: Tensor,
    probes: int,
    *,
    checkpoint: Path | None = None,
    stamp: Probe | None = None,
    save_every_s: float = 30.0,
) -> Predictions:
    """The gradients of base images with styles `base` [N,S], along at most `probes` principal components.

    checkpoint: file that keeps what was found; an interrupted run goes on from it, to the same bits on a CPU. It must
    carry the same `stamp`. InputError for gradients that are not finite; StyleclipError for a full disk.
    """

    def encode(picture: Tensor) -> Tensor:
        return F.normalize(encode_image(picture), dim=-1)

    found = None if checkpoint is None or stamp is None else matching(checkpoint, NAMES, stamp)
    if found is None:
        faces = around(base[torch.arange(FACES) % len(base)], s_std, 1.0, SEED)
        basis, done = principal_components(embed(generator, encode, faces), probes), []
    else:
        basis, done = found["basis"], [found["rows"]]

    def save() -> None:
        if checkpoint is not None and stamp is not None:
            state = {"basis": basis, "rows": torch.cat(done)}
            save_atomically({**state, "probe": stamp.numbers, "settings": stamp.settings}, checkpoint)

    start = sum(map(len, done))
    saved_at = time.monotonic()
    with tqdm(total=len(base), initial=start, desc="gradients", unit="image", disable=None, smoothing=0.1) as bar:
        for part in base[start:].split(chunk_size(generator)):
            slopes = torch.stack([g.cpu() for g in pullbacks(generator, encode, part, basis)], 2)
            done.append(unit(slopes).half())
            bar.update(len(part))
            if time.monotonic() - saved_at >= save_every_s:
                save()
                saved_at = time.monotonic()
    if start < len(base):
        save()
    return Predictions(basis, torch.cat(done))
