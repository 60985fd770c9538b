"""One training loop for everything that trains: resumable, exact to the step, with a progress bar and a log."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...engines.errors import InputError

Model = TypeVar("Model", bound=nn.Module)
LOG_EVERY = 50


def device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fast_bfloat16(home: torch.device) -> bool:
    """Whether bfloat16 saves time: on CUDA and on CPUs with AVX512-BF16; others emulate it, ten times slower."""
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return home.type == "cuda" or (probe is not None and bool(probe()))


def rng_for(seed: int, step: int) -> np.random.Generator:
    """The randomness of one step: a function of (seed, step), so that a resumed run equals an unbroken one."""
    return np.random.default_rng([seed, step])


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """torch.save through a temporary file and a rename: a kill leaves the old checkpoint or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".tmp{os.getpid()}")
    torch.save(state, temporary)
    os.replace(temporary, path)


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


def _resume(path: Path, model: nn.Module, average: nn.Module | None, optimizer: torch.optim.Optimizer) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, map_location=device(), weights_only=True)
    model.load_state_dict(state["model"])
    if average is not None:
        average.load_state_dict(state["ema"])
    if state["optimizer"] is not None:
        optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def load_stage(work: Path, name: str, model: Model) -> Model:
    """The finished weights of a stage (EMA where it kept one) into `model`, in eval mode."""
    path = work / f"{name}.pt"
    if not path.exists():
        raise InputError(f"{path} does not exist: run the stage {name!r} first (styleclip-rt demo train --work {work})")
    state = torch.load(path, map_location=device(), weights_only=True)
    model.load_state_dict(state["ema"] if state["ema"] is not None else state["model"])
    return model.to(device()).eval()


def _steps(name: str, start: int, steps: int) -> Iterator[tuple[int, Any]]:
    with tqdm(total=steps, initial=start, desc=name, unit="step", mininterval=2.0) as bar:
        for i in range(start, steps):
            yield i, bar
            bar.update()


def train(
    name: str,
    work: Path,
    model: Model,
    step: Callable[[int], dict[str, Tensor]],
    *,
    steps: int,
    lr: float,
    save_every_s: float = 60.0,
    ema: float | None = None,
    schedule: str = "cosine",
    warmup: int = 50,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    parameters: list[dict[str, Any]] | None = None,
) -> Model:
    """Train `model` for `steps` calls of `step` and return it (its EMA where asked) in eval mode.

    Args:
        step: called with the step's index; returns a dict of scalar losses with the key "loss". It draws its randomness
            from `rng_for(seed, index)`, which makes a resumed run equal to an unbroken one.
        ema: decay of the exponential moving average of the weights, or None.
        parameters: optimiser groups with a relative rate "scale"; default: all trainable parameters at scale 1.
    Writes `work/<name>.pt` (resumable) and `work/<name>.jsonl` (losses). A finished stage returns at once.
    Raises:
        InputError: the loss became NaN or infinite; the last checkpoint stays as it is.
    """
    path = work / f"{name}.pt"
    work.mkdir(parents=True, exist_ok=True)
    model.to(device()).train()
    groups = parameters or [{"params": [p for p in model.parameters() if p.requires_grad]}]
    scales = [group.pop("scale", 1.0) for group in groups]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, eps=1e-8, weight_decay=weight_decay)
    average = copy.deepcopy(model) if ema else None
    start, saved, began = _resume(path, model, average, optimizer), time.monotonic(), time.monotonic()

    def save(done: int) -> None:
        final = done >= steps
        state = {"step": done, "model": model.state_dict(), "ema": average.state_dict() if average else None}
        save_atomically({**state, "optimizer": None if final else optimizer.state_dict()}, path)

    for i, bar in _steps(name, start, steps):
        for group, scale in zip(optimizer.param_groups, scales, strict=True):
            group["lr"] = _rate(i, steps, lr * scale, schedule, warmup)
        losses = step(i)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        optimizer.step()
        if average is not None:
            _update_ema(average, model, float(ema or 0), i)
        if i % LOG_EVERY == 0:
            row = {k: float(v.detach()) for k, v in losses.items()}
            if not math.isfinite(row["loss"]):
                raise InputError(f"stage {name}: the loss is {row['loss']} at step {i}; lower lr or resume from {path}")
            bar.set_postfix({k: f"{v:.4f}" for k, v in row.items()})
            with (work / f"{name}.jsonl").open("a") as log:
                log.write(json.dumps({"step": i, "seconds": round(time.monotonic() - began, 1), **row}) + "\n")
        if time.monotonic() - saved > save_every_s:
            save(i + 1)
            saved = time.monotonic()
    if start < steps:
        save(steps)
    return (average or model).eval()  # type: ignore[return-value]
