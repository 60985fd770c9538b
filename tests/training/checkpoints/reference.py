"""StyleGAN2 by its published formula, in a straight line, on the arrays as the public files hold them.

Weights are modulated and demodulated per sample and convolved in groups, filters are sums over taps by definition. It
shares nothing with the network or the importers under test; arrays are numpy, computed by torch in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F

Arrays = Mapping[str, np.ndarray]
TAPS = (1.0, 3.0, 3.0, 1.0)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


def leaky(x: torch.Tensor) -> torch.Tensor:
    """Leaky ReLU of slope 0.2 times sqrt 2, which keeps the second moment."""
    return torch.where(x < 0, 0.2 * x, x) * math.sqrt(2.0)


def fir(x: torch.Tensor, gain: float) -> torch.Tensor:
    """[n,c,h,w] -> [n,c,h-3,w-3]: the outer product of 1, 3, 3, 1 (sum 64), one tap after the other."""
    n, c, h, w = x.shape
    out = torch.zeros(n, c, h - 3, w - 3)
    for i in range(4):
        for j in range(4):
            out += x[:, :, i : i + h - 3, j : j + w - 3] * (TAPS[i] * TAPS[j] / 64 * gain)
    return out


def spread(x: torch.Tensor) -> torch.Tensor:
    """Zero insertion: [n,c,h,w] -> [n,c,2h,2w], values at even positions."""
    n, c, h, w = x.shape
    out = torch.zeros(n, c, 2 * h, 2 * w)
    out[:, :, ::2, ::2] = x
    return out


def upsampled(image: torch.Tensor) -> torch.Tensor:
    """The RGB skip, twice as large: two zeros before and one behind, then the filter with gain 4."""
    return fir(F.pad(spread(image), (2, 1, 2, 1)), 4)


def grouped(x: torch.Tensor, weights: torch.Tensor, padding: int) -> torch.Tensor:
    """One convolution per sample as groups: x [n,ci,h,w], weights [n,co,ci,k,k] -> [n,co,h',w']."""
    n, co, ci, k, _ = weights.shape
    y = F.conv2d(x.reshape(1, n * ci, *x.shape[2:]), weights.reshape(n * co, ci, k, k), padding=padding, groups=n)
    return y.reshape(n, co, *y.shape[2:])


def modulated(weight: torch.Tensor, s: torch.Tensor, gain: float, demodulate: bool) -> torch.Tensor:
    """weight [co,ci,k,k], s [n,ci] -> [n,co,ci,k,k]."""
    w = gain * weight[None] * s[:, None, :, None, None]
    return w * torch.rsqrt((w * w).sum((2, 3, 4), keepdim=True) + 1e-8) if demodulate else w


def convolved(x: torch.Tensor, w: torch.Tensor, up: bool) -> torch.Tensor:
    """3x3; with `up` the transposed convolution of stride two (zero insertion, mirrored kernel), then the filter."""
    if not up:
        return grouped(x, w, 1)
    y = grouped(F.pad(spread(x)[:, :, :-1, :-1], (2, 2, 2, 2)), w.flip((3, 4)), 0)
    return fir(F.pad(y, (1, 1, 1, 1)), 4)


def dense(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, lr: float) -> torch.Tensor:
    """Fully connected with the equalised learning rate; weight [out, in]."""
    return x @ (weight * (lr / math.sqrt(weight.shape[1]))).T + bias * lr


def mapped(z: torch.Tensor, layers: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    x = z / torch.sqrt((z * z).mean(1, keepdim=True) + 1e-8)
    for weight, bias in layers:
        x = leaky(dense(x, weight, bias, 0.01))
    return x


def rosinality(g: Arrays, w: torch.Tensor) -> torch.Tensor:
    """g_ema's arrays, w+ [n,L,W] -> image."""

    def style(name: str, index: int) -> torch.Tensor:
        weight, bias = tensor(g[f"{name}.modulation.weight"]), tensor(g[f"{name}.modulation.bias"])
        return dense(w[:, index], weight, bias, 1.0)

    def layer(x: torch.Tensor, name: str, index: int, noise: int, up: bool) -> torch.Tensor:
        weight = tensor(g[f"{name}.conv.weight"][0])
        scale = 1 / math.sqrt(weight[0].numel())
        x = convolved(x, modulated(weight, style(f"{name}.conv", index), scale, True), up)
        x = x + tensor(g[f"{name}.noise.weight"]) * tensor(g[f"noises.noise_{noise}"])
        return leaky(x + tensor(g[f"{name}.activate.bias"]).reshape(1, -1, 1, 1))

    def rgb(x: torch.Tensor, name: str, index: int) -> torch.Tensor:
        weight = tensor(g[f"{name}.conv.weight"][0])
        m = modulated(weight, style(f"{name}.conv", index), 1 / math.sqrt(weight.shape[1]), False)
        return grouped(x, m, 0) + tensor(g[f"{name}.bias"])

    x = tensor(g["input.input"]).repeat(len(w), 1, 1, 1)
    x = layer(x, "conv1", 0, 0, False)
    image, index = rgb(x, "to_rgb1", 1), 1
    for k in range(w.shape[1] // 2 - 1):
        x = layer(x, f"convs.{2 * k}", index, 2 * k + 1, True)
        x = layer(x, f"convs.{2 * k + 1}", index + 1, 2 * k + 2, False)
        image = upsampled(image) + rgb(x, f"to_rgbs.{k}", index + 2)
        index += 2
    return image


def rosinality_mapping(g: Arrays, z: torch.Tensor) -> torch.Tensor:
    depth = sum(key.startswith("style.") and key.endswith(".bias") for key in g)
    layers = [(tensor(g[f"style.{i}.weight"]), tensor(g[f"style.{i}.bias"])) for i in range(1, depth + 1)]
    return mapped(z, layers)


def _blocks(
    w: torch.Tensor, const: torch.Tensor, conv: Callable[..., torch.Tensor], rgb: Callable[..., torch.Tensor]
) -> torch.Tensor:
    """The order that NVIDIA's two versions share: block k reads rows 2k - 1, 2k and, for toRGB, 2k + 1."""
    x, image = conv(const.repeat(len(w), 1, 1, 1), 4, 1, w[:, 0], 0), None
    for k in range(w.shape[1] // 2):
        r = 4 << k
        if k:
            x = conv(x, r, 0, w[:, 2 * k - 1], 2 * k - 1)
            x = conv(x, r, 1, w[:, 2 * k], 2 * k)
        y = rgb(x, r, w[:, 2 * k + 1])
        image = y if image is None else upsampled(image) + y
    return image


def nvidia(g: Arrays, w: torch.Tensor, clamp: float | None = None) -> torch.Tensor:
    """G_ema's arrays, w+ -> image. Its convolutions scale no weights: demodulation does; toRGB scales the style."""

    def limited(x: torch.Tensor) -> torch.Tensor:
        return x if clamp is None else x.clamp(-clamp, clamp)

    def style(name: str, row: torch.Tensor) -> torch.Tensor:
        return dense(row, tensor(g[f"{name}.affine.weight"]), tensor(g[f"{name}.affine.bias"]), 1.0)

    def conv(x: torch.Tensor, r: int, number: int, row: torch.Tensor, _: int) -> torch.Tensor:
        name = f"synthesis.b{r}.conv{number}"
        x = convolved(x, modulated(tensor(g[f"{name}.weight"]), style(name, row), 1.0, True), number == 0)
        if f"{name}.noise_const" in g:
            x = x + tensor(g[f"{name}.noise_const"]) * tensor(g[f"{name}.noise_strength"])
        return limited(leaky(x + tensor(g[f"{name}.bias"]).reshape(1, -1, 1, 1)))

    def rgb(x: torch.Tensor, r: int, row: torch.Tensor) -> torch.Tensor:
        name = f"synthesis.b{r}.torgb"
        weight = tensor(g[f"{name}.weight"])
        s = style(name, row) / math.sqrt(weight.shape[1])
        return limited(grouped(x, modulated(weight, s, 1.0, False), 0) + tensor(g[f"{name}.bias"]).reshape(1, -1, 1, 1))

    return _blocks(w, tensor(g["synthesis.b4.const"])[None], conv, rgb)


def nvidia_mapping(g: Arrays, z: torch.Tensor) -> torch.Tensor:
    depth = sum(key.startswith("mapping.fc") and key.endswith(".bias") for key in g)
    return mapped(z, [(tensor(g[f"mapping.fc{i}.weight"]), tensor(g[f"mapping.fc{i}.bias"])) for i in range(depth)])


def tensorflow(v: Mapping[str, Arrays], w: torch.Tensor) -> torch.Tensor:
    """Variables of the networks, w+ -> image. Kernels [h,w,in,out]; up-sampling is zero insertion and correlation."""
    g = v["synthesis"]

    def style(name: str, row: torch.Tensor) -> torch.Tensor:
        weight = tensor(g[f"{name}/mod_weight"])
        return row @ (weight / math.sqrt(weight.shape[0])) + tensor(g[f"{name}/mod_bias"]) + 1

    def conv(x: torch.Tensor, r: int, number: int, row: torch.Tensor, noise: int) -> torch.Tensor:
        name = f"{r}x{r}/" + ("Conv" if r == 4 else ("Conv0_up", "Conv1")[number])
        weight = tensor(g[f"{name}/weight"]).permute(3, 2, 0, 1)
        m = modulated(weight, style(name, row), 1 / math.sqrt(weight[0].numel()), True)
        if number == 0:
            x = fir(F.pad(grouped(F.pad(spread(x)[:, :, :-1, :-1], (2, 2, 2, 2)), m, 0), (1, 1, 1, 1)), 4)
        else:
            x = grouped(x, m, 1)
        x = x + tensor(g[f"noise{noise}"]) * tensor(g[f"{name}/noise_strength"])
        return leaky(x + tensor(g[f"{name}/bias"]).reshape(1, -1, 1, 1))

    def rgb(x: torch.Tensor, r: int, row: torch.Tensor) -> torch.Tensor:
        name = f"{r}x{r}/ToRGB"
        weight = tensor(g[f"{name}/weight"]).permute(3, 2, 0, 1)
        m = modulated(weight, style(name, row), 1 / math.sqrt(weight.shape[1]), False)
        return grouped(x, m, 0) + tensor(g[f"{name}/bias"]).reshape(1, -1, 1, 1)

    return _blocks(w, tensor(g["4x4/Const/const"]), conv, rgb)


def tensorflow_mapping(v: Mapping[str, Arrays], z: torch.Tensor) -> torch.Tensor:
    g = v["mapping"]
    depth = sum(key.endswith("/bias") for key in g)
    return mapped(z, [(tensor(g[f"Dense{i}/weight"]).T, tensor(g[f"Dense{i}/bias"])) for i in range(depth)])
