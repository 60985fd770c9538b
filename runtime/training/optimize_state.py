"""The state of an optimisation: latents, Adam's moments, the best latents so far. Saved and resumed bit for bit."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...engines.errors import InputError
from ..images import write_atomically
from .loop import device, save_atomically
from .optimize_loss import Evaluation
from .optimize_settings import OptimizeSettings, rate

BETAS, EPS = (0.9, 0.999), 1e-8  # Adam's, the published ones
RUNNING = -1
RUN = "optimize-run.json"


@dataclass
class State:
    """A batch of n faces after `step` evaluations; latents are [n,L,W] or [n,S].

    Attributes:
        latent: where the next evaluation takes place.
        first, second: Adam's moments.
        loss [n], terms (each [n]): of the last evaluation; `initial`: those of the face itself, with "loss".
        best_latent, best_loss, best_terms, best_step: the evaluation of the least loss.
        mark, stale: loss of the last progress worth the name, and evaluations since then.
        stopped: the step after which a face stopped early; RUNNING where it has not.
        history: total losses [n] of every step, NaN for a face that has stopped.
        frames: latents for the strip, by step.
    """

    latent: Tensor
    first: Tensor
    second: Tensor
    loss: Tensor
    best_latent: Tensor
    best_loss: Tensor
    best_step: Tensor
    mark: Tensor
    stale: Tensor
    stopped: Tensor
    scale: float = 1.0
    step: int = 0
    seconds: float = 0.0
    terms: dict[str, Tensor] = field(default_factory=dict)
    initial: dict[str, Tensor] = field(default_factory=dict)
    best_terms: dict[str, Tensor] = field(default_factory=dict)
    history: list[Tensor] = field(default_factory=list)
    frames: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def fresh(cls, latent: Tensor, initial: dict[str, Tensor], scale: float) -> State:
        """Before the first step, which takes place at `latent`; initial: the terms and "loss" of the face itself."""
        n = len(latent)
        endless, zeros = latent.new_full((n,), torch.inf), torch.zeros_like(latent)
        steps = torch.zeros(n, dtype=torch.int64, device=latent.device)
        return cls(
            latent=latent.clone(),
            first=zeros.clone(),
            second=zeros.clone(),
            loss=endless.clone(),
            best_latent=latent.clone(),
            best_loss=endless.clone(),
            best_step=steps.clone(),
            mark=endless.clone(),
            stale=steps.clone(),
            stopped=steps + RUNNING,
            scale=scale,
            initial=initial,
        )

    @property
    def active(self) -> Tensor:
        """Indices of the faces that have not stopped."""
        return (self.stopped == RUNNING).nonzero()[:, 0]

    def record(self, found: Evaluation, active: Tensor, settings: OptimizeSettings) -> None:
        """Books the evaluation of the active faces at the present latents."""
        n = len(self.loss)
        for name, term in found.terms.items():
            for table in (self.terms, self.best_terms):
                table.setdefault(name, term.new_full((n,), torch.nan))
            self.terms[name][active] = term
        self.loss[active] = found.total
        better = active[found.total < self.best_loss[active]]
        self.best_latent[better], self.best_loss[better] = self.latent[better], self.loss[better]
        self.best_step[better] = self.step
        for name, values in self.best_terms.items():
            values[better] = self.terms[name][better]
        progress = found.total < self.mark[active] - settings.tolerance
        self.mark[active] = torch.where(progress, found.total, self.mark[active])
        self.stale[active] = torch.where(progress, 0, self.stale[active] + 1)
        row = found.total.new_full((n,), torch.nan)
        row[active] = found.total
        self.history.append(row.cpu())
        if settings.patience:
            done = active[self.stale[active] >= settings.patience]
            self.stopped[done] = self.step

    def update(self, gradient: Tensor, index: Tensor, settings: OptimizeSettings) -> None:
        """One step of Adam (Kingma and Ba 2015) for the faces at `index`; gradient: theirs, in that order."""
        count, (beta1, beta2) = self.step + 1, BETAS
        first = self.first[index].lerp(gradient, 1 - beta1)
        second = self.second[index].mul(beta2).addcmul(gradient, gradient, value=1 - beta2)
        spread = (second.sqrt() / (1 - beta2**count) ** 0.5).add(EPS)
        size = rate(self.step, settings.steps, settings.lr) / (1 - beta1**count)
        self.first[index], self.second[index] = first, second
        self.latent[index] = self.latent[index].addcdiv(first, spread, value=-size)


def save(state: State, path: Path) -> None:
    """Writes a checkpoint, whole or not at all; StyleclipError where it cannot be written. The older one remains."""
    save_atomically({f.name: getattr(state, f.name) for f in fields(state)}, path)


def load(path: Path) -> State | None:
    """The state of a checkpoint, None where there is none; InputError for a damaged file."""
    if not path.exists():
        return None
    try:
        return State(**torch.load(path, map_location=device(), weights_only=True))
    except (OSError, RuntimeError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(
            f"the checkpoint {path} cannot be read ({error}); delete it to start this batch anew"
        ) from None


def identity_of(pack_sha256: str, texts: Mapping[str, str], w: Tensor, settings: OptimizeSettings) -> dict[str, Any]:
    """What makes two runs the same; the number of faces per batch is part of it."""
    digest = hashlib.sha256(np.ascontiguousarray(w.numpy(), dtype="<f4").tobytes()).hexdigest()
    return {"pack": pack_sha256, **texts, "faces": len(w), "latents": digest, **settings.to_dict()}


def claim(work: Path, run: Mapping[str, Any], restart: bool) -> str | None:
    """Makes `work` the folder of this run. Returns a note where checkpoints of another run were removed.

    Raises InputError where the folder holds another run and `restart` is off, or cannot be written.
    """
    table = work / RUN
    note = None
    if table.exists():
        other = _differences(table, run)
        if other and not restart:
            raise InputError(
                f"{work} holds another run (other {', '.join(other)}); name another work folder, or delete this one"
            )
        if other:
            for old in work.glob("batch-*.pt"):
                old.unlink()
            note = f"{work} held another run (other {', '.join(other)}); started anew"
    write_atomically(table, lambda file: file.write(json.dumps(dict(run), indent=1).encode()))
    return note


def discard(work: Path) -> None:
    """Removes the checkpoints of a finished run, and the folder if nothing else is in it."""
    for file in [*work.glob("batch-*.pt"), work / RUN]:
        file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        work.rmdir()


def _differences(table: Path, run: Mapping[str, Any]) -> list[str]:
    try:
        there = json.loads(table.read_text("utf-8"))
        return sorted(name for name in {*there, *run} if there.get(name) != run.get(name))
    except (OSError, ValueError, TypeError, AttributeError):
        return ["settings, unreadable"]
