"""Landmarks of a photo: from a file, an array or a finder, in one form; and which of several faces is meant."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..engines.errors import ImageError, InputError
from .align import F64, POINTS, Square, check_square, face_square

Finder: TypeAlias = Callable[[Image.Image], NDArray[Any]]
"""RGB photo to landmarks [F, 68, 2] in its pixels, pixel centres at whole numbers; F may be 0."""

Landmarks: TypeAlias = "str | os.PathLike[str] | NDArray[Any] | Sequence[Any] | Finder"

MAX_BYTES = 4 * 2**20
MAX_FACES = 200
SIMILAR = 0.75  # a face at least this large, beside the largest, may be the one that is meant
EXPECTED = f"expected {POINTS} points [x, y], or a list of such lists"
KEYS = ("landmarks", "face_landmarks", "faces")


def face_squares(landmarks: Landmarks, photo: Image.Image) -> list[Square]:
    """The squares of the faces in `photo`, from left to right. Raises InputError, ImageError; [] if a finder sees none.

    photo: RGB, turned upright, at its own resolution, which is what the landmarks refer to.
    """
    if callable(landmarks):
        points = as_landmarks(landmarks(photo), "the landmark model's output")
    elif isinstance(landmarks, str | os.PathLike):
        points = read_landmarks(landmarks)
    else:
        points = as_landmarks(landmarks, "the landmarks")
    squares = [face_square(face) for face in points]
    for square in squares:
        check_square(square, photo.size)
    return sorted(squares, key=lambda square: float(square.corners[:, 0].mean()))


def chosen(squares: Sequence[Square], size: tuple[int, int], face: int | None = None) -> int:
    """Index of the face that is meant in a photo of `size` pixels. face: 1 for the leftmost, 2 for the next, ...

    None: of the faces at least 0.75 times as large as the largest, the one nearest to the centre of the photo.
    """
    if not squares:
        raise ImageError(
            "no face was found in the photo; give its 68 landmarks by --landmarks FILE, or use --no-align if the "
            "photo is an aligned crop"
        )
    if face is not None:
        if not 1 <= face <= len(squares):
            raise InputError(f"face {face} of a photo with {len(squares)}; expected 1 to {len(squares)}, left to right")
        return face - 1
    largest = max(square.side for square in squares)
    centre = (np.array(size) - 1) / 2
    away = [
        np.hypot(*(square.corners.mean(axis=0) - centre)) if square.side >= SIMILAR * largest else np.inf
        for square in squares
    ]
    return int(np.argmin(away))


def as_landmarks(values: object, label: str) -> F64:
    """[F, 68, 2] float64 from [68, 2], [F, 68, 2] or the same as lists. Raises InputError."""
    try:
        points = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{label}: not a table of numbers; {EXPECTED}") from error
    if points.ndim == 2:
        points = points[None]
    if points.shape == (0,):
        points = points.reshape(0, POINTS, 2)
    if points.ndim != 3 or points.shape[1:] != (POINTS, 2):
        raise InputError(f"{label}: shape {list(points.shape)}; {EXPECTED}")
    if len(points) > MAX_FACES:
        raise InputError(f"{label}: {len(points)} faces; expected at most {MAX_FACES}")
    if not np.isfinite(points).all() or np.abs(points).max(initial=0) > 1e7:
        raise InputError(f"{label}: a coordinate is not finite or beyond ten million; expected pixels of the photo")
    return points


def read_landmarks(path: str | os.PathLike[str]) -> F64:
    """[F, 68, 2] of a file: JSON, .npy or .pts, told apart by content. Nothing is unpickled. Raises InputError."""
    data = _read(Path(path))
    values: Any
    if data.startswith(b"\x93NUMPY"):
        values = _npy(data, path)
    elif data.lstrip().startswith((b"version", b"n_points")):
        values = _pts(data, path)
    else:
        values = _json(data, path)
    points = as_landmarks(values, str(path))
    if not len(points):
        raise InputError(f"{path}: no face; {EXPECTED}")
    return points


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise InputError(f"{path} is no file; expected landmarks as JSON, .npy or .pts")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {str(path)!r}: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > MAX_BYTES:
        raise InputError(f"{path} has more than the {MAX_BYTES // 2**20} MiB allowed for landmarks")
    return data


def _npy(data: bytes, path: object) -> NDArray[Any]:
    file = io.BytesIO(data)
    try:
        old = np.lib.format.read_magic(file) == (1, 0)
        shape, _, dtype = (np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0)(file)
        if dtype.hasobject or math.prod(shape) * dtype.itemsize > len(data):
            raise ValueError(f"its header states {dtype} {list(shape)}")
        return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
    except Exception as error:  # a hostile header raises anything
        raise InputError(f"{path}: a damaged .npy ({error}); {EXPECTED}") from error


def _pts(data: bytes, path: object) -> list[list[float]]:
    """The points between the braces of iBUG's format."""
    _, opened, rest = data.decode("ascii", "replace").partition("{")
    body, closed, _ = rest.partition("}")
    if not (opened and closed):
        raise InputError(
            f"{path}: a .pts without its braces; expected 'version: 1', 'n_points: 68', '{{', points, '}}'"
        )
    try:
        return [[float(word) for word in line.split()] for line in body.splitlines() if line.strip()]
    except ValueError as error:
        raise InputError(f"{path}: {error}; expected two numbers on each line of a .pts") from error


def _json(data: bytes, path: object) -> Any:
    """The table itself, or the value of the first of KEYS in an object; `faces` may hold objects with `landmarks`."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: no JSON, .npy or .pts ({str(error)[:100]}); {EXPECTED}") from error
    value = _inner(value, path)
    if isinstance(value, list) and value and all(isinstance(face, Mapping) for face in value):
        value = [_inner(face, path) for face in value]
    return value


def _inner(value: Any, path: object) -> Any:
    if not isinstance(value, Mapping):
        return value
    for key in KEYS:
        if key in value:
            return value[key]
    raise InputError(f"{path}: an object without {' or '.join(map(repr, KEYS))}; {EXPECTED}")
