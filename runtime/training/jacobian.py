"""The Jacobian J = dE/ds [E,S] of CLIP's embedding with respect to the styles, by backward passes: v^T J for a v each.

A pass through generator and CLIP gives all channels at once. The weights are frozen, so that a backward pass multiplies
as often as a forward one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ...engines.errors import InputError
from .networks.stylegan2 import Generator

ImageEncoder = Callable[[Tensor], Tensor]
CPU_PIXELS, GPU_PIXELS = 16 * 64 * 64, 1 << 22
"""Pixels of the pictures whose graph is kept at once: one picture of 1024 px on a CPU, four on a GPU."""


def chunk_size(generator: Generator) -> int:
    """Images whose graph is kept at once."""
    cpu = next(generator.parameters()).device.type == "cpu"
    return max(1, (CPU_PIXELS if cpu else GPU_PIXELS) // generator.config.resolution**2)


def pullbacks(generator: Generator, encode_image: ImageEncoder, s: Tensor, probes: Tensor) -> Iterator[Tensor]:
    """<J_c, v> of every probe v, one backward pass each: s [n,S], probes [m,E] -> m times [n,S].

    All n images share one graph, so memory grows with n and not with m. InputError for gradients that are not finite.
    """
    with torch.enable_grad():
        s = s.detach().clone().requires_grad_()
        embedded = encode_image(generator.synthesize(s))
    for i, probe in enumerate(probes.to(embedded)):
        (gradient,) = torch.autograd.grad(embedded, s, probe.expand_as(embedded), retain_graph=i + 1 < len(probes))
        if not torch.isfinite(gradient).all():
            raise InputError(
                "the gradients of CLIP's embedding are not finite; check the weights with `styleclip-rt pack verify`"
            )
        yield gradient


def around(s: Tensor, s_std: Tensor, spread: float, seed: int) -> Tensor:
    """s [n,S], each channel moved at random by `spread` of its standard deviation s_std [S]; the same for a seed."""
    noise = torch.randn(s.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return s + spread * (s_std.cpu() * noise).to(s)


def embed(generator: Generator, encode_image: ImageEncoder, s: Tensor, *, chunk: int | None = None) -> Tensor:
    """Embeddings of the pictures of s [n,S], without a graph: [n,E] on the CPU."""
    with torch.no_grad():
        parts = s.split(chunk or chunk_size(generator))
        return torch.cat([encode_image(generator.synthesize(part)).cpu() for part in parts])


def principal_components(embeddings: Tensor, count: int) -> Tensor:
    """The first `count` principal components of embeddings [n,E], fewer where they span fewer: [k,E], orthonormal."""
    centred = embeddings.double() - embeddings.double().mean(0)
    _, sizes, components = torch.linalg.svd(centred, full_matrices=False)
    found = int((sizes > 1e-6 * sizes.max().clamp(min=1e-30)).sum())
    return components[: min(count, found)]
