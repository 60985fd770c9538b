"""Training and test faces: of files, of photos, sampled; each once in a pass; what cannot be trained on is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")

from styleclip_rt.engines.errors import InputError  # noqa: E402
from styleclip_rt.runtime.training.mapper import MapperPreset, training_faces  # noqa: E402
from styleclip_rt.runtime.training.mapper_faces import FaceSources, ShuffledFaces, face_set  # noqa: E402
from styleclip_rt.runtime.training.networks.stylegan2 import Generator, GeneratorConfig  # noqa: E402
from styleclip_rt.runtime.training.pack import PackWriter, load_pack  # noqa: E402

SETTINGS = MapperPreset(batch=4)


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("packs") / "tiny"
    with PackWriter(folder, "tiny") as writer:
        writer.add("generator", Generator(GeneratorConfig(16, 12, 12, 2, {4: 8, 8: 8, 16: 6})).eval())
    return load_pack(folder)


def latents(count, rows=6, width=12):
    return np.random.default_rng(1).standard_normal((count, rows, width)).astype(np.float32)


def saved(path: Path, array) -> Path:
    if path.suffix == ".pt":
        torch.save(torch.from_numpy(array), path)
    elif path.suffix == ".npz":
        np.savez(path, w=array)
    else:
        np.save(path, array)
    return path


def test_a_pass_takes_every_face_once_in_an_order_of_its_own():
    faces = ShuffledFaces(torch.arange(10.0).reshape(10, 1, 1).expand(10, 2, 3), 4, seed=3)
    drawn = torch.cat([faces(step)[:, 0, 0] for step in range(5)]).cpu()  # 20 faces: two passes, a batch across
    assert sorted(drawn[:10].tolist()) == sorted(drawn[10:].tolist()) == list(range(10))
    assert not torch.equal(drawn[:10], drawn[10:])
    fresh = ShuffledFaces(faces.w, 4, seed=3)
    assert torch.equal(fresh(3), faces(3))
    assert not torch.equal(ShuffledFaces(faces.w, 4, seed=4)(0), faces(0))


@pytest.mark.parametrize("suffix", [".pt", ".npy", ".npz"])
def test_latents_of_files(pack, tmp_path, suffix):
    file = saved(tmp_path / f"faces{suffix}", latents(40))
    found = face_set(pack, FaceSources((file,), tests=8), SETTINGS, 1)
    assert (found.count, len(found.test), found.origin, found.notes) == (32, 8, str(file), ())
    assert np.array_equal(found.test, latents(40)[32:])
    assert found.draw(0).shape == (4, 6, 12)
    other = face_set(pack, FaceSources((file, file), test_latents=file), SETTINGS, 1)
    assert (other.count, len(other.test)) == (80, 40)
    assert found.digest != other.digest


def test_few_faces_are_tested_on_themselves_and_said(pack, tmp_path):
    found = face_set(pack, FaceSources((saved(tmp_path / "f.npy", latents(3)),)), SETTINGS, 1)
    assert (found.count, len(found.test)) == (3, 3)
    assert "only 3 faces" in found.notes[0]
    assert found.draw(0).shape == (4, 6, 12)  # a batch larger than the set takes faces again


def test_sampled_faces_are_those_of_the_recipe_and_the_test_is_not_among_them(pack):
    found = face_set(pack, FaceSources(tests=5), SETTINGS, 7)
    assert torch.equal(found.draw(3), training_faces(pack.generator, SETTINGS, 7, 3))
    assert found.test.shape == (5, 6, 12)
    assert (found.count, found.digest) == (None, None)
    assert torch.equal(found.test, face_set(pack, FaceSources(tests=5), replace(SETTINGS, batch=9), 7).test)


BAD = {
    "no face": (latents(0), "holds no face"),
    "of another generator": (latents(4, 18, 16), r"expected w of faces, \[N, 6, 12\]"),
    "flat": (np.zeros((4, 7), np.float32), r"expected w of faces, \[N, 6, 12\]"),
    "text": (np.array(["a", "b"]), "expected (w of faces|latents)"),
    "not finite": (np.where(latents(4) > 2, np.nan, latents(4)).astype(np.float32), "not finite"),
}


@pytest.mark.parametrize(("array", "message"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("place", ["latents", "test_latents"])
def test_latents_that_cannot_be_trained_on(pack, tmp_path, array, message, place):
    file = saved(tmp_path / "f.npy", array)
    sources = FaceSources((file,)) if place == "latents" else FaceSources(test_latents=file)
    with pytest.raises(InputError, match=message):
        face_set(pack, sources, SETTINGS, 1)


@pytest.mark.parametrize("suffix", [".pt", ".npy", ".npz"])
def test_an_empty_file_and_a_missing_one(pack, tmp_path, suffix):
    (tmp_path / f"empty{suffix}").touch()
    for name in ("empty", "missing"):
        with pytest.raises(InputError, match=name):
            face_set(pack, FaceSources((tmp_path / f"{name}{suffix}",)), SETTINGS, 1)


def test_folders_without_photos(pack, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="holds no pictures"):
        face_set(pack, FaceSources(photos=tmp_path), SETTINGS, 1)
    with pytest.raises(InputError, match="is no folder"):
        face_set(pack, FaceSources(photos=tmp_path / "x"), SETTINGS, 1)
    with pytest.raises(InputError, match="give one of them"):
        face_set(pack, FaceSources((tmp_path / "a.pt",), tmp_path), SETTINGS, 1)


def test_photos_are_inverted_in_the_order_of_their_names_and_a_broken_one_is_named(root, tmp_path):
    from PIL import Image

    from styleclip_rt.runtime.training.inputs import read_inputs

    toyfaces = load_pack("toyfaces")
    portrait = Image.open(root / "runtime" / "data" / "portrait.png").convert("RGB")
    portrait.save(tmp_path / "b.png")
    portrait.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "a.jpg")
    found = face_set(toyfaces, FaceSources(photos=tmp_path), SETTINGS, 1)
    assert found.count == 2
    assert torch.equal(found.test, read_inputs(toyfaces, [tmp_path / "a.jpg", tmp_path / "b.png"]).w)
    (tmp_path / "c.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"c\.png"):
        face_set(toyfaces, FaceSources(photos=tmp_path), SETTINGS, 1)
