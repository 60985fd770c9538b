"""Arrays that lie on the device, taken and given without a copy: `__cuda_array_interface__` (version 3) and DLPack."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np

from .device_memory import CUDA_DEVICE, Cuda
from .errors import InputError

_CAPSULE, _USED = b"dltensor", b"used_dltensor"
_KINDS = {0: "int", 1: "uint", 2: "float", 6: "bool"}
_LEGACY_STREAM = 1  # how both protocols write stream 0, whose number means "do not order" to one of them


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class _Type(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))

_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_api = ctypes.pythonapi
# A capsule that is being destroyed must not be counted again, so its destructor sees the bare address.
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _Destructor)(("PyCapsule_New", _api))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))
_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _api))
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_SetName", _api))


class DeviceView:
    """Device memory of somebody else's array: address, dtype and shape; `owner` keeps it alive.

    `stream` is where its content is being made; None if it is ready, or ordered already.
    """

    def __init__(self, address: int, dtype: str, shape: tuple[int, ...], owner: Any, stream: int | None = None) -> None:
        self.address, self.dtype, self.shape = address, dtype, shape
        self.owner, self.stream = owner, stream
        self.read_only = False


class DeviceArray:
    """An output on the device. It belongs to the caller: its memory is freed with the last reference to it.

    torch, CuPy, JAX and numba take it without a copy (`torch.as_tensor(y, device="cuda")`, `cupy.asarray(y)`,
    `torch.from_dlpack(y)`); `numpy()` copies it to the host.
    """

    def __init__(self, cuda: Cuda, dtype: str, shape: tuple[int, ...], stream: int) -> None:
        self.cuda, self.dtype, self.shape, self.stream = cuda, np.dtype(dtype), tuple(shape), stream
        self.nbytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        self.address = cuda.alloc(max(1, self.nbytes))
        free = weakref.finalize(self, _free, cuda, self.address)
        free.atexit = False  # the driver frees everything then, and may be gone before us

    def __repr__(self) -> str:
        return f"<DeviceArray {self.dtype} {list(self.shape)}>"

    def numpy(self) -> np.ndarray:
        """A copy on the host, after the work that makes it."""
        out = np.empty(self.shape, self.dtype)
        with self.cuda.current():
            self.cuda.copy_out(out.ctypes.data, self.address, self.nbytes, self.stream)
            self.cuda.wait(self.stream)
        return out

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "version": 3,
            "strides": None,
            "stream": self.stream or _LEGACY_STREAM,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.cuda.dlpack_type, self.cuda.ordinal

    def __dlpack__(self, stream: int | None = None, **_: Any) -> Any:
        """A capsule that holds this array; `stream` is the consumer's, which is made to wait. -1: it needs no order."""
        if stream not in (None, -1):
            with self.cuda.current():
                self.cuda.order(self.stream, 0 if stream == _LEGACY_STREAM else int(stream))
        elif stream is None:
            with self.cuda.current():
                self.cuda.wait(self.stream)
        return _capsule(self)


def device_view(value: Any, cuda: Cuda, stream: int, where: str) -> DeviceView:
    """The memory behind `value`, which any library that knows one of the two protocols made.

    Args:
        value: an array of torch, CuPy, JAX, numba, PyCUDA (GPUArray), or a `DeviceArray`.
        cuda: the context it must lie in.
        stream: where it will be used; the work that makes it is ordered before that, or the view names its stream.
        where: how messages begin.

    Raises:
        InputError: it knows neither protocol, lies elsewhere, or has gaps between its elements.
    """
    interface = getattr(value, "__cuda_array_interface__", None)
    if interface is not None:
        return _from_interface(interface, value, where)
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        return _from_dlpack(value, cuda, stream, where)
    raise InputError(
        f"{where}: got {type(value).__name__}, expected an array on the device (__cuda_array_interface__ or DLPack); "
        "host arrays go to run()."
    )


def _from_interface(interface: dict[str, Any], owner: Any, where: str) -> DeviceView:
    dtype, shape = np.dtype(interface["typestr"]), tuple(int(size) for size in interface["shape"])
    strides = interface.get("strides")
    if strides is not None and not _contiguous(shape, list(strides), dtype.itemsize):
        raise InputError(f"{where}: its elements do not lie side by side; make it contiguous (C order) first.")
    stream = interface.get("stream")
    address, read_only = interface["data"]
    view = DeviceView(int(address or 0), dtype.name, shape, owner, None if stream is None else _plain_stream(stream))
    view.read_only = bool(read_only)
    return view


