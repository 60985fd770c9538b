"""What the neighbours of StyleCLIP in the same latent space share: random w, what CLIP sees of them, and steps in W.

GANSpace (Harkonen et al. 2020, arXiv:2004.02546), InterFaceGAN (Shen et al. 2020, arXiv:1907.10786) and StyleSpace (Wu
et al. 2021, arXiv:2011.12799) each give directions; here all of them become named directions in style space.
Shape alphabet: N samples, W width of w, L rows of w+, S style channels, E CLIP width.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ...engines.errors import InputError, PackError
from .chunks import in_chunks
from .loop import device
from .named import style_step
from .networks.stylegan2 import Generator
from .pack import Pack
from .statistics import latent_batches

BLOCK = 256  # pictures that are embedded between two writes to disk
CHUNK_PIXELS = 1 << 22  # of one batch: four pictures at 1024 px
W_RESIDUAL = 1e-3  # of a delta_s that is a step in W, kept in float32


@dataclass(frozen=True)
class Samples:
    """Which random faces a method looks at. psi: truncation, 1 is none."""

    count: int
    psi: float
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 2 or not 0 < self.psi <= 2:
            raise InputError(f"{self.count} samples at psi {self.psi:g}: expected 2 or more, psi in 0..2 and not 0")


def sampled_w(pack: Pack, samples: Samples) -> Tensor:
    """w [N, W] float32 on the CPU of random z; a seed means the same faces on every machine."""
    generator = pack.generator.to(device())
    batches = latent_batches(samples.count, generator.config.z_dim, samples.seed)
    with torch.no_grad():
        return torch.cat([generator.mapping(z.to(device()), samples.psi).cpu() for z in batches])


def embedded(pack: Pack, samples: Samples, work: Path | None = None) -> tuple[Tensor, Tensor]:
    """(w [N, W], unit CLIP embeddings [N, E] of their pictures), float32 on the CPU.

    In the folder `work` the embeddings are kept in blocks of 256, so that a run that was killed goes on where it was,
    and another text over the same faces costs nothing. A damaged block is made again.
    """
    w = sampled_w(pack, samples)
    folder = None if work is None else work / f"faces-{_fingerprint(pack, samples)}"
    blocks = [
        _block(pack, w[start : start + BLOCK], folder and folder / f"{start:08d}.npy")
        for start in tqdm(range(0, len(w), BLOCK), "pictures to CLIP", unit="block", disable=None, delay=2)
    ]
    return w, torch.cat(blocks)


def pictures_of_styles(pack: Pack, s: Tensor) -> Tensor:
    """Pictures [n, 3, R, R] in -1..1, on the CPU, of style vectors s [n, S]."""
    generator = pack.generator.to(device())
    return _in_parts(generator, generator.synthesize, s)


def embed_styles(pack: Pack, s: Tensor) -> Tensor:
    """Unit CLIP embeddings [n, E], on the CPU, of the pictures of style vectors s [n, S]."""
    generator, clip = pack.generator.to(device()), pack.clip.to(device())
    return _in_parts(generator, lambda part: clip.encode_image(generator.synthesize(part)), s)


def styles_of(pack: Pack, w: Tensor) -> Tensor:
    """Style vectors [n, S] on the CPU of w [n, W] or w+ [n, L, W]."""
    generator = pack.generator.to(device())
    return in_chunks(lambda part: generator.styles(part if part.ndim == 3 else generator.broadcast(part)), w)


def layer_rows(text: str | None, num_ws: int) -> tuple[int, ...]:
    """Rows of w+ that "0-3,6" names, in order; None: all. InputError for anything else, or beyond `num_ws`."""
    if text is None:
        return tuple(range(num_ws))
    rows: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or not (last.isdecimal() or "-" not in part):
            raise InputError(f"layers {text[:60]!r}; expected rows of w+ such as 0-3 or 0-3,6")
        rows.update(range(int(first), int(last or first) + 1) if int(last or first) < num_ws else [num_ws])
    if not rows or max(rows) >= num_ws:
        raise InputError(f"layers {text[:60]!r}; the pack's w+ has rows 0-{num_ws - 1}, from the first to the last")
    return tuple(sorted(rows))


def w_direction(generator: Generator, vector: Tensor, rows: Sequence[int]) -> Tensor:
    """delta_s [S] of the step `vector` [W] in the rows of w+ that are named, none in the others."""
    step = torch.zeros(generator.num_ws, len(vector), dtype=torch.float64)
    step[list(rows)] = vector.detach().double().cpu()
    return style_step(generator.cpu(), step)


def w_vector(generator: Generator, delta_s: Tensor, name: str = "it") -> Tensor:
    """The step [W] of w that moves the styles by delta_s [S] in the layers that it moves: the inverse of `w_direction`.

    Least squares over those layers. Raises InputError where no step of w does it: a direction of style space alone.
    """
    weights, wanted = [], []
    for layer in generator.style_layers:
        part = delta_s[layer.offset : layer.offset + layer.channels].double().cpu()
        if part.any():
            affine = generator.layer(layer.name).affine
            weights.append(affine.weight.detach().double().cpu() * affine.weight_gain)  # type: ignore[operator]
            wanted.append(part)
    matrix, target = torch.cat(weights), torch.cat(wanted)
    vector = torch.linalg.lstsq(matrix, target[:, None]).solution[:, 0]
    if (matrix @ vector - target).norm() > W_RESIDUAL * target.norm():
        raise InputError(f"the direction {name!r} is a step of style space and no step of w; take one found in w")
    return vector


def orthogonal_to(vector: Tensor, others: Iterable[Tensor]) -> Tensor:
    """The unit part of `vector` [W] that is orthogonal to all of `others` [W]: n1 - (n1 . n2) n2 for one of them.

    InterFaceGAN, section 3.2: moving along it leaves the projections on the others as they are. Raises InputError where
    nothing is left.
    """
    vector = vector.double() / vector.double().norm()
    rows = [other.double() / other.double().norm() for other in others]
    if not rows:
        return vector
    basis = torch.linalg.qr(torch.stack(rows, 1)).Q  # [W, K]
    left = vector - basis @ (basis.T @ vector)
    if left.norm() < 1e-6:
        raise InputError("the direction lies in the span of those it should be orthogonal to; nothing is left of it")
    return left / left.norm()


def _in_parts(generator: Generator, function: object, s: Tensor) -> Tensor:
    rows = max(1, CHUNK_PIXELS // generator.config.resolution**2)
    return torch.cat([in_chunks(function, part) for part in s.split(rows)])  # type: ignore[arg-type]


def _block(pack: Pack, w: Tensor, file: Path | None) -> Tensor:
    """Embeddings of one block, from its file if that is sound."""
    width = int(pack.config("clip")["embed_dim"])
    try:
        kept = np.load(file, allow_pickle=False) if file is not None else np.empty(0)
        if kept.shape == (len(w), width) and kept.dtype == np.float32 and np.isfinite(kept).all():
            return torch.from_numpy(kept)
    except (OSError, ValueError, EOFError):
        pass
    found = embed_styles(pack, styles_of(pack, w))
    if not torch.isfinite(found).all():
        raise PackError(f"CLIP of pack {pack.name!r} gives embeddings that are not finite; verify the pack")
    if file is not None:
        _write(file, found.numpy())
    return found


def _write(file: Path, array: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            np.save(stream, array, allow_pickle=False)
        os.replace(temporary, file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(
            f"{file} cannot be written ({error.strerror}); free some space or name another --work"
        ) from None


def _fingerprint(pack: Pack, samples: Samples) -> str:
    """Of all that the embeddings depend on."""
    parts = [pack.entry(name)["sha256"] for name in ("generator", "clip")]
    return hashlib.sha256(repr((parts, samples, BLOCK)).encode()).hexdigest()[:16]
