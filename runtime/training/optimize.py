"""Latent optimisation (Patashnik et al. 2021, section 4): the latent of each face descends the loss of one prompt.

`optimize` is the whole of it; `optimize_settings` has the presets, `optimize_loss` the terms.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...engines.errors import InputError
from ..prompts import Prompt, resolve
from . import optimize_state as states
from .chunks import in_chunks
from .inputs import Inputs, pack_model
from .loop import device
from .optimize_loss import Objective
from .optimize_settings import OptimizeSettings, settings_for
from .optimize_state import RUNNING, State
from .pack import Pack
from .pictures import pictures

Progress = Callable[[int, int, float], None]
"""Called after every step with the steps done and to do, over all batches, and the mean loss of the batch."""


@dataclass(frozen=True)
class Optimized:
    """One optimised face.

    Attributes:
        image, start_image: RGB pictures, R x R pixels, of the result and of where it started.
        w: the result's w+ [1,L,W], None where style space was optimised; s: its styles [1,S].
        start_w: w+ [1,L,W] of the start.
        before, after: every term of the loss, before its weight, and "loss"; at the start and of the result.
        clip_before, clip_after: cosine of picture and text under CLIP's own front-end, whatever the loss used.
        identity: cosine of the identity embeddings of start and result; None for a pack without that network.
        steps: evaluations of the loss; returned_step: which of them, from 0, is the result; stopped: whether early.
        seconds: wall time of the batch over its faces.
        history: the loss of every step. frames: (step, picture) of the strip. notes: what the user should know.
    """

    name: str
    prompt: Prompt
    image: Image.Image
    start_image: Image.Image
    w: Tensor | None
    s: Tensor
    start_w: Tensor
    before: dict[str, float]
    after: dict[str, float]
    clip_before: float
    clip_after: float
    identity: float | None
    steps: int
    returned_step: int
    stopped: bool
    seconds: float
    history: list[float] = field(default_factory=list)
    frames: list[tuple[int, Image.Image]] = field(default_factory=list)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Saving:
    """Where and how often checkpoints are written; restart: another run's in the folder are removed, not refused."""

    work: Path
    every_s: float = 20.0
    restart: bool = False


def optimize(
    pack: Pack,
    inputs: Inputs | Tensor,
    prompt: str,
    settings: OptimizeSettings | None = None,
    *,
    neutral: str | None = None,
    save_every: int = 0,
    saving: Saving | None = None,
    progress: Progress | None = None,
) -> list[Optimized]:
    """Optimises every face towards a text, each for itself, `settings.batch` of them at once.

    Args:
        inputs: faces of `read_inputs`, or w+ [n,L,W].
        prompt: a name or text of the pack's prompts, or free text.
        settings: None: the pack's default preset (`settings_for`).
        neutral: the text that lambda_directional compares with; None: the prompt's.
        save_every: steps between the pictures of `frames`; 0: none.
        saving: checkpoints; a run with the same inputs and settings goes on from them, bit for bit on the CPU.
    Returns:
        One result per face, in order.
    Raises:
        InputError: for settings, inputs or a prompt that cannot be used, and where a loss becomes NaN or infinite; the
            checkpoint then holds the last good step.
        PackError: the pack lacks the generator or CLIP.
    """
    settings = (settings or settings_for(pack)).checked()
    given = inputs if isinstance(inputs, Inputs) else named(inputs)
    model = pack_model(pack)
    if given.w.ndim != 3 or tuple(given.w.shape[1:]) != (model.num_ws, model.w_dim) or not len(given.w):
        raise InputError(
            f"latents have shape {list(given.w.shape)}; expected [n, {model.num_ws}, {model.w_dim}], n > 0"
        )
    if not given.w.isfinite().all():
        raise InputError("the latents to start from are not finite; invert or sample them again")
    run = Run(pack, given, resolve(model, prompt, neutral), settings, save_every, saving, progress)
    return [result for batch in run.batches() for result in run.results(*batch)]


def named(w: Tensor) -> Inputs:
    """Inputs of bare latents w+ [n,L,W], named face0000 and so on."""
    return Inputs(w.detach().float().cpu(), tuple(f"face{i:04d}" for i in range(len(w))), (None,) * len(w))


