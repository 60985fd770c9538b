"""GANSpace (Harkonen et al. 2020, arXiv:2004.02546): the principal components of w as directions.

Section 2.1: sample N random z, compute w = M(z), and the PCA of these w gives a basis V; an edit is w' = w + V x.
Section 2.2: E(v_i, j-k) applies a component to some of the rows of w+ alone. The unit of x_i is the standard deviation
of the samples along v_i, so that alpha 2 is "two sigma".

The paper uses incremental PCA; W is small enough for the covariance itself, which is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...engines.errors import InputError
from .named import NamedDirection
from .neighbours import Samples, sampled_w, w_direction
from .pack import Pack

METHOD = "ganspace"
CHUNK = 8192


@dataclass(frozen=True)
class Components:
    """Principal components of w, the widest first, float64.

    mean [W]; axes [K, W], orthonormal rows; sigmas [K]: standard deviation (ddof 0) of the samples along each; shares
    [K]: of the total variance.
    """

    mean: Tensor
    axes: Tensor
    sigmas: Tensor
    shares: Tensor


def principal_components(w: Tensor, count: int) -> Components:
    """The first `count` components of samples w [N, W].

    An axis and its negative are the same component: the sign is such that its largest entry is positive. Raises
    InputError for samples that have fewer components.
    """
    most = min(w.shape[1], len(w) - 1)
    if not 1 <= count <= most:
        raise InputError(f"{count} components of {len(w)} samples in {w.shape[1]} dimensions; there are {most}")
    mean = sum(part.double().sum(0) for part in w.split(CHUNK)) / len(w)
    centred = (part.double() - mean for part in w.split(CHUNK))
    covariance = sum(part.T @ part for part in centred) / len(w)
    variances, vectors = torch.linalg.eigh(covariance)  # ascending
    axes, variances = vectors.T.flip(0)[:count], variances.flip(0).clamp(min=0)
    signs = axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    if not variances[count - 1] > 1e-12 * variances[0]:
        varied = int((variances > 1e-12 * variances[0]).sum())
        raise InputError(f"{count} components were asked for, but w varies along {varied} of them alone")
    return Components(mean, axes * signs, variances[:count].sqrt(), variances[:count] / variances.sum())


def ganspace(
    pack: Pack, samples: Samples, components: int, rows: tuple[int, ...], name: str = METHOD
) -> list[NamedDirection]:
    """Directions <name>-0, <name>-1, ...: one sigma of each component for alpha 1, in these rows of w+."""
    found = principal_components(sampled_w(pack, samples), components)
    generator = pack.generator
    directions = []
    for k in range(components):
        config = {
            "method": METHOD,
            "component": k,
            "layers": list(rows),
            "sigma": round(float(found.sigmas[k]), 6),
            "variance_share": round(float(found.shares[k]), 6),
            "samples": samples.count,
            "psi": samples.psi,
            "seed": samples.seed,
            "alpha": 2.0,
        }
        delta_s = w_direction(generator, found.axes[k] * found.sigmas[k], rows)
        directions.append(NamedDirection(f"{name}-{k}", delta_s, None, config))
    return directions
