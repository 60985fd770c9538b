"""A deserialised TensorRT plan: what it takes and gives, its profiles, and new execution contexts."""

from __future__ import annotations

from typing import Any

from . import nvinfer
from .device_memory import Cuda
from .errors import EngineError
from .spec import GraphSpec, TensorSpec


class Plan:
    """A deserialised engine: what it takes and gives, and which of its profiles serves a batch.

    Attributes:
        spec: named `name`; a free batch is called "N" in all of its tensors.
        largest: the largest batch of one call; 0 where every shape is fixed.
        shapes: batch -> shapes of all tensors, of the batches that were ever prepared.
    """

    def __init__(self, trt: Any, cuda: Cuda, plan: bytes, name: str) -> None:
        """Deserialise `plan`, bytes that this process built or authenticated; never any others.

        Raises:
            EngineError: the library refuses it, for example on a card that it does not support.
        """
        self.trt, self.cuda = trt, cuda
        self.journal = nvinfer.journal(trt)
        self.journal.take()
        self.runtime = trt.Runtime(self.journal)
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            why = self.journal.take() or "it gave no reason"
            raise EngineError(f"{nvinfer.product(trt)} cannot load its plan of {name!r}: {why}")
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        given = trt.TensorIOMode.INPUT
        inputs = [name for name in names if self.engine.get_tensor_mode(name) == given]
        outputs = [name for name in names if name not in inputs]
        self.spec = GraphSpec(name, tuple(map(self._tensor, inputs)), tuple(map(self._tensor, outputs)))
        self.batched = [tensor.name for tensor in self.spec.inputs if "N" in tensor.shape]
        self.ranges = self._ranges()
        self.largest = max((high for _, high in self.ranges), default=0)
        self.shapes: dict[int, dict[str, tuple[int, ...]]] = {}

    def _tensor(self, name: str) -> TensorSpec:
        shape = tuple(self.engine.get_tensor_shape(name))
        free = tuple("N" if size < 0 and axis == 0 else int(size) for axis, size in enumerate(shape))
        return TensorSpec(name, nvinfer.numpy_dtype(self.engine.get_tensor_dtype(name)), free)

    def _ranges(self) -> list[tuple[int, int]]:
        """(smallest, largest) batch of each profile."""
        if not self.batched:
            return []
        shapes = (
            self.engine.get_tensor_profile_shape(self.batched[0], index)
            for index in range(self.engine.num_optimization_profiles)
        )
        return [(int(low[0]), int(high[0])) for low, _, high in shapes]

    def profile(self, batch: int) -> int:
        """The profile for `batch`: the one that is tuned most narrowly around it."""
        fitting = [(high - low, index) for index, (low, high) in enumerate(self.ranges) if low <= batch <= high]
        if self.ranges and not fitting:
            raise EngineError(f"graph {self.spec.name!r}: no profile of its plan holds batch {batch}.")
        return min(fitting)[1] if fitting else 0

    def context(self) -> Any:
        """A new execution context without device memory of its own."""
        strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not nvinfer.is_rtx(self.trt):
            made = self.engine.create_execution_context(strategy)
        else:
            config = self.engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            # Kernels that are compiled in the middle of a capture would void it.
            eager = self.trt.DynamicShapesKernelSpecializationStrategy.EAGER
            config.dynamic_shapes_kernel_specialization_strategy = eager
            made = self.engine.create_execution_context(config)
        if made is None:
            raise self.error("no execution context could be made")
        return made

    def error(self, what: str) -> EngineError:
        """An error with the library's own words."""
        why = self.journal.take()
        return EngineError(f"graph {self.spec.name!r}: {what} in TensorRT{': ' if why else ''}{why}")
