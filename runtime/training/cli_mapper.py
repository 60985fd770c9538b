"""`styleclip-rt train mapper`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..cli_common import F, json_option, print_json
from .cli_plan import closing_table, show_plan

if TYPE_CHECKING:
    from .mapper_faces import FaceSources
    from .mapper_run import MapperPlan, MapperRequest, MapperResult

EPILOG = """\b
Examples:
  styleclip-rt train mapper --prompt bob-cut --out my-pack
  styleclip-rt train mapper --prompt "a face with green hair" --kind style --torgb --out my-pack
  styleclip-rt train mapper --pack ffhq --prompt mohawk --latents train_faces.pt --test-latents test_faces.pt
"""

FILE = click.Path(path_type=Path)
FOLDER = click.Path(path_type=Path, file_okay=False)
WEIGHTS = {"lambda_clip": "clip", "lambda_directional": "directional", "lambda_l2": "l2", "lambda_id": "identity"}
CHANGES = ("kind", "torgb", "groups", "optimizer", "front_end", "steps", "batch", "lr", "psi", "jitter")


def setting_options(command: F) -> F:
    """The options that replace settings of the preset; each is None where it was not given."""
    weight = click.FloatRange(0)
    for option in reversed((
        click.option("--preset", type=click.Choice(["auto", "published", "toyfaces"]), default="auto",
                     show_default=True, help="Settings; auto: published for generators of 256 px and more."),
        click.option("--kind", type=click.Choice(["levels", "single", "style"]), help="What the mapper moves."),
        click.option("--groups", metavar="NAMES", help="Of coarse,medium,fine: what a levels mapper moves."),
        click.option("--torgb/--no-torgb", default=None, help="A style mapper moves toRGB layers too."),
        click.option("--optimizer", type=click.Choice(["adam", "ranger"]), help="Optimiser."),
        click.option("--front-end", type=click.Choice(["clip", "raw"]), help="What CLIP sees; raw: StyleCLIP's loss."),
        click.option("--steps", type=click.IntRange(1), metavar="COUNT", help="Training steps."),
        click.option("--batch", type=click.IntRange(1), metavar="COUNT", help="Faces of a step, over all processes."),
        click.option("--lr", type=click.FloatRange(0, min_open=True), metavar="RATE", help="Learning rate."),
        click.option("--psi", type=click.FloatRange(0, 2), metavar="0..1", help="Truncation of sampled faces."),
        click.option("--jitter", type=click.FloatRange(0), metavar="SIGMAS", help="Noise per layer of sampled faces."),
        click.option("--lambda-clip", type=weight, metavar="WEIGHT", help="Weight of D_CLIP."),
        click.option("--lambda-directional", type=weight, metavar="WEIGHT", help="Weight of the directional loss."),
        click.option("--lambda-l2", type=weight, metavar="WEIGHT", help="Weight of the mean square offset."),
        click.option("--lambda-id", type=weight, metavar="WEIGHT", help="Weight of the identity loss."),
    )):  # fmt: skip
        command = option(command)
    return command


def face_options(command: F) -> F:
    """Where the faces come from."""
    for option in reversed((
        click.option("--latents", type=FILE, multiple=True, metavar="FILE",
                     help="Train on w+ [N,L,W] of this .pt, .npy or .npz; may be repeated. Default: sampled faces."),
        click.option("--photos", type=FOLDER, metavar="DIR", help="Train on the photos of this folder, inverted."),
        click.option("--test-latents", type=FILE, metavar="FILE",
                     help="Faces to test with. Default: the last ones of many, else sampled ones."),
        click.option("--tests", type=click.IntRange(1, 32), default=8, show_default=True, metavar="COUNT",
                     help="Test faces, where they are not of a file."),
    )):  # fmt: skip
        command = option(command)
    return command


@click.command(epilog=EPILOG)
@click.option("--prompt", required=True, metavar="NAME|TEXT", help="Prompt of the pack, published mapper, or any text.")
@click.option("--neutral", metavar="TEXT", help="What the prompt is compared with, in place of the recorded text.")
@click.option("--name", metavar="NAME", help="Name of the mapper in the pack.  [default: the prompt's]")
@click.option("--pack", "pack_name", default="toyfaces", show_default=True, metavar="NAME|DIR", help="Model pack.")
@click.option("--out", type=FOLDER, metavar="DIR", help="Pack to write.  [default: --pack itself]")
@click.option("--work", type=FOLDER, metavar="DIR", help="Checkpoint, log and sheets.  [default: OUT-work]")
@face_options
@setting_options
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=40, show_default=True, metavar="N")
@click.option(
    "--save-every", type=click.IntRange(1), metavar="STEPS", help="Checkpoint this often, not only once a minute."
)
@click.option("--validate-every", type=click.IntRange(1), metavar="STEPS",
              help="Sheet and figures this often.  [default: five times, at least every 2000]")  # fmt: skip
@click.option("--tensorboard/--no-tensorboard", default=True, show_default=True, help="TensorBoard log in --work.")
@click.option("--threads", type=click.IntRange(1), metavar="COUNT", help="Threads for PyTorch.")
@click.option("--dry-run", is_flag=True, help="Say what would be trained and where; write nothing.")
@json_option
def mapper(pack_name: str, threads: int | None, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Train StyleCLIP's latent mapper of one prompt; its mapper and prompt go into a pack, ready for export.

    Stopped at any moment, the same command goes on from the last checkpoint. With several GPUs:
    `torchrun --nproc_per_node COUNT -m styleclip_rt train mapper ...`.
    """
    import torch

    from .loop_ranks import process_group
    from .mapper_run import MapperRun, make_plan
    from .pack import load_pack

    if threads:
        torch.set_num_threads(threads)
    with process_group() as ranks:
        plan = make_plan(load_pack(pack_name), request_of(options))
        if dry_run:
            show_plan(plan.to_dict(), as_json)
            return
        for note in notes_of(plan) if ranks.first else ():
            click.echo(f"note: {note}", err=True)
        result = MapperRun(plan).run()
    if result is not None:
        print_json(result.to_dict()) if as_json else click.echo(table(result))


