"""Image -> w+ encoders: IR-SE backbone, feature pyramid, a style head per layer.

e4e (Tov et al. 2021): w_i = w_avg + w0 (from the coarsest map, the same for all layers) + delta_i (layers i >= 1).
pSp (Richardson et al. 2021): the same network, w_i = w_avg + head_i, each layer on its own. The sums are written
functionally, so that they export. `E4EConfig.published()` has the FFHQ layout; the defaults suit 64 px images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ....engines.errors import PackError
from .arcface import IR_SE50, Backbone, Stages, freeze_stages
from .mapper import EqualLinear

KINDS = ("e4e", "psp")


@dataclass(frozen=True)
class E4EConfig:
    """Sizes of the encoder. Every stage (channels, units) halves the image; the last three maps feed the heads.

    Layers [0, coarse_layers) read the coarsest map, [coarse_layers, middle_layers) the next, the rest the finest.
    `width` is the pyramid's channel count; a head shrinks its map to `head_size` px and ends in one linear layer.
    `kind`: "e4e" (layer 0 is the base of all) or "psp" (independent layers). `input_height` and `input_width` are the
    image's where it is not a square of `input_size` (cars: 192 x 256); the depth of the heads follows `input_size`.
    `average_per_layer`: w_avg is [L,W] in place of [W].
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
    kind: str = "e4e"
    input_height: int | None = None
    input_width: int | None = None
    average_per_layer: bool = False

    @property
    def input_shape(self) -> tuple[int, int]:
        """(height, width) of the image, px."""
        return self.input_height or self.input_size, self.input_width or self.input_size

    def head_level(self, layer: int) -> int:
        """0 for the coarsest map, 1 for the middle one, 2 for the finest."""
        return 0 if layer < self.coarse_layers else 1 if layer < self.middle_layers else 2

    def map_size(self, level: int) -> int:
        """Side of the pyramid map of a level for a square image, px."""
        return self.input_size // 2 ** (len(self.stages) - level)

    def head_area(self, level: int) -> int:
        """Pixels of what a head's convolutions leave: each stage and each convolution halves, rounding up."""
        halvings = len(self.stages) - level + self.head_depth(level)
        height, width = (-(-side // 2**halvings) for side in self.input_shape)
        return height * width

    def head_depth(self, level: int) -> int:
        """Strided convolutions of a head: as many as bring a square map down to `head_size`."""
        return max(0, math.ceil(math.log2(self.map_size(level) / self.head_size)))

    def to_dict(self) -> dict[str, Any]:
        """The `config` entry of the inverter in pack.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> E4EConfig:
        """Reads what `to_dict` wrote; raises PackError for unknown or missing keys."""
        if config.get("kind", "e4e") not in KINDS:
            raise PackError(f"inverter kind is {config['kind']!r}; this version reads {', '.join(KINDS)}")
        try:
            sizes = {key: value for key, value in config.items() if key != "training"}  # how it was trained: a record
            return cls(**{**sizes, "stages": freeze_stages(config["stages"])})
        except (KeyError, TypeError, ValueError) as error:
            raise PackError(f"inverter config {dict(config)} cannot be read: {error}") from None

    @classmethod
    def published(cls, num_ws: int = 18, kind: str = "e4e") -> E4EConfig:
        """Encoder4Editing(50, 'ir_se') or GradualStyleEncoder at 256 px for a 512-wide w."""
        return cls(num_ws, 512, 256, 64, IR_SE50, reduction=16, width=512, head_size=1, kind=kind)


class StyleHead(nn.Module):
    """`depth` strided 3x3 convolutions that leave `area` pixels, then one equalised linear layer: map -> style."""

    def __init__(self, width: int, w_dim: int, depth: int, area: int):
        super().__init__()
        steps: list[nn.Module] = []
        for _ in range(depth):
            steps += [nn.Conv2d(width, width, 3, 2, 1), nn.LeakyReLU(0.01)]
        self.convs = nn.Sequential(*steps)
        self.linear = EqualLinear(width * area, w_dim)

    def forward(self, x: Tensor) -> Tensor:
        """x [N,width,H,W'] -> [N,W]."""
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
        levels = [config.head_level(layer) for layer in range(config.num_ws)]
        self.heads = nn.ModuleList(
            StyleHead(config.width, config.w_dim, config.head_depth(level), config.head_area(level)) for level in levels
        )
        average = (config.num_ws, config.w_dim) if config.average_per_layer else (config.w_dim,)
        self.register_buffer("w_avg", torch.zeros(average))

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """image -> maps [N,width,H_k,W_k], coarsest first (top-down additions, bilinear with aligned corners)."""
        maps = self.backbone(image)[-3:][::-1]
        levels = [self.laterals[0](maps[0])]
        for lateral, features in zip(list(self.laterals)[1:], maps[1:], strict=True):
            size = (features.shape[-2], features.shape[-1])
            raised = functional.interpolate(levels[-1], size, mode="bilinear", align_corners=True)
            levels.append(raised + lateral(features))
        return levels

    def forward(self, image: Tensor) -> Tensor:
        """image [N,3,H,W'] in -1..1 at the config's `input_shape` -> w+ [N,L,W]."""
        levels = self.pyramid(image)
        feeds = [levels[self.config.head_level(layer)] for layer in range(self.config.num_ws)]
        outputs = [head(x) for head, x in zip(self.heads, feeds, strict=True)]  # [N,W] each
        if self.config.kind == "e4e":
            base = outputs[0]
            outputs = [base, *(base + delta for delta in outputs[1:])]
        return self.w_avg + torch.stack(outputs, dim=1)

    def deltas(self, w_plus: Tensor) -> Tensor:
        """w+ [N,L,W] -> the per-layer offsets from layer 0, [N,L-1,W]; e4e keeps their norm small in training."""
        return w_plus[:, 1:] - w_plus[:, :1]
