from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from styleclip_rt.engines import bundle as bundle_module
from styleclip_rt.engines.bundle import open_bundle
from styleclip_rt.engines.errors import BundleError, EngineError, InputError

X = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def bundle(bundle_dir):
    with open_bundle(bundle_dir, device="cpu", threads=1) as opened:
        yield opened


def test_it_says_what_it_is(bundle, bundle_dir):
    assert bundle.path == bundle_dir
    assert bundle.graphs == ("project", "mapper/back", "blend")
    assert bundle.manifest["name"] == "tiny"
    assert (bundle.backend, bundle.device, bundle.threads) == ("onnxruntime", "cpu", 1)
    assert str(bundle.spec("blend")) == "blend: a float32 [N, 4], b float32 [N, 4], t float32 [N] -> y float32 [N, 4]"
    assert "project" in repr(bundle)


def test_two_graphs_share_one_weights_file(bundle, tiny):
    np.testing.assert_allclose(bundle.run("project", x=X)["y"], X @ tiny.weight, rtol=1e-6)
    np.testing.assert_allclose(bundle.run("mapper/back", x=X)["y"], X @ tiny.weight.T, rtol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_the_batch_is_free(bundle, n):
    a, b, t = np.ones((n, 4), np.float32), np.ones((n, 4), np.float32), np.arange(n, dtype=np.float32)
    np.testing.assert_array_equal(bundle.run("blend", a=a, b=b, t=t)["y"], a + t[:, None] * b)


def test_outputs_belong_to_the_caller(bundle):
    first = bundle.run("project", x=X)["y"]
    kept = first.copy()
    bundle.run("project", x=X + 1)
    np.testing.assert_array_equal(first, kept)
    first[:] = 0  # writable


def test_an_unknown_graph_lists_the_graphs(bundle):
    for call in (bundle.run, bundle.spec, bundle.engine):
        with pytest.raises(InputError, match=r"no graph 'synthesise'.*project, mapper/back, blend"):
            call("synthesise")


def test_graphs_load_on_first_use_only(bundle):
    assert not bundle._engines
    bundle.run("project", x=X)
    assert list(bundle._engines) == ["project"]


def test_eight_threads_make_one_session(bundle, monkeypatch, tiny):
    made, together = [], threading.Barrier(8)
    real = bundle_module.engine_class(bundle.backend)

    def counting(*args, **kwargs):
        made.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(bundle_module, "engine_class", lambda *names: counting)

    def work(i):
        together.wait()
        return i, bundle.run("project", x=X + i)["y"]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(8)))
    assert len(made) == 1
    for i, y in results:
        np.testing.assert_allclose(y, (X + i) @ tiny.weight, rtol=1e-6)


def test_a_closed_bundle_says_so(bundle_dir):
    bundle = open_bundle(bundle_dir, device="cpu")
    engine = bundle.engine("project")
    bundle.close()
    bundle.close()
    with pytest.raises(EngineError, match="is closed; open it again"):
        bundle.run("project", x=X)
    with pytest.raises(EngineError, match="the engine is closed"):
        engine.run({"x": X})


def test_files_are_found_by_the_manifest(bundle, bundle_dir):
    assert bundle.file("tokenizer.json").read_bytes() == b"{}"
    (bundle_dir / "extra.txt").write_text("not listed")
    for name in ("extra.txt", "../secret", "/etc/hostname", "", None):
        with pytest.raises(BundleError, match=r"is not a file of the bundle .* its files are: graphs/weights.bin"):
            bundle.file(name)
    (bundle_dir / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match="has gone"):
        bundle.file("tokenizer.json")


def test_verify_names_every_damaged_file(bundle, bundle_dir):
    bundle.verify()
    for name in ("tokenizer.json", "graphs/weights.bin"):
        data = bytearray((bundle_dir / name).read_bytes())
        data[-1] ^= 1
        (bundle_dir / name).write_bytes(data)
    with pytest.raises(BundleError, match=r"graphs/weights.bin has SHA-256 .*tokenizer.json has SHA-256"):
        bundle.verify()


def test_a_graph_that_is_not_what_the_manifest_says_is_refused(tamper):
    def widen(manifest):
        manifest["graphs"]["project"]["inputs"][0]["shape"] = ["N", 5]

    with (
        open_bundle(tamper(widen), device="cpu") as bundle,
        pytest.raises(BundleError, match=r"not what bundle.json says: input x float32 \[N, 5\] is float32 \[N, 4\]"),
    ):
        bundle.run("project", x=np.ones((1, 5), np.float32))


def test_threads_come_from_the_argument_then_the_environment(bundle_dir, monkeypatch):
    monkeypatch.setenv("STYLECLIP_RT_THREADS", "3")
    assert open_bundle(bundle_dir, device="cpu").threads == 3
    assert open_bundle(bundle_dir, device="cpu", threads=2).threads == 2
    with pytest.raises(InputError, match="threads is 0, expected a whole number from 1 to 1024"):
        open_bundle(bundle_dir, device="cpu", threads=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "gpu"}, "unknown device 'gpu'; the devices are: auto, cpu, cuda"),
        (
            {"engine": "ort"},
            "unknown engine 'ort'; the engines are: onnxruntime, onnxruntime-kernels, onnxruntime-tensorrt, openvino, ",
        ),
    ],
)
def test_unknown_names_list_the_valid_ones(bundle_dir, arguments, message):
    with pytest.raises(InputError, match=message):
        open_bundle(bundle_dir, **arguments)
