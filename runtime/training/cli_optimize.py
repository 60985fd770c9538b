"""`styleclip-rt optimize`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...engines.errors import InputError
from ..cli_common import F, json_option, print_json
from ..cli_photo import is_asked, photo_options, photo_settings, take_photo_options
from .memory import keep_freed_memory

if TYPE_CHECKING:
    from .inputs import Inputs
    from .optimize import Progress
    from .optimize_output import Files
    from .optimize_settings import OptimizeSettings
    from .pack import Pack

EPILOG = """\b
Examples:
  styleclip-rt optimize portrait.jpg --prompt "purple hair" --out purple.png
  styleclip-rt optimize a.jpg b.jpg faces.pt --prompt glasses --space s --save-every 20 --out glasses/
  styleclip-rt optimize --free --prompt "a smiling face with a hat" --out free.png
  styleclip-rt optimize portrait.jpg --prompt beard --preset published --lambda-id 0.005 --steps 200
"""
WEIGHT = click.FloatRange(0, 1e6)
SETTINGS = (
    click.option("--space", type=click.Choice(["w+", "w", "s"]), help="w+, one offset for its layers, or styles."),
    click.option("--channels", type=click.Choice(["conv", "all"]), help="In style space: toRGB channels too, or not."),
    click.option("--steps", metavar="COUNT", type=click.IntRange(1, 1_000_000), help="Steps of Adam."),
    click.option("--lr", metavar="RATE", type=click.FloatRange(0, 1e3, min_open=True), help="Largest learning rate."),
    click.option("--lambda-clip", metavar="WEIGHT", type=WEIGHT, help="Of 1 - cos(picture, text)."),
    click.option("--lambda-directional", metavar="WEIGHT", type=WEIGHT, help="Of 1 - cos(change, change of text)."),
    click.option("--lambda-l2", metavar="WEIGHT", type=WEIGHT, help="Of the sum of squared changes of the latent."),
    click.option("--lambda-id", metavar="WEIGHT", type=WEIGHT, help="Of 1 - cos(identity, identity of the start)."),
    click.option("--whiten/--no-whiten", default=None, help="Descend where the generator's w has unit variance."),
    click.option("--warm", metavar="FACES", type=click.IntRange(0, 65536), help="Random faces that show a first step."),
    click.option("--front-end", type=click.Choice(["raw", "clip"]), help="How the loss shows pictures to CLIP."),
    click.option("--templates/--no-templates", default=None, help="Embed the text in the pack's sentences, or alone."),
    click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), help="Of the networks (autocast)."),
    click.option("--patience", metavar="STEPS", type=click.IntRange(0), help="Stop a face that long without progress."),
    click.option("--tolerance", metavar="LOSS", type=WEIGHT, help="How far the loss must fall to count as progress."),
    click.option("--returned", type=click.Choice(["last", "best"]), help="Which step is the result."),
    click.option("--batch", metavar="FACES", type=click.IntRange(1, 4096), help="Faces that are optimised at once."),
)  # fmt: skip
NAMES = (
    "space", "channels", "steps", "lr", "lambda_clip", "lambda_directional", "lambda_l2", "lambda_id", "whiten", "warm",
    "front_end", "templates", "precision", "patience", "tolerance", "returned", "batch",
)  # fmt: skip


def settings_options(command: F) -> F:
    """One option per field of `OptimizeSettings`; what is not given is the preset's."""
    for option in reversed(SETTINGS):
        command = option(command)
    return command


@click.command("optimize", epilog=EPILOG)
@click.argument("images", metavar="[IMG]...", nargs=-1)
@click.option("--prompt", metavar="TEXT", required=True, help="Target: a name of the pack or free text.")
@click.option("--neutral", metavar="TEXT", help="What --lambda-directional compares the target with.")
@click.option("--free", is_flag=True, help="Generate from the text alone, from the mean face or from --seed.")
@click.option("--seed", metavar="N", type=click.IntRange(0, 2**32 - 1), help="Start from random faces; the first seed.")
@click.option("--count", metavar="N", type=click.IntRange(1, 400), default=1, show_default=True, help="How many seeds.")
@click.option("--psi", metavar="0..1", type=click.FloatRange(-2, 2), help="Truncation of random faces.")
@click.option("--pack", "pack_name", metavar="NAME|DIR", default="toyfaces", show_default=True, help="Model pack.")
@click.option("--preset", metavar="NAME", help="Where settings start: published, or small. Default: by the pack.")
@settings_options
@photo_options
@click.option("--save-every", metavar="STEPS", type=click.IntRange(0), default=0, help="Also write a strip of the way.")
@click.option("--out", metavar="FILE|DIR/", help="Output picture, or a folder. Default: named after face and prompt.")
@click.option("--work", metavar="DIR", help="Checkpoints, kept. Default: OUT-work, removed in the end.")
@click.option("--threads", metavar="COUNT", type=click.IntRange(1, 1024), help="Threads for PyTorch.")
@click.option("--dry-run", is_flag=True, help="Show the settings and the faces, and stop.")
@json_option
def optimize(images: tuple[str, ...], prompt: str, pack_name: str, preset: str | None, **options: Any) -> None:
    """Edit each IMG (photo, latents file, or `sample`) towards a text by optimising its latent.

    Slower than `edit` and not bound to a table of directions. Writes the picture and, beside it, its latents for
    `edit`, JSON with every loss, and a strip where asked for. A run that was killed goes on where it was: repeat the
    command.
    """
    import torch

    from .optimize_output import Files, check_strip
    from .optimize_settings import settings_for
    from .pack import load_pack

    keep_freed_memory()

    changes = {name: options.pop(name) for name in NAMES}
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    pack = load_pack(pack_name)
    settings = settings_for(pack, preset, options["free"], **changes)
    check_strip(settings, options["save_every"])
    inputs = _inputs(pack, images, options)
    files = Files(options["out"], inputs.names, prompt, settings.space, bool(options["save_every"])).check(images)
    record = (_planned if options["dry_run"] else _optimized)(pack, inputs, prompt, settings, files, options)
    _show(record, options["as_json"])


