"""The scenarios driven by MLPerf's own LoadGen (extra `bench`), as a check on the timer of `scenarios`."""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..engines.errors import EngineError, MissingDependency
from .samples import PERCENTILES, minimum_samples
from .scenarios import BOUND_FACTOR, LOADS, Request

NAMES = {"singlestream": "SingleStream", "server": "Server", "offline": "Offline"}
_SUMMARY = "mlperf_log_summary.txt"
_PERCENTILE = re.compile(r"^(\d+(?:\.\d+)?) percentile latency \(ns\)\s*:\s*(\d+)", re.MULTILINE)
_RATE = re.compile(
    r"^(?:Completed samples per second|Samples per second|QPS w/o loadgen overhead)\s*:\s*([\d.]+)", re.M
)
_RESULT = re.compile(r"^Result is\s*:\s*(\w+)", re.MULTILINE)


def drive(call: Callable[[], object], request: Request, median_ms: float, folder: Path) -> list[dict[str, Any]]:
    """Rows of one scenario in LoadGen on `call` (one query); its logs go to `folder`.

    Server is run at rising shares of what a single stream serves, as by the own timer (`scenarios.server`), until
    LoadGen says that a rate is not valid.

    median_ms: what a call takes, from which LoadGen plans its run.

    Raises:
        MissingDependency: mlcommons-loadgen is not installed.
        EngineError: a call raised, or LoadGen wrote no summary.
    """
    if request.scenario != "server":
        return [_drive(call, request, median_ms, folder)]
    rows: list[dict[str, Any]] = []
    for load in LOADS:
        given = {"load": load, "rate_per_s": load * 1e3 / median_ms, "bound_ms": _bound(request, median_ms)}
        rows.append(_drive(call, request, median_ms, folder / f"{load:g}", load) | given)
        if not rows[-1]["valid"]:
            break
    return rows


def _drive(
    call: Callable[[], object], request: Request, median_ms: float, folder: Path, load: float = 1.0
) -> dict[str, Any]:
    """One run of LoadGen and its summary; `load`: Server's rate as a share of what a single stream serves."""
    library = _library()
    served = _Served(library, call)
    tests = _settings(library, request, median_ms, load)
    logs = library.LogSettings()
    logs.log_output.outdir, logs.log_output.copy_summary_to_stdout = str(folder), False
    logs.enable_trace = False
    folder.mkdir(parents=True, exist_ok=True)
    sut = library.ConstructSUT(served.issue, lambda: None)
    samples = library.ConstructQSL(1, 1, lambda indices: None, lambda indices: None)
    try:
        library.StartTestWithLogSettings(sut, samples, tests, logs)
    finally:
        served.stop()
        library.DestroyQSL(samples)
        library.DestroySUT(sut)
    if served.error is not None:
        raise EngineError(f"a query of LoadGen failed: {served.error}") from served.error
    return read_summary(folder / _SUMMARY, served.count)


def _library() -> Any:
    try:
        import mlperf_loadgen
    except ImportError as error:
        raise MissingDependency(
            "--loadgen needs mlcommons-loadgen; run: python -m pip install 'styleclip-rt[bench]'"
        ) from error
    return mlperf_loadgen


def _bound(request: Request, median_ms: float) -> float:
    """The latency that Server must keep, in milliseconds."""
    return request.bound_ms or BOUND_FACTOR * median_ms


def _settings(library: Any, request: Request, median_ms: float, load: float) -> Any:
    """Enough queries for a p99 where `seconds` allow it, else for a p90, as early stopping asks."""
    tests = library.TestSettings()
    tests.scenario = getattr(library.TestScenario, NAMES[request.scenario])
    tests.mode = library.TestMode.PerformanceOnly
    rate = 1e3 / median_ms
    fits = request.seconds * rate
    percentile = 99 if fits >= minimum_samples(99) else 90
    tests.min_duration_ms, tests.max_duration_ms = 200, int(max(request.seconds, 1) * 4e3)
    tests.min_query_count = minimum_samples(percentile)
    tests.single_stream_expected_latency_ns = int(median_ms * 1e6)
    tests.single_stream_target_latency_percentile = percentile / 100
    tests.server_target_qps = load * rate
    tests.server_target_latency_ns = int(_bound(request, median_ms) * 1e6)
    tests.server_target_latency_percentile = percentile / 100
    tests.offline_expected_qps = rate * request.batch
    if request.scenario == "offline":
        tests.min_query_count = 1
    return tests


class _Served:
    """One thread that answers queries in their order; the first error ends the work but answers what is queued."""

    def __init__(self, library: Any, call: Callable[[], object]) -> None:
        self.library, self.call = library, call
        self.error: Exception | None = None
        self.count = 0
        self.queue: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def issue(self, samples: Any) -> None:
        """LoadGen hands over queries."""
        for sample in samples:
            self.queue.put(sample.id)

    def stop(self) -> None:
        """End the thread."""
        self.queue.put(None)
        self.thread.join(timeout=60)

    def _work(self) -> None:
        while (query := self.queue.get()) is not None:
            try:
                if self.error is None:
                    self.call()
            except Exception as error:  # handed to the caller of `drive`
                self.error = error
            self.count += 1
            self.library.QuerySamplesComplete([self.library.QuerySampleResponse(query, 0, 0)])


def read_summary(file: Path, samples: int) -> dict[str, Any]:
    """Latency columns, rate and verdict of a LoadGen summary of `samples` queries; EngineError if there is none.

    LoadGen prints every percentile; those that its own early stopping would not state are left out here.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise EngineError(f"LoadGen wrote no summary ({file}): {error.strerror}") from error
    found = {float(p): int(ns) / 1e6 for p, ns in _PERCENTILE.findall(text)}
    rate, result = _RATE.search(text), _RESULT.search(text)
    stated = [p for p in PERCENTILES if p in found and samples >= minimum_samples(p)]
    row: dict[str, Any] = {"samples": samples, **{f"p{p}_ms": found[p] for p in stated}}
    row["images_per_s"] = float(rate[1]) if rate else None
    return row | {"valid": bool(result and result[1] == "VALID"), "judged_by": "LoadGen"}
