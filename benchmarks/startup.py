"""What a user waits for besides a warm synthesis: the cold command, opening, the stages, sliders. On a bundle."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..engines.errors import EngineError
from ..engines.manifest import read_manifest
from ..runtime.store import find_bundle
from .network import NetworkSpec
from .plan import ENGINE_NAMES, OPENING_STEPS, Options
from .random_bundle import NAME
from .records import Record, Row
from .remote import environment
from .samples import Latencies

Progress = Callable[[str], None]
PEAK = """
import sys
from styleclip_rt.benchmarks.memory import peak_rss_mib
from styleclip_rt.runtime.cli import cli
try:
    cli.main(sys.argv[1:], standalone_mode=False)
finally:
    sys.stderr.write(f"peak_rss_mib={peak_rss_mib()}\\n")
"""
_PEAK = re.compile(r"^peak_rss_mib=(\d+)$", re.MULTILINE)


def measure(network: NetworkSpec, options: Options, engines: Sequence[str], record: Record, progress: Progress) -> None:
    """Rows of every extra that was asked for on each of `engines`; failures go to `left_out`.

    Where no engine of the project was asked for, on the one that a user would get. A network of random weights has its
    opening measured on a bundle that is written for it; all else is measured on the bundle of `options`.
    """
    named: list[str | None] = list(engines)
    if not set(options.engines) & set(ENGINE_NAMES):
        named = [None]
    for extra in options.extras:
        try:
            with bundle_of(network, options, extra, progress) as bundle:
                for engine in named:
                    measure_extra(replace(options, bundle=bundle), extra, engine, record, progress)
        except EngineError as error:  # of the bundle; an engine's own are caught where it is measured
            record.left_out[extra] = str(error)


def measure_extra(options: Options, extra: str, engine: str | None, record: Record, progress: Progress) -> None:
    """Rows of one extra on one engine."""
    task = ENGINE_NAMES.get(engine or "", "default engine")
    for name, rows in parts(options, extra, engine):
        progress(f"{name}: {task}")
        try:
            for row in rows:
                record.add({"device": options.device, "batch": 1, "role": "engine", "task": task, **row})
        except EngineError as error:
            record.left_out[f"{name}, {task}"] = str(error)


@contextmanager
def bundle_of(network: NetworkSpec, options: Options, extra: str, progress: Progress) -> Iterator[str]:
    """The bundle that an extra is measured on; one of random weights is written, and removed in the end."""
    if extra != "opening" or network.pack is not None:
        yield options.bundle
        return
    progress(f"{extra}: write a bundle of {network.label}")
    with tempfile.TemporaryDirectory(prefix="styleclip-rt-random-") as parent:
        folder = Path(parent) / NAME
        request = json.dumps({"folder": str(folder), "network": asdict(network)})
        _run([sys.executable, "-m", f"{__package__}.random_bundle", request], options)
        yield str(folder)


def parts(options: Options, extra: str, engine: str | None) -> Iterator[tuple[str, Iterator[Row]]]:
    """What an extra consists of: (name, rows), each by itself, so that one that fails takes no other with it."""
    if extra == "cold":
        yield extra, cold(options, engine)
    elif extra == "opening":
        for step in OPENING_STEPS:
            yield f"{extra} ({step})", opening(options, engine, step)
    else:
        yield extra, child(options, extra, engine)


def about(network: NetworkSpec, options: Options) -> dict[str, Any]:
    """What a run of extras alone is about: the network whose opening it measures, else the bundle.

    BundleError if there is no such bundle.
    """
    if "opening" in options.extras and network.pack is None:
        return {"network": network.label, "size": network.size}
    manifest = read_manifest(find_bundle(options.bundle).path).raw
    return {"network": f"bundle {options.bundle}", "size": int(manifest["model"]["resolution"])}


def cold(options: Options, engine: str | None) -> Iterator[Row]:
    """The command `edit` in a fresh process, again and again: wall time with start-up, and its peak memory."""
    with tempfile.TemporaryDirectory(prefix="styleclip-rt-cold-") as folder:
        out = Path(folder) / "edit.png"
        arguments = ["edit", "sample", "--bundle", options.bundle, "--device", options.device, "--out", str(out)]
        arguments += ["--engine", engine] if engine else []
        peak = _PEAK.search(_run([sys.executable, "-c", PEAK, *arguments], options))

        def once() -> float:
            out.unlink(missing_ok=True)
            start = time.perf_counter()
            _run([sys.executable, "-m", "styleclip_rt", *arguments], options)
            return 1e3 * (time.perf_counter() - start)

        known = {"kind": "cold", "name": "edit", "peak_rss_mib": int(peak[1]) if peak else None}
        yield from repeated(known, options.cold_runs, once)


def opening(options: Options, engine: str | None, step: str) -> Iterator[Row]:
    """One step of opening the bundle, each time in a fresh process; its start and imports are not in the time."""
    peaks: list[int] = []

    def once() -> float:
        (row,) = child(options, "opening", engine, step)
        peaks.append(row["peak_rss_mib"] or 0)
        return float(row["p50_ms"])

    for row in repeated({"kind": "opening", "name": step}, options.cold_runs, once):
        yield row | {"peak_rss_mib": max(peaks) or None}


def repeated(known: Row, runs: int, once: Callable[[], float]) -> Iterator[Row]:
    """One row of `runs` times in ms; where a run fails, the row of those before it, and then the error."""
    latencies, failure = Latencies(), None
    for _ in range(runs):
        try:
            latencies.ms.append(once())
        except EngineError as error:
            failure = EngineError(f"run {len(latencies.ms) + 1} of {runs}: {error}")
            break
    if latencies.ms:
        yield known | latencies.columns()
    if failure is not None:
        raise failure


def child(options: Options, what: str, engine: str | None, step: str = "") -> Iterator[Row]:
    """Rows that `editing` measures in a process of its own."""
    request: dict[str, Any] = {"what": what, "bundle": options.bundle, "device": options.device, "engine": engine}
    request |= {"calls": options.editing_calls, "step": step}
    out = _run([sys.executable, "-m", f"{__package__}.editing", json.dumps(request)], options, text_of="stdout")
    yield from json.loads(out)["rows"]


def _run(command: list[str], options: Options, text_of: str = "stderr") -> str:
    """Run a process to its end; EngineError with its last line where it fails or takes too long."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=options.patience_s,
            stdin=subprocess.DEVNULL,
            env=environment(options.threads),
        )
    except subprocess.TimeoutExpired:
        raise EngineError(f"stopped after {options.patience_s:g} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise EngineError(lines[-1][:400] if lines else f"ended with code {done.returncode}")
    return done.stdout if text_of == "stdout" else done.stderr
