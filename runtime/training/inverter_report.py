"""What an inverter is worth on pictures it was not trained on: PSNR, offsets, identity, and a sheet to look at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..images import write_image
from ..sheets import contact_sheet
from .inverter import Faces, resized
from .inverter_losses import psnr_db
from .loop import device, rng_for
from .networks.e4e import Encoder4Editing
from .networks.stylegan2 import Generator
from .pictures import pictures

CHUNK, SHOWN = 8, 8


@dataclass(frozen=True)
class Inversions:
    """What an encoder made of pictures, on the CPU. w: [n,L,W]; image: [n,3,I,I]; psnr_db: [n]."""

    w: Tensor
    image: Tensor
    psnr_db: Tensor


@dataclass(frozen=True)
class InverterScore:
    """Means over test pictures. PSNR in dB (p5: of the worst twentieth); `offset_rms`: root mean square of the offsets.

    `identity`: cosine of the identity embeddings; None without that network.
    """

    pictures: int
    psnr_db: float
    psnr_db_p5: float
    offset_rms: float
    identity: float | None


@torch.no_grad()
def inversions(encoder: Encoder4Editing, generator: Generator, target: Tensor) -> Inversions:
    """Pictures [n,3,I,I] in -1..1 inverted, a few at a time."""
    rows = []
    for part in target.to(device()).split(CHUNK):
        w = encoder(part)
        image = resized(generator(w), part.shape[-1])
        rows.append((w.cpu(), image.cpu(), psnr_db(image, part).cpu()))
    return Inversions(*(torch.cat(column) for column in zip(*rows, strict=True)))


@torch.no_grad()
def score(found: Inversions, target: Tensor, identity: nn.Module | None) -> InverterScore:
    """The figures of inversions of pictures [n,3,I,I]."""
    same = None
    if identity is not None:
        cosines = [
            (identity(a.to(device())) * identity(b.to(device()))).sum(-1).cpu()
            for a, b in zip(found.image.split(CHUNK), target.split(CHUNK), strict=True)
        ]
        same = round(float(torch.cat(cosines).mean()), 4)
    offsets = found.w[:, 1:] - found.w[:, :1]
    return InverterScore(
        pictures=len(target),
        psnr_db=round(float(found.psnr_db.mean()), 2),
        psnr_db_p5=round(float(found.psnr_db.quantile(0.05)), 2),
        offset_rms=round(float(offsets.square().mean((1, 2)).sqrt().mean()), 4),
        identity=same,
    )


class Examiner:
    """Measures an encoder on test samples, and on the photos that were kept for it."""

    def __init__(self, faces: Faces, identity: nn.Module | None, seed: int, samples: int) -> None:
        self.generator, self.identity = faces.generator, identity
        drawn = [faces.drawn(part) for part in faces.w(rng_for(seed, 0), samples).split(CHUNK)]
        self.tests = {"samples": torch.cat(drawn).cpu()}
        if faces.photos is not None:
            held = faces.photos.held if len(faces.photos.held) else faces.photos.training
            self.tests["photos"] = faces.photos.batch(held)

    def examine(self, encoder: Encoder4Editing) -> tuple[dict[str, InverterScore], Image.Image]:
        """(figures of each kind of test picture, sheet)."""
        was_training = encoder.training
        encoder.eval()
        found = {kind: inversions(encoder, self.generator, target) for kind, target in self.tests.items()}
        encoder.train(was_training)
        return {kind: score(found[kind], self.tests[kind], self.identity) for kind in found}, self._sheet(found)

    def _sheet(self, found: dict[str, Inversions]) -> Image.Image:
        rows: list[Sequence[Image.Image | str]] = []
        labels: list[str] = []
        for kind, target in self.tests.items():
            rows += [pictures(target[:SHOWN]), pictures(found[kind].image[:SHOWN])]
            labels += [kind, "inverted"]
        width = max(len(row) for row in rows)
        return contact_sheet([[*row, *[""] * (width - len(row))] for row in rows], labels, [""] * width)


class Watcher:
    """During a training: every so many steps a sheet `step-NNNNNN.png` and a row of `scores.jsonl`."""

    def __init__(self, examiner: Examiner, folder: Path, every: int) -> None:
        self.examiner, self.folder, self.every = examiner, folder, every

    def __call__(self, step: int, model: nn.Module, row: dict[str, float] | None) -> None:
        """See `loop.train`."""
        if step % self.every == 0:
            self.examine(step, model.encoder)  # type: ignore[arg-type]

    def examine(self, step: int, encoder: Encoder4Editing) -> tuple[dict[str, InverterScore], Path]:
        """Measures and writes; (figures, the sheet's file)."""
        scores, sheet = self.examiner.examine(encoder)
        path = write_image(sheet, self.folder / f"step-{step:06d}.png")
        line = {"step": step, **{kind: asdict(value) for kind, value in scores.items()}}
        with (self.folder / "scores.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return scores, path


def as_json(scores: dict[str, InverterScore]) -> dict[str, Any]:
    """JSON-ready figures."""
    return {kind: asdict(value) for kind, value in scores.items()}
