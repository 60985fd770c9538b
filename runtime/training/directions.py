"""The table of channel directions delta_i_c, by StyleCLIP's own procedure (Patashnik et al. 2021, section 6).

For every channel c of style space and n base images: set the channel to mean - k sigma and to mean + k sigma, render
both, embed both with CLIP; the row is the mean over the images of the unit differences, at unit length (GetFs).

It is made block by block: channels of one layer, image after image, so that what lies below is rendered once an image
(`directions_render`), a channel stops when its row has converged (`directions_stop`), for which gradients say
beforehand what to expect of the images left (`directions_predicted`), and a killed run continues at the image where it
stood. `directions_plain` is the loop as published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ...engines.errors import InputError
from .directions_predicted import Predictions, predict, probes_for, settings_of
from .directions_progress import Probe, Progress
from .directions_render import Front, OpenedImage, Renderer
from .directions_stop import differences, estimate, may_stop, unit
from .jacobian import ImageEncoder
from .networks.stylegan2 import Generator, StyleLayer
from .statistics import StyleMoments

CHANNELS = ("conv", "all")
BLOCK = 64
TOLERANCE = 0.0125
"""Of the early stop, unless another is asked for: on toyfaces the rows have a mean cosine of 0.99 and more with it."""
ENCODED = 8
"""Channels whose pictures CLIP encodes at once, at least, so that its matrix products have many rows."""


@dataclass(frozen=True)
class DirectionRecipe:
    """What a table depends on, besides the generator, CLIP and the statistics.

    `sigmas` is k: StyleCLIP moves a channel to mean +- 5 sigma. `cumulative` repeats an accident of the published code,
    which leaves every channel that was already visited at its mean; tables made so differ from the definition.
    `channels`: "conv", as published, or "all", toRGB among them. `tolerance`: a channel stops before the last image
    when its row's expected cosine with the finished one is at least 1 - tolerance; 0 never stops. `render_at`: pictures
    are followed up to this resolution (`directions_render.Renderer`), an approximation; None follows all layers.
    """

    images: int = 100
    sigmas: float = 5.0
    cumulative: bool = False
    channels: str = "conv"
    tolerance: float = 0.0
    render_at: int | None = None

    def __post_init__(self) -> None:
        if self.images < 1 or not self.sigmas > 0:
            raise InputError(
                f"{self.images} images at {self.sigmas} sigma: expected at least 1 image and more than 0 sigma"
            )
        if self.channels not in CHANNELS:
            raise InputError(f"channels {self.channels!r}: expected one of {', '.join(CHANNELS)}")
        if not 0 <= self.tolerance < 1:
            raise InputError(f"tolerance {self.tolerance}: expected 0 (no early stop) or more, below 1")
        if self.cumulative and self.tolerance:
            raise InputError("the published code never stops early: with its cumulative means the tolerance must be 0")
        if self.cumulative and self.render_at is not None:
            raise InputError("the published code renders every layer: with its cumulative means render_at must be full")


@dataclass(frozen=True)
class DirectionTable:
    """rows [S,E] float32, unit or zero; images [S] int64: how many each row is the mean of (0: not asked for)."""

    rows: Tensor
    images: Tensor


@dataclass(frozen=True)
class Block:
    """Channels of one style layer, as positions in s, ascending."""

    index: int
    layer: StyleLayer
    channels: tuple[int, ...]

    @property
    def inside(self) -> list[int]:
        """The channels numbered within their layer."""
        return [c - self.layer.offset for c in self.channels]


def asked_channels(generator: Generator, channels: str = "conv") -> list[int]:
    """Positions in s of every channel that gets a row: all, or all but toRGB's."""
    layers = [layer for layer in generator.style_layers if channels == "all" or layer.kind == "conv"]
    return [c for layer in layers for c in range(layer.offset, layer.offset + layer.channels)]


def conv_channels(generator: Generator) -> list[int]:
    """Positions in s of the channels of convolutions, the rows of the published tables."""
    return asked_channels(generator)


def resolution_for(asked: str, resolutions: Sequence[int], clip_size: int) -> int | None:
    """`render_at` of a recipe for "full", "clip" (as large as CLIP sees) or a resolution of the generator, in pixels.

    None where every layer is followed. Raises InputError for anything else.
    """
    if asked == "full":
        return None
    wanted = str(min((r for r in resolutions if r >= clip_size), default=resolutions[-1])) if asked == "clip" else asked
    if wanted not in map(str, resolutions):
        known = ", ".join(map(str, resolutions))
        raise InputError(f"render_at is {asked!r}; expected full, clip, or one of the generator's resolutions: {known}")
    return None if int(wanted) == resolutions[-1] else int(wanted)


