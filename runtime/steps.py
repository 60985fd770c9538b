"""What is to be done: prompts with their strengths and thresholds, broadcast, filled in and checked before any work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ..engines.errors import InputError
from .model import Model, Prompt
from .prompts import resolve

Beta: TypeAlias = "float | Literal['auto']"

METHODS = ("global", "mapper")
DEFAULT_ALPHA = 3.0  # StyleCLIP's interface starts here
MAX_ALPHA = 100.0


@dataclass(frozen=True)
class Step:
    """One prompt of an edit. alpha: strength, any sign; beta: threshold in 0..1 or "auto" (None for a mapper)."""

    prompt: Prompt
    alpha: float
    beta: Beta | None


def plan(
    model: Model,
    prompt: str | Sequence[str] | None = None,
    alpha: float | Sequence[float | None] | None = None,
    beta: Beta | Sequence[Beta | None] | None = None,
    neutral: str | Sequence[str | None] | None = None,
    method: str = "global",
) -> tuple[Step, ...]:
    """One Step per prompt. A single alpha, beta or neutral serves every prompt; a sequence must have one for each.

    None takes the bundle's recommended value of the prompt, else alpha 3 and beta "auto" (strength 1 for a mapper).
    Raises InputError for unknown methods, counts that differ, and values that are not finite or out of range.
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}")
    texts = (prompt,) if prompt is None or isinstance(prompt, str) else tuple(prompt)
    if not texts:
        raise InputError("no prompt was given; expected at least one")
    count = len(texts)
    columns = zip(
        texts, _each(alpha, count, "alpha"), _each(beta, count, "beta"), _each(neutral, count, "neutral"), strict=True
    )
    return tuple(_step(resolve(model, text, words), a, b, method) for text, a, b, words in columns)


def _step(prompt: Prompt, alpha: float | None, beta: Beta | None, method: str) -> Step:
    if method == "mapper":
        return Step(prompt, checked_alpha(prompt.strength if alpha is None else alpha), None)
    recommended_alpha = DEFAULT_ALPHA if prompt.alpha is None else prompt.alpha
    recommended_beta: Beta = "auto" if prompt.beta is None else prompt.beta
    return Step(
        prompt,
        checked_alpha(recommended_alpha if alpha is None else alpha),
        checked_beta(recommended_beta if beta is None else beta),
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


def _each(value: Any, count: int, name: str) -> Sequence[Any]:
    """`value` once for every prompt."""
    if value is None or isinstance(value, str) or not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise InputError(
            f"{len(value)} values of {name} for {count} prompts; give one for each, or a single one for all"
        )
    return value
