"""Interactive edits: one face and one prompt, many strengths, each for a part of the work of a whole edit.

An edit changes style vectors from some layer on; the features that enter this layer are the same for every alpha. Where
the bundle has the graphs for it (`synthesize_head/<layer>`, `synthesize_tail/<layer>`), they are computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..engines.errors import BundleError, InputError
from . import edits, images
from .model import Model, StyleLayer
from .moves import mapped, moves
from .steps import Beta, Step, checked_alpha, plan

if TYPE_CHECKING:
    from .editor import Editor

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
HEAD, TAIL, PREVIEW = "synthesize_head/", "synthesize_tail/", "preview/"
BATCH_PIXELS = 1 << 22
MAX_BATCH = 16


@dataclass(frozen=True)
class Cut:
    """A place where the synthesis can be entered: before `layer`; the tail reads style channels from `offset` on.

    saved: share of the synthesis' multiply-adds that lie below.
    """

    layer: str
    offset: int
    saved: float


def cuts(model: Model, graphs: Sequence[str]) -> tuple[Cut, ...]:
    """The cuts that a bundle with these graphs and layers offers, lowest first."""
    counts = {layer.name: multiply_adds(layer, model.layers) for layer in model.layers}
    total, below, found = sum(counts.values()), 0, []
    for layer in model.layers:
        if HEAD + layer.name in graphs and TAIL + layer.name in graphs:
            found.append(Cut(layer.name, layer.offset, below / max(total, 1)))
        below += counts[layer.name]
    return tuple(found)


def multiply_adds(layer: StyleLayer, layers: Sequence[StyleLayer]) -> int:
    """Multiply-adds of a 3x3 layer for one picture (an up-sampling one counts its input pixels); 0 for toRGB."""
    block, _, part = layer.name.partition(".")
    outputs = next((other.channels for other in layers if other.name == f"{block}.torgb"), 0)
    if part not in ("conv0", "conv1"):
        return 0
    side = layer.resolution // (2 if part == "conv0" else 1)
    return 9 * layer.channels * outputs * side * side


def cut_below(found: Sequence[Cut], delta_s: F32) -> Cut | None:
    """The last cut under the first channel that `delta_s` [S] moves, None where there is none."""
    fitting = [cut for cut in found if cut.offset and not delta_s[: cut.offset].any()]
    return fitting[-1] if fitting else None


@dataclass
class Renderer:
    """Pictures of style vectors that agree with `base` [1, S] below `cut`; everything there is computed once.

    Without a cut it is the plain synthesis. What enters the cut is kept as long as the renderer lives.
    """

    editor: Editor
    base: F32
    cut: Cut | None
    _state: dict[str, F32] = field(default_factory=dict)

    def __call__(self, s: F32) -> U8:
        """Pictures [N, R, R, 3] of style vectors [N, S]; what `s` says below the cut is not looked at."""
        if self.cut is None:
            return self.editor.synthesize(s)
        state = {name: np.repeat(value, len(s), axis=0) for name, value in self.state().items()}
        run = self.editor.bundle.run
        return run(TAIL + self.cut.layer, s=s, **state)["image_u8"]  # type: ignore[return-value]

    def state(self) -> dict[str, F32]:
        """What enters the cut: the features `x` and the RGB skip `rgb`, made when first needed."""
        if not self._state and self.cut is not None:
            self._state = self.editor.bundle.run(HEAD + self.cut.layer, s=self.base)
        return self._state

    def all(self, s: F32) -> Iterator[U8]:
        """Pictures [R, R, 3] of any number of style vectors, in batches that fit into memory."""
        size = max(1, min(MAX_BATCH, BATCH_PIXELS // self.editor.model.resolution**2))
        for start in range(0, len(s), size):
            yield from self(s[start : start + size])


def shared_renderer(editor: Editor, s: F32, least: float = 2.0) -> Renderer:
    """A renderer for style vectors [M, S] that share what lies below the first channel in which any two differ.

    It cuts where that saves the work of `least` pictures or more, and synthesises them whole otherwise.
    """
    cut = cut_below(cuts(editor.model, editor.bundle.graphs), np.ptp(s, axis=0))
    worth = cut is not None and cut.saved * (len(s) - 1) >= least
    return Renderer(editor, s[:1], cut if worth else None)


class Slider:
    """An edit whose strength is still open; made by `Editor.slider`.

    Attributes:
        face: its latents, w [1, L, W] or styles s [1, S].
        step: the prompt, or named direction, with its recommended alpha and the beta in use.
        delta_s: what alpha multiplies, [S].
        channels: indices of the style channels that move.
        cut: where the pictures start from, None where every picture is a whole synthesis.
        saved: share of the synthesis' multiply-adds that a step does not repeat, 0 to 1.
    """

    def __init__(self, editor: Editor, face: F32, step: Step, delta_s: F32) -> None:
        self.editor, self.face, self.step, self.delta_s = editor, face, step, delta_s
        self.cut = cut_below(cuts(editor.model, editor.bundle.graphs), delta_s)
        self.channels = edits.channels(self.delta_s)
        self.saved = 0.0 if self.cut is None else self.cut.saved
        self._s: F32 = editor.styles_of(face)
        self._render = Renderer(editor, self._s, self.cut)

    def at(self, alpha: float) -> Image.Image:
        """The edit with strength `alpha`, R x R pixels; equal to `Editor.edit` with it, to within one level of 255."""
        return images.image_from_u8(self._render(self._styles([alpha]))[0])

    def grid(self, alphas: Sequence[float]) -> list[Image.Image]:
        """The edit with each strength; they run as one batch, or a few where a batch would not fit."""
        return [images.image_from_u8(picture) for picture in self._render.all(self._styles(alphas))]

    def preview(self, alpha: float) -> Image.Image:
        """A smaller and rougher picture, sooner: from the RGB skip of a lower resolution, if the bundle has that graph.

        InputError where the edit starts above that resolution: such a preview would not move.
        """
        size = preview_size(self.editor)
        if self._first_resolution() > size:
            raise InputError(
                f"the edit {self.step.prompt.label!r} starts above {size} px, where previews end; use `at`"
            )
        return images.image_from_u8(self.editor.preview(self._styles([alpha]))[0])

    def _styles(self, alphas: Sequence[float]) -> F32:
        strengths = np.array([checked_alpha(alpha) for alpha in alphas], dtype=np.float32)
        return self._s + strengths[:, None] * self.delta_s  # [A, S]

    def _first_resolution(self) -> int:
        """Resolution of the first layer that moves."""
        first = int(np.flatnonzero(self.delta_s)[0]) if self.delta_s.any() else 0
        return next(la.resolution for la in self.editor.model.layers if first < la.offset + la.channels)


def make_slider(
    editor: Editor,
    face: F32,
    prompt: str | None = None,
    beta: Beta | None = None,
    neutral: str | None = None,
    method: str = "global",
    direction: str | None = None,
    resolutions: str | None = None,
) -> Slider:
    """A slider for latents w [1, L, W] or s [1, S]; see `Editor.slider`. Raises what an edit does."""
    if prompt is not None and direction is not None:
        raise InputError("a slider has one prompt or one named direction; `edit` takes both together")
    steps = plan(editor.model, prompt, None, beta, neutral, method, direction, resolutions)
    if method == "mapper":
        w, s = face, editor.styles(face)
        steps, (delta,) = mapped(editor, steps, w, s)  # [1, L, W] or [1, S]
        # The affine maps are linear: the style vector moves in proportion to the strength.
        delta_s = delta if delta.ndim == 2 else editor.styles(w + delta) - s
    else:
        steps, delta_s = moves(editor, steps)
    if not np.isfinite(delta_s).all():
        raise BundleError("the bundle's direction is not finite; export the bundle again")
    return Slider(editor, face, steps[0], delta_s[0])


def preview_size(editor: Editor) -> int:
    """Pixels of the bundle's previews; BundleError where it has none."""
    sizes = [name.removeprefix(PREVIEW) for name in editor.bundle.graphs if name.startswith(PREVIEW)]
    if not sizes or not sizes[0].isdigit():
        raise BundleError(f"the bundle {editor.model.name} has no previews; export it again with sliders")
    return int(sizes[0])
