"""StyleCLIP latent mappers: w+ -> an offset in w+ (Patashnik et al. 2021, section 5).

Three groups of layers (coarse 0:4, medium 4:8, fine 8:) have a mapper each; a group can be off. The normalisation in
front of a mapper runs over the LAYER axis of its group, as in the published code, and pretrained weights rely on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ....engines.errors import PackError

MAPPER_SCALE = 0.1
"""The published step: w_hat = w + 0.1 * mapper(w). `LevelsMapper.delta` is the one place that applies it."""

GROUP_BOUNDS: dict[str, tuple[int, int | None]] = {"coarse": (0, 4), "medium": (4, 8), "fine": (8, None)}


@dataclass(frozen=True)
class MapperConfig:
    """Which layer groups a mapper edits, and the sizes of w+ [N, num_ws, w_dim]."""

    num_ws: int
    w_dim: int
    coarse: bool = True
    medium: bool = True
    fine: bool = True
    depth: int = 4

    def bounds(self) -> dict[str, tuple[int, int]]:
        """The layer range [start, stop) of every group that is on and holds at least one layer."""
        ranges = {}
        for group, (start, stop) in GROUP_BOUNDS.items():
            end = self.num_ws if stop is None else min(stop, self.num_ws)
            if getattr(self, group) and start < end:
                ranges[group] = (start, end)
        return ranges

    def to_dict(self) -> dict[str, Any]:
        """The `config` entry of a mapper in pack.json."""
        groups = {group: getattr(self, group) for group in GROUP_BOUNDS}
        return {"kind": "levels", "groups": groups, "num_ws": self.num_ws, "w_dim": self.w_dim, "depth": self.depth}

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> MapperConfig:
        """Reads what `to_dict` wrote; raises PackError for another kind of mapper or a missing key."""
        if config.get("kind") != "levels":
            raise PackError(f"mapper kind is {config.get('kind')!r}; this version reads 'levels' only")
        try:
            groups = {group: bool(config["groups"][group]) for group in GROUP_BOUNDS}
            return cls(int(config["num_ws"]), int(config["w_dim"]), depth=int(config.get("depth", 4)), **groups)
        except (KeyError, TypeError) as error:
            raise PackError(f"mapper config {dict(config)} lacks or misstates {error}; see the pack format") from None


class EqualLinear(nn.Module):
    """Fully connected layer with run-time weight scaling (Karras et al. 2018); optional leaky ReLU 0.2 times sqrt 2."""

    def __init__(self, inputs: int, outputs: int, lr_mul: float = 1.0, activate: bool = False, bias: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_mul)
        self.bias = nn.Parameter(torch.full((outputs,), bias / lr_mul))
        self.scale = lr_mul / math.sqrt(inputs)
        self.lr_mul = lr_mul
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        """x [..., inputs] -> [..., outputs]."""
        y = functional.linear(x, self.weight * self.scale, self.bias * self.lr_mul)
        return functional.leaky_relu(y, 0.2) * math.sqrt(2.0) if self.activate else y


def pixel_norm(x: Tensor, dim: int) -> Tensor:
    """Divides x by its root mean square over `dim` (eps 1e-8 inside the root)."""
    return x * torch.rsqrt(x.square().mean(dim=dim, keepdim=True) + 1e-8)


class GroupMapper(nn.Module):
    """The mapper of one layer group: normalisation over the group's layers, then `depth` equalised layers."""

    def __init__(self, width: int, depth: int = 4):
        super().__init__()
        self.layers = nn.ModuleList(EqualLinear(width, width, lr_mul=0.01, activate=True) for _ in range(depth))

    def forward(self, w: Tensor) -> Tensor:
        """w [N, layers of the group, W] -> [N, layers of the group, W]."""
        x = pixel_norm(w, dim=1)  # [N,l,W]; dim 1 is the layer axis on purpose
        for layer in self.layers:
            x = layer(x)
        return x


class LevelsMapper(nn.Module):
    """StyleCLIP's LevelsMapper: one `GroupMapper` per layer group that is on, zeros elsewhere."""

    def __init__(self, config: MapperConfig):
        super().__init__()
        self.config = config
        self.bounds = config.bounds()
        self.groups = nn.ModuleDict({group: GroupMapper(config.w_dim, config.depth) for group in self.bounds})

    def forward(self, w: Tensor) -> Tensor:
        """w [N,L,W] -> the raw offset [N,L,W], not yet scaled by 0.1 (see `delta`)."""
        parts = []
        for group, (start, stop) in GROUP_BOUNDS.items():
            layers = w[:, start:stop]
            parts.append(self.groups[group](layers) if group in self.bounds else torch.zeros_like(layers))
        return torch.cat(parts, dim=1)

    def delta(self, w: Tensor) -> Tensor:
        """w [N,L,W] -> delta_w [N,L,W] with the published 0.1 inside, so that the edit is w + strength * delta_w."""
        return MAPPER_SCALE * self(w)
