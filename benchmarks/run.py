"""A whole run: prepare the network, time every subject in turns, sweep batches, run the scenarios, collect the rows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..engines.errors import EngineError
from . import startup
from .machine import environment
from .network import NetworkSpec
from .plan import ORIGINAL, Options, Plan, build_kernels, make_plan, slider_subjects
from .records import Record, Row
from .remote import Worker
from .samples import Alternating, calls_for, nearest_rank
from .subjects import SubjectSpec, copy_bytes, matmul_side
from .workload import Workload, read_workload

SETTLE_UNDER_MS = 200.0
"""A subject that is quicker than this gets one untimed call at the start of its turn: caches and threads wake up."""
CEILING_SECONDS = 3.0
Progress = Callable[[str], None]


@dataclass
class Run:
    """State of a run; `progress` is told what begins."""

    options: Options
    record: Record
    workload: Workload
    plan: Plan
    progress: Progress
    rates: dict[str, list[float]] = field(default_factory=dict)

    def note(self, name: str, error: Exception) -> None:
        """A subject that failed is left out of the rows, with the reason."""
        self.record.left_out[name] = str(error)


def bench(
    network: NetworkSpec,
    options: Options,
    progress: Progress = lambda text: None,
    save: Callable[[Record], object] = lambda record: None,
) -> Record:
    """Measure; see `Options`. `save` gets the record after every task, so that a run that is stopped leaves its rows.

    Raises PackError, BundleError, MissingDependency where nothing can be prepared.
    """
    failed = build_kernels(options, progress)
    plan = make_plan(options)
    plan.left_out |= failed
    if not options.tasks:
        about = startup.about(network, options)
        record = Record(environment(options.device, options.threads), about, asdict(options))
        record.left_out |= plan.left_out
        startup.measure(network, options, plan.engines, record, progress)
        return record
    progress("prepare")
    with prepared(network, max(8, *options.batches), plan.precisions) as folder:
        workload = read_workload(folder)
        about = {"network": network.label, "size": workload.size, "channels": workload.channels}
        about |= {"reference": workload.reference, "notes": list(workload.notes)}
        record = Record(environment(options.device, options.threads), about, asdict(options))
        record.left_out |= plan.left_out
        run = Run(options, record, workload, plan, progress)
        for task in options.tasks:
            (measure_slider if task == "slider" else measure_task)(run, task)
            save(record)
        startup.measure(network, options, plan.engines, record, progress)
    return record


@contextmanager
def prepared(network: NetworkSpec, batch: int, precisions: Sequence[str]) -> Iterator[Path]:
    """The folder of the workload, made in a process of its own and removed in the end."""
    parent = Path(tempfile.mkdtemp(prefix="styleclip-rt-bench-"))
    try:
        folder = parent / network.key
        request: dict[str, Any] = {"folder": str(folder), "network": asdict(network), "batch": batch}
        request |= {"precisions": list(precisions)}
        command = [sys.executable, "-m", f"{__package__}.prepare", json.dumps(request)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            raise EngineError(f"the network cannot be prepared: {lines[-1][:400] if lines else done.returncode}")
        yield folder
    finally:
        shutil.rmtree(parent, ignore_errors=True)


# One task ---------------------------------------------------------------------------------------------------------


def measure_task(run: Run, task: str) -> None:
    """Batch 1 of every subject in turns with the ceilings; of the last task also the sweep and the scenarios."""
    with ExitStack() as stack:
        specs = [*run.plan.subjects[task], *run.plan.ceilings]
        workers = start_workers(run, stack, specs, task)
        rows, _ = time_batch(run, task, workers, 1)
        add_rows(run, rows)
        if task != [name for name in run.options.tasks if name != "slider"][-1]:
            return
        for batch in (b for b in run.options.batches if b > 1):
            swept = {n: w for n, w in workers.items() if in_sweep(run, w.spec, rows.get(n), batch)}
            add_rows(run, time_batch(run, task, swept, batch, share=0.5)[0])
        run_scenarios(run, task, {n: w for n, w in workers.items() if w.spec.role == "engine"})


def measure_slider(run: Run, task: str) -> None:
    """Steps of a slider from every cut in turns with the whole edit, on the fastest engine of this machine."""
    edits = [row for row in run.record.rows if row["kind"] == "latency" and row["task"] == "edit" and row["batch"] == 1]
    speed = {row["name"]: float(row["p50_ms"]) for row in edits}
    engines = [spec for spec in run.plan.subjects[task] if spec.precision == "fp32"]
    if not engines or not run.workload.cuts:
        run.record.left_out[task] = "the network has no graphs of a slider" if engines else "no engine runs here"
        return
    whole = min(engines, key=lambda spec: speed.get(spec.name, float("inf")))
    with ExitStack() as stack:
        workers = start_workers(run, stack, [whole, *slider_subjects(run.workload.cuts, whole)], task)
        rows, turns = time_batch(run, task, workers, 1, share=0.2)
        for name, row in rows.items():
            gain = turns.speedup(name, whole.name) if whole.name in rows else None
            rows[name] = row | {"kind": "slider-step", "gain": gain, "speedup": None}
        add_rows(run, rows)


def add_rows(run: Run, rows: dict[str, Row]) -> None:
    """Rows into the record, in their order."""
    for row in rows.values():
        run.record.add(row)


def start_workers(run: Run, stack: ExitStack, specs: list[SubjectSpec], task: str) -> dict[str, Worker]:
    """Loaded workers by name, in the order of `specs`; several at once on a GPU, where loading is the CPU's work."""
    jobs = 4 if run.options.device == "cuda" else 1

    def start(spec: SubjectSpec) -> Worker | None:
        run.progress(f"{task}: load {spec.name}")
        try:
            return stack.enter_context(Worker(run.workload.path, spec, run.options.patience_s))
        except EngineError as error:
            run.note(spec.name, error)
            return None

    with ThreadPoolExecutor(jobs) as pool:
        loaded = list(pool.map(start, specs))
    return {worker.spec.name: worker for worker in loaded if worker is not None}


