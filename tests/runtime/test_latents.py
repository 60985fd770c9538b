"""Latents files of all kinds that the StyleCLIP family writes; torch is needed to write some of them, not to read."""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from styleclip_rt.engines.errors import InputError
from styleclip_rt.runtime.latents import is_latents, load_latents, load_styles, save_latents

SEED = np.random.default_rng(3)


@pytest.fixture
def w(editor: Any) -> np.ndarray:
    return SEED.normal(size=(3, editor.model.num_ws, editor.model.w_dim)).astype(np.float32)


def torch_file(path: Path, value: Any, legacy: bool = False) -> Path:
    torch = pytest.importorskip("torch", reason="writes a .pt")
    to = lambda part: torch.from_numpy(part.copy()) if isinstance(part, np.ndarray) else part  # noqa: E731
    value = [to(part) for part in value] if isinstance(value, list) else to(value)
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def npy(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(path, **arrays)
    return path


FORMS: dict[str, Callable[[Path, np.ndarray], Path]] = {
    "npz": lambda p, w: npz(p / "a.npz", w=w),
    "npz of another name": lambda p, w: npz(p / "a.npz", arr_0=w),
    "npz with more in it": lambda p, w: npz(p / "a.npz", w=w, other=np.zeros(3)),
    "npy": lambda p, w: npy(p / "a.npy", w),
    "npy in doubles": lambda p, w: npy(p / "a.npy", w.astype(np.float64)),
    "npy [N,1,L,W]": lambda p, w: npy(p / "a.npy", w[:, None]),
    "pt": lambda p, w: torch_file(p / "a.pt", w),
    "older pt": lambda p, w: torch_file(p / "a.pt", w, legacy=True),
    "pt, a list of [1,L,W]": lambda p, w: torch_file(p / "a.pt", [row[None] for row in w]),
    "pt, a list of [L,W]": lambda p, w: torch_file(p / "a.pt", list(w)),
}


@pytest.mark.parametrize("form", list(FORMS))
def test_every_form_gives_the_face_that_was_asked_for(editor, w, tmp_path, form):
    path = FORMS[form](tmp_path, w)
    assert is_latents(path)
    for index in range(3):
        got = load_latents(path, editor, index)
        assert got.dtype == np.float32
        assert np.array_equal(got, w[index : index + 1])
        assert is_latents(f"{path}#{index}")
        assert np.array_equal(load_latents(f"{path}#{index}", editor), got)


def test_one_face_needs_no_index(editor, w, tmp_path):
    for array in (w[0], w[:1], w[:1, None]):
        assert np.array_equal(load_latents(npy(tmp_path / "a.npy", array), editor), w[:1])
    assert np.array_equal(load_latents(save_latents(tmp_path / "b.npz", w[:1], "x"), editor), w[:1])


def test_w_of_one_layer_serves_all(editor, w, tmp_path):
    tiled = np.repeat(w[:1, :1], editor.model.num_ws, axis=1)
    for array in (w[0, 0], w[:1, 0], w[:1, :1]):
        assert np.array_equal(load_latents(npy(tmp_path / "a.npy", array), editor), tiled)
    assert np.array_equal(load_latents(npy(tmp_path / "W.npy", w[:, 0]), editor, 2)[0, 3], w[2, 0])


def test_several_faces_must_be_chosen_from(editor, w, tmp_path):
    path = npy(tmp_path / "a.npy", w)
    with pytest.raises(InputError, match=r"holds 3 faces; choose one by its index: .*a\.npy#0 to .*a\.npy#2"):
        load_latents(path, editor)
    with pytest.raises(InputError, match="indices 0 to 2; 3 is none"):
        load_latents(f"{path}#3", editor)


def test_a_file_that_is_called_so_comes_before_an_index(editor, w, tmp_path):
    path = npy(tmp_path / "a.npy", w)
    path.rename(tmp_path / "a#1")
    npy(tmp_path / "a.npy", w[:1]).rename(tmp_path / "a")
    assert np.array_equal(load_latents(tmp_path / "a#1", editor, 2), w[2:])


def hostile() -> dict[str, Callable[[Path, np.ndarray], None]]:
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return sys.exit, (42,)

    def bomb(path: Path, w: np.ndarray) -> None:
        header = io.BytesIO()
        np.save(header, np.zeros(0, np.float32))
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("w.npy", "w", force_zip64=True) as f,
        ):
            f.write(header.getvalue().replace(b"(0,)", b"(100000000,)")[: len(header.getvalue())])
            for _ in range(100):
                f.write(bytes(1 << 20))

    return {
        "a cut npy": lambda p, w: p.write_bytes(npy(p.with_suffix(".npy"), w).read_bytes()[:300]),
        "a cut zip": lambda p, w: p.write_bytes(npz(p.with_suffix(".npz"), w=w).read_bytes()[:200]),
        "a pickle that runs": lambda p, w: p.write_bytes(pickle.dumps(Runs())),
        "an array of objects": lambda p, w: np.save(p.open("wb"), np.array([Runs()]), allow_pickle=True),
        "a zip bomb": bomb,
        "another model": lambda p, w: np.save(p.open("wb"), w[:, :, :5]),
        "four axes": lambda p, w: np.save(p.open("wb"), np.stack([w, w])),
        "words": lambda p, w: np.savez(p.open("wb"), w=np.array(["a"])),
        "two arrays": lambda p, w: np.savez(p.open("wb"), a=w, b=w),
        "nothing": lambda p, w: np.savez(p.open("wb"), w=np.zeros((0, *w.shape[1:]), np.float32)),
        "infinity": lambda p, w: np.save(p.open("wb"), w[:1] * np.inf),
        "an empty list": lambda p, w: p.write_bytes(pickle.dumps([])),
        "a list of unequal ones": lambda p, w: p.write_bytes(pickle.dumps([w[0], w[:, 0]])),
    }


