"""StyleCLIP latent mappers: latents -> an offset of them (Patashnik et al. 2021, section 5).

Three kinds. "levels": three groups of w+ layers (coarse 0:4, medium 4:8, fine 8:) have a mapper each; a group can be
off. "single": one mapper for all of w+. "style": one mapper per layer of style space, toRGB layers on or off. The
normalisation in front of a mapper runs over dimension 1 as in the published code, and pretrained weights rely on it:
in w+ [N,L,W] that is the LAYER axis of the group, in style space [N,C] the channels.
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
"""The published step: w_hat = w + 0.1 * mapper(w). The networks' `delta` is the one place that applies it."""

GROUP_BOUNDS: dict[str, tuple[int, int | None]] = {"coarse": (0, 4), "medium": (4, 8), "fine": (8, None)}
KINDS = ("levels", "single", "style")


def is_torgb(index: int) -> bool:
    """Whether entry `index` of style space is a toRGB layer; the order is conv, toRGB, then conv, conv, toRGB, ..."""
    return index % 3 == 1


@dataclass(frozen=True)
class MapperConfig:
    """What a mapper edits, and the sizes of its latents: w+ [N, num_ws, w_dim], or style space.

    coarse, medium, fine: which groups are on ("levels" only). channels: width of every entry of style space in layer
    order, torgb: whether toRGB entries are edited too ("style" only).
    """

    num_ws: int
    w_dim: int
    coarse: bool = True
    medium: bool = True
    fine: bool = True
    depth: int = 4
    kind: str = "levels"
    channels: tuple[int, ...] = ()
    torgb: bool = False

    def bounds(self) -> dict[str, tuple[int, int]]:
        """The layer range [start, stop) of every group that is on and holds at least one layer."""
        ranges = {}
        for group, (start, stop) in GROUP_BOUNDS.items():
            end = self.num_ws if stop is None else min(stop, self.num_ws)
            if getattr(self, group) and start < end:
                ranges[group] = (start, end)
        return ranges

    def edited(self) -> tuple[int, ...]:
        """Indices of the style-space entries that have a mapper."""
        return tuple(i for i in range(len(self.channels)) if self.torgb or not is_torgb(i))

    def to_dict(self) -> dict[str, Any]:
        """The `config` entry of a mapper in pack.json."""
        config: dict[str, Any] = {"kind": self.kind, "num_ws": self.num_ws, "w_dim": self.w_dim, "depth": self.depth}
        if self.kind == "levels":
            config["groups"] = {group: getattr(self, group) for group in GROUP_BOUNDS}
        if self.kind == "style":
            config |= {"channels": list(self.channels), "torgb": self.torgb}
        return config

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> MapperConfig:
        """Reads what `to_dict` wrote; raises PackError for another kind of mapper or a missing key."""
        kind = config.get("kind")
        if kind not in KINDS:
            raise PackError(f"mapper kind is {kind!r}; this version reads {', '.join(KINDS)}")
        try:
            num_ws, w_dim = int(config["num_ws"]), int(config["w_dim"])
            more: dict[str, Any] = {"depth": int(config.get("depth", 4)), "kind": kind}
            if kind == "levels":
                more |= {group: bool(config["groups"][group]) for group in GROUP_BOUNDS}
            if kind == "style":
                more |= {"channels": tuple(int(c) for c in config["channels"]), "torgb": bool(config["torgb"])}
            return cls(num_ws, w_dim, **more)
        except (KeyError, TypeError, ValueError) as error:
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
    """The mapper of one group: normalisation over dimension 1, then `depth` equalised layers over the last one."""

    def __init__(self, width: int, depth: int = 4):
        super().__init__()
        self.layers = nn.ModuleList(EqualLinear(width, width, lr_mul=0.01, activate=True) for _ in range(depth))

    def forward(self, w: Tensor) -> Tensor:
        """w [N, layers of the group, W] or s [N, C] -> the same shape."""
        x = pixel_norm(w, dim=1)  # [N,l,W]: dim 1 is the layer axis on purpose; [N,C]: the channels
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


class SingleMapper(nn.Module):
    """StyleCLIP's SingleMapper: one `GroupMapper` for all layers; its normalisation spans all of them."""

    def __init__(self, config: MapperConfig):
        super().__init__()
        self.config = config
        self.mapper = GroupMapper(config.w_dim, config.depth)

    def forward(self, w: Tensor) -> Tensor:
        """w [N,L,W] -> the raw offset [N,L,W]."""
        return self.mapper(w)

    def delta(self, w: Tensor) -> Tensor:
        """w [N,L,W] -> delta_w [N,L,W], the 0.1 inside."""
        return MAPPER_SCALE * self(w)


class StyleSpaceMapper(nn.Module):
    """StyleCLIP's FullStyleSpaceMapper and WithoutToRGBStyleSpaceMapper: a `GroupMapper` per entry of style space.

    Entries without a mapper (toRGB ones of the second) get zeros. s is packed: all entries side by side in layer order.
    """

    def __init__(self, config: MapperConfig):
        super().__init__()
        self.config = config
        self.entries = nn.ModuleDict({str(i): GroupMapper(config.channels[i], config.depth) for i in config.edited()})

    def forward(self, s: Tensor) -> Tensor:
        """s [N,S] -> the raw offset [N,S]."""
        parts = []
        for i, entry in enumerate(s.split(list(self.config.channels), dim=1)):  # [N,C] each
            parts.append(self.entries[str(i)](entry) if str(i) in self.entries else torch.zeros_like(entry))
        return torch.cat(parts, dim=1)

    def delta(self, s: Tensor) -> Tensor:
        """s [N,S] -> delta_s [N,S], the 0.1 inside, so that the edit is s + strength * delta_s."""
        return MAPPER_SCALE * self(s)


LatentMapper = LevelsMapper | SingleMapper | StyleSpaceMapper


def build_mapper(config: MapperConfig) -> LatentMapper:
    """The network of `config.kind`."""
    networks: dict[str, type[LatentMapper]] = {
        "levels": LevelsMapper,
        "single": SingleMapper,
        "style": StyleSpaceMapper,
    }
    return networks[config.kind](config)
