"""FFHQ alignment against a straight-line account of its maths, numbers worked out by hand, and its symmetries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from styleclip_rt.engines.errors import BundleError, ImageError, InputError
from styleclip_rt.runtime.align import Square, aligned_crop, check_square, face_square, gaussian, read_alignment

from .align_faces import landmarks, noise_photo, smooth_photo

# The square -----------------------------------------------------------------------------------------------------------


def test_a_square_worked_out_by_hand():
    square = face_square(landmarks((150, 100), eyes=100, mouth=100))
    # x axis (100, 0) + (100, 0), half side max(2.0 * 100, 1.8 * 100), centre a tenth of 100 below the eyes
    np.testing.assert_allclose(square.corners, [(-50, -90), (-50, 310), (350, 310), (350, -90)], atol=1e-9)
    assert square.side == pytest.approx(400)


def test_the_longer_of_the_two_measures_counts():
    assert face_square(landmarks(eyes=100, mouth=112)).side == pytest.approx(2 * 1.8 * 112)
    assert face_square(landmarks(eyes=100, mouth=110)).side == pytest.approx(2 * 2.0 * 100)


@pytest.mark.parametrize("turn", [20, -90, 180, 137])
def test_the_square_turns_with_the_face(turn):
    upright, turned = (face_square(landmarks((0, 0), turn=angle)) for angle in (0, turn))
    cos, sin = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    expected = upright.corners @ np.array([[cos, sin], [-sin, cos]])
    np.testing.assert_allclose(turned.corners, expected, atol=1e-9)


def test_points_of_the_chin_nose_and_inner_mouth_do_not_matter():
    points, others = landmarks(), landmarks()
    others[[*range(36), *range(49, 54), *range(55, 68)]] += 77
    np.testing.assert_array_equal(face_square(points).corners, face_square(others).corners)


@pytest.mark.parametrize("points", [np.zeros((68, 2)), np.full((68, 2), 5.5)])
def test_points_that_make_no_face(points):
    with pytest.raises(InputError, match="make no face"):
        face_square(points)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (landmarks((-300, 100)), "outside the photo"),
        (landmarks((100, 1e6)), "outside the photo"),
        (landmarks((100, 100), eyes=1, mouth=1), "4.0 pixels wide"),
        (landmarks((100, 80), eyes=500, mouth=500), "no more than 4 times"),
    ],
)
def test_faces_outside_the_photo_or_of_absurd_size(points, message):
    with pytest.raises(ImageError, match=message):
        check_square(face_square(points), (200, 300))


# The crop -------------------------------------------------------------------------------------------------------------


def published(image: Image.Image, points: np.ndarray, output_size: int, transform_size: int) -> np.ndarray:
    """The recipe in complex numbers and by index arithmetic: [T, T, 3] float before any last reduction."""
    z = points[:, 0] + 1j * points[:, 1]
    left, right, mouth = z[36:42].sum() / 6, z[42:48].sum() / 6, (z[48] + z[54]) / 2
    eyes = (left + right) / 2
    x = (right - left) - 1j * (mouth - eyes)
    x *= max(2.0 * abs(right - left), 1.8 * abs(mouth - eyes)) / abs(x)
    corner, side = eyes + 0.1 * (mouth - eyes) - x - 1j * x, 2 * abs(x)

    shrink = math.floor(side / output_size / 2)
    if shrink > 1:
        image = image.resize((round(image.width / shrink), round(image.height / shrink)), Image.Resampling.LANCZOS)
        corner, x, side = corner / shrink, x / shrink, side / shrink

    border = max(round(0.1 * side), 3)
    quad = [corner, corner + 2j * x, corner + 2j * x + 2 * x, corner + 2 * x]
    low = [math.floor(min(getattr(q, axis) for q in quad)) for axis in ("real", "imag")]
    high = [math.ceil(max(getattr(q, axis) for q in quad)) for axis in ("real", "imag")]
    start = [max(value - border, 0) for value in low]
    stop = [min(value + border, size) for value, size in zip(high, image.size, strict=True)]
    before = [max(border - (value - at), 0) for value, at in zip(low, start, strict=True)]
    after = [max(value + border - at, 0) for value, at in zip(high, stop, strict=True)]
    pixels = np.asarray(image, dtype=np.float64)[start[1] : stop[1], start[0] : stop[0]]
    if max(before + after) > border - 4:
        before, after = ([max(value, round(0.3 * side)) for value in pad] for pad in (before, after))
        pixels = np.rint(faded(pixels, before, after, 0.02 * side)).clip(0, 255)
        start = [at - pad for at, pad in zip(start, before, strict=True)]
    return sampled(pixels, corner - complex(*start), x, transform_size)


def faded(pixels: np.ndarray, before: list[int], after: list[int], sigma: float) -> np.ndarray:
    rows, columns = (mirrored(-before[i], pixels.shape[1 - i] + after[i], pixels.shape[1 - i], 1) for i in (1, 0))
    wide = pixels[rows][:, columns]
    height, width = len(rows), len(columns)
    depth = np.empty((height, width, 1))
    for i in range(height):
        for j in range(width):
            near = min(i / before[1], (height - 1 - i) / after[1], j / before[0], (width - 1 - j) / after[0])
            depth[i, j] = 1 - near
    soft = np.einsum("ik,klc,jl->ijc", blur_matrix(height, sigma), wide, blur_matrix(width, sigma), optimize=True)
    wide = wide + (soft - wide) * np.clip(3 * depth + 1, 0, 1)
    middle = np.sort(wide.reshape(-1, 3), axis=0)
    median = (middle[(len(middle) - 1) // 2] + middle[len(middle) // 2]) / 2
    return wide + (median - wide) * np.clip(depth, 0, 1)


def mirrored(start: int, stop: int, length: int, apart: int) -> list[int]:
    """Indices start..stop-1 folded into 0..length-1; apart: 1 if the edge pixel is not repeated, 0 if it is."""
    period = 2 * (length - apart)
    folded = [i % period for i in range(start, stop)]
    return [min(i, period - 1 + apart - i) for i in folded]


def blur_matrix(length: int, sigma: float) -> np.ndarray:
    """[length, length]: a Gaussian cut off at 4 sigma, with the edge pixel repeated in the mirror."""
    radius = math.floor(4 * sigma + 0.5)
    weights = np.array([math.exp(-(k * k) / (2 * sigma * sigma)) for k in range(-radius, radius + 1)])
    matrix = np.zeros((length, length))
    for i in range(length):
        for weight, j in zip(weights / weights.sum(), mirrored(i - radius, i + radius + 1, length, 0), strict=True):
            matrix[i, j] += weight
    return matrix


def sampled(pixels: np.ndarray, corner: complex, x: complex, size: int) -> np.ndarray:
    """Bilinear samples at the centres of size x size cells of the square."""
    centre = (np.arange(size) + 0.5) / size
    at = corner + 2 * x * centre[None, :] + 2j * x * centre[:, None]
    j, i = np.floor(at.real).astype(int), np.floor(at.imag).astype(int)
    u, v = (at.real - j)[..., None], (at.imag - i)[..., None]
    top = pixels[i, j] * (1 - u) + pixels[i, j + 1] * u
    return top * (1 - v) + (pixels[i + 1, j] * (1 - u) + pixels[i + 1, j + 1] * u) * v


CASES = {
    "inside": ((400, 300), landmarks((200, 140), eyes=40, mouth=45, turn=20), 64, 64),
    "upside down": ((400, 300), landmarks((200, 140), eyes=40, mouth=45, turn=170), 64, 64),
    "reduced first": ((900, 700), landmarks((430, 300), eyes=120, mouth=130, turn=-15), 64, 64),
    "top left": ((400, 300), landmarks((20, 15), eyes=30, mouth=33, turn=10), 64, 64),
    "bottom right": ((400, 300), landmarks((390, 280), eyes=30, mouth=33, turn=40), 64, 64),
    "all sides": ((90, 120), landmarks((45, 55), eyes=40, mouth=38, turn=-5), 64, 64),
    "reduced and padded": ((500, 640), landmarks((250, 300), eyes=150, mouth=160, turn=8), 64, 64),
    "all sides, several mirrors": ((40, 50), landmarks((20, 22), eyes=30, mouth=34), 64, 64),
    "three pixels from a side": ((400, 300), landmarks((63.2, 150), eyes=30, mouth=30), 64, 64),
    "four pixels from a side": ((400, 300), landmarks((64.2, 150), eyes=30, mouth=30), 64, 64),
    "larger transform": ((400, 300), landmarks((200, 140), eyes=40, mouth=45, turn=20), 48, 192),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("make", [smooth_photo, noise_photo], ids=["smooth", "noise"])
def test_the_crop_is_the_published_one(make, name):
    size, points, output_size, transform_size = CASES[name]
    photo = make(*size)
    out = aligned_crop(photo, face_square(points), output_size, transform_size)
    assert (out.size, out.mode) == ((output_size, output_size), "RGB")
    expected = published(photo, points, output_size, transform_size)
    if transform_size > output_size:
        whole = Image.fromarray(np.uint8(expected))  # Pillow's bilinear transform cuts, it does not round
        expected = np.asarray(whole.resize(out.size, Image.Resampling.LANCZOS), dtype=float)
    difference = np.abs(np.asarray(out, dtype=float) - expected)
    assert difference.max() <= 1.01
    assert difference.mean() < 0.6


def test_an_upright_square_of_the_output_size_is_a_plain_crop():
    photo = noise_photo(900, 800)
    points = landmarks((449.5, 399.5), eyes=100, mouth=100)  # corners at 250 + 0.5 - 0.5 and so on: whole pixels
    out = aligned_crop(photo, face_square(points), 400)
    np.testing.assert_array_equal(np.asarray(out), np.asarray(photo.crop((250, 210, 650, 610))))


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_a_turned_photo_gives_the_same_crop(quarter):
    photo, points = noise_photo(300, 260), landmarks((140, 120), eyes=30, mouth=33, turn=12)
    turned = photo.transpose(
        [None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270][quarter]
    )
    size = np.array(photo.size)
    moved = points.copy()
    for _ in range(quarter):  # a quarter turn to the left: (x, y) -> (y, W - 1 - x)
        moved = np.stack([moved[:, 1], size[0] - 1 - moved[:, 0]], axis=1)
        size = size[::-1]
    crops = [np.asarray(aligned_crop(p, face_square(q), 96), int) for p, q in ((photo, points), (turned, moved))]
    assert np.abs(crops[0] - crops[1]).max() <= 1


def test_what_the_photo_lacks_is_filled_towards_its_median_colour():
    photo = Image.new("RGB", (200, 200), (30, 160, 90))
    photo.paste((200, 20, 20), (0, 0, 30, 30))
    out = np.asarray(aligned_crop(photo, face_square(landmarks((100, 90), eyes=90, mouth=90)), 128), int)
    assert np.abs(out[:3] - (30, 160, 90)).max() <= 2
    assert np.abs(out[64, 64] - (30, 160, 90)).max() == 0


@pytest.mark.parametrize(
    ("sigma", "expected"),
    [
        (0.7, [[13.35387, 40.873978, 56.408627, 35.98873, 47.412212, 62.41901],
               [66.16815, 46.3206, 52.986626, 64.01152, 43.2312, 50.82547]]),
        (3.0, [[47.170845, 47.242107, 47.333427, 47.388878, 47.39416, 47.378925],
               [50.356544, 50.10811, 49.655903, 49.10011, 48.589127, 48.281864]]),
    ],
)  # fmt: skip
def test_the_blur_is_scipys(sigma, expected):
    """First and last row of scipy 1.17's gaussian_filter; at sigma 3 the window is wider than the picture."""
    plane = ((np.arange(30) * 37) % 101).reshape(5, 6).astype(np.float32)
    np.testing.assert_allclose(gaussian(plane, sigma)[[0, -1]], expected, rtol=1e-6)


