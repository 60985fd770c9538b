"""StyleGAN2 (Karras et al. 2020, arXiv:1912.04958), written from its equations in the form that exports.

Modulation acts on the activations and the weights stay constant (paper, section 2.2,
equations 1 to 3, rearranged):

    y = conv(x * s, W) * d,    d_o = 1 / sqrt(sum_i s_i^2 sum_k W_oik^2 + 1e-8)

which is equal to modulating and demodulating W per sample, but leaves one constant weight per layer and a free batch.

Shape alphabet: N batch, L style layers, W width of w, C channels, S style channels, R resolution.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SQRT2 = math.sqrt(2.0)


@dataclass(frozen=True)
class GeneratorConfig:
    """Every size of a generator; nothing is assumed about FFHQ.

    Attributes:
        resolution: R, a power of two, 8 or more.
        z_dim, w_dim: widths of z and w.
        mapping_layers: fully connected layers from z to w.
        channels: feature maps by resolution, 4 up to R.
        conv_clamp: limit of the activations where the checkpoint was trained with one, else None.
    """

    resolution: int
    z_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 8
    channels: dict[int, int] = field(default_factory=dict)
    conv_clamp: float | None = None

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> GeneratorConfig:
        """The inverse of `to_dict`: JSON turns the keys of `channels` into strings."""
        return cls(**{**config, "channels": {int(k): int(v) for k, v in config["channels"].items()}})

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, as `pack.json` records it."""
        return asdict(self)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """4, 8 ... R: one block each."""
        return tuple(2**i for i in range(2, int(math.log2(self.resolution)) + 1))

    @property
    def num_ws(self) -> int:
        """L, the number of w vectors that the synthesis reads."""
        return 2 * len(self.resolutions)


@dataclass(frozen=True)
class StyleLayer:
    """One modulated layer and its slice of s: channels offset .. offset + channels."""

    name: str
    kind: str  # "conv" or "torgb"
    w_index: int
    offset: int
    channels: int


class FullyConnected(nn.Module):
    """Linear layer with the equalised learning rate: weight * lr_mul / sqrt(in), bias * lr_mul."""

    def __init__(self, inputs: int, outputs: int, lr_mul: float = 1.0, bias_init: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_mul)
        self.bias = nn.Parameter(torch.full((outputs,), bias_init / lr_mul))
        self.weight_gain, self.bias_gain = lr_mul / math.sqrt(inputs), lr_mul

    def forward(self, x: Tensor) -> Tensor:
        """x [N, in] -> [N, out]."""
        return F.linear(x, self.weight * self.weight_gain, self.bias * self.bias_gain)


class Mapping(nn.Module):
    """z [N, Z] -> w [N, W]: second-moment normalisation, `mapping_layers` leaky layers, truncation towards w_avg."""

    w_avg: Tensor

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.depth = config.mapping_layers
        for i in range(self.depth):
            self.add_module(f"fc{i}", FullyConnected(config.w_dim if i else config.z_dim, config.w_dim, lr_mul=0.01))
        self.register_buffer("w_avg", torch.zeros(config.w_dim))

    def forward(self, z: Tensor, psi: float | Tensor = 1.0) -> Tensor:
        """z [N, Z] -> w [N, W]; see `Generator.mapping`."""
        x = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)
        for i in range(self.depth):
            x = F.leaky_relu(getattr(self, f"fc{i}")(x), 0.2) * SQRT2
        return self.w_avg + psi * (x - self.w_avg)


def fir_kernel() -> Tensor:
    """The 4x4 low-pass filter [1, 3, 3, 1] outer [1, 3, 3, 1] / 64; gain 4 restores the mean after zero insertion."""
    f = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(f, f) / 64.0


