"""A folder of photos as an encoder sees them: framed as the pack says, at the encoder's size, kept on disk.

What can be no training picture does not stop a training over thousands: an unreadable photo, or one without a face, is
left out and named. A folder in which nothing is left is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ...engines.errors import InputError, StyleclipError
from ..align_frame import Framing
from ..images import read_image
from .loop_store import write_durably

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif")
HELD_SHARE, MOST_HELD = 20, 64  # one in twenty photos is kept for the test


@dataclass(frozen=True)
class Photos:
    """Framed photos. pixels: [M,3,I,I] uint8, mapped from their file; names: paths within the folder.

    skipped: path -> why it was left out. digest: of the files and the framing that they come from.
    """

    pixels: NDArray[np.uint8]
    names: tuple[str, ...]
    skipped: dict[str, str]
    digest: str

    def __len__(self) -> int:
        return len(self.names)

    @property
    def held(self) -> NDArray[np.int64]:
        """Indices that are kept for the test, spread over the folder; none of fewer than four photos."""
        count = min(MOST_HELD, max(1, len(self) // HELD_SHARE)) if len(self) >= 4 else 0
        return np.linspace(0, len(self) - 1, count + 2).round().astype(np.int64)[1:-1]

    @property
    def training(self) -> NDArray[np.int64]:
        """The other indices."""
        return np.setdiff1d(np.arange(len(self)), self.held)

    def batch(self, index: NDArray[np.int64], flip: NDArray[np.bool_] | None = None) -> Tensor:
        """Pictures [n,3,I,I] float32 in -1..1; those where `flip` is true are mirrored."""
        rows = np.stack([self.pixels[i] for i in index])
        if flip is not None:
            rows = np.where(flip[:, None, None, None], rows[..., ::-1], rows)
        return torch.from_numpy(rows.astype(np.float32)) / 127.5 - 1


def photo_files(folder: Path) -> list[Path]:
    """The pictures of a folder and those below it, by suffix, sorted; InputError where there are none."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; expected one with photos")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not found:
        raise InputError(f"{folder} holds no photo; expected files with one of the endings {', '.join(SUFFIXES)}")
    return found


def read_photos(folder: Path, framing: Framing, work: Path) -> Photos:
    """The photos of `folder`, framed; read once and then taken from `work/photos.npy` while the folder is the same.

    Raises InputError for a folder without photos, or without one that can be used.
    """
    files = photo_files(folder)
    stamp = _stamp(files, folder, framing)
    kept, record = work / "photos.npy", work / "photos.json"
    if kept.exists() and record.exists():
        stored = json.loads(record.read_text("utf-8"))
        if stored["stamp"] == stamp:
            return Photos(np.load(kept, mmap_mode="r"), tuple(stored["names"]), stored["skipped"], stamp)
    names, skipped = _frame_all(files, folder, framing, kept)
    text = json.dumps({"stamp": stamp, "names": names, "skipped": skipped}, indent=1)
    write_durably(record, lambda file: file.write(text.encode()))
    return Photos(np.load(kept, mmap_mode="r"), tuple(names), skipped, stamp)


def _stamp(files: Sequence[Path], folder: Path, framing: Framing) -> str:
    """Digest of what the framed pictures depend on: the files' names, sizes and times, and the framing."""
    listed = [(str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    alignment = framing.alignment
    settings = [framing.size, framing.landmarks is not None, alignment.kind, alignment.output_size]
    return hashlib.sha256(json.dumps([listed, settings, alignment.transform_size]).encode()).hexdigest()[:16]


def _frame_all(files: Sequence[Path], folder: Path, framing: Framing, kept: Path) -> tuple[list[str], dict[str, str]]:
    """Writes the framed pictures to `kept`, in the order of `files`; (names, skipped)."""
    names: list[str] = []
    skipped: dict[str, str] = {}
    raw_path = kept.with_name(".photos.raw")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with raw_path.open("wb+") as raw:
            for path in tqdm(files, "photos", unit="photo", delay=2.0, mininterval=1.0):
                _frame_one(path, folder, framing, raw, names, skipped)
            if not names:
                first = next(iter(skipped.values()))
                raise InputError(f"none of the {len(files)} photos of {folder} can be used; the first: {first}")
            raw.flush()
            rows = np.memmap(raw, np.uint8, "r", shape=(len(names), 3, framing.size, framing.size))
            write_durably(kept, lambda file: np.save(file, rows))
    except OSError as error:
        raise StyleclipError(f"cannot write {kept}: {error.strerror or error}") from error
    finally:
        raw_path.unlink(missing_ok=True)
    return names, skipped


def _frame_one(
    path: Path, folder: Path, framing: Framing, raw: IO[bytes], names: list[str], skipped: dict[str, str]
) -> None:
    """Appends the picture of `path` to `raw` and its name to `names`, or why it is left out to `skipped`."""
    name = str(path.relative_to(folder))
    try:
        crop = _crop(path, framing)
    except InputError as error:
        skipped[name] = str(error)
        return
    raw.write(np.asarray(crop).transpose(2, 0, 1).tobytes())
    names.append(name)


def _crop(path: Path, framing: Framing) -> Image.Image:
    reduced = framing.landmarks is None
    return framing.frame(read_image(path, shrink_to=framing.size if reduced else None)).crop
