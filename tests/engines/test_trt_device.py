"""TensorRT over arrays that lie on the device: no copies, the right order, the caller's streams, checked types."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import numpy as np
import pytest

from styleclip_rt.engines.device_memory import host_view
from styleclip_rt.engines.errors import InputError


def batch(n, start=0.0):
    return np.arange(start, start + 4 * n, dtype=np.float32).reshape(n, 4)


class GpuArray:
    """What torch, CuPy and PyCUDA show of their arrays."""

    def __init__(self, array, stream=None, read_only=False, strides=None):
        self.array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.address, read_only),
            "strides": strides,
            "version": 3,
            "stream": stream,
        }


def test_device_arrays_go_in_and_come_out_without_a_copy(engine, setup, driver, tiny, on_device):
    feeds = {"x": on_device(batch(3))}
    driver.counts.clear()
    y = engine.run_device(feeds)["y"]
    assert driver.counts["cuMemcpyHtoDAsync"] == driver.counts["cuMemcpyDtoHAsync"] == 0
    np.testing.assert_allclose(y.numpy(), batch(3) @ tiny.weight, rtol=1e-5)
    out = on_device(np.zeros((3, 4), np.float32))
    results = engine.run_device({"x": GpuArray(feeds["x"])}, {"y": GpuArray(out)})
    assert results["y"].array is out
    np.testing.assert_allclose(out.numpy(), batch(3) @ tiny.weight, rtol=1e-5)


def test_the_callers_stream_is_used_as_it_is_and_not_waited_for(engine, setup, driver, tiny, on_device):
    with setup.cuda.current():
        stream = setup.cuda.stream()
    x, y = on_device(batch(2)), on_device(np.zeros((2, 4), np.float32))
    driver.counts.clear()
    for handle in (stream, SimpleNamespace(handle=stream), SimpleNamespace(cuda_stream=stream)):
        host_view(y.address, (2, 4), "float32")[...] = 0
        engine.run_device({"x": x}, {"y": y}, handle)
        assert driver.counts["cuStreamSynchronize"] == 0
        assert not host_view(y.address, (2, 4), "float32").any()  # queued, not run
        with setup.cuda.current():
            setup.cuda.wait(stream)
        np.testing.assert_allclose(host_view(y.address, (2, 4), "float32"), batch(2) @ tiny.weight, rtol=1e-5)
        driver.counts.clear()
    with pytest.raises(InputError, match="got str, expected a CUDA stream"):
        engine.run_device({"x": x}, None, "stream")


def test_arrays_that_the_caller_drops_live_until_the_next_run(engine, setup, driver, on_device):
    with setup.cuda.current():
        stream = setup.cuda.stream()
    x = on_device(batch(2))
    y = engine.run_device({"x": x}, None, stream)["y"]
    del x
    gc.collect()
    assert driver.counts["cuMemFree"] == 0  # the work is queued, its input must stay
    engine.run_device({"x": y}, None, stream)
    gc.collect()
    assert driver.counts["cuMemFree"] == 1  # x; what the second run writes into is held in turn


def test_two_streams_share_a_slot_one_after_the_other(engine, setup, driver, tiny, on_device):
    with setup.cuda.current():
        streams = [setup.cuda.stream(), setup.cuda.stream()]
    pairs = [(on_device(batch(2, i)), on_device(np.zeros((2, 4), np.float32))) for i in (0, 50)]
    for stream, (x, y) in zip(streams, pairs, strict=True):
        engine.run_device({"x": x}, {"y": y}, stream)
    with setup.cuda.current():
        setup.cuda.wait(streams[1])
    for (_, y), start in zip(pairs, (0, 50), strict=True):  # the second waited for the first
        np.testing.assert_allclose(host_view(y.address, (2, 4), "float32"), batch(2, start) @ tiny.weight, rtol=1e-5)


def test_a_producers_stream_is_waited_for_on_the_device(engine, setup, driver, tiny, on_device):
    with setup.cuda.current():
        producer = setup.cuda.stream()
    x = on_device(np.zeros((1, 4), np.float32))

    def produce():
        host_view(x.address, (1, 4), "float32")[...] = batch(1)

    driver.enqueue(producer, produce)
    y = engine.run_device({"x": GpuArray(x, stream=producer)})["y"]
    np.testing.assert_allclose(y.numpy(), batch(1) @ tiny.weight, rtol=1e-5)


def test_addresses_that_come_back_are_replayed(engine, setup, driver, tiny, on_device):
    x, y = on_device(batch(2)), on_device(np.zeros((2, 4), np.float32))
    for i in range(5):
        host_view(x.address, (2, 4), "float32")[...] = batch(2, i)
        engine.run_device({"x": x}, {"y": y})
        np.testing.assert_allclose(y.numpy(), batch(2, i) @ tiny.weight, rtol=1e-5)
    assert setup.trt.log.count("capture") == 1
    assert driver.counts["cuGraphLaunch"] == 3


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        (lambda x: {}, "missing x"),
        (lambda x: {"x": x, "t": x}, "unknown t"),
        (lambda x: {"x": batch(2)}, r"lies on DLPack|got ndarray, expected an array on the device"),
        (lambda x: {"x": [1.0]}, "got list, expected an array on the device"),
        (lambda x: {"x": GpuArray(x, strides=(4, 8))}, "do not lie side by side"),
    ],
)
def test_wrong_arrays_are_named(engine, setup, feeds, message, on_device):
    if "ndarray" in message:
        setup.cuda.dlpack_type = 2  # here numpy's own arrays would pass for the device's
    with pytest.raises(InputError, match=message):
        engine.run_device(feeds(on_device(batch(2))))


def test_wrong_types_are_named(engine, setup, on_device):
    for array, message in (
        (np.zeros((2, 4)), r"got float64 \[2, 4\], expected float32 \[N, 4\]; convert it on the device"),
        (np.zeros((2, 5), np.float32), r"got float32 \[2, 5\], expected float32 \[N, 4\]"),
        (np.zeros((17, 4), np.float32), "batch 17, at most 16 on the device"),
    ):
        with pytest.raises(InputError, match=message):
            engine.run_device({"x": on_device(array)})


def test_wrong_outputs_are_named(engine, setup, on_device):
    x = on_device(batch(2))
    small, good = on_device(batch(1)), on_device(batch(2))
    for outputs, message in (
        ({"z": good}, "unknown output z; its outputs are: y"),
        ({"y": small}, r"output 'y': got float32 \[1, 4\], expected float32 \[2, 4\]"),
        ({"y": GpuArray(good, read_only=True)}, r"output 'y': got read-only float32 \[2, 4\]"),
    ):
        with pytest.raises(InputError, match=message):
            engine.run_device({"x": x}, outputs)
