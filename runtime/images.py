"""Pictures in and out: any Pillow-readable photo to RGB, the model's crop, -1..1 tensors, and atomic writes.

Limits on bytes and pixels are applied to the file's header, before any pixel is decoded, and of a file with several
frames only the first is ever decoded.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import uuid
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..engines.errors import ImageError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]"

# Formats of photographs, the usual ones first: their plugins are loaded alone. Left out on purpose: EPS, PDF, WMF and
# others that run an interpreter or hold no pixels.
USUAL_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "PPM")
OTHER_FORMATS = ("WEBP", "TIFF", "AVIF", "JPEG2000", "ICO", "TGA", "PCX", "SGI", "QOI", "PSD")
WRITE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF",
                 ".tiff": "TIFF"}  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What a picture may cost: file size in bytes, and pixels (width x height) as its header states them."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 120_000_000  # a 108-megapixel phone photo passes


def read_image(source: ImageSource, limits: Limits | None = None, shrink_to: int | None = None) -> Image.Image:
    """Decode a picture to 8-bit RGB, turned upright by its EXIF tag.

    source: a path, encoded bytes, a Pillow image, or a uint8 array [H, W], [H, W, 3] or [H, W, 4].
    shrink_to: the caller needs no more than about this many pixels a side: large JPEGs are then decoded reduced.
    Transparency is laid over white; 16-bit and float grey is scaled to 8 bits. Raises ImageError whatever is wrong.
    """
    limits = limits or Limits()
    if isinstance(source, np.ndarray):
        return _rgb(_from_array(source))
    if isinstance(source, Image.Image):
        _check_pixels(source, limits, "the image")
        with _decoding("the image"):
            return _rgb(_upright(source.copy()))
    data, label = _read_bytes(source, limits)
    with _decoding(label), _opened(data) as image:
        _check_pixels(image, limits, label)
        if shrink_to:
            image.draft(None, (2 * shrink_to, 2 * shrink_to))  # JPEG only; a no-op for every other format
        image.load()
        return _rgb(_upright(image))


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """The largest centred square of `image`, resized to `size` x `size` pixels; unchanged if it is that already."""
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.LANCZOS, box=box)


def pm1_from_image(image: Image.Image) -> NDArray[np.float32]:
    """RGB picture to a tensor [1, 3, H, W] float32 in -1..1."""
    hwc = np.asarray(image.convert("RGB"), dtype=np.float32)
    return np.ascontiguousarray(hwc.transpose(2, 0, 1)[None] / np.float32(127.5) - np.float32(1))


def image_from_u8(image_u8: NDArray[np.uint8]) -> Image.Image:
    """Array [H, W, 3] uint8 to a picture."""
    return Image.fromarray(np.ascontiguousarray(image_u8))


def psnr_db(a: Image.Image, b: Image.Image) -> float:
    """Peak signal-to-noise ratio of two RGB pictures of equal size, in dB; 100 where they are equal."""
    error = np.mean((np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)) ** 2)
    return 100.0 if error == 0 else min(100.0, float(10 * np.log10(255.0**2 / error)))


def write_image(image: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Write a picture atomically in the format of the suffix; InputError for a suffix that is not in WRITE_FORMATS."""
    file_format = write_format(path)
    options: dict[str, object] = {"quality": 95} if file_format in ("JPEG", "WEBP") else {}
    if image.info.get("icc_profile"):
        options["icc_profile"] = image.info["icc_profile"]
    return write_atomically(path, lambda file: image.save(file, file_format, **options))


def write_format(path: str | os.PathLike[str]) -> str:
    """Pillow's format name for an output path, checked before any work is done."""
    suffix = Path(path).suffix.lower()
    if suffix not in WRITE_FORMATS:
        given = repr(suffix) if suffix else "no suffix"
        raise InputError(f"cannot write a picture to {path}: {given}; expected one of {', '.join(WRITE_FORMATS)}")
    return WRITE_FORMATS[suffix]


