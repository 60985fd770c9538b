"""A pack under examination: its networks, the judge, a set of generated faces, and edits of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ... import edits
from ..chunks import in_chunks
from ..loop import device
from ..pack import Pack
from ..texts import PackTexts
from .judge import Judge, JudgeNet
from .scores import Labels, Outcome, lacking, outcome


@dataclass(frozen=True)
class Faces:
    """Unedited faces: w+ [n,L,W], s [n,S], pictures [n,3,R,R] in -1..1, judged labels, identity embeddings [n,D]."""

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

    def lacking(self, prompt: str) -> Faces:
        """The faces on which the judge does not see the prompt's target."""
        return self.take(np.flatnonzero(lacking(self.labels, prompt)))


@dataclass(frozen=True)
class Edited:
    """An edit over faces: what the judge says, and the mean cosine of the identity embeddings (NaN without network)."""

    outcome: Outcome
    identity: float


class Subject:
    """A pack with everything an evaluation needs, on the device of the training loop."""

    def __init__(self, pack: Pack) -> None:
        self.pack = pack
        self.generator = pack.generator.to(device()).to(memory_format=torch.channels_last)
        self.clip = pack.clip.to(device())
        self.identity = pack.identity.to(device()) if pack.has("identity") else None
        net = JudgeNet()
        net.load_state_dict(pack.judge, strict=False)
        self.judge = Judge(net.to(device()))
        self.embed = PackTexts(pack).embed
        self.psi = float(pack.config("statistics").get("psi", 1.0))

    def direction(self, target: str, neutral: str, beta: float) -> NDArray[np.float32]:
        """delta_s [S] of a pair of texts, by the reference maths of the runtime."""
        delta_t = edits.text_direction(self.embed(target).numpy(), self.embed(neutral).numpy())
        sigma = self.pack.statistics.s_std.numpy()
        return edits.direction(self.pack.directions.numpy(), delta_t, beta, sigma).astype(np.float32)

    def relevance(self, target: str, neutral: str) -> NDArray[np.floating]:
        """Relevance of every style channel [S] to a pair of texts."""
        delta_t = edits.text_direction(self.embed(target).numpy(), self.embed(neutral).numpy())
        return edits.relevance(self.pack.directions.numpy(), delta_t)

    def faces(self, count: int, seed: int) -> Faces:
        """`count` faces from the generator at the truncation of the pack's statistics."""
        rng = torch.Generator().manual_seed(seed)
        z = torch.randn(count, self.generator.config.z_dim, generator=rng)
        return self.faces_of(in_chunks(lambda z: self.generator.broadcast(self.generator.mapping(z, self.psi)), z))

    def faces_of(self, w: Tensor) -> Faces:
        """Faces of given latents w+ [n,L,W]."""
        s = in_chunks(self.generator.styles, w)
        images = self.render(s)
        return Faces(w, s, images, self.judge.predict(images), self._identify(images))

    def render(self, s: Tensor) -> Tensor:
        """s [n,S] -> pictures [n,3,R,R], clipped to -1..1 as a picture file is."""
        return in_chunks(self.generator.synthesize, s).clamp(-1, 1)

    def _identify(self, images: Tensor) -> Tensor | None:
        return None if self.identity is None else in_chunks(self.identity, images)

    def judge_features(self, images: Tensor) -> Tensor:
        """Pictures [n,3,R,R] -> features of the judge's last convolution, averaged over the picture [n,D]."""
        return self.judge.net.trunk(images).mean((2, 3))

    def edit(self, faces: Faces, delta_s: NDArray[np.float32], alpha: float) -> Tensor:
        """Pictures of the faces moved by alpha * delta_s in style space."""
        return self.render(torch.from_numpy(edits.apply(faces.s.numpy(), delta_s, alpha)))

    def map(self, faces: Faces, mapper: str, strength: float) -> Tensor:
        """Pictures of the faces after a trained mapper: w + strength * delta_w."""
        network = self.pack.mapper(mapper).to(device())
        return in_chunks(lambda w: self.generator(w + strength * network.delta(w)), faces.w).clamp(-1, 1)

    def compare(self, prompt: str, faces: Faces, images: Tensor) -> Edited:
        """Judges edited pictures of faces that lacked the prompt's target."""
        found = outcome(prompt, faces.labels, self.judge.predict(images)) if len(faces) else Outcome(0, 0.0, {})
        after = self._identify(images) if len(faces) else None
        if after is None or faces.identity is None:
            return Edited(found, float("nan"))
        return Edited(found, float((after * faces.identity).sum(1).mean()))
