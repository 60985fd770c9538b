"""What the early stop of channel directions changes: rows stopped early against the same rows over all images.

The slice of the table is rendered over all images once, and the stop is replayed on it at every tolerance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..runtime.training.directions import group_size, moved_features
from ..runtime.training.directions_finite import front_of
from ..runtime.training.directions_predicted import Predictions, predict, probes_for
from ..runtime.training.directions_render import Renderer
from ..runtime.training.directions_stop import differences, estimate, may_stop, unit
from ..runtime.training.networks.stylegan2 import StyleLayer
from .directions_subject import SIGMAS, Subject, spread

TOLERANCES = (0.005, 0.01, 0.0125, 0.02)
Row = dict[str, Any]


@torch.no_grad()
def image_differences(subject: Subject, count: int) -> Iterator[tuple[StyleLayer, Tensor]]:
    """delta_i [n,C,E] of `count` channels of every layer, over all base images."""
    renderer, encode = Renderer(subject.generator, front_of(subject.clip)), subject.clip.encode_image
    group = group_size(renderer)
    for index, layer in tqdm(subject.layers(), "error", unit="layer", disable=None):
        channels = spread(layer, count)
        places = torch.tensor(channels) + layer.offset
        mean, reach = subject.mean[places], SIGMAS * subject.std[places]
        found = []
        for s in subject.styles:
            opened = renderer.open(s, index)
            parts = [slice(start, start + group) for start in range(0, len(channels), group)]
            features = [moved_features(opened, encode, channels[p], mean[p], reach[p]) for p in parts]
            found.append(differences(torch.cat(features)))
        yield layer, torch.stack(found)


def slice_predictions(subject: Subject, tolerance: float) -> Predictions | None:
    """What `train directions` expects of every image and channel: as many probes as the whole table gets."""
    channels = sum(layer.channels for _, layer in subject.layers())
    probes = probes_for(tolerance, len(subject.styles), channels)
    encode = subject.clip.encode_image
    return predict(subject.generator, encode, subject.styles, subject.std, probes) if probes else None


def replay(
    delta: Tensor, channels: Sequence[int], tolerance: float, predictions: Predictions | None
) -> tuple[Tensor, Tensor]:
    """What a run with `tolerance` makes of delta_i [n,C,E] of `channels`: rows [C,E], of how many images each [C]."""
    images, places = len(delta), torch.tensor(channels)
    rows, used = unit(delta.mean(0)), torch.full((len(places),), images)
    active, cross = torch.ones(len(places), dtype=torch.bool), torch.zeros(len(places), dtype=delta.dtype)
    for seen in range(1, images):
        if predictions is not None:
            cross += predictions.cross(seen - 1, places, delta[seen - 1])
        if not may_stop(seen, tolerance):
            continue
        sums = delta[:seen].sum(0), delta[:seen].square().sum((0, 2))
        expected = None if predictions is None else predictions.sums(places, seen, cross)
        found, cosine = estimate(*sums, seen, images, expected)
        stop = active & (cosine >= 1 - tolerance) & (sums[1] > 0)
        rows[stop] = unit(found[stop])
        used[stop], active[stop] = seen, False
    return rows, used


def errors(subject: Subject, count: int, tolerances: Sequence[float] = TOLERANCES) -> list[Row]:
    """Rows by tolerance and layer, and one for the whole table at each tolerance."""
    measured = list(image_differences(subject, count))
    predictions = slice_predictions(subject, max(tolerances))
    rows = []
    for tolerance in tolerances:
        layers = []
        for layer, delta in measured:
            channels = [layer.offset + c for c in spread(layer, count)]
            early, used = replay(delta, channels, tolerance, predictions)
            layers.append((layer, (unit(delta.mean(0)) * early).sum(1), used.double()))
        weights = torch.cat([torch.full((len(c),), layer.channels / len(c)) for layer, c, _ in layers]).double()
        whole = torch.cat([c for _, c, _ in layers]), torch.cat([used for _, _, used in layers])
        rows += [_error(tolerance, layer.name, layer.channels, c, used) for layer, c, used in layers]
        total = sum(layer.channels for layer, _, _ in layers)
        rows.append(_error(tolerance, "table", total, *whole, weights / weights.sum()))
    return rows


def _error(
    tolerance: float, layer: str, channels: int, cosine: Tensor, used: Tensor, weights: Tensor | None = None
) -> Row:
    weights = torch.full_like(cosine, 1 / len(cosine)) if weights is None else weights
    near = float((weights * (cosine >= 0.99)).sum())
    return {
        "tolerance": tolerance, "layer": layer, "channels": channels, "measured": len(cosine),
        "mean_images": round(float((weights * used).sum()), 2),
        "cosine_mean": round(float((weights * cosine).sum()), 5),
        "cosine_p05": round(float(cosine.quantile(0.05)), 5), "cosine_min": round(float(cosine.min()), 5),
        "share_099": round(near, 4),
    }  # fmt: skip
