"""Measures a demonstration pack: the tables behind the README's figures, and the contact sheets to look at.

Settings are chosen on 256 generated faces and reported on 256 others. Definitions stand in `scores.py`; a figure is
worth nothing without a look at the sheet beside it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from .. import contact
from ..chunks import in_chunks
from ..loop import device
from ..pack import Pack, PackWriter, load_pack
from ..search import Setting, map_faces, try_setting
from ..subject import Faces, Subject
from . import settings
from .dataset import to_pm1
from .factors import labels, sample_factors
from .judge import Judge
from .renderer import render
from .scores import TARGETS, JudgeScorer, frechet_distance, judged, psnr_db, visible

REPORT_SEED, RENDER_SEED = 72, 73
SWEEP_BETAS = (0.06, 0.09, 0.12, 0.2, 0.3)
Row = dict[str, Any]


@dataclass(frozen=True)
class Effort:
    """How many faces each part sees; the defaults are the sizes that the README reports. `choice` scales the search."""

    faces: int = 256
    unseen_renders: int = 256
    samples: int = 4_000
    choice: float = 1.0


def direction_rows(subject: Subject, faces: Faces, chosen: Mapping[str, Setting]) -> list[Row]:
    """Every prompt at its recommended setting, at alpha 3 beta 0.12, and over beta at the recommended alpha.

    All of them in the prompt's recommended layers, as `edit` does it.
    """
    rows = []
    for prompt in tqdm(chosen, "directions", unit="prompt", disable=None):
        best, lacking = chosen[prompt], subject.lacking(prompt, faces)
        tried = [("recommended", best), ("published", replace(best, alpha=3.0, beta=0.12))]
        tried += [("sweep", replace(best, beta=beta)) for beta in SWEEP_BETAS]
        for kind, setting in tried:
            edited, channels = try_setting(subject, prompt, lacking, setting)
            rows.append({"prompt": prompt, "setting": kind, **asdict(setting), "channels": channels, **edited.shares()})
    return rows


def mapper_rows(subject: Subject, faces: Faces, strengths: Mapping[str, float]) -> list[Row]:
    """The trained mappers at their recommended strengths."""
    rows = []
    for prompt, strength in strengths.items():
        edited = map_faces(subject, prompt, subject.lacking(prompt, faces), strength)
        rows.append({"prompt": prompt, "strength": strength, **edited.shares()})
    return rows


def unseen_renders(count: int, seed: int) -> tuple[Tensor, dict[str, NDArray[np.int64]]]:
    """Freshly drawn faces [n,3,64,64] in -1..1, which no stage was trained on, and their true labels."""
    factors = sample_factors(count, np.random.default_rng([seed, count]))
    return to_pm1(render(factors)), labels(factors)


def inversion_rows(subject: Subject, count: int) -> list[Row]:
    """The inverter alone on unseen renders: PSNR of the reconstruction, and what judge and identity network keep."""
    images, truth = unseen_renders(count, RENDER_SEED)
    rebuilt = reconstruct(subject, images)
    quality, seen = psnr_db(rebuilt.numpy(), images.numpy()), visible(truth)
    found = JudgeScorer.of(subject.pack).read(rebuilt)
    kept = [float((found[a] == truth[a])[seen[a] & (truth[a] >= 0)].mean()) for a in truth]
    row: Row = {
        "renders": count,
        "psnr_db": round(float(quality.mean()), 2),
        "psnr_db_p10": round(float(np.percentile(quality, 10)), 2),
        "attributes_kept": round(float(np.mean(kept)), 4),
    }
    if subject.identity is not None:
        pair = [in_chunks(subject.identity, x) for x in (images, rebuilt)]
        row["identity_cosine"] = round(float((pair[0] * pair[1]).sum(1).mean()), 4)
    return [row]


def reconstruct(subject: Subject, images: Tensor) -> Tensor:
    """Pictures [n,3,64,64] through the inverter and the generator."""
    inverter = subject.pack.inverter.to(device())
    return subject.render(in_chunks(subject.generator.styles, in_chunks(inverter, images)))


def sample_rows(subject: Subject, count: int) -> list[Row]:
    """Frechet distances between samples and renders in two feature spaces, beside those of two sets of renders.

    FID-like, not FID: the features are those of the pack's CLIP and of the judge, so that the figures compare with no
    other work. The distance between two sets of renders is the floor that a perfect generator would reach.
    """
    judge = JudgeScorer.of(subject.pack).judge
    spaces = {"clip embedding": subject.clip.encode_image, "judge features": lambda x: judge_features(judge, x)}
    first, second = (unseen_renders(count, RENDER_SEED + k)[0] for k in (1, 2))
    samples = subject.faces(count, RENDER_SEED + 3).images
    rows = []
    for name, encode in spaces.items():
        a, b, s = (in_chunks(encode, images).numpy() for images in (first, second, samples))
        row: Row = {"features": name, "images": count, "psi": subject.psi}
        distance = {"samples_to_renders": frechet_distance(s, a), "renders_to_renders": frechet_distance(b, a)}
        rows.append({**row, **{key: round(value, 5) for key, value in distance.items()}})
    return rows


def judge_features(judge: Judge, images: Tensor) -> Tensor:
    """Pictures [n,3,64,64] -> features of the judge's last convolution, averaged over the picture [n,D]."""
    return judge.net.trunk(images).mean((2, 3))