def in_sweep(run: Run, spec: SubjectSpec, row: Row | None, batch: int) -> bool:
    """Larger batches are for the engines and the original, where a round of them fits into its time."""
    if row is None or spec.role == "ceiling" or (spec.role != "engine" and spec.name != ORIGINAL):
        return False
    if spec.kind == "aoti" and spec.device == "cpu":  # a package of its own for every batch: minutes of compiling
        return False
    return float(row["p50_ms"]) * batch * 3 <= 1e3 * max(run.options.seconds, 1.0) * 2


def time_batch(
    run: Run, task: str, workers: dict[str, Worker], batch: int, share: float = 1.0
) -> tuple[dict[str, Row], Alternating]:
    """Rows of one batch size and the turns behind them: first calls, turns for a share of the time, facts."""
    starts: dict[str, dict[str, float]] = {}
    for name, worker in workers.items():
        run.progress(f"{task}: batch {batch}, first call of {name}")
        try:
            starts[name] = worker.ask("feed", batch=batch)
        except EngineError as error:
            run.note(f"{name}, {task}, batch {batch}", error)
    ready = {name: workers[name] for name in starts}
    warm = {name: start["warm_ms"] for name, start in starts.items()}
    turns, rows = take_turns(run, f"{task}: batch {batch}", ready, warm, share), {}
    for name, worker in ready.items():
        try:
            if turns.rounds[name]:
                rows[name] = make_row(run, task, worker, turns, starts[name], batch)
        except EngineError as error:
            run.note(f"{name}, {task}, batch {batch}", error)
    return rows, turns


def take_turns(
    run: Run, where: str, workers: dict[str, Worker], warm_ms: dict[str, float], share: float
) -> Alternating:
    """All subjects in alternating order, each round; a subject that fails is out from then on."""
    turns, out = Alternating(tuple(workers)), set()
    for number in range(run.options.rounds):
        run.progress(f"{where}, round {number + 1} of {run.options.rounds}")
        for name in turns.order(number):
            if name in out:
                continue
            seconds = run.options.seconds * share
            seconds = min(seconds, CEILING_SECONDS) if workers[name].spec.role == "ceiling" else seconds
            calls = calls_for(seconds, warm_ms[name], run.options.rounds)
            try:
                settle = int(warm_ms[name] < SETTLE_UNDER_MS)
                turns.record(name, workers[name].ask("time", calls=calls, settle=settle)["ms"])
            except EngineError as error:
                out.add(name)
                run.note(f"{name}, {where}", error)
    return turns


