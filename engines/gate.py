"""The accuracy gate: does an engine that was built on this machine compute what the graph says?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .spec import GraphSpec, TensorSpec

MAX_RELATIVE_ERROR = 1e-2
"""Of floating-point outputs, ||a - b|| / ||b||: stricter than 45 dB for images, a cosine of 0.9995 for embeddings."""
MIN_PSNR_DB = 45.0
"""Of uint8 outputs."""
BATCHES = (1, 3)
"""One with a profile of its own, one for the free profile."""
Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def gate_fault(spec: GraphSpec, run: Run, reference: Run, batches: tuple[int, ...] = BATCHES) -> str:
    """Where `run` strays from `reference` on random feeds, "" if it stays within the limits.

    Floats are drawn from a normal distribution with a fixed seed, integers are small; feeds on which the reference
    itself gives NaN or infinity are not counted.
    """
    free = any("N" in tensor.shape for tensor in spec.inputs)
    for batch in batches if free else (1,):
        rng = np.random.default_rng(batch)
        feeds = {tensor.name: _draw(tensor, batch, rng) for tensor in spec.inputs}
        found, wanted = run(feeds), reference(feeds)
        for name, expected in wanted.items():
            fault = _fault(found[name], expected)
            if fault:
                return f"output {name!r} at batch {batch}: {fault}"
    return ""


def _draw(tensor: TensorSpec, batch: int, rng: np.random.Generator) -> np.ndarray:
    shape = tuple(batch if isinstance(size, str) else size for size in tensor.shape)
    if np.dtype(tensor.dtype).kind == "f":
        return rng.standard_normal(shape).astype(tensor.dtype)
    return rng.integers(0, 2 if tensor.dtype == "bool" else 4, shape).astype(tensor.dtype)


def _fault(found: np.ndarray, expected: np.ndarray) -> str:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return f"{found.dtype} {list(found.shape)}, expected {expected.dtype} {list(expected.shape)}"
    if not np.isfinite(expected).all():
        return ""
    if not np.isfinite(found).all():
        return "holds NaN or infinity"
    error = np.linalg.norm(found.astype(np.float64) - expected.astype(np.float64))
    if expected.dtype == np.uint8:
        psnr = 20 * np.log10(255 * np.sqrt(expected.size) / error) if error else np.inf
        return "" if psnr >= MIN_PSNR_DB else f"PSNR {psnr:.1f} dB, at least {MIN_PSNR_DB:.0f} dB are needed"
    relative = error / max(float(np.linalg.norm(expected.astype(np.float64))), 1e-12) if error else 0.0
    limit = MAX_RELATIVE_ERROR if expected.dtype.kind == "f" else 0.0
    return "" if relative <= limit else f"relative error {relative:.1e}, at most {limit:.0e} is allowed"
