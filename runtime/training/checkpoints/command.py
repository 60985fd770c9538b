"""`styleclip-rt pack`: public checkpoints in, a model pack out; what a pack holds, and whether it is sound."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ....engines.errors import InputError, PackError
from ...cli_common import json_option, print_json
from ..pack import Pack, load_pack

FILE = click.Path(path_type=Path)
SECONDS_BEFORE_BAR = 2.0


@click.group()
def pack() -> None:
    """Model packs: import public checkpoints, look at a pack, verify it.

    \b
    Examples:
      styleclip-rt pack import --generator stylegan2-ffhq-config-f.pt --out ffhq
      styleclip-rt pack info ffhq
    """


@pack.command("import")
@click.option("--generator", type=FILE, metavar="FILE", help="StyleGAN2: rosinality .pt, or NVIDIA .pkl.")
@click.option("--clip", metavar="FILE|NAME", help="CLIP: a file, or open_clip's name such as ViT-B-32/openai.")
@click.option("--clip-architecture", metavar="NAME", help="open_clip's architecture, where the file does not tell it.")
@click.option("--inverter", type=FILE, metavar="FILE", help="e4e or pSp.")
@click.option("--inverter-kind", type=click.Choice(["e4e", "psp"]), help="Which of them, where the file does not tell.")
@click.option("--identity", type=FILE, metavar="FILE", help="IR-SE50 (model_ir_se50.pth).")
@click.option("--mapper", "mappers", multiple=True, metavar="NAME=FILE", help="A latent mapper; may be repeated.")
@click.option("--directions", type=FILE, metavar="FILE", help="Channel directions: fs3.npy.")
@click.option("--statistics", metavar="FILE|compute[:N]", help="S_mean_std or S; or measured over N samples (100000).")
@click.option("--w-samples", type=FILE, metavar="FILE", help="W.npy: statistics computed from these w.")
@click.option("--sigma", type=click.Choice(["tf", "torch"]), help="Convention: to compute, or stated of a file.")
@click.option("--alignment", type=click.Choice(["ffhq", "none"]), help="How photos are cut before they are inverted.")
@click.option("--licence", "licences", multiple=True, metavar="COMPONENT=TEXT", help="Licence to record.")
@click.option("--allow-other-generator", is_flag=True, help="Take mappers and inverters made for another generator.")
@click.option("--pack", "base", metavar="NAME|DIR", help="Start from this pack, and add or replace.")
@click.option("--name", metavar="NAME", help="Name of the pack.  [default: the base's, else the folder's]")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, metavar="DIR", help="The pack.")
@click.option("--dry-run", is_flag=True, help="Say what each file is and what would be imported; write nothing.")
@json_option
def import_command(
    mappers: tuple[str, ...], licences: tuple[str, ...], as_json: bool, dry_run: bool, **options: Any
) -> None:
    """Import public checkpoints into a model pack. Files are read as data: nothing in them is run.

    What a file is, its content says, whatever its name. A pack may hold any part; `export` makes what the parts allow.

    \b
    Examples:
      styleclip-rt pack import --generator ffhq.pkl --clip ViT-B-32.pt --out ffhq
      styleclip-rt pack import --pack ffhq --directions fs3.npy --statistics S_mean_std --out ffhq
      styleclip-rt pack import --pack ffhq --mapper bobcut=bobcut.pt --out ffhq
    """
    from .importer import import_pack
    from .licences import read_licences
    from .preview import preview
    from .request import Request, jobs_of

    request = Request(**options, mappers=pairs(mappers), licences=read_licences(licences))
    if dry_run:
        emit(preview(request), as_json, preview_text)
        return
    with bar(sum(job.size for job in jobs_of(request)) or 1, "importing") as progress:
        report = import_pack(request, progress)
    record = {
        "pack": str(report.pack.path),
        "imported": {
            t.component: {"format": t.format, "licence": t.licence, "notes": list(t.notes)} for t in report.taken
        },
        "notes": list(report.notes),
    }
    emit(record, as_json, import_text)


@pack.command()
@click.argument("pack_name", metavar="NAME|DIR")
@json_option
def info(pack_name: str, as_json: bool) -> None:
    """What a pack holds: components, formats, licences, origins; what export will make, and what is missing.

    \b
    Examples:
      styleclip-rt pack info toyfaces
      styleclip-rt pack info ffhq --json
    """
    emit(describe(load_pack(pack_name)), as_json, info_text)


@pack.command()
@click.argument("pack_name", metavar="NAME|DIR")
@json_option
def verify(pack_name: str, as_json: bool) -> None:
    """Check hashes and shapes, build every network, and see that the parts fit each other.

    Ends with exit code 3 if anything is wrong, and names everything that is.

    \b
    Examples:
      styleclip-rt pack verify toyfaces
      styleclip-rt pack verify ffhq --json
    """
    from .checks import verify_pack

    opened = load_pack(pack_name)
    with bar(len(opened.components) or 1, "verifying") as progress:
        faults = verify_pack(opened, lambda name: progress(name, 1))
    record = {"pack": str(opened.path), "ok": not faults, "components": list(opened.components), "faults": faults}
    emit(record, as_json, verify_text)
    if faults:
        sys.exit(PackError.exit_code)


def pairs(options: tuple[str, ...]) -> dict[str, Path]:
    """NAME=FILE options as a table; InputError where one is of another form or a name comes twice."""
    table: dict[str, Path] = {}
    for option in options:
        name, sign, file = option.partition("=")
        if not sign or not name.strip() or not file:
            raise InputError(f"--mapper {option[:80]!r}; expected NAME=FILE such as bobcut=bobcut.pt")
        if name.strip() in table:
            raise InputError(f"--mapper {name.strip()!r} was given twice")
        table[name.strip()] = Path(file)
    return table


@contextmanager
def bar(total: int, label: str) -> Iterator[Callable[[str, int], None]]:
    """A progress bar on a terminal's stderr, after two seconds; yields (what is done, how much of the total)."""
    from tqdm import tqdm

    with tqdm(total=total, desc=label, delay=SECONDS_BEFORE_BAR, disable=None, leave=False, unit="") as shown:

        def progress(what: str, amount: int) -> None:
            shown.set_postfix_str(what, refresh=False)
            shown.update(amount)

        yield progress


