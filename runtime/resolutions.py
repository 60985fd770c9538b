"""Which layers an edit may move, by their resolutions in pixels: a range such as "32-" or "8-16", or "all".

Low resolutions hold pose and shape, high ones colour and texture (Karras et al. 2019, style mixing; GANSpace restricts
its edits so). A text answers a little in every layer, so a change of colour also moves what it should leave alone; and
what lies below the first layer that moves need not be computed again by a slider.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..engines.errors import InputError

if TYPE_CHECKING:
    from .model import Model

ALL = "all"
EXPECTED = "a range such as 32-, 8-16, 16, or 'all'"
_RANGE = re.compile(r"(\d{1,5})?(-)?(\d{1,5})?")


def checked_resolutions(text: object) -> str | None:
    """A range in its usual form: "LO-HI", "LO-", "-HI", "LO" for one resolution alone; None for "all" and for None.

    Raises InputError for anything else, and for a range that ends below its start.
    """
    if text is None or (isinstance(text, str) and text.strip().lower() == ALL):
        return None
    low, high = _limits(text)
    if low == 0:
        return None if high is None else f"-{high}"
    return f"{low}-" if high is None else str(low) if low == high else f"{low}-{high}"


def _limits(text: object) -> tuple[int, int | None]:
    """(lowest, highest) resolution, both included; None: up to the last."""
    found = _RANGE.fullmatch(text.replace(" ", "")) if isinstance(text, str) else None
    if found is None or not (found[1] or found[3]):
        raise InputError(f"resolutions {str(text)[:60]!r}: expected {EXPECTED}")
    low = int(found[1] or 0)
    high = int(found[3]) if found[3] else None if found[2] else low
    if high is not None and high < low:
        raise InputError(f"resolutions {text!r} end below their start: expected {EXPECTED}")
    return low, high


def lowest(text: str | None) -> int:
    """The lowest resolution of a range; 0 for all layers."""
    return 0 if checked_resolutions(text) is None else _limits(text)[0]


def resolution_mask(model: Model, text: str | None) -> NDArray[np.bool_]:
    """True for the style channels [S] of the layers within the range; all of them for None.

    Raises InputError where no layer lies within, with the resolutions that there are.
    """
    if checked_resolutions(text) is None:
        return np.ones(model.style_channels, dtype=bool)
    low, high = _limits(text)
    inside = [la for la in model.layers if low <= la.resolution and (high is None or la.resolution <= high)]
    if not inside:
        there = ", ".join(map(str, sorted({layer.resolution for layer in model.layers})))
        raise InputError(f"there is no layer of resolutions {text}; the generator has {there}")
    mask = np.zeros(model.style_channels, dtype=bool)
    for layer in inside:
        mask[layer.offset : layer.offset + layer.channels] = True
    return mask
