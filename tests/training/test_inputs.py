"""Faces to start from: photos, latents files and seeds give the latents that the runtime gives for the same pack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from styleclip_rt.engines.errors import ImageError, InputError, PackError
from styleclip_rt.runtime.editor import Editor
from styleclip_rt.runtime.images import read_image
from styleclip_rt.runtime.store import sample_portrait
from styleclip_rt.runtime.training.inputs import default_psi, mean_face, pack_model, read_inputs
from styleclip_rt.runtime.training.pack import Pack, load_pack


@pytest.fixture(scope="module")
def pack() -> Pack:
    return load_pack("toyfaces")


@pytest.fixture(scope="module")
def editor(pack: Pack) -> Editor:
    return Editor.open("toyfaces", device="cpu")


def test_a_photo_is_framed_and_inverted_as_the_runtime_does(pack: Pack, editor: Editor) -> None:
    given = read_inputs(pack, ["sample", sample_portrait()])
    crop = editor.photo(sample_portrait())
    assert given.names == ("portrait", "portrait-2")
    assert given.w.shape == (2, pack.layout.num_ws, pack.layout.config.w_dim)
    assert given.w.dtype == torch.float32
    assert np.abs(given.w.numpy() - editor.invert(crop)).max() < 1e-3
    assert np.array_equal(np.asarray(given.crops[0]), np.asarray(crop))


def test_seeds_are_the_faces_of_generate(pack: Pack, editor: Editor) -> None:
    given = read_inputs(pack, [], seeds=[5, 7])
    assert given.names == ("seed000005", "seed000007")
    assert given.crops == (None, None)
    assert np.abs(given.w.numpy() - editor.sample([5, 7])).max() < 1e-4
    less = read_inputs(pack, [], seeds=[5], psi=0.5).w - mean_face(pack)
    assert torch.allclose(less, 0.5 / default_psi(pack) * (given.w[:1] - mean_face(pack)), atol=1e-5)


def test_latents_files_give_all_their_faces_or_one(pack: Pack, tmp_path: Path) -> None:
    w = read_inputs(pack, [], seeds=range(3)).w
    torch.save(w, tmp_path / "faces.pt")
    np.save(tmp_path / "one.npy", w[1, 0].numpy())
    given = read_inputs(pack, [tmp_path / "faces.pt", tmp_path / "one.npy", f"{tmp_path}/faces.pt#2"], seeds=[0])
    assert given.names == ("faces-0", "faces-1", "faces-2", "one", "faces-2-2", "seed000000")
    assert torch.equal(given.w[:3], w)
    assert torch.equal(given.w[3], w[1])
    assert torch.equal(given.w[4], w[2])


BAD = {
    "other shape": (lambda p: np.save(p, np.zeros((2, 3, 4), np.float32)), "expected w of faces"),
    "no face": (lambda p: np.save(p, np.zeros((0, 10, 128), np.float32)), "holds no face"),
    "not finite": (lambda p: np.save(p, np.full((1, 10, 128), np.nan, np.float32)), "not finite"),
    "empty file": (lambda p: p.write_bytes(b""), "expected latents"),
    "absent": (lambda p: None, "absent.npy"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_latents_name_the_file_and_what_was_expected(pack: Pack, tmp_path: Path, case: str) -> None:
    file = tmp_path / "absent.npy"
    make, message = BAD[case]
    make(file)
    with pytest.raises(InputError, match=message) as error:
        read_inputs(pack, [file])
    assert str(file) in str(error.value)


def test_what_cannot_be_a_start_is_refused(pack: Pack, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no face to start from"):
        read_inputs(pack, [])
    with pytest.raises(ImageError):
        read_inputs(pack, [tmp_path / "absent.jpg"])
    np.save(tmp_path / "w.npy", np.zeros((1, 10, 128), np.float32))
    with pytest.raises(InputError, match="4 is none of them"):
        read_inputs(pack, [f"{tmp_path}/w.npy#4"])


def test_a_pack_without_inverter_says_so_for_photos_alone(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = load_pack("toyfaces")
    monkeypatch.setattr(bare, "components", ("generator", "statistics"))
    assert len(read_inputs(bare, [], seeds=[1])) == 1
    with pytest.raises(PackError, match="inverter"):
        read_inputs(bare, [sample_portrait()])


def test_landmarks_ask_for_alignment(pack: Pack) -> None:
    with pytest.raises(InputError, match="leave out the landmarks"):
        read_inputs(pack, ["sample"], landmarks=np.zeros((68, 2)), align=False)
    with pytest.raises(InputError, match="nothing says where the face is"):
        read_inputs(pack, ["sample"], face=1)


def test_the_pack_in_words_of_the_runtime(pack: Pack, editor: Editor) -> None:
    model = pack_model(pack)
    for field in ("num_ws", "w_dim", "style_channels", "embed_dim", "invert_size", "resolution", "psi"):
        assert getattr(model, field) == getattr(editor.model, field), field
    assert model.layers == editor.model.layers
    assert model.prompts["bob-cut"].target == pack.prompts["bob-cut"]["target"]
    assert read_image(sample_portrait()).mode == "RGB"
