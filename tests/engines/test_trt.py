"""The TensorRT runner on strict stand-ins: what is made once, what is replayed, what is given back, what is said."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from styleclip_rt.engines.build import BuildOptions
from styleclip_rt.engines.bundle import open_bundle
from styleclip_rt.engines.errors import EngineError, EngineUnavailable
from styleclip_rt.engines.ort import OrtEngine
from styleclip_rt.engines.trial import TRIAL_GRAPH
from styleclip_rt.engines.trt import TensorRtEngine
from styleclip_rt.engines.trt_run import MAX_SLOTS

HOST_CONTEXT = 0xBEEF


def batch(n, start=0.0):
    return np.arange(start, start + 4 * n, dtype=np.float32).reshape(n, 4)


@pytest.fixture
def project(bundle_dir):
    return bundle_dir / "graphs/project.onnx"


def test_buffers_are_made_once_and_runs_replay_one_graph(engine, setup, driver, tiny):
    for i in range(5):
        np.testing.assert_allclose(engine.run({"x": batch(2, i)})["y"], batch(2, i) @ tiny.weight, rtol=1e-5)
    assert setup.trt.log == ["context", "execute", "capture"]
    assert driver.counts["cuGraphLaunch"] == 4
    assert driver.counts["cuMemAlloc"] == 3  # x, y and scratch
    assert driver.counts["cuMemHostAlloc"] == 2
    assert driver.counts["cuMemFree"] == 0


def test_every_shape_has_its_own_graph_and_old_ones_make_way(engine, setup, driver, tiny):
    for _ in range(2):
        for n in range(1, 5):
            np.testing.assert_allclose(engine.run({"x": batch(n)})["y"], batch(n) @ tiny.weight, rtol=1e-5)
    assert setup.trt.log.count("capture") == 4
    for n in range(5, 5 + MAX_SLOTS):
        engine.run({"x": batch(n)})
    assert len(driver.live) == 3 * MAX_SLOTS
    assert len(driver.graphs) == MAX_SLOTS
    engine.run({"x": batch(1)})  # was dropped, comes again
    assert setup.trt.log.count("capture") == 4 + MAX_SLOTS + 1


@pytest.mark.parametrize(("n", "profile"), [(1, 0), (2, 1), (3, 4), (4, 2), (7, 4), (8, 3), (16, 4)])
def test_a_batch_takes_the_profile_that_is_made_for_it(engine, n, profile):
    assert engine._pool.plan.profile(n) == profile


def test_a_large_batch_is_run_in_pieces(engine, setup, tiny):
    np.testing.assert_allclose(engine.run({"x": batch(37)})["y"], batch(37) @ tiny.weight, rtol=1e-5)
    assert setup.trt.log.count("execute") == 2  # 16, 5
    assert setup.cuda.driver.counts["cuGraphLaunch"] == 1  # 16 again


def test_a_graph_with_fixed_shapes_has_one_profile(setup):
    with TensorRtEngine(TRIAL_GRAPH, setup=setup) as engine:
        assert [engine.run({"x": np.array([v], np.float32)})["y"][0] for v in (1, 2, 3)] == [2, 4, 6]
        assert engine._pool.plan.ranges == []


def test_the_parts_of_a_run_are_timed_in_the_stream(bundle_dir, setup, driver):
    """Three copies in, one run, one copy out, a millisecond each on this device."""
    feeds = {"a": batch(2), "b": batch(2, 3), "t": np.array([0, 2], np.float32)}
    engine = TensorRtEngine(bundle_dir / "graphs/blend.onnx", setup=setup)
    before = engine.run(feeds)["y"]
    assert engine.split_ms(feeds) == {"h2d_ms": 3.0, "compute_ms": 1.0, "d2h_ms": 1.0}
    np.testing.assert_array_equal(engine.run(feeds)["y"], before)
    many = {name: np.resize(array, (20, *array.shape[1:])) for name, array in feeds.items()}
    assert engine.split_ms(many) == {}, "what is run in pieces has no parts"
    driver.failures["cuEventElapsedTime"] = 600
    with pytest.raises(EngineError, match="cuEventElapsedTime failed"):
        engine.split_ms(feeds)
    engine.close()
    assert driver.leftovers() == {}
    with pytest.raises(EngineError, match="is closed"):
        engine.split_ms(feeds)


def test_everything_is_given_back(project, setup, driver, on_device):
    engine = TensorRtEngine(project, setup=setup)
    for n in (1, 3, 20):
        engine.run({"x": batch(n)})
    outputs = engine.run_device({"x": on_device(batch(2))})
    engine.close()
    assert driver.leftovers() == {"device": 1}
    del outputs
    gc.collect()
    assert driver.leftovers() == {}
    assert not driver.faults


def test_a_close_meanwhile_lets_the_run_end(project, setup, driver, tiny, on_device):
    engine = TensorRtEngine(project, setup=setup)
    inside, closed = threading.Event(), threading.Event()
    wait = setup.cuda.wait

    def slow(stream):
        inside.set()
        assert closed.wait(20)
        wait(stream)

    setup.cuda.wait = slow
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(engine.run, {"x": batch(2)})
        assert inside.wait(20)
        engine.close()
        closed.set()
        np.testing.assert_allclose(running.result()["y"], batch(2) @ tiny.weight, rtol=1e-5)
    assert driver.leftovers() == {}
    with pytest.raises(EngineError, match="is closed"):
        engine.run({"x": batch(2)})
    with pytest.raises(EngineError, match="is closed"):
        engine.run_device({"x": on_device(batch(2))})


def test_no_more_workers_than_allowed(project, make_setup):
    setup = make_setup(workers=2)
    busy, most, lock = [0], [0], threading.Lock()
    wait = setup.cuda.wait

    def counted(stream):
        with lock:
            busy[0] += 1
            most[0] = max(most[0], busy[0])
        threading.Event().wait(0.01)
        wait(stream)
        with lock:
            busy[0] -= 1

    setup.cuda.wait = counted
    with TensorRtEngine(project, setup=setup) as engine, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: engine.run({"x": batch(2, i)}), range(32)))
        assert len(setup.cuda.driver.streams) - 1 <= 2
    assert most[0] <= 2


def test_a_capture_that_fails_only_costs_speed(project, setup, driver, stand_in, tiny):
    driver.failures["cuStreamEndCapture"] = stand_in.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    with TensorRtEngine(project, setup=setup) as engine:
        driver.counts.clear()
        for i in range(3):
            np.testing.assert_allclose(engine.run({"x": batch(1, i)})["y"], batch(1, i) @ tiny.weight, rtol=1e-5)
        assert driver.counts["cuStreamBeginCapture"] == 1
        assert driver.counts["cuGraphLaunch"] == 0


def test_a_context_that_cannot_be_captured_runs_without(project, setup, driver):
    setup.trt.refuse["capture"] = "compiles lazily"
    with TensorRtEngine(project, setup=setup) as engine:
        engine.run({"x": batch(1)})
        engine.run({"x": batch(1)})
    assert driver.counts["cuStreamBeginCapture"] == 0


def test_a_run_that_fails_says_so_and_the_next_one_starts_afresh(engine, setup, driver, tiny):
    setup.trt.refuse["run"] = "out of scratch"
    with pytest.raises(EngineError, match=r"failed in TensorRT: out of scratch$"):
        engine.run({"x": batch(2)})
    del setup.trt.refuse["run"]
    np.testing.assert_allclose(engine.run({"x": batch(2)})["y"], batch(2) @ tiny.weight, rtol=1e-5)


@pytest.mark.parametrize("call", ["cuMemAlloc", "cuMemHostAlloc", "cuEventCreate"])
def test_memory_that_is_short_leaves_nothing_behind(engine, driver, stand_in, call):
    before = driver.leftovers()
    driver.failures[call] = stand_in.CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(EngineError, match=f"failed.*{call} failed with CUDA_ERROR_OUT_OF_MEMORY"):
        engine.run({"x": batch(3)})
    driver.failures.clear()
    left = driver.leftovers()
    left.pop("streams", None)
    before.pop("streams", None)
    assert left == before
    engine.run({"x": batch(3)})


def test_only_cuda_is_served(project, setup):
    with pytest.raises(EngineUnavailable, match="TensorRT runs on CUDA, not on 'cpu'"):
        TensorRtEngine(project, device="cpu", setup=setup)


def test_a_second_process_takes_the_plan_and_proves_nothing_again(project, make_setup):
    with TensorRtEngine(project, setup=make_setup()):
        pass
    again = make_setup(reference=lambda model: pytest.fail("proven twice"))
    with TensorRtEngine(project, setup=again) as engine:
        engine.run({"x": batch(1)})
    assert "build" not in again.trt.log


def test_a_plan_for_another_batch_alone_is_proven_at_that_batch(project, make_setup):
    setup = make_setup(options=BuildOptions((2,), max_batch=0))
    with TensorRtEngine(project, setup=setup) as engine:
        assert engine.run({"x": batch(2)})["y"].shape == (2, 4)
    setup = make_setup(options=BuildOptions((2,), max_batch=0, level=1))
    setup.trt.noise = 0.5
    with pytest.raises(EngineError, match="fails its accuracy gate: output 'y' at batch 2: relative error"):
        TensorRtEngine(project, setup=setup)


@pytest.mark.parametrize(
    "change",
    [
        {"version": "11.5.0"},
        {"name": "tensorrt_rtx"},
        {"sm": (9, 0)},
        {"card": b"Another GPU\0"},
    ],
)
def test_another_library_or_card_builds_its_own_plan(project, make_setup, stand_in, change):
    with TensorRtEngine(project, setup=make_setup()):
        pass
    driver = stand_in.FakeDriver(change.pop("card", b"Test GPU\0"), change.pop("sm", (8, 9)))
    other = make_setup(driver=driver, **change)
    with TensorRtEngine(project, setup=other) as engine:
        engine.run({"x": batch(1)})
    assert "build" in other.trt.log


def test_other_weights_under_the_same_graph_build_another_plan(project, setup, bundle_dir, tiny):
    with TensorRtEngine(project, setup=setup):
        pass
    weights = bundle_dir / "graphs/weights.bin"
    weights.write_bytes(bytes(64) + (tiny.weight * 2).astype(np.float16).tobytes())
    with TensorRtEngine(project, setup=setup) as engine:
        np.testing.assert_allclose(engine.run({"x": batch(1)})["y"], batch(1) @ tiny.weight * 2, rtol=1e-5)
    assert setup.trt.log.count("build") == 2


def test_a_plan_with_a_flipped_byte_never_reaches_the_deserialiser(project, setup):
    """The stand-in's deserialiser takes anything that starts like a plan, so a flip in the weights would run."""
    with TensorRtEngine(project, setup=setup) as engine:
        wanted = engine.run({"x": batch(1)})["y"]
    plans = [path for path in setup.cache.folder.glob("*.plan") if path.stat().st_size > 400]
    for path in plans:
        data = bytearray(path.read_bytes())
        data[-40] ^= 1
        path.write_bytes(data)
    setup.trt.log.clear()
    with TensorRtEngine(project, setup=setup) as engine:
        np.testing.assert_array_equal(engine.run({"x": batch(1)})["y"], wanted)
    assert setup.trt.log.index("build") < setup.trt.log.index("deserialize")


