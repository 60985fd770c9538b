"""Plans from ONNX bytes: what the builder is told (on a stand-in), and that a real one takes every graph that ships.

TensorRT-RTX parses and builds without a driver or a card; nothing is run here.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from styleclip_rt.engines import nvinfer
from styleclip_rt.engines.build import BuildOptions, plan_from_onnx
from styleclip_rt.engines.errors import EngineError, InputError
from styleclip_rt.engines.onnx_bytes import inline_weights

BUNDLE = "runtime/data/toyfaces-bundle"


@pytest.fixture
def project(bundle_dir):
    return inline_weights(bundle_dir / "graphs/project.onnx")


@pytest.mark.parametrize("version", ["10.16.0.1", "11.4.0.25"])
def test_the_builder_is_told_profiles_limits_and_strong_typing(make_setup, project, version):
    trt = make_setup(version).trt  # the stand-in of version 10 refuses a weakly typed network
    options = BuildOptions((1, 4), max_batch=6, workspace_mib=100, level=2)
    plan, timings = plan_from_onnx(trt, project, options, b"old")
    (config,) = trt.configs
    assert [profile["x"] for profile in config.profiles] == [
        [[1, 4], [1, 4], [1, 4]],
        [[4, 4], [4, 4], [4, 4]],
        [[1, 4], [4, 4], [6, 4]],
    ]
    assert config.pools == {"WORKSPACE": 100 << 20}
    assert (config.flags, config.builder_optimization_level) == (set(), 2)
    assert isinstance(plan, bytes)
    assert timings == b"oldt"


def test_tf32_is_taken_when_asked_for(make_setup, project):
    trt = make_setup().trt
    plan_from_onnx(trt, project, BuildOptions(tf32=True))
    assert trt.configs[0].flags == {"TF32"}


def test_timings_of_another_card_are_left_behind(make_setup, project):
    assert plan_from_onnx(make_setup().trt, project, timings=b"other card")[1] == b"t"


def test_rtx_has_no_timing_cache(make_setup, project):
    trt = make_setup("1.7.1.116", "tensorrt_rtx").trt
    assert plan_from_onnx(trt, project, timings=b"old")[1] is None
    assert trt.configs[0].timings is None


def test_errors_carry_the_librarys_words_in_one_line(make_setup, project):
    trt = make_setup().trt
    with pytest.raises(EngineError, match=r"^TensorRT 11\.4\.0\.25 cannot parse the graph: node 'conv_1' \(Conv\): F"):
        plan_from_onnx(trt, b"not onnx")
    trt.refuse["build"] = "no\nimplementation"
    with pytest.raises(EngineError, match=r"cannot build the graph 'unnamed': no implementation$"):
        plan_from_onnx(trt, project)


def test_only_the_batch_may_be_free(make_setup, tiny):
    helper = pytest.importorskip("onnx").helper
    model = tiny.model_of([helper.make_node("Abs", ["x"], ["y"])], {"x": ["N", "M"]}, {"y": ["N", "M"]})
    with pytest.raises(EngineError, match="only the first dimension, the batch, may be free"):
        plan_from_onnx(make_setup().trt, model)


@pytest.mark.parametrize(
    "changes",
    [{"batches": (), "max_batch": 0}, {"batches": (0,)}, {"batches": (2, 2)}, {"max_batch": -1}, {"workspace_mib": 0}],
)
def test_options_that_make_no_sense_are_refused(changes):
    with pytest.raises(InputError):
        BuildOptions(**changes)


def test_options_are_part_of_the_key_as_json():
    assert json.loads(json.dumps(BuildOptions().as_json())) == BuildOptions().as_json()
    assert BuildOptions().as_json() != BuildOptions(tf32=True).as_json()


def test_progress_is_told_and_may_end_the_build(make_setup, project):
    trt, heard = make_setup().trt, []
    plan_from_onnx(trt, project, progress=lambda *step: heard.append(step) or True)
    assert heard == [("tactics", 0, 3), ("tactics", 1, 3), ("tactics", 2, 3), ("tactics", 3, 3), ("tactics", 3, 3)]
    with pytest.raises(EngineError, match="ended by its caller; nothing was kept"):
        plan_from_onnx(trt, project, progress=lambda phase, done, total: done < 2)

    def interrupt(phase, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan_from_onnx(trt, project, progress=interrupt)


def graphs(root):
    return json.loads((root / BUNDLE / "bundle.json").read_text())["graphs"]


@pytest.mark.slow
def test_the_real_library_builds_every_graph_that_ships(build_with_rtx, root):
    """With a free batch, and with the batch fixed in the graph."""
    models = {name: inline_weights(root / BUNDLE / row["file"]) for name, row in graphs(root).items()}
    assert {"synthesize", "synthesize_u8", "edit_global", "invert", "encode_text", "encode_image"} <= set(models)
    for name, size in build_with_rtx(models).items():
        assert size > 10_000, name


def test_the_real_library_tells_what_is_wrong(rtx, tiny):
    """A float16 times a float32 without a cast: strongly typed networks refuse it, weakly typed ones would not."""
    onnx = pytest.importorskip("onnx")
    half = onnx.numpy_helper.from_array(np.ones((4, 4), np.float16), "w")
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    model = tiny.model_of([node], {"x": ["N", 4]}, {"y": ["N", 4]}, (half,))
    with pytest.raises(EngineError, match=r"TensorRT-RTX \S+ cannot parse the graph: .+") as caught:
        plan_from_onnx(rtx, model)
    assert "\n" not in str(caught.value)
    with pytest.raises(EngineError, match="cannot parse the graph"):
        plan_from_onnx(rtx, b"nonsense")


def test_the_real_library_reports_progress_and_can_be_stopped(rtx, bundle_dir):
    model, heard = inline_weights(bundle_dir / "graphs/project.onnx"), []

    def listen(phase, done, total):
        heard.append(phase)
        return True

    plan, timings = plan_from_onnx(rtx, model, BuildOptions((), max_batch=2), progress=listen)
    assert plan
    assert timings is None
    assert "Building engine" in heard
    with pytest.raises(EngineError, match="ended by its caller"):
        plan_from_onnx(rtx, model, progress=lambda *_: False)


def test_the_library_found_is_the_one_installed(rtx):
    assert nvinfer.installed() in nvinfer.MODULES
    assert nvinfer.is_rtx(rtx)
    assert nvinfer.product(rtx).startswith("TensorRT-RTX 1.")
    assert {nvinfer.numpy_dtype(kind) for kind in (rtx.float32, rtx.float16, rtx.int64, rtx.uint8)} == {
        "float32",
        "float16",
        "int64",
        "uint8",
    }
