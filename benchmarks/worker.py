"""One subject in a process of its own, told what to do line by line: isolated memory, libraries and threads.

    python -m styleclip_rt.benchmarks.worker '{"workload": DIR, "subject": {...}}'

Requests are JSON lines on stdin, answers JSON lines on what was stdout; libraries that print reach stderr. The process
ends at the end of stdin.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ..engines.errors import InputError
from .loadgen import drive
from .memory import device_bytes, peak_rss_mib
from .scenarios import Request, run_scenario, timed
from .subjects import Subject, SubjectSpec, make_subject
from .workload import accuracy, read_workload

_WARM_UP_MS = 2000.0


class Session:
    """A loaded subject and the requests that it answers; every answer is a dictionary."""

    def __init__(self, folder: Path, spec: SubjectSpec) -> None:
        start = time.perf_counter()
        self.workload = read_workload(folder)
        self.subject: Subject = make_subject(spec, self.workload)
        self.load_s, self.batch = time.perf_counter() - start, 0

    def feed(self, batch: int) -> dict[str, Any]:
        """Set the batch; its first call (which may compile) is timed apart, then up to three more: `warm_ms` the last.

        A compiled graph on CUDA is recorded on its second call and replayed from the third on.
        """
        start = time.perf_counter()
        self.subject.feed(batch)
        self.subject.call()
        first, self.batch = time.perf_counter(), batch
        laps: list[float] = []
        while not laps or (len(laps) < 3 and sum(laps) < _WARM_UP_MS):
            laps += self.time(1)["ms"]
        return {"first_ms": 1e3 * (first - start), "warm_ms": laps[-1]}

    def time(self, calls: int, settle: int = 0) -> dict[str, Any]:
        """Milliseconds of `calls` runs, after `settle` untimed ones."""
        for _ in range(settle):
            self.subject.call()
        laps = []
        for _ in range(calls):
            start = time.perf_counter()
            self.subject.call()
            laps.append(1e3 * (time.perf_counter() - start))
        return {"ms": laps}

    def facts(self, split_calls: int = 5) -> dict[str, Any]:
        """Accuracy against the reference, operations and bytes of a call, split by stage, peak memory."""
        flop, moved = self.subject.flop_and_bytes(self.batch)
        split = self.subject.split_ms(split_calls)
        return {"flop": flop, "bytes": moved, **self._accuracy(), **split, **self._memory()}

    def scenario(self, request: dict[str, Any], loadgen: str = "") -> dict[str, Any]:
        """Rows of a scenario, by the own timer or, with the folder of its logs, by LoadGen."""
        asked = Request(**request)
        if not loadgen:
            return {"rows": run_scenario(self.subject.call, asked)}
        median = float(np.median(timed(self.subject.call, 1.0)))
        return {"rows": [request | row for row in drive(self.subject.call, asked, median, Path(loadgen))]}

    def _accuracy(self) -> dict[str, Any]:
        picture, expected = self.subject.picture(), self.workload.expected(self.subject.spec.task)
        return {} if picture is None or expected is None else accuracy(picture, expected)

    def _memory(self) -> dict[str, Any]:
        device = self.subject.peak_device_bytes()
        if device is None and self.subject.spec.device == "cuda":
            device = device_bytes()  # arenas do not shrink: what is held now is the peak
        return {"peak_rss_mib": peak_rss_mib(), "peak_device_mib": None if device is None else round(device / 2**20)}


def answer(session: Session, request: dict[str, Any]) -> dict[str, Any]:
    """Do one request; its errors are answers too."""
    verbs: dict[str, Callable[..., dict[str, Any]]] = {
        "feed": session.feed,
        "time": session.time,
        "facts": session.facts,
        "scenario": session.scenario,
    }
    verb = request.pop("do")
    try:
        if verb not in verbs:
            raise InputError(f"unknown request {verb!r}; expected one of {', '.join(verbs)}")
        return verbs[verb](**request)
    except Exception as error:  # a subject may fail in any way; the others go on
        return {"error": f"{type(error).__name__}: {str(error).strip()[:400]}"}


def private_stdout() -> TextIO:
    """The old stdout for answers alone: descriptor 1 leads to stderr from here on."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def main() -> None:
    """Load the subject, then answer until stdin ends."""
    answers = private_stdout()

    def say(record: dict[str, Any]) -> None:
        answers.write(json.dumps(record) + "\n")
        answers.flush()

    asked = json.loads(sys.argv[1])
    try:
        known = {field.name for field in dataclasses.fields(SubjectSpec)}
        spec = {key: value for key, value in asked["subject"].items() if key in known}
        session = Session(Path(asked["workload"]), SubjectSpec(**spec | {"technique": tuple(spec["technique"])}))
    except Exception as error:  # also ImportError of a library that is not there
        say({"error": f"{type(error).__name__}: {str(error).strip()[:400]}"})
        return
    say({"load_s": session.load_s})
    for line in sys.stdin:
        say(answer(session, json.loads(line)))


if __name__ == "__main__":
    main()
