"""The judge: a small attribute classifier trained on renders alone, which never sees the generator or CLIP.

It says which attributes a picture shows, so that an edit can be measured: was the target reached, did others change?
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ..loop import device, load_stage, mixed_precision, rng_for, train
from .augment import augment
from .dataset import HELD_OUT_SEED, TRAIN_SEED, RenderedFaces
from .factors import ATTRIBUTES

BATCH, STEPS = 128, 2000
SIZES = {name: len(values) for name, values in ATTRIBUTES.items()}


def _block(inputs: int, outputs: int, stride: int, kernel: int = 3) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class JudgeNet(nn.Module):
    """Image [N,3,64,64] in -1..1 -> logits [N,K] of all attributes, side by side in the order of ATTRIBUTES."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            _block(3, 24, 2, kernel=5), _block(24, 32, 1), _block(32, 48, 2), _block(48, 48, 1),
            _block(48, 72, 2), _block(72, 72, 1), _block(72, 80, 2),
        )  # fmt: skip
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(80 * 16, sum(SIZES.values()))

    def forward(self, image: Tensor) -> Tensor:
        """Logits [N,K]; `split_logits` cuts them by attribute."""
        return self.head(self.drop(self.trunk(image).flatten(1)))


def split_logits(logits: Tensor) -> dict[str, Tensor]:
    """Logits [N,K] -> {attribute: [N, classes]}."""
    return dict(zip(SIZES, logits.split(list(SIZES.values()), dim=1), strict=True))


def attribute_loss(logits: Tensor, labels: dict[str, NDArray[np.int64]]) -> Tensor:
    """Mean cross-entropy over the attributes; label -1 (not to be seen in the picture) counts nothing."""
    losses = []
    for name, part in split_logits(logits.float()).items():
        target = torch.from_numpy(labels[name].astype(np.int64)).to(part.device)
        losses.append(functional.cross_entropy(part, target, ignore_index=-1))
    return torch.stack(losses).mean()


class Judge:
    """A trained `JudgeNet` with a numpy face."""

    def __init__(self, net: JudgeNet) -> None:
        self.net = net.eval()

    @classmethod
    def open(cls, work: Path) -> Judge:
        """The judge that `train_judge` left in `work`."""
        return cls(load_stage(work, "judge", JudgeNet()))

    @torch.no_grad()
    def probabilities(
        self, images_pm1: Tensor | NDArray[np.float32], chunk: int = 256
    ) -> dict[str, NDArray[np.float32]]:
        """{attribute: float32 [N, classes]} for pictures [N,3,64,64] in -1..1."""
        images = torch.as_tensor(images_pm1, dtype=torch.float32)
        home = next(self.net.parameters()).device
        logits = torch.cat([self.net(part.clamp(-1, 1).to(home)).float().cpu() for part in images.split(chunk)])
        return {name: part.softmax(1).numpy() for name, part in split_logits(logits).items()}

    def predict(self, images_pm1: Tensor | NDArray[np.float32]) -> dict[str, NDArray[np.int64]]:
        """{attribute: int64 [N]}, indices into ATTRIBUTES, for pictures [N,3,64,64] in -1..1."""
        return {name: p.argmax(1).astype(np.int64) for name, p in self.probabilities(images_pm1).items()}


def accuracy(predicted: dict[str, NDArray[np.int64]], labels: dict[str, NDArray[np.int64]]) -> dict[str, float]:
    """Share of right predictions per attribute, over the faces where the attribute is defined."""
    out = {}
    for name, guess in predicted.items():
        seen = labels[name] >= 0
        out[name] = float((guess[seen] == labels[name][seen]).mean())
    return out


def take_labels(labels: dict[str, NDArray[np.int64]], index: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """The labels of some faces."""
    return {name: values[index] for name, values in labels.items()}


def stage_faces(work: Path, scale: float) -> tuple[RenderedFaces, RenderedFaces]:
    """The faces that a stage trains on and the ones that it is measured on; few of them in a smoke run (scale < 1)."""
    if scale >= 1:
        return RenderedFaces.training(work), RenderedFaces.held_out(work)
    few = RenderedFaces.open(work, max(256, int(10_000 * scale)), TRAIN_SEED)
    return few, RenderedFaces.open(work, 64, HELD_OUT_SEED)


def finished(work: Path, name: str) -> Path | None:
    """The report of a stage that was trained and measured already."""
    report = work / f"{name}.json"
    return report if report.exists() and (work / f"{name}.pt").exists() else None


def train_judge(work: Path, *, seed: int = 0, scale: float = 1.0) -> Path:
    """Train the judge on renders, write `judge.pt` and held-out accuracies in `judge.json`; returns the JSON's path."""
    if (report := finished(work, "judge")) is not None:
        return report
    faces, held = stage_faces(work, scale)
    torch.manual_seed(seed)
    net = JudgeNet()

    def step(i: int) -> dict[str, Tensor]:
        rng = rng_for(seed + 1, i)
        index = rng.integers(0, len(faces), BATCH)
        image, _ = augment(faces.batch(index).to(device()), rng)
        with mixed_precision(device()):
            logits = net(image.contiguous(memory_format=torch.channels_last))
        return {"loss": attribute_loss(logits, take_labels(faces.labels, index))}

    net.to(memory_format=torch.channels_last)
    trained = train("judge", work, net, step, steps=max(2, int(STEPS * scale)), lr=3e-3, ema=0.998, weight_decay=0.01)
    return _report(work / "judge.json", Judge(trained), held, seed)


def _report(path: Path, judge: Judge, held: RenderedFaces, seed: int) -> Path:
    """Accuracy on unseen renders, clean and damaged."""
    clean = held.batch(np.arange(len(held)))
    damaged, _ = augment(clean.clone(), rng_for(seed + 2, 0))
    rows = {
        "clean": accuracy(judge.predict(clean), held.labels),
        "damaged": accuracy(judge.predict(damaged), held.labels),
    }
    path.write_text(json.dumps({"faces": len(held), **rows}, indent=1) + "\n")
    return path
