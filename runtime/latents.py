"""Latents files: w of faces, accepted by `edit` in place of a photo; ours, and those of the StyleCLIP family.

Read are `.npz` (of `invert`), `.npy` and `.pt`, as arrays of w+ [N,L,W] or lists of [L,W]; w [N,W] serves every layer.
`faces.pt#2` is the face at index 2 of a file with several. Torch is not needed and nothing in a file is run.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..engines.errors import InputError, PackError
from . import images
from .archives import Array, Limits, Source, describe, flat_arrays, listed, read_source
from .editor import F32, Editor
from .model import Model

STARTS = (b"PK\x03\x04", b"\x93NUMPY", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""First bytes of zip archives (.npz, .pt), .npy, and pickles (older .pt). No picture begins like that."""
LIMITS = Limits(copied_bytes=64 << 20)
INDEX = re.compile(r"(.+)#(\d{1,7})")
PATCH = 512  # width of an entry of style space in StyleCLIP's padded files
NAMES = ("w", "w_plus", "latents", "latent")


def is_latents(path: str | os.PathLike[str]) -> bool:
    """Whether the file (its index, `#2`, aside) holds arrays by its content, not a picture."""
    try:
        with split_index(path)[0].open("rb") as stream:
            return stream.read(8).startswith(STARTS)
    except OSError:
        return False


def save_latents(path: str | os.PathLike[str], w: F32, bundle: str) -> Path:
    """Write w [N, L, W] float32 and the bundle's name, atomically."""

    def save(file: IO[bytes]) -> None:
        np.savez(file, w=np.asarray(w, dtype=np.float32), bundle=np.array(bundle))

    return images.write_atomically(path, save)


