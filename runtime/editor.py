"""THE main path: photo and prompt in, edited photo out. `Editor.edit` is the whole of StyleCLIP on one screen."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..engines.bundle import Bundle, open_bundle
from ..engines.errors import BundleError, InputError
from . import edits, images, store
from .model import Model, read_model
from .prompts import TextEncoder, cache_folder, mapper_graph
from .steps import Beta, Step, plan

if TYPE_CHECKING:
    from types import TracebackType

F32 = NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True)
class EditResult:
    """An edit and how it came about.

    image: RGB, R x R pixels. w: the photo's latents [1, L, W]. delta_s: the direction in style space, before alpha: [S]
    for one prompt, [P, S] for P of them. channels: indices of the style channels that move. timings: milliseconds by
    stage (the first run of a graph includes loading it). identity: cosine of the identity embeddings of photo and edit,
    None unless asked for. notes: what the user should know. Of several prompts, prompt, alpha and beta are tuples.
    """

    image: Image.Image
    w: F32
    delta_s: F32
    channels: NDArray[np.int64]
    steps: tuple[Step, ...]
    timings: dict[str, float]
    identity: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def prompt(self) -> str | tuple[str, ...]:
        """The target text."""
        return _only(tuple(step.prompt.target for step in self.steps))

    @property
    def alpha(self) -> float | tuple[float, ...]:
        """The strength that was used."""
        return _only(tuple(step.alpha for step in self.steps))

    @property
    def beta(self) -> float | tuple[float | None, ...] | None:
        """The threshold that was used ("auto" resolved); None for a mapper."""
        return _only(tuple(None if step.beta is None else float(step.beta) for step in self.steps))


class Editor:
    """Edits photos with one bundle. Thread-safe; sessions are made when first needed. Use as a context manager."""

    def __init__(self, bundle: Bundle, origin: store.Found | None = None) -> None:
        self.bundle = bundle
        self.model: Model = read_model(bundle.manifest)
        self.origin = origin
        cache = cache_folder(store.home(), origin.path / store.MANIFEST) if origin else None
        self.text = TextEncoder(bundle, self.model, cache)

    @classmethod
    def open(
        cls, name_or_path: str | os.PathLike[str] | None = None, device: str = "auto", engine: str | None = None
    ) -> Editor:
        """Open a bundle by path or name ("toyfaces"); None: the newest export, else the one that ships.

        device: "auto", "cpu" or "cuda"; engine: a backend's name, None for the best one. Raises BundleError.
        """
        found = store.find_bundle(name_or_path)
        return cls(open_bundle(found.path, device=device, engine=engine), found)

    def edit(
        self,
        image: images.ImageSource,
        prompt: str | Sequence[str] | None = None,
        alpha: float | Sequence[float | None] | None = None,
        beta: Beta | Sequence[Beta | None] | None = None,
        neutral: str | Sequence[str | None] | None = None,
        method: str = "global",
        identity: bool = False,
    ) -> EditResult:
        """Edit a photo towards a text.

        image: path, bytes, Pillow image or uint8 array. prompt: a name or text of the bundle, or free text; a sequence
        combines several in one edit; None: the bundle's default. alpha: strength, 0 returns the inverted photo.
        beta: threshold on a channel's relevance in 0..1, higher moves fewer channels, or "auto". neutral: the text that
        the prompt is compared with. method: "global" (directions) or "mapper" (alpha is its strength). None: the values
        recommended for the prompt. Raises ImageError, InputError, BundleError, EngineError.
        """
        clock = Clock()
        steps = plan(self.model, prompt, alpha, beta, neutral, method)
        photo = self.photo(image)  # RGB, I x I
        clock.lap("decode")
        w = self.invert(photo)  # [1, L, W]
        clock.lap("invert")
        result = (self._map if method == "mapper" else self._direct)(w, steps, clock)
        if identity:
            result = replace(result, identity=self.identity(photo, result.image))
            clock.lap("identify")
        clock.total()
        return result

    def edit_latents(
        self,
        w: F32,
        prompt: str | Sequence[str] | None = None,
        alpha: float | Sequence[float | None] | None = None,
        beta: Beta | Sequence[Beta | None] | None = None,
        neutral: str | Sequence[str | None] | None = None,
        method: str = "global",
    ) -> EditResult:
        """The same from latents w [1, L, W] float32 (of `invert` or `sample`) in place of a photo."""
        clock = Clock()
        steps = plan(self.model, prompt, alpha, beta, neutral, method)
        w = self.checked_w(w)
        if len(w) != 1:
            raise InputError(f"latents of {len(w)} faces; expected one, w[i:i + 1]")
        result = (self._map if method == "mapper" else self._direct)(w, steps, clock)
        clock.total()
        return result

    # The two methods -------------------------------------------------------------------------------------------------

    def _direct(self, w: F32, steps: tuple[Step, ...], clock: Clock) -> EditResult:
        """Global directions (paper, section 6): s' = s + sum of alpha * delta_s."""
        delta_t = np.stack([self.text.delta_t(step.prompt) for step in steps])  # [P, E], unit
        clock.lap("text")
        steps, delta_s = self.directions(steps, delta_t)  # [P, S]
        clock.lap("direction")
        alpha = np.array([step.alpha for step in steps], dtype=np.float32)  # [P]
        if len(steps) == 1 and "edit_global" in self.bundle.graphs:
            beta = np.array([step.beta for step in steps], dtype=np.float32)
            image_u8 = self.bundle.run("edit_global", w=w, delta_t=delta_t, alpha=alpha, beta=beta)["image_u8"]
        else:
            image_u8 = self.synthesize(self.styles(w) + alpha @ delta_s)
        clock.lap("synthesize")
        return self._result(w, image_u8, delta_s, steps, clock, self._notes(steps))

    def _map(self, w: F32, steps: tuple[Step, ...], clock: Clock) -> EditResult:
        """Latent mappers (paper, section 5): w' = w + sum of strength * mapper(w)."""
        graphs = [mapper_graph(self.model, step.prompt) for step in steps]
        delta_w = [self.bundle.run(graph, w=w)["delta_w"] for graph in graphs]  # [1, L, W] each
        s = self.styles(w)
        delta_s = np.concatenate([self.styles(w + delta) - s for delta in delta_w])  # [P, S]
        clock.lap("mapper")
        if len(steps) == 1 and f"edit_{graphs[0]}" in self.bundle.graphs:
            strength = np.array([steps[0].alpha], dtype=np.float32)
            image_u8 = self.bundle.run(f"edit_{graphs[0]}", w=w, strength=strength)["image_u8"]
        else:
            moved = sum(np.float32(step.alpha) * delta for step, delta in zip(steps, delta_w, strict=True))
            image_u8 = self.synthesize(self.styles(w + moved))
        clock.lap("synthesize")
        return self._result(w, image_u8, delta_s, steps, clock, ())

    # The stages ------------------------------------------------------------------------------------------------------

    def photo(self, image: images.ImageSource) -> Image.Image:
        """Decode and crop as the model expects: the centred square, I x I pixels, RGB."""
        size = self.model.invert_size
        if size is None:
            raise BundleError(f"the bundle {self.model.name} has no inverter; edit latents, or export with an inverter")
        return images.centre_square(images.read_image(image, shrink_to=size), size)

    def invert(self, photo: Image.Image) -> F32:
        """Latents w [1, L, W] of a photo that `photo` has prepared."""
        return self.bundle.run("invert", image=images.pm1_from_image(photo))["w"]

    def sample(self, seeds: Sequence[int], psi: float | None = None) -> F32:
        """Latents w [N, L, W] of random faces, one per seed.

        psi: truncation, 0 the mean face, 1 the full variety; None: the truncation of the model's own statistics.
        """
        psi = self.model.psi if psi is None else psi
        z = [np.random.RandomState(seed).randn(self.model.z_dim) for seed in seeds]
        truncation = np.full(len(z), psi, dtype=np.float32)
        return self.bundle.run("mapping", z=np.array(z, dtype=np.float32), psi=truncation)["w"]

    def styles(self, w: F32) -> F32:
        """Style vectors s [N, S] of latents w [N, L, W]."""
        return self.bundle.run("style", w=w)["s"]

    def synthesize(self, s: F32) -> NDArray[np.uint8]:
        """Pictures [N, R, R, 3] uint8 of style vectors s [N, S]."""
        return self.bundle.run("synthesize_u8", s=s)["image_u8"]  # type: ignore[return-value]

    def directions(self, steps: tuple[Step, ...], delta_t: F32) -> tuple[tuple[Step, ...], F32]:
        """Directions delta_s [P, S] of P steps; "auto" thresholds resolved. InputError where beta leaves no channel."""
        asked = [0.0 if step.beta == "auto" else step.beta for step in steps]
        out = self.bundle.run("direction", delta_t=delta_t, beta=np.array(asked, dtype=np.float32))
        if any(step.beta == "auto" for step in steps):
            settled = tuple(_settled(step, r) for step, r in zip(steps, out["relevance"], strict=True))
            return self.directions(settled, delta_t)
        for step, r, delta_s in zip(steps, out["relevance"], out["delta_s"], strict=True):
            if not delta_s.any():
                raise InputError(_too_high(step, r))
        return steps, out["delta_s"]

    def identity(self, a: Image.Image, b: Image.Image) -> float | None:
        """Cosine of the identity embeddings of two pictures, in -1..1; None if the bundle cannot identify."""
        size = self.model.identify_size
        if size is None or "identify" not in self.bundle.graphs:
            return None
        pair = np.concatenate([images.pm1_from_image(images.centre_square(image, size)) for image in (a, b)])
        return edits.cosine(*self.bundle.run("identify", image=pair)["embedding"])

    def checked_w(self, w: F32) -> F32:
        """w as float32 [N, L, W]; InputError for another shape, or values that are not finite."""
        w = np.asarray(w, dtype=np.float32)
        w = w[None] if w.ndim == 2 else w
        expected = (self.model.num_ws, self.model.w_dim)
        if w.ndim != 3 or w.shape[1:] != expected or not np.isfinite(w).all():
            raise InputError(f"latents have shape {w.shape}; expected finite [N, {expected[0]}, {expected[1]}]")
        return w

    def close(self) -> None:
        """Free the bundle's sessions."""
        self.bundle.close()

    def __enter__(self) -> Editor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _notes(self, steps: tuple[Step, ...]) -> tuple[str, ...]:
        texts = dict.fromkeys(t for step in steps for t in (step.prompt.target, step.prompt.neutral))
        words = list(dict.fromkeys(word for text in texts for word in self.text.embed(text).unknown))
        notes = (
            [f"the bundle's CLIP does not know {', '.join(map(repr, words))}: expect a weak or random edit"]
            if words
            else []
        )
        if self.model.alignment not in ("none", ""):
            notes.append(f"the bundle expects {self.model.alignment}-aligned crops; the photo was cropped, not aligned")
        return tuple(notes)

    @staticmethod
    def _result(
        w: F32, image_u8: NDArray[np.uint8], delta_s: F32, steps: tuple[Step, ...], clock: Clock, notes: tuple[str, ...]
    ) -> EditResult:
        if not np.isfinite(delta_s).all():
            raise BundleError("the bundle's direction is not finite; export the bundle again")
        return EditResult(
            image=images.image_from_u8(image_u8[0]),
            w=w,
            delta_s=delta_s[0] if len(steps) == 1 else delta_s,
            channels=edits.channels(np.abs(delta_s).max(axis=0)),
            steps=steps,
            timings=clock.laps_ms,
            notes=notes,
        )


@dataclass
class Clock:
    """Wall time by stage, in milliseconds."""

    laps_ms: dict[str, float] = field(default_factory=dict)
    _start: float = field(default_factory=time.perf_counter)
    _last: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str) -> None:
        """Book the time since the last lap on `stage`."""
        now = time.perf_counter()
        self.laps_ms[stage] = round(1e3 * (now - self._last), 3)
        self._last = now

    def total(self) -> None:
        """Book the time since the start on "total"."""
        self.laps_ms["total"] = round(1e3 * (time.perf_counter() - self._start), 3)


def _settled(step: Step, relevance: F32) -> Step:
    return replace(step, beta=edits.suggested_beta(relevance)) if step.beta == "auto" else step


def _too_high(step: Step, relevance: F32) -> str:
    largest = float(np.abs(relevance).max())
    return (
        f"beta {step.beta:g} leaves no channel for {step.prompt.target!r}: the largest relevance is {largest:.3g}. "
        f"Use beta {edits.suggested_beta(relevance):g}, or auto"
    )


def _only(values: tuple[T, ...]) -> T | tuple[T, ...]:
    """The value itself where there is but one."""
    return values[0] if len(values) == 1 else values
