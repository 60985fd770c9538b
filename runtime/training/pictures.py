"""Between tensors of pictures and Pillow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..images import pm1_from_image


def pictures(images: Tensor) -> list[Image.Image]:
    """[n,3,H,W] in -1..1 -> n Pillow pictures; what lies outside the range is clipped."""
    u8 = ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(image) for image in u8]


def tensor_of(photos: Sequence[Image.Image]) -> Tensor:
    """n RGB pictures of one size -> [n,3,H,W] float32 in -1..1, on the CPU."""
    return torch.from_numpy(np.concatenate([pm1_from_image(photo) for photo in photos]))