def test_neither_photo_nor_square_is_changed():
    photo, square = noise_photo(60, 50), face_square(landmarks((30, 20), eyes=20, mouth=20))
    before, corners = np.asarray(photo).copy(), square.corners.copy()
    aligned_crop(photo, square, 32)
    np.testing.assert_array_equal(np.asarray(photo), before)
    np.testing.assert_array_equal(square.corners, corners)


def test_thin_photos_and_tiny_ones():
    for size in ((300, 3), (3, 3), (1, 40)):
        middle = np.array(size) / 2
        half = max(size) * 0.6 + 4
        corners = middle + half * np.array([(-1, -1), (-1, 1), (1, 1), (1, -1)])
        assert aligned_crop(noise_photo(*size), Square(corners, 2 * half), 16).size == (16, 16)


# What a bundle says ---------------------------------------------------------------------------------------------------


def test_alignment_of_a_bundle():
    assert read_alignment({}, 64).kind == "none"
    ffhq = read_alignment({"alignment": {"kind": "ffhq"}}, 256)
    assert (ffhq.kind, ffhq.output_size, ffhq.transform_size) == ("ffhq", 256, 256)
    large = read_alignment({"alignment": {"kind": "ffhq", "output_size": 1024, "transform_size": 4096}}, 256)
    assert (large.output_size, large.transform_size) == (1024, 4096)


@pytest.mark.parametrize(
    "alignment",
    [{"kind": "cats"}, {"kind": None}, "ffhq", {"kind": "ffhq", "output_size": 0},
     {"kind": "ffhq", "output_size": 1e9}, {"kind": "ffhq", "transform_size": "4096"},
     {"kind": "ffhq", "output_size": 2048}, {"kind": "ffhq", "output_size": True}, {"kind": ["ffhq"]}],
)  # fmt: skip
def test_alignments_that_are_refused(alignment):
    with pytest.raises(BundleError, match="alignment"):
        read_alignment({"alignment": alignment}, 256)
