"""What can be said of a face: a table of facts, each with its words and a score that compares it with the factors.

A score of 1 or more: the picture clearly shows it, a caption may say so. Below 0: the picture contradicts it. Between:
nobody would say it, and nobody would object. The captions use the first, the contrastive targets the second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .factors import ATTRIBUTES, GEOMETRY, Factors, labels
from .words import PATTERNS, WORDS, Words

Array = NDArray[np.float32]
Score = Callable[[Factors, dict[str, NDArray[np.int64]]], Array]


@dataclass(frozen=True)
class Fact:
    """One statement about a face.

    Attributes:
        name: such as "hair_color=purple".
        score: (factors, labels) -> float32 [n]; see the module's docstring.
        words: how it is said, and how often.
    """

    name: str
    score: Score
    words: Words


def _ramp(value: Array, hold: float, say: float) -> Array:
    return ((value - hold) / (say - hold)).astype(np.float32)


def above(name: str, hold: float, say: float) -> Score:
    """Score rising with a factor (falling where `say` is below `hold`)."""
    return lambda f, _: _ramp(f[name], hold, say)


def near(name: str, centre: float, say: float, hold: float) -> Score:
    """Score of a factor's distance from `centre`: 1 at `say`, 0 at `hold`."""
    return lambda f, _: _ramp(np.abs(f[name] - centre), hold, say)


def column(name: str, index: int, hold: float, say: float) -> Score:
    """`above` for one column of a factor [n, k]."""
    return lambda f, _: _ramp(f[name][:, index], hold, say)


def label(attribute: str, value: str) -> Score:
    """1 where the label is this class, 0 where the picture does not show the attribute, -1 elsewhere."""
    index = ATTRIBUTES[attribute].index(value)
    return lambda _, seen: np.select([seen[attribute] == index, seen[attribute] == -1], [1.0, 0.0], -1.0).astype(
        np.float32
    )


def both(*scores: Score) -> Score:
    """The weakest of several scores."""
    return lambda f, seen: np.minimum.reduce([score(f, seen) for score in scores])


def _style(value: str) -> Score:
    """Hair style; under a hat, bald, short and mohawk heads cannot be told apart, the others can."""
    index = ATTRIBUTES["hair_style"].index(value)

    def score(f: Factors, seen: dict[str, NDArray[np.int64]]) -> Array:
        real = f["hair_style"].argmax(1)
        hidden = seen["hair_style"] == -1
        could_be = hidden & (value in ("bald", "short", "mohawk"))
        return np.select([(real == index) & ~hidden, could_be], [1.0, 0.0], -1.0).astype(np.float32)

    return score


def _hair(value: str) -> Score:
    """Hair colour by its share in the mixture; a bald head has none."""
    index = ATTRIBUTES["hair_color"].index(value)

    def score(f: Factors, _: dict[str, NDArray[np.int64]]) -> Array:
        share = _ramp(f["hair_weights"][:, index], 0.4, 0.66)
        return np.where(f["hair_style"].argmax(1) == 0, np.float32(-1), share).astype(np.float32)

    return score


def _hint(value: str) -> Score:
    index = ATTRIBUTES["hair_color"].index(value)

    def score(f: Factors, _: dict[str, NDArray[np.int64]]) -> Array:
        share = f["hair_weights"][:, index]
        tinge = np.where(share > 0.5, np.float32(0), _ramp(share, 0.12, 0.22))
        return np.where(f["hair_style"].argmax(1) == 0, np.float32(-1), tinge).astype(np.float32)

    return score


HUES: dict[str, tuple[float, float]] = {
    "red": (0, 20), "orange": (28, 14), "yellow": (56, 18), "green": (115, 42), "turquoise": (175, 20),
    "blue": (225, 32), "purple": (275, 24), "pink": (322, 28),
}  # fmt: skip


def _hue(rgb: Array) -> tuple[Array, Array]:
    """Hue in degrees and saturation in 0..1 of colours [n, 3]."""
    high, low = rgb.max(1), rgb.min(1)
    span = np.maximum(high - low, 1e-6)
    r, g, b = rgb.T
    sector = np.select([high == r, high == g], [((g - b) / span) % 6, (b - r) / span + 2], (r - g) / span + 4)
    return (sector * 60).astype(np.float32), ((high - low) / np.maximum(high, 1e-6)).astype(np.float32)


def hue(name: str, color: str) -> Score:
    """Score of a colour's name for the factor `name` [n, 3]."""

    def score(f: Factors, _: dict[str, NDArray[np.int64]]) -> Array:
        angle, saturation = _hue(f[name])
        if color == "grey":
            return _ramp(saturation, 0.24, 0.15)
        centre, width = HUES[color]
        away = np.abs((angle - centre + 180) % 360 - 180)
        return np.minimum(_ramp(away, 1.25 * width, 0.8 * width), _ramp(saturation, 0.15, 0.28))

    return score


def luminance(name: str, hold: float, say: float) -> Score:
    """Score of the lightness of a colour factor [n, 3]."""
    return lambda f, _: _ramp(f[name] @ np.array([0.3, 0.59, 0.11], np.float32), hold, say)


HAT_COLORS = ("red", "blue", "green", "black", "yellow")  # the stops of the hat's colour ramp
_GLASSES, _BEARD, _HAT = (label(name, "yes") for name in ("glasses", "beard", "hat"))