class Run:
    """One call of `optimize`."""

    def __init__(
        self,
        pack: Pack,
        inputs: Inputs,
        prompt: Prompt,
        settings: OptimizeSettings,
        save_every: int,
        saving: Saving | None,
        progress: Progress | None,
    ) -> None:
        self.inputs, self.prompt, self.settings, self.save_every = inputs, prompt, settings, save_every
        self.saving, self.progress, self.notes = saving, progress, inputs.notes
        self.objective = Objective(pack, prompt, settings)
        if saving is not None:
            texts = {"target": prompt.target, "neutral": prompt.neutral, "save_every": str(save_every)}
            note = states.claim(saving.work, states.identity_of(pack.sha256, texts, inputs.w, settings), saving.restart)
            self.notes += (note,) if note else ()
        if unknown := self.objective.unknown_words:
            words = ", ".join(map(repr, unknown))
            self.notes += (f"the pack's CLIP does not know {words}: expect a weak or random edit",)

    def batches(self) -> list[tuple[int, State]]:
        """(index of the first face, finished state) of every batch."""
        firsts = range(0, len(self.inputs), self.settings.batch)
        return [(first, self._descend(number, first)) for number, first in enumerate(firsts)]

    def _descend(self, number: int, first: int) -> State:
        settings, path = self.settings, self._checkpoint(number)
        state = states.load(path) if path else None
        if state is not None and state.step >= settings.steps:
            return state
        w = self.inputs.w[first : first + settings.batch].to(device())
        start = self.objective.start(self.objective.latent_of(w))
        if state is None:
            latent, initial = self.objective.first(start)
            state = State.fresh(latent, initial, self.objective.first_scale)
        saved = began = time.monotonic()
        before_s = state.seconds
        while state.step < settings.steps and len(active := state.active):
            if self.save_every and state.step % self.save_every == 0:
                state.frames[state.step] = state.latent.cpu()
            found = self.objective.evaluate(state.latent[active], start.take(active), state.scale)
            if not bool(found.total.isfinite().all() and found.gradient.isfinite().all()):
                self._fail(state, path, first, active, found.total)
            state.scale = found.scale
            state.record(found, active, settings)
            running = state.stopped[active] == RUNNING
            if state.step + 1 < settings.steps:  # the published result is the latent before the last update
                state.update(found.gradient[running], active[running], settings)
            state.step += 1
            state.seconds = before_s + time.monotonic() - began
            if path and self.saving and time.monotonic() - saved > self.saving.every_s:
                states.save(state, path)
                saved = time.monotonic()
            self._report(number, state)
        if path:
            states.save(state, path)
        return state

    def _checkpoint(self, number: int) -> Path | None:
        return self.saving.work / f"batch-{number:04d}.pt" if self.saving else None

    def _fail(self, state: State, path: Path | None, first: int, active: Tensor, total: Tensor) -> None:
        if path:
            states.save(state, path)
        bad = (~total.isfinite()).nonzero()[:, 0]
        which = int(active[bad[0]]) if len(bad) else int(active[0])
        what = f"the loss of {self.inputs.names[first + which]}" if len(bad) else "the gradient"
        kept = f"; the last good step is kept in {path.parent}" if path else ""
        advice = "lower lr" if self.settings.precision == "fp32" else "use precision fp32, or lower lr"
        raise InputError(f"{what} is not finite at step {state.step} of {self.settings.steps}: {advice}{kept}")

    def _report(self, number: int, state: State) -> None:
        if self.progress:
            rounds = -(-len(self.inputs) // self.settings.batch)
            done = number * self.settings.steps + state.step
            self.progress(done, rounds * self.settings.steps, float(state.loss.mean()))

    def results(self, first: int, state: State) -> list[Optimized]:
        """The faces of a finished batch."""
        best = self.settings.returned == "best"
        latent, loss = (state.best_latent, state.best_loss) if best else (state.latent, state.loss)
        terms = state.best_terms if best else state.terms
        w = self.objective.w_of(latent)
        seen = self._seen(latent, self.inputs.w[first : first + len(latent)])
        return [
            Optimized(
                name=self.inputs.names[first + i],
                prompt=self.prompt,
                w=None if w is None else w[i : i + 1].cpu(),
                start_w=self.inputs.w[first + i : first + i + 1],
                before=_row(state.initial, i),
                after={**_row(terms, i), "loss": float(loss[i])},
                steps=int(stop) + 1 if (stop := state.stopped[i]) != RUNNING else state.step,
                returned_step=int(state.best_step[i]) if best else (int(stop) if stop != RUNNING else state.step - 1),
                stopped=bool(stop != RUNNING),
                seconds=state.seconds / len(latent),
                history=[float(row[i]) for row in state.history if bool(row[i].isfinite())],
                frames=self._frames(state, i),
                notes=self.notes,
                **seen[i],
            )
            for i in range(len(latent))
        ]

    def _frames(self, state: State, i: int) -> list[tuple[int, Image.Image]]:
        if not state.frames:
            return []
        images = in_chunks(self.objective.render, torch.stack([latent[i] for latent in state.frames.values()]))
        return list(zip(state.frames, pictures(images), strict=True))

    def _seen(self, latent: Tensor, w: Tensor) -> list[dict[str, Any]]:
        """What is measured on the pictures of a batch, under float32 whatever the precision of the descent."""
        objective = self.objective
        s, start = in_chunks(objective.styles, latent), in_chunks(objective.generator, w)
        after = in_chunks(objective.generator.synthesize, s)
        target = objective.target.cpu()
        scores = [in_chunks(objective.clip.encode_image, images.clamp(-1, 1)) @ target for images in (start, after)]
        same = None
        if objective.identity is not None:
            ids = [in_chunks(objective.identity, images.clamp(-1, 1)) for images in (start, after)]
            same = (ids[0] * ids[1]).sum(1)
        return [
            {
                "image": image,
                "start_image": start_image,
                "s": s[i : i + 1],
                "clip_before": float(scores[0][i]),
                "clip_after": float(scores[1][i]),
                "identity": None if same is None else float(same[i]),
            }
            for i, (image, start_image) in enumerate(zip(pictures(after), pictures(start), strict=True))
        ]


def _row(table: dict[str, Tensor], i: int) -> dict[str, float]:
    return {name: float(values[i]) for name, values in table.items()}
