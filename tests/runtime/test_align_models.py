"""Landmark models: an ONNX model that really looks at the picture, and dlib with a predictor trained here."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from styleclip_rt.engines.errors import EngineError, InputError, MissingDependency
from styleclip_rt.runtime import align_models
from styleclip_rt.runtime.align_models import DlibFinder, OnnxFinder, open_finder

from .align_faces import landmarks

SIZE = 32
SHAPE = landmarks((0, 0), eyes=0.4, mouth=0.4) * (np.abs(landmarks((0, 0), eyes=0.4, mouth=0.4)) < 1)


def write_model(path: Path, channels_last: bool = False, scored: bool = True, points: int = 68) -> Path:
    """A model that finds a red disc: SHAPE about its centre, scaled by its extent. The score is the largest red."""
    onnx = pytest.importorskip("onnx", reason="the test writes an ONNX file")
    from onnx import TensorProto, helper, numpy_helper

    at = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE
    constants = {
        "x": at[None, None, None, :],
        "y": at[None, None, :, None],
        "shape": np.resize(SHAPE, (points, 2)).astype(np.float32),
        "spatial": np.array([2, 3], dtype=np.int64),
        "tiny": np.float32(1e-6),
        "pair": np.array([1, 1, 2], dtype=np.int64),
        "flat": np.array([1], dtype=np.int64),
        "start": np.array([0], dtype=np.int64),
        "stop": np.array([1], dtype=np.int64),
        "axis": np.array([1], dtype=np.int64),
    }
    node = helper.make_node
    nodes = [
        *([node("Transpose", ["image"], ["nchw"], perm=[0, 3, 1, 2])] if channels_last else []),
        node("Slice", ["nchw" if channels_last else "image", "start", "stop", "axis"], ["red"]),
        node("ReduceSum", ["red", "spatial"], ["mass0"], keepdims=1),
        node("Add", ["mass0", "tiny"], ["mass"]),
        *(
            step
            for name in ("x", "y")
            for step in (
                node("Mul", ["red", name], [f"{name}1"]),
                node("ReduceSum", [f"{name}1", "spatial"], [f"{name}2"], keepdims=1),
                node("Div", [f"{name}2", "mass"], [f"{name}3"]),
                node("Reshape", [f"{name}3", "flat"], [f"{name}4"]),
            )
        ),
        node("Concat", ["x4", "y4"], ["centre0"], axis=0),
        node("Reshape", ["centre0", "pair"], ["centre"]),
        node("ReduceMean", ["red", "spatial"], ["share"], keepdims=1),
        node("Sqrt", ["share"], ["extent"]),
        node("Reshape", ["extent", "flat"], ["extent1"]),
        node("Mul", ["shape", "extent1"], ["offsets"]),
        node("Add", ["offsets", "centre"], ["points"]),
        node("ReduceMax", ["red", "spatial"], ["score0"], keepdims=1),
        node("Reshape", ["score0", "flat"], ["score"]),
    ]
    shape = [1, SIZE, SIZE, 3] if channels_last else [1, 3, SIZE, SIZE]
    outputs = [helper.make_tensor_value_info("points", TensorProto.FLOAT, [1, points, 2])]
    if scored:
        outputs.append(helper.make_tensor_value_info("score", TensorProto.FLOAT, [1]))
    graph = helper.make_graph(
        nodes if scored else nodes[:-2],
        "disc",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        outputs,
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def disc_photo(width: int, height: int, centre: tuple[float, float], radius: float) -> Image.Image:
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    inside = np.clip(radius + 0.5 - np.hypot(x - centre[0], y - centre[1]), 0, 1)
    return Image.fromarray((inside[..., None] * (255, 0, 0)).astype(np.uint8))


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize(("size", "centre", "radius"), [((640, 200), (450, 120), 40), ((90, 300), (40, 70), 12)])
def test_an_onnx_model_gives_landmarks_in_the_photos_pixels(tmp_path, channels_last, size, centre, radius):
    finder = open_finder(write_model(tmp_path / "disc.onnx", channels_last))
    (face,) = finder(disc_photo(*size, centre, radius))
    expected = SHAPE * np.sqrt(np.pi) * radius + centre
    assert np.abs(face - expected).max() < 0.06 * radius
    np.testing.assert_allclose((face - SHAPE * np.sqrt(np.pi) * radius).mean(axis=0), centre, atol=0.6)


def test_the_second_look_is_finer_than_the_first(tmp_path):
    finder = OnnxFinder(write_model(tmp_path / "disc.onnx"))
    photo = disc_photo(1600, 1200, (1234, 321), 60)
    expected = SHAPE * np.sqrt(np.pi) * 60 + (1234, 321)
    first, second = finder._look(photo, (0, 0, *photo.size))[0], finder(photo)[0]
    assert np.abs(second - expected).max() < 0.5 * np.abs(first - expected).max()
    assert np.abs(second - expected).max() < 2


def test_a_low_score_is_no_face(tmp_path):
    assert OnnxFinder(write_model(tmp_path / "a.onnx"))(Image.new("RGB", (64, 64))).shape == (0, 68, 2)


def test_a_model_without_scores_always_sees_one_face(tmp_path):
    finder = OnnxFinder(write_model(tmp_path / "a.onnx", scored=False))
    assert finder(disc_photo(100, 100, (50, 50), 20)).shape == (1, 68, 2)


def test_models_of_another_shape_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"\[1, 5, 2\].*expected one float32 input"):
        open_finder(write_model(tmp_path / "a.onnx", points=5))


def test_files_that_are_no_model(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"a\.onnx"):
        open_finder(tmp_path / "a.onnx")
    with pytest.raises(InputError, match="is no file"):
        open_finder(tmp_path / "missing.onnx")


def test_the_environment_names_a_model(tmp_path, monkeypatch):
    monkeypatch.delenv(align_models.ENVIRONMENT, raising=False)
    assert open_finder() is None
    monkeypatch.setenv(align_models.ENVIRONMENT, str(write_model(tmp_path / "a.onnx")))
    assert isinstance(open_finder(), OnnxFinder)
    monkeypatch.setenv(align_models.ENVIRONMENT, str(tmp_path / "missing"))
    with pytest.raises(InputError, match="named by STYLECLIP_RT_LANDMARKS"):
        open_finder()


# dlib -----------------------------------------------------------------------------------------------------------------


def test_without_dlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dlib", None)
    (tmp_path / "predictor.dat").write_bytes(b"x")
    with pytest.raises(MissingDependency, match=r"styleclip-rt\[align\]"):
        open_finder(tmp_path / "predictor.dat")


PORTRAIT_POINTS = landmarks((261, 273), eyes=134, mouth=139)  # of the portrait that ships, 512 x 512
PORTRAIT_POINTS[[*range(36), *range(49, 54), *range(55, 68)]] = (256, 300)


def portrait(root: Path, size: int) -> Image.Image:
    with Image.open(root / "runtime" / "data" / "portrait.png") as image:
        return image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)


def train(root: Path, path: Path, points: np.ndarray, depth: int = 4) -> Path:
    """A small predictor of `points` [P, 2] on the portrait, from several boxes around its face."""
    dlib = pytest.importorskip("dlib", reason="needs the extra `align`")
    image, scale = np.asarray(portrait(root, 256)), 0.5
    rng = np.random.default_rng(0)
    (box,) = dlib.get_frontal_face_detector()(image, 1)
    objects = []
    for _ in range(30):
        dx, dy, grow = rng.integers(-14, 15, 3).tolist()
        moved = dlib.rectangle(
            box.left() + dx - grow, box.top() + dy - grow, box.right() + dx + grow, box.bottom() + dy + grow
        )
        parts = [dlib.point(round(x), round(y)) for x, y in (points * scale).tolist()]
        objects.append(dlib.full_object_detection(moved, parts))
    options = dlib.shape_predictor_training_options()
    options.cascade_depth, options.num_trees_per_cascade_level, options.tree_depth = depth, 30, 3
    options.feature_pool_size, options.num_test_splits, options.oversampling_amount = 100, 10, 2
    options.be_verbose = False
    dlib.train_shape_predictor([image], [objects], options).save(str(path))
    return path


@pytest.fixture(scope="module")
def predictor(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(root, tmp_path_factory.mktemp("dlib") / "predictor.dat", PORTRAIT_POINTS)


def test_dlib_finds_the_faces_of_a_photo(root, predictor):
    photo = Image.new("RGB", (700, 420), "grey")
    photo.paste(portrait(root, 256), (60, 90))
    photo.paste(portrait(root, 320), (370, 50))
    finder = open_finder(predictor)
    faces = sorted(finder(photo), key=lambda face: face[:, 0].mean())
    assert len(faces) == 2
    for face, scale, at in zip(faces, (0.5, 0.625), ((60, 90), (370, 50)), strict=True):
        expected = PORTRAIT_POINTS * scale + at
        off = np.abs(face[[*range(36, 48), 48, 54]] - expected[[*range(36, 48), 48, 54]])
        assert off.max() < 0.05 * 512 * scale  # a tiny predictor: the place, not the precision, is tested


def test_dlib_sees_no_face_in_an_empty_photo(predictor):
    assert DlibFinder(predictor)(Image.new("RGB", (200, 150), "grey")).shape == (0, 68, 2)


def test_a_large_photo_is_reduced_for_the_detector_alone(root, predictor, monkeypatch):
    photo = portrait(root, 512)
    exact = DlibFinder(predictor)(photo)
    monkeypatch.setattr(align_models, "DLIB_PIXELS", 100_000)
    reduced = DlibFinder(predictor)(photo)
    assert exact.shape == reduced.shape == (1, 68, 2)
    assert np.abs(exact - reduced).max() < 12


def test_predictors_that_are_none_or_have_other_points(root, tmp_path):
    pytest.importorskip("dlib", reason="needs the extra `align`")
    (tmp_path / "bad.dat").write_bytes(b"\x01\x04no predictor")
    with pytest.raises(InputError, match="no shape predictor"):
        open_finder(tmp_path / "bad.dat")
    five = train(root, tmp_path / "five.dat", PORTRAIT_POINTS[36:41], depth=1)
    with pytest.raises(InputError, match="has 5 points; expected the one with 68"):
        open_finder(five)(portrait(root, 256))
