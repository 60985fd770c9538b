"""Published statistics of style space into a pack: `S_mean_std`, `S`, `W.npy`, or measured anew; both conventions.

StyleCLIP's two code bases measure sigma on different samples. Both draw w at psi 0.7. The TensorFlow files ("tf") give
that w to every layer; the PyTorch port ("torch-cutoff8") truncates the first 8 layers only, so that its sigma is 1/0.7
times larger from the second 64 px layer on. A strength alpha means different edits under the two, hence the convention
is recorded, and that of a file is found by comparing it with samples of the generator itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ....engines.errors import InputError, PackError
from ...archives import Source, describe
from ..networks.stylegan2 import Generator
from ..statistics import RunningMoments
from .directions import conv_places, lone_table
from .directions import recognises as is_directions
from .rows import Array, Imported

PSI = 0.7
SEED = 5
BATCH = 1000
SAMPLES = 100_000
PROBE = 2000
AGREES = 0.15
"""How far the median ratio of a layer's sigmas to those of PROBE fresh samples may be from the convention's."""


@dataclass(frozen=True)
class Convention:
    """A published way to draw the samples: the number of leading layers truncated to psi, None for all of them."""

    name: str
    cutoff: int | None
    description: str


CONVENTIONS = {
    "tf": Convention(
        "tf", None, "std (ddof 0) of S over w truncated to psi 0.7 in every layer, StyleCLIP's TensorFlow files"
    ),
    "torch": Convention(
        "torch-cutoff8", 8, "std (ddof 0) of S over w truncated to psi 0.7 in layers below 8, StyleCLIP's PyTorch port"
    ),
}
"""By the word of the command line."""
UNKNOWN = "unknown"
FORMATS = {
    "moments": "style moments (S_mean_std)",
    "samples": "style samples (S)",
    "w": "samples of w (W.npy)",
}


def recognises(source: Source) -> str | None:
    """S_mean_std, S or W.npy by content; None for anything else."""
    kind = kind_of(source)
    return FORMATS[kind] if kind else None


def kind_of(source: Source) -> str | None:
    """A key of FORMATS, or None."""
    if lone_table(source) is not None:
        return None if is_directions(source) else "w"
    if source.kind not in ("pickle", "torch") or not isinstance(source.tree, list | tuple) or len(source.tree) != 2:
        return None
    first, second = source.tree
    if not all(isinstance(part, list | tuple) and len(part) == len(first) > 1 for part in (first, second)):
        return None
    if not all(isinstance(array, np.ndarray) for array in second):
        return None
    if all(isinstance(name, str) for name in first):
        return "samples"
    return "moments" if all(isinstance(array, np.ndarray) for array in first) else None


def import_statistics(source: Source, generator: Generator, sigma: str | None = None) -> Imported:
    """Statistics of a file as component `statistics`.

    Args:
        source: S_mean_std, S or W.npy.
        generator: with weights: w_mean comes from it, and the convention is found by its samples.
        sigma: a key of CONVENTIONS. For W.npy the convention to compute ("tf" if None); for the others what the file
            is stated to follow, in place of what was found.
    Raises:
        PackError: nothing of the kind, or layers that are not those of the generator. InputError: unknown sigma.
    """
    convention = None if sigma is None else named(sigma)
    what, kind = f"{source.path.name} as statistics", kind_of(source)
    if kind is None:
        raise PackError(f"{what}: it holds {describe(source.tree)}; expected S_mean_std, S or W.npy of StyleCLIP")
    if kind == "w":
        return from_w(w_samples(source, generator, what), generator, convention or CONVENTIONS["tf"], FORMATS[kind])
    if kind == "samples":
        mean, std, count = sample_moments(source.tree[1], generator, what)
    else:
        mean, std = (packed(part, generator, what) for part in source.tree)
        count = None
    found, notes = judged(std, generator, convention)
    config = {**recorded(found), **({"samples": count} if count else {})}
    w_mean = generator.mapping_network.w_avg.detach().clone()
    content = {"w_mean": w_mean, "s_mean": mean, "s_std": std}
    return Imported("statistics", content, config, FORMATS[kind], notes=tuple(notes))


def compute_statistics(generator: Generator, sigma: str | None = None, samples: int = SAMPLES) -> Imported:
    """Statistics measured as StyleCLIP does: z of RandomState(5), mapping, psi 0.7. InputError under two samples."""
    if samples < 2:
        raise InputError(f"{samples} samples were asked for; a standard deviation needs at least 2")
    convention = named(sigma or "tf")
    draws = (w_plus(generator, w, convention, 1.0) for w in drawn(generator, samples))
    content = moments_of(
        tqdm(draws, "style statistics", -(-samples // BATCH), unit="batch", disable=None, delay=2), generator
    )
    config = {**recorded(convention), "samples": samples, "seed": SEED}
    return Imported("statistics", content, config, "measured on import", "as the generator's")


def named(sigma: str) -> Convention:
    """The convention of a word of the command line; InputError lists them."""
    if sigma not in CONVENTIONS:
        raise InputError(f"sigma {sigma!r} is unknown; expected one of {', '.join(CONVENTIONS)}")
    return CONVENTIONS[sigma]


def recorded(convention: Convention | None) -> dict[str, Any]:
    """The config of statistics that follow a convention; None: an unknown one."""
    if convention is None:
        return {"convention": UNKNOWN, "psi": PSI}
    return {
        "convention": convention.name,
        "psi": PSI,
        "cutoff": convention.cutoff,
        "description": convention.description,
    }


# From samples --------------------------------------------------------------------------------------------------------


def drawn(generator: Generator, samples: int, seed: int = SEED) -> Iterator[Tensor]:
    """w [<=BATCH,W], untruncated, of the z that StyleCLIP draws: RandomState(5), row after row."""
    rng = np.random.RandomState(seed)
    for start in range(0, samples, BATCH):
        z = rng.randn(min(BATCH, samples - start), generator.config.z_dim).astype(np.float32)
        with torch.no_grad():
            yield generator.mapping(torch.from_numpy(z))


def w_plus(generator: Generator, w: Tensor, convention: Convention, psi: float) -> Tensor:
    """w [N,W] that was truncated to `psi` -> w+ [N,L,W] as the convention has it."""
    w_avg = generator.mapping_network.w_avg
    inner = generator.broadcast(w_avg + (w - w_avg) * (PSI / psi))
    if convention.cutoff is None:
        return inner
    outer = generator.broadcast(w_avg + (w - w_avg) / psi)
    return torch.cat([inner[:, : convention.cutoff], outer[:, convention.cutoff :]], 1)


@torch.no_grad()
def moments_of(samples: Iterable[Tensor], generator: Generator) -> dict[str, Tensor]:
    """w_mean [W], s_mean and s_std [S] (ddof 0), float32, of w+ [N,L,W] in batches."""
    w_moments, s_moments = RunningMoments(), RunningMoments()
    for batch in samples:
        w_moments.add(batch[:, 0])
        s_moments.add(generator.styles(batch))
    return {
        "w_mean": w_moments.mean.float(),
        "s_mean": s_moments.mean.float(),
        "s_std": s_moments.std.float(),
    }


def w_samples(source: Source, generator: Generator, what: str) -> Array:
    """The table of W.npy [N,W]; PackError where it is too short, of another width or not finite."""
    table = lone_table(source)
    width = generator.config.w_dim
    if table is None or table.shape[1] != width or len(table) < 2:
        raise PackError(f"{what}: it holds {describe(source.tree)}; expected w of at least 2 faces, [N, {width}]")
    return table


def from_w(table: Array, generator: Generator, convention: Convention, format: str) -> Imported:
    """Statistics of S over the w of W.npy [N,W], which were truncated to psi 0.7 when they were drawn."""
    parts = (torch.from_numpy(np.array(table[i : i + BATCH], np.float32)) for i in range(0, len(table), BATCH))
    content = moments_of((w_plus(generator, w, convention, PSI) for w in parts), generator)
    if not all(torch.isfinite(tensor).all() for tensor in content.values()):
        raise PackError("W.npy holds values that are not finite; make it again")
    return Imported("statistics", content, {**recorded(convention), "samples": len(table)}, format)


# From files ----------------------------------------------------------------------------------------------------------


def packed(arrays: Sequence[Array], generator: Generator, what: str) -> Tensor:
    """One array per layer, each of C values, as one vector [S]; without toRGB entries those channels are 0."""
    rows = [np.asarray(array, dtype=np.float64).reshape(-1) for array in arrays]
    everything = [layer.channels for layer in generator.style_layers]
    convolutions = [layer.channels for layer in generator.style_layers if layer.kind == "conv"]
    found = [len(row) for row in rows]
    if found not in (everything, convolutions):
        raise PackError(
            f"{what}: its {len(found)} layers have {found} channels; this generator's {len(everything)} have "
            f"{everything} ({len(convolutions)} without toRGB)"
        )
    vector = np.concatenate(rows)
    if not np.isfinite(vector).all():
        raise PackError(f"{what}: it holds values that are not finite; make it again")
    result = np.zeros(generator.style_channels)
    result[slice(None) if found == everything else conv_places(generator)] = vector
    return torch.from_numpy(result.astype(np.float32))


def sample_moments(arrays: Sequence[Array], generator: Generator, what: str) -> tuple[Tensor, Tensor, int]:
    """(mean [S], std [S] with ddof 0, N) of samples [N,C] (or [N,1,C], [N,1,C,1,1]) of every layer."""
    counts = {len(array) if array.ndim else 0 for array in arrays}
    if len(counts) != 1 or min(counts) < 2:
        raise PackError(f"{what}: its layers have {sorted(counts)} samples; expected one number, at least 2")
    rows = [np.asarray(array, dtype=np.float64).reshape(len(array), -1) for array in arrays]
    mean, std = (packed([moment(row) for row in rows], generator, what) for moment in (_mean, _std))
    return mean, std, counts.pop()


def _mean(rows: Array) -> Array:
    return np.asarray(rows.mean(axis=0))


def _std(rows: Array) -> Array:
    return np.asarray(rows.std(axis=0))


# Which convention ----------------------------------------------------------------------------------------------------


def judged(std: Tensor, generator: Generator, stated: Convention | None) -> tuple[Convention | None, list[str]]:
    """(the convention that sigmas [S] follow, notes): what was stated, else what the generator's own samples show."""
    found, ratios = found_convention(std, generator)
    if stated is not None:
        differs = found is not None and found != stated
        return stated, [f"stated as {stated.name}; the sigmas look like {found.name}"] if differs and found else []
    if found is not None:
        return found, []
    share = f"{min(ratios):.2g} to {max(ratios):.2g} times those that this generator gives (tf)"
    return None, [
        f"the sigmas are {share}: another generator's or convention's; state --sigma, or use --statistics compute"
    ]


def found_convention(std: Tensor, generator: Generator) -> tuple[Convention | None, list[float]]:
    """(the convention whose sigma fits every layer, or None; the layers' median ratios to "tf")."""
    own = moments_of((w_plus(generator, w, CONVENTIONS["tf"], 1.0) for w in drawn(generator, PROBE)), generator)[
        "s_std"
    ]
    layers = [layer for layer in generator.style_layers if layer.kind == "conv"]
    ratios = []
    for layer in layers:
        part = slice(layer.offset, layer.offset + layer.channels)
        ratios.append(float((std[part] / own[part].clamp(min=1e-12)).median()))
    for convention in CONVENTIONS.values():
        cutoff = generator.num_ws if convention.cutoff is None else convention.cutoff
        expected = [1.0 if layer.w_index < cutoff else 1 / PSI for layer in layers]
        if all(abs(ratio / wanted - 1) < AGREES for ratio, wanted in zip(ratios, expected, strict=True)):
            return convention, ratios
    return None, ratios
