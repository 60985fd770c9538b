"""Memory, streams and graphs of one CUDA context, thin over the driver API of `cuda-bindings`.

The only module that imports `cuda`, when it is wanted. A context that is current when a `Cuda` is made (that of a host
application that uses pycuda, for example) is used as it is; else it is the primary one, that of torch and CuPy too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import EngineError, MissingDependency
from .nvinfer import MEND_CUDA
from .session import first_line

_NON_BLOCKING = 1  # a stream that does not wait for the legacy default stream
_NO_TIMING = 2  # an event that only orders
_PORTABLE = 1  # pinned memory that every context may use
_MODULE = Path("/proc/driver/nvidia/version")
CUDA_DEVICE = 2
"""DLPack's number for CUDA memory."""


@dataclass(frozen=True)
class Card:
    """The device, as the key of a plan names it: "NVIDIA H200", "9.0", the driver's own version, CUDA's as in 13000."""

    name: str
    sm: str
    driver: str
    cuda: int


class CudaError(EngineError):
    """A call of the driver failed."""


class Cuda:
    """One context. Calls belong inside `with cuda.current():`; errors are `EngineError` with CUDA's own words."""

    def __init__(self, driver: Any = None, ordinal: int = 0, dlpack_type: int = CUDA_DEVICE) -> None:
        """Take the current context, else the primary one of device `ordinal`.

        Args:
            driver: the module `cuda.bindings.driver`, or what stands in for it; None imports it.
            ordinal: the device, where no context is current.
            dlpack_type: what DLPack calls the memory of this device.

        Raises:
            MissingDependency: cuda-bindings is not installed.
            EngineError: the driver does not start, or has no such device.
        """
        self.driver = driver if driver is not None else bindings()
        self.dlpack_type = dlpack_type
        self.call("cuInit", 0)
        self.context = self.call("cuCtxGetCurrent")
        self.adopted = bool(int(self.context))
        if not self.adopted:
            self.context = self.call("cuDevicePrimaryCtxRetain", self.call("cuDeviceGet", ordinal))
        with self.current():
            self.ordinal = int(self.call("cuCtxGetDevice"))

    def call(self, name: str, *arguments: Any) -> Any:
        """One function of the driver: its result without the status, None if it gives nothing else."""
        try:
            status, *results = getattr(self.driver, name)(*arguments)
        except (RuntimeError, AttributeError) as error:  # cuda-bindings finds no driver, or one that is too old
            raise CudaError(f"CUDA: {name} cannot be called ({first_line(error)})") from error
        if int(status) != 0:
            raise CudaError(f"CUDA: {name} failed with {getattr(status, 'name', int(status))}")
        return results[0] if results else None

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the context current on this thread meanwhile; what was current before comes back."""
        self.call("cuCtxPushCurrent", self.context)
        try:
            yield
        finally:
            self.call("cuCtxPopCurrent")

    def card(self) -> Card:
        """What the device is."""
        device = self.call("cuDeviceGet", self.ordinal)
        name = self.call("cuDeviceGetName", 256, device)
        kinds = self.driver.CUdevice_attribute
        numbers = (
            kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
        sm = ".".join(str(int(self.call("cuDeviceGetAttribute", kind, device))) for kind in numbers)
        text = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
        return Card(text.rstrip("\0 "), sm, kernel_module(), int(self.call("cuDriverGetVersion")))

    def alloc(self, nbytes: int) -> int:
        """Address of `nbytes` of device memory, aligned to 256."""
        return int(self.call("cuMemAlloc", nbytes))

    def free(self, address: int) -> None:
        """Give it back; waits for work that uses it."""
        self.call("cuMemFree", address)

    def alloc_pinned(self, nbytes: int) -> int:
        """Address of `nbytes` of page-locked host memory, which copies reach without a detour."""
        return int(self.call("cuMemHostAlloc", nbytes, _PORTABLE))

    def free_pinned(self, address: int) -> None:
        """Give it back."""
        self.call("cuMemFreeHost", address)

    def copy_in(self, device: int, host: int, nbytes: int, stream: int) -> None:
        """Host to device; `host` is pinned and stays untouched until the stream has come past."""
        self.call("cuMemcpyHtoDAsync", device, host, nbytes, stream)

    def copy_out(self, host: int, device: int, nbytes: int, stream: int) -> None:
        """Device to host."""
        self.call("cuMemcpyDtoHAsync", host, device, nbytes, stream)

    def stream(self) -> int:
        """A stream of its own."""
        return int(self.call("cuStreamCreate", _NON_BLOCKING))

    def free_stream(self, stream: int) -> None:
        """Give it back, once its work is done."""
        self.call("cuStreamDestroy", stream)

    def wait(self, stream: int) -> None:
        """Block until all work of the stream is done; errors of that work come out here."""
        self.call("cuStreamSynchronize", stream)

    def event(self, timing: bool = False) -> Any:
        """A mark that streams can wait for; `timing`: one that `elapsed_ms` can take."""
        return self.call("cuEventCreate", 0 if timing else _NO_TIMING)

    def elapsed_ms(self, begin: Any, end: Any) -> float:
        """Milliseconds between two marks that have passed."""
        return float(self.call("cuEventElapsedTime", begin, end))

    def record(self, event: Any, stream: int) -> None:
        """Put the mark behind what the stream has now."""
        self.call("cuEventRecord", event, stream)

    def wait_event(self, event: Any, stream: int | None = None) -> None:
        """Let the stream, or with None this thread, wait for the mark; one never recorded holds nobody up."""
        if stream is None:
            self.call("cuEventSynchronize", event)
        else:
            self.call("cuStreamWaitEvent", stream, event, 0)

    def free_event(self, event: Any) -> None:
        """Give it back."""
        self.call("cuEventDestroy", event)

    def order(self, before: int, after: int) -> None:
        """Work put into the stream `after` from now on starts when what `before` has now is done."""
        event = self.event()
        try:
            self.record(event, before)
            self.wait_event(event, after)
        finally:
            self.free_event(event)  # the driver keeps it until it has passed

    def capture(self, work: Callable[[], None], stream: int) -> Any:
        """What `work` puts into the stream, as a graph that can be launched again and again; nothing is run.

        Raises:
            EngineError: `work` failed, or did what cannot be captured; the stream is as before.
        """
        mode = self.driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self.call("cuStreamBeginCapture", stream, mode)
        try:
            work()
        except BaseException:
            with suppress(EngineError):  # the capture is void; the first error is the one to tell
                self.call("cuGraphDestroy", self.call("cuStreamEndCapture", stream))
            raise
        graph = self.call("cuStreamEndCapture", stream)
        try:
            return self.call("cuGraphInstantiate", graph, 0)
        finally:
            self.call("cuGraphDestroy", graph)

    def launch(self, graph: Any, stream: int) -> None:
        """Run a captured graph."""
        self.call("cuGraphLaunch", graph, stream)

    def free_graph(self, graph: Any) -> None:
        """Give it back."""
        self.call("cuGraphExecDestroy", graph)


def bindings() -> Any:
    """The module `cuda.bindings.driver`.

    Raises:
        MissingDependency: it is not installed; the message has the line that mends it.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise MissingDependency(f"cuda-bindings cannot be imported ({first_line(error)}); run: {MEND_CUDA}") from error
    return driver


def kernel_module(path: Path = _MODULE) -> str:
    """Version of NVIDIA's kernel module as in 580.95.05, "" where it does not say (outside Linux)."""
    try:
        words = path.read_text(errors="replace").split()
    except OSError:
        return ""
    return next((word for word in words if word.count(".") >= 1 and word.replace(".", "").isdigit()), "")


def host_view(address: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """A numpy array over host memory that somebody else owns."""
    count = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(address)).view(dtype).reshape(shape)
