"""Landmark files in and out of shape, and which face is meant."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from styleclip_rt.engines.errors import ImageError, InputError
from styleclip_rt.runtime.align import face_square
from styleclip_rt.runtime.align_landmarks import as_landmarks, chosen, face_squares, read_landmarks

from .align_faces import landmarks, noise_photo

LEFT, RIGHT = landmarks((100, 150), eyes=40, mouth=40), landmarks((300, 140), eyes=44, mouth=44)


def npy(array: np.ndarray, **options: bool) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def pts(points: np.ndarray) -> bytes:
    lines = "\n".join(f"{x!r} {y!r}" for x, y in points.tolist())
    return f"version: 1\nn_points:  68\n{{\n{lines}\n}}\n".encode()


FILES = {
    "a list": json.dumps(LEFT.tolist()).encode(),
    "a list of one face": json.dumps([LEFT.tolist()]).encode(),
    "an object": json.dumps({"landmarks": LEFT.tolist(), "score": 1}).encode(),
    "FFHQ's own key": json.dumps({"face_landmarks": LEFT.tolist()}).encode(),
    "faces": json.dumps({"faces": [{"landmarks": LEFT.tolist()}]}).encode(),
    "npy": npy(LEFT),
    "npy, Fortran order": npy(np.asfortranarray(LEFT)),
    "npy of three axes": npy(LEFT[None]),
    "pts": pts(LEFT),
}


@pytest.mark.parametrize("kind", FILES)
def test_formats_are_told_by_content(tmp_path, kind):
    path = tmp_path / "landmarks.of-no-known-kind"
    path.write_bytes(FILES[kind])
    np.testing.assert_array_equal(read_landmarks(path), LEFT[None])


def test_several_faces_and_whole_numbers(tmp_path):
    path = tmp_path / "two.json"
    path.write_text(json.dumps(np.rint([LEFT, RIGHT]).astype(int).tolist()))
    assert read_landmarks(path).shape == (2, 68, 2)
    np.save(tmp_path / "two.npy", np.array([LEFT, RIGHT], dtype=np.float32))
    np.testing.assert_allclose(read_landmarks(tmp_path / "two.npy"), [LEFT, RIGHT], rtol=1e-6)


def huge_header() -> bytes:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 68, 2), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


REFUSED = {
    "empty": b"",
    "text": b"no landmarks here",
    "html": b"<html><body>404</body></html>",
    "a JPEG": b"\xff\xd8\xff\xe0" + bytes(40),
    "too few points": json.dumps(LEFT[:67].tolist()).encode(),
    "three coordinates": json.dumps(np.pad(LEFT, ((0, 0), (0, 1))).tolist()).encode(),
    "ragged": json.dumps([*LEFT[:67].tolist(), [1]]).encode(),
    "words": json.dumps([["a", "b"]] * 68).encode(),
    "no face": b"[]",
    "an object of other things": b'{"points": []}',
    "not finite": json.dumps([[float("nan"), 1.0]] * 68).encode(),
    "far away": json.dumps([[1e30, 1.0]] * 68).encode(),
    "a number": b"7",
    "null": b"null",
    "nested deeply": b"[" * 100_000,
    "a dictionary of lists": json.dumps({"landmarks": {"x": 1}}).encode(),
    "too many faces": json.dumps([[[0, 0]] * 68] * 201).encode(),
    "npy of objects": npy(np.array([LEFT, None], dtype=object), allow_pickle=True),
    "npy cut short": npy(LEFT)[:300],
    "npy that claims terabytes": huge_header(),
    "npy of texts": npy(np.array([["a", "b"]] * 68)),
    "npy of another shape": npy(LEFT.T),
    "pts without braces": b"version: 1\nn_points: 68\n" + b"1 2\n" * 68,
    "pts with words": b"version: 1\nn_points: 68\n{\n" + b"one two\n" * 68 + b"}",
    "pts of 5 points": b"version: 1\nn_points: 5\n{\n" + b"1 2\n" * 5 + b"}",
    "too large": b" " * (4 * 2**20 + 1),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_files_that_are_refused(tmp_path, kind):
    path = tmp_path / "landmarks"
    path.write_bytes(REFUSED[kind])
    with pytest.raises(InputError, match="landmarks"):
        read_landmarks(path)


@pytest.mark.parametrize("name", ["missing.json", ".", "bad\0name"])
def test_paths_that_cannot_be_read(tmp_path, name):
    with pytest.raises(InputError):
        read_landmarks(tmp_path / name)


def test_damaged_files_give_input_errors_only(tmp_path):
    rng, path = np.random.default_rng(3), tmp_path / "damaged"
    for data in (FILES["npy"], FILES["a list"], FILES["pts"]):
        for _ in range(40):
            bad = bytearray(data)
            for at in rng.integers(0, min(len(bad), 200), 4):
                bad[at] = rng.integers(0, 256)
            path.write_bytes(bytes(bad))
            try:
                assert read_landmarks(path).shape[1:] == (68, 2)
            except InputError:
                continue


@pytest.mark.parametrize("values", [[], np.zeros((0, 68, 2))])
def test_no_face_at_all(values):
    assert as_landmarks(values, "it").shape == (0, 68, 2)


# Which face -----------------------------------------------------------------------------------------------------------


def test_faces_are_counted_from_the_left():
    photo = noise_photo(400, 300)
    for order in ([LEFT, RIGHT], [RIGHT, LEFT]):
        squares = face_squares(order, photo)
        np.testing.assert_array_equal(squares[0].corners, face_square(LEFT).corners)
        assert chosen(squares, photo.size, face=2) == 1


def test_of_faces_about_as_large_the_one_nearest_the_centre_is_meant():
    squares = face_squares([LEFT, RIGHT], noise_photo(400, 300))  # 100 px apart: 80 and 88 from the corners' centres
    assert chosen(squares, (260, 300)) == 0
    assert chosen(squares, (520, 300)) == 1


def test_a_much_larger_face_is_meant_wherever_it_is():
    small, large = landmarks((200, 140), eyes=29, mouth=29), landmarks((60, 140), eyes=40, mouth=40)
    squares = face_squares([small, large], noise_photo(400, 300))
    assert chosen(squares, (400, 300)) == 0  # 29 is less than 0.75 x 40
    near = face_squares([landmarks((200, 140), eyes=31, mouth=31), large], noise_photo(400, 300))
    assert chosen(near, (400, 300)) == 1


@pytest.mark.parametrize("face", [0, 3, -1])
def test_a_face_that_is_not_there(face):
    squares = face_squares([LEFT, RIGHT], noise_photo(400, 300))
    with pytest.raises(InputError, match="expected 1 to 2"):
        chosen(squares, (400, 300), face)


def test_no_face_says_what_to_do():
    with pytest.raises(ImageError, match=r"no face was found.*--landmarks FILE.*--no-align"):
        chosen([], (400, 300))


def test_a_finder_sees_the_upright_photo_and_its_output_is_checked():
    photo = noise_photo(400, 300)
    seen = []

    def finder(image):
        seen.append(image)
        return [LEFT]

    assert len(face_squares(finder, photo)) == 1
    assert seen == [photo]
    with pytest.raises(InputError, match="landmark model's output"):
        face_squares(lambda image: np.zeros((1, 5, 2)), photo)


def test_landmarks_of_another_photo_are_refused():
    with pytest.raises(ImageError, match="outside the photo of 80 x 60"):
        face_squares([LEFT], noise_photo(80, 60))