def request_of(options: dict[str, Any]) -> MapperRequest:
    """The command's options as a request."""
    from .mapper_run import MapperRequest

    groups = options.pop("groups")
    options["groups"] = tuple(part.strip() for part in groups.split(",")) if groups is not None else None
    changes = {name: options.pop(name) for name in CHANGES}
    weights = {term: options.pop(name) for name, term in WEIGHTS.items()}
    return MapperRequest(changes=changes, weights=weights, sources=sources_of(options), **options)


def sources_of(options: dict[str, Any]) -> FaceSources:
    """The options of `face_options`, moved out of the command's."""
    from .mapper_faces import FaceSources

    latents, photos = options.pop("latents"), options.pop("photos")
    return FaceSources(tuple(latents), photos, options.pop("test_latents"), options.pop("tests"))


def notes_of(plan: MapperPlan) -> tuple[str, ...]:
    """What the user should know before the training."""
    from importlib.util import find_spec

    if not plan.request.tensorboard or find_spec("tensorboard") is not None:
        return plan.notes
    log = plan.work / f"mapper-{plan.name}.jsonl"
    missing = f'TensorBoard is not installed, the log is {log} alone; pip install "styleclip-rt[train]" brings it'
    return (*plan.notes, missing)


def table(result: MapperResult) -> str:
    """The closing table."""
    score, plan = result.score, result.plan
    identity = "no identity network" if score.identity is None else f"{score.identity:.3f}"
    space = "s" if plan.settings.kind == "style" else "w+"
    rows = {
        "prompt": f"{plan.name}: {plan.target!r}, compared with {plan.neutral!r}",
        "CLIP": f"{score.clip_before:.4f} -> {score.clip_after:.4f}, gain {score.clip_gain:+.4f}",
        "identity": identity,
        "drift": f"{score.drift:.4f} (mean |delta {space}|)",
        "seconds": f"{result.seconds:.1f}",
        "faces": f"{result.faces.origin}; tested on {len(result.faces.test)}",
        "sheet": str(result.sheet),
        "pack": str(result.pack),
        "next": f"styleclip-rt export --pack {result.pack} --prompt {plan.name}",
    }
    return closing_table(rows, result.faces.notes)
