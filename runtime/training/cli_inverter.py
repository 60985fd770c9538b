"""`styleclip-rt train inverter`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..cli_common import F, json_option, print_json
from .cli_plan import closing_table, show_plan

if TYPE_CHECKING:
    from .inverter_run import InverterRequest, InverterResult

EPILOG = """\b
Examples:
  styleclip-rt train inverter --pack my-pack
  styleclip-rt train inverter --pack ffhq --photos photos/ --landmark-model landmarks.dat --out ffhq-inverter
  styleclip-rt train inverter --continue --photos photos/ --steps 300 --out my-pack
"""

FILE = click.Path(path_type=Path)
FOLDER = click.Path(path_type=Path, file_okay=False)
WEIGHTS = ("pixels", "edges", "features", "clip", "identity", "known_w", "offsets", "adversary")
CHANGES = ("encoder", "optimizer", "steps", "warm_steps", "batch", "lr", "photo_share", "psi")


def setting_options(command: F) -> F:
    """The options that replace settings of the preset; each is None where it was not given."""
    weight = click.FloatRange(0)
    rate = click.FloatRange(0, min_open=True)
    for option in reversed((
        click.option("--preset", type=click.Choice(["auto", "narrow", "e4e"]), default="auto", show_default=True,
                     help="Settings; auto: e4e, the published ones, for generators of 256 px and more."),
        click.option("--encoder", type=click.Choice(["narrow", "e4e"]), help="Size of the encoder."),
        click.option("--optimizer", type=click.Choice(["adam", "ranger"]), help="Optimiser."),
        click.option("--warm-steps", type=click.IntRange(0), metavar="COUNT", help="Steps on the w of samples alone."),
        click.option("--steps", type=click.IntRange(1), metavar="COUNT", help="Steps through the generator."),
        click.option("--batch", type=click.IntRange(1), metavar="COUNT", help="Pictures of such a step."),
        click.option("--lr", type=rate, metavar="RATE", help="Learning rate of those steps."),
        click.option("--photo-share", type=click.FloatRange(0, 1), metavar="0..1", help="Photos in a batch."),
        click.option("--psi", type=click.FloatRange(0, 2), metavar="0..1", help="Truncation of the samples."),
        click.option("--lambda-pixels", type=weight, metavar="WEIGHT", help="Mean square of the pixels."),
        click.option("--lambda-edges", type=weight, metavar="WEIGHT", help="Gradients at three sizes."),
        click.option("--lambda-features", type=weight, metavar="WEIGHT", help="Maps of the identity network."),
        click.option("--lambda-clip", type=weight, metavar="WEIGHT", help="CLIP's embedding of the picture."),
        click.option("--lambda-identity", type=weight, metavar="WEIGHT", help="Identity loss."),
        click.option("--lambda-known-w", type=weight, metavar="WEIGHT", help="w of samples, in the second pass."),
        click.option("--lambda-offsets", type=weight, metavar="WEIGHT", help="Norms of the layers' offsets."),
        click.option("--lambda-adversary", type=weight, metavar="WEIGHT", help="Discriminator of w."),
    )):  # fmt: skip
        command = option(command)
    return command


@click.command(epilog=EPILOG)
@click.option("--pack", "pack_name", default="toyfaces", show_default=True, metavar="NAME|DIR", help="Model pack.")
@click.option("--out", type=FOLDER, metavar="DIR", help="Pack to write.  [default: --pack itself]")
@click.option("--work", type=FOLDER, metavar="DIR", help="Checkpoints, log and sheets.  [default: OUT-work]")
@click.option("--photos", type=FOLDER, metavar="DIR", help="Also train on the photos in this folder and below.")
@click.option("--no-align", is_flag=True, help="The photos are aligned crops: take their centred squares.")
@click.option("--landmark-model", type=FILE, metavar="FILE",
              help="Finds the faces in the photos.  [default: $STYLECLIP_RT_LANDMARKS]")  # fmt: skip
@click.option("--continue", "go_on", is_flag=True, help="Start from the pack's own inverter; no warm-up.")
@setting_options
@click.option("--tests", type=click.IntRange(1, 1024), default=64, show_default=True, metavar="COUNT",
              help="Samples to test with; of the photos one in twenty is kept.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**32 - 10), default=60, show_default=True, metavar="N")
@click.option("--save-every", type=click.IntRange(1), metavar="STEPS",
              help="Checkpoint this often, not only once a minute.")  # fmt: skip
@click.option("--validate-every", type=click.IntRange(1), metavar="STEPS",
              help="Sheet and figures this often.  [default: five times, at least every 2000]")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), metavar="COUNT", help="Threads for PyTorch.")
@click.option("--dry-run", is_flag=True, help="Say what would be trained and where; write nothing.")
@json_option
def inverter(pack_name: str, threads: int | None, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Train an encoder photo -> w+ for a pack's generator, as e4e does; it goes into a pack, ready for export.

    It learns from the generator's samples, and from photos where a folder of them is given. Stopped at any moment, the
    same command goes on from the last checkpoint.
    """
    import torch

    from .inverter_run import InverterRun, make_plan
    from .pack import load_pack

    if threads:
        torch.set_num_threads(threads)
    plan = make_plan(load_pack(pack_name), request_of(options))
    if dry_run:
        show_plan(plan.to_dict(), as_json)
        return
    for note in plan.notes:
        click.echo(f"note: {note}", err=True)
    result = InverterRun(plan).run()
    print_json(result.to_dict()) if as_json else click.echo(table(result))


def request_of(options: dict[str, Any]) -> InverterRequest:
    """The command's options as a request."""
    from .inverter_run import InverterRequest

    changes = {name: options.pop(name) for name in CHANGES}
    weights = {name: options.pop(f"lambda_{name}") for name in WEIGHTS}
    align = False if options.pop("no_align") else None
    return InverterRequest(changes=changes, weights=weights, align=align, **options)


def table(result: InverterResult) -> str:
    """The closing table."""
    rows = {}
    for kind, score in result.scores.items():
        before = f", was {result.before[kind].psnr_db} dB" if kind in result.before else ""
        same = "" if score.identity is None else f", identity {score.identity:.3f}"
        rows[kind] = f"{score.pictures}: {score.psnr_db} dB (worst twentieth {score.psnr_db_p5} dB){same}{before}"
    rows |= {
        "sheet": str(result.sheet),
        "pack": str(result.pack),
        "next": f"styleclip-rt export --pack {result.pack}",
    }
    return closing_table(rows, (f"left out {name}: {why}" for name, why in result.skipped.items()))
