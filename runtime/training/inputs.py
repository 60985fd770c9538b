"""The faces that a training or an optimisation starts from: photos, latents files and seeds, as w+ of one pack."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...engines.errors import InputError
from .. import latents
from ..align import read_alignment
from ..align_frame import Framing, settle
from ..align_landmarks import Landmarks
from ..align_models import open_finder
from ..images import pm1_from_image, read_image
from ..model import DEFAULT_PSI, Model, Prompt, StyleLayer
from ..store import input_path
from .chunks import in_chunks
from .loop import device
from .networks.e4e import E4EConfig
from .pack import Pack

LATENTS = (".npz", ".npy", ".pt")  # a file of these that holds no arrays (an empty one) is a latents file all the same
PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Inputs:
    """Faces of a pack. w: w+ [n,L,W] float32 on the CPU.

    names: one per face, distinct, fit for file names. crops: the inverter's picture of a face that came as a photo
    (RGB, I x I pixels), else None. notes: what the user should know of how photos were read.
    """

    w: Tensor
    names: tuple[str, ...]
    crops: tuple[Image.Image | None, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)


def read_inputs(
    pack: Pack,
    sources: Sequence[PathLike],
    seeds: Sequence[int] = (),
    psi: float | None = None,
    *,
    landmarks: Landmarks | None = None,
    face: int | None = None,
    align: bool | None = None,
) -> Inputs:
    """The faces of `sources`, in their order, then those of `seeds`.

    Args:
        sources: photos, each framed as the pack's `alignment` says and inverted by its inverter ("sample" is the
            portrait that ships), or latents files (`runtime/latents.py`), all faces of a file or the one that the
            ending names: `faces.pt#2`.
        seeds: random faces, those of `styleclip-rt generate`.
        psi: truncation of the random faces; None: that of the pack's statistics.
        landmarks, face, align: as for `Editor.edit`; they hold for every photo.
    Raises:
        InputError, ImageError: for a source that cannot be read, or where there is no face at all.
        PackError: a photo was given and the pack has no inverter, or the pack has no generator.
    """
    framing = PackFraming(pack, landmarks, face, align)
    found = [_faces_of(pack, os.fspath(source), framing) for source in sources]
    if seeds:
        w = sample(pack, seeds, psi)
        found.append(Inputs(w, tuple(f"seed{seed:06d}" for seed in seeds), (None,) * len(w)))
    if not found:
        raise InputError("no face to start from; give photos, latents files or seeds")
    notes = tuple(dict.fromkeys(note for part in found for note in part.notes))
    names = _distinct([name for part in found for name in part.names])
    crops = tuple(crop for part in found for crop in part.crops)
    return Inputs(torch.cat([part.w for part in found]), names, crops, notes)


def sample(pack: Pack, seeds: Sequence[int], psi: float | None = None) -> Tensor:
    """w+ [n,L,W] of random faces, one per seed: the same face as `Editor.sample` gives, whatever the others are."""
    generator = pack.generator.to(device())
    psi = default_psi(pack) if psi is None else psi
    rows = [np.random.RandomState(seed).randn(generator.config.z_dim) for seed in seeds]
    z = torch.from_numpy(np.array(rows, dtype=np.float32))
    return in_chunks(lambda part: generator.broadcast(generator.mapping(part, psi)), z)


def default_psi(pack: Pack) -> float:
    """The truncation that the pack's statistics were sampled with; StyleCLIP's 0.7 where it has none."""
    recorded = pack.config("statistics").get("psi") if pack.has("statistics") else None
    return DEFAULT_PSI if recorded is None else float(recorded)


def mean_face(pack: Pack) -> Tensor:
    """The mean latent w_avg as w+ [1,L,W]: where StyleCLIP's free generation starts."""
    generator = pack.generator
    return generator.broadcast(generator.mapping_network.w_avg[None].float().cpu()).clone()


