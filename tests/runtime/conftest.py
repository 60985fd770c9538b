"""A bundle in memory: the graphs of the format as small numpy functions, with the files a real bundle has on disk."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from styleclip_rt.runtime import edits, store

R, L, W, E = 8, 4, 6, 16
CONV, RGB = 24, 6  # style channels that directions may move, and toRGB channels that they may not
S = CONV + RGB
WORDS = ["a", "face", "with", "purple", "hair", "glasses", "photo", "of", "the", "portrait", "bob", "cut", "smiling"]
PROMPTS = {
    "purple-hair": {
        "target": "a face with purple hair",
        "neutral": "a face",
        "alpha": 2.0,
        "beta": 0.05,
        "mapper": None,
    },
    "glasses": {
        "target": "a face with glasses",
        "neutral": "a face",
        "alpha": 2.5,
        "beta": 0.06,
        "mapper": "mapper/glasses",
        "strength": 0.8,
    },
    "bob-cut": {"target": "a face with a bob-cut", "neutral": "a face", "alpha": 3.0, "beta": 0.04},
}


def manifest() -> dict[str, Any]:
    return {
        "format": "styleclip-rt/bundle",
        "version": 1,
        "name": "fake",
        "model": {
            "resolution": R,
            "num_ws": L,
            "z_dim": W,
            "w_dim": W,
            "style_channels": S,
            "layers": [{"name": "b4.conv1", "kind": "conv", "w_index": 0, "offset": 0, "channels": CONV}],
            "clip": {"embed_dim": E, "image_size": R, "context_length": 16},
            "invert_size": R,
            "identify_size": R,
        },
        "alignment": {"kind": "none"},
        "tokenizer": "tokenizer.json",
        "tokens": {"bos": 1, "eos": 2, "pad": 0, "context_length": 16},
        "templates": ["a photo of {}.", "the portrait of {}."],
        "prompts": PROMPTS,
        "default_prompt": "bob-cut",
    }


def write_tokenizer(path: Path) -> None:
    """A WordPiece file: whole words of WORDS, and every letter as a crumb."""
    letters = "abcdefghijklmnopqrstuvwxyz.-<>|"
    pieces = ["<pad>", "<bos>", "<eos>", "<unk>", *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<pad>", "<bos>", "<eos>"])
    backend.save(str(path))


def write_bundle(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / store.MANIFEST).write_text(json.dumps(manifest() | changes))
    write_tokenizer(folder / "tokenizer.json")
    return folder


class FakeBundle:
    """What the runtime uses of `engines.bundle.Bundle`; counts the runs of every graph."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = json.loads((path / store.MANIFEST).read_text())
        self.runs: Counter[str] = Counter()
        self.closed = False
        self.backend, self.device, self.device_reason = "onnxruntime", "cpu", "CUDA is not used: no card is there"
        rng = np.random.default_rng(0)
        self.table = edits.normalise(rng.standard_normal((S, E))).astype(np.float32)
        self.table[CONV:] = 0
        self.sigma = rng.uniform(0.5, 1.5, S).astype(np.float32)
        self.to_w = rng.standard_normal((3 * R * R, L * W)).astype(np.float32) / R
        self.to_s = rng.standard_normal((L * W, S)).astype(np.float32) / W
        self.to_image = rng.standard_normal((S, R * R * 3)).astype(np.float32) / S
        self.words = rng.standard_normal((200, E)).astype(np.float32)

    @property
    def graphs(self) -> tuple[str, ...]:
        names = ["mapping", "invert", "style", "synthesize_u8", "direction", "encode_text", "identify", "edit_global"]
        return (*names, "mapper/glasses", "edit_mapper/glasses")

    def file(self, rel: str) -> Path:
        return self.path / rel

    def close(self) -> None:
        self.closed = True

    def run(self, name: str, **feeds: np.ndarray) -> dict[str, np.ndarray]:
        assert name in self.graphs, name
        self.runs[name] += 1
        for value in feeds.values():
            assert isinstance(value, np.ndarray)
            assert value.dtype in (np.float32, np.int64)
        out = getattr(self, "_" + name.replace("/", "_"))(**feeds)
        return out if isinstance(out, dict) else {OUTPUTS[name.split("/")[0]]: out}

    def _mapping(self, z: np.ndarray, psi: np.ndarray) -> np.ndarray:
        return np.repeat((z * psi[:, None])[:, None], L, axis=1)

    def _invert(self, image: np.ndarray) -> np.ndarray:
        assert image.shape[1:] == (3, R, R)
        assert np.abs(image).max() <= 1
        return (image.reshape(len(image), -1) @ self.to_w).reshape(-1, L, W)

    def _style(self, w: np.ndarray) -> np.ndarray:
        return w.reshape(len(w), -1) @ self.to_s

    def _synthesize_u8(self, s: np.ndarray) -> np.ndarray:
        x = np.tanh(s @ self.to_image).reshape(-1, R, R, 3)
        return np.rint(np.clip((x + 1) * 127.5, 0, 255)).astype(np.uint8)

    def _direction(self, delta_t: np.ndarray, beta: np.ndarray) -> dict[str, np.ndarray]:
        np.testing.assert_allclose(np.linalg.norm(delta_t, axis=-1), 1, atol=1e-5)
        delta_s = edits.direction(self.table, delta_t, beta, self.sigma)
        return {"delta_s": delta_s, "relevance": edits.relevance(self.table, delta_t)}

    def _encode_text(self, tokens: np.ndarray) -> np.ndarray:
        weight = (tokens > 2)[..., None].astype(np.float32)
        return edits.normalise((self.words[tokens] * weight).sum(axis=1))

    def _identify(self, image: np.ndarray) -> np.ndarray:
        return edits.normalise(image.reshape(len(image), -1))

    def _mapper_glasses(self, w: np.ndarray) -> np.ndarray:
        return np.float32(0.1) * np.tanh(w)

    def _edit_global(self, w: np.ndarray, delta_t: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
        delta_s = self._direction(delta_t, beta)["delta_s"]
        return self._synthesize_u8(self._style(w) + alpha[:, None] * delta_s)

    def _edit_mapper_glasses(self, w: np.ndarray, strength: np.ndarray) -> np.ndarray:
        return self._synthesize_u8(self._style(w + strength[:, None, None] * self._mapper_glasses(w)))


OUTPUTS = {
    "mapping": "w",
    "invert": "w",
    "style": "s",
    "synthesize_u8": "image_u8",
    "encode_text": "embedding",
    "identify": "embedding",
    "mapper": "delta_w",
    "edit_global": "image_u8",
    "edit_mapper": "image_u8",
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Exports and caches of a test go to its own folder."""
    folder = tmp_path / "home"
    monkeypatch.setenv("STYLECLIP_RT_HOME", str(folder))
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[FakeBundle]:
    """Make `Editor.open` use the bundle in memory; lists the bundles that were opened."""
    from styleclip_rt.runtime import editor

    made: list[FakeBundle] = []

    def open_fake(path: Path, device: str = "auto", engine: str | None = None, **builds: Any) -> FakeBundle:
        made.append(FakeBundle(Path(path)))
        made[-1].progress = builds["progress"]
        return made[-1]

    monkeypatch.setattr(editor, "open_bundle", open_fake)
    return made


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Write a bundle's folder; keywords replace fields of its manifest."""
    return lambda name, **changes: write_bundle(tmp_path / name, **changes)


@pytest.fixture
def bundle_folder(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle("fake")


@pytest.fixture
def editor(bundle_folder: Path, opened: list[FakeBundle]) -> Any:
    from styleclip_rt.runtime.editor import Editor

    return Editor.open(bundle_folder)


@pytest.fixture
def photo() -> Image.Image:
    pixels = np.random.default_rng(7).integers(0, 256, (R, R, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def photo_file(photo: Image.Image, tmp_path: Path) -> Path:
    path = tmp_path / "face.png"
    photo.save(path)
    return path


@pytest.fixture(scope="session")
def shipped_editor() -> Iterator[Any]:
    """An editor of the bundle that ships with the package, on the CPU."""
    from styleclip_rt.runtime.editor import Editor

    path = store.DATA / "toyfaces-bundle"
    if not (path / store.MANIFEST).is_file():
        pytest.skip(f"the shipped bundle is not there: {path.name}")
    with Editor.open(path, device="cpu") as editor:
        yield editor
