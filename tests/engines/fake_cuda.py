"""A stand-in for `cuda.bindings.driver` in host memory, stricter than the real one.

Streams really are asynchronous here: work waits in a queue until somebody synchronises. Whoever reads a result too
early, frees memory too early or twice, touches memory that is not there, calls without a current context or does in a
capture what may not be done there is found out.
"""
# ruff: noqa: N802

from __future__ import annotations

import ctypes
import enum
import threading
from collections import Counter


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_NOT_READY = 600
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


class Event:
    def __init__(self, timing=False):
        self.stream, self.passed, self.timing, self.at = None, True, timing, None


class Stream:
    def __init__(self):
        self.queue, self.capture, self.thread = [], None, 0


class FakeDriver:
    """One device. `live` and `pinned` are the allocations, `counts` the calls, `failures` name -> status to return."""

    class CUdevice_attribute(enum.IntEnum):  # noqa: N801
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76

    class CUstreamCaptureMode(enum.IntEnum):
        CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1

    PRIMARY = 0xC0
    ILLEGAL = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS

    def __init__(self, name=b"Test GPU\0\0", sm=(8, 9), host_context=0):
        self.name, self.sm, self.host_context = name, sm, host_context
        self.live, self.pinned, self.graphs, self.events = {}, {}, {}, set()
        self.streams = {0: Stream()}
        self.counts, self.failures = Counter(), {}
        self.local, self.lock = threading.local(), threading.RLock()
        self.next = 0x1000
        self.used_contexts = set()
        self.faults = []
        self.clock = 0  # every piece of work takes a millisecond, marks take none

    def __getattribute__(self, name):
        found = object.__getattribute__(self, name)
        if not name.startswith("cu") or not callable(found):
            return found

        def call(*arguments):
            with self.lock:
                self.counts[name] += 1
                if self.failures.get(name):
                    if name == "cuStreamEndCapture":  # it ends even when it fails
                        self.streams[arguments[0]].capture = None
                    return (self.failures[name],)
                if not name.startswith(("cuInit", "cuCtx", "cuDevice", "cuDriver")):
                    if not self.stack():
                        return (CUresult.CUDA_ERROR_INVALID_CONTEXT,)
                    self.used_contexts.add(self.stack()[-1])
                result = found(*arguments)
                if isinstance(result, CUresult):
                    return (result,)
                return (CUresult.CUDA_SUCCESS,) if result is None else (CUresult.CUDA_SUCCESS, result)

        return call

    def stack(self):
        if not hasattr(self.local, "stack"):
            self.local.stack = [self.host_context] if self.host_context else []
        return self.local.stack

    def handle(self):
        self.next += 0x10
        return self.next

    # contexts and device
    def cuInit(self, flags):
        return None

    def cuCtxGetCurrent(self):
        return self.stack()[-1] if self.stack() else 0

    def cuDeviceGet(self, ordinal):
        return 0 if ordinal == 0 else CUresult.CUDA_ERROR_INVALID_VALUE

    def cuDevicePrimaryCtxRetain(self, device):
        return self.PRIMARY

    def cuCtxPushCurrent(self, context):
        self.stack().append(context)

    def cuCtxPopCurrent(self):
        return self.stack().pop()

    def cuCtxGetDevice(self):
        return 0

    def cuDeviceGetName(self, length, device):
        return self.name

    def cuDeviceGetAttribute(self, attribute, device):
        return self.sm[0] if attribute == 75 else self.sm[1]

    def cuDriverGetVersion(self):
        return 13000

    # memory
    def cuMemAlloc(self, nbytes):
        block = (ctypes.c_uint8 * (nbytes + 256))()
        ctypes.memset(block, 0xAB, nbytes + 256)
        address = (ctypes.addressof(block) + 255) // 256 * 256
        self.live[address] = (block, nbytes)
        return address

    def cuMemFree(self, address):
        here = threading.get_ident()
        if any(s.capture is not None and s.thread == here for s in self.streams.values()):
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
        for stream in list(self.streams.values()):
            self.drain(stream)
        return None if self.live.pop(address, None) else CUresult.CUDA_ERROR_INVALID_VALUE

    def cuMemHostAlloc(self, nbytes, flags):
        block = (ctypes.c_uint8 * nbytes)()
        self.pinned[ctypes.addressof(block)] = (block, nbytes)
        return ctypes.addressof(block)

    def cuMemFreeHost(self, address):
        return None if self.pinned.pop(address, None) else CUresult.CUDA_ERROR_INVALID_VALUE

    def inside(self, address, nbytes):
        """Whether the range lies in one living allocation of the device."""
        return any(start <= address and address + nbytes <= start + size for start, (_, size) in self.live.items())

    def cuMemcpyHtoDAsync(self, device, host, nbytes, stream):
        return self.enqueue(stream, lambda: self.copy(device, host, nbytes, device))

    def cuMemcpyDtoHAsync(self, host, device, nbytes, stream):
        return self.enqueue(stream, lambda: self.copy(host, device, nbytes, device))

    def copy(self, to, source, nbytes, device):
        if not self.inside(device, nbytes):
            return CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
        ctypes.memmove(to, source, nbytes)
        return None

    # streams and events
    def cuStreamCreate(self, flags):
        stream = self.handle()
        self.streams[stream] = Stream()
        return stream

    def cuStreamDestroy(self, stream):
        self.drain(self.streams[stream])
        del self.streams[stream]

    def enqueue(self, handle, work):
        """Queue `work`; its error comes out where somebody waits, as on a real device."""
        stream = self.streams.get(handle)
        if stream is None:
            return CUresult.CUDA_ERROR_INVALID_VALUE
        (stream.queue if stream.capture is None else stream.capture).append(work)
        return None

    def drain(self, stream, until=None):
        while stream.queue and not (until is not None and until.passed):
            fault = stream.queue.pop(0)()
            self.clock += 1
            if isinstance(fault, CUresult):
                self.faults.append(fault)
        return self.faults[0] if self.faults else None

    def cuStreamSynchronize(self, handle):
        stream = self.streams[handle]
        if stream.capture is not None:
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
        return self.drain(stream)

    def cuEventCreate(self, flags):
        event = Event(timing=not flags & 2)
        self.events.add(event)
        return event

    def cuEventRecord(self, event, handle):
        event.stream, event.passed = self.streams[handle], False
        mark = Event()  # a later record of the same event must not be taken for this one
        mark.passed = False
        event.mark = mark

        def passing():
            mark.passed = True
            event.at = self.clock
            self.clock -= 1
            if event.mark is mark:
                event.passed = True

        return self.enqueue(handle, passing)

    def cuStreamWaitEvent(self, handle, event, flags):
        source, mark = event.stream, getattr(event, "mark", None)
        return self.enqueue(handle, lambda: self.drain(source, mark) if mark is not None else None)

    def cuEventSynchronize(self, event):
        return self.drain(event.stream, event.mark) if event.stream else None

    def cuEventElapsedTime(self, begin, end):
        if not (begin.timing and end.timing):
            return CUresult.CUDA_ERROR_INVALID_VALUE
        return end.at - begin.at if begin.passed and end.passed else CUresult.CUDA_ERROR_NOT_READY

    def cuEventDestroy(self, event):
        self.events.remove(event)

    # graphs
    def cuStreamBeginCapture(self, handle, mode):
        if handle == 0:
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
        self.streams[handle].capture, self.streams[handle].thread = [], threading.get_ident()
        return None

    def cuStreamEndCapture(self, handle):
        stream = self.streams[handle]
        work, stream.capture = stream.capture, None
        graph = self.handle()
        self.graphs[graph] = work
        return graph

    def cuGraphInstantiate(self, graph, flags):
        made = self.handle()
        self.graphs[made] = list(self.graphs[graph])
        return made

    def cuGraphLaunch(self, graph, stream):
        for work in self.graphs[graph]:
            self.enqueue(stream, work)

    def cuGraphDestroy(self, graph):
        del self.graphs[graph]

    def cuGraphExecDestroy(self, graph):
        del self.graphs[graph]

    def leftovers(self):
        """What was made and not given back."""
        streams = {handle for handle in self.streams if handle}
        return {
            name: len(things)
            for name, things in (
                ("device", self.live),
                ("pinned", self.pinned),
                ("graphs", self.graphs),
                ("events", self.events),
                ("streams", streams),
            )
            if things
        }
