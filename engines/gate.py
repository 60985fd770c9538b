"""The accuracy gate: does an engine that was built on this machine compute what the graph says?

What is fed follows from the names of a bundle's ports (docs/formats.md). A graph that edits, or that takes style
vectors, is compared as it stands and at both ends of the strength that precision answers for; of pictures the worst
one counts, by the limits that `export --precision` has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .spec import GraphSpec, TensorSpec

ALPHA = 10.0
"""The strongest edit that precision answers for; StyleCLIP's own interface goes to 10."""
MIN_PSNR_DB = {"plain": 45.0, "edited": 40.0}
"""Limits of the worst picture, clipped to its range: at alpha 0, and at |alpha| = ALPHA."""
MAX_RELATIVE_ERROR = 1e-2
"""Of other floating-point outputs, ||a - b|| / ||b||; of embeddings that is a cosine of 0.99995."""
BATCHES = (1, 3)
"""One with a profile of its own, one for the free profile."""
STRENGTHS = ("alpha", "strength")
STYLES = "s"
PICTURE = "image"
"""The output that is a picture in -1..1; one of uint8 is a picture in levels, whatever its name."""
STYLE_SPREAD, MOVED_SHARE = 0.2, 0.1
"""Of style vectors: standard deviation of a channel around 1, and the share of the channels that an edit moves."""
THRESHOLDS = (0.001, 0.05, 2.0)
"""beta of the samples in turn: with a random text direction nearly every channel moves, some move, none moves."""
Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Case:
    """One comparison: what messages call it, its strength, and which limit of pictures it has."""

    name: str
    alpha: float
    limit: str


PLAIN = Case("", 0.0, "plain")
CASES = (
    Case(", alpha 0", 0.0, "plain"),
    Case(f", alpha {ALPHA:+g}", ALPHA, "edited"),
    Case(f", alpha {-ALPHA:+g}", -ALPHA, "edited"),
)


def gate_fault(spec: GraphSpec, run: Run, reference: Run, batches: tuple[int, ...] = BATCHES) -> str:
    """Where `run` strays from `reference` on feeds of a fixed seed, "" if it stays within the limits.

    A reference that gives NaN or infinity on them is a fault as well: nothing can be said about such a graph.
    """
    names = {tensor.name for tensor in spec.inputs}
    cases = CASES if names & {*STRENGTHS, STYLES} else (PLAIN,)
    free = any("N" in tensor.shape for tensor in spec.inputs)
    for batch in batches if free else (1,):
        for case in cases:
            fed = feeds(spec, batch, case.alpha)
            found, wanted = run(fed), reference(fed)
            for name, expected in wanted.items():
                fault = _fault(name, found[name], expected, case.limit)
                if fault:
                    return f"output {name!r} at batch {batch}{case.name}: {fault}"
    return ""


def feeds(spec: GraphSpec, batch: int, alpha: float = 0.0) -> dict[str, np.ndarray]:
    """Inputs of a graph by name, the same in every call, in the range that each has by its name.

    Args:
        spec: the graph; a free dimension becomes `batch`.
        batch: number of samples.
        alpha: strength of the edit; also moves style vectors, where the graph takes them without a strength.
    """
    rng = np.random.default_rng(batch)
    return {tensor.name: _draw(tensor, batch, alpha, rng) for tensor in spec.inputs}


def _draw(tensor: TensorSpec, batch: int, alpha: float, rng: np.random.Generator) -> np.ndarray:
    shape = tuple(batch if isinstance(size, str) else size for size in tensor.shape)
    if np.dtype(tensor.dtype).kind != "f":
        return rng.integers(0, 2 if tensor.dtype == "bool" else 4, shape).astype(tensor.dtype)
    if tensor.name in STRENGTHS:
        return np.full(shape, alpha, tensor.dtype)
    return _FEEDS.get(tensor.name, _normal)(rng, shape, alpha).astype(tensor.dtype)


def _normal(rng: np.random.Generator, shape: tuple[int, ...], alpha: float) -> np.ndarray:
    return rng.standard_normal(shape)


def _latents(rng: np.random.Generator, shape: tuple[int, ...], alpha: float) -> np.ndarray:
    """w+ [N,L,W] as the mapping network gives it: one w for all layers of a sample."""
    one = rng.standard_normal((shape[0], *(1 for _ in shape[1:-1]), shape[-1]))
    return np.broadcast_to(one, shape)


def _styles(rng: np.random.Generator, shape: tuple[int, ...], alpha: float) -> np.ndarray:
    """s [N,S] around the 1 that affine maps start from; the edit moves some channels, the strongest by a deviation."""
    moved = rng.uniform(-1, 1, shape) * (rng.random(shape) < MOVED_SHARE)
    return 1 + STYLE_SPREAD * (rng.standard_normal(shape) + alpha * moved)


def _unit(rng: np.random.Generator, shape: tuple[int, ...], alpha: float) -> np.ndarray:
    vectors = rng.standard_normal(shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _thresholds(rng: np.random.Generator, shape: tuple[int, ...], alpha: float) -> np.ndarray:
    return np.resize(np.array(THRESHOLDS), shape)


def _within(low: float, high: float) -> Callable[[np.random.Generator, tuple[int, ...], float], np.ndarray]:
    return lambda rng, shape, alpha: rng.uniform(low, high, shape)


_FEEDS: dict[str, Callable[[np.random.Generator, tuple[int, ...], float], np.ndarray]] = {
    "w": _latents,
    STYLES: _styles,
    "delta_t": _unit,
    "beta": _thresholds,
    "psi": _within(0.0, 1.0),
    "image": _within(-1.0, 1.0),
    "rgb": _within(-1.0, 1.0),
}


def _fault(name: str, found: np.ndarray, expected: np.ndarray, limit: str) -> str:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return f"{found.dtype} {list(found.shape)}, expected {expected.dtype} {list(expected.shape)}"
    if not np.isfinite(expected).all():
        return "the reference itself gives NaN or infinity; the graph or its weights are at fault, export it again"
    if not np.isfinite(found).all():
        return "holds NaN or infinity"
    if expected.dtype == np.uint8 or (name == PICTURE and expected.dtype.kind == "f"):
        least, floor = min(_psnr_db(found, expected)), MIN_PSNR_DB[limit]
        return "" if least >= floor else f"PSNR {least:.1f} dB, at least {floor:.0f} dB are needed"
    error = np.linalg.norm(found.astype(np.float64) - expected.astype(np.float64))
    relative = error / max(float(np.linalg.norm(expected.astype(np.float64))), 1e-12) if error else 0.0
    most = MAX_RELATIVE_ERROR if expected.dtype.kind == "f" else 0.0
    return "" if relative <= most else f"relative error {relative:.1e}, at most {most:.0e} is allowed"


def _psnr_db(found: np.ndarray, expected: np.ndarray) -> Iterator[float]:
    """PSNR in dB of every picture as it is shown: levels 0..255, or -1..1 after clipping."""
    peak = 255.0 if expected.dtype == np.uint8 else 2.0
    for one, other in zip(found, expected, strict=True):
        shown = [np.asarray(a, np.float64) if a.dtype == np.uint8 else np.clip(a.astype(np.float64), -1, 1)
                 for a in (one, other)]  # fmt: skip
        mean_square = float(np.mean((shown[0] - shown[1]) ** 2))
        yield 10 * np.log10(peak**2 / mean_square) if mean_square else np.inf