def _inputs(pack: Pack, images: tuple[str, ...], options: dict[str, Any]) -> Inputs:
    """Where the faces start."""
    from .inputs import Inputs, mean_face, read_inputs

    photo = take_photo_options(options)
    seed, count, psi = options["seed"], options["count"], options["psi"]
    if (count > 1 or psi is not None) and seed is None:
        raise InputError("--count and --psi are about random faces; give --seed N with them")
    if options["free"] and images:
        raise InputError("--free starts from the mean face, or from --seed N; leave out IMG, or leave out --free")
    if is_asked(photo) and not images:
        raise InputError("--landmarks, --landmark-model, --face and --no-align go with a photo; give IMG")
    if options["free"] and seed is None:
        return Inputs(mean_face(pack), ("mean-face",), (None,))
    if not images and seed is None:
        raise InputError("no face to start from; give IMG (a photo, a latents file, or sample), --seed N, or --free")
    seeds = [] if seed is None else [(seed + i) % 2**32 for i in range(count)]
    return read_inputs(pack, images, seeds, psi, **photo_settings(photo))


def _planned(
    pack: Pack, inputs: Inputs, prompt: str, settings: OptimizeSettings, files: Files, options: dict[str, Any]
) -> dict[str, Any]:
    """What a run would do."""
    from ..prompts import resolve
    from .inputs import pack_model

    found = resolve(pack_model(pack), prompt, options["neutral"])
    return {
        "pack": pack.name,
        "prompt": {"name": found.name, "target": found.target, "neutral": found.neutral},
        "faces": [{"name": name, "image": str(path)} for name, path in zip(inputs.names, files.pictures, strict=True)],
        "settings": settings.to_dict(),
        "work": str(options["work"] or files.work),
        "notes": list(inputs.notes),
    }


def _optimized(
    pack: Pack, inputs: Inputs, prompt: str, settings: OptimizeSettings, files: Files, options: dict[str, Any]
) -> dict[str, Any]:
    """The run; its record."""
    from . import optimize_output as output
    from .optimize import Saving, optimize
    from .optimize_state import discard

    began = time.monotonic()
    work = Path(options["work"]) if options["work"] else files.work
    saving = Saving(work, restart=options["work"] is None)
    every, neutral = options["save_every"], options["neutral"]
    with _bar() as progress:
        results = optimize(
            pack, inputs, prompt, settings, neutral=neutral, save_every=every, saving=saving, progress=progress
        )
    faces = output.write_all(pack, inputs, results, files)
    record = {
        "out": str(files.out),
        "pack": pack.name,
        "prompt": output.prompt_record(results[0]),
        "faces": faces,
        "settings": settings.to_dict(),
        "sheet": str(files.sheet) if files.sheet else None,
        "seconds": round(time.monotonic() - began, 3),
        "notes": list(results[0].notes),
    }
    if files.run:
        output.write_json(files.run, record)
    if options["work"] is None:
        discard(work)
    return record


@contextmanager
def _bar() -> Iterator[Progress]:
    """A bar on stderr for runs of more than two seconds."""
    from tqdm import tqdm

    with tqdm(desc="optimize", unit="step", delay=2, mininterval=1) as bar:

        def progress(done: int, total: int, loss: float) -> None:
            bar.total = total
            bar.set_postfix({"loss": f"{loss:.4f}"}, refresh=False)
            bar.update(done - bar.n)

        yield progress


def _show(record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(record)
        return
    for note in record["notes"]:
        click.echo(f"note: {note}", err=True)
    if "out" not in record:
        settings = ", ".join(f"{name} {value}" for name, value in record["settings"].items())
        click.echo(f"{len(record['faces'])} faces of {record['pack']}, {record['prompt']['target']!r}: {settings}")
    for face in record["faces"]:
        click.echo(f"{face['image']}  {_line(face)}" if "losses" in face else face["image"])
    if record.get("sheet"):
        click.echo(f"{record['sheet']}  sheet of {len(record['faces'])} faces")


def _line(face: dict[str, Any]) -> str:
    same = "" if face["identity"] is None else f", identity {face['identity']:.2f}"
    loss = f"loss {face['losses_before']['loss']:.3f} to {face['losses']['loss']:.3f}"
    score = f"CLIP score {face['clip_score_before']:.3f} to {face['clip_score']:.3f}"
    return f"{loss}, {score}{same}, {face['steps']} steps, {face['seconds']:.1f} s"
