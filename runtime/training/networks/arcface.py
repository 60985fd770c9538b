"""Identity network: IR-SE residual backbone with a unit embedding, and the ArcFace margin head that trains it.

Deng et al. 2019 (ArcFace), with squeeze-and-excitation (Hu et al. 2018). `ArcFaceConfig.ir_se50()` has the layout of
the published model_ir_se50; the defaults are the small network of the embedded pack.
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

Stages = tuple[tuple[int, int], ...]
IR_SE50: Stages = ((64, 3), (128, 4), (256, 14), (512, 3))


def freeze_stages(stages: Any) -> Stages:
    """Stages as read from JSON -> ((channels, units), ...)."""
    return tuple((int(channels), int(units)) for channels, units in stages)


def unit_length(x: Tensor) -> Tensor:
    """x [N,D] over its length; like `functional.normalize`, in the form that exports without an Expand."""
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-12)


@dataclass(frozen=True)
class ArcFaceConfig:
    """Sizes of the identity network. Every stage (channels, units) halves the image once.

    `crop` is (top, bottom, left, right) in pixels of `input_size`; `pool_size` is the side after the crop.
    """

    input_size: int = 64
    embed_dim: int = 256
    stem: int = 24
    stages: Stages = ((32, 1), (48, 1), (64, 1), (72, 1))
    reduction: int = 8
    crop: tuple[int, int, int, int] | None = None
    pool_size: int | None = None
    dropout: float = 0.0

    @property
    def feature_size(self) -> int:
        """Side of the map before the embedding layer."""
        return (self.pool_size or self.input_size) // 2 ** len(self.stages)

    def to_dict(self) -> dict[str, Any]:
        """The `config` entry of the identity network in pack.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ArcFaceConfig:
        """Reads what `to_dict` wrote; raises PackError for unknown keys."""
        values = dict(config)
        try:
            values["stages"] = freeze_stages(values["stages"])
            values["crop"] = tuple(values["crop"]) if values.get("crop") else None
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise PackError(f"identity config {dict(config)} cannot be read: {error}") from None

    @classmethod
    def ir_se50(cls) -> ArcFaceConfig:
        """The published network: 256 px input, rows 35:223 and columns 32:220 kept, pooled to 112 px."""
        return cls(256, 512, 64, IR_SE50, reduction=16, crop=(35, 223, 32, 220), pool_size=112, dropout=0.6)


def pool_matrix(source: int, target: int) -> Tensor:
    """[target, source] float32: adaptive average pooling of a line as a matrix, which exports for any pair of sizes.

    Row i averages the pixels floor(i * source / target) up to ceil((i + 1) * source / target).
    """
    matrix = torch.zeros(target, source, device="cpu")  # a constant, even while weights are built on the meta device
    for i in range(target):
        start, stop = i * source // target, -(-(i + 1) * source // target)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix


class SqueezeExcite(nn.Module):
    """Channel gates from the global mean: x * sigmoid(W2 relu(W1 mean(x)))."""

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [N,C,H,W] -> [N,C,H,W]."""
        gate = x.mean(dim=(2, 3), keepdim=True)  # [N,C,1,1]
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(gate))))


class ResidualUnit(nn.Module):
    """IR-SE unit: BN, 3x3, PReLU, strided 3x3, BN, SE, plus a shortcut (subsampled, or 1x1 + BN if widths differ)."""

    def __init__(self, inputs: int, outputs: int, stride: int, reduction: int):
        super().__init__()
        self.stride = stride
        self.shortcut: nn.Module | None = None
        if inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.residual = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            SqueezeExcite(outputs, reduction),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [N,C,H,W] -> [N,C',H/stride,W/stride]."""
        skip = x[:, :, :: self.stride, :: self.stride] if self.shortcut is None else self.shortcut(x)
        return skip + self.residual(x)


class Backbone(nn.Module):
    """Stem and stages of IR-SE units; returns the map after every stage, coarsest last."""

    def __init__(self, stem: int, stages: Stages, reduction: int):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, stem, 3, 1, 1, bias=False), nn.BatchNorm2d(stem), nn.PReLU(stem))
        self.stages = nn.ModuleList()
        width = stem
        for channels, units in stages:
            first = ResidualUnit(width, channels, 2, reduction)
            rest = [ResidualUnit(channels, channels, 1, reduction) for _ in range(units - 1)]
            self.stages.append(nn.Sequential(first, *rest))
            width = channels

    def forward(self, image: Tensor) -> list[Tensor]:
        """image [N,3,H,W] -> maps [N,C_i,H/2^(i+1),W/2^(i+1)], i = 0 .. stages - 1."""
        x, maps = self.stem(image), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class ArcFace(nn.Module):
    """Identity network: image -> unit embedding; the crop and pooling of the published model are inside."""

    pool_rows: Tensor
    pool_columns: Tensor

    def __init__(self, config: ArcFaceConfig | None = None):
        super().__init__()
        self.config = config or ArcFaceConfig()
        width = self.config.stages[-1][0]
        features = width * self.config.feature_size**2
        self.backbone = Backbone(self.config.stem, self.config.stages, self.config.reduction)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(self.config.dropout)
        self.embed = nn.Linear(features, self.config.embed_dim)
        self.embed_norm = nn.BatchNorm1d(self.config.embed_dim)
        if self.config.pool_size is not None:
            top, bottom, left, right = self.config.crop or (0, self.config.input_size, 0, self.config.input_size)
            for name, side in (("pool_rows", bottom - top), ("pool_columns", right - left)):
                self.register_buffer(name, pool_matrix(side, self.config.pool_size), persistent=False)

    def prepare(self, image: Tensor) -> Tensor:
        """image [N,3,H,H] -> the crop that the backbone sees; another size is first pooled to I, as published."""
        size = self.config.input_size
        if image.shape[-2:] != (size, size):
            image = functional.adaptive_avg_pool2d(image, size)
        if self.config.crop is not None:
            top, bottom, left, right = self.config.crop
            image = image[:, :, top:bottom, left:right]
        if self.config.pool_size is not None:
            image = self.pool_rows @ image @ self.pool_columns.T
        return image

    def forward(self, image: Tensor) -> Tensor:
        """image [N,3,I,I] in -1..1, I = `input_size` (others are pooled to it) -> unit embedding [N,D]."""
        x = self.dropout(self.norm(self.backbone(self.prepare(image))[-1]))
        return unit_length(self.embed_norm(self.embed(x.flatten(1))))


class MarginHead(nn.Module):
    """ArcFace's training classifier: logits scale * cos(theta + margin) at the true class, scale * cos elsewhere."""

    def __init__(self, embed_dim: int, classes: int, scale: float = 32.0, margin: float = 0.5):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, embed_dim) * 0.01)
        self.scale, self.margin = scale, margin

    def forward(self, embedding: Tensor, label: Tensor) -> Tensor:
        """embedding [N,D] unit, label [N] int64 -> logits [N,classes] for cross-entropy (Deng et al. 2019, eq. 3)."""
        cosine = functional.linear(embedding, functional.normalize(self.weight, dim=-1)).clamp(-1, 1)  # [N,K]
        true = cosine.gather(1, label[:, None])
        sine = (1 - true.square()).clamp(min=1e-9).sqrt()
        moved = true * math.cos(self.margin) - sine * math.sin(self.margin)
        # Beyond theta = pi - margin the cosine would rise again; continue on a line so that the loss stays monotone.
        line = true - math.sin(self.margin) * self.margin
        moved = torch.where(true > math.cos(math.pi - self.margin), moved, line)
        return self.scale * cosine.scatter(1, label[:, None], moved)
