"""What a user waits for besides a warm synthesis: the cold command, opening, the stages, sliders. On a bundle."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..engines.errors import EngineError
from ..engines.manifest import read_manifest
from ..runtime.store import find_bundle
from .plan import ENGINE_NAMES, Options
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


def measure(options: Options, engines: Sequence[str], record: Record, progress: Progress) -> None:
    """Rows of every extra that was asked for on each of `engines`; failures go to `left_out`.

    Where no engine of the project was asked for, on the one that a user would get.
    """
    named: list[str | None] = list(engines)
    if not set(options.engines) & set(ENGINE_NAMES):
        named = [None]
    for extra in options.extras:
        for engine in named:
            label = ENGINE_NAMES.get(engine or "", "default engine")
            progress(f"{extra}: {label}")
            try:
                rows = cold(options, engine) if extra == "cold" else child(options, extra, engine)
            except EngineError as error:
                record.left_out[f"{extra}, {label}"] = str(error)
                continue
            for row in rows:
                record.add({"device": options.device, "batch": 1, "role": "engine", "task": label, **row})


def resolution(bundle: str) -> int:
    """Pixels of a bundle's pictures; BundleError if there is no such bundle."""
    return int(read_manifest(find_bundle(bundle).path).raw["model"]["resolution"])


def cold(options: Options, engine: str | None) -> list[Row]:
    """The command `edit` in a fresh process, again and again: wall time with start-up, and its peak memory."""
    with tempfile.TemporaryDirectory(prefix="styleclip-rt-cold-") as folder:
        out = Path(folder) / "edit.png"
        arguments = ["edit", "sample", "--bundle", options.bundle, "--device", options.device, "--out", str(out)]
        arguments += ["--engine", engine] if engine else []
        peak = _PEAK.search(_run([sys.executable, "-c", PEAK, *arguments], options))
        latencies = Latencies()
        for _ in range(options.cold_runs):
            out.unlink(missing_ok=True)
            start = time.perf_counter()
            _run([sys.executable, "-m", "styleclip_rt", *arguments], options)
            latencies.ms.append(1e3 * (time.perf_counter() - start))
    row = {"kind": "cold", "name": "edit", **latencies.columns(), "peak_rss_mib": int(peak[1]) if peak else None}
    return [row, *child(options, "opening", engine)]


def child(options: Options, what: str, engine: str | None) -> list[Row]:
    """Rows that `editing` measures in a process of its own."""
    request: dict[str, Any] = {"what": what, "bundle": options.bundle, "device": options.device, "engine": engine}
    request["calls"] = options.editing_calls
    out = _run([sys.executable, "-m", f"{__package__}.editing", json.dumps(request)], options, text_of="stdout")
    return list(json.loads(out)["rows"])


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
