"""Sliders on a numpy synthesis of five layers, whose head and tail are counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from styleclip_rt.engines.errors import BundleError, InputError
from styleclip_rt.runtime import grids, slider
from styleclip_rt.runtime.editor import Editor
from styleclip_rt.runtime.model import StyleLayer

LAYERS = [
    ("b4.conv1", "conv", 8),
    ("b4.torgb", "torgb", 8),
    ("b8.conv0", "conv", 8),
    ("b8.conv1", "conv", 4),
    ("b8.torgb", "torgb", 4),
]
S, E, L, W = 32, 6, 4, 8
CUTS = ("b8.conv0", "b8.conv1")


def layer_rows() -> list[dict[str, Any]]:
    rows, offset = [], 0
    for name, kind, channels in LAYERS:
        rows.append({"name": name, "kind": kind, "w_index": 0, "offset": offset, "channels": channels})
        offset += channels
    return rows


def offset_of(name: str) -> int:
    return next(row["offset"] for row in layer_rows() if row["name"] == name)


class LayeredBundle:
    """A synthesis in which each layer folds its styles into a running state; a tail goes on from that state."""

    def __init__(self, path: Path, slices: bool = True) -> None:
        self.path, self.slices, self.runs = path, slices, Counter()
        self.batches: list[int] = []
        rng = np.random.default_rng(0)
        self.to_s = rng.standard_normal((L * W, S)).astype(np.float32) / W
        self.mix = rng.standard_normal((S, 192)).astype(np.float32)
        self.delta_s = np.zeros(S, np.float32)

    @property
    def manifest(self) -> dict[str, Any]:
        model = {"resolution": 8, "num_ws": L, "z_dim": W, "w_dim": W, "style_channels": S, "layers": layer_rows()}
        model |= {"clip": {"embed_dim": E, "image_size": 8, "context_length": 4}}
        prompts = {"glasses": {"target": "glasses", "neutral": "a face", "mapper": "mapper/glasses"}}
        return {"name": "fake", "model": model, "prompts": prompts, "default_prompt": "glasses"}

    @property
    def graphs(self) -> tuple[str, ...]:
        names = ["style", "direction", "synthesize_u8", "mapper/glasses"]
        slices = [f"{kind}{layer}" for layer in CUTS for kind in (slider.HEAD, slider.TAIL)] + ["preview/4"]
        return (*names, *(slices if self.slices else []))

    def run(self, name: str, **feeds: np.ndarray) -> dict[str, np.ndarray]:
        assert name in self.graphs
        self.runs[name] += 1
        kind, _, layer = name.partition("/")
        if name == "style":
            return {"s": feeds["w"].reshape(len(feeds["w"]), -1) @ self.to_s}
        if name == "direction":
            delta_s = np.repeat(self.delta_s[None], len(feeds["beta"]), axis=0)
            return {"delta_s": delta_s, "relevance": np.abs(delta_s) / max(1e-9, np.abs(delta_s).max())}
        if name == "mapper/glasses":
            return {"delta_w": np.float32(0.1) * np.tanh(feeds["w"])}
        if kind == "synthesize_head":
            assert len(feeds["s"]) == 1
            state = self.fold(feeds["s"], 0, offset_of(layer))
            return {"x": state, "rgb": state[:, :3]}
        if kind == "preview":
            return {"image_u8": self.picture(self.fold(feeds["s"], 0, S))[:, ::2, ::2]}
        self.batches.append(len(feeds["s"]))
        if kind == "synthesize_tail":
            np.testing.assert_array_equal(feeds["rgb"], feeds["x"][:, :3])
            return {"image_u8": self.picture(feeds["x"] + self.fold(feeds["s"], offset_of(layer), S))}
        return {"image_u8": self.picture(self.fold(feeds["s"], 0, S))}

    def fold(self, s: np.ndarray, first: int, last: int) -> np.ndarray:
        return s[:, first:last] @ self.mix[first:last]

    @staticmethod
    def picture(x: np.ndarray) -> np.ndarray:
        return np.rint(127.5 * (np.tanh(x / 30) + 1)).astype(np.uint8).reshape(-1, 8, 8, 3)

    def close(self) -> None:
        pass


class Texts:
    """Text directions of no meaning; the bundle above ignores them."""

    def delta_t(self, prompt: Any) -> np.ndarray:
        return np.eye(E, dtype=np.float32)[0]


def editor_for(bundle: LayeredBundle) -> Editor:
    editor = Editor(bundle)  # type: ignore[arg-type]
    editor.text = Texts()  # type: ignore[assignment]
    return editor


@pytest.fixture
def bundle(tmp_path: Path) -> LayeredBundle:
    (tmp_path / "bundle.json").write_text(json.dumps({}))
    return LayeredBundle(tmp_path)


@pytest.fixture
def editor(bundle: LayeredBundle) -> Editor:
    return editor_for(bundle)


@pytest.fixture
def w() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((1, L, W)).astype(np.float32)


def whole(bundle: LayeredBundle, editor: Editor, w: np.ndarray, alpha: float) -> np.ndarray:
    s = editor.styles(w) + np.float32(alpha) * bundle.delta_s
    return LayeredBundle.picture(bundle.fold(s, 0, S))[0]


def same(image: Image.Image, expected: np.ndarray) -> bool:
    return int(np.abs(np.asarray(image).astype(int) - expected).max()) <= 1


@pytest.mark.parametrize(
    ("channel", "layer"), [(3, None), (12, None), (16, "b8.conv0"), (23, "b8.conv0"), (24, "b8.conv1")]
)
def test_a_slider_starts_at_the_last_cut_below_its_first_channel(
    editor: Editor, bundle: LayeredBundle, w: np.ndarray, channel: int, layer: str | None
) -> None:
    bundle.delta_s[channel] = 2.0
    bundle.delta_s[31] = 1.0
    made = editor.slider(w, "glasses")
    assert (made.cut.layer if made.cut else None) == layer
    # multiply-adds: 9 * 8 * 8 * 16, 9 * 8 * 4 * 16 and 9 * 4 * 4 * 64, that is 9216, 4608 and 9216
    by_hand = {None: 0.0, "b8.conv0": 9216 / 23040, "b8.conv1": 13824 / 23040}
    assert made.saved == pytest.approx(by_hand[layer])
    for alpha in (-10, 0, 1.5):
        assert same(made.at(alpha), whole(bundle, editor, w, alpha))


def test_the_head_runs_once_and_the_rest_never_again(editor: Editor, bundle: LayeredBundle, w: np.ndarray) -> None:
    bundle.delta_s[24] = 1.0
    made = editor.slider(w, "glasses")
    for alpha in (1, 2, 3):
        made.at(alpha)
    made.grid([4, 5, 6])
    assert bundle.runs == {"style": 1, "direction": 2, "synthesize_head/b8.conv1": 1, "synthesize_tail/b8.conv1": 4}
    assert bundle.batches == [1, 1, 1, 3]  # a grid is one batch


def test_a_grid_is_what_its_steps_are(editor: Editor, bundle: LayeredBundle, w: np.ndarray) -> None:
    bundle.delta_s[20:28] = np.linspace(-1, 1, 8)
    made, alphas = editor.slider(w, "glasses"), np.linspace(-5, 5, 19).tolist()
    pictures = made.grid(alphas)
    assert len(pictures) == 19
    assert max(bundle.batches) == slider.MAX_BATCH
    for alpha, picture in zip(alphas, pictures, strict=True):
        assert same(picture, whole(bundle, editor, w, alpha))


def test_without_the_graphs_every_step_is_a_whole_synthesis(tmp_path: Path, w: np.ndarray) -> None:
    bundle = LayeredBundle(tmp_path, slices=False)
    bundle.delta_s[24] = 1.0
    editor = editor_for(bundle)
    made = editor.slider(w, "glasses")
    assert made.cut is None
    assert made.saved == 0
    assert same(made.at(2), whole(bundle, editor, w, 2))
    with pytest.raises(BundleError, match="no previews; export it again"):
        made.preview(1)


def test_layers_that_start_higher_make_a_step_shorter(editor: Editor, bundle: LayeredBundle, w: np.ndarray) -> None:
    bundle.delta_s[2], bundle.delta_s[24] = 1.0, 0.25
    everything = editor.slider(w, "glasses")
    assert everything.cut is None
    assert list(everything.channels) == [2, 24]
    upper = editor.slider(w, "glasses", resolutions="8-")
    assert upper.cut is not None
    assert upper.cut.layer == "b8.conv1"
    assert list(upper.channels) == [24]
    np.testing.assert_allclose(upper.delta_s[24], 1.0)  # the strongest that is left takes the whole strength
    s = editor.styles(w) + np.float32(2) * upper.delta_s
    assert same(upper.at(2), LayeredBundle.picture(bundle.fold(s, 0, S))[0])


def test_a_mapper_slider_is_the_mapper_edit(editor: Editor, bundle: LayeredBundle, w: np.ndarray) -> None:
    made = editor.slider(w, "glasses", method="mapper")
    moved = w + np.float32(2) * (np.float32(0.1) * np.tanh(w))
    assert same(made.at(2), LayeredBundle.picture(bundle.fold(editor.styles(moved), 0, S))[0])


def test_previews_are_smaller_and_say_when_they_would_not_move(
    editor: Editor, bundle: LayeredBundle, w: np.ndarray
) -> None:
    bundle.delta_s[0] = 1.0
    assert editor.slider(w, "glasses").preview(2).size == (4, 4)
    bundle.delta_s[0], bundle.delta_s[24] = 0.0, 1.0
    with pytest.raises(InputError, match="starts above 4 px"):
        editor.slider(w, "glasses").preview(2)


@pytest.mark.parametrize("alpha", [101, float("nan"), "much"])
def test_alphas_are_checked(editor: Editor, bundle: LayeredBundle, w: np.ndarray, alpha: Any) -> None:
    bundle.delta_s[24] = 1.0
    with pytest.raises(InputError, match="alpha is"):
        editor.slider(w, "glasses").at(alpha)


def test_a_direction_that_is_not_finite_is_refused(editor: Editor, bundle: LayeredBundle, w: np.ndarray) -> None:
    bundle.delta_s[24] = np.nan
    with pytest.raises(BundleError, match="not finite"):
        editor.slider(w, "glasses")


def test_latents_of_one_face_are_expected(editor: Editor, w: np.ndarray) -> None:
    with pytest.raises(InputError, match="latents of 2 faces"):
        editor.slider(np.concatenate([w, w]), "glasses")


def test_sheets_share_what_lies_below_their_first_difference(
    editor: Editor, bundle: LayeredBundle, w: np.ndarray
) -> None:
    bundle.delta_s[26] = 1.0
    s = editor.styles(w) + np.linspace(-3, 3, 9, dtype=np.float32)[:, None] * bundle.delta_s
    expected = LayeredBundle.picture(bundle.fold(s, 0, S))
    pictures = grids.synthesize_all(editor, s)
    assert all(same(picture, one) for picture, one in zip(pictures, expected, strict=True))
    assert bundle.runs["synthesize_head/b8.conv1"] == 1
    assert bundle.runs["synthesize_u8"] == 0
    bundle.runs.clear()
    grids.synthesize_all(editor, s[:3])  # saves less than it costs to open two more graphs
    assert bundle.runs == {"synthesize_u8": 1}


def test_foreign_layer_names_save_nothing() -> None:
    layers = (StyleLayer("L0_36_512", "conv", 0, 0, 4), StyleLayer("b8.conv1", "conv", 0, 4, 4))
    assert [slider.multiply_adds(layer, layers) for layer in layers] == [0, 0]
    model = type("Model", (), {"layers": layers})()
    found = slider.cuts(model, ["synthesize_head/b8.conv1", "synthesize_tail/b8.conv1"])
    assert found == (slider.Cut("b8.conv1", 4, 0.0),)
