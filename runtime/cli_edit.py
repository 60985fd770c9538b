"""`styleclip-rt edit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..engines.errors import InputError
from .cli_common import (
    Values,
    bundle_options,
    complete_direction,
    complete_prompt,
    engine_record,
    json_option,
    open_editor,
    print_json,
    print_notes,
)
from .cli_order import ORDER, OrderedCommand, paired
from .cli_photo import frame_record, framing_of, is_asked, photo_options, photo_settings, take_photo_options
from .model import Direction
from .store import input_path

if TYPE_CHECKING:
    from .align_frame import Frame
    from .editor import Editor, EditResult
    from .grids import Grid
    from .steps import Step

HEADS = ("prompts", "directions")  # the options that others follow
REQUEST = (*HEADS, "alphas", "betas", "neutrals", "resolutions", "method")

EPILOG = """\b
Examples:
  styleclip-rt edit portrait.jpg --prompt "purple hair" --alpha 3 --beta 0.12 --out purple.png
  styleclip-rt edit portrait.jpg --prompt "purple hair" --alpha 3 --prompt glasses --alpha 2
  styleclip-rt edit portrait.jpg --prompt bob-cut --alpha -3..6 --beta 0.1,0.2,0.3 --grid
  styleclip-rt edit portrait.jpg --direction ganspace-0 --alpha 2 --prompt glasses --alpha 3
  styleclip-rt edit group.jpg --prompt glasses --landmarks points.json --face 2 --paste --out group-glasses.png
