"""Percentiles that refuse, and turns in which drift meets everyone alike."""

from __future__ import annotations

import math

import pytest

from styleclip_rt.benchmarks.samples import Alternating, Latencies, calls_for, minimum_samples, nearest_rank


@pytest.mark.parametrize(("percentile", "samples"), [(50, 1), (90, 64), (95, 130), (99, 662)])
def test_the_fewest_samples_are_those_of_loadgen(percentile: int, samples: int) -> None:
    assert minimum_samples(percentile) == samples


def test_the_rule_is_the_binomial_tail() -> None:
    """One sample or none above the percentile has a chance of at most 1% at the minimum, and more with one fewer."""
    for percentile in (90, 95, 99):
        n, share = minimum_samples(percentile), 1 - percentile / 100
        tails = [sum(math.comb(m, k) * share**k * (1 - share) ** (m - k) for k in (0, 1)) for m in (n, n - 1)]
        assert tails[0] <= 0.01 < tails[1]


@pytest.mark.parametrize(("percentile", "expected"), [(50, 50), (90, 90), (99, 99), (100, 100), (1, 1)])
def test_nearest_rank_is_a_sample(percentile: int, expected: int) -> None:
    assert nearest_rank(list(range(100, 0, -1)), percentile) == expected


def test_a_p99_from_661_samples_is_refused_with_the_reason() -> None:
    short, enough = Latencies([1.0] * 661), Latencies([1.0] * 661 + [9.0])
    assert short.percentile(99) is None
    assert short.columns()["p99_ms"] is None
    assert short.columns()["note"] == "p99 needs 662 samples, there are 661"
    assert enough.columns()["p99_ms"] == 1.0
    assert enough.columns()["note"] == ""


def test_the_order_turns_round() -> None:
    turns = Alternating(("a", "b", "c"))
    assert turns.order(0) == ("a", "b", "c")
    assert turns.order(1) == ("c", "b", "a")


def test_drift_of_the_machine_does_not_move_a_speedup() -> None:
    """The machine slows down threefold from round to round; one subject is always twice as fast as the other."""
    turns = Alternating(("slow", "fast"))
    for number in range(5):
        for name in turns.order(number):
            turns.record(name, [3.0**number * {"slow": 10.0, "fast": 5.0}[name]] * 3)
    assert turns.speedup("fast", "slow") == pytest.approx(2.0)
    assert turns.speedup("slow", "slow") == 1.0


@pytest.mark.parametrize(("seconds", "call_ms", "calls"), [(20, 5000, 1), (20, 10, 333), (20, 1e-9, 2000)])
def test_calls_fill_the_time(seconds: float, call_ms: float, calls: int) -> None:
    assert calls_for(seconds, call_ms, rounds=6) == calls
