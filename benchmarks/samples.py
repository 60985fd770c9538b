"""Latency samples: nearest-rank percentiles that refuse to speak from too few of them, and alternating rounds.

How many samples a percentile needs is LoadGen's rule of early stopping (MLPerf Inference): with n samples of which a
share 1 - p truly lies above the percentile, at most one of them does so by luck in at most 1% of all runs:

    P(Binomial(n, 1 - p) <= 1) <= 0.01        p90: 64 samples, p99: 662
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

PERCENTILES = (50, 90, 95, 99)
_RISK = 0.01
Timer = Callable[[int], Sequence[float]]


def minimum_samples(percentile: float) -> int:
    """The fewest samples from which LoadGen states a percentile (in 0..100); the median is stated from any number."""
    if percentile <= 50:
        return 1
    share = 1 - percentile / 100
    n = 2
    while (1 - share) ** n + n * share * (1 - share) ** (n - 1) > _RISK:
        n += 1
    return n


def nearest_rank(values: Sequence[float], percentile: float) -> float:
    """The smallest value that at least `percentile` per cent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percentile / 100 * len(ordered) - 1e-9) - 1)]


@dataclass
class Latencies:
    """Latencies of one subject in milliseconds, in the order of the calls."""

    ms: list[float] = field(default_factory=list)

    def percentile(self, percentile: float) -> float | None:
        """The nearest-rank percentile; None where `refusal` has a reason."""
        return None if self.refusal(percentile) else nearest_rank(self.ms, percentile)

    def refusal(self, percentile: float) -> str:
        """Why the percentile is not stated, "" if it is."""
        need, have = minimum_samples(percentile), len(self.ms)
        return "" if have >= need else f"p{percentile:g} needs {need} samples, there are {have}"

    def columns(self) -> dict[str, float | int | str | None]:
        """The latency columns of a row; `note` says which percentiles were refused and why."""
        named = {f"p{q}_ms": self.percentile(q) for q in PERCENTILES}
        reasons = [reason for q in PERCENTILES if (reason := self.refusal(q))]
        spread = {"min_ms": min(self.ms), "mean_ms": float(np.mean(self.ms))} if self.ms else {}
        return {"samples": len(self.ms), **named, **spread, "note": "; ".join(reasons)}


@dataclass
class Alternating:
    """Several subjects timed in turns (A B C, C B A, A B C ...), so that drift of the machine meets all alike.

    rounds: for each subject the median of every round, one list item per round.
    """

    names: tuple[str, ...]
    latencies: dict[str, Latencies] = field(default_factory=dict)
    rounds: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.latencies = {name: Latencies() for name in self.names}
        self.rounds = {name: [] for name in self.names}

    def order(self, number: int) -> tuple[str, ...]:
        """Who comes when in round `number`: forwards in the even rounds, backwards in the odd ones."""
        return self.names if number % 2 == 0 else self.names[::-1]

    def record(self, name: str, ms: Sequence[float]) -> None:
        """One subject's calls of one round."""
        if ms:
            self.latencies[name].ms += list(ms)
            self.rounds[name].append(float(np.median(ms)))

    def speedup(self, name: str, over: str) -> float | None:
        """How many times faster than `over`: the median over the rounds of the ratio within a round."""
        pairs = list(zip(self.rounds[over], self.rounds[name], strict=False))
        return float(np.median([slow / fast for slow, fast in pairs])) if pairs else None


def calls_for(seconds: float, call_ms: float, rounds: int, most: int = 2000) -> int:
    """Calls of a subject in each round, so that all its rounds together take about `seconds`; always 1 or more."""
    return int(min(most, max(1, seconds * 1e3 / max(call_ms, 1e-3) / rounds)))