def describe(opened: Pack) -> dict[str, Any]:
    """What `pack info` tells."""
    from ..needs import lacking

    components = {}
    for name, entry in opened.manifest["components"].items():
        kept = {key: entry.get(key) for key in ("bytes", "sha256", "licence", "source")}
        components[name] = {"file": entry.get("file"), **kept, "origin": entry.get("origin")}
    missing = lacking(opened.components, opened.mappers)
    return {
        "name": opened.name,
        "path": str(opened.path),
        "created": opened.manifest.get("created"),
        "components": components,
        "model": model_of(opened),
        "mappers": list(opened.mappers),
        "directions": list(opened.directions_named),
        "prompts": list(opened.prompts),
        "templates": len(opened.templates),
        "alignment": opened.alignment.get("kind", "none"),
        "graphs": [graph for graph, parts in missing.items() if not parts],
        "missing": {graph: parts for graph, parts in missing.items() if parts},
    }


def model_of(opened: Pack) -> dict[str, Any]:
    """Sizes of the model, and the convention of its statistics; of what there is."""
    model: dict[str, Any] = {}
    if opened.has("generator"):
        layout = opened.layout
        model |= {"resolution": layout.config.resolution, "num_ws": layout.num_ws, "w_dim": layout.config.w_dim}
        model |= {"style_channels": layout.style_channels}
    if opened.has("clip"):
        model["clip_embed_dim"] = opened.config("clip").get("embed_dim")
    if opened.has("statistics"):
        model["sigma"] = opened.config("statistics").get("convention")
    return model


def emit(record: dict[str, Any], as_json: bool, text: Callable[[dict[str, Any]], str]) -> None:
    """The record on stdout, as JSON or as text; notes of the text form on stderr."""
    if as_json:
        print_json(record)
        return
    click.echo(text(record))
    for component, taken in record.get("imported", {}).items():
        for note in taken["notes"]:
            click.echo(f"note: {component}: {note}", err=True)
    for note in record.get("notes", ()):
        click.echo(f"note: {note}", err=True)


def import_text(record: dict[str, Any]) -> str:
    """One line per component."""
    rows = [f"{name:<22} {taken['format']:<32} {taken['licence']}" for name, taken in record["imported"].items()]
    return "\n".join([*rows, f"pack: {record['pack']}"])


def preview_text(record: dict[str, Any]) -> str:
    """One line per file."""
    rows = [
        f"{job['option']:<12} {job['file'] or '-':<32} {job['format']:<32} {job['sha256'][:12]}"
        for job in record["files"]
    ]
    return "\n".join(
        [*rows, f"would be written: {record['out']} ({', '.join(record['components'])})", *missing_rows(record)]
    )


def missing_rows(record: dict[str, Any]) -> list[str]:
    """What export makes, and what each other graph needs."""
    rows = [f"export makes: {', '.join(record['graphs']) or 'nothing'}"]
    return rows + [f"  {graph} needs {', '.join(parts)}" for graph, parts in record["missing"].items()]


def info_text(record: dict[str, Any]) -> str:
    """The pack as a table."""
    rows = [f"{record['name']}  {record['path']}", ""]
    for name, entry in record["components"].items():
        origin = entry["origin"] or {}
        size = f"{(entry['bytes'] or 0) / 1e6:.1f} MB"
        rows.append(f"{name:<22} {size:>9}  {origin.get('format') or entry['source'] or '-':<32} {entry['licence']}")
        if origin.get("sha256"):
            rows.append(f"{'':<34}from {origin.get('file')}, SHA-256 {origin['sha256']}")
    sizes = ", ".join(f"{key} {value}" for key, value in record["model"].items())
    rows += ["", *([sizes] if sizes else []), f"alignment: {record['alignment']}"]
    rows += [f"mappers: {', '.join(record['mappers'])}"] if record["mappers"] else []
    rows += [f"directions: {', '.join(record['directions'])}"] if record["directions"] else []
    rows += [f"prompts: {', '.join(record['prompts'])}"] if record["prompts"] else []
    return "\n".join([*rows, *missing_rows(record)])


def verify_text(record: dict[str, Any]) -> str:
    """One line per component, and what is wrong."""
    faults = record["faults"]
    rows = [f"{name:<22} {faults.get(name, 'ok')}" for name in record["components"]]
    rows += [f"{'the parts together':<22} {faults['pack']}"] if "pack" in faults else []
    return "\n".join([*rows, "sound" if record["ok"] else f"{len(faults)} fault(s)"])