def make_row(run: Run, task: str, worker: Worker, turns: Alternating, start: dict[str, float], batch: int) -> Row:
    """A row of the record: latency, speed-up over the original in the same rounds, rates, accuracy, memory."""
    spec, latencies = worker.spec, turns.latencies[worker.spec.name]
    facts = worker.ask("facts")
    columns = latencies.columns()
    flop, moved = facts.pop("flop"), facts.pop("bytes")
    median_s = nearest_rank(latencies.ms, 50) / 1e3
    if batch == 1:
        run.record.laps[f"{task}/{spec.name}"] = latencies.ms
    ceiling = spec.role == "ceiling"
    return {
        "kind": "ceiling" if ceiling else "latency",
        **({} if ceiling else {"images_per_s": batch / median_s, **against(run, spec, turns, flop, moved)}),
        "task": task, "name": spec.name, "role": spec.role, "device": spec.device, "precision": spec.precision,
        "batch": batch, **columns, "gflop": flop / 1e9, "gbyte": moved / 1e9, "gflop_s": flop / median_s / 1e9,
        "gb_s": moved / median_s / 1e9, "start_s": worker.start_s, "load_s": worker.load_s,
        "first_ms": start["first_ms"], **facts,
    }  # fmt: skip


def against(run: Run, spec: SubjectSpec, turns: Alternating, flop: float, moved: float) -> dict[str, float | None]:
    """Speed-up over the original, and the shares of the matrix and copy ceilings that were reached.

    A share is floor / time with the ceiling of the same round; above 1 the subject beats the large matrix product.
    """
    shares: dict[str, float | None] = {"speedup": None}
    if ORIGINAL in turns.names:
        shares["speedup"] = turns.speedup(spec.name, ORIGINAL)
    for column, kind, amount in (("of_matmul", "matmul", flop), ("of_copy", "copy", moved)):
        rates = best_rates(run, turns, kind, spec.precision)
        if rates:
            run.rates[f"{kind} {spec.precision}"] = rates
        rates = rates or run.rates.get(f"{kind} {spec.precision}", [])
        own = turns.rounds[spec.name]
        if rates and own:
            padded = [rates[min(i, len(rates) - 1)] for i in range(len(own))]
            shares[column] = float(np.median([1e3 * amount / r / ms for r, ms in zip(padded, own, strict=True)]))
    return shares


def best_rates(run: Run, turns: Alternating, kind: str, precision: str) -> list[float]:
    """Operations or bytes per second of the best ceiling of a kind, round by round; empty if none was timed here."""
    fitting = [s for s in run.plan.ceilings if s.kind == kind and (kind == "copy" or s.precision == precision)]
    medians = [turns.rounds[s.name] for s in fitting if turns.rounds.get(s.name)]
    if not medians:
        return []
    amount = ceiling_amount(fitting[0])
    best = min(medians, key=lambda ms: float(np.median(ms)))
    return [1e3 * amount / ms for ms in best]


def ceiling_amount(spec: SubjectSpec) -> float:
    """Operations of the matrix product, or bytes of the copy, as the subject itself runs it."""
    return 2.0 * matmul_side(spec.device) ** 3 if spec.kind == "matmul" else copy_bytes(spec.device)


# Scenarios --------------------------------------------------------------------------------------------------------


def run_scenarios(run: Run, task: str, workers: dict[str, Worker]) -> None:
    """Every scenario on every engine, one after another: a server under load must not share its cores."""
    for name, worker in workers.items():
        for scenario in run.options.scenarios:
            run.progress(f"{task}: {scenario} on {name}")
            batch = max(run.options.batches) if scenario == "offline" else 1
            request = {
                "scenario": scenario,
                "seconds": run.options.scenario_seconds,
                "bound_ms": run.options.bound_ms,
                "batch": batch,
            }
            try:
                worker.ask("feed", batch=batch)
                for row in ask_scenario(run, worker, request):
                    run.record.add(scenario_row(task, worker.spec, row))
            except EngineError as error:
                run.note(f"{name}, {scenario}", error)


def ask_scenario(run: Run, worker: Worker, request: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of one scenario by the own timer or by LoadGen, whose logs are read and dropped."""
    if not run.options.loadgen:
        return list(worker.ask("scenario", request=request)["rows"])
    with tempfile.TemporaryDirectory(prefix="loadgen-") as folder:
        return list(worker.ask("scenario", request=request, loadgen=folder)["rows"])


def scenario_row(task: str, spec: SubjectSpec, row: dict[str, Any]) -> Row:
    """A scenario's answer in the columns of the record."""
    kept = {key: value for key, value in row.items() if key not in ("seconds", "seed")}
    head = {"kind": "scenario", "task": task, "name": spec.name, "role": spec.role, "device": spec.device}
    return {**head, "precision": spec.precision, **kept}
