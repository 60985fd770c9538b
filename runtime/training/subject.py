"""A pack under examination: its networks, what reads its pictures, a set of faces, and edits of them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import edits
from ..resolutions import resolution_mask
from .chunks import in_chunks
from .inputs import default_psi, pack_model
from .loop import device
from .networks.mapper import LatentMapper, StyleSpaceMapper
from .outcomes import NOBODY, Labels, Outcome, Scorer
from .pack import Pack
from .texts import PackTexts

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Faces:
    """Unedited faces: w+ [n,L,W], s [n,S], pictures [n,3,R,R] in -1..1, their labels, identity embeddings [n,D]."""

    w: Tensor
    s: Tensor
    images: Tensor
    labels: Labels
    identity: Tensor | None

    def __len__(self) -> int:
        return len(self.s)

    def take(self, index: NDArray[np.int64]) -> Faces:
        """Some of the faces, in the order of `index`."""
        i = torch.from_numpy(index)
        labels = {name: values[index] for name, values in self.labels.items()}
        identity = None if self.identity is None else self.identity[i]
        return Faces(self.w[i], self.s[i], self.images[i], labels, identity)


@dataclass(frozen=True)
class Moved:
    """Latents after an edit: s [n,S], and w [n,L,W] where the edit was made there."""

    s: Tensor
    w: Tensor | None = None


@dataclass(frozen=True)
class Edited:
    """An edit over faces: what the scorer says, and the mean cosine of identity embeddings (NaN without network)."""

    outcome: Outcome
    identity: float

    def shares(self) -> dict[str, Any]:
        """The columns of a table: faces, success and others_changed in 0..1, the worst of the others, identity."""
        worst, share = self.outcome.worst
        return {
            "faces": self.outcome.faces,
            "success": round(self.outcome.success, 4),
            "others_changed": round(self.outcome.others_changed, 4),
            "worst_other": worst,
            "worst_share": round(share, 4),
            "identity_cosine": None if np.isnan(self.identity) else round(self.identity, 4),
        }


class Subject:
    """A pack with everything an evaluation needs, on the device of the training loop.

    `directions` [S,E] is the table in use: the pack's own, unless `with_directions` gave another. Components that the
    pack lacks are an error where they are used.
    """

    def __init__(self, pack: Pack, scorer: Scorer) -> None:
        self.pack, self.scorer = pack, scorer
        self.generator = pack.generator.to(device()).to(memory_format=torch.channels_last)
        self.clip = pack.clip.to(device())
        self.identity = pack.identity.to(device()) if pack.has("identity") else None
        texts = PackTexts(pack)
        self.embed, self.pair = texts.embed, texts.pair
        self.psi = default_psi(pack)
        self._model = pack_model(pack)
        self._table: F32 | None = None

    @property
    def directions(self) -> F32:
        """The table of channel directions [S,E]."""
        return self.pack.directions.numpy() if self._table is None else self._table

    def with_directions(self, table: F32) -> Subject:
        """The same subject with another table [S,E]."""
        other = copy.copy(self)
        other._table = table
        return other

    def direction(self, target: str, neutral: str, beta: float, resolutions: str | None = None) -> F32:
        """delta_s [S] of a pair of texts, by the reference maths of the runtime; `resolutions` as of an edit."""
        delta_t = edits.text_direction(self.embed(target).numpy(), self.embed(neutral).numpy())
        sigma = self.pack.statistics.s_std.numpy()
        return edits.direction(self._rows(resolutions), delta_t, beta, sigma).astype(np.float32)

    def relevance(self, target: str, neutral: str, resolutions: str | None = None) -> NDArray[np.floating]:
        """Relevance of every style channel [S] to a pair of texts; 0 outside `resolutions`."""
        delta_t = edits.text_direction(self.embed(target).numpy(), self.embed(neutral).numpy())
        return edits.relevance(self._rows(resolutions), delta_t)

    def _rows(self, resolutions: str | None) -> F32:
        """The table with zeros outside the layers."""
        return self.directions if resolutions is None else self.directions * self.mask(resolutions)[:, None]

    def mask(self, resolutions: str | None) -> NDArray[np.bool_]:
        """True for the style channels [S] of a range of layers; see `resolutions.resolution_mask`."""
        return resolution_mask(self._model, resolutions)

    @property
    def block_resolutions(self) -> tuple[int, ...]:
        """Pixels of the generator's blocks, from the lowest."""
        return tuple(sorted({layer.resolution for layer in self._model.layers}))

    def faces(self, count: int, seed: int) -> Faces:
        """`count` faces from the generator at the truncation of the pack's statistics."""
        rng = torch.Generator().manual_seed(seed)
        z = torch.randn(count, self.generator.config.z_dim, generator=rng)
        return self.faces_of(in_chunks(lambda z: self.generator.broadcast(self.generator.mapping(z, self.psi)), z))

    def faces_of(self, w: Tensor) -> Faces:
        """Faces of given latents w+ [n,L,W]."""
        s = in_chunks(self.generator.styles, w)
        images = self.render(s)
        return Faces(w, s, images, self.scorer.read(images), self._identify(images))

    def lacking(self, prompt: str, faces: Faces) -> Faces:
        """The faces on which the scorer does not see the prompt's target."""
        return faces.take(np.flatnonzero(self.scorer.lacking(faces.labels, prompt)))

    def render(self, s: Tensor) -> Tensor:
        """s [n,S] -> pictures [n,3,R,R], clipped to -1..1 as a picture file is."""
        return in_chunks(self.generator.synthesize, s).clamp(-1, 1)

    def _identify(self, images: Tensor) -> Tensor | None:
        return None if self.identity is None else in_chunks(self.identity, images)

    def shifted(self, faces: Faces, delta_s: F32, alpha: float) -> Moved:
        """The faces moved by alpha * delta_s in style space."""
        return Moved(torch.from_numpy(edits.apply(faces.s.numpy(), delta_s, alpha)))

    def edit(self, faces: Faces, delta_s: F32, alpha: float) -> Tensor:
        """Pictures of the faces moved by alpha * delta_s in style space."""
        return self.render(self.shifted(faces, delta_s, alpha).s)

    def mapper(self, name: str) -> LatentMapper:
        """A trained mapper of the pack, where it is to run."""
        return self.pack.mapper(name).to(device())

    def mapped(self, faces: Faces, mapper: str, strength: float) -> Moved:
        """The faces after a trained mapper: w + strength * delta_w, or s + strength * delta_s where it works there."""
        network = self.mapper(mapper)
        if isinstance(network, StyleSpaceMapper):
            return Moved(faces.s + strength * in_chunks(network.delta, faces.s))
        w = faces.w + strength * in_chunks(network.delta, faces.w)
        return Moved(in_chunks(self.generator.styles, w), w)

    def map(self, faces: Faces, mapper: str, strength: float) -> Tensor:
        """Pictures of the faces after a trained mapper."""
        return self.render(self.mapped(faces, mapper, strength).s)

    def compare(self, prompt: str, faces: Faces, images: Tensor) -> Edited:
        """Scores edited pictures of faces that lacked the prompt's target."""
        if not len(faces):
            return Edited(NOBODY, float("nan"))
        found = self.scorer.outcome(prompt, faces.labels, self.scorer.read(images))
        after = self._identify(images)
        if after is None or faces.identity is None:
            return Edited(found, float("nan"))
        return Edited(found, float((after * faces.identity).sum(1).mean()))