def blocks_of(generator: Generator, channels: Sequence[int], size: int) -> list[Block]:
    """`channels` in blocks of at most `size` that lie within one layer."""
    found: list[Block] = []
    for index, layer in enumerate(generator.style_layers):
        inside = [c for c in channels if layer.offset <= c < layer.offset + layer.channels]
        starts = range(0, len(inside), size)
        found += [Block(index, layer, tuple(inside[start : start + size])) for start in starts]
    return found


class _Measurement:
    """One table under way: the networks and moments on their device, and the sums so far."""

    def __init__(
        self,
        renderer: Renderer,
        encode_image: ImageEncoder,
        statistics: StyleMoments,
        base: Tensor,
        recipe: DirectionRecipe,
        progress: Progress,
        asked: Sequence[int],
        predictions: Predictions | None,
    ) -> None:
        self.renderer, self.encode_image, self.base = renderer, encode_image, base
        self.mean, self.std = statistics.s_mean.to(base), statistics.s_std.to(base)
        self.recipe, self.progress = recipe, progress
        self.group = group_size(renderer)
        self.asked, self.predictions = asked, predictions

    def run(self, block: Block, bar: tqdm[None]) -> None:
        """Brings the block's channels to their last image; the bar counts pairs of renders, those saved among them."""
        channels = torch.tensor(block.channels)
        progress, images = self.progress, self.recipe.images
        still = channels[self.std[channels].cpu() == 0]  # both pictures would be the same: the row is zero
        bar.update(int((images - progress.seen[still]).sum()))
        progress.seen[still], progress.active[still] = images, False
        for i in range(progress.image, images):
            active = channels[progress.active[channels]]
            if not len(active):
                break
            self._image(block, i, active.tolist())
            progress.seen[active] += 1
            bar.update(len(active))
            self._settle(active, i + 1, bar)
            progress.reached(i + 1)
        progress.next_block()

    def _settle(self, active: Tensor, seen: int, bar: tqdm[None]) -> None:
        """The rows of channels that have converged after `seen` images, or have seen them all."""
        progress, recipe, left = self.progress, self.recipe, self.recipe.images - seen
        if left and not may_stop(seen, recipe.tolerance):
            return
        predicted = self.predictions.sums(active, seen, progress.cross[active]) if self.predictions else None
        rows, cosine = estimate(progress.total[active], progress.squares[active], seen, recipe.images, predicted)
        done = cosine >= 1 - recipe.tolerance
        progress.rows[active[done]] = unit(rows[done]).float()
        progress.active[active[done]] = False
        if saved := int(done.sum()) * left:
            progress.saved += saved
            bar.total -= saved
            bar.set_postfix(saved=f"{100 * progress.saved / (len(self.asked) * recipe.images):.0f}%")

    def _image(self, block: Block, i: int, active: list[int]) -> None:
        s = self.base[i]
        if self.recipe.cumulative:
            visited = [c for c in self.asked if c < block.channels[0]]
            s = s.clone()
            s[visited] = self.mean[visited]
        opened = self.renderer.open(s, block.index)
        for start in range(0, len(active), self.group):
            self._group(opened, block, i, active[start : start + self.group])

    def _group(self, opened: OpenedImage, block: Block, i: int, channels: list[int]) -> None:
        mean, reach = self.mean[channels], self.recipe.sigmas * self.std[channels]
        inside = [c - block.layer.offset for c in channels]
        features = moved_features(opened, self.encode_image, inside, mean, reach, pin=self.recipe.cumulative)
        if not torch.isfinite(features).all():
            raise InputError(
                f"layer {block.layer.name}: the embeddings of {self.recipe.sigmas:g} sigma are not finite; try fewer "
                "sigmas, and check the generator's weights with `styleclip-rt pack verify`"
            )
        delta = differences(features).cpu()
        self.progress.total[channels] += delta
        self.progress.squares[channels] += delta.square().sum(1)
        if self.predictions:
            self.progress.cross[channels] += self.predictions.cross(i, channels, delta)


def group_size(renderer: Renderer) -> int:
    """Channels that are measured together."""
    return max(renderer.batch, ENCODED)


