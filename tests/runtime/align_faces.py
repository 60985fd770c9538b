"""Made-up faces for the tests of alignment: 68 points, and photos to put them in."""

from __future__ import annotations

import numpy as np
from PIL import Image


def landmarks(
    centre: tuple[float, float] = (150, 100), eyes: float = 100, mouth: float = 100, turn: float = 0
) -> np.ndarray:
    """[68, 2]: `eyes` pixels between the eyes' centres, `mouth` down to the mouth, turned by degrees about `centre`.

    `centre` is the point between the eyes. The points that alignment does not use are noise.
    """
    points = np.random.default_rng(5).normal(0, 30, (68, 2))
    angle = np.arange(6) * np.pi / 3
    ring = 6 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points[36:42] = ring - np.array([eyes / 2, 0])
    points[42:48] = ring + np.array([eyes / 2, 0])
    points[48], points[54] = (-eyes / 3, mouth), (eyes / 3, mouth)
    cos, sin = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    return points @ np.array([[cos, sin], [-sin, cos]]) + centre


def smooth_photo(width: int, height: int) -> Image.Image:
    """Waves that survive interpolation."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 23), np.cos(y / 31), np.sin((x + y) / 41)]
    return Image.fromarray(np.stack([128 + 100 * wave for wave in waves], axis=2).astype(np.uint8))


def noise_photo(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
