"""Rendered faces on disk: drawn once, memory-mapped by every stage."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from . import factors as fx
from .renderer import render

CHUNK = 2048
TRAIN_COUNT, TRAIN_SEED = 60_000, 0  # every stage trains on these
HELD_OUT_COUNT, HELD_OUT_SEED = 4096, 2  # and none on these


class RenderedFaces:
    """`count` faces of one seed: pictures, uniforms (from which the factors follow), labels and codes.

    Attributes:
        images: uint8 [n, size, size, 3].
        codes: float32 [n, D]. labels: {attribute: int64 [n]}. factors: see `factors.py`.
    """

    def __init__(self, folder: Path) -> None:
        self.images: NDArray[np.uint8] = np.load(folder / "images.npy", mmap_mode="r")
        self.factors = fx.factors_from_uniform(np.load(folder / "uniforms.npy"))
        self.codes = fx.code(self.factors)
        self.labels = fx.labels(self.factors)

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def open(cls, work: Path, count: int, seed: int, size: int = 64) -> RenderedFaces:
        """The faces in `work/faces-<count>-<seed>-<size>`, drawn first where they are missing (about 1 ms a face)."""
        folder = work / f"faces-{count}-{seed}-{size}"
        if not folder.exists():
            work.mkdir(parents=True, exist_ok=True)
            _draw(folder, count, seed, size)
        return cls(folder)

    @classmethod
    def training(cls, work: Path) -> RenderedFaces:
        """The faces that the generator learns to draw."""
        return cls.open(work, TRAIN_COUNT, TRAIN_SEED)

    @classmethod
    def held_out(cls, work: Path) -> RenderedFaces:
        """Faces that no stage trains on."""
        return cls.open(work, HELD_OUT_COUNT, HELD_OUT_SEED)

    def batch(self, index: NDArray[np.int64]) -> Tensor:
        """Pictures of these faces, float32 [n, 3, size, size] in -1..1."""
        return to_pm1(self.images[index])


def to_pm1(images_u8: NDArray[np.uint8]) -> Tensor:
    """uint8 [n, H, W, 3] -> float32 [n, 3, H, W] in -1..1."""
    x = torch.from_numpy(np.ascontiguousarray(images_u8)).permute(0, 3, 1, 2)
    return x.to(torch.float32).div_(127.5).sub_(1)


def _draw(folder: Path, count: int, seed: int, size: int) -> None:
    uniforms = np.random.default_rng([seed, count]).random((count, fx.UNIFORMS), dtype=np.float32)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent))
    shape = (count, size, size, 3)
    images = np.lib.format.open_memmap(temporary / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    for start in tqdm(range(0, count, CHUNK), desc="draw faces", unit="chunk", mininterval=2.0):
        part = slice(start, min(start + CHUNK, count))
        images[part] = render(fx.factors_from_uniform(uniforms[part]), size)
    images.flush()
    np.save(temporary / "uniforms.npy", uniforms)
    try:
        os.replace(temporary, folder)
    except OSError:  # another process drew the same faces in the meantime
        shutil.rmtree(temporary)
