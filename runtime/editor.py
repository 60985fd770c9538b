"""THE main path: photo and prompt in, edited photo out. `Editor.edit` is the whole of StyleCLIP on one screen."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..engines.bundle import Bundle, open_bundle
from ..engines.errors import BundleError, InputError
from . import edits, images, store
from .align import read_alignment
from .align_frame import Frame, Framing, settle
from .align_landmarks import Finder, Landmarks
from .align_models import open_finder
from .model import Model, read_model
from .moves import fused_mapper, mapped, moves, prompt_directions, text_directions, unknown_words
from .named import NamedDirections
from .paste import change_mask, paste_crop, paste_mode
from .prompts import STYLE_MAPPER, TextEncoder, cache_folder
from .results import Clock, EditResult
from .steps import Beta, Step, plan

if TYPE_CHECKING:
    from types import TracebackType

    from ..engines.build import BuildOptions, GraphProgress
    from .slider import Slider

F32 = NDArray[np.float32]


class Editor:
    """Edits photos with one bundle. Thread-safe; sessions are made when first needed. Use as a context manager."""

    def __init__(self, bundle: Bundle, origin: store.Found | None = None) -> None:
        self.bundle = bundle
        self.model: Model = read_model(bundle.manifest)
        self.origin = origin
        cache = cache_folder(store.home(), origin.path / store.MANIFEST) if origin else None
        self.text = TextEncoder(bundle, self.model, cache)
        self.named = NamedDirections(bundle, self.model)
        self.alignment = read_alignment(bundle.manifest, self.model.invert_size or self.model.resolution or 1)

    @classmethod
    def open(
        cls,
        name_or_path: str | os.PathLike[str] | None = None,
        device: str = "auto",
        engine: str | None = None,
        *,
        tensorrt: BuildOptions | None = None,
        progress: GraphProgress | None = None,
    ) -> Editor:
        """Open a bundle by path or name ("toyfaces"); None: the newest export, else the one that ships.

        device: "auto", "cpu" or "cuda"; engine: a backend's name, None for the best one. tensorrt, progress: how
        TensorRT builds its plans, and what hears of it, see `open_bundle`. Raises BundleError.
        """
        found = store.find_bundle(name_or_path)
        bundle = open_bundle(found.path, device=device, engine=engine, tensorrt=tensorrt, progress=progress)
        return cls(bundle, found)

    def edit(
        self,
        image: images.ImageSource,
        prompt: str | Sequence[str] | None = None,
        alpha: float | Sequence[float | None] | None = None,
        beta: Beta | Sequence[Beta | None] | None = None,
        neutral: str | Sequence[str | None] | None = None,
        method: str = "global",
        identity: bool = False,
        *,
        landmarks: Landmarks | None = None,
        face: int | None = None,
        align: bool | None = None,
        paste: bool | str = False,
        direction: str | Sequence[str] | None = None,
        resolutions: str | Sequence[str | None] | None = None,
    ) -> EditResult:
        """Edit a photo towards a text, or along a named direction of the bundle.

        image: path, bytes, Pillow image or uint8 array. prompt: a name or text of the bundle, or free text; a sequence
        combines several in one edit; None: the bundle's default. alpha: strength, 0 returns the inverted photo. beta:
        threshold on a channel's relevance in 0..1, higher moves fewer channels, or "auto". neutral: the text that the
        prompt is compared with. method: "global" (directions) or "mapper" (alpha is its strength). None: the values
        recommended for the prompt. direction: one or several of `directions_named`, alone or after the prompts, whose
        alphas and betas theirs follow. resolutions: of the layers that may move, "32-", "8-16" or "all"; not of a
        mapper. landmarks, face, align: where the face is, see `framing`. paste: True also gives the whole photo with
        what the edit changed in it, "crop" with the whole crop. Raises ImageError, InputError, BundleError,
        EngineError, MissingDependency.
        """
        clock = Clock()
        steps, mode = plan(self.model, prompt, alpha, beta, neutral, method, direction, resolutions), paste_mode(paste)
        framing = self.framing(landmarks, face, align)
        photo = self._decode(image, framing, whole=mode is not None)
        clock.lap("decode")
        frame = framing.frame(photo)  # its crop is RGB, I x I
        if framing.landmarks is not None:
            clock.lap("align")
        w = self.invert(frame.crop)  # [1, L, W]
        clock.lap("invert")
        result = (self._map if method == "mapper" else self._direct)(w, steps, clock)
        result = replace(result, frame=frame, notes=(*frame.notes, *result.notes))
        if mode:
            result = replace(result, pasted=self._paste(result.image, w, frame, mode))
            clock.lap("paste")
        if identity:
            result = replace(result, identity=self.identity(frame.crop, result.image))
            clock.lap("identify")
        clock.total()
        return result

    def edit_latents(
        self,
        face: F32,
        prompt: str | Sequence[str] | None = None,
        alpha: float | Sequence[float | None] | None = None,
        beta: Beta | Sequence[Beta | None] | None = None,
        neutral: str | Sequence[str | None] | None = None,
        method: str = "global",
        *,
        direction: str | Sequence[str] | None = None,
        resolutions: str | Sequence[str | None] | None = None,
    ) -> EditResult:
        """The same from latents in place of a photo: w [1, L, W] float32 (of `invert` or `sample`), or styles s [1, S].

        Styles are what `optimize --space s` and `load_styles` give; a mapper needs w and refuses them.
        """
        clock = Clock()
        steps = plan(self.model, prompt, alpha, beta, neutral, method, direction, resolutions)
        face = self.checked_face(face, method)
        result = (self._map if method == "mapper" else self._direct)(face, steps, clock)
        clock.total()
        return result

    def slider(
        self,
        image: images.ImageSource | F32,
        prompt: str | None = None,
        beta: Beta | None = None,
        neutral: str | None = None,
        method: str = "global",
        *,
        direction: str | None = None,
        resolutions: str | None = None,
    ) -> Slider:
        """An edit whose strength is open: `.at(alpha)` for each step of a slider, `.grid(alphas)` for several at once.

        image: a photo as for `edit`, or latents as for `edit_latents`, along a prompt or a named direction. What lies
        below the first layer that it moves is computed once (the bundle must have been exported with sliders);
        `resolutions` says where it may move, and a range that starts higher makes the steps shorter.
        """
        from .slider import make_slider

        latents = isinstance(image, np.ndarray) and image.dtype.kind == "f"
        face = self.checked_face(image, method) if latents else self.invert(self.photo(image))  # type: ignore[arg-type]
        return make_slider(self, face, prompt, beta, neutral, method, direction, resolutions)

    # The two methods -------------------------------------------------------------------------------------------------

    def _direct(self, face: F32, steps: tuple[Step, ...], clock: Clock) -> EditResult:
        """Global directions (paper, section 6), and named ones: s' = s + sum of alpha * delta_s."""
        w = face if face.ndim == 3 else None
        delta_t = text_directions(self, steps)  # [Q, E], unit; of those that are prompts
        clock.lap("text")
        steps, delta_s = moves(self, steps, delta_t)  # [P, S]
        clock.lap("direction")
        alpha = np.array([step.alpha for step in steps], dtype=np.float32)  # [P]
        if w is not None and len(steps) == len(delta_t) == 1 and self._fused(steps[0]):
            beta = np.array([step.beta for step in steps], dtype=np.float32)
            image_u8 = self.bundle.run("edit_global", w=w, delta_t=delta_t, alpha=alpha, beta=beta)["image_u8"]
        else:
            image_u8 = self.synthesize(self.styles_of(face) + alpha @ delta_s)
        clock.lap("synthesize")
        return self._result(w, image_u8, delta_s, steps, clock, unknown_words(self, steps))

    def _fused(self, step: Step) -> bool:
        """Whether one graph makes the whole edit; it moves all layers."""
        return step.resolutions is None and "edit_global" in self.bundle.graphs

    def _map(self, w: F32, steps: tuple[Step, ...], clock: Clock) -> EditResult:
        """Latent mappers (paper, section 5): w' = w + sum of strength * mapper(w); those of style space move s."""
        s = self.styles(w)
        steps, deltas = mapped(self, steps, w, s)  # in w [1, L, W] or in s [1, S]
        delta_s = np.concatenate([d if d.ndim == 2 else self.styles(w + d) - s for d in deltas])  # [P, S]
        clock.lap("mapper")
        fused = fused_mapper(self.model, steps)
        if fused in self.bundle.graphs:
            strength = np.array([steps[0].alpha], dtype=np.float32)
            image_u8 = self.bundle.run(fused, w=w, strength=strength)["image_u8"]
        else:
            image_u8 = self.synthesize(self.moved_styles(w, deltas, [step.alpha for step in steps]))
        clock.lap("synthesize")
        return self._result(w, image_u8, delta_s, steps, clock, ())

    # The stages ------------------------------------------------------------------------------------------------------

    def framing(
        self, landmarks: Landmarks | None = None, face: int | None = None, align: bool | None = None
    ) -> Framing:
        """How photos become the model's picture: a face of them aligned, or their centred square, I x I pixels.

        landmarks: [68, 2] or [F, 68, 2] in pixels of the upright photo, a file of them, or a function that finds them
        (`align_models.open_finder`). face: which of several, 1 for the leftmost. align: None does what the bundle asks
        for; False takes the photo as an aligned crop. Raises InputError where a face has to be aligned and nothing says
        where it is, BundleError without an inverter.
        """
        size = self.model.invert_size
        if size is None:
            raise BundleError(f"the bundle {self.model.name} has no inverter; edit latents, or export with an inverter")
        return settle(self.alignment, size, landmarks, face, align, lambda: self.finder, self.model.invert_shape)

    @cached_property
    def finder(self) -> Finder | None:
        """The landmark model that the environment names, or None."""
        return open_finder()

    def photo(self, image: images.ImageSource, framing: Framing | None = None) -> Image.Image:
        """Decode a photo and frame it as the model expects: RGB, I x I pixels."""
        return self.frame(image, framing).crop

    def frame(self, image: images.ImageSource, framing: Framing | None = None) -> Frame:
        """The same with where it lies in the photo."""
        framing = framing or self.framing()
        return framing.frame(self._decode(image, framing))

    @staticmethod
    def _decode(image: images.ImageSource, framing: Framing, whole: bool = False) -> Image.Image:
        """RGB, upright; at its own resolution where landmarks refer to it or it will be pasted into."""
        reduced = framing.landmarks is None and not whole
        return images.read_image(image, shrink_to=framing.size if reduced else None)

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

    def styles_of(self, face: F32) -> F32:
        """Style vectors s [1, S] of a face given as w [1, L, W], or as s itself."""
        return face if face.ndim == 2 else self.styles(face)

    def map_latents(self, graph: str, w: F32, s: F32) -> F32:
        """What a mapper adds: delta_w [1, L, W], or delta_s [1, S] of a mapper of style space (`style_mapper/...`)."""
        if graph.startswith(STYLE_MAPPER):
            return self.bundle.run(graph, s=s)["delta_s"]
        return self.bundle.run(graph, w=w)["delta_w"]

    def moved_styles(self, w: F32, deltas: Sequence[F32], strengths: Sequence[float]) -> F32:
        """Style vectors [N, S] after strength * delta of each mapper: those in w first, then those in s."""
        scaled = [np.float32(strength) * delta for strength, delta in zip(strengths, deltas, strict=True)]
        s = self.styles(w + sum(d for d in scaled if d.ndim == 3))
        return s + sum(d for d in scaled if d.ndim == 2)

    def synthesize(self, s: F32) -> NDArray[np.uint8]:
        """Pictures [N, R, R, 3] uint8 of style vectors s [N, S]."""
        return self.bundle.run("synthesize_u8", s=s)["image_u8"]  # type: ignore[return-value]

    def preview(self, s: F32) -> NDArray[np.uint8]:
        """Smaller, rougher pictures [N, r, r, 3] uint8 of style vectors s [N, S], at the bundle's preview size r."""
        from .slider import PREVIEW, preview_size

        return self.bundle.run(f"{PREVIEW}{preview_size(self)}", s=s)["image_u8"]  # type: ignore[return-value]

    @property
    def directions_named(self) -> tuple[str, ...]:
        """Names of the directions that `edit` takes as `direction`."""
        return self.named.names

    def directions(self, steps: tuple[Step, ...], delta_t: F32) -> tuple[tuple[Step, ...], F32]:
        """Directions delta_s [P, S] of P prompts; "auto" thresholds resolved. InputError where beta leaves none."""
        return prompt_directions(self, steps, delta_t)

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

    def checked_face(self, face: F32, method: str = "global") -> F32:
        """One face as float32: w [1, L, W] or styles s [1, S]; InputError for others, and for s with a mapper."""
        face = np.asarray(face, dtype=np.float32)
        if face.shape != (1, self.model.style_channels):
            if len(w := self.checked_w(face)) != 1:
                raise InputError(f"latents of {len(w)} faces; expected one, w[i:i + 1]")
            return w
        if method == "mapper":
            raise InputError("these are latents of style space, and a mapper needs w; use directions (--method global)")
        if not np.isfinite(face).all():
            raise InputError("latents of style space hold values that are not finite")
        return face

    def close(self) -> None:
        """Free the bundle's sessions."""
        self.bundle.close()

    def __enter__(self) -> Editor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _paste(self, image: Image.Image, w: F32, frame: Frame, mode: str) -> Image.Image:
        """The whole photo with the edited face in it."""
        mask = None
        if mode == "changed":
            mask = change_mask(image, images.image_from_u8(self.synthesize(self.styles(w))[0]))
        return paste_crop(frame.photo, image, frame.quad, mask)

    @staticmethod
    def _result(
        w: F32 | None,
        image_u8: NDArray[np.uint8],
        delta_s: F32,
        steps: tuple[Step, ...],
        clock: Clock,
        notes: tuple[str, ...],
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
