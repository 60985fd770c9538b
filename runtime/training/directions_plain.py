"""StyleCLIP's loop for the channel directions as it reads: one image, one channel and one sign at a time, at full size.

The slow reference beside `directions.py`. Tests hold the fast table equal to it, and
`styleclip_rt.benchmarks.directions_bench` measures it, with the generator and the pixels of the original.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


@torch.no_grad()
def plain_rows(
    synthesize: Callable[[Tensor], Tensor],
    encode_image: Callable[[Tensor], Tensor],
    styles: Tensor,
    mean: Tensor,
    std: Tensor,
    channels: Sequence[int],
    *,
    sigmas: float = 5.0,
    cumulative: bool = False,
) -> Tensor:
    """Unit rows [C, E] of `channels`, which come in the order of style space.

    Args:
        synthesize: s [1, S] -> picture, whatever `encode_image` takes.
        encode_image: picture -> embedding [1, E] of any length.
        styles: s [n, S] of the base images.
        mean, std: [S], the moments of style space.
        sigmas: k; a channel is set to mean - k std and to mean + k std.
        cumulative: a channel that was visited stays at its mean, in all images, as in the published code.
    """
    styles, rows = styles.clone(), []
    for c in channels:
        total: Tensor | float = 0.0
        for s in styles:
            low, high = s.clone(), s.clone()
            low[c], high[c] = mean[c] - sigmas * std[c], mean[c] + sigmas * std[c]
            pair = [embedding(encode_image(synthesize(at[None]))) for at in (low, high)]
            total = total + normalised(pair[1] - pair[0])
        rows.append(normalised(torch.as_tensor(total) / len(styles)))
        if cumulative:
            styles[:, c] = mean[c]
    return torch.stack(rows)


def embedding(features: Tensor) -> Tensor:
    """[1, E] -> [E], unit length."""
    return normalised(features[0])


def normalised(x: Tensor) -> Tensor:
    """[E] over its length; zero stays zero, where the published code divides by zero."""
    norm = x.norm()
    return x / norm if norm > 0 else x
