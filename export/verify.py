"""Every exported graph against PyTorch in ONNX Runtime, at two batch sizes; out of tolerance nothing is published.

| metric         | graphs                         | value                              | limit            |
|----------------|--------------------------------|------------------------------------|------------------|
| max_abs_error  | image in -1..1                 | max |a - b|; PSNR beside it        | 1e-3 and 60 dB   |
| max_level_error| image_u8                       | max |a - b| in levels              | 1                |
| min_cosine     | unit embeddings                | min cosine over the batch          | at least 0.99999 |
| relative_error | latents, styles, directions    | max |a - b| / max |b|              | 1e-3             |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..engines.errors import ToleranceError
from .graphs import Graph
from .onnx_writer import feeds_as_numpy

Array = NDArray[Any]
BATCHES = (1, 3)
LARGE_BATCHES = (2,)
LARGE = 512 * 512
"""Pictures of 512 px and more are checked at one batch size above 1: at 1024 px one
takes seconds and half a GB, and what works for two and was traced for N works for one."""
MIN_PSNR_DB = 60.0


@dataclass(frozen=True)
class Metric:
    """How outputs are compared. `better` is "low" or "high"; `peak` is the value range for PSNR, None for none."""

    name: str
    tolerance: float
    measure: Callable[[Array, Array], float]
    better: str = "low"
    peak: float | None = None

    def passes(self, value: float) -> bool:
        """Whether a value is inside the tolerance; NaN never is."""
        return value <= self.tolerance if self.better == "low" else value >= self.tolerance


@dataclass(frozen=True)
class Check:
    """The worst figure of a graph over its outputs and batches."""

    metric: str
    value: float
    tolerance: float
    batch: int
    psnr_db: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The `check` entry of the bundle; figures with six digits."""
        return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in asdict(self).items() if v is not None}


def max_abs(a: Array, b: Array) -> float:
    """max |a - b|."""
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())


def relative(a: Array, b: Array) -> float:
    """max |a - b| over max |b| (over 1e-12 where b is all zero)."""
    return max_abs(a, b) / max(float(np.abs(b).max()), 1e-12)


def min_cosine(a: Array, b: Array) -> float:
    """The smallest cosine of corresponding rows; also 0 where a row is not of unit length within 1e-4."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=-1)
    if np.abs(norms - 1).max() > 1e-4:
        return 0.0
    return float((np.sum(a * b, axis=-1) / (norms * np.linalg.norm(b, axis=-1))).min())


def psnr_db(a: Array, b: Array, peak: float) -> float:
    """Peak signal-to-noise ratio in dB; 200 for equal arrays."""
    mse = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 200.0 if mse == 0 else min(200.0, 10 * math.log10(peak**2 / mse))


METRICS: dict[str, Metric] = {
    "image": Metric("max_abs_error", 1e-3, max_abs, peak=2.0),
    "u8": Metric("max_level_error", 1.0, max_abs, peak=255.0),
    "cosine": Metric("min_cosine", 0.99999, min_cosine, better="high"),
    "latent": Metric("relative_error", 1e-3, relative),
}


class OrtRunner:
    """One graph in ONNX Runtime on the CPU."""

    def __init__(self, path: Path, threads: int = 1):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, feeds: Mapping[str, object]) -> list[Array]:
        """The outputs, in the order of the file."""
        return [np.asarray(output) for output in self.session.run(None, dict(feeds))]


def check_graph(graph: Graph, path: Path, seed: int = 1) -> Check:
    """The worst figure of the graph file at `path` against its module; ToleranceError when it is outside the tolerance.

    Also raises ToleranceError for a wrong dtype, a wrong shape, NaN or infinity.
    """
    metric, run = METRICS[graph.metric], OrtRunner(path)
    checks = []
    for batch in LARGE_BATCHES if is_large(graph) else BATCHES:
        feeds = graph.feeds(batch, torch.Generator().manual_seed(seed + batch))
        with torch.no_grad():
            out = graph.module(*feeds)
        expected = [tensor.numpy() for tensor in (out if isinstance(out, tuple) else (out,))]
        got = run(feeds_as_numpy(graph, feeds))
        checks += [
            compare(f"{graph.name}: {spec.name} at batch {batch}", metric, a, b, batch)
            for spec, a, b in zip(graph.outputs, got, expected, strict=True)
        ]
    return worst(metric, checks)


def is_large(graph: Graph) -> bool:
    """Whether an output is a picture of at least LARGE pixels."""
    return any(math.prod(size for size in spec.shape if isinstance(size, int)) >= 3 * LARGE for spec in graph.outputs)


def compare(where: str, metric: Metric, got: Array, expected: Array, batch: int) -> Check:
    """One output of one batch as a Check; ToleranceError outside the tolerance."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        raise ToleranceError(f"{where} is {got.dtype} {got.shape}; PyTorch gives {expected.dtype} {expected.shape}")
    if not np.isfinite(got).all():
        raise ToleranceError(f"{where} holds NaN or infinity; the pack's weights or the exporter are at fault")
    value = metric.measure(got, expected)
    psnr = None if metric.peak is None else psnr_db(got, expected, metric.peak)
    if not metric.passes(value) or (metric.name == "max_abs_error" and psnr is not None and psnr < MIN_PSNR_DB):
        limit = "at most" if metric.better == "low" else "at least"
        extra = "" if psnr is None else f" (PSNR {psnr:.1f} dB)"
        raise ToleranceError(f"{where}: {metric.name} {value:.3g}{extra}; {limit} {metric.tolerance:g} is allowed")
    return Check(metric.name, value, metric.tolerance, batch, psnr)


def worst(metric: Metric, checks: list[Check]) -> Check:
    """The check with the largest error; of equal ones that with the larger batch."""
    sign = 1 if metric.better == "low" else -1
    return max(checks, key=lambda check: (sign * check.value, check.batch))
