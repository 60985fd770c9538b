"""The ground truth of a procedurally drawn face: factors, their labels, and the code that the generator's w stands for.

Every face is a function of `UNIFORMS` independent uniform numbers. `factors_from_uniform` turns them into drawing
parameters, `labels` into attribute classes (what a classifier is taught), `code` into a vector of standardised numbers
(what w encodes). StyleCLIP's methods never see any of this: they see the generator and CLIP.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Factors = dict[str, Array]

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "hair_color": ("black", "brown", "blond", "red", "grey", "purple"),
    "hair_style": ("bald", "short", "bob-cut", "long", "afro", "mohawk"),
    "glasses": ("no", "yes"),
    "beard": ("no", "yes"),
    "hat": ("no", "yes"),
    "expression": ("neutral", "smiling", "surprised", "angry"),
    "lipstick": ("no", "yes"),
    "age": ("young", "old"),
    "skin": ("light", "medium", "dark"),
}

GEOMETRY = (
    "face_width", "face_height", "eye_spacing", "eye_size", "eye_height",
    "nose_width", "nose_length", "mouth_width", "mouth_height", "brow_thickness",
)  # fmt: skip

# Corners of the hair palette: any mixture of them is a colour that the training set can hold, so an additive direction
# that ends at a corner stays inside the hull (a uniform hue circle would leave grey unreachable in its centre).
HAIR_PALETTE = np.array(
    [[.07, .06, .08], [.36, .20, .10], [.93, .79, .38], [.76, .19, .07], [.78, .79, .81], [.53, .14, .78]], np.float32
)  # fmt: skip
HAIR_COLOR_P = (0.20, 0.20, 0.18, 0.14, 0.14, 0.14)
HAIR_STYLE_P = (0.07, 0.24, 0.21, 0.20, 0.14, 0.14)
EXPRESSION_P = (0.34, 0.26, 0.20, 0.20)
BINARY_P = {"glasses": 0.35, "beard": 0.28, "hat": 0.18, "lipstick": 0.35, "age": 0.28}

SKIN_STOPS = np.array([[.98, .85, .76], [.90, .71, .57], [.72, .50, .36], [.48, .31, .22]], np.float32)  # fmt: skip
EYE_STOPS = np.array([[.27, .15, .08], [.45, .33, .12], [.20, .45, .22], [.18, .42, .75]], np.float32)  # fmt: skip
FRAME_STOPS = np.array([[.06, .06, .08], [.30, .12, .08], [.55, .08, .10]], np.float32)  # fmt: skip
LIPSTICK_STOPS = np.array([[.86, .10, .20], [.72, .03, .12], [.80, .08, .45]], np.float32)  # fmt: skip
HAT_STOPS = np.array(
    [[.75, .12, .12], [.13, .25, .62], [.15, .45, .22], [.16, .15, .18], [.85, .62, .20]], np.float32
)  # fmt: skip

# mouth_curve, mouth_open, teeth, brow_raise, brow_slant, eye_open for each expression at full intensity.
EXPRESSION_POSE = np.array(
    [[0, 0, 0, 0, 0, 0], [1, .55, 1, .1, 0, -.15], [0, 1, 0, 1, -.2, .7], [-.8, .12, 0, -.7, 1, -.25]], np.float32
)  # fmt: skip

_CONTINUOUS = (
    "skin_tone", "skin_warmth", "eye_tone", "hair_volume", "hair_shade", "hair_mix", "hair_second", "frame_tone",
    "frame_shape", "beard_length", "hat_tone", "hat_height", "intensity", "lip_tone", "lip_fullness", "yaw", "bg_r",
    "bg_g", "bg_b", "shirt_r", "shirt_g", "shirt_b",
)  # fmt: skip
_CATEGORICAL = ("hair_color", "hair_style", "expression", *BINARY_P)
_BLURRED_BINARIES = ("glasses", "beard", "hat", "lipstick")
BLURRED = len(HAIR_STYLE_P) + len(_BLURRED_BINARIES)
UNIFORMS = len(GEOMETRY) + len(_CONTINUOUS) + len(_CATEGORICAL)


def _stops(table: Array, t: Array) -> Array:
    """Piecewise-linear colour ramp: t in 0..1 -> RGB in 0..1, shape [n, 3]."""
    position = np.clip(t, 0, 1) * (len(table) - 1)
    low = np.minimum(position.astype(np.int64), len(table) - 2)
    fraction = (position - low)[:, None].astype(np.float32)
    return table[low] * (1 - fraction) + table[low + 1] * fraction


def _category(u: Array, probabilities: tuple[float, ...]) -> NDArray[np.int64]:
    edges = np.cumsum(probabilities)[:-1] / np.sum(probabilities)
    return np.searchsorted(edges, u, side="right").astype(np.int64)


def _one_hot(index: NDArray[np.int64], classes: int) -> Array:
    return np.eye(classes, dtype=np.float32)[index]


def _hair_weights(color: NDArray[np.int64], second: Array, mix: Array) -> Array:
    """Palette weights [n, 6]: mostly one corner, up to 45% of a neighbour in a quarter of the faces."""
    n = len(color)
    other = (color + 1 + np.minimum((second * 5).astype(np.int64), 4)) % 6
    share = np.where(mix > 0.75, (mix - 0.75) * 4 * 0.45, (0.75 - mix) * 0.10).astype(np.float32)
    weights = _one_hot(color, 6) * (1 - share)[:, None]
    weights[np.arange(n), other] += share
    return weights


def factors_from_uniform(u: Array) -> Factors:
    """Drawing parameters of n faces.

    Args:
        u: float [n, UNIFORMS] in 0..1, independent.
    Returns:
        A dict of float32 arrays [n] or [n, k]; geometry and "signed" parameters lie in -1..1, colours in 0..1.
    """
    u = np.asarray(u, np.float32)
    column = dict(zip((*GEOMETRY, *_CONTINUOUS, *_CATEGORICAL), u.T, strict=True))
    f: Factors = {name: column[name] * 2 - 1 for name in GEOMETRY}
    f.update({name: column[name] for name in _CONTINUOUS})
    color = _category(column["hair_color"], HAIR_COLOR_P)
    f["hair_weights"] = _hair_weights(color, column["hair_second"], column["hair_mix"])
    f["hair_style"] = _one_hot(_category(column["hair_style"], HAIR_STYLE_P), 6)
    f["expression"] = _one_hot(_category(column["expression"], EXPRESSION_P), 4)
    for name, p in BINARY_P.items():
        f[name] = (column[name] < p).astype(np.float32)
    return _with_colors(f)


def _with_colors(f: Factors) -> Factors:
    warmth = (f["skin_warmth"] - 0.5)[:, None] * np.array([0.05, 0.0, -0.06], np.float32)
    f["skin_rgb"] = np.clip(_stops(SKIN_STOPS, f["skin_tone"]) + warmth, 0, 1)
    f["eye_rgb"] = _stops(EYE_STOPS, f["eye_tone"])
    shade = 0.9 + 0.2 * f["hair_shade"][:, None]
    f["hair_rgb"] = np.clip(f["hair_weights"] @ HAIR_PALETTE * shade, 0, 1).astype(np.float32)
    f["hat_rgb"] = _stops(HAT_STOPS, f["hat_tone"])
    f["frame_rgb"] = _stops(FRAME_STOPS, f["frame_tone"])
    red = _stops(LIPSTICK_STOPS, f["lip_tone"])
    natural = f["skin_rgb"] * np.array([0.86, 0.62, 0.60], np.float32)
    f["lip_rgb"] = np.where(f["lipstick"][:, None] > 0.5, red, natural).astype(np.float32)
    f["background_rgb"] = 0.30 + 0.62 * np.stack([f["bg_r"], f["bg_g"], f["bg_b"]], 1)
    f["shirt_rgb"] = 0.12 + 0.72 * np.stack([f["shirt_r"], f["shirt_g"], f["shirt_b"]], 1)
    strength = (0.8 + 0.4 * f["intensity"])[:, None]
    f["pose"] = (f["expression"] @ EXPRESSION_POSE * strength).astype(np.float32)
    f["gaze"] = f["yaw"] * 2 - 1
    return f


def thresholds() -> list[tuple[int, float]]:
    """(column of the uniforms, value in 0..1) of every step in `factors_from_uniform`: where one class ends."""
    columns = (*GEOMETRY, *_CONTINUOUS, *_CATEGORICAL)
    steps = [(columns.index(name), p) for name, p in BINARY_P.items()]
    for name, table in (("hair_color", HAIR_COLOR_P), ("hair_style", HAIR_STYLE_P), ("expression", EXPRESSION_P)):
        steps += [(columns.index(name), float(edge)) for edge in np.cumsum(table)[:-1] / np.sum(table)]
    return steps


def smooth_columns() -> range:
    """Columns of the uniforms without a step."""
    return range(len(GEOMETRY) + len(_CONTINUOUS))


def sample_factors(n: int, rng: np.random.Generator) -> Factors:
    """n random faces; see `factors_from_uniform`."""
    return factors_from_uniform(rng.random((n, UNIFORMS), dtype=np.float32))


def identity(f: Factors) -> Array:
    """Face geometry [n, 10] in -1..1: what makes two renders the same person."""
    return np.stack([f[name] for name in GEOMETRY], 1)


def with_identity(f: Factors, geometry: Array) -> Factors:
    """The same faces with another person's geometry [n, 10]."""
    return {**f, **{name: geometry[:, i].astype(np.float32) for i, name in enumerate(GEOMETRY)}}


