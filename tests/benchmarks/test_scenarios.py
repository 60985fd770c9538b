"""SingleStream, Server, Offline: arithmetic of queues on a clock of our own, and LoadGen where it is installed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from styleclip_rt.benchmarks import loadgen, scenarios
from styleclip_rt.benchmarks.loadgen import drive, read_summary
from styleclip_rt.benchmarks.samples import Latencies
from styleclip_rt.benchmarks.scenarios import Request, poisson, run_scenario, serve, verdict
from styleclip_rt.engines.errors import EngineError, InputError


class Time:
    """A clock that moves only when someone sleeps or works."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


def test_waiting_in_the_queue_counts() -> None:
    """Three queries arrive within 10 ms, each takes 30 ms: the second waits for the first, the third for both."""
    time = Time()
    found = serve(lambda: time.pass_by(0.030), np.array([0.0, 0.005, 0.010]), time, time.pass_by)
    assert found == pytest.approx([30.0, 55.0, 80.0])


def test_an_idle_server_sleeps_until_the_arrival() -> None:
    time = Time()
    found = serve(lambda: time.pass_by(0.010), np.array([0.0, 1.0]), time, time.pass_by)
    assert found == pytest.approx([10.0, 10.0])
    assert time.now == pytest.approx(101.010)


def test_arrivals_are_poisson() -> None:
    gaps = np.diff(poisson(50.0, 20000, seed=1))
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.03)  # an exponential's spread is its mean
    assert poisson(50.0, 5, seed=1)[0] == 0
    assert (poisson(50.0, 5, seed=1) == poisson(50.0, 5, seed=1)).all()


def test_a_verdict_needs_samples() -> None:
    assert verdict(Latencies([1.0] * 63), 10.0) == {"bound_ms": 10.0, "valid": False, "judged_by": "too few samples"}
    assert verdict(Latencies([1.0] * 64), 10.0) == {"bound_ms": 10.0, "valid": True, "judged_by": "p90"}
    late = Latencies([1.0] * 650 + [20.0] * 20)
    assert verdict(late, 10.0) == {"bound_ms": 10.0, "valid": False, "judged_by": "p99"}


def test_server_raises_the_load_until_it_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of 10 ms: half the load stays under 50 ms at p99, nearly the whole of it does not."""
    time = Time()

    def call() -> None:
        time.pass_by(0.010)

    monkeypatch.setattr(scenarios, "timed", lambda call, seconds: [10.0] * 5)
    monkeypatch.setattr(scenarios, "serve", lambda call, arrivals: serve(call, arrivals, time, time.pass_by))
    rows = scenarios.server(call, Request("server", 60.0), loads=(0.3, 0.5, 0.97))
    assert [row["valid"] for row in rows] == [True, True, False]
    assert [row["rate_per_s"] for row in rows] == pytest.approx([30.0, 50.0, 97.0])
    assert {row["bound_ms"] for row in rows} == {50.0}
    assert rows[0]["p50_ms"] < rows[1]["p50_ms"] < rows[2]["p50_ms"]


def test_offline_counts_every_image_of_a_batch() -> None:
    row = run_scenario(lambda: sum(range(2000)), Request("offline", 0.05, batch=4))[0]
    assert row["images_per_s"] == pytest.approx(4e3 / row["mean_ms"], rel=0.01)
    assert row["samples"] >= 1


def test_an_unknown_scenario_is_named() -> None:
    with pytest.raises(InputError, match="unknown scenario 'multistream'"):
        run_scenario(lambda: None, Request("multistream", 1.0))


SUMMARY = """Completed samples per second    : 391.15
Result is : VALID
50.00 percentile latency (ns)   : 1321859
90.00 percentile latency (ns)   : 3117946
95.00 percentile latency (ns)   : 3971344
99.00 percentile latency (ns)   : 7967574
"""


def test_what_loadgen_prints_is_refused_like_our_own(tmp_path: Path) -> None:
    file = tmp_path / "summary.txt"
    file.write_text(SUMMARY)
    whole, short = read_summary(file, 700), read_summary(file, 100)
    assert whole["p99_ms"] == pytest.approx(7.967574)
    assert (whole["images_per_s"], whole["valid"], whole["samples"]) == (391.15, True, 700)
    assert short["p90_ms"] == pytest.approx(3.117946)
    assert "p95_ms" not in short
    assert "p99_ms" not in short


def test_a_missing_summary_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no summary"):
        read_summary(tmp_path / "none.txt", 1)


@pytest.mark.parametrize("scenario", ["singlestream", "server", "offline"])
def test_loadgen_itself_drives_a_call(tmp_path: Path, scenario: str) -> None:
    pytest.importorskip("mlperf_loadgen", reason="LoadGen comes with the extra `bench`")
    calls: list[int] = []
    rows = drive(lambda: calls.append(1), Request(scenario, 0.2), 0.5, tmp_path / "logs")
    assert sum(row["samples"] for row in rows) == len(calls) > 0
    assert all(row["p50_ms"] >= 0 and row["judged_by"] == "LoadGen" for row in rows)
    assert len(rows) == 1 or scenario == "server"


def test_loadgen_is_asked_for_more_until_a_rate_is_not_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, str]] = []

    def one(call: object, request: Request, median_ms: float, folder: Path, load: float) -> dict[str, object]:
        asked.append((load, folder.name))
        return {"valid": load < 0.6, "p50_ms": 4.0}

    monkeypatch.setattr(loadgen, "_drive", one)
    rows = drive(lambda: None, Request("server", 1.0), 4.0, tmp_path)
    assert [(row["load"], row["valid"]) for row in rows] == [(0.3, True), (0.5, True), (0.7, False)]
    assert asked == [(0.3, "0.3"), (0.5, "0.5"), (0.7, "0.7")], "each rate has logs of its own"
    assert [row["rate_per_s"] for row in rows] == pytest.approx([75.0, 125.0, 175.0])
    assert {row["bound_ms"] for row in rows} == {20.0}


def test_loadgen_is_told_the_rate_and_the_bound() -> None:
    library = SimpleNamespace(
        TestSettings=SimpleNamespace, TestScenario=SimpleNamespace(Server="server"),
        TestMode=SimpleNamespace(PerformanceOnly="performance"),
    )  # fmt: skip
    settings = loadgen._settings(library, Request("server", 1.0, bound_ms=30.0), 4.0, 0.7)
    assert settings.server_target_qps == pytest.approx(175.0)
    assert settings.server_target_latency_ns == 30_000_000


def test_a_query_that_fails_under_loadgen_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("mlperf_loadgen", reason="LoadGen comes with the extra `bench`")

    def fail() -> None:
        raise ValueError("no picture today")

    with pytest.raises(EngineError, match="no picture today"):
        drive(fail, Request("singlestream", 0.1), 0.5, tmp_path / "logs")
