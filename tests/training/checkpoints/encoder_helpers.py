"""Checkpoints of encoders, identity networks and mappers, written and read back."""

from __future__ import annotations

import torch

from styleclip_rt.runtime.archives import read_source


def read(tmp_path, file):
    """`file` as torch saves it, read as data."""
    folder = tmp_path / str(len(list(tmp_path.iterdir())))  # arrays are views of their file: no two share one
    folder.mkdir()
    torch.save(file, folder / "file.pt")
    return read_source(folder / "file.pt")
