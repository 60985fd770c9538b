"""What a channel's difference will be in an image, from the gradients of that image: for the early stop.

The finite difference of a channel and its slope at the same face differ, but they vary together from image to image:
most of what makes a row need a hundred images is in the gradient too. And gradients are cheap: a backward pass gives
a number of every channel, where the finite procedure renders two pictures for each. The unit slopes of all images
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

from ...engines.errors import InputError
from .directions_progress import Probe, matching
from .directions_stop import CHECKS, Predicted, unit
from .jacobian import ImageEncoder, around, chunk_size, embed, principal_components, pullbacks
from .loop import save_atomically
from .networks.stylegan2 import Generator

PROBES = 96
CHANNELS_A_PROBE = 8
"""A probe costs about what a channel's two pictures do, in every image."""
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
    """How many probes a table is worth: none where nothing can stop early, or where its own pictures are few."""
    pays = tolerance and images > CHECKS[0] and 2 * images * channels >= CHANNELS_A_PROBE * (FACES + images)
    return min(PROBES, channels // CHANNELS_A_PROBE) if pays else 0


def passes_for(tolerance: float, images: int, channels: int) -> int:
    """Passes of the gradients through generator and CLIP: a picture of each face and image, and back for each probe."""
    probes = probes_for(tolerance, images, channels)
    return FACES + images * (1 + probes) if probes else 0


def settings_of(images: int, probes: int) -> dict[str, int]:
    """What predictions depend on besides the networks: sums made with these do not go on with others."""
    return {"images": images, "probes": probes, "faces": FACES, "seed": SEED}


class _Kept:
    """What was found so far, and the file that keeps it: embeddings `faces`, the `basis` they span, and `rows`."""

    def __init__(self, path: Path | None, stamp: Probe, every_s: float) -> None:
        self.path, self.stamp, self.every_s, self.saved_at = path, stamp, every_s, time.monotonic()
        found = None if path is None else matching(path, NAMES, stamp)
        self.parts = {name: [found[name]] if found and len(found[name]) else [] for name in NAMES}

    def count(self, name: str) -> int:
        """How many images one of the three has."""
        return sum(map(len, self.parts[name]))

    def whole(self, name: str) -> Tensor:
        """One of the three; no values where nothing was found yet."""
        return torch.cat(self.parts[name]) if self.parts[name] else torch.zeros(0)

    def add(self, name: str, part: Tensor) -> None:
        """More of one of the three. InputError for what is not finite, which is not kept."""
        if not torch.isfinite(part).all():
            raise InputError(
                "CLIP's embeddings of the base images with their channels moved are not finite; check the weights with "
                "`styleclip-rt pack verify`"
            )
        self.parts[name].append(part)
        if time.monotonic() - self.saved_at >= self.every_s:
            self.save()

    def save(self) -> None:
        """StyleclipError where the disk is full; the old file stays."""
        if self.path is not None:
            parts = {name: self.whole(name) for name in NAMES}
            save_atomically({**parts, "probe": self.stamp.numbers, "settings": self.stamp.settings}, self.path)
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
        done = kept.count(name)
        with tqdm(total=len(s), initial=done, desc=what, unit="image", disable=None, smoothing=0.1, leave=False) as bar:
            for part in s[done:].split(chunk_size(generator)) if done < len(s) else ():
                yield part
                bar.update(len(part))

    kept = _Kept(checkpoint, stamp or Probe(torch.zeros(1), {}), save_every_s)
    before = kept.count("rows")
    for part in left(around(base[torch.arange(FACES) % len(base)], s_std, 1.0, SEED), "faces", "embeddings"):
        kept.add("faces", embed(generator, encode, part))
    if not kept.count("basis"):
        kept.add("basis", principal_components(kept.whole("faces"), probes))
    basis = kept.whole("basis").double().reshape(-1, kept.parts["faces"][0].shape[1])  # none where nothing varies
    for part in left(base, "rows", "gradients"):
        slopes = torch.zeros(*part.shape, len(basis))
        for i, slope in enumerate(pullbacks(generator, encode, part, basis)):
            slopes[:, :, i] = slope.cpu()
        kept.add("rows", unit(slopes).half())
    if before < len(base):
        kept.save()
    return Predictions(basis, kept.whole("rows"))
