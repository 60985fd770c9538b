"""Trains the embedded pack's CLIP on renders and their captions.

Contrastive, with targets that know which captions are true of which pictures, plus scaffolding on the image embedding
(attribute classes and the face's code) that keeps fine detail alive and the embedding of high rank. The scaffolding is
dropped afterwards: what is kept is an ordinary open_clip model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ..loop import device, load_stage, mixed_precision, rng_for, train
from ..networks.clip import Clip
from .augment import augment
from .captions import captions, holds, matches
from .clip_report import write_report
from .dataset import RenderedFaces
from .facts import scores
from .judge import SIZES, attribute_loss, finished, stage_faces, take_labels
from .vocabulary import CONTEXT_LENGTH, VOCABULARY, Encoder, train_vocabulary

BATCH, STEPS = 256, 1200
EMBED_DIM, MAX_SCALE = 512, 100.0
ATTRIBUTE_WEIGHT, CODE_WEIGHT = 0.35, 0.25


def clip_config() -> dict[str, Any]:
    """The open_clip config of the pack's CLIP: a ModifiedResNet (as RN50) and a causal text transformer.

    mean and std of one half make CLIP's own front-end equal to the raw one of StyleCLIP's losses.
    """
    vision = {"layers": [3, 2, 2, 1], "width": 18, "head_width": 32, "image_size": 64, "patch_size": None}
    text = {"context_length": CONTEXT_LENGTH, "vocab_size": VOCABULARY, "width": 128, "heads": 4, "layers": 3}
    half = [0.5, 0.5, 0.5]
    return {
        "embed_dim": EMBED_DIM, "vision_cfg": vision, "text_cfg": text, "quick_gelu": False, "mean": half, "std": half
    }  # fmt: skip


class ClipTraining(nn.Module):
    """CLIP with the linear heads of its training."""

    def __init__(self, code_dim: int, config: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.clip = Clip(config or clip_config())
        self.attributes = nn.Linear(EMBED_DIM, sum(SIZES.values()))
        self.code = nn.Linear(EMBED_DIM, code_dim)

    @property
    def scale(self) -> Tensor:
        """The inverse temperature, at most MAX_SCALE as in CLIP."""
        return self.clip.model.logit_scale.exp().clamp(max=MAX_SCALE)  # type: ignore[operator, union-attr]

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """tokens [N,T'] cut to the longest row -> unit embedding [N,E]; the causal mask makes it equal to full rows."""
        m: Any = self.clip.model
        length = tokens.shape[1]
        x = m.token_embedding(tokens) + m.positional_embedding[:length]
        x = m.ln_final(m.transformer(x, attn_mask=m.attn_mask[:length, :length]))
        pooled = x[torch.arange(len(x), device=x.device), tokens.argmax(-1)] @ m.text_projection
        return functional.normalize(pooled.float(), dim=-1)


def contrastive_loss(logits: Tensor, match: Tensor) -> tuple[Tensor, Tensor]:
    """Losses text -> images and image -> texts for logits [n, n] (rows: pictures) and match bool [n, n].

    A caption should be equally close to every picture that it is true of, so its target is uniform over them. A picture
    is asked for its own caption among those that are false of it; other true captions are left out of the sum.
    """
    target = match.to(logits.dtype)
    target = target / target.sum(0, keepdim=True)
    to_images = -(target * logits.log_softmax(0)).sum(0).mean()
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    visible = logits.masked_fill(match & ~own, float("-inf"))
    to_texts = functional.cross_entropy(visible, torch.arange(len(logits), device=logits.device))
    # The entropy of the targets is a constant that only hides the progress.
    floor = -(target * target.clamp_min(1e-9).log()).sum(0).mean()
    return to_images - floor, to_texts


class _Step:
    """One training step: faces, damage, captions, losses; all randomness from (seed, i)."""

    def __init__(self, model: ClipTraining, faces: RenderedFaces, encoder: Encoder, batch: int, seed: int) -> None:
        self.model, self.faces, self.encoder, self.batch, self.seed = model, faces, encoder, batch, seed
        self.scores = scores(faces.factors)
        self.codes = torch.from_numpy(faces.codes)

    def __call__(self, i: int) -> dict[str, Tensor]:
        rng, home = rng_for(self.seed, i), device()
        index = rng.integers(0, len(self.faces), self.batch)
        image, condition = augment(self.faces.batch(index).to(home), rng)
        said = captions(self.scores[index], condition, rng)
        match = torch.from_numpy(matches(holds(self.scores[index], condition), said.stated)).to(home)
        tokens = torch.from_numpy(self.encoder(said.texts)).to(home)
        with mixed_precision(home):
            pictures = self.model.clip.encode_image(image.contiguous(memory_format=torch.channels_last))
            texts = self.model.embed_texts(tokens)
        return self._losses(pictures.float(), texts, match, index)

    def _losses(self, pictures: Tensor, texts: Tensor, match: Tensor, index: NDArray[np.int64]) -> dict[str, Tensor]:
        to_images, to_texts = contrastive_loss(self.model.scale * pictures @ texts.T, match)
        wide = pictures * 16.0
        attributes = attribute_loss(self.model.attributes(wide), take_labels(self.faces.labels, index))
        code = functional.mse_loss(self.model.code(wide), self.codes[index].to(wide))
        loss = 0.5 * (to_images + to_texts) + ATTRIBUTE_WEIGHT * attributes + CODE_WEIGHT * code
        return {
            "loss": loss, "images": to_images, "texts": to_texts, "attributes": attributes, "code": code,
            "scale": self.model.scale,
        }  # fmt: skip


def train_clip(work: Path, *, seed: int = 0, scale: float = 1.0) -> Path:
    """Train the vocabulary and CLIP; write `tokenizer.json`, `clip.pt` and the measurements `clip.json` (returned)."""
    if (report := finished(work, "clip")) is not None:
        return report
    tokenizer = train_vocabulary(work, seed=seed, scale=scale)
    faces, held = stage_faces(work, scale)
    torch.manual_seed(seed)
    model = ClipTraining(faces.codes.shape[1])
    model.clip.model.visual.to(memory_format=torch.channels_last)  # type: ignore[union-attr, operator, call-overload]
    step = _Step(model, faces, Encoder(tokenizer), BATCH if scale >= 0.1 else 32, seed + 10)
    trained = train(
        "clip", work, model, step, steps=max(2, int(STEPS * scale)), lr=1.5e-3, ema=0.995, weight_decay=0.02, warmup=100
    )
    return write_report(work / "clip.json", trained.clip, Encoder(tokenizer), held)


def load_clip(work: Path) -> Clip:
    """The CLIP that `train_clip` left in `work`; a pack stores its `config` and `model.state_dict()`."""
    state = torch.load(work / "clip.pt", map_location="cpu", weights_only=True)
    model = ClipTraining(len(state["model"]["code.weight"]))
    return load_stage(work, "clip", model).clip
