"""An edited crop back into the whole photograph, its seam blended.

The crop is warped by the inverse of its framing, at the photo's own resolution, and laid over the photo through a mask
that falls to 0 at the crop's border. Where the mask is 0 the photo's pixels stay as they are, bit for bit. Mode "crop"
pastes the whole crop. Mode "changed" pastes the part that the edit changed: what the inverter cannot show (background,
texture, a hand) stays the photo's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter

from ..engines.errors import InputError
from .align import F64

MODES = ("changed", "crop")
FEATHER = 0.12  # width of the seam along the crop's border; this and the next two are in sides of the crop
WIDEN, SOFTEN = 0.03, 0.02  # of the changed part
UNCHANGED, CHANGED = 12, 48  # levels of 255 by which pixels differ: up to the first nothing, from the second all
MASK_PIXELS = 256
LARGEST = 4096  # pixels a side that a crop is enlarged to before it is warped
BAND_PIXELS = 1_000_000  # the photo is worked on in bands of about this many pixels, which bounds the memory


def paste_mode(paste: bool | str) -> str | None:
    """The mode that the argument `paste` asks for, None for False; True is "changed". Raises InputError."""
    mode = ("changed" if paste else None) if isinstance(paste, bool) else paste
    if mode is not None and mode not in MODES:
        raise InputError(f"paste is {paste!r}; expected True, False, {' or '.join(map(repr, MODES))}")
    return mode


def paste_crop(photo: Image.Image, edited: Image.Image, quad: F64, mask: Image.Image | None = None) -> Image.Image:
    """The photo with the crop `edited` in the square `quad` of it; the photo itself is not changed.

    photo: RGB. edited: RGB, square. quad: [4, 2] corners as in `align_frame.Frame`. mask: mode L, square, what of the
    crop to paste; None for all of it.
    """
    out = _copy(photo)
    edited = _to_scale(edited, quad)
    for box in _bands(photo.size, quad):
        share = seam_mask(photo.size, quad, box)
        if mask is not None:
            share = share * (np.asarray(_warped(mask, quad, box), dtype=np.float32) / np.float32(255))
        out.paste(_warped(edited, quad, box), box[:2], Image.fromarray(np.rint(255 * share).astype(np.uint8)))
    return out


def change_mask(edited: Image.Image, inverted: Image.Image) -> Image.Image:
    """Where the edit changed the picture, as a mask of mode L and at most 256 pixels a side.

    edited, inverted: RGB crops of one size, square: the picture at alpha and at 0. Changes are widened, so that all of
    an edited part comes from one picture, and their rim is softened. No change, no mask.
    """
    side = min(edited.width, MASK_PIXELS)
    change = ImageChops.difference(edited, inverted).resize((side, side), Image.Resampling.BOX)
    largest = Image.fromarray(np.asarray(change).max(axis=2))
    wide = largest.filter(ImageFilter.MaxFilter(2 * max(1, round(WIDEN * side)) + 1))
    share = _smooth((np.asarray(wide, dtype=np.float32) - UNCHANGED) / (CHANGED - UNCHANGED))
    mask = Image.fromarray(np.rint(255 * share).astype(np.uint8))
    return mask.filter(ImageFilter.GaussianBlur(SOFTEN * side))


def seam_mask(
    size: tuple[int, int], quad: F64, box: tuple[int, int, int, int], feather: float = FEATHER
) -> NDArray[np.float32]:
    """The mask [H, W] in 0..1 of the part `box` of a photo of `size` pixels: 0 outside the square, 1 well inside.

    A side of the square that lies wholly outside the photo, or on its border, is no seam and is not blended.
    """
    u, v = _in_square(quad, box)
    distances = (u, 1 - v, 1 - u, v)  # to the sides left, bottom, right, top
    seams = [_meets(quad[i], quad[(i + 1) % 4], size) for i in range(4)]
    inside = np.minimum(np.minimum(u, 1 - u), np.minimum(v, 1 - v)) >= 0
    nearest = np.full_like(u, feather)
    for distance in (d for d, seam in zip(distances, seams, strict=True) if seam):
        np.minimum(nearest, distance, out=nearest)
    return np.where(inside, _smooth(nearest / np.float32(feather)), np.float32(0))


def _in_square(quad: F64, box: tuple[int, int, int, int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Coordinates of pixel centres along the top and the left side of the square, 0..1 within it; each [H, W]."""
    origin, across, down = quad[0], quad[3] - quad[0], quad[1] - quad[0]
    x = np.arange(box[0], box[2])[None, :] + 0.5 - origin[0]
    y = np.arange(box[1], box[3])[:, None] + 0.5 - origin[1]
    units = [axis / float(axis @ axis) for axis in (across, down)]
    u, v = ((x * a).astype(np.float32) + (y * b).astype(np.float32) for a, b in units)
    return u, v


def _warped(crop: Image.Image, quad: F64, box: tuple[int, int, int, int]) -> Image.Image:
    """The crop as it lies in the part `box` of the photo."""
    rows = []
    for axis, length in ((quad[3] - quad[0], crop.width), (quad[1] - quad[0], crop.height)):
        step = axis * (length / float(axis @ axis))
        rows += [*step, float(step @ (np.array(box[:2]) - quad[0]))]
    size = (box[2] - box[0], box[3] - box[1])
    return crop.transform(size, Image.Transform.AFFINE, tuple(map(float, rows)), Image.Resampling.BICUBIC)


def _to_scale(crop: Image.Image, quad: F64) -> Image.Image:
    """The crop at the size that it has in the photo, so that the warp only turns and shifts it."""
    lengths = [float(np.hypot(*(corner - quad[0]))) for corner in (quad[3], quad[1])]
    width, height = (max(1, min(round(length), max(LARGEST, crop.width))) for length in lengths)
    return crop.resize((width, height), Image.Resampling.LANCZOS)


def _bands(size: tuple[int, int], quad: F64) -> Iterator[tuple[int, int, int, int]]:
    """Boxes that cover the part of the photo under the square."""
    left, top = (int(n) for n in np.maximum(np.floor(quad.min(axis=0)), 0))
    right, bottom = (int(n) for n in np.minimum(np.ceil(quad.max(axis=0)), size))
    rows = max(1, BAND_PIXELS // max(1, right - left))
    for start in range(top, bottom, rows):
        if right > left:
            yield left, start, right, min(start + rows, bottom)


def _meets(a: F64, b: F64, size: tuple[int, int]) -> bool:
    """Whether the line from a to b runs through the photo's inside, half a pixel from its border."""
    low, high, direction = 0.0, 1.0, b - a
    for start, step, end in zip(a, direction, size, strict=True):
        if abs(step) < 1e-9:
            if not 0.5 < start < end - 0.5:
                return False
            continue
        t = sorted(((0.5 - start) / step, (end - 0.5 - start) / step))
        low, high = max(low, t[0]), min(high, t[1])
    return low < high


def _smooth(x: NDArray[Any]) -> NDArray[Any]:
    """0 below 0, 1 above 1, smooth between."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _copy(photo: Image.Image) -> Image.Image:
    """A copy with the photo's RGB colour profile, without which its colours would change, and no other metadata."""
    out = photo.copy()
    profile = photo.info.get("icc_profile")
    out.info = {"icc_profile": profile} if isinstance(profile, bytes) and profile[16:20] == b"RGB " else {}
    return out
