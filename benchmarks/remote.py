"""The measuring side of a worker process: start it, ask it, and kill it when it takes too long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ..engines.errors import EngineError
from .subjects import SubjectSpec


class Worker:
    """A subject in its own process. `start_s`: seconds from starting the process to a loaded subject (cold start).

    Raises:
        EngineError: the subject cannot be loaded or run here, or exceeded its time; the message says why.
    """

    def __init__(self, folder: Path, spec: SubjectSpec, patience_s: float = 900.0) -> None:
        self.spec, self.patience_s = spec, patience_s
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed in `close`
        request = json.dumps({"workload": str(folder), "subject": asdict(spec)})
        start = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker", request],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env=environment(spec.threads),
        )
        try:
            self.load_s = float(self._read()["load_s"])
        except BaseException:
            self.close()
            raise
        self.start_s = time.perf_counter() - start

    def ask(self, verb: str, **request: Any) -> dict[str, Any]:
        """One request and its answer."""
        stdin = self._process.stdin
        try:
            if stdin is None:
                raise BrokenPipeError
            stdin.write(json.dumps({"do": verb, **request}) + "\n")
            stdin.flush()
        except OSError:
            raise EngineError(f"{self.spec.name}: its process has ended{self._tail()}") from None
        return self._read()

    def _read(self) -> dict[str, Any]:
        expired = threading.Event()

        def stop() -> None:
            expired.set()
            self._process.kill()

        timer = threading.Timer(self.patience_s, stop)
        timer.start()
        try:
            line = self._process.stdout.readline() if self._process.stdout else ""
        finally:
            timer.cancel()
        if expired.is_set():
            raise EngineError(f"{self.spec.name}: stopped after {self.patience_s:g} s without an answer")
        if not line:
            raise EngineError(f"{self.spec.name}: its process has ended{self._tail()}")
        record: dict[str, Any] = json.loads(line)
        if "error" in record:
            raise EngineError(f"{self.spec.name}: {record['error']}")
        return record

    def _tail(self) -> str:
        """The last line that the process wrote to stderr."""
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return f": {lines[-1][:300]}" if lines else ""

    def close(self) -> None:
        """End the process; a second call does nothing."""
        with suppress(OSError):  # a request that a dead process never read is still in the buffer
            if self._process.stdin:
                self._process.stdin.close()
        if self._process.poll() is None:
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for pipe in (self._process.stdout, self._log):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def environment(threads: int) -> dict[str, str]:
    """The environment of a measured process: the same number of threads for every library."""
    count = str(threads)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "STYLECLIP_RT_THREADS")
    return {**os.environ, **dict.fromkeys(names, count)}
