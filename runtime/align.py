"""FFHQ alignment: 68 landmarks to an oriented square, and the square to an upright crop.

The published recipe of the FFHQ data set (Karras et al. 2019), as e4e and StyleCLIP apply it to photographs. The order
of every rounding and filter is part of it, because inverters were trained on its crops. Points and corners are in
pixels, x right and y down, with pixel centres at whole numbers, as dlib gives them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..engines.errors import BundleError, ImageError, InputError

F64 = NDArray[np.float64]

POINTS = 68
KINDS = ("none", "ffhq")
MAX_OUTPUT, MAX_TRANSFORM = 1024, 4096  # FFHQ's own; the padded photo grows with the square of the output size
LANCZOS = Image.Resampling.LANCZOS  # Pillow's name for what the recipe calls ANTIALIAS


@dataclass(frozen=True)
class Alignment:
    """What a model expects of a photo. kind "none": the centred square; "ffhq": an aligned crop.

    output_size: pixels of that crop; transform_size: pixels of the rotated crop before it is reduced to output_size;
    e4e has 256 for both, the FFHQ data set 4096 and 1024.
    """

    kind: str
    output_size: int
    transform_size: int


@dataclass(frozen=True)
class Square:
    """An oriented square in a photo; side: its length in pixels.

    corners: [4, 2] float64, top left, bottom left, bottom right, top right in the upright crop.
    """

    corners: F64
    side: float


def read_alignment(manifest: Mapping[str, Any], default_size: int) -> Alignment:
    """The field `alignment` of a bundle. `default_size`: the output size where it names none. Raises BundleError."""
    field = manifest.get("alignment") or {"kind": "none"}
    kind = field.get("kind") if isinstance(field, Mapping) else None
    if kind not in KINDS:
        raise BundleError(f"bundle.json: alignment.kind is {kind!r}; expected one of {', '.join(KINDS)}")
    output_size = _size(field, "output_size", min(default_size, MAX_OUTPUT), MAX_OUTPUT)
    return Alignment(kind, output_size, _size(field, "transform_size", output_size, MAX_TRANSFORM))


def _size(field: Mapping[str, Any], key: str, default: int, largest: int) -> int:
    value = field.get(key, default)
    if type(value) is not int or not 1 <= value <= largest:
        raise BundleError(f"bundle.json: alignment.{key} is {value!r}; expected whole pixels, 1 to {largest}")
    return value


# The square ----------------------------------------------------------------------------------------------------------


def face_square(landmarks: F64) -> Square:
    """The square of a face from its landmarks [68, 2].

    Its x axis is the vector between the eyes minus the vector from eyes to mouth turned by 90 degrees; its half side is
    2.0 times the distance of the eyes or 1.8 times the distance from eyes to mouth, whichever is longer; its centre is
    a tenth of the way from the eyes to the mouth. Raises InputError for points that make no face.
    """
    eye_left, eye_right = landmarks[36:42].mean(axis=0), landmarks[42:48].mean(axis=0)
    eyes = (eye_left + eye_right) * 0.5
    across = eye_right - eye_left
    down = (landmarks[48] + landmarks[54]) * 0.5 - eyes  # to the middle between the corners of the mouth

    x = across - _quarter_turn(down)
    length = np.hypot(*x)
    if not length > 1e-6 * (1 + np.hypot(*across)):
        raise InputError("the landmarks make no face: eyes and mouth give no direction; check the order of the points")
    x = x / length * max(np.hypot(*across) * 2.0, np.hypot(*down) * 1.8)
    y = _quarter_turn(x)
    centre = eyes + down * 0.1
    corners = np.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y])
    return Square(corners, float(np.hypot(*x) * 2))


def _quarter_turn(v: F64) -> F64:
    """v turned by 90 degrees, x to y."""
    return np.array([-v[1], v[0]])


def check_square(square: Square, size: tuple[int, int]) -> None:
    """Raises ImageError unless the face lies in a photo of `size` pixels and is neither a dot nor far larger than it.

    What passes also bounds the memory of `aligned_crop`.
    """
    centre, (width, height) = square.corners.mean(axis=0), size
    if not (0 <= centre[0] < width and 0 <= centre[1] < height):
        raise ImageError(
            f"the landmarks put the face at ({centre[0]:.0f}, {centre[1]:.0f}), outside the photo of {width} x "
            f"{height} pixels; expected pixels of the photo turned upright"
        )
    if not 8 <= square.side <= 4 * max(size):
        raise ImageError(
            f"the landmarks make a face {square.side:.1f} pixels wide in a photo of {width} x {height}; expected at "
            "least 8, and no more than 4 times the photo"
        )


# The crop ------------------------------------------------------------------------------------------------------------


def aligned_crop(
    image: Image.Image, square: Square, output_size: int, transform_size: int | None = None
) -> Image.Image:
    """The upright crop of `square`, output_size x output_size pixels.

    image: RGB, the whole photo. What lies outside the photo is its reflection, blurred and faded to the median colour.
    """
    transform_size = transform_size or output_size
    check_square(square, image.size)
    corners, side = square.corners.copy(), square.side

    shrink = int(side / output_size * 0.5)  # reduce first: the bilinear transform would skip pixels
    if shrink > 1:
        reduced = (max(1, _rint(image.width / shrink)), max(1, _rint(image.height / shrink)))
        image = image.resize(reduced, LANCZOS)
        corners, side = corners / shrink, side / shrink

    border = max(_rint(side * 0.1), 3)
    image, corners = _cropped(image, corners, border)
    image, corners = _padded(image, corners, border, side)
    quad = tuple((corners + 0.5).flatten())  # Pillow's corners are edges of pixels, not their centres
    size = (transform_size, transform_size)
    image = image.transform(size, Image.Transform.QUAD, quad, Image.Resampling.BILINEAR)
    return image.resize((output_size, output_size), LANCZOS) if output_size < transform_size else image


def _cropped(image: Image.Image, corners: F64, border: int) -> tuple[Image.Image, F64]:
    """What the square needs of the photo, and the corners in it."""
    left, top, right, bottom = _bounds(corners)
    box = (
        max(left - border, 0),
        max(top - border, 0),
        min(right + border, image.width),
        min(bottom + border, image.height),
    )
    if box == (0, 0, *image.size):
        return image, corners
    return image.crop(box), corners - box[:2]


def _padded(image: Image.Image, corners: F64, border: int, side: float) -> tuple[Image.Image, F64]:
    """The photo continued where the square leaves it by more than a few pixels."""
    left, top, right, bottom = _bounds(corners)
    missing = (
        max(border - left, 0),
        max(border - top, 0),
        max(right - image.width + border, 0),
        max(bottom - image.height + border, 0),
    )
    if max(missing) <= border - 4:
        return image, corners
    pad = np.maximum(missing, _rint(side * 0.3))
    pixels = np.pad(np.asarray(image, np.float32), ((pad[1], pad[3]), (pad[0], pad[2]), (0, 0)), "reflect")
    _fade(pixels, pad, blur=side * 0.02)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)), corners + pad[:2]


def _fade(pixels: NDArray[np.float32], pad: NDArray[np.int64], blur: float) -> None:
    """In place: blur [H, W, 3] towards its rim, then fade the rim to the median colour.

    The depth is 1 at the rim, 0 where the photo begins, negative inside; the blur reaches a third of a pad inwards.
    """
    height, width = pixels.shape[:2]
    depth_x, depth_y = (1 - _to_rim(width, pad[0], pad[2])), (1 - _to_rim(height, pad[1], pad[3]))
    depth = np.maximum(depth_x[None, :], depth_y[:, None])
    share = np.clip(depth * 3.0 + 1.0, 0.0, 1.0)
    for channel in range(pixels.shape[2]):
        plane = pixels[..., channel]
        plane += (gaussian(plane, blur) - plane) * share
    median = np.median(pixels, axis=(0, 1))
    share = np.clip(depth, 0.0, 1.0)
    for channel in range(pixels.shape[2]):
        plane = pixels[..., channel]
        plane += (median[channel] - plane) * share


def _to_rim(length: int, before: int, after: int) -> F64:
    """Distance of each pixel to the nearer rim, in pads of that side."""
    at = np.arange(length, dtype=np.float64)
    return np.minimum(at / before, (length - 1 - at) / after)


def gaussian(plane: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Gaussian blur of [H, W], cut off at 4 sigma, edges mirrored: `scipy.ndimage.gaussian_filter` without scipy."""
    radius = int(4 * sigma + 0.5)
    weight = np.exp(-0.5 / (sigma * sigma) * np.arange(-radius, radius + 1) ** 2)
    weight /= weight.sum()
    down = _filtered(plane, weight)
    return np.ascontiguousarray(_filtered(down.T, weight).T)


def _filtered(plane: NDArray[np.float32], weight: F64) -> NDArray[np.float32]:
    """[H, W] correlated with the odd window `weight` along H, in float64, by matrix products over bands of rows."""
    rows, radius = len(plane), len(weight) // 2
    wide = np.pad(plane, ((radius, radius), (0, 0)), "symmetric")
    out = np.empty(plane.shape, dtype=np.float32)
    band = min(rows, max(64, radius))
    matrix = np.zeros((band, band + 2 * radius))
    for i in range(band):
        matrix[i, i : i + len(weight)] = weight
    for start in range(0, rows, band):
        count = min(band, rows - start)
        out[start : start + count] = matrix[:count, : count + 2 * radius] @ wide[start : start + count + 2 * radius]
    return out


def _bounds(corners: F64) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in whole pixels."""
    low, high = corners.min(axis=0), corners.max(axis=0)
    return math.floor(low[0]), math.floor(low[1]), math.ceil(high[0]), math.ceil(high[1])


def _rint(value: float) -> int:
    """Rounded half to even, as numpy's rint."""
    return int(np.rint(value))
