"""Checkpoints of the training loop: what a run needs to go on as if it had never stopped.

A checkpoint is written beside its place, synced to the disk and renamed, so that a kill, a full disk or a lost power
supply leaves the old one or the new one, never none. Randomness is not in it: a step's is a function of (seed, step).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import torch
from torch import Tensor, nn

from ...engines.errors import InputError, StyleclipError

FORMAT, VERSION = "styleclip-rt/training", 1


@dataclass
class Parts:
    """Everything that changes while a model trains. `seconds`: how long it has trained, over all runs."""

    model: nn.Module
    average: nn.Module | None
    optimizer: torch.optim.Optimizer
    seconds: float = 0.0


class Store(Protocol):
    """One checkpoint on disk."""

    path: Path

    def load(self, parts: Parts) -> int:
        """Fills `parts` and returns how many steps are done; 0, and nothing changed, where there is no checkpoint."""

    def save(self, parts: Parts, step: int, final: bool) -> None:
        """Replaces the checkpoint atomically; StyleclipError leaves the old one in place."""


def write_durably(path: Path, save: Callable[[IO[bytes]], object]) -> None:
    """Calls `save` on a file beside `path`, syncs it and renames it. StyleclipError says that `path` is as it was."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            save(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as a RuntimeError
        why = (error.strerror if isinstance(error, OSError) else None) or str(error).partition("\n")[0]
        kept = "the checkpoint there is the previous one, whole" if path.exists() else "there is no checkpoint yet"
        raise StyleclipError(f"cannot write {path}: {why}; {kept}. Mend that and run the command again") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` durable, where the system lets folders be synced."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """torch.save through `write_durably`."""
    write_durably(path, lambda file: torch.save(state, file))


class TorchStore:
    """The checkpoints of the embedded pack's recipe: one torch file; a finished one holds no optimiser."""

    def __init__(self, path: Path, home: torch.device) -> None:
        self.path, self.home = path, home

    def load(self, parts: Parts) -> int:
        """See `Store`."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, map_location=self.home, weights_only=True)
        parts.model.load_state_dict(state["model"])
        if parts.average is not None:
            parts.average.load_state_dict(state["ema"])
        if state["optimizer"] is not None:
            parts.optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])

    def save(self, parts: Parts, step: int, final: bool) -> None:
        """See `Store`."""
        average = parts.average.state_dict() if parts.average else None
        optimizer = None if final else parts.optimizer.state_dict()
        state = {"step": step, "model": parts.model.state_dict(), "ema": average, "optimizer": optimizer}
        save_atomically(state, self.path)


class SafetensorsStore:
    """One safetensors file with the tensors `model.*`, `ema.*` and `optimizer.<parameter>.*`, all float32 as they are.

    The metadata holds the steps done, the optimiser's numbers and `settings`: what the run was started with. A run with
    other settings is refused, since it would be neither the one nor the other.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.settings = json.loads(json.dumps(dict(settings)))
        self.step, self.seconds = 0, 0.0  # of the checkpoint, once it was loaded or saved

    def done(self) -> int:
        """Steps of the checkpoint on disk; InputError as `load`."""
        if not self.path.exists():
            return 0
        head = self._read()[1]
        self._check_settings(head["settings"])
        return int(head["step"])

    def load(self, parts: Parts) -> int:
        """See `Store`; InputError for a damaged file, or one of a run with other settings."""
        if not self.path.exists():
            return 0
        tensors, head = self._read()
        self._check_settings(head["settings"])
        try:
            parts.model.load_state_dict(_under("model.", tensors))
            if parts.average is not None:
                parts.average.load_state_dict(_under("ema.", tensors))
            _load_optimizer(parts.optimizer, _under("optimizer.", tensors), head["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(f"{self.path} does not fit this training: {error}; name another --work") from None
        parts.seconds = self.seconds = float(head["seconds"])
        self.step = int(head["step"])
        return self.step

    def save(self, parts: Parts, step: int, final: bool) -> None:
        """See `Store`."""
        from safetensors.torch import save

        state, numbers = _optimizer_state(parts.optimizer)
        tensors = {f"model.{name}": tensor for name, tensor in parts.model.state_dict().items()}
        if parts.average is not None:
            tensors |= {f"ema.{name}": tensor for name, tensor in parts.average.state_dict().items()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in state.items()}
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        head = {"format": FORMAT, "version": VERSION, "step": step, "seconds": round(parts.seconds, 1)}
        text = json.dumps({**head, "optimizer": numbers, "settings": self.settings})
        content = save(stored, {"training": text})
        write_durably(self.path, lambda file: file.write(content))
        self.step, self.seconds = step, parts.seconds

    def _read(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "pt") as file:
                head = json.loads((file.metadata() or {})["training"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise InputError(f"{self.path} is no checkpoint of a training: {error}; remove it to start anew") from None
        if head.get("format") != FORMAT or head.get("version") != VERSION:
            raise InputError(
                f"{self.path} has format {head.get('format')!r}, version {head.get('version')!r}; this program reads "
                f"{FORMAT!r}, version {VERSION}"
            )
        return tensors, head

    def _check_settings(self, stored: dict[str, Any]) -> None:
        keys = [key for key in {**stored, **self.settings} if stored.get(key) != self.settings.get(key)]
        if keys:
            other = "; ".join(f"{key} {stored.get(key)!r}, now {self.settings.get(key)!r}" for key in keys)
            raise InputError(
                f"{self.path} is of a run with other settings ({other}); repeat those, or name another --work"
            )


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
    """(tensors by "<parameter>.<key>", numbers by parameter and key) of an optimiser's state."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, float]] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value
            else:
                numbers.setdefault(str(index), {})[key] = value
    return tensors, numbers


def _load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Mapping[str, float]]
) -> None:
    state: dict[int, dict[str, Any]] = {int(index): dict(entries) for index, entries in numbers.items()}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    missing = sum(len(group["params"]) for group in groups) - len(state)
    if missing:
        raise ValueError(f"the optimiser's state of {missing} parameters is missing")
    optimizer.load_state_dict({"state": state, "param_groups": groups})
