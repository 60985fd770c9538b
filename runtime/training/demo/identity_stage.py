"""Trains the identity network as ArcFace does, on rendered people: same geometry, the rest drawn anew."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ..loop import device, load_stage, mixed_precision, rng_for, train
from ..networks.arcface import ArcFace, ArcFaceConfig, MarginHead
from . import factors as fx
from .augment import shift_and_scale, soften
from .clip_report import ranking
from .dataset import to_pm1
from .judge import finished
from .renderer import render

IDENTITIES, BATCH, STEPS = 1500, 96, 900
TEST_IDENTITIES, TEST_RENDERS = 300, 4
CONFIG = ArcFaceConfig(stem=16, stages=((24, 1), (40, 1), (64, 1), (80, 1)))
MARGIN, SCALE, GEOMETRY_WEIGHT = 0.3, 24.0, 2.0


class IdentityTraining(nn.Module):
    """The network, ArcFace's classifier, and a linear read-out of the geometry that gets training started."""

    def __init__(self) -> None:
        super().__init__()
        self.net = ArcFace(CONFIG)
        self.head = MarginHead(CONFIG.embed_dim, IDENTITIES, SCALE, MARGIN)
        self.geometry = nn.Linear(CONFIG.embed_dim, len(fx.GEOMETRY))


def people(seed: int, count: int) -> NDArray[np.float32]:
    """The geometry [count, 10] of a fixed crowd."""
    rng = np.random.default_rng([seed, count])
    return (rng.random((count, len(fx.GEOMETRY)), dtype=np.float32) * 2 - 1).astype(np.float32)


def portraits(geometry: NDArray[np.float32], rng: np.random.Generator) -> Tensor:
    """A new picture of each person, float32 [n,3,64,64] in -1..1: hair, glasses, expression, light all drawn anew."""
    f = fx.with_identity(fx.sample_factors(len(geometry), rng), geometry)
    return to_pm1(render(f))


def train_identity(work: Path, *, seed: int = 0, scale: float = 1.0) -> Path:
    """Train the network; write `identity.pt` and the measurements on unseen people `identity.json` (returned)."""
    if (report := finished(work, "identity")) is not None:
        return report
    crowd = people(seed + 30, IDENTITIES)
    torch.manual_seed(seed)
    model = IdentityTraining()

    def step(i: int) -> dict[str, Tensor]:
        rng, home = rng_for(seed + 31, i), device()
        who = rng.integers(0, IDENTITIES, BATCH if scale >= 0.1 else 16)
        image = soften(shift_and_scale(portraits(crowd[who], rng).to(home), rng, 0.02, 0.0), rng)
        with mixed_precision(home):
            embedding = model.net(image.contiguous(memory_format=torch.channels_last)).float()
        label = torch.from_numpy(who).to(home)
        margin = functional.cross_entropy(model.head(embedding, label), label)
        geometry = functional.mse_loss(model.geometry(embedding * 16.0), torch.from_numpy(crowd[who]).to(home))
        return {"loss": margin + GEOMETRY_WEIGHT * geometry, "margin": margin, "geometry": geometry}

    model.net.to(memory_format=torch.channels_last)
    steps = max(2, int(STEPS * scale))
    trained = train("identity", work, model, step, steps=steps, lr=2e-3, ema=0.995, weight_decay=0.01, warmup=100)
    return _report(work / "identity.json", trained.net, seed, scale)


@torch.no_grad()
def _report(path: Path, net: ArcFace, seed: int, scale: float) -> Path:
    """Area under the ROC curve of same against different people, none of them seen in training."""
    count = TEST_IDENTITIES if scale >= 1 else 12
    who = np.repeat(np.arange(count), TEST_RENDERS)
    images = portraits(people(seed + 1030, count)[who], rng_for(seed + 32, 0)).to(device())
    embedding = torch.cat([net(part) for part in images.split(128)]).float().cpu().numpy()
    cosine, same = embedding @ embedding.T, who[:, None] == who[None, :]
    pairs = np.triu_indices(len(who), 1)
    score, label = cosine[pairs], same[pairs]
    report = {
        "identities": count, "renders": TEST_RENDERS, "parameters": sum(p.numel() for p in net.parameters()),
        "auc": round(ranking(score, label), 4), "cosine_same": round(float(score[label].mean()), 4),
        "cosine_different": round(float(score[~label].mean()), 4),
    }  # fmt: skip
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


def load_identity(work: Path) -> ArcFace:
    """The identity network that `train_identity` left in `work`, in eval mode."""
    return load_stage(work, "identity", IdentityTraining()).net
