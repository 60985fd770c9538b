"""Landmark models: dlib's predictor, or an ONNX file run by this project's own engine.

No model ships: the user names a file. dlib's detector of faces is part of its library, so a predictor file is all it
needs, and with the predictor that e4e and FFHQ used the landmarks are theirs.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..engines.errors import InputError, MissingDependency
from ..engines.select import choose, engine_class
from ..engines.session import Engine
from ..engines.spec import TensorSpec
from .align import POINTS
from .align_landmarks import Finder

ENVIRONMENT = "STYLECLIP_RT_LANDMARKS"
EXTRA = 'pip install "styleclip-rt[align]"'
DLIB_PIXELS = 16_000_000  # dlib looks at four times the pixels (upsampled once): larger photos are reduced for that
FREE_SIZE = 256  # pixels of a model's input where its file leaves them free
MIN_SCORE = 0.5
CONTRACT = (
    "expected one float32 input [1, 3, H, W] or [1, H, W, 3], and float32 outputs: points [68, 2], [F, 68, 2] or "
    "[F, 136] as fractions of the input, and, if it scores faces, scores [F] in 0..1"
)


def open_finder(path: str | os.PathLike[str] | None = None) -> Finder | None:
    """The landmark model of a file: `.onnx`, else dlib's predictor. None: the file that STYLECLIP_RT_LANDMARKS names.

    Returns None where nothing is named. Raises InputError, MissingDependency, EngineError.
    """
    named = os.fspath(path) if path is not None else os.environ.get(ENVIRONMENT, "")
    if not named:
        return None
    file = Path(named).expanduser()
    if not file.is_file():
        origin = "" if path is not None else f" (named by {ENVIRONMENT})"
        raise InputError(
            f"the landmark model {named!r}{origin} is no file; expected dlib's predictor, or an .onnx file"
        )
    return OnnxFinder(file) if file.suffix.lower() == ".onnx" else DlibFinder(file)


class DlibFinder:
    """dlib's frontal detector, upsampling once as e4e does, then a predictor of 68 points. Thread-safe."""

    def __init__(self, predictor: Path) -> None:
        try:
            import dlib
        except ImportError as error:
            raise MissingDependency(f"a predictor of dlib needs the library dlib; install it with `{EXTRA}`") from error
        self._lock = threading.Lock()
        self._dlib = dlib
        try:
            self._predict = dlib.shape_predictor(str(predictor))
        except RuntimeError as error:
            raise InputError(f"{predictor} is no shape predictor of dlib: {error}; or name an .onnx file") from error
        self._detect = dlib.get_frontal_face_detector()

    def __call__(self, photo: Image.Image) -> NDArray[np.float64]:
        """Landmarks [F, 68, 2] of the faces of an RGB photo."""
        pixels, reduce = np.asarray(photo), 1
        while photo.width * photo.height > DLIB_PIXELS * reduce**2:
            reduce += 1
        small = np.asarray(photo.reduce(reduce)) if reduce > 1 else pixels
        with self._lock:
            boxes = [self._scaled(box, reduce) for box in self._detect(small, 1)]
            shapes = [self._predict(pixels, box) for box in boxes]
        if any(shape.num_parts != POINTS for shape in shapes):
            raise InputError(f"the predictor has {shapes[0].num_parts} points; expected the one with {POINTS}")
        faces = [[(part.x, part.y) for part in shape.parts()] for shape in shapes]
        return np.array(faces, dtype=np.float64).reshape(-1, POINTS, 2)

    def _scaled(self, box: Any, reduce: int) -> Any:
        if reduce == 1:
            return box
        left, top, right, bottom = box.left(), box.top(), box.right() + 1, box.bottom() + 1
        return self._dlib.rectangle(left * reduce, top * reduce, right * reduce - 1, bottom * reduce - 1)


