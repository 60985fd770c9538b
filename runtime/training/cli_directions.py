"""`styleclip-rt train directions`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..cli_common import json_option, print_json
from .gradient_options import check_foreign, gradient_options, run_gradient

EPILOG = """\b
Examples:
  styleclip-rt train directions --out my-pack
  styleclip-rt train directions --pack ffhq --channels all --tolerance 0.01 --threads 8
  styleclip-rt train directions --pack ffhq --compat --out ffhq-compat
  styleclip-rt train directions --method gradient --prompt "a face with glasses" --out my-pack
  styleclip-rt train directions --method gradient --prompt glasses --preview portrait.png --sheet glasses.png
"""

FOLDER = click.Path(path_type=Path, file_okay=False)
METHODS = ("finite", "gradient")


@click.command(epilog=EPILOG)
@click.option("--method", type=click.Choice(METHODS), default="finite", show_default=True,
              help="finite: move every channel of style space, one at a time, and see where CLIP goes; gradient: to "
              "first order by backward passes, all channels at once, for one prompt or the table.")  # fmt: skip
@gradient_options
@click.option("--pack", "pack_name", default="toyfaces", show_default=True, metavar="NAME|DIR", help="Model pack.")
@click.option("--out", type=FOLDER, metavar="DIR", help="Pack to write.  [default: --pack itself]")
@click.option("--work", type=FOLDER, metavar="DIR", help="Checkpoint.  [default: OUT-work]")
@click.option("--channels", type=click.Choice(["conv", "all"]), default="conv", show_default=True,
              help="conv: as published; all: those of toRGB too, where a generator may keep colour.")  # fmt: skip
@click.option("--images", type=click.IntRange(1, 100_000), default=100, show_default=True, metavar="COUNT",
              help="Base images; by gradient 64 unless given.")  # fmt: skip
@click.option("--sigmas", type=click.FloatRange(0, min_open=True), default=5.0, show_default=True, metavar="K",
              help="A channel is set to its mean - K and + K standard deviations.")  # fmt: skip
@click.option("--tolerance", type=click.FloatRange(0, 1, max_open=True), metavar="1-COSINE",
              help="A channel stops when its row is expected to be this near to the finished one; 0: never.  "
              "[default: 0.0125; 0 with --compat]")  # fmt: skip
@click.option("--render-at", metavar="full|clip|PIXELS", default="full", show_default=True,
              help="Follow a moved channel through all layers, or up to this resolution (clip: as large as CLIP sees): "
              "an approximation, faster where the generator is larger.")  # fmt: skip
@click.option("--compat", is_flag=True, help="As the published code runs: visited channels stay at their mean.")
@click.option("--block", type=click.IntRange(1), default=64, show_default=True, metavar="COUNT",
              help="Channels that share the rendering of what lies below them.")  # fmt: skip
@click.option("--convention", type=click.Choice(["tf", "torch"]), default="tf", show_default=True,
              help="Sigmas of which code base of StyleCLIP, for a pack without statistics.")  # fmt: skip
@click.option("--samples", type=click.IntRange(2), default=100_000, show_default=True, metavar="COUNT",
              help="Latents to measure them over; by gradient 10000 unless given.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), metavar="COUNT", help="Threads for PyTorch.")
@click.option("--dry-run", is_flag=True, help="Say what would be rendered and where it goes; write nothing.")
@json_option
def directions(method: str, pack_name: str, threads: int | None, as_json: bool, **options: Any) -> None:
    """Measure the channel directions of a pack: what every style channel means to CLIP. Text edits need this table.

    Stopped at any moment, the same command goes on from the last checkpoint.
    """
    import torch

    from .pack import load_pack

    if threads:
        torch.set_num_threads(threads)
    check_foreign(method)
    run = {"finite": _run_finite, "gradient": run_gradient}[method]
    record = run(load_pack(pack_name), options)
    print_json(record) if as_json else click.echo("\n".join(f"{key:15} {value}" for key, value in record.items()))


def _run_finite(pack: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The plan under --dry-run, else the finished run."""
    from .directions import TOLERANCE, DirectionRecipe, resolution_for
    from .directions_finite import FiniteRequest, check_parts, make_plan, train_finite

    compat, tolerance = options["compat"], options["tolerance"]
    if tolerance is None:
        tolerance = 0.0 if compat else TOLERANCE
    check_parts(pack)
    render_at = resolution_for(options["render_at"], pack.layout.config.resolutions, pack.clip.image_size)
    recipe = DirectionRecipe(options["images"], options["sigmas"], compat, options["channels"], tolerance, render_at)
    places = {name: options[name] for name in ("out", "work", "block", "convention", "samples")}
    plan = make_plan(pack, FiniteRequest(recipe, **places))
    return plan.to_dict() if options["dry_run"] else train_finite(plan)
