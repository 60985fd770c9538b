"""The edited crop back in the photo: what changes, what does not, and no seam where there is no edge."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from styleclip_rt.engines.errors import InputError
from styleclip_rt.runtime import images, paste
from styleclip_rt.runtime.align import aligned_crop, face_square
from styleclip_rt.runtime.paste import change_mask, paste_crop, paste_mode, seam_mask

from .align_faces import landmarks, noise_photo, smooth_photo


def box_quad(left: float, top: float, side: float) -> np.ndarray:
    return np.array([(left, top), (left, top + side), (left + side, top + side), (left + side, top)])


def turned_quad(centre: tuple[float, float], side: float, degrees: float) -> np.ndarray:
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return (box_quad(-side / 2, -side / 2, side)) @ np.array([[cos, sin], [-sin, cos]]) + centre


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=int)


def inside(quad: np.ndarray, size: tuple[int, int], margin: float) -> np.ndarray:
    """Pixels of a photo that lie in the square, at least `margin` sides from its border."""
    x, y = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    at = np.stack([x, y], axis=2) - quad[0]
    axes = [quad[3] - quad[0], quad[1] - quad[0]]
    u, v = (at @ axis / (axis @ axis) for axis in axes)
    return (np.minimum(u, v) >= margin) & (np.maximum(u, v) <= 1 - margin)


def test_an_upright_paste_at_the_same_scale_is_exact_and_leaves_the_rest():
    photo, crop = noise_photo(200, 150), noise_photo(100, 100, seed=1)
    quad = box_quad(60, 30, 100)
    out, before = pixels(paste_crop(photo, crop, quad)), pixels(photo)
    whole = before.copy()
    whole[30:130, 60:160] = pixels(crop)
    well_inside = inside(quad, photo.size, paste.FEATHER + 0.01)
    np.testing.assert_array_equal(out[well_inside], whole[well_inside])
    outside = ~inside(quad, photo.size, 0)
    np.testing.assert_array_equal(out[outside], before[outside])
    between = np.minimum(before, whole) - 1 <= out
    assert (between & (out <= np.maximum(before, whole) + 1)).all()


@pytest.mark.parametrize("turn", [0, 20, -75, 160])
@pytest.mark.parametrize("size", [64, 200])
def test_an_aligned_crop_pasted_back_is_the_photo(turn, size):
    photo = smooth_photo(500, 400)
    square = face_square(landmarks((240, 190), eyes=50, mouth=52, turn=turn))
    crop = aligned_crop(photo, square, size)
    out = paste_crop(photo, crop, square.corners + 0.5)
    error = np.abs(pixels(out) - pixels(photo))
    assert error[inside(square.corners + 0.5, photo.size, 0.2)].mean() < 1.5
    assert error.max() < 12
    assert (error[~inside(square.corners + 0.5, photo.size, 0)] == 0).all()


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_the_orientation_and_place_are_the_crops(scale):
    """A crop with one coloured quarter each: the quarters come out where the square's corners are."""
    side = round(100 * scale)
    crop = Image.new("RGB", (side, side))
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]  # top left, bottom left, bottom right, top right
    for colour, place in zip(colours, [(0, 0), (0, 1), (1, 1), (1, 0)], strict=True):
        crop.paste(colour, tuple(at * side // 2 for at in (*place, place[0] + 1, place[1] + 1)))
    quad = turned_quad((150, 140), 100, 70)
    out = paste_crop(Image.new("RGB", (300, 280), "grey"), crop, quad)
    for colour, corner in zip(colours, quad, strict=True):
        at = np.floor(corner + 0.3 * (quad.mean(axis=0) - corner)).astype(int)
        np.testing.assert_allclose(out.getpixel(tuple(at.tolist())), colour, atol=3)


def test_the_mask_rises_from_zero_at_the_border():
    quad = turned_quad((100, 90), 80, 30)
    mask = seam_mask((200, 180), quad, (0, 0, 200, 180))
    assert mask.shape == (180, 200)
    assert (mask[~inside(quad, (200, 180), 0)] == 0).all()
    assert (mask[inside(quad, (200, 180), paste.FEATHER)] == 1).all()
    assert mask[inside(quad, (200, 180), 0) & ~inside(quad, (200, 180), 0.01)].max() < 0.05
    steps = np.abs(np.diff(mask, axis=1))
    assert steps.max() < 0.25


def test_a_side_on_the_photos_border_is_no_seam():
    photo, crop = noise_photo(160, 100), noise_photo(100, 100, seed=2)
    out = pixels(paste_crop(photo, crop, box_quad(30, 0, 100)))
    np.testing.assert_array_equal(out[[0, -1], 60:100], pixels(crop)[[0, -1], 30:70])
    np.testing.assert_array_equal(out[:, :30], pixels(photo)[:, :30])
    whole = paste_crop(noise_photo(100, 100), crop, box_quad(0, 0, 100))
    np.testing.assert_array_equal(pixels(whole), pixels(crop))


@pytest.mark.parametrize("centre", [(0, 0), (199, 149), (100, -10), (-20, 160)])
def test_squares_that_leave_the_photo(centre):
    photo, quad = noise_photo(200, 150), turned_quad(centre, 90, 25)
    out = paste_crop(photo, Image.new("RGB", (64, 64), "white"), quad)
    assert out.size == photo.size
    outside = ~inside(quad, photo.size, 0)
    np.testing.assert_array_equal(pixels(out)[outside], pixels(photo)[outside])
    deep = inside(quad, photo.size, paste.FEATHER)
    assert deep.any()
    assert (pixels(out)[deep] >= 254).all()


def test_a_picture_with_bands_goes_back_without_them():
    """What an inverter of whole photos gives: the photo in the middle rows, its sides in another proportion."""
    photo, square = smooth_photo(400, 200), Image.new("RGB", (256, 256))
    square.paste(photo.resize((256, 192), Image.Resampling.LANCZOS), (0, 32))
    band = 200 * 32 / 192
    quad = np.array([(0, -band), (0, 200 + band), (400, 200 + band), (400, -band)])
    error = np.abs(pixels(paste_crop(photo, square, quad))[3:-3] - pixels(photo)[3:-3])
    assert error.max() < 12
    assert error.mean() < 1


def test_bands_make_no_difference(monkeypatch):
    photo, crop, quad = noise_photo(220, 210), noise_photo(64, 64, seed=3), turned_quad((100, 120), 130, 33)
    whole = paste_crop(photo, crop, quad)
    monkeypatch.setattr(paste, "BAND_PIXELS", 700)
    np.testing.assert_array_equal(pixels(paste_crop(photo, crop, quad)), pixels(whole))


def test_a_fine_crop_is_reduced_without_aliasing():
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    out = paste_crop(Image.new("RGB", (100, 100), "grey"), Image.fromarray(stripes), turned_quad((50, 50), 40, 15))
    middle = pixels(out)[45:55, 45:55]
    assert np.abs(middle - 127.5).max() < 8


def test_the_photo_itself_stays():
    photo = noise_photo(100, 100)
    before = photo.tobytes()
    paste_crop(photo, noise_photo(64, 64, seed=4), box_quad(10, 10, 60))
    assert photo.tobytes() == before


# What changed ---------------------------------------------------------------------------------------------------------


def test_no_change_leaves_every_pixel():
    photo, crop = noise_photo(200, 150), noise_photo(96, 96, seed=5)
    nearly = Image.fromarray((pixels(crop) ^ 1).astype(np.uint8))  # rounding of another graph
    for edited in (crop, nearly):
        mask = change_mask(edited, crop)
        assert mask.getextrema() == (0, 0)
        out = paste_crop(photo, edited, turned_quad((100, 80), 90, 10), mask)
        np.testing.assert_array_equal(pixels(out), pixels(photo))


@pytest.mark.parametrize("side", [64, 1024])
def test_only_what_changed_is_pasted(side):
    crop = Image.new("RGB", (side, side), (90, 90, 90))
    edited = crop.copy()
    quarter = side // 4
    edited.paste((220, 60, 90), (quarter, quarter, 2 * quarter, 2 * quarter))
    mask = np.asarray(change_mask(edited, crop).resize((64, 64)))
    assert (mask[20:28, 20:28] == 255).all()
    assert (mask[:8] == 0).all()
    assert (mask[44:] == 0).all()
    assert (mask[:, 44:] == 0).all()
    photo = noise_photo(300, 300)
    quad = box_quad(50, 50, 200)
    out = pixels(paste_crop(photo, edited, quad, change_mask(edited, crop)))
    np.testing.assert_allclose(out[110:140, 110:140].reshape(-1, 3), np.tile((220, 60, 90), (900, 1)), atol=2)
    np.testing.assert_array_equal(out[190:], pixels(photo)[190:])


def test_modes():
    assert [paste_mode(value) for value in (False, True, "crop", "changed")] == [None, "changed", "crop", "changed"]
    for value in ("", "all", "Crop"):
        with pytest.raises(InputError, match="'changed' or 'crop'"):
            paste_mode(value)


# Metadata -------------------------------------------------------------------------------------------------------------

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()  # holds the time: made once


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_the_colour_profile_goes_along_and_nothing_else(tmp_path, suffix):
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    noise_photo(64, 48).save(file, "JPEG", icc_profile=PROFILE, exif=exif, comment=b"private")
    photo = images.read_image(file.getvalue())
    out = paste_crop(photo, noise_photo(64, 64, seed=6), box_quad(8, 0, 48))
    path = images.write_image(out, tmp_path / f"out{suffix}")
    with Image.open(path) as back:
        assert back.info["icc_profile"] == PROFILE
        assert 0x010F not in back.getexif()
        assert "comment" not in back.info


def test_a_profile_of_other_colours_is_left_out():
    photo = noise_photo(64, 48)
    photo.info["icc_profile"] = PROFILE[:16] + b"CMYK" + PROFILE[20:]
    assert paste_crop(photo, noise_photo(64, 64), box_quad(0, 0, 40)).info == {}
