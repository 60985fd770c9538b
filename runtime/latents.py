"""Latents files: one face's w as a NumPy .npz, written by `invert` and accepted by `edit` in place of a photo."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from ..engines.errors import InputError
from . import images
from .editor import F32, Editor

MAX_BYTES = 64 * 2**20


def is_latents(path: str | os.PathLike[str]) -> bool:
    """Whether the file is a .npz by its content."""
    try:
        return Path(path).is_file() and zipfile.is_zipfile(path)
    except OSError:
        return False


def save_latents(path: str | os.PathLike[str], w: F32, bundle: str) -> Path:
    """Write w [1, L, W] float32 and the bundle's name, atomically."""

    def save(file: IO[bytes]) -> None:
        np.savez(file, w=np.asarray(w, dtype=np.float32), bundle=np.array(bundle))

    return images.write_atomically(path, save)


def load_latents(path: str | os.PathLike[str], editor: Editor) -> F32:
    """Read w [1, L, W] for the editor's bundle; InputError if the file is none of that."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
                raise InputError(f"{path} unpacks to more than {MAX_BYTES // 2**20} MiB; expected latents of one face")
        with np.load(path, allow_pickle=False) as file:
            w = np.asarray(file["w"], dtype=np.float32)
    except InputError:
        raise
    except Exception as error:  # a hostile archive raises anything: BadZipFile, zlib.error, KeyError, ValueError
        raise InputError(f"{path} is no latents file with an array w ({error}); make one with `invert`") from error
    return editor.checked_w(w)