def pack_model(pack: Pack) -> Model:
    """The pack in the words of the runtime: sizes, style layers and prompts; `prompts.resolve` takes it."""
    layout = pack.layout
    return Model(
        name=pack.name,
        resolution=layout.config.resolution,
        num_ws=layout.num_ws,
        z_dim=layout.config.z_dim,
        w_dim=layout.config.w_dim,
        style_channels=layout.style_channels,
        embed_dim=int(pack.config("clip")["embed_dim"]) if pack.has("clip") else None,
        invert_size=inverter_config(pack).input_size if pack.has("inverter") else None,
        identify_size=int(pack.config("identity")["input_size"]) if pack.has("identity") else None,
        alignment=str(pack.alignment.get("kind", "none")),
        layers=tuple(StyleLayer(x.name, x.kind, x.w_index, x.offset, x.channels) for x in layout.style_layers),
        tokens=None,
        tokenizer_file=None,
        templates=tuple(pack.templates),
        prompts={
            name: Prompt(
                name, p["target"], p["neutral"], p.get("alpha"), p.get("beta"), resolutions=p.get("resolutions")
            )
            for name, p in pack.prompts.items()
        },
        default_prompt=None,
        psi=default_psi(pack),
    )


def inverter_config(pack: Pack) -> E4EConfig:
    """Sizes of the pack's inverter, without its weights; PackError for a pack without one."""
    return E4EConfig.from_dict(pack.config("inverter"))


class PackFraming:
    """How photos are framed for a pack; settled when the first photo comes, so that latents need no landmark model."""

    def __init__(
        self, pack: Pack, landmarks: Landmarks | None = None, face: int | None = None, align: bool | None = None
    ) -> None:
        self.pack, self._asked = pack, (landmarks, face, align)
        self._settled: Framing | None = None

    @property
    def framing(self) -> Framing:
        """See `align_frame.settle`; raises its errors, and PackError for a pack without an inverter."""
        if self._settled is None:
            config = inverter_config(self.pack)
            shape = None if len(set(config.input_shape)) == 1 else config.input_shape
            alignment = read_alignment({"alignment": self.pack.alignment}, config.input_size)
            self._settled = settle(alignment, config.input_size, *self._asked, open_finder, shape)
        return self._settled


def _faces_of(pack: Pack, source: str, framing: PackFraming) -> Inputs:
    path = input_path(source)
    file = latents.split_index(path)[0]
    stem = file.stem
    if latents.is_latents(path) or file.suffix.lower() in LATENTS:
        w, indices = _read_latents(pack, path)
        names = tuple(f"{stem}-{i}" for i in indices) if indices else (stem,)
        return Inputs(w, names, (None,) * len(w))
    return _read_photo(pack, path, stem, framing.framing)


def _read_photo(pack: Pack, path: str, stem: str, framing: Framing) -> Inputs:
    reduced = framing.landmarks is None
    frame = framing.frame(read_image(path, shrink_to=framing.size if reduced else None))
    w = in_chunks(pack.inverter.to(device()), torch.from_numpy(pm1_from_image(frame.crop)))
    return Inputs(w, (stem,), (frame.crop,), frame.notes)


def _read_latents(pack: Pack, path: str) -> tuple[Tensor, list[int]]:
    """All faces of a file, or the one that its ending names; the indices where the file holds several."""
    file, index = latents.split_index(path)
    model = pack_model(pack)
    faces = latents.faces_of(latents.read(file), model)
    if len(faces) == 0:
        raise InputError(f"{file} holds no face: its array has {list(faces.shape)}; expected at least one")
    indices = [index] if index is not None else list(range(len(faces)))
    rows: list[Any] = [latents.finite(latents.chosen(faces, i, file), file) for i in indices]
    w = np.concatenate(rows).repeat(model.num_ws // faces.shape[1], axis=1)
    return torch.from_numpy(np.ascontiguousarray(w)), indices if len(faces) > 1 else []


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The names, a number added to those that were there before."""
    seen: set[str] = set()
    out: list[str] = []
    for name in names:
        free = next(n for n in (name, *(f"{name}-{i}" for i in range(2, len(names) + 2))) if n not in seen)
        seen.add(free)
        out.append(free)
    return tuple(out)
