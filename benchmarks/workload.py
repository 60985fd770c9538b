"""A prepared folder that every worker process reads: graphs, feeds, reference pictures and sizes. No torch.

workload.json   what it is, the sizes of the network, the graphs' files
inputs.npz      feeds: w, s, delta_t, alpha, beta
reference.npz   uint8 pictures of PyTorch in FP32 on the first feeds, one array per task
graphs/         ONNX: synthesize_u8, edit_global, heads and tails of a slider, matmul; graphs-fp16/ the same typed,
                and in typed.json its islands and scales
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.errors import BundleError
from .counts import Count, count
from .network import NetworkSpec

MANIFEST = "workload.json"
TASKS = {"synthesize": "synthesize_u8", "edit": "edit_global"}
FEEDS = {"synthesize": ("s",), "edit": ("w", "delta_t", "alpha", "beta"), "slider": ("s",)}
MATMUL = "matmul"
HEAD, TAIL = "synthesize_head/", "synthesize_tail/"
HALF = "fp16:"
"""Before the name of a graph that is typed in float16."""
TYPED = "graphs-fp16/typed.json"
"""{"islands": names of layers in float32, "scales": {tensor: power of two}} of the float16 graphs."""


@dataclass(frozen=True)
class Workload:
    """A prepared network. graphs: name -> file relative to `path`; channels: feature maps by resolution."""

    path: Path
    network: dict[str, Any]
    channels: dict[int, int]
    w_dim: int
    batch: int
    graphs: dict[str, str] = field(default_factory=dict)
    reference: str = ""
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """R, the side of the picture in pixels."""
        return max(self.channels)

    @property
    def spec(self) -> NetworkSpec:
        """The network's spec."""
        return NetworkSpec(**self.network)

    def file(self, graph: str) -> Path:
        """The ONNX file of a graph; BundleError if this workload lacks it."""
        if graph not in self.graphs:
            raise BundleError(f"the workload has no graph {graph!r}: {'; '.join(self.notes) or 'none was exported'}")
        return self.path / self.graphs[graph]

    def feeds(self, task: str, batch: int) -> dict[str, np.ndarray]:
        """Feeds of a task: the first `batch` rows, repeated where there are fewer."""
        with np.load(self.path / "inputs.npz") as file:
            arrays = {name: np.asarray(file[name]) for name in FEEDS[task]}
        return {name: np.ascontiguousarray(np.resize(a, (batch, *a.shape[1:]))) for name, a in arrays.items()}

    def expected(self, task: str) -> NDArray[np.uint8] | None:
        """Reference pictures [n, R, R, 3], None where there are none."""
        if not self.reference:
            return None
        with np.load(self.path / "reference.npz") as file:
            return np.asarray(file[task if task in file else "synthesize"])

    @property
    def cuts(self) -> tuple[str, ...]:
        """Layers from which a slider can start, lowest first."""
        return tuple(name.removeprefix(TAIL) for name in self.graphs if name.startswith(TAIL))

    def count(self, task: str, batch: int, itemsize: int = 4, start: str = "") -> Count:
        """FLOPs and least bytes of a run, of the layers from `start` on where one is named."""
        return count(self.channels, self.w_dim, batch, itemsize, styles=task == "edit", start=start)

    def save(self) -> None:
        """Write `workload.json`, the last file of a complete folder."""
        record = asdict(self) | {"path": "."}
        (self.path / MANIFEST).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read_workload(path: Path) -> Workload:
    """Read a prepared folder; BundleError if it is none."""
    try:
        record = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        channels = {int(r): int(c) for r, c in record.pop("channels").items()}
        return Workload(**record | {"path": path, "channels": channels, "notes": tuple(record["notes"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} is no prepared workload ({error}); delete it and run the bench again") from None


def accuracy(got: NDArray[np.uint8], expected: NDArray[np.uint8]) -> dict[str, float]:
    """PSNR in dB (peak 255; 200 for equal pictures) and the largest error in levels, over the pictures both have."""
    n = min(len(got), len(expected))
    error = np.abs(got[:n].astype(np.int16) - expected[:n].astype(np.int16)).astype(np.float64)
    mse = float(np.mean(error**2))
    psnr = 200.0 if mse == 0 else min(200.0, 10 * float(np.log10(255.0**2 / mse)))
    return {"psnr_db": round(psnr, 2), "max_level_error": float(error.max())}
