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
from collections.abc import Iterator, Sequence
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
NAMES = ("faces", "basis", "rows")


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


class _Kept:
    """What was found so far, and the file that keeps it: embeddings `faces`, the `basis` they span, and `rows`."""

    def __init__(self, path: Path | None, stamp: Probe, every_s: float) -> None:
        self.path, self.stamp, self.every_s, self.saved_at = path, stamp, every_s, time.monotonic()
        found = None if path is None else matching(path, NAMES, stamp)
        self.parts: dict[str, Tensor] = {name: found[name] if found else torch.zeros(0) for name in NAMES}

    def add(self, name: str, part: Tensor) -> None:
        """More of one of the three."""
        self.parts[name] = torch.cat([self.parts[name], part]) if len(self.parts[name]) else part
        if time.monotonic() - self.saved_at >= self.every_s:
            self.save()

    def save(self) -> None:
        """StyleclipError where the disk is full; the old file stays."""
        if self.path is not None:
            save_atomically({**self.parts, "probe": self.stamp.numbers, "settings": self.stamp.settings}, self.path)
        self.saved_at = time.monotonic()


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

    checkpoint: file that keeps what was found under the same `stamp`; an interrupted run goes on from it, to the same
    bits on a CPU. InputError for gradients that are not finite; StyleclipError for a full disk.
    """

    def encode(picture: Tensor) -> Tensor:
        return F.normalize(encode_image(picture), dim=-1)

    def left(s: Tensor, name: str, what: str) -> Iterator[Tensor]:
        done = len(kept.parts[name])
        with tqdm(total=len(s), initial=done, desc=what, unit="image", disable=None, smoothing=0.1, leave=False) as bar:
            for part in s[done:].split(chunk_size(generator)) if done < len(s) else ():
                yield part
                bar.update(len(part))

    kept = _Kept(checkpoint, stamp or Probe(torch.zeros(1), {}), save_every_s)
    before = len(kept.parts["rows"])
    for part in left(around(base[torch.arange(FACES) % len(base)], s_std, 1.0, SEED), "faces", "embeddings"):
        kept.add("faces", embed(generator, encode, part))
    if not len(kept.parts["basis"]):
        kept.add("basis", principal_components(kept.parts["faces"], probes))
    basis = kept.parts["basis"]
    for part in left(base, "rows", "gradients"):
        slopes = torch.stack([g.cpu() for g in pullbacks(generator, encode, part, basis)], 2)
        kept.add("rows", unit(slopes).half())
    if before < len(base):
        kept.save()
    return Predictions(basis, kept.parts["rows"])
