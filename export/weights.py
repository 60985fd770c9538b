"""Weights of exported graphs: stored once for all graphs, and as fp16 wherever that loses nothing.

A pack stores fp16, and a traced graph holds fp16 values times a gain (equalised learning rate, folded batch norm).
Where an initialiser equals `float32(h) * g` bit for bit for fp16 h and a known g, h and g are stored and the graph
multiplies; a runtime folds that product when it loads the graph. Anything else stays float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn

F32 = NDArray[np.float32]
EXTERNAL_BYTES = 1024
"""Initialisers from this size on live in the shared file."""
PAGE, PAGE_BYTES = 4096, 1 << 16
"""Tensors from PAGE_BYTES on start at a multiple of PAGE, so that a runtime can map them."""


def known_gains(module: nn.Module) -> list[F32]:
    """Factors that a trace may fold into weights: gains and noise strengths (scalars), batch-norm scales (vectors)."""
    scalars: set[float] = set()
    vectors: list[F32] = []
    for part in module.modules():
        scalars.update(value for value in vars(part).values() if isinstance(value, float) and 0 < abs(value) < 1e6)
        scalars.update(float(p) for p in part.parameters(recurse=False) if p.ndim == 0)
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)) and part.running_var is not None:
            spread = np.sqrt(part.running_var.numpy() + part.eps)
            vectors.append((part.weight.detach().numpy() / spread).astype(np.float32))
    gains = [np.asarray(value, dtype=np.float32) for value in sorted(scalars) if value not in (0.0, 1.0)]
    return gains + vectors


def factor(array: F32, gains: Sequence[F32]) -> tuple[NDArray[np.float16], F32 | None] | None:
    """(h, g) with array == float32(h) * g bit for bit, g None for 1; None where no known gain gives that."""
    for gain in (None, *gains):
        if gain is not None and gain.ndim == 1:
            if gain.shape[0] != array.shape[0] or not gain.all():
                continue
            gain = gain.reshape(-1, *[1] * (array.ndim - 1))
        # One row first: most candidates fail there.
        if halves(array[:1], gain[:1] if gain is not None and gain.ndim else gain) is not None:
            half = halves(array, gain)
            if half is not None:
                return half, gain
    return None


def halves(array: F32, gain: F32 | None) -> NDArray[np.float16] | None:
    """fp16 h with float32(h) * gain == array exactly, or None."""
    with np.errstate(over="ignore", invalid="ignore"):
        half = (array if gain is None else array / gain).astype(np.float16)
        back = half.astype(np.float32)
        back = back if gain is None else back * gain
    return half if np.array_equal(back, array) else None


class WeightFile:
    """One external-data file for many graphs; the same bytes are written once."""

    def __init__(self, path: Path):
        self.path = path
        self.offsets: dict[str, int] = {}
        self.stream = path.open("wb")

    def put(self, data: bytes | memoryview) -> int:
        """The offset of `data` in the file, appended unless it is already there."""
        key = hashlib.sha256(data).hexdigest()
        if key not in self.offsets:
            alignment = PAGE if len(data) >= PAGE_BYTES else 64
            self.stream.write(b"\0" * (-self.stream.tell() % alignment))
            self.offsets[key] = self.stream.tell()
            self.stream.write(data)
        return self.offsets[key]

    def tensor(self, name: str, array: NDArray[Any]) -> ir.ExternalTensor:
        """An ONNX tensor whose values are in the file, little-endian and row-major."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        dtype = ir.DataType.from_numpy(array.dtype)
        return ir.ExternalTensor(
            self.path.name, self.put(data), len(data), dtype, shape=ir.Shape(array.shape), name=name
        )

    def take(self, model: ir.Model, gains: Sequence[F32]) -> None:
        """Moves the large initialisers of a traced model into the file; what is saved of it must stand beside.

        One that factors (see `factor`) becomes its fp16 part, a Cast, and a Mul by the gain. Nothing larger than one
        tensor is copied, and no proto of the whole model ever exists: protobuf ends at 2 GB.
        """
        graph = model.graph
        for name, value in list(graph.initializers.items()):
            if value.const_value is None or value.const_value.nbytes < EXTERNAL_BYTES:
                continue
            array = value.const_value.numpy()
            found = factor(array, gains) if array.dtype == np.float32 else None
            if found is None:
                value.const_value = self.tensor(name, array)
                continue
            half, gain = found
            stored = initialiser(graph, self.tensor(f"{name}.f16", half))
            nodes = [ir.node("Cast", [stored], {"to": ir.DataType.FLOAT.value})]
            if gain is not None:
                nodes.append(ir.node("Mul", [nodes[0].outputs[0], self.scale(graph, f"{name}.gain", gain)]))
            graph.initializers.pop(name)
            value.replace_all_uses_with(nodes[-1].outputs[0])
            nodes[0].outputs[0].name, nodes[-1].outputs[0].name = f"{name}.f32", name
            graph.insert_before(graph[0], nodes)
        self.stream.flush()

    def scale(self, graph: ir.Graph, name: str, gain: F32) -> ir.Value:
        """The gain of a factored weight as an initialiser: a scalar inside the graph, a long vector in the file."""
        large = gain.nbytes >= EXTERNAL_BYTES
        return initialiser(graph, self.tensor(name, gain) if large else ir.Tensor(gain, name=name))

    def close(self) -> None:
        """Ends the file."""
        self.stream.close()


def initialiser(graph: ir.Graph, tensor: ir.ExternalTensor | ir.Tensor) -> ir.Value:
    """Registers a tensor as an initialiser of the graph, under its own name."""
    value = ir.Value(
        name=tensor.name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def frozen_float32(module: nn.Module) -> bool:
    """Whether everything is on the CPU, parameters float32 and floating buffers float32 or, in typed forms, float16."""
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    typed = all(b.dtype in (torch.float32, torch.float16) for b in buffers)
    tensors = [*module.parameters(), *buffers]
    return typed and all(p.dtype == torch.float32 for p in module.parameters()) and all(t.is_cpu for t in tensors)