def load_latents(path: str | os.PathLike[str], editor: Editor, index: int | None = None) -> F32:
    """Read w [1, L, W] of one face for the editor's bundle.

    index: which face, if the file holds several; the ending `#2` of a path says the same. Raises InputError for a file
    that holds no such w, for style-space latents (see `load_styles`), and where the face must be chosen.
    """
    file, ending = split_index(path)
    face = chosen(faces_of(read(file), editor.model), ending if index is None else index, file)
    return editor.checked_w(np.repeat(face, editor.model.num_ws // face.shape[1], axis=1))


def load_face(path: str | os.PathLike[str], editor: Editor) -> F32:
    """Read one face as `Editor.edit_latents` takes it: s [1, S] of a file of style space, w [1, L, W] of any other.

    Raises InputError as `load_latents` and `load_styles` do.
    """
    layers = [layer.channels for layer in editor.model.layers]
    of_styles = style_entries(read(split_index(path)[0]), layers) is not None
    return (load_styles if of_styles else load_latents)(path, editor)


def load_styles(path: str | os.PathLike[str], editor: Editor, index: int | None = None) -> F32:
    """Read s [1, S] of one face from StyleCLIP's style-space latents, for `Editor.edit_latents` and `synthesize`.

    Such a file is a list of one [N, 1, C, 1, 1] per layer, toRGB included, or the same padded to 512 and joined to
    [N, 1, layers * 512, 1, 1]. Raises InputError for anything else.
    """
    file, ending = split_index(path)
    source, layers = read(file), [layer.channels for layer in editor.model.layers]
    entries = style_entries(source, layers)
    if entries is None or [entry.shape[1] for entry in entries] != layers:
        raise InputError(
            f"{file} holds {describe(source.tree)}; expected style-space latents, {len(layers)} entries of {layers}"
        )
    return finite(chosen(np.concatenate(entries, axis=1), ending if index is None else index, file), file)


def split_index(path: str | os.PathLike[str]) -> tuple[Path, int | None]:
    """("faces.pt", 2) of "faces.pt#2"; a file that is really called so comes first."""
    match = INDEX.fullmatch(os.fspath(path))
    if match is None or Path(path).exists():
        return Path(path), None
    return Path(match[1]), int(match[2])


def read(path: Path) -> Source:
    """The file as data; InputError where it cannot be read."""
    try:
        return read_source(path, LIMITS)
    except PackError as error:
        raise InputError(f"{error}; expected latents as .npz, .npy or .pt, such as `invert` makes") from None


def faces_of(source: Source, model: Model) -> Array:
    """w [N, L, W] of a file, or [N, 1, W] that serves every layer; InputError for style space and anything else."""
    width, rows = model.w_dim, model.num_ws
    if style_entries(source, [layer.channels for layer in model.layers]) is not None:
        raise InputError(
            f"{source.path} holds latents of style space, and w is needed here; `styleclip-rt edit` and "
            "runtime.latents.load_styles read them"
        )
    array = lone_array(source.tree)
    if array is not None:
        array = array.reshape([size for size in array.shape if size != 1])
        if array.shape[-2:] == (rows, width) and array.ndim < 4:
            return array.reshape(-1, rows, width)
        if array.shape[-1:] == (width,) and array.ndim < 3:
            return array.reshape(-1, 1, width)
    raise InputError(
        f"{source.path} holds {content(source)}; expected w of faces, [N, {rows}, {width}], for {model.name}"
    )


def lone_array(tree: Any) -> Array | None:
    """The array of w in a file: its only one, that of a usual name, or a list of equal ones stacked; else None."""
    if isinstance(tree, dict):
        named = [tree[name] for name in NAMES if isinstance(tree.get(name), np.ndarray)]
        arrays = named[:1] or [value for value in tree.values() if isinstance(value, np.ndarray)]
        return arrays[0] if len(arrays) == 1 else None
    if isinstance(tree, list | tuple):
        arrays = [part.squeeze() for part in tree if isinstance(part, np.ndarray)]
        equal = len(arrays) == len(tree) > 0 and len({array.shape for array in arrays}) == 1
        return np.stack(arrays) if equal else None
    return tree if isinstance(tree, np.ndarray) else None


def style_entries(source: Source, layers: list[int]) -> list[Array] | None:
    """One [N, C] per style layer of a file in StyleCLIP's form of style space; None for any other file."""
    tree = source.tree
    if isinstance(tree, list | tuple) and len(tree) == len(layers) > 0:
        if not all(isinstance(part, np.ndarray) and part.ndim == 5 and part.shape[3:] == (1, 1) for part in tree):
            return None
        entries = [part.reshape(len(part), -1) for part in tree]
        return entries if len({len(entry) for entry in entries}) == 1 else None
    joined = isinstance(tree, np.ndarray) and tree.ndim == 5 and tree.shape[1:] == (1, len(layers) * PATCH, 1, 1)
    if not joined or max(layers, default=0) > PATCH:
        return None
    return [tree[:, 0, PATCH * i : PATCH * i + channels, 0, 0] for i, channels in enumerate(layers)]


def chosen(faces: Array, index: int | None, path: Path) -> F32:
    """The face at `index` of [N, ...], as [1, ...] float32; InputError where there is none, or several and no index."""
    count = len(faces)
    if index is None and count != 1:
        raise InputError(f"{path} holds {count} faces; choose one by its index: {path}#0 to {path}#{max(count - 1, 0)}")
    if index is not None and not 0 <= index < count:
        raise InputError(f"{path} holds {count} faces, with indices 0 to {count - 1}; {index} is none of them")
    face = faces[index or 0][None]
    if not np.issubdtype(face.dtype, np.number):
        raise InputError(f"{path} holds values of type {face.dtype}; expected numbers")
    return np.asarray(face, dtype=np.float32)


def finite(values: F32, path: Path) -> F32:
    """The values; InputError where one is not finite."""
    if not np.isfinite(values).all():
        raise InputError(f"{path} holds values that are not finite")
    return values


def content(source: Source) -> str:
    """What a file holds, for a message."""
    arrays: dict[str, Any] = flat_arrays(source.tree)
    if isinstance(source.tree, np.ndarray) or not arrays:
        return describe(source.tree)
    return f"{describe(source.tree)} with {listed([f'{name} {list(a.shape)}' for name, a in arrays.items()])}"
