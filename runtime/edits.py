"""The maths of an edit in plain numpy: the slow reference beside every fused graph.

Shape alphabet: N batch, L style layers, S style channels (modulation vectors of all layers, packed), C channels of the
direction table, E CLIP width, n sample images, K templates. Source: Patashnik et al., StyleCLIP (2021), section 6, and
the released code (`GetFs`, `GetDt`, `GetBoundary`, `MSCode`).

No function here returns NaN for finite input: where the published code divides by a zero norm, the answer is zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..engines.errors import InputError

Array = NDArray[np.floating]

# StyleCLIP's automatic rule (GUI of the released code): the largest beta of arange(.1, .3, .01) that keeps more than 20
# channels of the 6048 that FFHQ's table has. The count is scaled by the table's size, so that small packs behave alike.
AUTO_BETAS = tuple(round(0.29 - 0.01 * i, 2) for i in range(20))
AUTO_FRACTION = 20 / 6048


def normalise(x: ArrayLike, axis: int = -1) -> Array:
    """Scale vectors along `axis` to unit length; a zero vector stays zero. Any shape, floating point out."""
    x = _floating(x)
    norm = np.linalg.norm(x, axis=axis, keepdims=True)
    return np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)


def channel_directions(features: ArrayLike) -> Array:
    """The table delta_i_c from CLIP embeddings of perturbed images (StyleCLIP `GetFs`).

    features: [C, n, 2, E], embeddings of n images with channel c pushed down (index 0) and up (index 1), any length.
    Returns [C, E], unit rows; the row of a channel that moves no embedding is zero.
    """
    features = _floating(features)
    if features.ndim != 4 or features.shape[2] != 2:
        raise InputError(f"channel_directions: features have shape {features.shape}; expected [C, n, 2, E]")
    unit = normalise(features)
    delta = normalise(unit[:, :, 1] - unit[:, :, 0])  # [C, n, E]
    return normalise(delta.mean(axis=1))


def prompt_embedding(embeddings: ArrayLike) -> Array:
    """One text from its embeddings in K templates [K, E]: normalise each, mean, normalise. Returns [E], unit length."""
    return normalise(normalise(embeddings).mean(axis=0))


def text_direction(target: ArrayLike, neutral: ArrayLike) -> Array:
    """delta_t = normalised(target - neutral) of two text embeddings [E]; equal texts are an InputError."""
    delta_t = _floating(target) - _floating(neutral)
    if not np.linalg.norm(delta_t) > 1e-6:
        raise InputError("the target and the neutral text mean the same to CLIP; give a --neutral that differs")
    return normalise(delta_t)


def relevance(delta_i_c: ArrayLike, delta_t: ArrayLike) -> Array:
    """Relevance of every channel to a text direction: r = delta_i_c @ delta_t, in -1..1 for unit vectors.

    delta_i_c: [S, E]; delta_t: [E] or [N, E], unit length. Returns [S] or [N, S].
    """
    delta_i_c, delta_t = _floating(delta_i_c), _floating(delta_t)
    if delta_i_c.ndim != 2 or delta_t.shape[-1:] != delta_i_c.shape[1:]:
        raise InputError(f"delta_i_c {delta_i_c.shape} and delta_t {delta_t.shape} must be [S, E] and [..., E]")
    return delta_t @ delta_i_c.T


def direction(delta_i_c: ArrayLike, delta_t: ArrayLike, beta: ArrayLike, sigma: ArrayLike) -> Array:
    """The edit direction in style space: relevance, threshold, normalise by the largest, times sigma.

    delta_i_c: [S, E] unit rows (zero rows, e.g. toRGB, never move); delta_t: [E] or [N, E], unit length;
    beta: scalar or [N], threshold on |relevance|, kept where |r| >= beta; sigma: [S], standard deviations.
    Returns delta_s [S] or [N, S]. All zeros, never NaN, where beta leaves no channel.
    """
    r = relevance(delta_i_c, delta_t)
    size = np.abs(r)
    beta = np.asarray(beta, dtype=r.dtype)[..., None]
    kept = np.where(size >= beta, r, 0)
    largest = np.abs(kept).max(axis=-1, keepdims=True, initial=0)
    d = np.divide(kept, largest, out=np.zeros_like(kept), where=largest > 0)
    return _floating(sigma) * d


def within(delta_s: ArrayLike, r: ArrayLike, beta: float, mask: NDArray[np.bool_]) -> Array:
    """What `direction` gives for a table whose rows outside `mask` are zero, from what it gives for the whole table.

    delta_s: [S], of relevances r [S] and the threshold beta; mask: [S]. The largest relevance that is left moves its
    channel by a whole sigma. Returns [S]; zeros where nothing is left.
    """
    delta_s, r = _floating(delta_s), _floating(r)
    kept = np.where(np.abs(r) >= r.dtype.type(beta), np.abs(r), 0)
    left = kept[mask].max(initial=0)
    if not left > 0:
        return np.zeros_like(delta_s)
    return np.where(mask, delta_s * delta_s.dtype.type(kept.max() / left), 0).astype(delta_s.dtype)


def apply(s: ArrayLike, delta_s: ArrayLike, alpha: float) -> Array:
    """s' = s + alpha * delta_s; alpha = 0 returns s unchanged. s, delta_s: [..., S]; alpha: any sign."""
    s = np.asarray(s)
    return s + s.dtype.type(alpha) * np.asarray(delta_s, dtype=s.dtype)