def take(f: Factors, index: NDArray[np.int64] | slice) -> Factors:
    """A subset of faces, in the order of `index`."""
    return {name: value[index] for name, value in f.items()}


def labels(f: Factors) -> dict[str, NDArray[np.int64]]:
    """Attribute classes [n] as indices into `ATTRIBUTES`; -1 where a picture does not show the attribute.

    Hair colour is undefined on a bald head and for an even mixture; hair style under a hat only where the hat hides it.
    """
    style = f["hair_style"].argmax(1)
    hidden = (f["hat"] > 0.5) & np.isin(style, (0, 1, 5))
    weights = f["hair_weights"]
    color = np.where((style == 0) | ((f["hat"] > 0.5) & (style == 5)) | (weights.max(1) < 0.66), -1, weights.argmax(1))
    out = {"hair_color": color, "hair_style": np.where(hidden, -1, style), "expression": f["expression"].argmax(1)}
    out.update({name: f[name].astype(np.int64) for name in BINARY_P})
    tone = f["skin_tone"]
    between = (np.abs(tone - 0.36) < 0.04) | (np.abs(tone - 0.70) < 0.04)
    out["skin"] = np.where(between, -1, np.digitize(tone, (0.36, 0.70)))
    return {name: out[name].astype(np.int64) for name in ATTRIBUTES}


