"""What a mapper does to faces that it was not trained on: figures, a sheet before and after, TensorBoard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..images import write_image
from ..sheets import Cell, contact_sheet
from .chunks import in_chunks
from .loop import device
from .losses import ImageEncoder
from .mapper import MapperNetworks, edited_faces
from .networks.mapper import LatentMapper
from .pictures import pictures

SHEET_SIZE = 256  # px that a sheet shows: larger pictures are pooled before they are kept


@dataclass(frozen=True)
class MapperScore:
    """Means over the test faces.

    clip_before, clip_after: cosine of the picture and the target text, CLIP seeing pictures as it was trained to, even
    where the loss does not. identity: cosine of the faces before and after; None without an identity network. drift:
    mean |delta| over all values of the mapper's space, w+ or style space.
    """

    clip_before: float
    clip_after: float
    identity: float | None
    drift: float

    @property
    def clip_gain(self) -> float:
        """clip_after - clip_before."""
        return self.clip_after - self.clip_before

    def to_dict(self) -> dict[str, Any]:
        """Rounded, for JSON."""
        figures = {**asdict(self), "clip_gain": self.clip_gain}
        return {name: value if value is None else round(value, 5) for name, value in figures.items()}

    def __str__(self) -> str:
        identity = "" if self.identity is None else f", identity {self.identity:.3f}"
        return f"CLIP gain {self.clip_gain:+.4f}{identity}, drift {self.drift:.4f}"


@dataclass
class Examiner:
    """Measures a mapper on fixed test faces w+ [n,L,W]; the faces before are rendered once.

    `encode_image`: CLIP with its own front-end; `target`: unit text embedding [E].
    """

    networks: MapperNetworks
    encode_image: ImageEncoder
    target: Tensor
    test: Tensor
    _before: tuple[Tensor, Tensor, Tensor | None] | None = None

    def measure(self, mapper: LatentMapper) -> tuple[MapperScore, Tensor, Tensor]:
        """(score, pictures before, pictures after [n,3,r,r] on the CPU, r at most `SHEET_SIZE`)."""
        if self._before is None:
            self._before = self._see(lambda w: (self.networks.generator(w), torch.zeros_like(w)))[:3]
        image, clip, identity = self._before
        with _evaluating(mapper):
            after, clip_after, identity_after, drift = self._see(
                lambda w: edited_faces(self.networks.generator, mapper, w)
            )
        same = None if identity is None or identity_after is None else float((identity * identity_after).sum(1).mean())
        target = self.target.cpu()
        score = MapperScore(
            float((clip @ target).mean()), float((clip_after @ target).mean()), same, float(drift.mean())
        )
        return score, image, after

    def _see(self, render: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """(pictures, CLIP embeddings, identity embeddings, mean |delta|) of the test faces, some at a time."""
        seen: list[Tensor] = []
        identify = self.networks.identify

        def look(w: Tensor) -> Tensor:
            image, delta = render(w)
            seen.append(torch.nn.functional.adaptive_avg_pool2d(image, min(SHEET_SIZE, image.shape[-1])).cpu())
            parts = [self.encode_image(image), delta.abs().flatten(1).mean(1, keepdim=True)]
            return torch.cat([*parts, *([identify(image)] if identify else [])], dim=1)

        found = in_chunks(look, self.test)
        width = len(self.target)
        identity = found[:, width + 1 :] if identify else None
        return torch.cat(seen), found[:, :width], identity, found[:, width]


class _evaluating:  # noqa: N801  # used as a statement
    """Switches a network to evaluation, and back to what it was."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.was = module, module.training

    def __enter__(self) -> None:
        self.module.to(device()).eval()

    def __exit__(self, *_: object) -> None:
        self.module.train(self.was)


def sheet(before: Tensor, after: Tensor, title: str) -> Image.Image:
    """Two rows of pictures [n,3,r,r] in -1..1, one column per face."""
    rows: list[list[Cell]] = [list(pictures(before)), list(pictures(after))]
    return contact_sheet(rows, ["before", "after"], [""] * len(before), title)


def open_board(folder: Path, start: int) -> Any | None:
    """TensorBoard's writer, steps from `start` on forgotten; None where the package tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=start)


class Watcher:
    """What `loop.train` calls after every step: validation with a sheet when it is due, and TensorBoard's log."""

    def __init__(self, examiner: Examiner, folder: Path, title: str, every: int, board: Any | None) -> None:
        self.examiner, self.folder, self.title, self.every, self.board = examiner, folder, title, every, board
        self.latest: tuple[int, MapperScore, Path] | None = None

    def __call__(self, done: int, mapper: nn.Module, row: dict[str, float] | None) -> None:
        """See `loop.Watch`."""
        if row is not None and self.board is not None:
            for name, value in row.items():
                self.board.add_scalar(f"loss/{name}", value, done - 1)
        if done % self.every == 0:
            self.examine(done, mapper)  # type: ignore[arg-type]

    def examine(self, done: int, mapper: LatentMapper) -> tuple[MapperScore, Path]:
        """Measures the mapper after `done` steps and writes its sheet; what was just measured is not again."""
        if self.latest is not None and self.latest[0] == done:
            return self.latest[1:]
        score, before, after = self.examiner.measure(mapper)
        picture = sheet(before, after, f"{self.title}, step {done}: {score}")
        path = write_image(picture, self.folder / f"step-{done:06d}.png")
        self.latest = (done, score, path)
        if self.board is not None:
            for name, value in score.to_dict().items():
                if value is not None:
                    self.board.add_scalar(f"test/{name}", value, done)
            self.board.add_images("faces", ((torch.cat([before, after]) + 1) / 2).clamp(0, 1), done)
            self.board.flush()
        return score, path
