"""The faces that a mapper is trained on and tested with: sampled, of latents files, or of inverted photos."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ...engines.errors import InputError
from ..images import WRITE_FORMATS
from .inputs import Inputs, read_inputs
from .loop import device, rng_for
from .loop_ranks import ranks
from .mapper import Faces, training_faces
from .mapper_presets import MapperPreset
from .pack import Pack

HELD_OUT = 8
TEST_STEP = 1 << 40  # the step that test faces are sampled for: no training reaches it
PHOTOS = (*WRITE_FORMATS, ".avif", ".gif", ".heic", ".jp2", ".ppm", ".tga")


@dataclass(frozen=True)
class FaceSources:
    """Where faces come from: latents files, a folder of photos, or neither (sampled). `tests`: how many are shown."""

    latents: tuple[Path, ...] = ()
    photos: Path | None = None
    test_latents: Path | None = None
    tests: int = HELD_OUT


@dataclass(frozen=True)
class FaceSet:
    """`draw`: the training faces of a step. `test`: w+ [n,L,W] on the CPU. `origin`: where from, for the record.

    `digest`: what tells this set from another in a checkpoint; None where the faces are sampled.
    """

    draw: Faces
    test: Tensor
    origin: str
    count: int | None = None
    digest: str | None = None
    notes: tuple[str, ...] = ()


class ShuffledFaces:
    """Batches of given faces w+ [n,L,W]: a pass takes each face once, in an order given by the seed and the pass."""

    def __init__(self, w: Tensor, batch: int, seed: int) -> None:
        self.w, self.batch, self.seed = w.to(device()), batch, seed
        self._order: tuple[int, list[int]] = (-1, [])

    def order(self, turn: int) -> list[int]:
        """The order of pass `turn`."""
        if self._order[0] != turn:
            self._order = (turn, rng_for(self.seed, turn).permutation(len(self.w)).tolist())
        return self._order[1]

    def __call__(self, step: int) -> Tensor:
        """w+ [batch,L,W] of a step."""
        positions = (divmod(i, len(self.w)) for i in range(step * self.batch, (step + 1) * self.batch))
        return self.w[[self.order(turn)[place] for turn, place in positions]]


def face_set(pack: Pack, sources: FaceSources, settings: MapperPreset, seed: int) -> FaceSet:
    """Training and test faces. Without test latents the last ones of many are kept for the test and not trained on.

    Raises InputError for a file or folder without faces, of another shape, or with values that are not finite;
    ImageError for a picture that cannot be read; PackError where photos are given and the pack has no inverter.
    """
    if sources.latents and sources.photos:
        raise InputError("--latents and --photos both say where the training faces come from; give one of them")
    test = read_inputs(pack, [sources.test_latents]).w if sources.test_latents else None
    if not sources.latents and sources.photos is None:
        generator = pack.generator.to(device())
        shown = replace(settings, batch=sources.tests)
        test = training_faces(generator, shown, seed, TEST_STEP).cpu() if test is None else test
        return FaceSet(lambda step: training_faces(generator, settings, seed, step), test, "sampled")
    if sources.photos is not None:
        (w, notes), origin = _inverted(pack, sources.photos), str(sources.photos)
    else:
        found = read_inputs(pack, sources.latents)
        w, notes, origin = found.w, found.notes, ", ".join(map(str, sources.latents))
    if test is None:
        w, test, shared = _held_out(w, sources.tests)
        notes = (*notes, *shared)
    draw = ShuffledFaces(w, settings.batch, seed)
    return FaceSet(draw, test, origin, len(w), _digest(w), notes)


def _held_out(w: Tensor, tests: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """(faces to train on, faces to test with, notes)."""
    if len(w) >= 4 * tests:
        return w[:-tests], w[-tests:], ()
    return w, w[-tests:], (f"only {len(w)} faces: the mapper is tested on faces that it is trained on",)


def _digest(w: Tensor) -> str:
    return hashlib.sha256(w.contiguous().numpy().tobytes()).hexdigest()[:16]


def _inverted(pack: Pack, folder: Path) -> tuple[Tensor, tuple[str, ...]]:
    """w+ [n,L,W] of all photos in a folder, in the order of their names."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; --photos takes a folder of pictures")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in PHOTOS)
    if not files:
        raise InputError(f"{folder} holds no pictures; expected files such as *.jpg and *.png")
    quiet = True if not ranks().first else None
    notes: dict[str, None] = {}
    parts = []
    for file in tqdm(files, "inverting", unit="photo", delay=2, disable=quiet):
        face = _read_photo(pack, file)
        parts.append(face.w)
        notes |= dict.fromkeys(face.notes)
    return torch.cat(parts), tuple(notes)


def _read_photo(pack: Pack, file: Path) -> Inputs:
    """One photo; an error names its file."""
    try:
        return read_inputs(pack, [file])
    except InputError as error:
        if str(file) in str(error):
            raise
        raise type(error)(f"{file}: {error}") from None
