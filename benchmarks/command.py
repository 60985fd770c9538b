"""`styleclip-rt bench`: latency, throughput, memory and accuracy of every engine beside the original's code."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..engines.cpu import thread_count
from ..engines.select import choose
from ..runtime.cli_common import json_option, print_json
from .network import SIZES, WIDTHS, NetworkSpec
from .plan import ENGINES, EXTRAS, TASKS, Options, Plan, make_plan
from .records import Record, default_folder
from .scenarios import SCENARIOS

QUICK = {"seconds": 1.0, "rounds": 2, "scenario_seconds": 1.0, "batches": (1, 2), "cold_runs": 2, "editing_calls": 5,
         "compiled": False}  # fmt: skip


class Words(click.ParamType):
    """A comma-separated list of known words, or "none"."""

    name = "list"

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A tuple in the order of the known words; usage error for another word."""
        if not isinstance(value, str):
            return value
        given = [] if value == "none" else [word.strip() for word in value.split(",")]
        unknown = [word for word in given if word not in self.words]
        if unknown:
            self.fail(f"{', '.join(unknown)!r}; expected some of {', '.join(self.words)}, or none", param, ctx)
        return tuple(word for word in self.words if word in given)


class Batches(click.ParamType):
    """Batch sizes: a comma-separated list of whole numbers from 1 to 64."""

    name = "list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A sorted tuple of ints; usage error otherwise."""
        if not isinstance(value, str):
            return value
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isdigit() and 1 <= int(part) <= 64 for part in parts):
            self.fail(f"{value!r}; expected whole numbers from 1 to 64, as in 1,2,4,8", param, ctx)
        return tuple(sorted({int(part) for part in parts}))