def test_the_context_of_the_host_application_is_used_as_it_is(project, make_setup, stand_in, tiny):
    setup = make_setup(driver=stand_in.FakeDriver(host_context=HOST_CONTEXT))
    assert setup.cuda.adopted
    with TensorRtEngine(project, setup=setup) as engine, ThreadPoolExecutor(1) as pool:
        engine.run({"x": batch(1)})
        pool.submit(engine.run, {"x": batch(1)}).result()  # a thread where no context is current
    driver = setup.cuda.driver
    assert driver.used_contexts == {HOST_CONTEXT}
    assert driver.stack() == [HOST_CONTEXT]
    assert driver.counts["cuDevicePrimaryCtxRetain"] == 0


def test_without_one_it_is_the_primary_context(project, setup, driver):
    with TensorRtEngine(project, setup=setup) as engine:
        engine.run({"x": batch(1)})
    assert driver.used_contexts == {driver.PRIMARY}
    assert driver.stack() == []


def test_engines_without_device_memory_say_so(project):
    with pytest.raises(EngineUnavailable, match="'onnxruntime' takes arrays on the host; use run"):
        OrtEngine(project).run_device({})


def test_a_whole_edit_of_the_shipped_bundle(make_setup, monkeypatch, root):
    """Seven graphs with int64 and uint8 ports, checked against ONNX Runtime on the way by the gate."""
    from styleclip_rt.engines import trt

    setup = make_setup()
    monkeypatch.setattr(trt, "default_setup", lambda: setup)
    rng = np.random.default_rng(0)
    folder = root / "runtime/data/toyfaces-bundle"
    with open_bundle(folder, device="cpu", threads=1) as reference:
        spec = reference.spec("edit_global")
        shapes = {t.name: tuple(3 if size == "N" else size for size in t.shape) for t in spec.inputs}
        feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        wanted = reference.run("edit_global", **feeds)["image_u8"]
        tokens = {t.name: np.ones((2, t.shape[1]), np.int64) for t in reference.spec("encode_text").inputs}
        embedding = reference.run("encode_text", **tokens)["embedding"]
    spec = None
    with TensorRtEngine(folder / "graphs/edit_global.onnx", setup=setup) as engine:
        found = engine.run(feeds)["image_u8"]
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    assert np.abs(found.astype(int) - wanted).max() <= 1
    with TensorRtEngine(folder / "graphs/encode_text.onnx", setup=setup) as engine:
        np.testing.assert_allclose(engine.run(tokens)["embedding"], embedding, atol=1e-5)
