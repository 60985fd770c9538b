"""A TensorRT plan at work: contexts, buffers and captured graphs, each made once per shape and worker, then replayed.

A `Worker` belongs to one caller at a time: one stream, and a `Slot` per batch it has seen, with its own execution
context, scratch memory, buffers and CUDA graph (a captured graph is only good for the context state it was captured
in). A `Pool` lends workers.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any

import numpy as np

from .device_memory import CudaError, host_view
from .errors import EngineError
from .spec import TensorSpec
from .trt_plan import Plan

MAX_SLOTS = 6
"""Shapes that a worker keeps ready; the longest unused goes first. Each costs the activations of one batch."""
_MAX_SEEN = 64
Addresses = tuple[int, ...]


class Slot:
    """One batch size, ready to run: a context with its scratch memory, and the shape and size of every tensor."""

    def __init__(self, plan: Plan, batch: int, stream: int) -> None:
        self.plan, self.cuda = plan, plan.cuda
        self.graph: Any = None
        self.tried = False
        self.held: list[Any] = []
        self._owned: list[tuple[Any, Any]] = []
        try:
            self.done = self._own(self.cuda.event(), self.cuda.free_event)
            self.context = self._prepare(batch, stream)
            self.shapes = {tensor.name: self._shape(tensor.name) for tensor in self._tensors()}
            plan.shapes[batch] = self.shapes
        except BaseException:
            self.free()
            raise

    def _own(self, thing: Any, free: Any) -> Any:
        self._owned.append((free, thing))
        return thing

    def _tensors(self) -> tuple[TensorSpec, ...]:
        return (*self.plan.spec.inputs, *self.plan.spec.outputs)

    def _prepare(self, batch: int, stream: int) -> Any:
        context = self.plan.context()
        fits = context.set_optimization_profile_async(self.plan.profile(batch), stream)
        for tensor in self.plan.spec.inputs:
            shape = tuple(batch if size == "N" else size for size in tensor.shape)
            fits = fits and context.set_input_shape(tensor.name, shape)
        if not fits:
            raise self.plan.error(f"batch {batch} is refused")
        size = int(context.update_device_memory_size_for_shapes())
        if size > 0:
            context.set_device_memory(self._own(self.cuda.alloc(size), self.cuda.free), size)
        return context

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = tuple(int(size) for size in self.context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise self.plan.error(f"the shape of {name!r} is not known before a run")
        return shape

    def nbytes(self, tensor: TensorSpec) -> int:
        """Bytes of a tensor at this batch."""
        return int(np.prod(self.shapes[tensor.name], dtype=np.int64)) * np.dtype(tensor.dtype).itemsize

    def bind(self, addresses: Addresses) -> None:
        """Point every tensor, inputs first, at its memory."""
        for tensor, address in zip(self._tensors(), addresses, strict=True):
            if not self.context.set_tensor_address(tensor.name, address):
                raise self.plan.error(f"the memory of {tensor.name!r} is refused")

    def execute(self, stream: int) -> None:
        """Put one run into the stream."""
        if not self.context.execute_async_v3(stream):
            raise self.plan.error("failed")

    def try_capture(self, stream: int) -> None:
        """Capture what `step` does, once; where that cannot be, runs go on without a graph."""
        if self.tried:
            return
        self.tried = True
        capturable = getattr(self.context, "is_stream_capturable", None)
        if capturable is not None and not capturable(stream):
            return
        with suppress(EngineError):
            self.graph = self.cuda.capture(lambda: self.step(stream), stream)
            self._own(self.graph, self.cuda.free_graph)

    def step(self, stream: int) -> None:
        """What one run puts into the stream."""
        self.execute(stream)

    def go(self, stream: int) -> None:
        """One run: a replay where there is a graph."""
        if self.graph is None:
            self.step(stream)
        else:
            self.cuda.launch(self.graph, stream)

    def free(self) -> None:
        """Give everything back, the graph first; called when the device is done with it."""
        self.context = None
        while self._owned:
            free, thing = self._owned.pop()
            with suppress(EngineError):  # after a fault of the device nothing can be freed one by one
                free(thing)
        self.held.clear()


class HostSlot(Slot):
    """A slot for feeds on the host: pinned and device buffers for every tensor, copies inside the captured graph."""

    def __init__(self, plan: Plan, batch: int, stream: int) -> None:
        super().__init__(plan, batch, stream)
        try:
            self.device = {t.name: self._own(self.cuda.alloc(self.nbytes(t)), self.cuda.free) for t in self._tensors()}
            self.pinned = {
                t.name: self._own(self.cuda.alloc_pinned(self.nbytes(t)), self.cuda.free_pinned)
                for t in self._tensors()
            }
            self.bind(tuple(self.device[tensor.name] for tensor in self._tensors()))
        except BaseException:
            self.free()
            raise
        self.views = {t.name: host_view(self.pinned[t.name], self.shapes[t.name], t.dtype) for t in self._tensors()}

    def copies_in(self, stream: int) -> None:
        """Put the copies of the feeds into the stream."""
        for tensor in self.plan.spec.inputs:
            self.cuda.copy_in(self.device[tensor.name], self.pinned[tensor.name], self.nbytes(tensor), stream)

    def copies_out(self, stream: int) -> None:
        """Put the copies of the outputs into the stream."""
        for tensor in self.plan.spec.outputs:
            self.cuda.copy_out(self.pinned[tensor.name], self.device[tensor.name], self.nbytes(tensor), stream)

    def step(self, stream: int) -> None:
        """Copies in, the run, copies out."""
        self.copies_in(stream)
        self.execute(stream)
        self.copies_out(stream)

    def fill(self, feeds: dict[str, np.ndarray]) -> None:
        """Put checked feeds into the pinned memory."""
        for name, array in feeds.items():
            np.copyto(self.views[name], array)

    def split(self, feeds: dict[str, np.ndarray], stream: int) -> tuple[float, ...]:
        """Milliseconds of the copies in, the run and the copies out, by events in the stream; no graph is replayed."""
        self.fill(feeds)
        marks: list[Any] = []
        try:
            for part in (None, self.copies_in, self.execute, self.copies_out):
                if part is not None:
                    part(stream)
                marks.append(self.cuda.event(timing=True))
                self.cuda.record(marks[-1], stream)
            self.cuda.wait(stream)
            return tuple(self.cuda.elapsed_ms(begin, end) for begin, end in pairwise(marks))
        finally:
            for mark in marks:
                self.cuda.free_event(mark)

    def run(self, feeds: dict[str, np.ndarray], stream: int) -> dict[str, np.ndarray]:
        """Fresh arrays for checked feeds; blocks until they are there."""
        self.fill(feeds)
        self.go(stream)
        self.cuda.wait(stream)
        outputs = {tensor.name: self.views[tensor.name].copy() for tensor in self.plan.spec.outputs}
        self.try_capture(stream)  # after a first plain run, which makes what cannot be made while capturing
        return outputs


class Worker:
    """A stream and the slots that run on it, for one caller at a time."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.cuda = plan, plan.cuda
        self.stream = self.cuda.stream()
        self.slots: OrderedDict[tuple[Any, ...], Slot] = OrderedDict()
        self.seen: OrderedDict[tuple[Any, ...], None] = OrderedDict()

    def run(self, feeds: dict[str, np.ndarray], batch: int) -> dict[str, np.ndarray]:
        """Host to host."""
        with self._slot(HostSlot, ("host", batch), batch) as slot:
            assert isinstance(slot, HostSlot)  # by its key
            return slot.run(feeds, self.stream)

    def split(self, feeds: dict[str, np.ndarray], batch: int) -> tuple[float, ...]:
        """The parts of a run, host to host; see `HostSlot.split`."""
        with self._slot(HostSlot, ("host", batch), batch) as slot:
            assert isinstance(slot, HostSlot)  # by its key
            return slot.split(feeds, self.stream)

    def run_device(self, addresses: Addresses, batch: int, stream: int, held: list[Any]) -> None:
        """Put a run over the caller's own memory into `stream`; `held` keeps that memory alive until the next run.

        Addresses that come back, as those of a pool of buffers do, get a slot of their own with a captured graph.
        """
        own = ("device", batch, addresses)
        again = own in self.seen
        self.seen[own] = None
        while len(self.seen) > _MAX_SEEN:
            self.seen.popitem(last=False)
        with self._slot(Slot, own if again else ("device", batch), batch) as slot:
            self.cuda.wait_event(slot.done, stream)  # an earlier run may still use the slot's scratch memory
            if slot.graph is None:
                slot.bind(addresses)
            slot.go(stream)
            self.cuda.record(slot.done, stream)
            slot.held = held
            if again:
                slot.try_capture(self.stream)

    def shapes(self, batch: int) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors at `batch`."""
        if batch not in self.plan.shapes:
            with self._slot(Slot, ("device", batch), batch):
                pass  # making it has told them
        return self.plan.shapes[batch]

    @contextmanager
    def _slot(self, kind: type[Slot], key: tuple[Any, ...], batch: int) -> Iterator[Slot]:
        """The slot of `key`, made on first use; one in which a run failed is not used again."""
        try:
            if key not in self.slots:
                while len(self.slots) >= MAX_SLOTS:
                    self._drop(next(iter(self.slots)))
                self.slots[key] = kind(self.plan, batch, self.stream)
            self.slots.move_to_end(key)
            yield self.slots[key]
        except BaseException as error:
            self._drop(key)
            if isinstance(error, CudaError):
                raise EngineError(f"graph {self.plan.spec.name!r} failed in TensorRT: {error}") from error
            raise

    def _drop(self, key: tuple[Any, ...]) -> None:
        slot = self.slots.pop(key, None)
        if slot is None:  # it could not be made
            return
        with suppress(EngineError):
            self.cuda.wait_event(slot.done)
            self.cuda.wait(self.stream)
        slot.free()

    def free(self) -> None:
        """Give everything back, after the work in progress."""
        for key in list(self.slots):
            self._drop(key)
        with suppress(EngineError):
            self.cuda.free_stream(self.stream)


class Pool:
    """At most `limit` workers, made as they are wanted; a caller who finds all of them busy waits."""

    def __init__(self, plan: Plan, limit: int) -> None:
        self.plan = plan
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()  # the last one used is the one with warm slots
        self._room = threading.Semaphore(limit)
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def worker(self) -> Iterator[Worker]:
        """A worker of the caller's own meanwhile, with the context current."""
        with self._room, self.plan.cuda.current():
            try:
                worker = self._idle.get_nowait()
            except queue.Empty:
                worker = Worker(self.plan)
            try:
                yield worker
            finally:
                self._give(worker)

    def _give(self, worker: Worker) -> None:
        with self._lock:
            if not self._closed:
                self._idle.put(worker)
                return
        worker.free()

    def close(self) -> None:
        """Free the idle workers now and the busy ones when they come back."""
        with self._lock:
            self._closed = True
        with self.plan.cuda.current():
            while True:
                try:
                    self._idle.get_nowait().free()
                except queue.Empty:
                    return