def measuring_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What is measured, and for how long."""
    for option in (
        click.option("--patience", type=click.FloatRange(10), default=600, show_default=True, metavar="SECONDS",
                     help="Stop a subject that takes longer to load, compile or answer."),
        click.option("--threads", type=click.IntRange(1, 1024), metavar="N", help="CPU threads. Default: the cores."),
        click.option("--latency-bound", type=click.FloatRange(0), default=0, metavar="MS",
                     help="Bound of the Server scenario. Default: five times the median."),
        click.option("--rounds", type=click.IntRange(1, 100), default=6, show_default=True, help="Turns in each task."),
        click.option("--scenario-seconds", type=click.FloatRange(0.1), default=30, show_default=True,
                     metavar="SECONDS", help="Time of each scenario on each engine."),
        click.option("--seconds", type=click.FloatRange(0.1), default=20, show_default=True, metavar="SECONDS",
                     help="Time of each subject in each task."),
        click.option("--compiled/--no-compiled", default=True, help="With torch.compile and AOTInductor, or without."),
        click.option("--batch", "batches", type=Batches(), default="1,2,4,8", show_default=True, help="Batch sizes."),
        click.option("--stage", "extras", type=Words(EXTRAS), default=",".join(EXTRAS), show_default=True,
                     help="Besides the network: stages of an edit, slider by prompt, cold start, opening."),
        click.option("--scenario", "scenarios", type=Words(SCENARIOS), default=",".join(SCENARIOS), show_default=True),
        click.option("--task", "tasks", type=Words(TASKS), default=",".join(TASKS), show_default=True),
        click.option("--engines", type=Words(ENGINES), default=",".join(ENGINES), show_default=True,
                     help="torch stands for every PyTorch row but the original."),
        click.option("--precision", "precisions", type=Words(("fp32", "fp16")), default="fp32", show_default=True,
                     help="Of the engines' graphs; fp16 is typed as in an export."),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
    ):  # fmt: skip
        command = option(command)
    return command


@click.group(
    "bench",
    invoke_without_command=True,
    help="""Measure every engine beside the code of the original, in turns, in one run.

    Without --size the generator of --pack; with it, one of random weights. Results are a CSV and a JSON named by the
    machine. On a CPU only the ratios within a run mean something.

    \b
    Examples:
      styleclip-rt bench --quick
      styleclip-rt bench --size 1024 --width full --batch 1,2,4 --out results
      styleclip-rt bench compare old.csv new.csv
    """,
)
@click.option("--quick", is_flag=True, help="A minute: few rounds, no compiling, batches 1 and 2.")
@click.option("--pack", default="toyfaces", show_default=True, metavar="NAME|DIR", help="Pack of the generator.")
@click.option("--size", type=click.Choice([str(s) for s in SIZES]), help="Pixels of a generator of random weights.")
@click.option("--width", type=click.Choice(list(WIDTHS)), default="full", show_default=True, help="Of config F's maps.")
@click.option("--bundle", default="toyfaces", show_default=True, metavar="NAME|DIR", help="Bundle of --stage.")
@measuring_options
@click.option("--loadgen", is_flag=True, help="Drive the scenarios by MLPerf LoadGen (extra `bench`).")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Folder of the results.")
@click.option(
    "--append", is_flag=True, help="Add to today's files of this machine and size, in place of replacing them."
)
@click.option("--plot/--no-plot", default=True, help="With figures (extra `bench`), or without.")
@click.option("--dry-run", is_flag=True, help="Say what would be measured; measure nothing.")
@json_option
def bench(**given: Any) -> None:
    """Thin: options, run, files."""
    ctx = click.get_current_context()
    if ctx.invoked_subcommand is not None:
        return
    network = NetworkSpec(given["pack"] if given["size"] is None else None, int(given["size"] or 0), given["width"])
    options = options_of(ctx, given)
    if given["dry_run"]:
        show_plan(network, options, make_plan(options), given["as_json"])
        return
    folder = given["out"] or (Path.cwd() if given["quick"] else default_folder())
    record = run_with_progress(network, options, lambda record: record.write(folder, given["append"]))
    table, whole = record.write(folder, given["append"])
    plots = draw(record, table) if given["plot"] else []
    if given["as_json"]:
        print_json(record.as_json())
        return
    from .tables import summary

    click.echo(summary(record))
    click.echo("\n".join(str(path) for path in (table, whole, *plots)))


def options_of(ctx: click.Context, given: dict[str, Any]) -> Options:
    """Options from the command line; --quick gives way to what was typed."""
    names = ("engines", "tasks", "scenarios", "extras", "batches", "seconds", "rounds", "scenario_seconds", "loadgen",
             "precisions", "compiled", "bundle")  # fmt: skip
    chosen = {name: given[name] for name in names}
    if given["quick"]:
        typed = {name for name in names if ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE}
        chosen |= {name: value for name, value in QUICK.items() if name not in typed}
    device = choose("auto").device if given["device"] == "auto" else given["device"]
    bound, patience = given["latency_bound"], given["patience"]
    return Options(device=device, bound_ms=bound, patience_s=patience, threads=thread_count(given["threads"]), **chosen)


def show_plan(network: NetworkSpec, options: Options, plan: Plan, as_json: bool) -> None:
    """The plan as text or JSON."""
    subjects = {task: [spec.name for spec in specs] for task, specs in plan.subjects.items()}
    record = {"network": network.label, "subjects": subjects, "ceilings": [spec.name for spec in plan.ceilings],
              "left_out": plan.left_out, "options": asdict(options)}  # fmt: skip
    if as_json:
        print_json(record)
        return
    click.echo(f"network    {network.label}, {options.device}, {options.threads} threads")
    for task, names in subjects.items():
        click.echo(f"{task:10} {', '.join(names)}")
    click.echo(f"ceilings   {', '.join(record['ceilings'])}")
    click.echo(f"scenarios  {', '.join(options.scenarios) or 'none'}; then {', '.join(options.extras) or 'nothing'}")
    for name, reason in plan.left_out.items():
        click.echo(f"left out   {name}: {reason}")


def run_with_progress(network: NetworkSpec, options: Options, save: Callable[[Record], object]) -> Record:
    """The run, with what it is doing on stderr: a line that replaces itself on a terminal, plain lines elsewhere."""
    from .run import bench as measure

    terminal = sys.stderr.isatty()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # worker processes and folders go too

    def progress(text: str) -> None:
        click.echo(f"\r\x1b[K{text[:110]}" if terminal else text, err=True, nl=not terminal)

    try:
        return measure(network, options, progress, save)
    finally:
        if terminal:
            click.echo("\r\x1b[K", err=True, nl=False)


def draw(record: Record, table: Path) -> list[Path]:
    """The figures beside the CSV; a hint where matplotlib is missing."""
    from ..engines.errors import MissingDependency
    from .plots import plot

    try:
        return plot(json.loads(json.dumps(record.as_json())), table.with_suffix(""))
    except MissingDependency as error:
        click.echo(f"no figures: {error}", err=True)
        return []


@bench.command(
    "compare",
    help="""Compare two runs with the same options: speed-ups over the original of each run, or times with --absolute.

    Exit code 1 where a row of NEW is slower or takes more memory than in OLD by more than the threshold, is less
    accurate, keeps its latency bound no more, or is gone.

    \b
    Examples:
      styleclip-rt bench compare old.csv new.csv
      styleclip-rt bench compare old.csv new.csv --threshold 5 --absolute
    """,
)
@click.argument("old", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("new", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--threshold", type=click.FloatRange(0, 1000), default=10, show_default=True, metavar="PERCENT",
              help="Slower or larger by more than this is a regression.")  # fmt: skip
@click.option("--absolute", is_flag=True, help="Compare times: only for two runs on the same quiet machine.")
@json_option
def compare_command(old: Path, new: Path, threshold: float, absolute: bool, as_json: bool) -> None:
    """Thin: compare, print, exit code."""
    from .compare import compare

    result = compare(old, new, threshold / 100, absolute)
    if as_json:
        print_json(result.as_json())
    else:
        click.echo(result.as_text())
    sys.exit(1 if result.worse else 0)
