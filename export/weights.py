"""Weights of exported graphs: stored once for all graphs, and as fp16 wherever that loses nothing.

A pack stores fp16, and a traced graph holds fp16 values times a gain (equalised learning rate, folded batch norm).
Where an initialiser equals `float32(h) * g` bit for bit for fp16 h and a known g, h and g are stored and the graph
multiplies; a runtime folds that product when it loads the graph. Anything else stays float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
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


def store_as_fp16(model: onnx.ModelProto, gains: Sequence[F32]) -> None:
    """Replaces every float32 initialiser that factors by its fp16 part, a Cast, and a Mul by the gain, in place."""
    nodes, initialisers = [], []
    for tensor in model.graph.initializer:
        found = None
        if tensor.data_type == TensorProto.FLOAT and 4 * int(np.prod(tensor.dims)) >= EXTERNAL_BYTES:
            found = factor(numpy_helper.to_array(tensor), gains)
        if found is None:
            initialisers.append(tensor)
            continue
        half, gain = found
        initialisers.append(numpy_helper.from_array(half, f"{tensor.name}.f16"))
        cast = tensor.name if gain is None else f"{tensor.name}.f32"
        nodes.append(helper.make_node("Cast", [f"{tensor.name}.f16"], [cast], to=TensorProto.FLOAT))
        if gain is not None:
            initialisers.append(numpy_helper.from_array(gain, f"{tensor.name}.gain"))
            nodes.append(helper.make_node("Mul", [cast, f"{tensor.name}.gain"], [tensor.name]))
    rest = list(model.graph.node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(initialisers)
    model.graph.node.extend([*nodes, *rest])


class WeightFile:
    """One external-data file for many graphs; the same bytes are written once."""

    def __init__(self, path: Path):
        self.path = path
        self.offsets: dict[str, int] = {}
        self.stream = path.open("wb")

    def put(self, data: bytes) -> int:
        """The offset of `data` in the file, appended unless it is already there."""
        key = hashlib.sha256(data).hexdigest()
        if key not in self.offsets:
            alignment = PAGE if len(data) >= PAGE_BYTES else 64
            self.stream.write(b"\0" * (-self.stream.tell() % alignment))
            self.offsets[key] = self.stream.tell()
            self.stream.write(data)
        return self.offsets[key]

    def take(self, model: onnx.ModelProto) -> None:
        """Moves the large initialisers of `model` into the file; the model must be saved beside it."""
        for tensor in self.large(model):
            data = numpy_helper.to_array(tensor).tobytes()  # little-endian, row-major
            offset = self.put(data)
            tensor.ClearField("raw_data")
            for field in ("float_data", "int32_data", "int64_data", "external_data"):
                tensor.ClearField(field)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", self.path.name), ("offset", offset), ("length", len(data))):
                tensor.external_data.add(key=key, value=str(value))
        self.stream.flush()

    @staticmethod
    def large(model: onnx.ModelProto) -> Iterator[TensorProto]:
        """Initialisers that belong in the shared file."""
        for tensor in model.graph.initializer:
            width = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
            if int(np.prod(tensor.dims)) * width >= EXTERNAL_BYTES:
                yield tensor

    def close(self) -> None:
        """Ends the file."""
        self.stream.close()


def frozen_float32(module: nn.Module) -> bool:
    """Whether every parameter and floating buffer is float32 on the CPU, as export expects."""
    tensors = [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]
    return all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
