"""`styleclip-rt evaluate`: the methods side by side, and the settings that a pack should recommend."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..engines.errors import InputError
from ..runtime.cli_common import json_option, print_json
from .command import Words

if TYPE_CHECKING:
    from ..runtime.model import Prompt
    from ..runtime.training.outcomes import ClipScorer
    from ..runtime.training.pack import Pack
    from ..runtime.training.subject import Faces, Subject
    from .evaluate import Report
    from .evaluate_methods import Ways

PHOTOS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
METHODS = ("global", "mapper", "optimize", "direction")
SELECTION_SEED = 1_000_000  # the faces that settings are chosen on; reports count from --seed
EPILOG = """\b
Examples:
  styleclip-rt evaluate --prompt glasses --faces 8 --methods global,mapper --out report
  styleclip-rt evaluate --pack my-pack --prompt glasses --direction ganspace-0 --alpha 2 --alpha -2 --out report
  styleclip-rt evaluate --pack my-pack --recommend --neutral "a person" --out report --out-pack my-pack-2
"""


@click.command("evaluate", epilog=EPILOG)
@click.option("--pack", "pack_name", default="toyfaces", show_default=True, metavar="NAME|DIR", help="The model pack.")
@click.option("--prompt", "asked", multiple=True, metavar="NAME|TEXT", help="Repeat for several. Default: all named.")
@click.option("--methods", type=Words(METHODS), default="global,mapper,optimize", show_default=True,
              help="Some of global, mapper, optimize, direction (the pack's named directions).")  # fmt: skip
@click.option("--direction", "directions", multiple=True, metavar="NAME",
              help="Score this named direction of the pack; may be repeated. By method alone: all.")  # fmt: skip
@click.option("--alpha", "alphas", multiple=True, type=click.FloatRange(-100, 100), metavar="STRENGTH",
              help="Strength of the named directions; may be repeated. Default: each one's own.")  # fmt: skip
@click.option("--preset", "presets", multiple=True, metavar="NAME", default=("default",), show_default=True,
              help="Of optimize: default (that of the pack), published or small; may be repeated.")  # fmt: skip
@click.option("--optimize-faces", type=click.IntRange(1), metavar="COUNT",
              help="Optimise the first so many faces alone. Default: all.")  # fmt: skip
@click.option("--faces", type=click.IntRange(1, 10_000), default=32, show_default=True, metavar="COUNT",
              help="Random faces; those that lack a prompt's target are edited.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 900_000), default=0, show_default=True, metavar="N",
              help="First seed of the random faces, as for `generate`.")  # fmt: skip
@click.option("--photos", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR",
              help="Take the photos of this folder, inverted by the pack, in place of random faces.")  # fmt: skip
@click.option("--latents", multiple=True, type=click.Path(), metavar="FILE", help="Take the faces of latents files.")
@click.option("--curves/--no-curves", default=True, help="With the trade-off over alpha and beta, or without.")
@click.option("--times", type=click.Choice(["none", "pictures", "all"]), default="pictures", show_default=True,
              help="Time each method in turns; all: a mapper's training and the table as well.")  # fmt: skip
@click.option("--recommend", is_flag=True, help="Choose each prompt's settings on other random faces first.")
@click.option("--neutral", "neutrals", multiple=True, metavar="TEXT", help="A neutral text to try (--recommend).")
@click.option("--selection-faces", type=click.IntRange(8, 10_000), default=128, show_default=True, metavar="COUNT",
              help="Random faces that --recommend chooses on.")  # fmt: skip
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, metavar="DIR",
              help="Folder of the tables.")  # fmt: skip
@click.option("--figures", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="Folder of the sheet and the plot. Default: that of the tables.")  # fmt: skip
@click.option("--out-pack", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="With --recommend: the pack that gets the settings. Default: --pack itself.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1, 1024), metavar="COUNT", help="Threads for PyTorch.")
@click.option("--dry-run", is_flag=True, help="Say what would be compared; compare nothing.")
@json_option
def evaluate(**given: Any) -> None:
    """Compare the editing methods of a pack on the same faces and prompts.

    Writes tables (CSV, JSON), a contact sheet, and a plot of success against what else changed over alpha and beta.
    Success is scored by the pack's judge where it has one, else by its own CLIP. With --recommend, the settings that do
    best on other faces are written into the pack, where `export` and `edit` find them.
    """
    from ..runtime.training.pack import load_pack
    from ..runtime.training.publish import destination
    from .evaluate_methods import prompts_of

    pack = load_pack(given["pack_name"])
    given["ways"] = _ways(pack, given)
    if given["neutrals"] and not given["recommend"]:
        raise click.UsageError("--neutral gives candidates to --recommend, which is not there")
    target = destination(pack, given["out_pack"]) if given["recommend"] else None
    prompts = prompts_of(pack, given["asked"])
    if given["dry_run"]:
        click.echo(_plan(pack, prompts, given, target))
        return
    _run(pack, prompts, given)


def _ways(pack: Pack, given: dict[str, Any]) -> Ways:
    """What is compared; InputError for a direction that the pack lacks, usage errors for options that nothing heeds."""
    from ..runtime.training.named import read
    from ..runtime.training.optimize_settings import settings_for
    from .evaluate_methods import PACKS_OWN, Ways

    methods = tuple(m for m in METHODS if m in given["methods"] or (m == "direction" and given["directions"]))
    if given["alphas"] and "direction" not in methods:
        raise click.UsageError("--alpha is the strength of named directions; give --direction NAME with it")
    for name in given["directions"]:
        read(pack, name)
    for name in given["presets"]:
        settings_for(pack, None if name == PACKS_OWN else name)
    presets, directions, alphas = (tuple(dict.fromkeys(given[key])) for key in ("presets", "directions", "alphas"))
    return Ways(methods, presets, directions, alphas, given["optimize_faces"])


def _plan(pack: Pack, prompts: list[Prompt], given: dict[str, Any], target: Path | None) -> str:
    """What a run would do, in words."""
    lines = [f"pack: {pack.name}", f"methods: {', '.join(given['ways'].methods)}"]
    lines += [f"prompts: {', '.join(prompt.name for prompt in prompts)}", f"faces: {_face_words(given)}"]
    lines += [f"settings go into: {target}"] if target else []
    return "\n".join([*lines, f"tables: {given['out']}"])


def _face_words(given: dict[str, Any]) -> str:
    if sources := _sources(given):
        return f"{len(sources)} files"
    return f"{given['faces']} random ones from seed {given['seed']}"


def _sources(given: dict[str, Any]) -> list[str]:
    """Photos and latents files; InputError for a folder without photos."""
    photos = sorted(p for p in given["photos"].iterdir() if p.suffix.lower() in PHOTOS) if given["photos"] else []
    if given["photos"] and not photos:
        raise InputError(f"{given['photos']} holds no photo; expected files such as {', '.join(sorted(PHOTOS)[:3])}")
    return [*map(str, photos), *given["latents"]]


def _run(pack: Pack, prompts: list[Prompt], given: dict[str, Any]) -> None:
    """Everything: faces, recommendation, comparison, files, and a summary."""
    import torch

    from ..runtime.training.inputs import read_inputs
    from ..runtime.training.subject import Subject
    from .evaluate_figures import record, write_report
    from .evaluate_methods import clip_scorer, scorer_of

    if given["threads"]:
        torch.set_num_threads(given["threads"])
    sources = _sources(given)
    seeds = () if sources else range(given["seed"], given["seed"] + given["faces"])
    inputs = read_inputs(pack, sources, seeds)
    for note in inputs.notes:
        click.echo(f"note: {note}", err=True)
    clip = clip_scorer(pack, prompts)
    subject = Subject(pack, scorer_of(pack, prompts, clip))
    faces = subject.faces_of(inputs.w)
    report = _report(subject, clip, prompts, faces, given)
    about = {
        "pack": {"name": pack.name, "sha256": pack.sha256},
        "faces": {"count": len(faces), "files": sources, "seeds": [min(seeds), max(seeds)] if seeds else None},
        "scorer": subject.scorer.opinion,
    }
    written = write_report(report, about, pack.name, given["out"], given["figures"] or given["out"])
    files = {kind: str(path) for kind, path in written.items()}
    if given["as_json"]:
        print_json({**record(report, about), "files": files})
        return
    click.echo(summary(report))
    click.echo("\n".join(f"{kind}: {file}" for kind, file in files.items()))


def _report(subject: Subject, clip: ClipScorer, prompts: list[Prompt], faces: Faces, given: dict[str, Any]) -> Report:
    """Everything that is measured; with --recommend at the settings that were just chosen."""
    from . import evaluate as measures
    from . import evaluate_times as times

    ways, chosen = given["ways"], Chosen(prompts)
    if given["recommend"]:
        chosen = _recommend(subject, prompts, given)
    report = measures.compare(subject, chosen.prompts, ways, faces, clip)
    report.recommended = chosen.record
    report.left_out |= chosen.left_out
    if "mapper" in ways.methods:
        report.mappers = measures.mapper_agreement(subject, subject.pack.mappers, faces)
    if given["curves"]:
        report.curves = measures.curves(subject, chosen.prompts, ways, faces)
    if given["times"] != "none":
        report.times = times.measure(subject, chosen.prompts, ways, faces, preparations=given["times"] == "all")
    return report


@dataclass(frozen=True)
class Chosen:
    """What --recommend found: the prompts with it, its record for the JSON, and what it left out."""

    prompts: list[Prompt]
    record: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def _recommend(subject: Subject, prompts: list[Prompt], given: dict[str, Any]) -> Chosen:
    """Chooses the settings and writes them into the pack; they are then what is reported, on other faces.

    What an earlier run chose and could not write is written without choosing again.
    """
    from ..runtime.training.inputs import sample
    from . import evaluate_recommend as recommending

    pack, out, neutrals, faces = subject.pack, given["out_pack"], given["neutrals"], given["selection_faces"]
    methods = set(given["ways"].methods)
    what = {"mappers": "mapper" in methods, "directions": methods != {"mapper"}}
    kept = recommending.kept_choice(pack, out, prompts, neutrals=neutrals, faces=faces, **what)
    if earlier := kept.load():
        entries, reasons = earlier[1]["entries"], earlier[1]["reasons"]
    else:
        selection = subject.faces_of(sample(pack, range(SELECTION_SEED, SELECTION_SEED + faces)))
        entries, reasons = recommending.recommend(subject, prompts, selection, neutrals, **what)
    written = recommending.write(pack, out, entries, reasons, kept) if entries else None
    record = {
        "settings": entries,
        "pack": str(written) if written else None,
        "notes": recommending.table_notes(subject, entries) if what["directions"] else [],
        "selection_faces": given["selection_faces"],
    }
    left_out = {f"{name}, recommend": reason for name, reason in reasons.items()}
    return Chosen(recommending.with_settings(prompts, entries), record, left_out)


def summary(report: Report) -> str:
    """The table for the terminal."""
    width = max([14, *(len(row["method"]) for row in report.rows)])
    header = f"{'prompt':16} {'method':{width}} {'alpha':>6} {'beta':>6} {'faces':>5} {'target':>7} {'others':>7}"
    lines = [f"{header} {'identity':>8} {'CLIP gain':>9} {'s a face':>9}  scored by"]
    for row in report.rows:
        numbers = [_cell(row["alpha"], "6.2f"), _cell(row["beta"], "6.2f"), f"{row['faces']:5d}"]
        numbers += [f"{row['success']:7.0%}", f"{row['others_changed']:7.1%}", _cell(row["identity_cosine"], "8.2f")]
        numbers += [_cell(row["clip_gain"], "9.3f"), _cell(row["seconds_per_face"], "9.3g")]
        lines.append(f"{row['prompt'][:16]:16} {row['method']:{width}} {' '.join(numbers)}  {row['scored_by']}")
    lines += [
        f"{row['what']}, {row['method']}: {row['ratio']:g} times a global edit ({row['median_ms']:g} ms here)"
        for row in report.times
    ]
    lines += [f"left out: {what}: {why}" for what, why in report.left_out.items()]
    if report.recommended.get("pack"):
        lines.append(f"settings of {len(report.recommended['settings'])} prompts are in {report.recommended['pack']}")
    lines += [f"note: {note}" for note in report.recommended.get("notes", ())]
    return "\n".join(lines)


def _cell(value: float | None, form: str) -> str:
    return " " * int(form.partition(".")[0]) if value is None else format(value, form)
