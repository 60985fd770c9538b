"""The table of channel directions delta_i_c, by StyleCLIP's own procedure (Patashnik et al. 2021, section 6).

For every convolution channel c of style space and n base images: set the channel to mean - k sigma and to
mean + k sigma, render both, embed both with CLIP, and let `runtime.edits.channel_directions` (GetFs) turn the features
into a unit row. toRGB channels get zero rows, as in the published tables.

Two things make it fast without changing the result: many (channel, image, sign) renders share one batch, and everything
below the perturbed resolution is rendered once per resolution. `tests/training/test_directions.py` holds the plain
loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ...engines.errors import InputError
from ..edits import channel_directions
from .networks.stylegan2 import Generator
from .statistics import StyleMoments

ImageEncoder = Callable[[Tensor], Tensor]
CPU_BATCH = 16
"""Pictures that a CPU renders at once: larger batches leave its cache (1.5 times slower at 64 pictures of 64 px)."""


@dataclass(frozen=True)
class DirectionRecipe:
    """What a table depends on, besides the generator, CLIP and the statistics.

    `sigmas` is k: StyleCLIP moves a channel to mean +- 5 sigma. `cumulative` repeats an accident of the published code,
    which leaves every channel that was already visited at its mean; tables made so differ from the definition.
    """

    images: int = 100
    sigmas: float = 5.0
    cumulative: bool = False

    def __post_init__(self) -> None:
        if self.images < 1 or not self.sigmas > 0:
            raise InputError(
                f"{self.images} images at {self.sigmas} sigma: expected at least 1 image and more than 0 sigma"
            )


@dataclass(frozen=True)
class _Prefix:
    """The base images up to one resolution: x [n,C,r,r] and rgb [n,3,r,r] that enter block `index`."""

    index: int
    x: Tensor
    rgb: Tensor | None


def conv_channels(generator: Generator) -> list[int]:
    """Positions in s of every channel that a row is computed for: all but toRGB's."""
    layers = [layer for layer in generator.style_layers if layer.kind == "conv"]
    return [c for layer in layers for c in range(layer.offset, layer.offset + layer.channels)]


def _block_slices(generator: Generator) -> list[slice]:
    """The part of s that each resolution's block reads."""
    slices, start, layers = [], 0, list(generator.style_layers)
    for block in generator.blocks.values():
        count = len(block.layers())  # type: ignore[operator]
        stop = start + sum(layer.channels for layer in layers[:count])
        slices.append(slice(start, stop))
        start, layers = stop, layers[count:]
    return slices


class _Renderer:
    """Renders base images with single channels replaced, from the resolution of the channel upwards."""

    def __init__(self, generator: Generator, base: Tensor, mean: Tensor, cumulative: bool) -> None:
        self.generator, self.base, self.mean, self.cumulative = generator, base, mean, cumulative
        self.slices, self.movable = _block_slices(generator), conv_channels(generator)
        self._prefix: _Prefix | None = None

    def _styles(self, before: int) -> Tensor:
        """Base styles [n,S]; in the cumulative mode every channel visited before `before` stands at its mean."""
        if not self.cumulative:
            return self.base
        s, visited = self.base.clone(), [c for c in self.movable if c < before]
        s[:, visited] = self.mean[visited]
        return s

    def _enter(self, index: int) -> _Prefix:
        if self._prefix is None or self._prefix.index != index:
            s = self._styles(self.slices[index].start)
            self._prefix = _Prefix(index, *self.generator.run_blocks(s, s, None, 0, index))
        return self._prefix

    def __call__(self, channels: list[int], values: Tensor) -> Tensor:
        """Channels of ONE block, values [C,2] they are set to -> images [C,n,2,3,R,R]."""
        index = next(i for i, part in enumerate(self.slices) if part.start <= channels[0] < part.stop)
        prefix, n = self._enter(index), len(self.base)
        rows = [self._styles(c)[:, None].repeat(1, 2, 1) for c in channels]
        for row, c, value in zip(rows, channels, values, strict=True):
            row[:, :, c] = value
        s = torch.stack(rows).flatten(0, 2)  # [C*n*2,S]
        source = torch.arange(n, device=s.device).repeat_interleave(2).repeat(len(channels))  # [C*n*2]
        size = CPU_BATCH if s.device.type == "cpu" else len(s)
        parts = zip(s.split(size), source.split(size), strict=True)
        images = torch.cat([self._finish(prefix, part, rows) for part, rows in parts])
        return images.unflatten(0, (len(channels), n, 2))

    def _finish(self, prefix: _Prefix, s: Tensor, source: Tensor) -> Tensor:
        """Images [m,3,R,R] of styles s [m,S] from the prefix's base images `source` [m]."""
        x, rgb = prefix.x[source], None if prefix.rgb is None else prefix.rgb[source]
        image = self.generator.run_blocks(s, x, rgb, prefix.index, len(self.slices))[1]
        assert image is not None
        return image