def moved_features(
    opened: OpenedImage,
    encode_image: ImageEncoder,
    channels: Sequence[int],
    mean: Tensor,
    reach: Tensor,
    pin: bool = False,
) -> Tensor:
    """Embeddings [C,2,E] of an opened image with each of `channels` (numbered within the layer) moved alone.

    A channel is set to mean - reach and mean + reach, both [C]; with `pin` it stays at its mean for those after it.
    """
    values, at_once = torch.stack([mean - reach, mean + reach], 1), opened.renderer.batch
    parts = [slice(start, start + at_once) for start in range(0, len(channels), at_once)]
    pictures = [opened.pictures(channels[part], values[part], mean[part] if pin else None) for part in parts]
    return encode_image(torch.cat(pictures).flatten(0, 1)).unflatten(0, (len(channels), 2))


@torch.no_grad()
def measure_directions(
    generator: Generator,
    encode_image: ImageEncoder,
    statistics: StyleMoments,
    base_w: Tensor,
    recipe: DirectionRecipe | None = None,
    *,
    front: Front | None = None,
    checkpoint: Path | None = None,
    block: int = BLOCK,
    save_every_s: float = 30.0,
    channels: Sequence[int] | None = None,
) -> DirectionTable:
    """delta_i_c of every style channel.

    Args:
        encode_image: image [N,3,R,R] in -1..1 -> embedding [N,E], with CLIP's own front-end (mean and std applied).
        base_w: w+ [n,L,W] of at least `recipe.images` base images; StyleCLIP takes the first 100 of its statistics.
        front: what `encode_image` resizes pictures to; then it gets them at that size, and none is made larger.
        checkpoint: file that keeps what was summed so far; a killed run continues from it. The gradients for the early
            stop lie beside it, as NAME.gradients.pt.
        block: channels that share the rendering of what lies below them.
        channels: only these positions in s, of those that the recipe names; the other rows stay zero.
    Returns:
        rows on the CPU: unit, zero for channels that were not asked for and for those that move no embedding.
    Raises:
        InputError: fewer base images than the recipe asks for; embeddings that are not finite; a full disk.
    """
    recipe = recipe or DirectionRecipe()
    if len(base_w) < recipe.images:
        raise InputError(f"{len(base_w)} base images came; the recipe asks for {recipe.images}")
    base = generator.styles(base_w[: recipe.images])
    encoded = encode_image(generator.synthesize(base[:1])).float().cpu()
    asked = asked_channels(generator, recipe.channels)
    chosen = asked if channels is None else [c for c in asked if c in set(channels)]
    numbers = torch.cat([statistics.s_mean, statistics.s_std, encoded[0]])
    if not torch.isfinite(numbers).all():
        raise InputError(
            "the statistics of style space, or CLIP's embedding of a base image, are not finite; check the pack with "
            "`styleclip-rt pack verify`"
        )
    probes = probes_for(recipe.tolerance, recipe.images, len(chosen))
    gradients = Probe(numbers, settings_of(recipe.images, probes))
    probe = Probe(numbers, {**asdict(recipe), "block": block, "asked": chosen, "gradients": gradients.settings})
    progress = Progress(checkpoint, probe, chosen, base.shape[1], encoded.shape[1], save_every_s)
    blocks = blocks_of(generator, chosen, block)
    predictions = None
    if probes and progress.block < len(blocks):
        beside = None if checkpoint is None else checkpoint.with_suffix(".gradients" + checkpoint.suffix)
        predictions = predict(
            generator, encode_image, base, statistics.s_std, probes,
            checkpoint=beside, stamp=gradients, save_every_s=save_every_s,
        )  # fmt: skip
    renderer = Renderer(generator, front, recipe.render_at)
    work = _Measurement(renderer, encode_image, statistics, base, recipe, progress, chosen, predictions)
    total = len(chosen) * recipe.images - progress.saved
    with tqdm(total=total, initial=progress.pairs, desc="directions", unit="pair", disable=None, smoothing=0.1) as bar:
        for part in blocks[progress.block :]:
            work.run(part, bar)
    progress.save()
    return DirectionTable(progress.rows, progress.seen)


def direction_table(
    generator: Generator,
    encode_image: ImageEncoder,
    statistics: StyleMoments,
    base_w: Tensor,
    recipe: DirectionRecipe | None = None,
    *,
    checkpoint: Path | None = None,
    front: Front | None = None,
) -> Tensor:
    """The rows of `measure_directions` alone, float32 [S,E]."""
    table = measure_directions(generator, encode_image, statistics, base_w, recipe, checkpoint=checkpoint, front=front)
    return table.rows