def code(f: Factors) -> Array:
    """What w encodes: float32 [n, D], every entry of roughly unit variance, affine in what is drawn.

    Because w is affine in it and styles are affine in w, one attribute moves S by the same vector on every face.
    """
    hair, glasses, hat, beard = f["hair_style"], f["glasses"][:, None], f["hat"][:, None], f["beard"][:, None]
    frame, length, brim = glasses > 0.5, beard > 0.5, hat > 0.5  # what an attribute looks like counts where it is there
    signed = {name: (f[name] * 2 - 1)[:, None] for name in _CONTINUOUS}
    parts = [
        identity(f) * 1.7,
        (f["skin_rgb"] - 0.6) * 4, signed["skin_tone"] * 1.2,
        (f["eye_rgb"] - 0.3) * 5,
        (f["hair_rgb"] - 0.4) * 3, (f["hair_weights"] - 1 / 6) * 1.8,
        (hair - 1 / 6) * 2.4, signed["hair_volume"] * 1.7,
        (glasses - 0.35) * 2.1, frame * signed["frame_tone"] * 1.7, frame * signed["frame_shape"] * 1.7,
        (beard - 0.28) * 2.2, length * signed["beard_length"] * 1.7,
        (hat - 0.18) * 2.5, brim * (f["hat_rgb"] - 0.35) * 4, brim * signed["hat_height"] * 1.7,
        (f["expression"] - 0.25) * 2.2, f["pose"] * 1.7,
        (f["lipstick"][:, None] - 0.35) * 2.1, (f["lip_rgb"] - 0.45) * 2, signed["lip_fullness"] * 1.7,
        (f["age"][:, None] - 0.28) * 2.2,
        signed["yaw"] * 1.7,
        (f["background_rgb"] - 0.61) * 4, (f["shirt_rgb"] - 0.48) * 3.5,
    ]  # fmt: skip
    return np.concatenate(parts, 1).astype(np.float32)


def blurred(f: Factors, noise: Array) -> Factors:
    """The same faces with class values around 0 and 1, where the class that is drawn still leads by a margin.

    The result is for `code` alone. A generator that draws the plain face of such codes has sharp borders between
    classes: half an edit gives the old haircut or the new one, not a ghost of both.

    Args:
        noise: [n, BLURRED] what is added to the class values of hair styles, then of `_BLURRED_BINARIES`.
    """
    rows, style = np.arange(len(noise)), f["hair_style"].argmax(1)
    styles = f["hair_style"].shape[1]
    values = f["hair_style"] + noise[:, :styles]
    others = np.where(f["hair_style"] > 0.5, -np.inf, values).max(1)
    values[rows, style] = np.maximum(values[rows, style], others + 0.2)
    out = {**f, "hair_style": values.astype(np.float32)}
    for i, name in enumerate(_BLURRED_BINARIES, styles):
        value = f[name] + noise[:, i]
        out[name] = np.where(f[name] > 0.5, np.maximum(value, 0.6), np.minimum(value, 0.4)).astype(np.float32)
    return out


def past_corner(f: Factors, away: NDArray[np.int64], share: Array) -> Factors:
    """The same faces with plain hair colours moved past their corner of the palette; for `code` alone.

    Too strong an edit of a colour ends there, and the plain face drawn of such codes stays that colour.

    Args:
        away: [n] the corner that the colour moves away from. share: [n] how far, in distances of the two corners.
    """
    share = np.where(f["hair_weights"].max(1) > 0.9, share, 0)[:, None].astype(np.float32)
    step = share * (_one_hot(f["hair_weights"].argmax(1), 6) - _one_hot(away, 6))
    rgb = f["hair_rgb"] + step @ HAIR_PALETTE
    return {**f, "hair_weights": (f["hair_weights"] + step).astype(np.float32), "hair_rgb": rgb.astype(np.float32)}
