"""CLIP in the open_clip architecture and file format, built from a config without any download.

Two image front-ends exist because the StyleCLIP family has two: `Preprocess` (CLIP's own: resize, mean, std; used by
the channel directions) and `RawFrontEnd` (StyleCLIP's loss: area average only, no mean and std).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ....engines.errors import InputError, MissingDependency, PackError
from .arcface import unit_length

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


def build_open_clip(config: Mapping[str, Any]) -> nn.Module:
    """An `open_clip.CLIP` with random weights from `embed_dim`, `vision_cfg`, `text_cfg` and `quick_gelu`.

    Raises MissingDependency without open_clip and PackError when a key is missing or open_clip refuses the config.
    """
    try:
        from open_clip.model import CLIP
    except ImportError as error:
        raise MissingDependency(f"CLIP needs open_clip_torch ({error}); pip install 'styleclip-rt[torch]'") from None
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config]
    if missing:
        raise PackError(
            f"CLIP config lacks {missing}; expected open_clip's embed_dim, vision_cfg, text_cfg, quick_gelu"
        )
    try:
        return CLIP(
            embed_dim=int(config["embed_dim"]),
            vision_cfg=dict(config["vision_cfg"]),
            text_cfg=dict(config["text_cfg"]),
            quick_gelu=bool(config.get("quick_gelu", False)),
        )
    except TypeError as error:
        raise PackError(f"open_clip refused the CLIP config: {error}") from None


def resize_image(image: Tensor, size: int, mode: str = "bicubic") -> Tensor:
    """image [N,3,H,W] -> [N,3,size,size], antialiased; `mode` is "bicubic" (CLIP) or "area". No-op at that size."""
    if image.shape[-2:] == (size, size):
        return image
    if mode == "area":
        return area_resize(image, size)
    if mode != "bicubic":
        raise InputError(f"resize mode is {mode!r}; expected 'bicubic' or 'area'")
    return functional.interpolate(image, (size, size), mode="bicubic", align_corners=False, antialias=True)


def area_matrix(source: int, target: int) -> Tensor:
    """[target, source] float32: row i averages the span [i, i + 1) * source / target of a line of `source` pixels."""
    ratio = source / target
    starts = torch.arange(target, dtype=torch.float64)[:, None] * ratio
    pixels = torch.arange(source, dtype=torch.float64)[None, :]
    overlap = torch.minimum(starts + ratio, pixels + 1) - torch.maximum(starts, pixels)
    return (overlap.clamp(min=0) / ratio).float()


def area_resize(image: Tensor, size: int, width: int | None = None) -> Tensor:
    """image [N,3,H,W] -> [N,3,size,width or size] by exact area averages, as two small matrix products A X B^T."""
    rows = area_matrix(image.shape[-2], size).to(image)
    columns = area_matrix(image.shape[-1], width or size).to(image)
    return rows @ image @ columns.T


class Preprocess(nn.Module):
    """CLIP's front-end: image [N,3,H,W] in -1..1 -> [N,3,R,R], resized, moved to 0..1, minus mean, over std."""

    mean: Tensor
    std: Tensor

    def __init__(self, size: int, mean: tuple[float, ...] = OPENAI_MEAN, std: tuple[float, ...] = OPENAI_STD):
        super().__init__()
        self.size = size
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor, mode: str = "bicubic") -> Tensor:
        """Differentiable; does not clamp, so that a loss still sees values outside -1..1."""
        return self.normalise(resize_image(image, self.size, mode))

    def normalise(self, image: Tensor) -> Tensor:
        """image [N,3,R,R] in -1..1, already at CLIP's size -> CLIP's normalised input."""
        return image * (0.5 / self.std) + (0.5 - self.mean) / self.std


class RawFrontEnd(nn.Module):
    """StyleCLIP's loss front-end: nearest upsampling and average pooling to CLIP's size, values left in -1..1.

    The published Upsample(7) + AvgPool(size // 32) to 224 equals one area average; no clamp, no mean and std
    (StyleCLIP issue 38), which the published weights and settings rely on.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, image: Tensor) -> Tensor:
        """image [N,3,H,W] in -1..1 -> [N,3,R,R] in -1..1."""
        return image if image.shape[-2:] == (self.size, self.size) else area_resize(image, self.size)


class Clip(nn.Module):
    """CLIP with its image front-ends; `model` is the open_clip module and its state dict is what a pack stores."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.config = dict(config)
        self.model = build_open_clip(config)
        self.image_size = int(config["vision_cfg"]["image_size"])
        self.embed_dim = int(config["embed_dim"])
        self.context_length = int(config["text_cfg"].get("context_length", 77))
        mean, std = config.get("mean", OPENAI_MEAN), config.get("std", OPENAI_STD)
        self.preprocess = Preprocess(self.image_size, tuple(mean), tuple(std))
        self.raw = RawFrontEnd(self.image_size)

    def encode_image(self, image: Tensor, front_end: str = "clip") -> Tensor:
        """image [N,3,H,W] in -1..1 -> unit embedding [N,E]; `front_end` is "clip" or "raw" (StyleCLIP's loss)."""
        if front_end not in ("clip", "raw"):
            raise InputError(f"front_end is {front_end!r}; expected 'clip' or 'raw'")
        pixels = self.preprocess(image) if front_end == "clip" else self.raw(image)
        return unit_length(self.model.visual(pixels))  # type: ignore[operator, union-attr]

    def encode_text(self, tokens: Tensor) -> Tensor:
        """tokens [N,T] int64 (bos ids eos pad...) -> unit embedding [N,E]."""
        return unit_length(self.model.encode_text(tokens))  # type: ignore[operator]

    @property
    def logit_scale(self) -> Tensor:
        """The learnt log temperature, a scalar; logits are exp(logit_scale) * cosine."""
        return self.model.logit_scale  # type: ignore[return-value]
