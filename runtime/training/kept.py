"""What a run found and no disk had room to publish: kept in a small file, and taken up by the same command."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .loop_store import write_durably
from .pack import Pack
from .pack_writer import Component, config_dict

KEY = "unpublished"


@dataclass(frozen=True)
class Kept:
    """The file of a run's results. `stamp`, JSON-ready: everything that they depend on."""

    file: Path
    stamp: Mapping[str, Any]

    def load(self) -> tuple[dict[str, Component], Any] | None:
        """(components by name, record) of an earlier run with this stamp; None where there are none that are whole."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.file, "pt") as file:
                head = json.loads((file.metadata() or {})[KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        except (SafetensorError, OSError, ValueError, KeyError):
            return None
        if head["stamp"] != _plain(self.stamp):
            return None
        return {name: _component(name, entry, tensors) for name, entry in head["components"].items()}, head["record"]

    def save(self, components: Mapping[str, Component], record: Any = None) -> None:
        """Keeps components of tensors and a JSON-ready record; StyleclipError where this has no room either."""
        from safetensors.torch import save

        tensors: dict[str, Tensor] = {}
        entries = {}
        for name, part in components.items():
            if not isinstance(part.content, Mapping):
                raise TypeError(f"{name} is {type(part.content).__name__}; only tensors by name are kept")
            tensors |= {f"{name}:{key}": tensor.detach().cpu().contiguous() for key, tensor in part.content.items()}
            described = {"licence": part.licence, "source": part.source, "exact": part.exact}
            entries[name] = {"config": config_dict(part.content, part.config), **described}
        head = json.dumps({"stamp": self.stamp, "components": entries, "record": record})
        content = save(tensors, {KEY: head})
        write_durably(self.file, lambda file: file.write(content))

    def drop(self) -> None:
        """Removes the file if it is of this stamp, and its folder where nothing else is in it."""
        if self.load() is not None:
            self.file.unlink(missing_ok=True)
        if self.file.parent.is_dir() and not any(self.file.parent.iterdir()):
            self.file.parent.rmdir()


def digests(pack: Pack, *names: str) -> dict[str, str]:
    """SHA-256 of those of the named components that the pack holds: a part of a stamp."""
    return {name: str(pack.entry(name)["sha256"]) for name in names if pack.has(name)}


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _component(name: str, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Component:
    mine = {key.removeprefix(f"{name}:"): t for key, t in tensors.items() if key.startswith(f"{name}:")}
    return Component(mine, entry["config"], entry["licence"], entry["source"], exact=entry["exact"])