def write_atomically(path: str | os.PathLike[str], save: Callable[[IO[bytes]], object]) -> Path:
    """Call `save` on a temporary file beside `path`, then rename it: a whole file appears, or none. Makes parents."""
    target = Path(path)
    temporary = target.with_name(f".{target.name[:80]}.{uuid.uuid4().hex}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            save(file)
        os.replace(temporary, target)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return target


# Decoding ------------------------------------------------------------------------------------------------------------


def _read_bytes(source: str | os.PathLike[str] | bytes, limits: Limits) -> tuple[bytes, str]:
    """The encoded file and a name for messages. Refuses anything that is not a regular file of a bearable size."""
    if isinstance(source, bytes | bytearray | memoryview):
        data, label = bytes(source), "the image data"
    else:
        label = os.fspath(source)
        if "://" in label:
            raise ImageError(f"{label} is an address; expected a file. Download it first")
        data = _read_file(label, limits)
    if len(data) > limits.max_bytes:
        raise ImageError(f"{label} has more than the {limits.max_bytes // 2**20} MiB allowed for a picture")
    if not data:
        raise ImageError(f"{label} is empty; expected a picture")
    return data, label


def _read_file(path: str, limits: Limits) -> bytes:
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise ImageError(f"{path} is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}; expected a picture")
        with open(path, "rb") as file:
            return file.read(limits.max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"cannot read {path!r}: {reason}") from error


def _opened(data: bytes) -> Image.Image:
    """Read the header. Plugins of the rarer formats are imported only if none of the usual ones knows the file."""
    try:
        return Image.open(io.BytesIO(data), formats=USUAL_FORMATS)
    except Image.UnidentifiedImageError:
        Image.init()
        return Image.open(io.BytesIO(data), formats=[name for name in OTHER_FORMATS if name in Image.OPEN])


def _check_pixels(image: Image.Image, limits: Limits, label: str) -> None:
    pixels = image.width * image.height
    if pixels > limits.max_pixels:
        raise ImageError(
            f"{label} is {image.width} x {image.height} pixels; at most {limits.max_pixels / 1e6:g} million are "
            "allowed. Make it smaller first"
        )
    if pixels == 0:
        raise ImageError(f"{label} is {image.width} x {image.height} pixels; expected a picture")


@contextlib.contextmanager
def _decoding(label: str) -> Iterator[None]:
    """Turn whatever Pillow raises on a broken or hostile file into one ImageError, and keep its warnings quiet."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError(
            f"{label} is not a picture in a known format; expected JPEG, PNG, WebP, TIFF, GIF, BMP or the like "
            "(convert HEIC photos to JPEG first)"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{label} states a size that only a decompression bomb has: {error}") from error
    except Exception as error:  # parsers of hostile files raise anything: struct.error, SyntaxError, MemoryError
        raise ImageError(f"{label} is damaged or cut short: {error or type(error).__name__}") from error


# Modes ---------------------------------------------------------------------------------------------------------------


def _upright(image: Image.Image) -> Image.Image:
    """Turn the picture in place as its EXIF tag says; a tag that cannot be read does not spoil the pixels."""
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode to RGB, 8 bits."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        return _eight_bits(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ImageError(f"pictures in Pillow mode {image.mode!r} are not supported; convert to RGB first") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or float, to 8 bits. Full scale is the least of 1.0, 255, 65535, 2^32 - 1 that fits."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    top = float(values.max(initial=0))
    scales: Sequence[float] = (1.0, 255.0, 65535.0, 2.0**32 - 1)
    if image.mode.startswith("I;16"):
        scales = (65535.0,)
    elif image.mode == "I":
        scales = scales[1:] if top <= 255 else scales[2:]
    full = next((scale for scale in scales if top <= scale), top)
    return Image.fromarray(np.clip(np.rint(values * (255.0 / full)), 0, 255).astype(np.uint8))


def _from_array(array: NDArray[np.uint8]) -> Image.Image:
    shape_ok = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not shape_ok or array.size == 0:
        raise ImageError(f"got an array {array.dtype} {array.shape}; expected uint8 [H, W], [H, W, 3] or [H, W, 4]")
    return Image.fromarray(np.ascontiguousarray(array))
