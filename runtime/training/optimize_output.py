"""What `styleclip-rt optimize` writes: pictures, latents, strips of the way there, a sheet, and JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ...engines.errors import InputError
from ..images import write_atomically, write_format, write_image
from ..latents import PATCH, save_latents, split_index
from ..prompts import slug
from ..sheets import MAX_CELLS, Cell, contact_sheet
from .inputs import Inputs
from .networks.stylegan2 import StyleLayer
from .optimize import Optimized
from .optimize_settings import OptimizeSettings
from .pack import Pack

MAX_FRAMES = 100


class Files:
    """Where the results of a run go, settled and checked before the run.

    One face: FILE and, beside it, its latents, JSON and strip; or a folder. Several: a folder with those of every face,
    sheet.png and run.json. Raises InputError for a path that cannot be written, or that is one of the inputs.
    """

    def __init__(self, out: str | None, names: Sequence[str], prompt: str, space: str, strip: bool = False) -> None:
        several, words = len(names) > 1, slug(prompt)[:60] or "prompt"
        default = f"optimized-{words}/" if several else f"{names[0]}-{words}-optimized.png"
        self.out, self.strip = Path(out or default), strip
        self.suffix = ".npy" if space == "s" else ".npz"
        self.folder = (out or default).endswith(("/", os.sep)) or self.out.is_dir()
        if several and not self.folder:
            raise InputError(f"{len(names)} faces go into a folder; expected --out DIR/, got {self.out}")
        if not self.folder:
            write_format(self.out)
        self.pictures = [self.out / f"{name}.png" if self.folder else self.out for name in names]
        self.sheet = self.out / "sheet.png" if several else None
        self.run = self.out / "run.json" if several else None

    @property
    def work(self) -> Path:
        """The usual folder for checkpoints."""
        return self.out.with_name(f"{self.out.stem if not self.folder else self.out.name}-work")

    def of(self, picture: Path) -> dict[str, Path]:
        """The files of a face by what they hold."""
        files = {"image": picture, "latents": picture.with_suffix(self.suffix), "json": picture.with_suffix(".json")}
        return {**files, "strip": picture.with_name(f"{picture.stem}-strip.png")} if self.strip else files

    def check(self, sources: Sequence[str]) -> Files:
        """InputError where a source would be replaced by a result."""
        written = {path.resolve() for picture in self.pictures for path in self.of(picture).values()}
        for source in sources:
            if split_index(source)[0].resolve() in written:
                raise InputError(f"the input {source} would be replaced by a result; give another --out")
        return self


def check_strip(settings: OptimizeSettings, save_every: int) -> None:
    """InputError for strips of more pictures than a sheet bears."""
    if save_every and settings.steps / save_every > MAX_FRAMES:
        raise InputError(
            f"--save-every {save_every} over {settings.steps} steps makes more than {MAX_FRAMES} pictures; "
            f"use {-(-settings.steps // MAX_FRAMES)} or more"
        )


def write_all(pack: Pack, inputs: Inputs, results: Sequence[Optimized], files: Files) -> list[dict[str, Any]]:
    """Writes everything but the run's own JSON; returns the record of every face."""
    records = []
    for result, picture in zip(results, files.pictures, strict=True):
        paths = files.of(picture)
        write_image(result.image, picture)
        write_latents(paths["latents"], result, pack)
        if files.strip:
            write_image(strip(result), paths["strip"])
        record = face_record(result) | {name: str(path) for name, path in paths.items()}
        write_json(paths["json"], record | {"pack": pack.name, "prompt": prompt_record(result)})
        records.append(record)
    if files.sheet:
        write_image(sheet(inputs, results), files.sheet)
    return records


def write_latents(path: Path, result: Optimized, pack: Pack) -> Path:
    """w+ as `edit` takes it; of style space, the padded array that `latents.load_styles` and StyleCLIP read."""
    if result.w is not None:
        return save_latents(path, result.w.numpy(), pack.name)
    padded = padded_styles(result.s, pack.layout.style_layers)
    return write_atomically(path, lambda file: np.save(file, padded))


def padded_styles(s: Tensor, layers: Sequence[StyleLayer]) -> np.ndarray:
    """s [N,S] -> StyleCLIP's form [N,1,layers * 512,1,1] float32; InputError for layers wider than its 512."""
    if max(layer.channels for layer in layers) > PATCH:
        raise InputError(f"style layers wider than {PATCH} channels have no form in StyleCLIP's files; optimise w+")
    padded = np.zeros((len(s), 1, len(layers) * PATCH, 1, 1), dtype=np.float32)
    for i, layer in enumerate(layers):
        part = s[:, layer.offset : layer.offset + layer.channels]
        padded[:, 0, PATCH * i : PATCH * i + layer.channels, 0, 0] = part.numpy()
    return padded


def strip(result: Optimized) -> Any:
    """The pictures of `--save-every` in one row, the result last."""
    cells: list[Cell] = [*(image for _, image in result.frames), result.image]
    labels = [*(f"{step}" for step, _ in result.frames), f"result ({result.returned_step})"]
    return contact_sheet([cells], [""], labels, f"{result.name}: {result.prompt.target}, by step")


def sheet(inputs: Inputs, results: Sequence[Optimized]) -> Any:
    """A row per face: photo where there was one, start, result; as many faces as a sheet bears."""
    shown = list(zip(inputs.crops, results, strict=True))[: MAX_CELLS // 3]
    photos = any(crop is not None for crop, _ in shown)
    rows: list[list[Cell]] = []
    for crop, result in shown:
        cells: list[Cell] = [result.start_image, result.image]
        rows.append([crop if crop is not None else "no photo", *cells] if photos else cells)
    columns = ["photo", "start", "result"] if photos else ["start", "result"]
    return contact_sheet(rows, [result.name for _, result in shown], columns, results[0].prompt.target)


def write_json(path: Path, record: dict[str, Any]) -> Path:
    """A JSON file, whole or not at all."""
    return write_atomically(path, lambda file: file.write((json.dumps(record, indent=2) + "\n").encode()))


def prompt_record(result: Optimized) -> dict[str, str]:
    """The prompt in JSON."""
    return {"name": result.prompt.name, "target": result.prompt.target, "neutral": result.prompt.neutral}


def face_record(result: Optimized) -> dict[str, Any]:
    """A face in JSON: losses by term before their weights, CLIP and identity scores, steps, seconds."""
    return {
        "name": result.name,
        "losses_before": {name: round(value, 6) for name, value in result.before.items()},
        "losses": {name: round(value, 6) for name, value in result.after.items()},
        "clip_score_before": round(result.clip_before, 4),
        "clip_score": round(result.clip_after, 4),
        "identity": None if result.identity is None else round(result.identity, 4),
        "steps": result.steps,
        "returned_step": result.returned_step,
        "stopped_early": result.stopped,
        "seconds": round(result.seconds, 3),
    }
