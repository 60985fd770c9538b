"""Published channel directions into a pack: `fs3.npy` and its kin, any prefix of the convolution layers' channels.

A row of `fs3.npy` is the direction in CLIP's space that one channel of style space moves a picture in. Rows follow the
convolution layers in order (toRGB left out): StyleCLIP's script computes them up to 128 px (5376 rows of a 1024 px
generator), its published table has all 6048, and `SplitS` treats what is not there as zero.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import torch

from ....engines.errors import PackError
from ...archives import Source, describe, flat_arrays
from ..networks.stylegan2 import Generator
from .rows import Array, Imported

FORMAT = "channel directions (fs3)"
UNIT = 1e-2
"""How far from 1 the length of a row may be: tables in half precision are off by 1e-3."""
UNIT_SHARE = 0.9


def recognises(source: Source) -> str | None:
    """A table of unit rows [rows, E] and nothing else in the file; None for anything else."""
    table = lone_table(source)
    if table is None or table.shape[0] < 2:
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.linalg.norm(table.astype(np.float64), axis=1)
    counted = np.isfinite(lengths) & (lengths > 0)
    unit = np.abs(lengths[counted] - 1) < UNIT
    return FORMAT if counted.any() and unit.mean() > UNIT_SHARE else None


def lone_table(source: Source) -> Array | None:
    """The only array of the file, if it is a matrix of floating-point numbers."""
    if source.kind not in ("npy", "npz", "torch", "pickle", "safetensors"):
        return None
    arrays = list(flat_arrays(source.tree).values())
    if len(arrays) != 1 or arrays[0].ndim != 2 or not np.issubdtype(arrays[0].dtype, np.floating):
        return None
    return arrays[0]


def import_directions(source: Source, generator: Generator, embed_dim: int | None = None) -> Imported:
    """The table of a file as component `directions`: delta_i_c [S,E], zero where the file says nothing.

    Args:
        source: rows [rows,E]: any prefix of the convolution channels of `generator`, in layer order, or all S channels.
        generator: only its layers are read; its weights may be missing (meta device).
        embed_dim: E of the pack's CLIP; None where the pack has no CLIP.
    Raises:
        PackError: not a table, more rows than channels, or rows of another width than CLIP's embedding.
    """
    what, table = f"{source.path.name} as directions", lone_table(source)
    if table is None:
        raise PackError(f"{what}: it holds {describe(source.tree)}; expected one table [rows, width of CLIP]")
    rows, width = table.shape
    if embed_dim is not None and width != embed_dim:
        raise PackError(
            f"{what}: its rows have {width} values; the pack's CLIP gives {embed_dim}, so it is another CLIP"
        )
    places, note = row_places(generator, rows, what)
    values, notes = clean_rows(np.asarray(table, dtype=np.float32))
    full = np.zeros((generator.style_channels, width), dtype=np.float32)
    full[places] = values
    config = {"rows": rows, "convention": "as imported"}
    return Imported("directions", {"delta_i_c": torch.from_numpy(full)}, config, FORMAT, notes=(note, *notes))


def conv_places(generator: Generator) -> Array:
    """Positions in s of the convolution channels, in the order of the published rows."""
    layers = [layer for layer in generator.style_layers if layer.kind == "conv"]
    return np.concatenate([np.arange(layer.offset, layer.offset + layer.channels) for layer in layers])


def row_places(generator: Generator, rows: int, what: str) -> tuple[Array, str]:
    """(positions in s of the rows of a file, what to say about them); PackError for more rows than channels."""
    places, total = conv_places(generator), generator.style_channels
    layers = [layer for layer in generator.style_layers if layer.kind == "conv"]
    ends = list(accumulate(layer.channels for layer in layers))
    if rows == total:
        return np.arange(total), f"{rows} rows: every style channel, toRGB included"
    if rows > len(places):
        raise PackError(
            f"{what}: {rows} rows came; this generator has {len(places)} convolution channels, {total} with toRGB: "
            "the table belongs to another generator"
        )
    if rows == len(places):
        return places, f"{rows} rows: all convolution channels"
    if rows in ends:
        last = layers[ends.index(rows)].name
        return places[:rows], f"{rows} of {len(places)} convolution channels, up to layer {last}; the others never move"
    inside = layers[sum(end <= rows for end in ends)].name
    return places[:rows], (
        f"{rows} of {len(places)} convolution channels, which ends inside layer {inside}: the table was cut, or "
        "belongs to another generator"
    )


def clean_rows(table: Array) -> tuple[Array, list[str]]:
    """The rows with NaN ones zeroed, otherwise as they are, and notes.

    A channel that moves no picture is 0/0 in the original, where it turns every edit into NaN; zero says what is meant.
    Rows that are not of unit length stay as they are, because the original uses them so.
    """
    broken = np.asarray(~np.isfinite(table).all(axis=1))
    table = np.where(broken[:, None], np.float32(0), table)
    lengths = np.linalg.norm(table.astype(np.float64), axis=1)
    off = int(((np.abs(lengths - 1) >= UNIT) & (lengths > 0)).sum())
    notes = [f"{int(broken.sum())} rows are not numbers; those channels never move"] if broken.any() else []
    if off:
        notes.append(
            f"{off} rows are not of unit length (up to {lengths.max():.3g}); kept as they are, as the original does"
        )
    return table, notes