"""


@click.command(cls=OrderedCommand, epilog=EPILOG)
@click.argument("image", metavar="IMG")
@click.option(
    "--prompt",
    "prompts",
    metavar="TEXT",
    multiple=True,
    shell_complete=complete_prompt,
    help="Target: a name of the bundle or free text.",
)
@click.option(
    "--direction",
    "directions",
    metavar="NAME",
    multiple=True,
    shell_complete=complete_direction,
    help="A named direction of the bundle, alone or with prompts; see `info`.",
)
@click.option(
    "--alpha",
    "alphas",
    metavar="STRENGTH|LO..HI",
    type=Values(),
    multiple=True,
    help="Strength in units of sigma, -100 to 100; 0 changes nothing. A range makes a sheet.",
)
@click.option(
    "--beta",
    "betas",
    metavar="0..1|auto",
    type=Values("auto"),
    multiple=True,
    help="Threshold on the relevance of a channel; higher moves fewer. A list makes a sheet.",
)
@click.option(
    "--neutral", "neutrals", metavar="TEXT", multiple=True, help="What the target is compared with, e.g. 'a face'."
)
@click.option(
    "--resolutions",
    metavar="RANGE|all",
    multiple=True,
    help="Resolutions that may move: 32- (32 px and up), 8-16, -8. Low ones hold shape, high ones colour.",
)
@click.option("--method", type=click.Choice(["global", "mapper"]), default="global", show_default=True)
@click.option("--out", metavar="FILE", help="Output picture. Default: IMG-PROMPT.png in this folder.")
@click.option("--grid", is_flag=True, help="Write a labelled sheet: alpha x beta, or prompts x alpha.")
@click.option("--paste", is_flag=True, help="Write the whole photo, with what the edit changed pasted into it.")
@click.option("--paste-crop", is_flag=True, help="The same with the whole crop pasted, its border blended.")
@photo_options
@bundle_options
@json_option
@click.pass_context
def edit(ctx: click.Context, /, image: str, out: str | None, grid: bool, as_json: bool, **options: Any) -> None:
    """Edit the photo IMG, or a latents file of `invert` or `optimize`, towards a text.

    The IMG `sample` is a portrait that ships.

    Several --prompt and --direction combine in one edit: --alpha, --beta, --neutral and --resolutions follow the one
    they belong to, and a value that follows several serves them all. What is not given is taken from the bundle's
    recommended settings.
    """
    request = {name: options.pop(name) for name in REQUEST}
    request["order"] = ctx.meta.get(ORDER, [])
    request["photo"] = take_photo_options(options)
    paste, paste_crop = options.pop("paste"), options.pop("paste_crop")
    request["paste"] = "crop" if paste_crop else "changed" if paste else False
    sheet = grid or any(len(values) > 1 for name in ("alphas", "betas") for values in request[name])
    if sheet and request["paste"]:
        raise InputError("a sheet shows crops; --paste goes with one --alpha and one --beta")
    with open_editor(**options) as editor:
        target = _output(editor, image, out, (*request["prompts"], *request["directions"]), sheet)
        image = input_path(image)
        record = (_sheet if sheet else _single)(editor, image, target, request, as_json)
        record["engine"] = engine_record(editor)
    _report(record, as_json)


def _single(editor: Editor, image: str, out: Path, request: dict[str, Any], with_identity: bool) -> dict[str, Any]:
    """One picture, of one prompt or direction or several combined."""
    from .images import write_image
    from .latents import is_latents, load_face

    settings = _settings(request)
    if is_latents(image):
        _check_latents_options(image, request)
        result = editor.edit_latents(load_face(image, editor), **settings)
    else:
        place = {"paste": request["paste"], **photo_settings(request["photo"])}
        result = editor.edit(image, identity=with_identity, **settings, **place)
    write_image(result.pasted or result.image, out)
    return _record(editor, result, out, request)


def _settings(request: dict[str, Any]) -> dict[str, Any]:
    """What `Editor.edit` is given: each value with its prompt or direction, prompts first."""
    order, prompts, directions = request["order"], request["prompts"], request["directions"]
    count = len(prompts) + len(directions)
    heads = [name for name in order if name in HEADS]
    places = sorted(range(len(heads)), key=lambda i: HEADS.index(heads[i])) or [0]  # stable: prompts, then directions
    alphas, betas, ranges = (
        paired(order, name, request[name], count, HEADS) for name in ("alphas", "betas", "resolutions")
    )
    alpha, beta = ([_first(values[i]) for i in places] for values in (alphas, betas))
    resolutions = [ranges[i] for i in places]
    neutral = paired(order, "neutrals", request["neutrals"], len(prompts)) if prompts else list(request["neutrals"])
    return {
        "prompt": prompts or None,
        "direction": directions or None,
        "alpha": alpha if count else alpha[0],
        "beta": beta if count else beta[0],
        "neutral": neutral if prompts else next(iter(neutral), None),
        "resolutions": resolutions if count else resolutions[0],
        "method": request["method"],
    }


def _first(values: tuple[Any, ...] | None) -> Any:
    return values[0] if values else None


def _sheet(editor: Editor, image: str, out: Path, request: dict[str, Any], _: bool) -> dict[str, Any]:
    """A contact sheet: alpha x beta of one prompt or direction, or several of them x alpha."""
    from .grids import DEFAULT_ALPHAS, beta_grid, prompt_grid
    from .images import write_image
    from .latents import is_latents, load_face

    prompts, directions = _listed(editor, request["prompts"]), list(request["directions"])
    if len(request["alphas"]) > 1:
        raise InputError("a sheet takes one --alpha, a value or a range such as -3..6, for all its rows")
    alphas = request["alphas"][0] if request["alphas"] else DEFAULT_ALPHAS
    betas = [beta for values in request["betas"] for beta in values]
    frame = None
    if is_latents(image):
        _check_latents_options(image, request)
        face = editor.checked_face(load_face(image, editor), request["method"])
    else:
        frame = editor.frame(image, framing_of(editor, request["photo"]))
        face = editor.invert(frame.crop)
    neutrals, resolutions = _serving(request["neutrals"]), _serving(request["resolutions"])
    if request["method"] == "global" and len(prompts) + len(directions) <= 1 and not isinstance(neutrals, list):
        one = {"prompt": next(iter(prompts), None), "direction": next(iter(directions), None)}
        grid = beta_grid(
            editor, face, alphas=alphas, betas=betas or None, neutral=neutrals, resolutions=resolutions, **one
        )
    else:
        names = (prompts or None, alphas, _serving(betas), neutrals, request["method"], directions or None, resolutions)
        grid = prompt_grid(editor, face, *names)
    write_image(grid.image, out)
    return _grid_record(editor, grid, out, request["method"]) | _placed(frame)


def _check_latents_options(image: str, request: dict[str, Any]) -> None:
    """InputError for options about a photo where the input is a latents file."""
    if request["paste"] or is_asked(request["photo"]):
        raise InputError(f"{image} holds latents; --paste, --landmarks, --face and --no-align go with a photo")


def _listed(editor: Editor, prompts: tuple[str, ...]) -> list[str]:
    """Prompts of a sheet; "purple-hair,glasses" is a list where every piece is a name of the bundle."""
    from .prompts import is_named

    listed: list[str] = []
    for text in prompts:
        pieces = [piece.strip() for piece in text.split(",")]
        listed += pieces if all(is_named(editor.model, piece) for piece in pieces) else [text]
    return listed


def _serving(values: Any) -> Any:
    """One value for all rows, a list for one each, None for the recommended ones."""
    return None if not values else values[0] if len(values) == 1 else list(values)


def _output(editor: Editor, image: str, out: str | None, prompts: tuple[str, ...], sheet: bool) -> Path:
    """The output path, refused before any work if it cannot be written or would replace the input."""
    from .images import write_format
    from .prompts import slug

    names = [slug(text)[:60] for text in prompts] or [slug(editor.model.default_prompt or "edit")]
    name = "-".join([Path(image).stem, *names[:4], *(["grid"] if sheet else [])])
    target = Path(out) if out else Path(f"{name}.png")
    write_format(target)
    if target.exists() and Path(image).exists() and target.samefile(image):
        raise InputError(f"the output {target} is the input; give another --out")
    return target


def _record(editor: Editor, result: EditResult, out: Path, request: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a single edit."""
    prompts = [
        {**_named(s), "neutral": s.prompt.neutral, "alpha": s.alpha, "beta": s.beta, "resolutions": s.resolutions}
        for s in result.steps
    ]
    return {
        "out": str(out),
        "method": request["method"],
        "prompts": prompts,
        "channels": len(result.channels),
        "size": list((result.pasted or result.image).size),
        "paste": request["paste"] or None,
        **frame_record(result.frame),
        "identity": None if result.identity is None else round(result.identity, 4),
        "bundle": _bundle(editor),
        "timings_ms": result.timings,
        "notes": list(result.notes),
    }


