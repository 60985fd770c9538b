"""InterFaceGAN (Shen et al. 2020, arXiv:1907.10786): the normal of a linear boundary in W as a direction.

Section 3: sample w, let a classifier score an attribute of their pictures, keep the most and the least confident ones,
fit a linear SVM, and move along its unit normal n: w' = w + alpha n. Section 3.2: n1 - (n1 . n2) n2 moves the first
attribute without the second. The scores here are CLIP's: how far an embedding lies along the direction from the
neutral text to the target. The unit of alpha is the samples' standard deviation along n: the paper's alpha is sigma
times ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...engines.errors import InputError
from ..prompts import Prompt
from .named import NamedDirection, read
from .neighbours import Samples, embedded, orthogonal_to, w_direction, w_vector
from .pack import Pack
from .texts import PackTexts

METHOD = "interfacegan"
TRAINED = 0.7  # of the chosen samples; the others validate, as in the paper
LEAST = 20  # samples of a class
COST = 1.0
SVM_STEPS = 500


@dataclass(frozen=True)
class Boundary:
    """A hyperplane in W. normal [W]: unit, towards high scores; bias: of normal . w + bias, zero on the boundary.

    accuracy: share of held-out samples on their side; correlation: of scores and projections over all samples; sigma:
    standard deviation of the samples along the normal.
    """

    normal: Tensor
    bias: float
    accuracy: float
    correlation: float
    sigma: float


def linear_svm(x: Tensor, y: Tensor, cost: float = COST) -> tuple[Tensor, float]:
    """(v [D], b) that minimise |v|^2 / 2 + cost * sum max(0, 1 - y (v . x + b))^2, in float64.

    The L2-loss linear SVM of LIBLINEAR (Fan et al. 2008, equation 2) with a free bias, in the primal by L-BFGS: convex
    and once differentiable. x: [N, D]; y: [N] of -1 and 1.
    """
    x, y = x.double(), y.double()
    v = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    b = torch.zeros((), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [v, b], max_iter=SVM_STEPS, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        margins = (1 - y * (x @ v + b)).clamp(min=0)
        value = v.square().sum() / 2 + cost * margins.square().sum()
        value.backward()
        return value

    solver.step(loss)  # type: ignore[no-untyped-call]
    return v.detach(), float(b.detach())


def boundary(w: Tensor, scores: Tensor, share: float, seed: int = 0) -> Boundary:
    """The boundary between the samples w [N, W] of the highest and of the lowest scores [N], `share` of all each."""
    if not 0 < share <= 0.5:
        raise InputError(f"share is {share:g}; expected that of the samples at each end, above 0 and at most 0.5")
    count = int(len(w) * share)
    if count < LEAST:
        raise InputError(
            f"{share:g} of {len(w)} samples are {count} at each end; expected {LEAST} or more: raise samples or share"
        )
    order = scores.argsort()
    chosen = torch.cat([order[:count], order[-count:]])
    labels = torch.cat([-torch.ones(count), torch.ones(count)])
    mixed = torch.randperm(2 * count, generator=torch.Generator().manual_seed(seed))
    chosen, labels = chosen[mixed], labels[mixed]
    trained = int(TRAINED * 2 * count)
    centre = w.double().mean(0)
    scale = (w.double() - centre).square().mean().sqrt()  # one number: angles in W stay as they are
    x = (w.double() - centre) / scale
    v, b = linear_svm(x[chosen[:trained]], labels[:trained])
    sides = torch.sign(x[chosen[trained:]] @ v + b)
    normal = v / v.norm()
    along = w.double() @ normal
    bias = float(b * scale / v.norm() - centre @ normal)
    correlation = torch.corrcoef(torch.stack([along, scores.double()]))[0, 1]
    accuracy = (sides == labels[trained:]).double().mean()
    return Boundary(normal, bias, float(accuracy), float(correlation), float(along.std(unbiased=False)))


def interfacegan(
    pack: Pack,
    samples: Samples,
    prompt: Prompt,
    rows: tuple[int, ...],
    share: float,
    orthogonal: Sequence[str],
    name: str,
    work: Path | None = None,
) -> NamedDirection:
    """The direction of a text pair: one sigma along the boundary's normal for alpha 1, in these rows of w+.

    orthogonal: directions of the pack, found in W, whose projections it leaves as they are.
    """
    others = [w_vector(pack.generator.cpu(), read(pack, other).delta_s, other) for other in orthogonal]
    delta_t = PackTexts(pack).pair(prompt.target, prompt.neutral).delta_t
    w, embeddings = embedded(pack, samples, work)
    found = boundary(w, embeddings @ delta_t, share, samples.seed)
    normal = orthogonal_to(found.normal, others)
    sigma = float((w.double() @ normal).std(unbiased=False))
    config = {
        "method": METHOD,
        "target": prompt.target,
        "neutral": prompt.neutral,
        "layers": list(rows),
        "sigma": round(sigma, 6),
        "accuracy": round(found.accuracy, 4),
        "correlation": round(found.correlation, 4),
        "share": share,
        "orthogonal_to": list(orthogonal),
        "kept": round(float(normal @ found.normal), 4),
        "samples": samples.count,
        "psi": samples.psi,
        "seed": samples.seed,
        "alpha": 2.0,
    }
    return NamedDirection(name, w_direction(pack.generator, normal * sigma, rows), None, config)
