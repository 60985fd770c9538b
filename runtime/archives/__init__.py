"""Files of weights from strangers, read by content without running anything of them. May import engines and numpy.

`read_source` knows torch's zip archives and its older stream, TorchScript archives, NVIDIA's and plain pickles, .npy,
.npz and safetensors. A pickle is read as a language of data (`opcodes`), names in it stand for builders of ours
(`builders`), and every size is checked against the bytes that are there before memory is taken.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...engines.errors import PackError
from .arrays import NPY, read_npy, read_npz, read_safetensors
from .source import Array, Budget, Limits, Opaque, Source, describe, flat_arrays, listed, members
from .torch_files import read_pickle, read_zip
from .zips import Zip

__all__ = ["Array", "Limits", "Opaque", "Source", "describe", "flat_arrays", "listed", "members", "read_source"]

# Files that people have in place of weights, by their first bytes.
MISTAKEN = (
    (b"version https://git-lfs", "it is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`"),
    (b"<", "it is a web page, probably a notice in place of the download; fetch the file again in a browser"),
    (b"\x1f\x8b", "it is compressed with gzip; unpack it first"),
    (b"BZh", "it is compressed with bzip2; unpack it first"),
    (b"\xfd7zXZ", "it is compressed with xz; unpack it first"),
    (b"Rar!", "it is a RAR archive; unpack it first"),
    (b"7z\xbc\xaf", "it is a 7-Zip archive; unpack it first"),
    (b"\x89HDF", "it is an HDF5 file; expected a checkpoint of torch, a safetensors file or arrays of numpy"),
)


def read_source(path: str | os.PathLike[str], limits: Limits | None = None) -> Source:
    """Reads a file of weights; arrays are views of the file while it stays as it is.

    bfloat16 is widened to float32; other numbers keep their types. Raises PackError, with the file's name and one
    reason, for whatever cannot be read: a file that is cut, damaged, too large, of another kind, or that asks for code
    to be run.
    """
    path, limits = Path(path), limits or Limits()
    try:
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise PackError("it is not a regular file")
            size = status.st_size
            if not 0 < size <= limits.file_bytes:
                raise PackError(f"it has {size} bytes; expected 1 to {limits.file_bytes}")
            # Mapped, not read: pages come as they are used, and the system may drop them again.
            data = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
            sha256 = hashlib.sha256(data).hexdigest()  # of the bytes that are read below, not of the name's
        kind, tree, metadata = _read(data, Budget(limits, size))
    except PackError as error:
        raise PackError(f"{path}: {error}") from None
    except (OSError, ValueError) as error:
        raise PackError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    except RecursionError:
        raise PackError(f"{path}: its values are nested too deeply; no checkpoint's are") from None
    return Source(path, kind, sha256, size, tree, metadata)


def _read(data: memoryview, budget: Budget) -> tuple[str, Any, Mapping[str, str]]:
    """(kind, tree, metadata), the container recognised by its first bytes."""
    start = bytes(data[:64])
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        archive = Zip(data, budget)
        if archive.entries and all(name.endswith(".npy") for name in archive.entries):
            return "npz", read_npz(archive), {}
        return *read_zip(archive, budget), {}
    if start[:6] == NPY:
        return "npy", read_npy(data), {}
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 40:
        tree, metadata = read_safetensors(data, budget)
        return "safetensors", tree, metadata
    if bytes(data[257:262]) == b"ustar":
        raise PackError("it is a tar archive (torch before 0.1.11); load it in torch and save it again with torch.save")
    for begin, reason in MISTAKEN:
        if start.lstrip().startswith(begin):
            raise PackError(reason)
    if start[:1] in (b"\x80", b"(", b"]", b"}", b"c"):
        return *read_pickle(data, budget), {}
    raise PackError("it is none of the known kinds: a checkpoint of torch, a safetensors file, or arrays of numpy")
