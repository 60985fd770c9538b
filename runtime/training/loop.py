"""One training loop for everything that trains: resumable, exact to the step, with a progress bar and a log."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...engines.errors import InputError, StyleclipError
from .loop_ranks import ranks
from .loop_store import Parts, Store, TorchStore, save_atomically

__all__ = ["device", "fast_bfloat16", "load_stage", "rng_for", "save_atomically", "train"]

Model = TypeVar("Model", bound=nn.Module)
MakeOptimizer = Callable[..., torch.optim.Optimizer]
Watch = Callable[[int, nn.Module, "dict[str, float] | None"], None]
LOG_EVERY = 50


def device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fast_bfloat16(home: torch.device) -> bool:
    """Whether bfloat16 saves time: on CUDA and on CPUs with AVX512-BF16; others emulate it, ten times slower."""
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return home.type == "cuda" or (probe is not None and bool(probe()))


def mixed_precision(home: torch.device) -> torch.autocast:
    """bfloat16 autocast where the hardware multiplies it faster (`fast_bfloat16`), else float32."""
    return torch.autocast(home.type, torch.bfloat16, enabled=fast_bfloat16(home))


def rng_for(seed: int, step: int) -> np.random.Generator:
    """The randomness of one step: a function of (seed, step), so that a resumed run equals an unbroken one."""
    return np.random.default_rng([seed, step])


def _rate(step: int, steps: int, lr: float, schedule: str, warmup: int) -> float:
    ramp = min(1.0, (step + 1) / warmup)
    if schedule == "constant":
        return lr * ramp
    if schedule == "cosine":
        return lr * ramp * (0.005 + 0.995 * 0.5 * (1 + math.cos(math.pi * step / steps)))
    raise InputError(f"schedule {schedule!r}: expected 'cosine' or 'constant'")


def _update_ema(ema: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    decay = min(decay, (1 + step) / (10 + step))
    source = dict(model.state_dict())
    with torch.no_grad():
        for name, value in ema.state_dict().items():
            if value.is_floating_point():
                value.lerp_(source[name], 1 - decay)
            else:
                value.copy_(source[name])


def load_stage(work: Path, name: str, model: Model) -> Model:
    """The finished weights of a stage (EMA where it kept one) into `model`, in eval mode."""
    path = work / f"{name}.pt"
    if not path.exists():
        raise InputError(f"{path} does not exist: run the stage {name!r} first (styleclip-rt demo train --work {work})")
    state = torch.load(path, map_location=device(), weights_only=True)
    model.load_state_dict(state["ema"] if state["ema"] is not None else state["model"])
    return model.to(device()).eval()


def _steps(name: str, start: int, steps: int) -> Iterator[tuple[int, Any]]:
    quiet = not ranks().first
    with tqdm(total=steps, initial=start, desc=name, unit="step", mininterval=2.0, disable=quiet) as bar:
        for i in range(start, steps):
            yield i, bar
            bar.update()


class _Log:
    """`<name>.jsonl`: one row of losses per line. Rows of steps that a resumed run repeats are taken out."""

    def __init__(self, path: Path, start: int) -> None:
        self.path, self.began = path, time.monotonic()
        if not ranks().first or not path.exists():
            return
        with self._writing():
            lines = path.read_text("utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < start]
            if len(kept) < len(lines):
                path.write_text("".join(kept), "utf-8")

    def write(self, step: int, row: dict[str, float]) -> None:
        """Appends a row; StyleclipError where the disk is full."""
        entry = {"step": step, "seconds": round(time.monotonic() - self.began, 1), **row}
        with self._writing(), self.path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StyleclipError(
                f"cannot write {self.path}: {error.strerror}; the last checkpoint is intact. Run the command again"
            ) from error


class _Keeper:
    """Saves checkpoints when they are due, by the first process; never one with weights that are not finite."""

    def __init__(self, name: str, store: Store, parts: Parts, every_s: float, every_steps: int | None) -> None:
        self.name, self.store, self.parts = name, store, parts
        self.every_s, self.every_steps = every_s, every_steps
        self.before, self.began = parts.seconds, time.monotonic()
        self.saved = self.began

    def look(self, done: int) -> None:
        """Saves if enough steps or seconds have passed."""
        by_steps = self.every_steps is not None and done % self.every_steps == 0
        if by_steps or time.monotonic() - self.saved > self.every_s:
            self.save(done, final=False)

    def save(self, done: int, final: bool) -> None:
        """Saves now."""
        self.parts.seconds = self.before + time.monotonic() - self.began
        if not ranks().first:
            return
        if not all(bool(p.isfinite().all()) for p in self.parts.model.parameters()):
            raise InputError(
                f"stage {self.name}: weights are not finite after step {done - 1}; lower lr or resume from "
                f"{self.store.path}"
            )
        self.store.save(self.parts, done, final)
        self.saved = time.monotonic()


def _check_loss(name: str, step: int, loss: Tensor, path: Path) -> None:
    """InputError for a loss that is not finite, before it reaches the weights; the same in every process."""
    value = ranks().mean({"loss": loss})["loss"]
    if not math.isfinite(value):
        raise InputError(f"stage {name}: the loss is {value} at step {step}; lower lr or resume from {path}")


def train(
    name: str,
    work: Path,
    model: Model,
    step: Callable[[int], dict[str, Tensor]],
    *,
    steps: int,
    lr: float,
    save_every_s: float = 60.0,
    save_every: int | None = None,
    ema: float | None = None,
    schedule: str = "cosine",
    warmup: int = 50,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    parameters: list[dict[str, Any]] | None = None,
    optimizer: MakeOptimizer | None = None,
    store: Store | None = None,
    watch: Watch | None = None,
    log_every: int = LOG_EVERY,
) -> Model:
    """Train `model` for `steps` calls of `step` and return it (its EMA where asked) in eval mode.

    Args:
        step: called with the step's index; returns a dict of scalar losses with the key "loss". It draws its randomness
            from `rng_for(seed, index)`, which makes a resumed run equal to an unbroken one.
        save_every_s, save_every: a checkpoint after this many seconds, and where given after this many steps.
        ema: decay of the exponential moving average of the weights, or None.
        parameters: optimiser groups with a relative rate "scale"; default: all trainable parameters at scale 1.
        optimizer: makes the optimiser from (groups, lr=...); default AdamW with `betas` and `weight_decay`.
        store: where the checkpoint is; default `work/<name>.pt`.
        watch: called in the first process after every step with the steps done, the model as it would be returned, and
            the losses where they were logged.
    Writes the checkpoint and `work/<name>.jsonl` (losses). A finished stage returns at once.
    Raises:
        InputError: the loss or the weights became NaN or infinite; the last checkpoint stays as it is.
        StyleclipError: a file cannot be written; the last checkpoint stays as it is.
    """
    work.mkdir(parents=True, exist_ok=True)
    model.to(device()).train()
    groups = parameters or [{"params": [p for p in model.parameters() if p.requires_grad]}]
    scales = [group.pop("scale", 1.0) for group in groups]
    make = optimizer or partial(torch.optim.AdamW, betas=betas, eps=1e-8, weight_decay=weight_decay)
    parts = Parts(model, copy.deepcopy(model) if ema else None, make(groups, lr=lr))
    store = store or TorchStore(work / f"{name}.pt", device())
    start = store.load(parts)
    keeper, log = _Keeper(name, store, parts, save_every_s, save_every), _Log(work / f"{name}.jsonl", start)
    for i, bar in _steps(name, start, steps):
        for group, scale in zip(parts.optimizer.param_groups, scales, strict=True):
            group["lr"] = _rate(i, steps, lr * scale, schedule, warmup)
        losses = step(i)
        _check_loss(name, i, losses["loss"], store.path)
        parts.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        parts.optimizer.step()
        if parts.average is not None:
            _update_ema(parts.average, model, float(ema or 0), i)
        row = ranks().mean(losses) if i % log_every == 0 else None
        if ranks().first:
            _report(i, bar, log, row)
            if watch is not None:
                watch(i + 1, parts.average or model, row)
        keeper.look(i + 1)
    if start < steps:
        keeper.save(steps, final=True)
    return (parts.average or model).eval()  # type: ignore[return-value]


def _report(step: int, bar: Any, log: _Log, row: dict[str, float] | None) -> None:
    if row is not None:
        bar.set_postfix({k: f"{v:.4f}" for k, v in row.items()})
        log.write(step, row)