@pytest.mark.parametrize("case", list(hostile()))
def test_files_that_are_no_latents_are_refused(editor, w, tmp_path, case):
    path = tmp_path / "latents"
    hostile()[case](path, w)
    with pytest.raises(InputError, match=r"latents|expected|faces"):
        load_latents(path, editor)


def test_pictures_are_no_latents(photo_file, tmp_path):
    assert not is_latents(photo_file)
    assert not is_latents(tmp_path)
    assert not is_latents(tmp_path / "nowhere.pt")


# Style space ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def styles(editor: Any) -> list[np.ndarray]:
    return [SEED.normal(size=(2, 1, layer.channels, 1, 1)).astype(np.float32) for layer in editor.model.layers]


def padded(styles: list[np.ndarray]) -> np.ndarray:
    """As StyleSpaceLatentsDataset joins them."""
    full = [np.pad(s, ((0, 0), (0, 0), (0, 512 - s.shape[2]), (0, 0), (0, 0))) for s in styles]
    return np.concatenate(full, axis=2)


@pytest.mark.parametrize("form", ["a list", "padded and joined"])
def test_style_space_latents_are_read_for_synthesis(editor, styles, tmp_path, form):
    path = torch_file(tmp_path / "s.pt", styles if form == "a list" else padded(styles))
    expected = np.concatenate([s[1].ravel() for s in styles])[None]
    got = load_styles(f"{path}#1", editor)
    assert got.shape == expected.shape
    assert np.array_equal(got, expected)
    with pytest.raises(InputError, match="latents of style space, and w is needed here"):
        load_latents(path, editor, 0)


def test_style_space_of_another_generator_is_refused(editor, styles, w, tmp_path):
    narrow = [s[:, :, :1] for s in styles]
    for value in (narrow, styles[:-1], w):
        with pytest.raises(InputError, match="expected style-space latents"):
            load_styles(torch_file(tmp_path / "s.pt", value), editor, 0)
