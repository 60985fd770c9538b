"""Trains the inverter in two passes: picture -> w on renders whose w is known, then end to end through the generator.

The second pass sees renders and the generator's own samples, and follows e4e (Tov et al. 2021): pixels, gradients, w,
and small per-layer offsets, so that what it finds stays editable.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..inverter_losses import known_w_loss, offset_square, psnr_db
from ..loop import device, load_stage, mixed_precision, rng_for, train
from ..networks.e4e import E4EConfig, Encoder4Editing
from ..networks.stylegan2 import Generator
from .augment import soften
from .dataset import RenderedFaces
from .generator import CONFIG as GENERATOR
from .generator import code_rotation, drawing_loss, load_generator
from .judge import finished, stage_faces

CONFIG = E4EConfig(num_ws=GENERATOR.num_ws, w_dim=GENERATOR.w_dim, stem=16, stages=((24, 1), (48, 2), (64, 2), (96, 2)))
BATCH_W, STEPS_W = 64, 1800
BATCH, SAMPLES, STEPS = 32, 8, 600  # of a batch, so many are the generator's samples
W_WEIGHT, DELTA_WEIGHT, SQUARE_WEIGHT = 0.15, 0.05, 2.0


def new_inverter(faces: RenderedFaces, seed: int) -> Encoder4Editing:
    """A fresh inverter that starts at the mean w."""
    torch.manual_seed(seed)
    net = Encoder4Editing(CONFIG)
    net.w_avg.copy_(torch.from_numpy(faces.codes.mean(0)) @ code_rotation())
    return net.to(memory_format=torch.channels_last)


def train_w(work: Path, faces: RenderedFaces, *, seed: int = 0, scale: float = 1.0) -> Encoder4Editing:
    """First pass (`inverter-w.pt`): w of renders; needs no generator, because w is an affine map of the code."""
    net, rotation = new_inverter(faces, seed), code_rotation().to(device())

    def step(i: int) -> dict[str, Tensor]:
        rng = rng_for(seed + 40, i)
        index = rng.integers(0, len(faces), BATCH_W if scale >= 0.1 else 8)
        image = soften(faces.batch(index).to(device()), rng).contiguous(memory_format=torch.channels_last)
        target = torch.from_numpy(faces.codes[index]).to(device()) @ rotation
        with mixed_precision(device()):
            w_plus = net(image)
        loss = known_w_loss(w_plus.float(), target)
        return {"loss": loss, "nmse": loss / target.var(0).mean()}

    steps = max(2, int(STEPS_W * scale))
    return train("inverter-w", work, net, step, steps=steps, lr=1.5e-3, ema=0.998, warmup=100)


class _EndToEnd:
    """A step of the second pass: renders and samples in, pictures out, compared with what went in."""

    def __init__(self, net: Encoder4Editing, generator: Generator, faces: RenderedFaces, seed: int, batch: int) -> None:
        self.net, self.generator, self.faces, self.seed, self.batch = net, generator, faces, seed, batch
        self.rotation = code_rotation().to(device())
        smoke = batch < BATCH  # compiling takes half a minute, longer than a smoke run
        self.invert_and_draw = torch.compile(self._invert_and_draw, disable=smoke or shutil.which("c++") is None)

    def _invert_and_draw(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures [N,3,R,R] -> the w+ [N,L,W] found and the pictures drawn from it."""
        with mixed_precision(device()):
            w_plus = self.net(target)
            image = self.generator(w_plus)
        return w_plus.float(), image.float()

    def _inputs(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Pictures [N,3,R,R] and the w [N,W] that they were made from."""
        samples = self.batch * SAMPLES // BATCH
        index = rng.integers(0, len(self.faces), self.batch - samples)
        w = torch.from_numpy(self.faces.codes[index]).to(device()) @ self.rotation
        z = torch.from_numpy(rng.standard_normal((samples, GENERATOR.z_dim), dtype=np.float32)).to(device())
        with torch.no_grad(), mixed_precision(device()):
            w_samples = self.generator.mapping(z)
            drawn = self.generator(self.generator.broadcast(w_samples)).float().clamp(-1, 1)
        return torch.cat([self.faces.batch(index).to(device()), drawn]), torch.cat([w, w_samples.float()])

    def __call__(self, i: int) -> dict[str, Tensor]:
        rng = rng_for(self.seed, i)
        target, w = self._inputs(rng)
        w_plus, image = self.invert_and_draw(target.contiguous(memory_format=torch.channels_last))
        square = functional.mse_loss(image, target)
        near = known_w_loss(w_plus, w.float())
        offsets = offset_square(self.net.deltas(w_plus))
        drawing = drawing_loss(image, target)["loss"]
        loss = drawing + SQUARE_WEIGHT * square + W_WEIGHT * near + DELTA_WEIGHT * offsets
        return {"loss": loss, "square": square, "w": near, "offsets": offsets}


def train_inverter(work: Path, *, seed: int = 0, scale: float = 1.0) -> Path:
    """Both passes; write `inverter.pt` and the measurements on unseen renders `inverter.json` (returned)."""
    if (report := finished(work, "inverter")) is not None:
        return report
    faces, held = stage_faces(work, scale)
    net = train_w(work, faces, seed=seed, scale=scale)
    generator = load_generator(work).to(memory_format=torch.channels_last).requires_grad_(False)
    step = _EndToEnd(net, generator, faces, seed + 41, BATCH if scale >= 0.1 else 8)
    net = train("inverter", work, net, step, steps=max(2, int(STEPS * scale)), lr=6e-4, ema=0.998, warmup=50)
    return write_report(work / "inverter.json", net, generator, held)


@torch.no_grad()
def write_report(path: Path, net: Encoder4Editing, generator: Generator, held: RenderedFaces) -> Path:
    """PSNR of unseen renders from the inverter alone, and from their true w (what the generator can draw at all)."""
    rotation, found, ceiling, offsets = code_rotation().to(device()), [], [], []
    for start in range(0, min(len(held), 512), 64):
        index = np.arange(start, min(start + 64, len(held)))
        target = held.batch(index).to(device())
        w_plus = net(target)
        found.append(psnr_db(generator(w_plus), target).cpu())
        true = torch.from_numpy(held.codes[index]).to(device()) @ rotation
        ceiling.append(psnr_db(generator(generator.broadcast(true)), target).cpu())
        offsets.append(net.deltas(w_plus).square().mean((1, 2)).sqrt().cpu())
    psnr = torch.cat(found)
    report = {
        "faces": len(psnr),
        "parameters": sum(p.numel() for p in net.parameters()),
        "psnr_db": round(float(psnr.mean()), 2),
        "psnr_db_p5": round(float(psnr.quantile(0.05)), 2),
        "psnr_db_true_w": round(float(torch.cat(ceiling).mean()), 2),
        "offset_rms": round(float(torch.cat(offsets).mean()), 4),
    }
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


def load_inverter(work: Path) -> Encoder4Editing:
    """The inverter that `train_inverter` left in `work`, in eval mode."""
    return load_stage(work, "inverter", Encoder4Editing(CONFIG))
