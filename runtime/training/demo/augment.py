"""Picture augmentations of the recognising stages: what a generator's sample may look like beside a clean render.

Slices of a batch get different damage (the order of faces in a batch is random already), which costs less than mixing
every kind into every picture. The damage is reported, so that a caption may say "a blurry photo".
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

CLEAN, BLURRY, PIXELATED, BRIGHT, DARK = range(5)
CONDITIONS = ("clean", "blurry", "pixelated", "bright", "dark")


def _column(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))[:, None, None, None]


def shift_and_scale(image: Tensor, rng: np.random.Generator, shift: float = 0.05, scale: float = 0.05) -> Tensor:
    """Moves every picture [N,3,H,W] by up to `shift` of its half side and zooms it by up to `scale`, edges repeated."""
    n = len(image)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = torch.from_numpy(rng.uniform(1 - scale, 1 + scale, n).astype(np.float32))
    theta[:, :, 2] = torch.from_numpy(rng.uniform(-shift, shift, (n, 2)).astype(np.float32))
    grid = functional.affine_grid(theta.to(image), list(image.shape), align_corners=False)
    return functional.grid_sample(image, grid, padding_mode="border", align_corners=False)


def blur(image: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian of `sigma` px over [N,3,H,W], edges repeated."""
    radius = max(1, round(2.5 * sigma))
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = functional.pad(image, (radius,) * 4, mode="replicate")
    rows = functional.conv2d(padded, kernel.view(1, 1, -1, 1).expand(3, 1, -1, 1), groups=3)
    return functional.conv2d(rows, kernel.view(1, 1, 1, -1).expand(3, 1, 1, -1), groups=3)


def resample(image: Tensor, size: int, mode: str) -> Tensor:
    """Down to `size` px by area and back up with `mode` ("bilinear" or "nearest")."""
    small = functional.interpolate(image, size=(size, size), mode="area")
    align = None if mode == "nearest" else False
    return functional.interpolate(small, size=image.shape[-2:], mode=mode, align_corners=align)


def _color(image: Tensor, rng: np.random.Generator, condition: NDArray[np.int64]) -> Tensor:
    n = len(image)
    offset = rng.uniform(-0.05, 0.05, n) + 0.28 * (condition == BRIGHT) - 0.28 * (condition == DARK)
    contrast = rng.uniform(0.9, 1.1, n)
    saturation = _column(rng.uniform(0.88, 1.12, n)).to(image)
    grey = image.mean(1, keepdim=True)
    image = grey + (image - grey) * saturation
    return image * _column(contrast).to(image) + _column(offset).to(image)


def _noise(image: Tensor, rng: np.random.Generator) -> Tensor:
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    noise = torch.randn(image.shape, generator=generator).to(image)
    return image + noise * _column(rng.uniform(0.0, 0.06, len(image))).to(image)


def augment(image: Tensor, rng: np.random.Generator, strength: float = 1.0) -> tuple[Tensor, NDArray[np.int64]]:
    """Lightly damaged pictures and what was done to them.

    Args:
        image: float32 [N,3,H,W] in -1..1, in random order.
        strength: share of the usual number of damaged pictures; 0 leaves colour jitter, noise and shifts.
    Returns:
        image [N,3,H,W] clipped to -1..1, condition int64 [N] as an index into CONDITIONS.
    """
    n = len(image)
    part = max(0, int(n * 0.08 * strength))
    condition = np.zeros(n, np.int64)
    image = shift_and_scale(image, rng)
    soft = slice(0, 3 * part)  # mild softness, as a generator's sample has it: still called clean
    image[soft] = blur(image[soft], float(rng.uniform(0.4, 0.8))) if part else image[soft]
    for place, kind in enumerate((BLURRY, PIXELATED, BRIGHT, DARK), start=3):
        condition[place * part : (place + 1) * part] = kind
    for kind in (BLURRY, PIXELATED) if part else ():
        chosen = torch.from_numpy(condition == kind)
        hurt = resample(image[chosen], 32, "nearest") if kind == PIXELATED else _blurry(image[chosen], rng)
        image[chosen] = hurt
    return _noise(_color(image, rng, condition), rng).clamp(-1, 1), condition


def soften(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Mild blur on a quarter of the pictures, faint noise on all: a generator's look, nothing moved or tinted."""
    part = len(image) // 4
    soft = blur(image[:part], float(rng.uniform(0.4, 0.7))) if part else image[:0]
    return (torch.cat([soft, image[part:]]) + 0.3 * (_noise(image, rng) - image)).clamp(-1, 1)


def _blurry(image: Tensor, rng: np.random.Generator) -> Tensor:
    return resample(image, 32, "bilinear") if rng.random() < 0.5 else blur(image, float(rng.uniform(1.0, 1.6)))
