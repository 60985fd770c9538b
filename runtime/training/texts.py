"""Texts of a pack in PyTorch: unit embeddings over the pack's templates, and pairs of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...engines.errors import InputError
from .. import edits
from ..model import read_tokens
from ..tokenizer import Tokenizer
from .chunks import in_chunks
from .loop import device
from .pack import Pack


@dataclass(frozen=True)
class TextPair:
    """Unit text embeddings [E] of the target and of the neutral prompt, averaged over the templates."""

    target: Tensor
    neutral: Tensor

    @property
    def delta_t(self) -> Tensor:
        """target - neutral, unit length [E]; InputError where both mean the same."""
        delta = self.target - self.neutral
        if not delta.norm() > 1e-6:
            raise InputError("the target and the neutral text mean the same to CLIP; give a neutral text that differs")
        return delta / delta.norm()


class PackTexts:
    """Embeds texts with the pack's tokenizer, CLIP and templates; remembers them. PackError for a pack without CLIP."""

    def __init__(self, pack: Pack) -> None:
        self.pack = pack
        self.tokenizer = Tokenizer.open(pack.file("tokenizer"), read_tokens(pack.config("tokenizer")))
        self._known: dict[tuple[str, bool], Tensor] = {}

    def embed(self, text: str, alone: bool = False) -> Tensor:
        """Unit embedding [E] of a text, float32 on the CPU: the normalised mean over the templates.

        alone: of the text without a template, as the published optimisation and mapper take it.
        """
        if (text, alone) not in self._known:
            templates = ["{}"] if alone or not self.pack.templates else self.pack.templates
            tokens = self.tokenizer.encode([template.replace("{}", text) for template in templates])
            embedded = in_chunks(self.pack.clip.to(device()).encode_text, torch.from_numpy(tokens))
            self._known[text, alone] = torch.from_numpy(edits.prompt_embedding(embedded.numpy()).astype(np.float32))
        return self._known[text, alone]

    def pair(self, target: str, neutral: str) -> TextPair:
        """Both embeddings."""
        return TextPair(self.embed(target), self.embed(neutral))
