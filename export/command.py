"""`styleclip-rt export`: builds a verified engine bundle from a model pack."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ..engines.errors import StyleclipError
from ..runtime.cli_kernels import make_beside
from ..runtime.prompts import slug
from ..runtime.store import export_folder
from ..runtime.training.pack import Pack, load_pack
from .bundle_writer import Plan, Report, export_bundle
from .form_bench import fastest_form
from .forms import FORMS
from .graphs import graph_list
from .precision import PRECISIONS
from .prompts import make_plan
from .slider import slice_names


@click.command(
    "export",
    help="""Export a model pack as an engine bundle: ONNX graphs, shared weights, tokenizer.

    Every graph is checked against PyTorch before the bundle appears. A prompt that the pack knows brings its recorded
    settings and, where one was trained, its mapper; any other text is exported as free text.

    \b
    Examples:
      styleclip-rt export --prompt bob-cut
      styleclip-rt export --prompt glasses --prompt "a face with green hair" --neutral "a face" --out green
    """,
)
@click.option("--prompt", "prompts", multiple=True, metavar="NAME|TEXT", help="Prompt; may be given more than once.")
@click.option("--all-prompts", is_flag=True, help="Every prompt of the pack, with all mappers; --prompt ones first.")
@click.option("--pack", "pack_name", default="toyfaces", show_default=True, metavar="NAME|DIR", help="Model pack.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Folder of the bundle.")
@click.option("--neutral", metavar="TEXT", help="What the prompts are compared with, in place of the recorded text.")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    show_default=True,
    help="Arithmetic of the graphs; auto: fp16 where a graph passes its limits.",
)
@click.option(
    "--form",
    type=click.Choice(["auto", *FORMS, "measure"]),
    default="auto",
    show_default=True,
    help="How up-sampling convolutions are written; auto: the recorded table, measure: time all of them here.",
)
@click.option("--slider/--no-slider", default=True, show_default=True, help="Also export the graphs of sliders.")
@click.option(
    "--kernels/--no-kernels", default=True, help="In the end compile the CPU's kernels, where there is a compiler."
)
@click.option("--name", metavar="NAME", help="Name of the bundle; the pack's name if not given.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout; progress goes to stderr.")
@click.option("--dry-run", is_flag=True, help="Say what would be exported and where; write nothing.")
def export_command(
    prompts: tuple[str, ...],
    all_prompts: bool,
    pack_name: str,
    out: Path | None,
    neutral: str | None,
    name: str | None,
    precision: str,
    form: str,
    slider: bool,
    kernels: bool,
    as_json: bool,
    dry_run: bool,
) -> None:
    """Thin: plan, export, print, and the kernels that this machine opens the bundle with."""
    try:
        pack = load_pack(pack_name)
        plan = make_plan(pack, [*prompts, *(pack.prompts if all_prompts else ())], neutral, name)
        form = fastest_form(pack, precision) if form == "measure" and not dry_run else form
        plan = replace(plan, precision=precision, form=form, slider=slider)
        folder = out or export_folder(pack.name, slug(plan.default_prompt or "all"))
        if dry_run:
            click.echo(as_text(dry_report(pack, plan, folder), as_json))
            return
        report = run_export(pack, plan, folder)
        click.echo(json.dumps(report_dict(report, plan), indent=1) if as_json else table_text(report, plan))
        if kernels:
            make_beside()
    except StyleclipError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)


def run_export(pack: Pack, plan: Plan, folder: Path) -> Report:
    """Exports with a progress bar on stderr."""
    slices = slice_names(pack.layout) if plan.slider and pack.has("generator") else []
    count = len(graph_list(pack, plan.mappers)[0]) + len(slices)
    started: list[str] = []
    bar: Any = click.progressbar(
        length=count, label="exporting", file=sys.stderr, item_show_func=lambda name: str(name or "")
    )
    with bar:

        def progress(graph: str) -> None:
            bar.update(1 if started else 0, graph)
            started.append(graph)

        report = export_bundle(pack, plan, folder, progress)
        bar.update(1)
    return report


def dry_report(pack: Pack, plan: Plan, folder: Path) -> dict[str, Any]:
    """What an export would make."""
    missing = graph_list(pack, plan.mappers)[1]
    return {
        "out": str(folder),
        "pack": pack.name,
        "default_prompt": plan.default_prompt,
        "prompts": list(plan.prompts),
        "mappers": list(plan.mappers),
        "directions": list(pack.directions_named),
        "precision": plan.precision,
        "form": plan.form,
        "slider": plan.slider,
        "missing": missing,
    }


def as_text(report: dict[str, Any], as_json: bool) -> str:
    """A flat report as JSON or as aligned lines."""
    if as_json:
        return json.dumps(report, indent=1)
    lines = [f"{key:14} {', '.join(value) if isinstance(value, list) else value}" for key, value in report.items()]
    return "\n".join(line for line in lines if not line.endswith("{}"))


def report_dict(report: Report, plan: Plan) -> dict[str, Any]:
    """The report for --json."""
    return {
        "bundle": str(report.path),
        "name": plan.name,
        "default_prompt": plan.default_prompt,
        "graphs": {row.spec.name: row.as_json() for row in report.rows},
        "bytes": report.total_bytes,
        "directions": report.directions,
        "missing": report.missing,
        "seconds": round(report.seconds, 1),
    }


def table_text(report: Report, plan: Plan) -> str:
    """The closing table: graph, size, error, PSNR or cosine, time."""
    lines = [f"{'graph':28} {'size':>9}  {'max error':>10}  {'PSNR/cosine':>11}  {'time':>6}"]
    for row in report.rows:
        check = row.check
        cosine = check.metric == "min_cosine"
        error = f"{1 - check.value:.1e}" if cosine else f"{check.value:.1e}" if check.metric != "min_psnr_db" else ""
        quality = f"{check.value:.6f}" if cosine else "" if check.psnr_db is None else f"{check.psnr_db:.1f} dB"
        size = f"{row.bytes / 1e6:.2f} MB"
        kind = row.precision["type"]
        lines.append(f"{row.spec.name:28} {size:>9}  {error:>10}  {quality:>11}  {row.seconds:>4.1f} s  {kind}")
    lines.append(f"{'in all, weights shared':28} {report.total_bytes / 1e6:>6.2f} MB{report.seconds:>35.1f} s")
    lines += [f"directions: {', '.join(report.directions)}"] if report.directions else []
    lines += [f"not exported: {graph} (the pack lacks {', '.join(parts)})" for graph, parts in report.missing.items()]
    prompt = f", default prompt {plan.default_prompt!r}" if plan.default_prompt else ""
    lines.append(f"bundle: {report.path}{prompt}")
    return "\n".join(lines)
