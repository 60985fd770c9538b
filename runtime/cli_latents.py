"""`styleclip-rt invert` and `styleclip-rt generate`."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..engines.errors import InputError
from .cli_common import bundle_options, engine_record, json_option, open_editor, print_json, print_notes
from .cli_photo import frame_record, framing_of, photo_options, take_photo_options
from .store import input_path

if TYPE_CHECKING:
    from PIL import Image

    from .editor import F32, Editor

REFINE = "styleclip_rt.runtime.training.refine"  # a string: it needs torch, and is of a layer above this one

INVERT_EPILOG = """\b
Examples:
  styleclip-rt invert portrait.jpg --out portrait.npz
  styleclip-rt invert portrait.jpg --preview inverted.png --json
  styleclip-rt invert portrait.jpg --refine 100 --pack my-pack
"""

GENERATE_EPILOG = """\b
Examples:
  styleclip-rt generate --seed 1 --count 16 --out faces.png
  styleclip-rt generate --seed 7 --count 4 --psi 1 --out faces/
"""


@click.command(epilog=INVERT_EPILOG)
@click.argument("image", metavar="IMG")
@click.option("--out", metavar="FILE.npz", help="Latents file. Default: IMG-latents.npz in this folder.")
@click.option("--preview", metavar="FILE.png", help="Also write the inverted picture.")
@click.option(
    "--refine",
    metavar="STEPS",
    type=click.IntRange(0, 10_000),
    default=0,
    help="Then move w closer to the photo, by so many steps of optimisation; 100 is plenty. Needs torch.",
)
@click.option("--pack", metavar="NAME|DIR", help="Pack to refine with.  [default: the one of the bundle's name]")
@photo_options
@bundle_options
@json_option
def invert(
    image: str, out: str | None, preview: str | None, refine: int, pack: str | None, as_json: bool, **options: Any
) -> None:
    """Invert the photo IMG (or `sample`, which ships) to latents w [1, L, W], which `edit` accepts as a photo."""
    from PIL import ImageOps

    from .images import psnr_db, write_format, write_image
    from .latents import save_latents

    target = Path(out or f"{Path(image).stem}-latents.npz")
    if preview:
        write_format(preview)
    if pack and not refine:
        raise InputError("--pack names what --refine works with; give --refine STEPS, or leave --pack out")
    taken = take_photo_options(options)
    with open_editor(**options) as editor:
        frame = editor.frame(input_path(image), framing_of(editor, taken))
        w = editor.invert(frame.crop)
        inverted = drawn(editor, w)
        photo = ImageOps.pad(frame.crop, inverted.size)
        psnr, refined = round(psnr_db(inverted, photo), 2), None
        if refine:
            made_from = editor.bundle.manifest.get("pack") or {}
            w, refined = importlib.import_module(REFINE).refine_photo(pack, made_from, frame.crop, w, inverted, refine)
            inverted = drawn(editor, w)
            refined["psnr_db_before"], psnr = psnr, round(psnr_db(inverted, photo), 2)
        save_latents(target, w, editor.model.name)
    if preview:
        write_image(inverted, preview)
    notes = [*frame.notes, *(refined.pop("notes") if refined else ())]
    record = {"out": str(target), "preview": preview, "w": list(w.shape), "psnr_db": psnr, **frame_record(frame)}
    record |= {"refine": refined, "engine": engine_record(editor), "notes": notes}
    if as_json:
        print_json(record)
        return
    print_notes(record)
    click.echo(f"{target}  w {list(w.shape)}, {quality(psnr, refined)}")


def drawn(editor: Editor, w: F32) -> Image.Image:
    """The picture of w [1, L, W]."""
    from .images import image_from_u8

    return image_from_u8(editor.synthesize(editor.styles(w))[0])


def quality(psnr: float, refined: dict[str, Any] | None) -> str:
    """How well a photo was inverted, in words."""
    if refined is None:
        return f"inverted at {psnr} dB"
    return f"inverted at {refined['psnr_db_before']} dB, {psnr} dB after {refined['steps']} steps"


@click.command(epilog=GENERATE_EPILOG)
@click.option(
    "--seed",
    metavar="N",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="First seed; face i has seed + i.",
)
@click.option(
    "--count", metavar="N", type=click.IntRange(1, 400), default=16, show_default=True, help="Number of faces."
)
@click.option(
    "--psi",
    metavar="0..1",
    type=click.FloatRange(-2, 2),
    default=None,
    help="Truncation: 0 the mean face, 1 the full variety.  [default: the model's own]",
)
@click.option(
    "--out",
    metavar="FILE|DIR/",
    default="generated.png",
    show_default=True,
    help="A sheet, or a folder for one file per seed.",
)
@bundle_options
@json_option
def generate(seed: int, count: int, psi: float | None, out: str, as_json: bool, **options: Any) -> None:
    """Draw random faces. A seed gives the same face whatever the count."""
    from .grids import synthesize_all
    from .images import write_format, write_image
    from .sheets import tile

    folder = out.endswith(("/", os.sep)) or Path(out).is_dir()
    if not folder:
        write_format(out)
    seeds = [(seed + i) % 2**32 for i in range(count)]
    with open_editor(**options) as editor:
        psi = editor.model.psi if psi is None else psi
        pictures = synthesize_all(editor, editor.styles(editor.sample(seeds, psi)))
    if folder:
        files = [write_image(p, Path(out) / f"seed{s:06d}.png") for s, p in zip(seeds, pictures, strict=True)]
    else:
        whole = pictures[0] if count == 1 else tile(pictures, [str(s) for s in seeds], f"seeds {seed}+, psi {psi:g}")
        files = [write_image(whole, out)]
    record = {"out": [str(file) for file in files], "seeds": seeds, "psi": psi, "engine": engine_record(editor)}
    if as_json:
        print_json(record)
        return
    print_notes(record)
    click.echo(f"{out}  {count} face{'s' * (count > 1)}, seed {seed}, psi {psi:g}")
