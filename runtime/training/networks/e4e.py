"""Image -> w+ encoder in the design of e4e (Tov et al. 2021): IR-SE backbone, feature pyramid, a style head per layer.

w+ = w_avg + w0 (from the coarsest map, the same for all layers) + delta_i (one per layer i >= 1). The sum is written
functionally, so that it exports. `E4EConfig.published()` has the FFHQ layout; the defaults suit 64 px images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ....engines.errors import PackError
from .arcface import Backbone, Stages, freeze_stages
from .mapper import EqualLinear


@dataclass(frozen=True)
class E4EConfig:
    """Sizes of the encoder. Every stage (channels, units) halves the image; the last three maps feed the heads.

    Layers [0, coarse_layers) read the coarsest map, [coarse_layers, middle_layers) the next, the rest the finest.
    `width` is the pyramid's channel count; a head shrinks its map to `head_size` px and ends in one linear layer.
    """

    num_ws: int = 10
    w_dim: int = 128
    input_size: int = 64
    stem: int = 32
    stages: Stages = ((32, 1), (48, 1), (64, 2), (96, 2))
    reduction: int = 8
    width: int = 48
    coarse_layers: int = 3
    middle_layers: int = 7
    head_size: int = 2

    def head_level(self, layer: int) -> int:
        """0 for the coarsest map, 1 for the middle one, 2 for the finest."""
        return 0 if layer < self.coarse_layers else 1 if layer < self.middle_layers else 2

    def map_size(self, level: int) -> int:
        """Side of the pyramid map of a level, px."""
        return self.input_size // 2 ** (len(self.stages) - level)

    def to_dict(self) -> dict[str, Any]:
        """The `config` entry of the inverter in pack.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> E4EConfig:
        """Reads what `to_dict` wrote; raises PackError for unknown or missing keys."""
        try:
            return cls(**{**config, "stages": freeze_stages(config["stages"])})
        except (KeyError, TypeError, ValueError) as error:
            raise PackError(f"inverter config {dict(config)} cannot be read: {error}") from None

    @classmethod
    def published(cls, num_ws: int = 18) -> E4EConfig:
        """Encoder4Editing(50, 'ir_se') at 256 px for a 512-wide w."""
        stages = ((64, 3), (128, 4), (256, 14), (512, 3))
        return cls(num_ws, 512, 256, 64, stages, reduction=16, width=512, head_size=1)


class StyleHead(nn.Module):
    """Strided 3x3 convolutions down to `stop` px, then one equalised linear layer: a map -> a style vector."""

    def __init__(self, width: int, w_dim: int, size: int, stop: int):
        super().__init__()
        steps: list[nn.Module] = []
        while size > stop:
            steps += [nn.Conv2d(width, width, 3, 2, 1), nn.LeakyReLU(0.01)]
            size //= 2
        self.convs = nn.Sequential(*steps)
        self.linear = EqualLinear(width * size * size, w_dim)

    def forward(self, x: Tensor) -> Tensor:
        """x [N,width,H,H] -> [N,W]."""
        return self.linear(self.convs(x).flatten(1))


class Encoder4Editing(nn.Module):
    """The inverter: image -> w+."""

    w_avg: Tensor

    def __init__(self, config: E4EConfig | None = None):
        super().__init__()
        self.config = config = config or E4EConfig()
        self.backbone = Backbone(config.stem, config.stages, config.reduction)
        channels = [channels for channels, _ in config.stages[-3:]][::-1]  # coarsest first
        self.laterals = nn.ModuleList(
            nn.Identity() if c == config.width else nn.Conv2d(c, config.width, 1) for c in channels
        )
        heads = []
        for layer in range(config.num_ws):
            size = config.map_size(config.head_level(layer))
            heads.append(StyleHead(config.width, config.w_dim, size, config.head_size))
        self.heads = nn.ModuleList(heads)
        self.register_buffer("w_avg", torch.zeros(config.w_dim))

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """image -> maps [N,width,H_k,H_k], coarsest first (top-down additions, bilinear with aligned corners)."""
        maps = self.backbone(image)[-3:][::-1]
        levels = [self.laterals[0](maps[0])]
        for lateral, features in zip(list(self.laterals)[1:], maps[1:], strict=True):
            size = (features.shape[-2], features.shape[-1])
            raised = functional.interpolate(levels[-1], size, mode="bilinear", align_corners=True)
            levels.append(raised + lateral(features))
        return levels

    def forward(self, image: Tensor) -> Tensor:
        """image [N,3,I,I] in -1..1 -> w+ [N,L,W]."""
        levels = self.pyramid(image)
        base = self.w_avg + self.heads[0](levels[0])  # [N,W]
        feeds = [levels[self.config.head_level(layer)] for layer in range(self.config.num_ws)]
        deltas = [head(x) for head, x in zip(list(self.heads)[1:], feeds[1:], strict=True)]
        return torch.stack([base, *(base + delta for delta in deltas)], dim=1)

    def deltas(self, w_plus: Tensor) -> Tensor:
        """w+ [N,L,W] -> the per-layer offsets from layer 0, [N,L-1,W]; e4e keeps their norm small in training."""
        return w_plus[:, 1:] - w_plus[:, :1]