def _groups(generator: Generator, channels: list[int], size: int) -> Iterator[list[int]]:
    """`channels` in order, in groups of at most `size` that lie within one block."""
    for part in _block_slices(generator):
        inside = [c for c in channels if part.start <= c < part.stop]
        for start in range(0, len(inside), size):
            yield inside[start : start + size]


class _Progress:
    """The rows done so far, on disk: a killed run continues; a run with other inputs starts anew."""

    def __init__(self, path: Path | None, recipe: DirectionRecipe, probe: Tensor, shape: tuple[int, int]) -> None:
        self.path, self.recipe, self.probe = path, recipe, probe
        self.rows, self.done = torch.zeros(shape), 0
        self._saved = time.monotonic()
        if path is not None and path.exists():
            self._resume(torch.load(path, map_location="cpu", weights_only=True))

    def _resume(self, state: dict[str, Any]) -> None:
        known: Tensor = state["probe"]
        same = known.shape == self.probe.shape and torch.allclose(known, self.probe, atol=1e-3)
        if same and state["recipe"] == asdict(self.recipe) and state["rows"].shape == self.rows.shape:
            self.rows, self.done = state["rows"], int(state["done"])

    def add(self, channels: list[int], rows: Tensor, *, save_every_s: float) -> None:
        self.rows[channels], self.done = rows, self.done + len(channels)
        if time.monotonic() - self._saved > save_every_s:
            self.save()

    def save(self) -> None:
        if self.path is None:
            return
        state = {"recipe": asdict(self.recipe), "probe": self.probe, "rows": self.rows, "done": self.done}
        temporary = self.path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self.path)
        self._saved = time.monotonic()


def _probe(statistics: StyleMoments, encoded: Tensor) -> Tensor:
    """What tells one set of inputs from another: the statistics and CLIP's view of the first base image."""
    return torch.cat([statistics.s_mean, statistics.s_std, encoded[0].float().cpu()])


@torch.no_grad()
def direction_table(
    generator: Generator,
    encode_image: ImageEncoder,
    statistics: StyleMoments,
    base_w: Tensor,
    recipe: DirectionRecipe | None = None,
    *,
    checkpoint: Path | None = None,
    channels_per_step: int = 1,
    save_every_s: float = 30.0,
) -> Tensor:
    """delta_i_c of every style channel.

    Args:
        encode_image: image [N,3,R,R] in -1..1 -> embedding [N,E], with CLIP's own front-end (mean and std applied).
        base_w: w+ [n,L,W] of at least `recipe.images` base images; StyleCLIP takes the first 100 of its statistics.
        checkpoint: file that keeps finished rows; a killed run continues from it.
        channels_per_step: channels that share one batch of C*n*2 images.
    Returns:
        float32 [S,E] on the CPU: unit rows, zero for toRGB channels and for channels that move no embedding.
    Raises:
        InputError: fewer base images than the recipe asks for.
    """
    recipe = recipe or DirectionRecipe()
    if len(base_w) < recipe.images:
        raise InputError(f"{len(base_w)} base images came; the recipe asks for {recipe.images}")
    base = generator.styles(base_w[: recipe.images])
    mean, std = statistics.s_mean.to(base), statistics.s_std.to(base)
    encoded = encode_image(generator.synthesize(base[:1]))
    progress = _Progress(checkpoint, recipe, _probe(statistics, encoded), (len(mean), encoded.shape[1]))
    renderer, todo = _Renderer(generator, base, mean, recipe.cumulative), conv_channels(generator)
    signs = torch.tensor([-recipe.sigmas, recipe.sigmas]).to(base)
    with tqdm(total=len(todo), initial=progress.done, desc="channel directions", unit="channel", disable=None) as bar:
        for channels in _groups(generator, todo[progress.done :], channels_per_step):
            images = renderer(channels, mean[channels, None] + signs * std[channels, None])
            features = encode_image(images.flatten(0, 2)).unflatten(0, images.shape[:3])  # [C,n,2,E]
            rows = channel_directions(features.float().cpu().numpy()).astype(np.float32)
            progress.add(channels, torch.from_numpy(rows), save_every_s=save_every_s)
            bar.update(len(channels))
    progress.save()
    return progress.rows
