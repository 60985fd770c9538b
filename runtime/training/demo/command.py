"""`styleclip-rt demo`: train the embedded pack by its recipe, and measure it."""

from __future__ import annotations

import json
from pathlib import Path

import click

DEFAULT_WORK = "demo-work"


@click.group()
def demo() -> None:
    """The embedded pack: train it anew, measure it, draw its faces.

    \b
    Examples:
      styleclip-rt demo train --work demo-work --out my-pack
      styleclip-rt demo evaluate --pack my-pack --out report
    """


@demo.command()
@click.option("--work", type=click.Path(path_type=Path), default=DEFAULT_WORK, show_default=True, metavar="DIR",
              help="Checkpoints of every stage; a killed run continues from them.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Copy the finished pack here.")
@click.option("--from", "start", metavar="NAME|DIR",
              help="Fill a new work folder with this pack as finished checkpoints. Alone, trains nothing.")  # fmt: skip
@click.option("--redo", multiple=True, metavar="NAME",
              help="Forget this checkpoint and all that was made from it, then train; may be repeated.")  # fmt: skip
@click.option("--stage", "stages", multiple=True, metavar="NAME", help="Run this stage alone; may be repeated.")
@click.option("--scale", type=click.FloatRange(0, 10, min_open=True), default=1.0, show_default=True, metavar="FACTOR",
              help="Factor on the steps of every stage; below 1 for a smoke run.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), default=None, metavar="COUNT", help="Threads for PyTorch.")
@click.option("--dry-run", is_flag=True, help="List the stages and stop.")
def train(
    work: Path,
    out: Path | None,
    start: str | None,
    redo: tuple[str, ...],
    stages: tuple[str, ...],
    scale: float,
    threads: int | None,
    dry_run: bool,
) -> None:
    """Train the pack toyfaces from nothing: some hours on two CPU cores. Or a part of it anew, from a finished pack.

    \b
    Examples:
      styleclip-rt demo train --work demo-work --out my-pack
      styleclip-rt demo train --from toyfaces --work demo-work --redo mappers --out my-pack
    """
    import torch

    from . import recipe

    if dry_run:
        click.echo("\n".join(recipe.STAGES))
        return
    if not _prepare(work, start, redo) and not stages:
        return
    if threads:
        torch.set_num_threads(threads)
    pack = recipe.run(work, stages, scale)
    if out is not None:
        recipe.copy_pack(pack, out)
        pack = out
    click.echo(f"pack: {pack}" if (pack / "pack.json").exists() else f"checkpoints: {work}")


def _prepare(work: Path, start: str | None, redo: tuple[str, ...]) -> bool:
    """Fills the work folder and forgets what is to be done again, saying so; whether there is anything to train."""
    from ..pack import load_pack
    from . import restart

    restart.check_names(redo)
    if start is not None:
        taken, left = restart.checkpoints_from(load_pack(start), work)
        click.echo(f"checkpoints in {work}: {', '.join(taken)}", err=True)
        for name, why in left.items():
            click.echo(f"not taken: {name} ({why})", err=True)
    for name in redo:
        click.echo(f"to be made: {', '.join(restart.forget(work, name))}", err=True)
    return start is None or bool(redo)


@demo.command()
@click.option("--pack", default="toyfaces", show_default=True, metavar="NAME|DIR", help="The pack to measure.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("."), metavar="DIR",
              help="Root for benchmarks/results/*.csv and docs/images/*.jpg.")  # fmt: skip
@click.option(
    "--faces", type=click.IntRange(16), default=256, show_default=True, metavar="COUNT", help="Reported faces."
)
@click.option("--json", "as_json", is_flag=True, help="Print the prompt table as JSON.")
def evaluate(pack: str, out: Path, faces: int, as_json: bool) -> None:
    """Measure a demonstration pack: edits, mappers, inversion, samples; CSV tables and contact sheets.

    \b
    Examples:
      styleclip-rt demo evaluate
      styleclip-rt demo evaluate --pack my-pack --out report --faces 128
    """
    from .evaluate import Effort
    from .evaluate import evaluate as measure

    prompts = measure(pack, out, effort=Effort(faces=faces))
    if as_json:
        click.echo(json.dumps(prompts, indent=1))
    else:
        click.echo(f"tables: {out / 'benchmarks' / 'results'}\nsheets: {out / 'docs' / 'images'}")


@demo.command()
@click.option("--count", type=click.IntRange(1, 400), default=40, show_default=True, metavar="COUNT")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, metavar="INTEGER")
@click.option("--size", type=click.IntRange(16, 1024), default=64, show_default=True, metavar="PIXELS")
@click.option("--out", type=click.Path(path_type=Path), default=Path("faces.png"), metavar="FILE")
def faces(count: int, seed: int, size: int, out: Path) -> None:
    """Draw a sheet of procedural faces: what the pack was trained on.

    \b
    Examples:
      styleclip-rt demo faces --count 40 --out faces.png
      styleclip-rt demo faces --count 1 --size 512 --seed 7 --out portrait.png
    """
    import numpy as np

    from ..contact import save_grid
    from .factors import sample_factors
    from .renderer import render

    save_grid(out, render(sample_factors(count, np.random.default_rng(seed)), size))
    click.echo(str(out))