class OnnxFinder:
    """An ONNX model of 68 points, on the CPU. It looks twice: at the whole photo, then at a square around each face.

    The contract is CONTRACT; pixels are RGB in 0..1, and the picture is fitted into the input, centred, over black.
    """

    def __init__(self, model: Path) -> None:
        choice = choose("cpu")
        self._engine: Engine = engine_class(choice.engine, choice.fallback)(model, None, device="cpu")
        self._input, self._points, self._scores = _ports(self._engine, model)
        _, a, b, c = self._input.shape
        self._channels_first = a == 3
        height, width = (b, c) if self._channels_first else (a, b)
        self._size = (_pixels(width), _pixels(height))

    def __call__(self, photo: Image.Image) -> NDArray[np.float64]:
        """Landmarks [F, 68, 2] of the faces of an RGB photo."""
        found = self._look(photo, (0, 0, photo.width, photo.height))
        return np.array([self._again(photo, face) for face in found], dtype=np.float64).reshape(-1, POINTS, 2)

    def _again(self, photo: Image.Image, face: NDArray[np.float64]) -> NDArray[np.float64]:
        """The face as seen in a square twice its extent; what the first look found if the second sees none."""
        low, high = face.min(axis=0), face.max(axis=0)
        middle, half = (low + high) / 2, float((high - low).max())
        left, top = np.maximum(np.floor(middle - half), 0).astype(int).tolist()
        right, bottom = np.minimum(np.ceil(middle + half), photo.size).astype(int).tolist()
        again = self._look(photo, (left, top, right, bottom)) if min(right - left, bottom - top) > 4 else face[:0, None]
        if not len(again):
            return face
        return again[np.argmin(np.hypot(*(again.mean(axis=1) - face.mean(axis=0)).T))]

    def _look(self, photo: Image.Image, box: tuple[int, int, int, int]) -> NDArray[np.float64]:
        """Landmarks [F, 68, 2] in the photo's pixels, from the part `box` of it."""
        width, height = box[2] - box[0], box[3] - box[1]
        scale = min(self._size[0] / width, self._size[1] / height)
        fitted = (max(1, round(width * scale)), max(1, round(height * scale)))
        offset = ((self._size[0] - fitted[0]) // 2, (self._size[1] - fitted[1]) // 2)
        canvas = Image.new("RGB", self._size)
        part = photo if box == (0, 0, *photo.size) else photo.crop(box)
        canvas.paste(part.resize(fitted, Image.Resampling.BILINEAR, reducing_gap=3.0), offset)
        points = self._run(np.asarray(canvas, dtype=np.float32) / np.float32(255))
        in_part = (points * self._size - offset) * (width / fitted[0], height / fitted[1])
        return in_part + box[:2] - 0.5  # fractions count from the edge of the first pixel, landmarks from its centre

    def _run(self, hwc: NDArray[np.float32]) -> NDArray[np.float64]:
        """Points [F, 68, 2] as fractions of the input [H, W, 3], of the faces that score 0.5 or more."""
        feed = hwc.transpose(2, 0, 1)[None] if self._channels_first else hwc[None]
        outputs = self._engine.run({self._input.name: np.ascontiguousarray(feed)})
        points = outputs[self._points.name].astype(np.float64).reshape(-1, POINTS, 2)
        if self._scores is not None:
            scores = outputs[self._scores.name].reshape(-1)
            if len(scores) != len(points):
                raise InputError(f"the landmark model scores {len(scores)} of {len(points)} faces; {CONTRACT}")
            points = points[scores >= MIN_SCORE]
        if not (np.abs(points) < 100).all():
            raise InputError(
                "the landmark model's points are not fractions of its input; use another model, or --landmarks FILE"
            )
        return points


def _ports(engine: Engine, model: Path) -> tuple[TensorSpec, TensorSpec, TensorSpec | None]:
    """Input, points and scores of a model that keeps the contract; InputError for one that does not."""
    inputs, outputs = engine.spec.inputs, engine.spec.outputs
    points = [t for t in outputs if t.dtype == "float32" and _is_points(t.shape)]
    scores = [t for t in outputs if t.dtype == "float32" and t not in points and len(t.shape) <= 2]
    if len(inputs) == 1 and inputs[0].dtype == "float32" and _is_picture(inputs[0].shape) and len(points) == 1:
        return inputs[0], points[0], scores[0] if scores else None
    raise InputError(f"{model} is {engine.spec}; {CONTRACT}")


def _pixels(size: int | str) -> int:
    return size if isinstance(size, int) else FREE_SIZE


def _is_picture(shape: tuple[int | str, ...]) -> bool:
    one = len(shape) == 4 and (shape[0] == 1 or isinstance(shape[0], str))
    return one and 3 in (shape[1], shape[3])


def _is_points(shape: tuple[int | str, ...]) -> bool:
    return shape[-2:] == (POINTS, 2) or (len(shape) in (1, 2) and shape[-1] == 2 * POINTS)