def _styled(f: Factors, _: dict[str, NDArray[np.int64]]) -> Array:
    """Hair with a volume of its own: a bob-cut, long hair or an afro."""
    return np.where(np.isin(f["hair_style"].argmax(1), (0, 1, 5)), -1.0, 1.0).astype(np.float32)


def _hair_scores() -> dict[str, Score]:
    return {
        **{f"hair_color={c}": _hair(c) for c in ATTRIBUTES["hair_color"]},
        **{f"hair_hint={c}": _hint(c) for c in ATTRIBUTES["hair_color"]},
        **{f"hair_style={s}": _style(s) for s in ATTRIBUTES["hair_style"]},
        "hair_volume=high": both(above("hair_volume", 0.6, 0.78), _styled),
        "hair_volume=low": both(above("hair_volume", 0.4, 0.22), _styled),
    }


def _worn_scores() -> dict[str, Score]:
    return {
        "glasses=yes": _GLASSES,
        "glasses=no": label("glasses", "no"),
        "frame=round": both(above("frame_shape", 0.6, 0.78), _GLASSES),
        "frame=square": both(above("frame_shape", 0.4, 0.22), _GLASSES),
        "frame=black": both(above("frame_tone", 0.35, 0.18), _GLASSES),
        "frame=red": both(above("frame_tone", 0.65, 0.82), _GLASSES),
        "beard=yes": _BEARD,
        "beard=no": label("beard", "no"),
        "beard=long": both(above("beard_length", 0.6, 0.8), _BEARD),
        "beard=short": both(above("beard_length", 0.4, 0.2), _BEARD),
        "hat=yes": _HAT,
        "hat=no": label("hat", "no"),
        "hat=tall": both(above("hat_height", 0.6, 0.8), _HAT),
        "hat=low": both(above("hat_height", 0.4, 0.2), _HAT),
        **{f"hat={c}": both(near("hat_tone", i / 4, 0.07, 0.14), _HAT) for i, c in enumerate(HAT_COLORS)},
    }


def _mouth_scores() -> dict[str, Score]:
    smiling, lipstick = label("expression", "smiling"), label("lipstick", "yes")
    return {
        **{f"expression={e}": label("expression", e) for e in ATTRIBUTES["expression"]},
        "smile=broad": both(above("intensity", 0.55, 0.75), smiling),
        "smile=slight": both(above("intensity", 0.45, 0.25), smiling),
        "mouth=open": column("pose", 1, 0.55, 0.75),
        "teeth=shown": column("pose", 2, 0.4, 0.6),
        "brows=raised": column("pose", 3, 0.4, 0.6),
        "lipstick=yes": lipstick,
        "lipstick=no": label("lipstick", "no"),
        "lipstick=pink": both(above("lip_tone", 0.75, 0.88), lipstick),
        "lipstick=dark": both(near("lip_tone", 0.5, 0.12, 0.25), lipstick),
        "lips=full": above("lip_fullness", 0.6, 0.8),
        "lips=thin": above("lip_fullness", 0.4, 0.2),
    }


def _skin_scores() -> dict[str, Score]:
    return {
        "age=old": label("age", "old"),
        "age=young": label("age", "young"),
        **{f"skin={s}": label("skin", s) for s in ATTRIBUTES["skin"]},
        "eyes=brown": above("eye_tone", 0.25, 0.15),
        "eyes=hazel": near("eye_tone", 0.34, 0.07, 0.14),
        "eyes=green": near("eye_tone", 0.67, 0.08, 0.16),
        "eyes=blue": above("eye_tone", 0.78, 0.88),
        "gaze=left": above("gaze", -0.35, -0.65),
        "gaze=right": above("gaze", 0.35, 0.65),
        "gaze=front": near("gaze", 0.0, 0.25, 0.5),
    }


def _scene_scores() -> dict[str, Score]:
    out: dict[str, Score] = {}
    for color in (*HUES, "grey"):
        out[f"background={color}"] = hue("background_rgb", color)
        out[f"shirt={color}"] = hue("shirt_rgb", color)
    for place, dark, light in (("background", 0.5, 0.7), ("shirt", 0.36, 0.6)):
        out[f"{place}=dark"] = luminance(f"{place}_rgb", dark + 0.06, dark)
        out[f"{place}=light"] = luminance(f"{place}_rgb", light - 0.06, light)
    for name in GEOMETRY:
        out[f"{name}=high"] = above(name, 0.1, 0.5)
        out[f"{name}=low"] = above(name, -0.1, -0.5)
    return out


def _words(name: str) -> Words:
    """The words of a fact: its row in WORDS, or the pattern of its family with the colour filled in."""
    if name in WORDS:
        return WORDS[name]
    family, _, value = name.partition("=")
    pattern = PATTERNS[family + "=light" if value == "light" else family + "=dark" if value == "dark" else family]
    things = tuple(phrase.format(value) for phrase in pattern.things)
    return Words(pattern.weight, (), things, tuple(phrase.format(value) for phrase in pattern.states))


_SCORES = {**_hair_scores(), **_worn_scores(), **_mouth_scores(), **_skin_scores(), **_scene_scores()}
FACTS: tuple[Fact, ...] = tuple(Fact(name, score, _words(name)) for name, score in _SCORES.items())


def scores(f: Factors) -> Array:
    """float32 [n, len(FACTS)]: 1 or more is clearly shown, below 0 is contradicted."""
    seen = labels(f)
    return np.stack([fact.score(f, seen) for fact in FACTS], 1)


def named(name: str) -> int:
    """The index of a fact in FACTS."""
    return [fact.name for fact in FACTS].index(name)