def prompt_table(chosen: Mapping[str, Setting], strengths: Mapping[str, float]) -> dict[str, Row]:
    """The `prompts` entry of pack.json: texts, recommended settings and mappers."""
    return {
        name: {
            **asdict(setting),
            "strength": strengths.get(name, 1.0),
            "mapper": f"mapper/{name}" if name in strengths else None,
        }
        for name, setting in chosen.items()
    }


def recommended(subject: Subject, effort: Effort) -> tuple[dict[str, Setting], dict[str, float]]:
    """The pack's own settings and mapper strengths; what it does not record is chosen now, on the selection faces."""
    known = {name: row for name, row in subject.pack.prompts.items() if name in TARGETS and row.get("alpha")}
    if known.keys() != TARGETS.keys():
        known = settings.choose_settings(subject, scale=effort.choice)
    columns = [field.name for field in fields(Setting)]
    chosen = {name: Setting(**{key: known[name][key] for key in columns if key in known[name]}) for name in TARGETS}
    recorded = {name: float(row["strength"]) for name, row in subject.pack.prompts.items() if row.get("mapper")}
    if recorded.keys() != set(subject.pack.mappers) & TARGETS.keys():
        recorded = settings.choose_strengths(subject, scale=effort.choice)
    return chosen, recorded


def write_prompts(pack: Pack, prompts: Mapping[str, Row]) -> Path:
    """Rewrites the pack in place with these prompts."""
    with PackWriter(pack.path, pack.name, base=pack.path) as writer:
        writer.prompts = dict(prompts)
    return pack.path


def _write_csv(path: Path, rows: Iterable[Row]) -> None:
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _sheets(
    subject: Subject, faces: Faces, chosen: Mapping[str, Setting], mapped: Mapping[str, float], out: Path
) -> None:
    """Twelve reported faces under every edit, and samples beside renders."""
    first = faces.take(np.arange(min(12, len(faces))))

    def row(setting: Setting) -> Tensor:
        delta_s = subject.direction(setting.target, setting.neutral, setting.beta, setting.resolutions)
        return subject.edit(first, delta_s, setting.alpha)

    edits = {name: row(setting) for name, setting in chosen.items()}
    contact.save(out / "toyfaces-directions.jpg", {"unedited": first.images, **edits})
    published = {name: row(replace(setting, alpha=3.0, beta=0.12)) for name, setting in chosen.items()}
    contact.save(out / "toyfaces-alpha3-beta0.12.jpg", {"unedited": first.images, **published})
    if mapped:
        images = {name: subject.map(first, name, strength) for name, strength in mapped.items()}
        contact.save(out / "toyfaces-mapper.jpg", {"unedited": first.images, **images})
    renders = unseen_renders(len(first), RENDER_SEED)[0]
    rebuilt = {"inverted": reconstruct(subject, renders)} if subject.pack.has("inverter") else {}
    contact.save(out / "toyfaces-samples.jpg", {"renders": renders, **rebuilt, "samples": first.images})


def evaluate(pack: Pack | Path | str, out: Path, *, effort: Effort | None = None) -> dict[str, Row]:
    """Writes all tables and sheets of a pack, and returns its prompt table with the mappers' strengths.

    Args:
        pack: a pack with a judge, opened, or its folder or name.
        out: root that `benchmarks/results/toyfaces-*.csv` and `docs/images/toyfaces-*.jpg` are written under.
        effort: numbers of faces; smaller for smoke runs.
    """
    subject, effort = judged(pack if isinstance(pack, Pack) else load_pack(pack)), effort or Effort()
    results, images = out / "benchmarks" / "results", out / "docs" / "images"
    chosen, strengths = recommended(subject, effort)
    reported = subject.faces(effort.faces, REPORT_SEED)
    _sheets(subject, reported, chosen, strengths, images)
    _write_csv(results / "toyfaces-directions.csv", direction_rows(subject, reported, chosen))
    if strengths:
        _write_csv(results / "toyfaces-mapper.csv", mapper_rows(subject, reported, strengths))
    if subject.pack.has("inverter"):
        _write_csv(results / "toyfaces-inversion.csv", inversion_rows(subject, effort.unseen_renders))
    _write_csv(results / "toyfaces-samples.csv", sample_rows(subject, effort.samples))
    return prompt_table(chosen, strengths)
