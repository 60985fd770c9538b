"""Contact sheets of generated pictures: one named row per edit, small enough to stand in the documentation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..images import write_image
from ..sheets import contact_sheet
from .pictures import pictures


def sheet(rows: Mapping[str, Tensor], title: str = "") -> Image.Image:
    """Rows of pictures [n,3,R,R] in -1..1, each with its name at the left."""
    columns = max(len(images) for images in rows.values())
    return contact_sheet([pictures(images) for images in rows.values()], list(rows), [""] * columns, title)


def save(path: Path, rows: Mapping[str, Tensor], title: str = "") -> Path:
    """Writes the sheet as a PNG and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet(rows, title).save(path, optimize=True)
    return path


def save_grid(path: Path, images_u8: NDArray[np.uint8], columns: int = 10) -> Path:
    """Writes pictures [n,R,R,3] as a plain grid."""
    n, size = images_u8.shape[:2]
    columns = min(columns, n)
    rows = -(-n // columns)
    grid = np.full((rows * columns, size, size, 3), 255, np.uint8)
    grid[:n] = images_u8
    tiles = grid.reshape(rows, columns, size, size, 3).swapaxes(1, 2).reshape(rows * size, columns * size, 3)
    return write_image(Image.fromarray(tiles), path)