def _named(step: Step) -> dict[str, Any]:
    """What a step of an edit is, in JSON."""
    kind = "direction" if isinstance(step.prompt, Direction) else "prompt"
    return {"kind": kind, "name": step.prompt.name, "target": step.prompt.target}


def _grid_record(editor: Editor, grid: Grid, out: Path, method: str) -> dict[str, Any]:
    """The JSON of a sheet."""
    rows = [
        {**_named(row.step), "beta": row.step.beta, "resolutions": row.step.resolutions, "channels": row.channels}
        for row in grid.rows
    ]
    size = list(grid.image.size)
    return {
        "out": str(out),
        "method": method,
        "alphas": grid.alphas,
        "rows": rows,
        "size": size,
        "bundle": _bundle(editor),
    }


def _placed(frame: Frame | None) -> dict[str, Any]:
    """Where in the photo a sheet's faces lie, and what the user should know of it."""
    return {**frame_record(frame), "notes": list(frame.notes) if frame else []}


def _bundle(editor: Editor) -> dict[str, Any]:
    origin = editor.origin
    return {"name": editor.model.name, "path": str(editor.bundle.path), "origin": origin.origin if origin else "path"}


def _report(record: dict[str, Any], as_json: bool) -> None:
    """The result on stdout, the engine and notes on stderr."""
    if as_json:
        print_json(record)
        return
    print_notes(record)
    if "rows" in record:
        click.echo(f"{record['out']}  sheet of {len(record['rows'])} x {len(record['alphas'])}")
        return
    terms = [_term(prompt) for prompt in record["prompts"]]
    click.echo(
        f"{record['out']}  {' + '.join(terms)}, {record['channels']} channels, {record['timings_ms']['total']:.0f} ms"
    )


def _term(prompt: dict[str, Any]) -> str:
    beta = "" if prompt["beta"] is None else f" beta {prompt['beta']:g}"
    resolutions = f" resolutions {prompt['resolutions']}" if prompt["resolutions"] else ""
    name = prompt["name"] if prompt["kind"] == "direction" else prompt["target"]
    return f"{name} (alpha {prompt['alpha']:g}{beta}{resolutions})"
