"""What is to be done: prompts and named directions with their strengths and thresholds, checked before any work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..engines.errors import InputError
from . import edits
from .model import Direction, Model, Prompt
from .prompts import resolve
from .resolutions import checked_resolutions, resolution_mask

Beta: TypeAlias = "float | Literal['auto']"

METHODS = ("global", "mapper")
DEFAULT_ALPHA = 3.0  # StyleCLIP's interface starts here
MAX_ALPHA = 100.0


@dataclass(frozen=True)
class Step:
    """One part of an edit: a prompt, or a direction that the bundle serves by name.

    alpha: strength, any sign; beta: threshold in 0..1 or "auto"; None for a mapper, or a direction that takes none.
    resolutions: of the layers that may move, as `checked_resolutions` gives them; None: all.
    """

    prompt: Prompt | Direction
    alpha: float
    beta: Beta | None
    resolutions: str | None = None


def plan(
    model: Model,
    prompt: str | Sequence[str] | None = None,
    alpha: float | Sequence[float | None] | None = None,
    beta: Beta | Sequence[Beta | None] | None = None,
    neutral: str | Sequence[str | None] | None = None,
    method: str = "global",
    direction: str | Sequence[str] | None = None,
    resolutions: str | Sequence[str | None] | None = None,
) -> tuple[Step, ...]:
    """One Step per prompt, then one per named direction. A single alpha, beta, neutral or range of resolutions
    serves all that can use it.

    A sequence of alpha, beta or resolutions has one for each step, of neutral one for each prompt. None takes what the
    bundle recommends, else alpha 3, beta "auto" and all layers for a prompt (strength 1 for a mapper), alpha 1 for a
    direction. Without a prompt and a direction it is the bundle's default prompt.
    Raises InputError for unknown methods and names, counts that differ, a threshold that a direction cannot use,
    resolutions with a mapper, and values that are not finite or out of range.
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}")
    names = () if direction is None else _listed(direction)
    texts: tuple[str | None, ...] = _listed(prompt) if prompt is not None else () if direction is not None else (None,)
    if not texts and not names:
        raise InputError("no prompt was given; expected at least one")
    if neutral is not None and not texts:
        raise InputError("neutral is the text that a prompt is compared with; a named direction has none")
    neutrals = _each(neutral, len(texts), "neutral", "prompts")
    subjects = [resolve(model, text, words) for text, words in zip(texts, neutrals, strict=True)]
    parts: list[Prompt | Direction] = [*subjects, *(find(model, name) for name in names)]
    columns = zip(
        parts,
        _each(alpha, len(parts), "alpha"),
        _betas(beta, parts),
        _each(resolutions, len(parts), "resolutions"),
        strict=True,
    )
    return tuple(_within(model, _step(part, a, b, method), asked, method) for part, a, b, asked in columns)


def find(model: Model, name: str) -> Direction:
    """The direction of that name; InputError lists the names that the bundle has."""
    if isinstance(name, str) and name in model.directions:
        return model.directions[name]
    there = ", ".join(model.directions) or "none; `train neighbours` makes some, and `export` takes them along"
    raise InputError(f"no direction {str(name)[:80]!r} in the bundle {model.name}; its directions: {there}")


def _within(model: Model, step: Step, asked: str | None, method: str) -> Step:
    """The step with its resolutions: those asked for, else those recommended; None where they are all there are."""
    prompt = step.prompt
    if isinstance(prompt, Prompt) and method == "mapper":
        if asked is not None:
            raise InputError(
                f"the mapper of {prompt.name!r} moves the layers it was trained for; give resolutions with directions"
            )
        return step
    recommended = prompt.resolutions if isinstance(prompt, Prompt) else None
    resolutions = checked_resolutions(recommended if asked is None else asked)
    return replace(step, resolutions=None if resolution_mask(model, resolutions).all() else resolutions)


def _step(prompt: Prompt | Direction, alpha: float | None, beta: Beta | None, method: str) -> Step:
    if isinstance(prompt, Direction):
        return _named_step(prompt, alpha, beta)
    if method == "mapper":
        return Step(prompt, checked_alpha(prompt.strength if alpha is None else alpha), None)
    recommended_alpha = DEFAULT_ALPHA if prompt.alpha is None else prompt.alpha
    recommended_beta: Beta = "auto" if prompt.beta is None else prompt.beta
    return Step(
        prompt,
        checked_alpha(recommended_alpha if alpha is None else alpha),
        checked_beta(recommended_beta if beta is None else beta),
    )


def _named_step(direction: Direction, alpha: float | None, beta: Beta | None) -> Step:
    alpha = checked_alpha(direction.alpha if alpha is None else alpha)
    if direction.relevance_row is None:
        if beta is not None:
            raise InputError(
                f"the direction {direction.name!r} ({direction.method}) takes no beta: it moves all its channels, "
                "and knows no relevance to compare a threshold with. Leave --beta out"
            )
        return Step(direction, alpha, None)
    recommended: Beta = "auto" if direction.beta is None else direction.beta
    return Step(direction, alpha, checked_beta(recommended if beta is None else beta))


def settled(step: Step, relevance: NDArray[np.float32]) -> Step:
    """The step with beta "auto" replaced by what suits these relevances [S]."""
    return replace(step, beta=edits.suggested_beta(relevance)) if step.beta == "auto" else step


def too_high(step: Step, relevance: NDArray[np.float32]) -> str:
    """The message for a beta that leaves no channel, with one that works."""
    largest = float(np.abs(relevance).max())
    where = f" in resolutions {step.resolutions}" if step.resolutions else ""
    return (
        f"beta {step.beta:g} leaves no channel for {step.prompt.label!r}{where}: the largest relevance is "
        f"{largest:.3g}. Use beta {edits.suggested_beta(relevance):g}, or auto"
    )


def checked_alpha(alpha: float) -> float:
    """alpha as a float; InputError unless it is finite and within +-100."""
    value = _number(alpha, "alpha")
    if not abs(value) <= MAX_ALPHA:
        raise InputError(
            f"alpha is {value:g}; expected a number from {-MAX_ALPHA:g} to {MAX_ALPHA:g}, usually -5 to 10"
        )
    return value


def checked_beta(beta: Beta) -> Beta:
    """beta as a float in 0..1, or "auto"; InputError otherwise."""
    if isinstance(beta, str) and beta == "auto":
        return "auto"
    value = _number(beta, "beta")
    if not 0 <= value <= 1:
        raise InputError(f"beta is {value:g}; expected a threshold from 0 to 1, usually 0.05 to 0.3, or 'auto'")
    return value


def _number(value: object, name: str) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise InputError(f"{name} is {value!r}; expected a number{' or auto' if name == 'beta' else ''}")
    return number


def _listed(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _betas(beta: Any, parts: Sequence[Prompt | Direction]) -> Sequence[Any]:
    """A beta for each part; a single one passes by the directions that take none, if any other part takes it."""
    betas = _each(beta, len(parts), "beta")
    takes = [not isinstance(part, Direction) or part.relevance_row is not None for part in parts]
    if (isinstance(beta, Sequence) and not isinstance(beta, str)) or not any(takes):
        return betas
    return [value if taken else None for value, taken in zip(betas, takes, strict=True)]


def _each(value: Any, count: int, name: str, of: str = "prompts or directions") -> Sequence[Any]:
    """`value` once for every part."""
    if value is None or isinstance(value, str) or not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise InputError(f"{len(value)} values of {name} for {count} {of}; give one for each, or a single one for all")
    return value