def _from_dlpack(value: Any, cuda: Cuda, stream: int, where: str) -> DeviceView:
    device = tuple(int(part) for part in value.__dlpack_device__())
    if device != (cuda.dlpack_type, cuda.ordinal):
        raise InputError(
            f"{where}: lies on DLPack device {device}, expected {(cuda.dlpack_type, cuda.ordinal)}; move it there, "
            "or give host arrays to run()."
        )
    on_cuda = cuda.dlpack_type == CUDA_DEVICE  # only then does the protocol have streams
    capsule = value.__dlpack__(stream=stream or _LEGACY_STREAM) if on_cuda else value.__dlpack__()
    if not _valid(id(capsule), _CAPSULE):
        raise InputError(f"{where}: {type(value).__name__} gave a capsule that is not {_CAPSULE.decode()!r}.")
    managed = ctypes.cast(_pointer(id(capsule), _CAPSULE), ctypes.POINTER(_Managed))
    _rename(id(capsule), _USED)  # from here on it is ours, and freed with `owner`
    owner = _Borrowed(managed)
    tensor = managed.contents.tensor
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    if tensor.strides and not _contiguous(shape, [tensor.strides[axis] for axis in range(tensor.ndim)], 1):
        raise InputError(f"{where}: its elements do not lie side by side; make it contiguous (C order) first.")
    kind, bits = _KINDS.get(tensor.dtype.code), tensor.dtype.bits
    name = "bool" if kind == "bool" else f"{kind or 'unknown'}{bits}"
    return DeviceView((tensor.data or 0) + tensor.byte_offset, name, shape, owner)


class _Borrowed:
    """A consumed DLPack tensor; its producer gets it back with the last reference."""

    def __init__(self, managed: Any) -> None:
        self.managed = managed

    def __del__(self) -> None:
        deleter = self.managed.contents.deleter
        if deleter:
            deleter(self.managed)


def _contiguous(shape: tuple[int, ...], strides: list[int], step: int) -> bool:
    """Whether strides are those of C order, `step` being one element; an axis of size 1 may have any."""
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def stream_handle(stream: Any) -> int:
    """The number of a caller's stream: an integer, or a stream of torch, CuPy, PyCUDA or cuda-core.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(stream, int) and not isinstance(stream, bool):
        return stream
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    for attribute in ("cuda_stream", "ptr", "handle"):  # torch, CuPy, PyCUDA
        if hasattr(stream, attribute):
            return int(getattr(stream, attribute))
    raise InputError(f"stream: got {type(stream).__name__}, expected a CUDA stream or its handle as an integer.")


def _plain_stream(stream: int) -> int:
    """A stream's handle from how the protocols write it."""
    return 0 if stream == _LEGACY_STREAM else stream


_exported: dict[int, tuple[Any, ...]] = {}


def _capsule(array: DeviceArray) -> Any:
    """`array` as a DLPack capsule; the array lives until the capsule's consumer is done with it."""
    kinds = {"i": 0, "u": 1, "f": 2, "b": 6}
    shape = (ctypes.c_int64 * max(1, len(array.shape)))(*array.shape)
    managed = _Managed()
    managed.tensor.data, managed.tensor.ndim = array.address, len(array.shape)
    managed.tensor.device = _Device(*array.__dlpack_device__())
    managed.tensor.dtype = _Type(kinds[array.dtype.kind], array.dtype.itemsize * 8, 1)
    managed.tensor.shape = ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64))
    managed.deleter = _delete
    _exported[ctypes.addressof(managed)] = (managed, shape, array)
    return _new(ctypes.addressof(managed), _CAPSULE, _drop)


@_Deleter
def _delete(managed: Any) -> None:
    """Called by the consumer when it is done."""
    _exported.pop(ctypes.addressof(managed.contents), None)


@_Destructor
def _drop(capsule: int) -> None:
    """A capsule that nobody consumed."""
    if _valid(capsule, _CAPSULE):
        _exported.pop(_pointer(capsule, _CAPSULE), None)


def _free(cuda: Cuda, address: int) -> None:
    with cuda.current():
        cuda.free(address)
