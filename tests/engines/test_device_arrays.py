"""DLPack and `__cuda_array_interface__` against numpy, whose memory stands in for a device's."""

from __future__ import annotations

import gc
import sys

import numpy as np
import pytest

from styleclip_rt.engines import device_arrays
from styleclip_rt.engines.device_arrays import DeviceArray, device_view, stream_handle
from styleclip_rt.engines.device_memory import Cuda, CudaError, host_view, kernel_module
from styleclip_rt.engines.errors import InputError, MissingDependency


@pytest.fixture
def cuda(setup):
    with setup.cuda.current():
        yield setup.cuda


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int64", "int32", "int8", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(3, 4), (2, 1, 5), (1,), (1, 1)])
def test_numpys_arrays_are_seen_as_they_are(cuda, dtype, shape):
    array = (np.arange(np.prod(shape)).reshape(shape) % 2).astype(dtype)
    view = device_view(array, cuda, 0, "x")
    assert (view.dtype, view.shape, view.address) == (dtype, shape, array.ctypes.data)


def test_a_consumed_array_lives_until_we_are_done(cuda):
    array = np.ones((2, 3), np.float32)
    before = sys.getrefcount(array)
    view = device_view(array, cuda, 0, "x")
    assert sys.getrefcount(array) > before
    del view
    gc.collect()
    assert sys.getrefcount(array) == before


@pytest.mark.parametrize("change", [lambda a: a.T, lambda a: a[:, ::2], lambda a: a[::-1]])
def test_gaps_are_refused(cuda, change):
    with pytest.raises(InputError, match="x: its elements do not lie side by side"):
        device_view(change(np.zeros((4, 4), np.float32)), cuda, 0, "x")


def test_a_view_with_an_offset_starts_where_it_starts(cuda):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert device_view(array[1:], cuda, 0, "x").address == array.ctypes.data + 16


def test_arrays_on_another_device_are_refused(cuda):
    cuda.dlpack_type = 2
    with pytest.raises(InputError, match=r"x: lies on DLPack device \(1, 0\), expected \(2, 0\)"):
        device_view(np.zeros(3), cuda, 0, "x")


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8", "bool"])
def test_numpy_takes_ours_without_a_copy(cuda, setup, dtype):
    ours = DeviceArray(cuda, dtype, (2, 3), 0)
    content = (np.arange(6).reshape(2, 3) % 2).astype(dtype)
    host_view(ours.address, (2, 3), dtype)[...] = content
    theirs = np.from_dlpack(ours)
    assert theirs.ctypes.data == ours.address
    np.testing.assert_array_equal(theirs, content)
    del ours
    gc.collect()
    np.testing.assert_array_equal(theirs, content)
    assert setup.cuda.driver.leftovers() == {"device": 1}
    del theirs
    gc.collect()
    assert setup.cuda.driver.leftovers() == {}
    assert not device_arrays._exported


def test_a_capsule_that_nobody_takes_is_freed(cuda, setup):
    ours = DeviceArray(cuda, "float32", (2, 3), 0)
    capsule = ours.__dlpack__(stream=-1)
    del ours
    gc.collect()
    assert setup.cuda.driver.leftovers() == {"device": 1}
    del capsule
    gc.collect()
    assert setup.cuda.driver.leftovers() == {}
    assert not device_arrays._exported


def test_torch_takes_ours_without_a_copy(cuda):
    torch = pytest.importorskip("torch")
    ours = DeviceArray(cuda, "float32", (2, 3), 0)
    theirs = torch.from_dlpack(ours)
    assert (theirs.data_ptr(), tuple(theirs.shape)) == (ours.address, (2, 3))


def test_a_consumers_stream_is_made_to_wait(cuda, setup):
    driver = setup.cuda.driver
    stream, theirs = cuda.stream(), cuda.stream()
    ours, done = DeviceArray(cuda, "float32", (2,), stream), []
    driver.enqueue(stream, lambda: done.append("made"))
    ours.__dlpack__(stream=theirs)
    assert done == []
    driver.enqueue(theirs, lambda: done.append("used"))
    cuda.wait(theirs)
    assert done == ["made", "used"]
    driver.enqueue(stream, lambda: done.append("again"))
    ours.__dlpack__()  # no stream: it is ready when the call returns
    assert done[-1] == "again"
    assert ours.__cuda_array_interface__["stream"] == stream
    assert DeviceArray(cuda, "float32", (2,), 0).__cuda_array_interface__["stream"] == 1


def test_numpy_copies_after_the_work(cuda, setup):
    stream = cuda.stream()
    ours = DeviceArray(cuda, "float32", (2,), stream)
    setup.cuda.driver.enqueue(stream, lambda: host_view(ours.address, (2,), "float32").fill(7))
    np.testing.assert_array_equal(ours.numpy(), np.float32([7, 7]))
    assert repr(ours) == "<DeviceArray float32 [2]>"


@pytest.mark.parametrize("attribute", ["cuda_stream", "ptr", "handle"])
def test_streams_of_the_usual_libraries_are_known(attribute):
    assert stream_handle(type("Stream", (), {attribute: 77})()) == 77
    assert stream_handle(type("Stream", (), {"__cuda_stream__": lambda self: (0, 78)})()) == 78
    assert stream_handle(79) == 79
    with pytest.raises(InputError, match="got bool"):
        stream_handle(True)


def test_calls_of_the_driver_that_fail_are_named(cuda, setup, stand_in):
    setup.cuda.driver.failures["cuMemAlloc"] = stand_in.CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(CudaError, match=r"^CUDA: cuMemAlloc failed with CUDA_ERROR_OUT_OF_MEMORY$"):
        cuda.alloc(1 << 40)


def test_a_device_that_is_not_there_is_an_error(stand_in):
    with pytest.raises(CudaError, match="cuDeviceGet failed with CUDA_ERROR_INVALID_VALUE"):
        Cuda(stand_in.FakeDriver(), ordinal=3)


def test_without_cuda_bindings_the_line_that_mends_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingDependency, match=r"cuda-bindings cannot be imported .*run: python -m pip install 'cuda"):
        Cuda()


def test_the_real_bindings_without_a_driver_fail_cleanly():
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed")
    from styleclip_rt.engines.driver import cuda_driver

    if cuda_driver().devices:
        pytest.skip("there is a driver")
    with pytest.raises(CudaError, match=r"CUDA: cuInit cannot be called|CUDA: cuInit failed"):
        Cuda()


def test_the_real_bindings_have_every_function_that_is_called(root):
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    import re

    source = (root / "engines/device_memory.py").read_text()
    called = set(re.findall(r'"(cu[A-Z]\w+)"', source))
    assert len(called) > 25
    assert [name for name in called if not hasattr(driver, name)] == []
    assert int(driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) == 75
    assert hasattr(driver.CUstreamCaptureMode, "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL")


def test_the_card_as_the_key_of_a_plan_names_it(cuda, tmp_path):
    card = cuda.card()
    assert (card.name, card.sm, card.cuda) == ("Test GPU", "8.9", 13000)
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep\nGCC version: gcc 12.2.0\n")
    assert kernel_module(version) == "580.95.05"
    assert kernel_module(tmp_path / "absent") == ""
