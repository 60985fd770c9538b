"""CLIP in the open_clip architecture and file format, built from a config without any download.

Two image front-ends exist because the StyleCLIP family has two: `Preprocess` (CLIP's own: resize, mean, std; used by
the channel directions) and `RawFrontEnd` (StyleCLIP's loss: area average only, no mean and std).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ....engines.errors import InputError, MissingDependency, PackError
from .arcface import unit_length

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
RESIZES = ("bicubic", "bilinear", "area")
MAX_SIZE = 1 << 21  # a vocabulary has up to 901,629 ids
MAX_SIZES = {"layers": 256, "context_length": 4096, "image_size": 4096}


def build_open_clip(config: Mapping[str, Any]) -> nn.Module:
    """An `open_clip` model with random weights, from a config in open_clip's own words (see `clip_config`).

    `embed_dim`, `vision_cfg`, `text_cfg`, and optionally `quick_gelu`, `custom_text`, `init_logit_bias`. Nothing is
    downloaded. Raises MissingDependency without open_clip and PackError when a key is missing, when a tower cannot be
    built without a download, or when open_clip refuses the config.
    """
    try:
        from open_clip.model import CLIP, CustomTextCLIP
    except ImportError as error:
        raise MissingDependency(f"CLIP needs open_clip_torch ({error}); pip install 'styleclip-rt[torch]'") from None
    settings = clip_config(config)
    network = CustomTextCLIP if settings.pop("custom_text") else CLIP
    try:
        return network(**settings)
    except Exception as error:  # open_clip and timm raise whatever comes to hand, assertions included
        raise PackError(f"open_clip refused the CLIP config: {error or type(error).__name__}") from None


def clip_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a CLIP config that networks are built from: complete, and without anything that would download.

    A captioning model (CoCa) comes down to its two towers. Raises PackError as `build_open_clip` does.
    """
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if not config.get(key)]
    if missing:
        raise PackError(
            f"CLIP config lacks {missing}; expected open_clip's embed_dim, vision_cfg, text_cfg, quick_gelu"
        )
    try:
        vision, text = dict(config["vision_cfg"]), dict(config["text_cfg"])
        embed_dim = int(config["embed_dim"])
    except (TypeError, ValueError) as error:
        raise PackError(f"CLIP config cannot be read ({error}); expected open_clip's") from None
    _check_towers(vision, text)
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    settings = {
        "embed_dim": embed_dim,
        "vision_cfg": {**vision, "output_tokens": False},
        "text_cfg": {**text, "output_tokens": False},
        "quick_gelu": bool(config.get("quick_gelu", False)),
        "custom_text": bool(config.get("custom_text") or "multimodal_cfg" in config),
    }
    if config.get("init_logit_bias") is not None:
        settings["init_logit_bias"] = float(config["init_logit_bias"])
    return settings


def _check_towers(vision: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    """Refuses towers that this project cannot build by itself, and sizes that no CLIP has."""
    if text.get("hf_model_name"):
        raise PackError(
            f"CLIP's text tower is {text['hf_model_name']!r} of the library transformers, whose configuration must be "
            "downloaded; only open_clip's own text towers are supported"
        )
    name = vision.get("timm_model_name")
    if name is not None and not (isinstance(name, str) and re.fullmatch(r"[\w.]+", name)):
        raise PackError(f"timm_model_name is {name!r}; expected the plain name of a model of timm")
    for tower in (vision, text):
        for key, value in tower.items():
            limit = MAX_SIZES.get(key, MAX_SIZE)
            for number in value if isinstance(value, list | tuple) else [value]:
                if isinstance(number, int | float) and not 0 <= number <= limit:
                    raise PackError(f"CLIP config: {key} is {value!r}; expected 0 to {limit}")


def front_end_settings(config: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    """(mean, std, interpolation) of a CLIP config, by default OpenAI's; PackError for what cannot be applied."""
    mean, std = (config.get(key, default) for key, default in (("mean", OPENAI_MEAN), ("std", OPENAI_STD)))
    for key, values in (("mean", mean), ("std", std)):
        numbers = isinstance(values, list | tuple) and all(isinstance(value, int | float) for value in values)
        if not numbers or len(values) != 3 or not all(abs(value) < MAX_SIZE for value in values):
            raise PackError(f"CLIP config: {key} is {values!r}; expected three numbers")
    interpolation = config.get("interpolation", "bicubic")
    if 0 in std or interpolation not in RESIZES:
        raise PackError(f"CLIP config: std {std!r} or interpolation {interpolation!r} cannot be applied")
    return tuple(mean), tuple(std), interpolation


def square_size(vision: Mapping[str, Any]) -> int:
    """Side of CLIP's input in pixels; PackError where it is no square: every image of this project is one."""
    size = vision.get("image_size", 224)
    sides = {int(side) for side in (size if isinstance(size, list | tuple) else [size])}
    if len(sides) != 1:
        raise PackError(f"CLIP reads images of {size} pixels; expected a square")
    return sides.pop()


def resize_image(image: Tensor, size: int, mode: str = "bicubic") -> Tensor:
    """image [N,3,H,W] -> [N,3,size,size], antialiased; `mode` is one of `RESIZES`. No-op at that size."""
    if mode not in RESIZES:
        raise InputError(f"resize mode is {mode!r}; expected one of {', '.join(RESIZES)}")
    if image.shape[-2:] == (size, size):
        return image
    if mode == "area":
        return area_resize(image, size)
    return functional.interpolate(image, (size, size), mode=mode, align_corners=False, antialias=True)


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

    def __init__(
        self,
        size: int,
        mean: tuple[float, ...] = OPENAI_MEAN,
        std: tuple[float, ...] = OPENAI_STD,
        interpolation: str = "bicubic",
    ):
        super().__init__()
        self.size, self.interpolation = size, interpolation
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor, mode: str | None = None) -> Tensor:
        """Differentiable; without a clamp, so that a loss sees values outside -1..1. `mode` overrules CLIP's own."""
        return self.normalise(resize_image(image, self.size, mode or self.interpolation))

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
    """CLIP with its image front-ends; `model` is the open_clip module and its state dict is what a pack stores.

    config: as for `build_open_clip`, and the front-end's `mean`, `std` and `interpolation` (one of `RESIZES`). Raises
    PackError.
    """

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.config = dict(config)
        self.model = build_open_clip(config)
        self.image_size = square_size(config["vision_cfg"])
        self.embed_dim = int(config["embed_dim"])
        self.context_length = int(config["text_cfg"].get("context_length", 77))
        self.preprocess = Preprocess(self.image_size, *front_end_settings(config))
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
