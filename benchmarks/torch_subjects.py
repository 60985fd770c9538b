"""PyTorch subjects: the original, its faster forms, torch.compile, and AOTInductor packages, on CPU and CUDA."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..export.modules import to_u8
from .aoti import export_graph, load_package, package_of
from .baseline import Technique, Variant, original_edit
from .network import load_network
from .subjects import Subject, SubjectSpec
from .workload import FEEDS, TASKS, TYPED, Workload

Callee = Callable[..., Tensor]


class Synthesize(nn.Module):
    """s [N, S] -> uint8 [N, R, R, 3]."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.variant = variant

    def forward(self, s: Tensor) -> Tensor:
        """Synthesis and pixels in one graph."""
        return to_u8(self.variant(s))


class Edit(nn.Module):
    """The fused edit: w, delta_t, alpha, beta -> uint8 [N, R, R, 3]."""

    table: Tensor
    sigma: Tensor

    def __init__(self, variant: Variant, table: Tensor, sigma: Tensor) -> None:
        super().__init__()
        self.variant = variant
        self.register_buffer("table", table)
        self.register_buffer("sigma", sigma)

    def forward(self, w: Tensor, delta_t: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        """s' = s + alpha * sigma * d, d as in section 6 of the paper."""
        relevance = delta_t @ self.table.T
        kept = torch.where(relevance.abs() >= beta[:, None], relevance, 0.0)
        peak = kept.abs().amax(dim=1, keepdim=True)
        delta_s = self.sigma * kept / torch.where(peak > 0, peak, 1.0)
        return to_u8(self.variant(self.variant.styles(w) + alpha[:, None] * delta_s))


class TorchSubject(Subject):
    """A variant of the generator in PyTorch, as it is or compiled; or the export's graph as an AOTInductor package."""

    module: nn.Module
    variant: Variant

    def __init__(self, spec: SubjectSpec, workload: Workload) -> None:
        super().__init__(spec, workload)
        torch.set_num_threads(spec.threads)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False  # FP32 rows are FP32; FP16 has rows of its own
        torch.backends.cudnn.benchmark = spec.device == "cuda"
        network = load_network(workload.spec)
        technique = Technique(**dict.fromkeys(spec.technique, True), half=spec.precision == "fp16")
        self.table, self.sigma = network.directions, network.sigma
        self.host_edit = spec.task == "edit" and spec.kind == "torch" and not technique.folded
        if spec.kind == "aoti":
            graph = export_graph(network, TASKS[spec.task], spec.precision, workload.path / TYPED)
            self.module = graph.module.to(spec.device)
        else:
            self.variant = Variant(network.generator, technique).to(spec.device)
            if technique.half:
                self.variant = self.variant.to(memory_format=torch.channels_last)
            self.module = self._module().to(spec.device).eval()
        self.callee: Callee = self.module
        self.inputs: list[Tensor] = []
        self.pinned: list[Tensor] = []
        self.out: Tensor | None = None
        if spec.compiled and self.host_edit:
            self.variant.forward = torch.compile(self.variant.forward, **_mode(spec))  # type: ignore[method-assign]
        elif spec.compiled:
            self.callee = torch.compile(self.module, **_mode(spec))

    def _module(self) -> nn.Module:
        return (
            Synthesize(self.variant) if self.spec.task == "synthesize" else Edit(self.variant, self.table, self.sigma)
        )

    def feed(self, batch: int) -> None:
        """Host arrays, pinned and with device buffers beside them on CUDA; a package is built for the batch."""
        super().feed(batch)
        self.feeds = {name: self.feeds[name] for name in FEEDS[self.spec.task]}
        self.pinned = [torch.from_numpy(a) for a in self.feeds.values()]
        if self.spec.device == "cuda":
            self.pinned = [tensor.pin_memory() for tensor in self.pinned]
        self.inputs = [tensor.to(self.spec.device) for tensor in self.pinned]
        self.out = None
        if self.spec.kind == "aoti":
            inputs = tuple(self.inputs)
            self.callee = load_package(package_of(self.module, inputs), inputs)

    def call(self) -> Any:
        """Host to host."""
        if self.host_edit:
            table, sigma = self.table.numpy(), self.sigma.numpy()
            return original_edit(self.variant, table, sigma, self.feeds, self.spec.device)
        with torch.no_grad():
            if self.spec.device == "cpu":
                return self.callee(*self.inputs).numpy()
            self._upload()
            result = self.callee(*self.inputs)
            return self._download(result).numpy()

    def picture(self) -> np.ndarray:
        """A copy: a compiled graph may give the same memory on every call."""
        return np.array(self.call())

    def _upload(self) -> None:
        for device, host in zip(self.inputs, self.pinned, strict=True):
            device.copy_(host, non_blocking=True)

    def _download(self, result: Tensor) -> Tensor:
        if self.out is None:
            self.out = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
        self.out.copy_(result, non_blocking=True)
        torch.cuda.synchronize()
        return self.out

    def split_ms(self, calls: int) -> dict[str, float]:
        """CUDA events around the copies and the computation; medians."""
        if self.spec.device != "cuda" or self.host_edit:
            return {}
        laps = []
        for _ in range(calls):
            events = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
            with torch.no_grad():
                events[0].record()
                self._upload()
                events[1].record()
                result = self.callee(*self.inputs)
                events[2].record()
                self._download(result)
                events[3].record()
            torch.cuda.synchronize()
            laps.append([a.elapsed_time(b) for a, b in itertools.pairwise(events)])
        middle = np.median(np.array(laps), axis=0)
        return dict(zip(("h2d_ms", "compute_ms", "d2h_ms"), map(float, middle), strict=True))

    def peak_device_bytes(self) -> int | None:
        """Peak of torch's allocator on CUDA."""
        return int(torch.cuda.max_memory_allocated()) if self.spec.device == "cuda" else None


def _mode(spec: SubjectSpec) -> dict[str, Any]:
    return {"dynamic": False} | ({} if spec.compiled == "default" else {"mode": spec.compiled})
