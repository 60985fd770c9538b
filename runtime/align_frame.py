"""From a photo to the picture that a model takes: what is asked for is settled first, then applied to the photo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..engines.errors import InputError
from .align import F64, Alignment, aligned_crop
from .align_landmarks import Finder, Landmarks, chosen, face_squares
from .images import centre_square


@dataclass(frozen=True)
class Frame:
    """A part of a photo, as the model takes it.

    photo: RGB, upright. crop: size x size pixels. quad: [4, 2] float64, where the crop's corners lie in the photo (top
    left, bottom left, bottom right, top right of the crop), in pixels counted from the photo's edge. face: which one it
    is from the left, from 1; None for the centred square. faces: how many there are.
    """

    photo: Image.Image
    crop: Image.Image
    quad: F64
    face: int | None = None
    faces: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Framing:
    """How photos are framed. landmarks: None for the centred square. shape: (height, width) of a crop that is none.

    Such a crop is the whole photo resized, as encoders of cars were trained; it is the middle of the model's picture,
    whose bands above and below are black.
    """

    size: int
    alignment: Alignment
    landmarks: Landmarks | None = None
    face: int | None = None
    notes: tuple[str, ...] = ()
    shape: tuple[int, int] | None = None

    def frame(self, photo: Image.Image) -> Frame:
        """Frame an RGB photo, turned upright and at its own resolution. Raises InputError, ImageError."""
        if self.shape is not None:
            crop = photo.resize(self.shape[::-1], Image.Resampling.BILINEAR)
            return Frame(photo, crop, _banded_quad(photo.size, self.shape), notes=self.notes)
        if self.landmarks is None:
            crop = centre_square(photo, self.size)
            return Frame(photo, crop, _centre_quad(photo.size), notes=self.notes)
        squares = face_squares(self.landmarks, photo)
        index = chosen(squares, photo.size, self.face)
        crop = aligned_crop(photo, squares[index], self.alignment.output_size, self.alignment.transform_size)
        notes = self.notes
        if len(squares) > 1 and self.face is None:
            notes += (f"the photo has {len(squares)} faces; this is number {index + 1} from the left (--face N)",)
        quad = squares[index].corners + 0.5
        return Frame(photo, centre_square(crop, self.size), quad, index + 1, len(squares), notes)


def settle(
    alignment: Alignment,
    size: int,
    landmarks: Landmarks | None,
    face: int | None,
    align: bool | None,
    finder: Callable[[], Finder | None],
    shape: tuple[int, int] | None = None,
) -> Framing:
    """The framing that was asked for, before any photo is read.

    align: None follows the bundle, and landmarks ask for it; False takes the photo as an aligned crop. finder: gives
    the landmark model to use where there are no landmarks. Raises InputError where there is neither, or a
    contradiction. shape: see `Framing`; such models know no faces.
    """
    if shape is not None:
        if landmarks is not None or face is not None or align:
            raise InputError(
                f"the bundle's inverter reads whole photos at {shape[1]} x {shape[0]} px; leave out the face"
            )
        return Framing(size, alignment, shape=shape)
    if align is False:
        if landmarks is not None or face is not None:
            raise InputError("--no-align takes the photo as it is; leave out the landmarks and --face")
        return Framing(size, alignment)
    if landmarks is None and (align or face is not None or alignment.kind == "ffhq"):
        landmarks = finder()
        if landmarks is None:
            raise InputError(_no_source(alignment))
    notes: tuple[str, ...] = ()
    if landmarks is not None and alignment.kind != "ffhq":
        notes = ("the bundle asks for no alignment; the photo was aligned because landmarks were given",)
    return Framing(size, alignment, landmarks, face, notes)


def _no_source(alignment: Alignment) -> str:
    reason = "the bundle expects FFHQ-aligned faces" if alignment.kind == "ffhq" else "alignment was asked for"
    return (
        f"{reason}, and nothing says where the face is. Give its 68 points by --landmarks FILE, or a landmark model by "
        "--landmark-model FILE (or STYLECLIP_RT_LANDMARKS), or --no-align if the photo is an aligned crop already"
    )


def _banded_quad(size: tuple[int, int], shape: tuple[int, int]) -> F64:
    """Corners of the square picture whose middle rows, `shape` of it, are the whole photo."""
    band = size[1] * (max(shape) - shape[0]) / (2 * shape[0])
    side = size[0] * (max(shape) - shape[1]) / (2 * shape[1])
    left, top, right, bottom = -side, -band, size[0] + side, size[1] + band
    return np.array([(left, top), (left, bottom), (right, bottom), (right, top)], dtype=np.float64)


def _centre_quad(size: tuple[int, int]) -> F64:
    """Corners of the square that `centre_square` takes."""
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    right, bottom = left + side, top + side
    return np.array([(left, top), (left, bottom), (right, bottom), (right, top)], dtype=np.float64)