def channels(delta_s: ArrayLike) -> NDArray[np.int64]:
    """Indices of the style channels that an edit moves. delta_s: [S]. Returns a sorted int64 array."""
    return np.flatnonzero(np.asarray(delta_s))


def suggested_beta(r: ArrayLike, fraction: float = AUTO_FRACTION) -> float:
    """A workable beta for relevances r [S] (StyleCLIP's automatic rule, scaled to the table).

    The largest of 0.29, 0.28 ... 0.10 that keeps more than `fraction` of the channels that can move (r != 0); else 0.10
    if it keeps any; else the largest value, cut to three digits, that keeps that fraction. InputError if r is all zero.
    """
    size = np.abs(np.asarray(r, dtype=np.float64)).ravel()
    movable = int(np.count_nonzero(size))
    if movable == 0:
        raise InputError("no style channel of this bundle answers to the prompt: every relevance is zero")
    for beta in AUTO_BETAS:
        if np.count_nonzero(size >= beta) > fraction * movable:
            return beta
    return AUTO_BETAS[-1] if size.max() >= AUTO_BETAS[-1] else beta_keeping(r, fraction)


def beta_keeping(r: ArrayLike, fraction: float) -> float:
    """The beta, cut to three digits, that keeps a fraction of the channels that can move (r [S] != 0), at least one.

    Whatever the scale of r, which differs between finite moves and gradients. InputError if r is all zero.
    """
    size = np.abs(np.asarray(r, dtype=np.float64)).ravel()
    movable = int(np.count_nonzero(size))
    if movable == 0:
        raise InputError("no style channel answers to the prompt: every relevance is zero")
    return _cut(float(np.sort(size)[-max(1, round(fraction * movable))]))


def cosine(a: ArrayLike, b: ArrayLike) -> float:
    """Cosine of two vectors of equal shape, in -1..1; 0 if either is zero."""
    return float(np.sum(normalise(np.ravel(a)) * normalise(np.ravel(b))))


def _cut(value: float) -> float:
    """`value` > 0 rounded down to three significant digits, never to zero."""
    step = 10.0 ** (np.floor(np.log10(value)) - 2)
    cut = float(f"{np.floor(value / step) * step:.3g}")
    return cut if 0 < cut <= value else value


def _floating(x: ArrayLike) -> Array:
    """float32 or float64 array: half precision is computed in float32, integers in float64."""
    x = np.asarray(x)
    if x.dtype == np.float16:
        return x.astype(np.float32)
    return x if np.issubdtype(x.dtype, np.floating) else x.astype(np.float64)
