"""The scenarios of MLPerf Inference (LoadGen): SingleStream, Server, Offline. Own timer, standard library and numpy.

| scenario     | arrivals                          | figure                                         |
|--------------|-----------------------------------|------------------------------------------------|
| singlestream | the next query when one is done   | latency percentiles                            |
| server       | Poisson, whether or not it is free | the largest rate whose latency stays in bounds |
| offline      | all at once, in batches           | images per second                              |

A Server latency runs from the scheduled arrival to the finished picture: time in the queue counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..engines.errors import InputError
from .samples import Latencies, minimum_samples

SCENARIOS = ("singlestream", "server", "offline")
LOADS = (0.3, 0.5, 0.7, 0.85)
BOUND_FACTOR = 5.0
Call = Callable[[], object]
Clock = Callable[[], float]
Sleep = Callable[[float], None]


@dataclass(frozen=True)
class Request:
    """What a scenario is asked for.

    Attributes:
        scenario: one of `SCENARIOS`.
        seconds: about how long a run may take; each load of Server has this long.
        bound_ms: latency bound of Server; 0 takes five times the median of a single stream.
        batch: images of a call (offline).
        seed: of the arrival times.
    """

    scenario: str
    seconds: float
    bound_ms: float = 0.0
    batch: int = 1
    seed: int = 0


def run_scenario(call: Call, request: Request) -> list[dict[str, Any]]:
    """Rows of one scenario; InputError for an unknown one."""
    if request.scenario not in SCENARIOS:
        raise InputError(f"unknown scenario {request.scenario!r}; expected one of {', '.join(SCENARIOS)}")
    rows = {"singlestream": single_stream, "server": server, "offline": offline}[request.scenario](call, request)
    return [asdict(request) | row for row in rows]


def single_stream(call: Call, request: Request) -> list[dict[str, Any]]:
    """One query after another for `seconds`, at least one."""
    latencies = Latencies(timed(call, request.seconds))
    busy = sum(latencies.ms) / 1e3
    return [latencies.columns() | {"images_per_s": len(latencies.ms) * request.batch / busy}]


def offline(call: Call, request: Request) -> list[dict[str, Any]]:
    """Everything there is in batches: only the throughput counts, but the spread of the batches is kept."""
    latencies = Latencies(timed(call, request.seconds))
    busy = sum(latencies.ms) / 1e3
    return [latencies.columns() | {"images_per_s": len(latencies.ms) * request.batch / busy}]


def timed(call: Call, seconds: float, most: int = 20000) -> list[float]:
    """Milliseconds of calls one after another, for about `seconds`."""
    laps: list[float] = []
    end = time.perf_counter() + seconds
    while not laps or (time.perf_counter() < end and len(laps) < most):
        start = time.perf_counter()
        call()
        laps.append(1e3 * (time.perf_counter() - start))
    return laps


def server(call: Call, request: Request, loads: Sequence[float] = LOADS) -> list[dict[str, Any]]:
    """Poisson arrivals at rising shares of what a single stream serves; the last row that is valid is the capacity.

    A row is valid when the highest percentile that its samples allow is within the bound and no more was asked of it
    than it could state: under 64 samples it is not valid, whatever its latencies.
    """
    median = float(np.median(timed(call, min(request.seconds, 5.0))))
    bound = request.bound_ms or BOUND_FACTOR * median
    rows = []
    for number, load in enumerate(loads):
        rate = load * 1e3 / median
        count = max(2, int(rate * request.seconds))
        latencies = Latencies(serve(call, poisson(rate, count, request.seed + number)))
        rows.append(latencies.columns() | {"load": load, "rate_per_s": rate, **verdict(latencies, bound)})
        if not rows[-1]["valid"]:
            break
    return rows


def poisson(rate: float, count: int, seed: int) -> np.ndarray:
    """Arrival times in seconds of a Poisson process of `rate` per second, [count], from 0 on."""
    gaps = np.random.RandomState(seed).exponential(1 / rate, count)
    return np.cumsum(gaps) - gaps[0]


def serve(call: Call, arrivals: np.ndarray, clock: Clock = time.perf_counter, sleep: Sleep = time.sleep) -> list[float]:
    """Milliseconds from arrival to result of each query, one server, first come first served."""
    start, latencies = clock(), []
    for arrival in arrivals:
        wait = start + arrival - clock()
        if wait > 0:
            sleep(wait)
        call()
        latencies.append(1e3 * (clock() - start - float(arrival)))
    return latencies


def verdict(latencies: Latencies, bound_ms: float) -> dict[str, Any]:
    """Whether the highest percentile that the samples allow is within the bound: {bound_ms, valid, judged_by}."""
    stated = [p for p in (90, 95, 99) if len(latencies.ms) >= minimum_samples(p)]
    value = latencies.percentile(stated[-1]) if stated else None
    judged = f"p{stated[-1]}" if stated else "too few samples"
    return {"bound_ms": bound_ms, "valid": value is not None and value <= bound_ms, "judged_by": judged}