class Layer(nn.Module):
    """Modulated 3x3 convolution, optional 2x up-sampling, noise, bias, leaky ReLU: [N, Ci, r, r] -> [N, Co, r', r']."""

    fir: Tensor
    noise_const: Tensor

    def __init__(self, inputs: int, outputs: int, resolution: int, w_dim: int, up: bool, clamp: float | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.affine = FullyConnected(w_dim, inputs, bias_init=1.0)
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.register_buffer("fir", (fir_kernel() * 4).expand(outputs, 1, 4, 4).contiguous(), persistent=False)
        self.up, self.clamp, self.gain = up, clamp, 1 / math.sqrt(inputs * 9)

    def demodulation(self) -> Tensor:
        """Sum over the kernel of the squared weight, [Ci, Co]: s^2 @ this is the variance that d divides by."""
        return (self.weight * self.gain).square().sum((2, 3)).T

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """x [N, Ci, r, r] and its style s [N, Ci] -> [N, Co, r', r']."""
        weight = self.weight * self.gain
        x = x * s[:, :, None, None]
        if self.up:
            x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
            x = F.conv2d(x, self.fir, padding=1, groups=self.fir.shape[0])
        else:
            x = F.conv2d(x, weight, padding=1)
        # The gain sqrt(2) of the activation is folded into both terms: lrelu(a x) = a lrelu(x) for a > 0.
        d = torch.rsqrt(s.square() @ self.demodulation() + 1e-8) * SQRT2
        offset = (self.noise_const * self.noise_strength + self.bias[:, None, None]) * SQRT2
        x = F.leaky_relu(torch.addcmul(offset.to(x.dtype), x, d.to(x.dtype)[:, :, None, None]), 0.2)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to RGB without demodulation: [N, C, r, r] -> [N, 3, r, r]."""

    def __init__(self, inputs: int, w_dim: int, clamp: float | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(3))
        self.affine = FullyConnected(w_dim, inputs, bias_init=1.0)
        self.clamp, self.gain = clamp, 1 / math.sqrt(inputs)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """x [N, C, r, r] and its style s [N, C] -> RGB [N, 3, r, r]."""
        rgb = F.conv2d(x * s[:, :, None, None], self.weight * self.gain, self.bias)
        return rgb if self.clamp is None else rgb.clamp(-self.clamp, self.clamp)


class Block(nn.Module):
    """One resolution: conv0 (up-sampling; absent at 4 px), conv1, and the RGB skip."""

    fir_rgb: Tensor

    def __init__(self, config: GeneratorConfig, resolution: int) -> None:
        super().__init__()
        c, clamp = config.channels[resolution], config.conv_clamp
        if resolution == 4:
            self.const = nn.Parameter(torch.randn(c, 4, 4))
        else:
            self.conv0 = Layer(config.channels[resolution // 2], c, resolution, config.w_dim, True, clamp)
            self.register_buffer("fir_rgb", (fir_kernel() * 4).expand(3, 1, 4, 4).contiguous(), persistent=False)
        self.conv1 = Layer(c, c, resolution, config.w_dim, False, clamp)
        self.torgb = ToRGB(c, config.w_dim, clamp)
        self.first = resolution == 4

    def layers(self) -> list[tuple[str, Layer | ToRGB]]:
        """The block's modulated layers in the order of their styles."""
        names = ["conv1", "torgb"] if self.first else ["conv0", "conv1", "torgb"]
        return [(name, getattr(self, name)) for name in names]

    def forward(self, x: Tensor, rgb: Tensor | None, styles: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Features and RGB of the block below -> those of this block; the first one takes its batch from `styles`."""
        x = self.const.expand(styles[0].shape[0], -1, -1, -1) if self.first else self.conv0(x, styles[0])
        x = self.conv1(x, styles[-2])
        skip = self.torgb(x, styles[-1])
        if rgb is not None:
            skip = skip + F.conv_transpose2d(rgb, self.fir_rgb, stride=2, padding=1, groups=3)
        return x, skip


class Generator(nn.Module):
    """A StyleGAN2 generator: mapping, affine maps to style space S, synthesis.

    Every style vector, toRGB included, is packed into one s [N, S] in layer order (`style_layers`), so that an edit is
    one vector addition.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.mapping_network = Mapping(config)
        self.blocks = nn.ModuleDict({f"b{r}": Block(config, r) for r in config.resolutions})
        self.style_layers = self._style_layers()
        self.style_channels = sum(layer.channels for layer in self.style_layers)
        self.num_ws = config.num_ws

    def _style_layers(self) -> tuple[StyleLayer, ...]:
        layers, offset = [], 0
        for k, r in enumerate(self.config.resolutions):
            index = {"conv0": 2 * k - 1, "conv1": 2 * k, "torgb": 2 * k + 1}
            for name, module in self.blocks[f"b{r}"].layers():
                channels = module.weight.shape[1]
                kind = "torgb" if name == "torgb" else "conv"
                layers.append(StyleLayer(f"b{r}.{name}", kind, index[name], offset, channels))
                offset += channels
        return tuple(layers)

    def layer(self, name: str) -> Layer | ToRGB:
        """The module behind a style layer's name, such as "b64.conv0"."""
        block, part = name.split(".")
        return getattr(self.blocks[block], part)

    def mapping(self, z: Tensor, psi: float | Tensor = 1.0) -> Tensor:
        """z [N, Z] (standard normal) -> w [N, W]; psi 1 is no truncation, 0 the mean face; a tensor psi is [N, 1]."""
        return self.mapping_network(z, psi)

    def broadcast(self, w: Tensor) -> Tensor:
        """w [N, W] -> w+ [N, L, W]."""
        return w.unsqueeze(1).expand(-1, self.num_ws, -1)

    def styles(self, w_plus: Tensor) -> Tensor:
        """w+ [N, L, W] -> s [N, S]."""
        return torch.cat([self.layer(sl.name).affine(w_plus[:, sl.w_index]) for sl in self.style_layers], 1)

    def synthesize(self, s: Tensor) -> Tensor:
        """s [N, S] -> image [N, 3, R, R], nominally -1..1, not clamped."""
        return self.run_blocks(s, s, None, 0, len(self.blocks))[1]

    def run_blocks(self, s: Tensor, x: Tensor, rgb: Tensor | None, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Blocks first .. last - 1 on styles s [N, S], from the features and RGB that enter block `first`.

        Block 0 (4 px) reads neither x nor rgb. Returns the features [N, C, r, r] and the RGB skip [N, 3, r, r] after
        the last block: the picture at that resolution.
        """
        parts = list(s.split([layer.channels for layer in self.style_layers], 1))
        for index, block in enumerate(self.blocks.values()):
            count = len(block.layers())
            if first <= index < last:
                x, rgb = block(x, rgb, parts[:count])
            parts = parts[count:]
        return x, rgb

    def forward(self, w_plus: Tensor) -> Tensor:
        """w+ [N, L, W] -> image [N, 3, R, R]."""
        return self.synthesize(self.styles(w_plus))


def pack_name(name: str) -> str:
    """State-dict name -> the name inside a pack's generator.safetensors."""
    return name.replace("mapping_network.", "mapping.").replace("blocks.", "synthesis.")


def module_name(name: str) -> str:
    """The inverse of `pack_name`."""
    return name.replace("mapping.", "mapping_network.", 1).replace("synthesis.", "blocks.", 1)
