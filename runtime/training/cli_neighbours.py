"""`styleclip-rt train neighbours`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..cli_common import Values, json_option, print_json

if TYPE_CHECKING:
    from .neighbours_run import Result

EPILOG = """\b
Examples:
  styleclip-rt train neighbours --method ganspace --components 8 --out my-pack
  styleclip-rt train neighbours --method interfacegan --prompt glasses --orthogonal-to ganspace-0 --out my-pack
  styleclip-rt train neighbours --method stylespace --prompt "a smiling face" --neutral "a face" --out my-pack
  styleclip-rt train neighbours --method stylespace --channel b32.conv1:12 --out my-pack
"""

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command(epilog=EPILOG)
@click.option("--method", type=click.Choice(["ganspace", "interfacegan", "stylespace"]), required=True)
@click.option("--pack", "pack_name", default="toyfaces", show_default=True, metavar="NAME|DIR", help="Model pack.")
@click.option("--out", type=FOLDER, metavar="DIR", help="Pack to write.  [default: --pack itself]")
@click.option("--work", type=FOLDER, metavar="DIR", help="Embedded faces and the sheet.  [default: OUT-work]")
@click.option("--name", metavar="NAME", help="Name of the directions.  [default: the method's, with the prompt's]")
@click.option("--components", type=click.IntRange(1, 80), metavar="COUNT", help="ganspace: how many.  [default: 5]")
@click.option(
    "--layers", metavar="ROWS", help="ganspace, interfacegan: rows of w+ that move, e.g. 0-3.  [default: all]"
)
@click.option("--prompt", metavar="NAME|TEXT", help="interfacegan, stylespace: what CLIP scores faces for.")
@click.option("--neutral", metavar="TEXT", help="What the prompt is compared with, in place of the recorded text.")
@click.option(
    "--share",
    type=click.FloatRange(0, 0.5, min_open=True),
    metavar="0..0.5",
    help="interfacegan: of the faces, at each end [default: 0.1]; stylespace: examples [default: 0.02].",
)
@click.option(
    "--orthogonal-to", multiple=True, metavar="NAME", help="interfacegan: leave this direction alone; may be repeated."
)
@click.option("--channel", multiple=True, metavar="LAYER:INDEX", help="stylespace: this channel; may be repeated.")
@click.option(
    "--count", type=click.IntRange(1, 40), metavar="COUNT", help="stylespace: channels to find.  [default: 3]"
)
@click.option(
    "--channels", type=click.Choice(["all", "conv"]), help="stylespace: conv leaves toRGB out.  [default: all]"
)
@click.option(
    "--rank",
    type=click.Choice(["examples", "table"]),
    help="stylespace: candidates by the faces that CLIP scores highest, or by the pack's table.  [default: examples]",
)
@click.option(
    "--samples", type=click.IntRange(2), metavar="COUNT", help="Random faces.  [default: 100000, 4000 or 2000]"
)
@click.option(
    "--psi", type=click.FloatRange(0, 2, min_open=True), metavar="0..2",
    help="Truncation of the faces.  [default: ganspace 1, the others the pack's]",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, metavar="N")
@click.option("--faces", type=click.IntRange(1, 8), default=3, show_default=True, metavar="COUNT", help="On the sheet.")
@click.option("--alphas", type=Values(), metavar="LO..HI", help="Columns of the sheet.")
@click.option("--threads", type=click.IntRange(1), metavar="COUNT", help="Threads for PyTorch.")
@click.option("--dry-run", is_flag=True, help="Say what would be made and where; write nothing.")
@json_option
def neighbours(pack_name: str, threads: int | None, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Find directions as the works do that StyleCLIP builds on; `edit --direction NAME` serves them after an export.

    ganspace: principal components of w. interfacegan: the boundary between faces that CLIP scores high and low for a
    text. stylespace: single style channels, named or found for a text. Embedded faces are kept in --work: a run that
    was stopped goes on from there, and another text over the same faces starts with them.
    """
    import torch

    from .neighbours_run import Request, make_plan, run
    from .pack import load_pack

    if threads:
        torch.set_num_threads(threads)
    plan = make_plan(load_pack(pack_name), Request(**options))
    if dry_run:
        record = plan.to_dict()
        print_json(record) if as_json else click.echo("\n".join(f"{key:12} {value}" for key, value in record.items()))
        return
    result = run(plan)
    print_json(result.to_dict()) if as_json else click.echo(table(result))


FIGURES = {
    "ganspace": {"share of variance": "variance_share", "sigma": "sigma"},
    "interfacegan": {"held-out accuracy": "accuracy", "correlation": "correlation", "sigma": "sigma"},
    "stylespace": {"layer": "layer", "channel": "channel", "CLIP gain": "gain"},
}


def table(result: Result) -> str:
    """One line per direction, and what to do next."""
    lines = []
    for direction in result.directions:
        shown = FIGURES[result.plan.request.method]
        figures = [f"{label} {direction.config[key]}" for label, key in shown.items() if key in direction.config]
        lines.append(f"{direction.name:<32} {', '.join(figures)}")
    first = result.directions[0]
    use = f"edit IMG --direction {first.name} --alpha {first.config['alpha']:g}"
    lines += [f"sheet: {result.plan.sheet}", f"pack: {result.pack}"]
    return "\n".join([*lines, f"next: styleclip-rt export --pack {result.pack}, then {use}"])
