"""StyleSpace (Wu et al. 2021, arXiv:2011.12799): single style channels as directions.

Section 5: of the styles s of a few positive examples, delta_e = (s_e - mu_p) / sigma_p is the deviation from the
population; a channel whose deviation is large and the same in all examples belongs to the attribute, so channels are
ranked by theta = |mean(delta_e)| / std(delta_e). The examples here are the samples that CLIP scores highest for a
text; a table of channel directions ranks by |relevance| in their stead. What is ranked first is then tried: each
channel alone is moved on a few faces, and the gain of CLIP's score decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...engines.errors import InputError
from ..prompts import Prompt
from .named import NamedDirection
from .neighbours import Samples, embed_styles, embedded, sampled_w, styles_of
from .networks.stylegan2 import Generator, StyleLayer
from .pack import Pack
from .texts import PackTexts

METHOD = "stylespace"
ALPHA = 5.0  # sigma: the step of StyleCLIP's own single-channel test
TRIED = 8  # candidates for each direction that is wanted
TEST_FACES = 16
SIGMA_SAMPLES = 10_000


@dataclass(frozen=True)
class Found:
    """A channel that answers to a text. sign: which way raises the score; rank: theta or |relevance|; gain: of CLIP."""

    channel: int
    sign: float
    rank: float
    gain: float


def theta(examples: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """(theta [S], sign [S]) from the styles of examples [P, S] and the population's moments [S], in float64.

    Channels that never move have theta 0; those that are the same in every example but not in the population, 1e6.
    """
    moves = std > 0
    deviation = torch.where(moves, (examples.double() - mean) / std.double().clamp(min=1e-30), 0.0)
    shift, spread = deviation.mean(0), deviation.std(0, unbiased=False)
    return torch.where(moves, shift.abs() / spread, 0.0).nan_to_num(nan=0.0).clamp(max=1e6), shift.sign()


def single_channel_gains(
    pack: Pack, s: Tensor, delta_t: Tensor, channels: Tensor, signs: Tensor, sigma: Tensor, alpha: float = ALPHA
) -> Tensor:
    """Mean gain [K] of CLIP's score over faces s [n, S] when one channel alone moves by sign * alpha * sigma."""
    before = embed_styles(pack, s) @ delta_t
    gains = []
    for channel, sign in zip(channels.tolist(), signs.tolist(), strict=True):
        moved = s.clone()
        moved[:, channel] += sign * alpha * sigma[channel]
        gains.append((embed_styles(pack, moved) @ delta_t - before).mean())
    return torch.stack(gains)


def ranked(
    pack: Pack, samples: Samples, delta_t: Tensor, rank: str, share: float, work: Path | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(rank [S], sign [S], styles of test faces [n, S]): by "examples" of the samples or by the pack's "table"."""
    if rank == "table":
        w = sampled_w(pack, Samples(TEST_FACES, samples.psi, samples.seed))
        relevance = pack.directions @ delta_t
        return relevance.abs(), relevance.sign(), styles_of(pack, w)
    w, embeddings = embedded(pack, samples, work)
    count = int(len(w) * share)
    if count < 2 or not share < 1:
        raise InputError(f"{share:g} of {len(w)} samples are {count} examples; expected 2 or more, and not all of them")
    s = styles_of(pack, w)
    examples = s[(embeddings @ delta_t).argsort(descending=True)[:count]]
    score, sign = theta(examples, s.double().mean(0), s.double().std(0, unbiased=False))
    return score, sign, s[:TEST_FACES]


def find_channels(
    pack: Pack,
    samples: Samples,
    prompt: Prompt,
    count: int,
    rank: str = "examples",
    share: float = 0.02,
    torgb: bool = True,
    work: Path | None = None,
) -> list[Found]:
    """The `count` channels that raise CLIP's score for a text most when each moves alone, of 8 times as many tried.

    torgb: toRGB channels too, which carry colour. Raises InputError where no channel raises it.
    """
    delta_t = PackTexts(pack).pair(prompt.target, prompt.neutral).delta_t
    score, sign, s = ranked(pack, samples, delta_t, rank, share, work)
    sigma = channel_sigma(pack)
    for layer in pack.layout.style_layers:
        if layer.kind == "torgb" and not torgb:
            score[layer.offset : layer.offset + layer.channels] = 0
    candidates = score.argsort(descending=True)[: TRIED * count]
    candidates = candidates[(score[candidates] > 0) & (sigma[candidates] > 0)]
    if not len(candidates):
        raise InputError(f"no style channel of the pack answers to {prompt.target!r}")
    gains = single_channel_gains(pack, s, delta_t, candidates, sign[candidates], sigma)
    order = [int(k) for k in gains.argsort(descending=True) if gains[k] > 0][:count]
    if not order:
        raise InputError(
            f"no channel alone moves pictures towards {prompt.target!r}; try another text, or --rank table"
        )
    return [
        Found(int(candidates[k]), float(sign[candidates[k]]), float(score[candidates[k]]), float(gains[k]))
        for k in order
    ]


def channel_sigma(pack: Pack) -> Tensor:
    """Standard deviations [S] of the style channels: the pack's statistics, or else measured."""
    if pack.has("statistics"):
        return pack.statistics.s_std
    return styles_of(pack, sampled_w(pack, Samples(SIGMA_SAMPLES, 1.0))).std(0, unbiased=False)


def channel_direction(pack: Pack, channel: int, sign: float, name: str, **config: object) -> NamedDirection:
    """One sigma of one channel for alpha 1."""
    layer = layer_of(pack.layout, channel)
    delta_s = torch.zeros(pack.layout.style_channels)
    delta_s[channel] = sign * channel_sigma(pack)[channel]
    place = {"layer": layer.name, "channel": channel - layer.offset, "sign": sign}
    return NamedDirection(name, delta_s, None, {"method": METHOD, **place, "alpha": ALPHA, **config})


def layer_of(generator: Generator, channel: int) -> StyleLayer:
    """The layer that a style channel belongs to."""
    return next(la for la in generator.style_layers if la.offset <= channel < la.offset + la.channels)


def named_channel(generator: Generator, text: str) -> int:
    """The style channel that "b32.conv1:12" names; InputError lists the layers, or how many channels one has."""
    name, _, index = text.partition(":")
    layers = {layer.name: layer for layer in generator.style_layers}
    if name not in layers or not index.isdigit():
        sizes = ", ".join(f"{layer.name} ({layer.channels})" for layer in layers.values())
        raise InputError(f"channel {text[:60]!r}; expected LAYER:INDEX such as b8.conv1:12, of the layers {sizes}")
    if int(index) >= layers[name].channels:
        raise InputError(f"channel {text[:60]!r}; the layer has {layers[name].channels} channels, the first is 0")
    return layers[name].offset + int(index)


def stylespace(
    pack: Pack, samples: Samples, prompt: Prompt, count: int, rank: str, share: float, torgb: bool, name: str,
    work: Path | None = None,
) -> list[NamedDirection]:  # fmt: skip
    """Directions <name>-0, <name>-1, ...: one sigma of a channel that was found for a text, the strongest first."""
    found = find_channels(pack, samples, prompt, count, rank, share, torgb, work)
    texts = {"target": prompt.target, "neutral": prompt.neutral, "rank": rank}
    how = {"samples": samples.count, "psi": samples.psi, "seed": samples.seed, "share": share}
    return [
        channel_direction(
            pack, channel.channel, channel.sign, f"{name}-{k}", **texts, score=round(channel.rank, 4),
            gain=round(channel.gain, 5), **(how if rank == "examples" else {}),
        )
        for k, channel in enumerate(found)
    ]  # fmt: skip
