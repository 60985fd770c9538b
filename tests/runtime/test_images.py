"""Pictures in every mode, hostile ones, limits, and writes that are whole or absent."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from styleclip_rt.engines.errors import ImageError, InputError
from styleclip_rt.runtime import images

GREY = Image.linear_gradient("L").resize((20, 30))


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int = 8, colour: int = 2, data: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(data)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16", "PA", "RGBX"]
)
def test_every_mode_becomes_rgb_of_the_same_size(mode):
    image = GREY.convert("RGB").convert(mode) if mode not in ("I;16", "F", "I", "PA") else Image.new(mode, (20, 30))
    out = images.read_image(image)
    assert (out.mode, out.size) == ("RGB", (20, 30))


@pytest.mark.parametrize(
    ("file_format", "mode"),
    [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "1"), ("PNG", "P"), ("PNG", "LA"), ("PNG", "RGBA"),
     ("PNG", "I;16"), ("GIF", "P"), ("BMP", "RGB"), ("TIFF", "CMYK"), ("TIFF", "F"), ("TIFF", "I;16"), ("PPM", "RGB"),
     ("WEBP", "RGBA"), ("TGA", "RGB"), ("ICO", "RGBA")],
)  # fmt: skip
def test_files_of_common_formats(file_format, mode):
    image = Image.new(mode, (32, 32)) if mode in ("I;16", "F") else GREY.resize((32, 32)).convert("RGB").convert(mode)
    out = images.read_image(encoded(image, file_format))
    assert (out.mode, out.size) == ("RGB", (32, 32))


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 16384, 32768, 65535]], dtype=np.uint16)
    out = np.asarray(images.read_image(encoded(Image.fromarray(values))))
    np.testing.assert_allclose(out[0, :, 0], [0, 64, 128, 255], atol=1)


def test_dark_sixteen_bits_stay_dark():
    values = np.full((4, 4), 200, dtype=np.uint16)
    assert np.asarray(images.read_image(encoded(Image.fromarray(values)))).max() <= 1


def test_float_pictures_from_zero_to_one_and_not_a_number():
    values = np.array([[0, 0.5, 1, np.nan]], dtype=np.float32)
    out = np.asarray(images.read_image(Image.fromarray(values)))
    np.testing.assert_allclose(out[0, :, 0], [0, 128, 255, 0], atol=1)


def test_transparency_is_laid_over_white():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert np.asarray(images.read_image(encoded(clear))).min() == 255
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    assert np.asarray(images.read_image(encoded(palette, transparency=0))).min() == 255
    assert images.read_image(encoded(palette)).getpixel((0, 0)) == (10, 20, 30)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = Image.new("RGB", (16, 8), "black")
    upright.paste("red", (0, 0, 8, 4))  # top left
    exif = Image.Exif()
    exif[0x0112] = orientation
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that the camera would have applied
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    out = images.read_image(encoded(stored, "PNG", exif=exif))
    assert out.size == (16, 8)
    assert out.getpixel((2, 1)) == (255, 0, 0)
    assert out.getpixel((14, 6)) == (0, 0, 0)


def test_a_broken_exif_tag_does_not_spoil_the_pixels():
    data = encoded(Image.new("RGB", (16, 8), "red"), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\x12" * 40)
    assert images.read_image(data).size == (16, 8)


def test_the_callers_picture_is_not_changed():
    exif = Image.Exif()
    exif[0x0112] = 6
    source = Image.open(io.BytesIO(encoded(Image.new("RGB", (16, 8), "red"), exif=exif)))
    assert images.read_image(source).size == (8, 16)
    assert source.size == (16, 8)
    plain = Image.new("RGB", (4, 4))
    assert images.read_image(plain) is not plain


def test_cmyk_colours_survive():
    out = images.read_image(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"))
    assert out.getpixel((4, 4)) == (255, 0, 0)


def test_sources_agree(tmp_path: Path):
    rgb = Image.merge("RGB", [GREY, GREY.rotate(180), GREY])
    path = tmp_path / "a.png"
    rgb.save(path)
    expected = np.asarray(rgb)
    for source in (path, str(path), path.read_bytes(), rgb, expected):
        np.testing.assert_array_equal(np.asarray(images.read_image(source)), expected)


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4)), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8), np.zeros(3, np.uint8)]
)
def test_arrays_of_other_kinds_are_refused(array):
    with pytest.raises(ImageError, match="uint8"):
        images.read_image(array)


# Hostile and broken files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_truncated_files(file_format, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    data = encoded(noise, file_format)
    with pytest.raises(ImageError):
        images.read_image(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a",
     b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"RIFF\x00\x00\x00\x00WEBP",
     b"II*\x00\xff\xff\xff\xff", b"BM" + b"\xff" * 60, b"P6 99999999999 1 255\n"],
    ids=["empty", "text", "png", "jpeg", "gif", "eps", "webp", "tiff", "bmp", "ppm"],
)  # fmt: skip
def test_files_that_are_no_pictures(data):
    with pytest.raises(ImageError) as caught:
        images.read_image(data)
    assert caught.value.exit_code == 2


def test_a_header_of_a_huge_picture_is_refused_before_decoding():
    with pytest.raises(ImageError, match="400000000 pixels"):
        images.read_image(png(20000, 20000))
    with pytest.raises(ImageError, match="12000 x 12000 pixels; at most 120 million"):
        images.read_image(png(12000, 12000))
    with pytest.raises(ImageError):
        images.read_image(png(2**31 - 1, 2**31 - 1))


def test_a_decompression_bomb_within_the_header_is_refused():
    rows = b"\0" * (3000 * 30001)  # a PNG of 90 KB that unpacks to 90 MB
    with pytest.raises(ImageError, match="pixels"):
        images.read_image(png(10000, 13000, data=rows))


def test_random_damage_raises_only_image_errors():
    rng = np.random.default_rng(1)
    for file_format in ("JPEG", "PNG", "GIF", "TIFF", "WEBP"):
        good = encoded(Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)), file_format)
        for _ in range(25):
            bad = bytearray(good)
            for at in rng.integers(0, len(bad), 6):
                bad[at] = rng.integers(0, 256)
            try:
                out = images.read_image(bytes(bad), images.Limits(max_pixels=1_000_000))
            except ImageError:
                continue
            assert out.mode == "RGB"


def test_limits_on_bytes_and_pixels(tmp_path: Path):
    data = encoded(GREY)
    with pytest.raises(ImageError, match="MiB"):
        images.read_image(data, images.Limits(max_bytes=len(data) - 1))
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(ImageError, match="MiB"):
        images.read_image(path, images.Limits(max_bytes=len(data) - 1))
    with pytest.raises(ImageError, match="20 x 30"):
        images.read_image(path, images.Limits(max_pixels=599))
    with pytest.raises(ImageError, match="20 x 30"):
        images.read_image(GREY, images.Limits(max_pixels=599))


def test_only_the_first_frame_of_an_animation_is_decoded():
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    for file_format in ("GIF", "WEBP", "PNG", "TIFF"):
        lossless = {"lossless": True} if file_format == "WEBP" else {}
        data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **lossless)
        assert images.read_image(data).getpixel((8, 8)) == (255, 0, 0)


@pytest.mark.parametrize("path", ["no/such/file.png", "https://example.org/a.png", "bad\0name.png"])
def test_paths_that_cannot_be_read(path):
    with pytest.raises(ImageError):
        images.read_image(path)


def test_folders_and_pipes_are_refused(tmp_path: Path):
    with pytest.raises(ImageError, match="folder"):
        images.read_image(tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ImageError, match="no regular file"):
        images.read_image(pipe)


# Crop, tensors --------------------------------------------------------------------------------------------------------


def test_the_centred_square():
    wide = Image.new("RGB", (30, 10), "white")
    wide.paste("red", (10, 0, 20, 10))
    out = images.centre_square(wide, 10)
    assert out.size == (10, 10)
    assert np.asarray(out).tolist() == np.full((10, 10, 3), (255, 0, 0)).tolist()
    assert images.centre_square(out, 10) is out
    assert images.centre_square(Image.new("RGB", (1, 500)), 64).size == (64, 64)


def test_a_large_jpeg_decoded_reduced_looks_like_the_full_decode():
    smooth = Image.merge("RGB", [Image.radial_gradient("L").resize((1600, 1200))] * 3)
    data = encoded(smooth, "JPEG", quality=95)
    reduced = images.read_image(data, shrink_to=64)
    assert reduced.width < 1600
    full = images.centre_square(images.read_image(data), 64)
    assert images.psnr_db(images.centre_square(reduced, 64), full) > 40


def test_pm1_covers_minus_one_to_one():
    tensor = images.pm1_from_image(Image.fromarray(np.array([[[0, 127, 255]]], dtype=np.uint8)))
    assert (tensor.shape, tensor.dtype) == ((1, 3, 1, 1), np.float32)
    np.testing.assert_allclose(tensor.ravel(), [-1, -1 / 255, 1], atol=1e-6)


def test_psnr():
    assert images.psnr_db(GREY, GREY) == 100
    assert images.psnr_db(Image.new("L", (4, 4), 0), Image.new("L", (4, 4), 255)) == pytest.approx(0)


# Writing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", images.WRITE_FORMATS)
def test_write_and_read_back(tmp_path: Path, suffix):
    path = images.write_image(GREY.convert("RGB"), tmp_path / "new" / f"a{suffix}")
    assert images.read_image(path).size == (20, 30)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["a", "a.eps", "a.exe", "a.png.zip"])
def test_suffixes_that_cannot_be_written(tmp_path: Path, name):
    with pytest.raises(InputError, match=r"expected one of \.png"):
        images.write_image(GREY, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("x")])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, failure):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def save(file) -> None:
        file.write(b"half")
        raise failure

    with pytest.raises((InputError, KeyboardInterrupt, ValueError)):
        images.write_atomically(path, save)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert path.read_bytes() == b"old"


def test_a_folder_that_is_a_file_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot write"):
        images.write_image(GREY, tmp_path / "file" / "a.png")
