"""Writes model packs: fp16 safetensors, hashes, licences, and a folder that appears whole or not at all."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ...engines.errors import PackError
from .networks.clip import Clip
from .networks.stylegan2 import Generator, pack_name
from .pack_format import (
    COMPONENT,
    FORMAT,
    MANIFEST,
    VERSION,
    atomic_directory,
    check_file,
    check_manifest,
    read_manifest,
    safe_path,
    sha256_of,
)

FP16_MAX = 65504.0


@dataclass(frozen=True)
class Component:
    """One component to write: a module, a dict of tensors, or a file; with config, licence and source.

    `exact` stores float32 as it is: imported weights must give the picture of the original to the last digit. `origin`
    says what file an imported component came from: {"file", "sha256", "format"}.
    """

    content: nn.Module | Mapping[str, Tensor] | Path
    config: Any = None
    licence: str = "Apache-2.0"
    source: str = "styleclip-rt demo train"
    exact: bool = False
    origin: Mapping[str, Any] | None = None


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """The tensors that a pack stores for a module, under their names there (CLIP: open_clip's own names).

    They share storage with the module. The batch counters of batch norms are left out: nothing reads them in eval.
    """
    state = (module.model if isinstance(module, Clip) else module).state_dict()
    rename = pack_name if isinstance(module, Generator) else str
    return {rename(name): tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def stored_form(name: str, tensor: Tensor, exact: bool = False) -> Tensor:
    """fp16 for matrices and kernels, float32 for vectors and scalars (biases, moments) and where `exact`.

    PackError if not finite.
    """
    tensor = tensor.detach().cpu().contiguous()
    if not tensor.is_floating_point():
        return tensor
    if not torch.isfinite(tensor).all():
        raise PackError(f"tensor {name!r} holds NaN or infinity; the training that made it went wrong")
    if exact or tensor.ndim <= 1 or tensor.abs().max() > FP16_MAX:
        return tensor.float()
    return tensor.half()


def config_dict(content: object, config: Any) -> dict[str, Any]:
    """A component's config as JSON-ready dict; taken from the module when none is given."""
    config = getattr(content, "config", None) if config is None else config
    if config is None:
        return {}
    if hasattr(config, "to_dict"):
        return config.to_dict()
    if is_dataclass(config) and not isinstance(config, type):
        return asdict(config)
    return {str(key): value for key, value in dict(config).items()}


class PackWriter:
    """Collects components and publishes a pack in one step; nothing is written before `publish`.

        with PackWriter(folder, "toyfaces") as writer:
            writer.add("generator", generator)
            writer.prompts["bob-cut"] = {...}

    With `base` (a pack folder) its components, templates, prompts and alignment are carried over and can be replaced.
    Leaving the block publishes, unless it raised.
    """

    def __init__(self, path: str | Path, name: str, base: str | Path | None = None):
        self.path, self.name = Path(path), name
        self.components: dict[str, Component] = {}
        self.templates: list[str] = []
        self.prompts: dict[str, dict[str, Any]] = {}
        self.alignment: dict[str, Any] = {"kind": "none"}
        if base is not None:
            self.carry_over(Path(base))

    def carry_over(self, base: Path) -> None:
        """Takes over everything that the pack at `base` holds."""
        manifest, _ = read_manifest(base)
        self.templates, self.prompts = list(manifest["templates"]), dict(manifest["prompts"])
        self.alignment = dict(manifest["alignment"])
        for name, entry in manifest["components"].items():
            path = check_file(base, name, entry)
            licence, source = str(entry.get("licence", "unknown")), str(entry.get("source", "unknown"))
            self.components[name] = Component(
                path, entry.get("config", {}), licence, source, origin=entry.get("origin")
            )

    def add(
        self,
        component: str,
        content: nn.Module | Mapping[str, Tensor] | Path,
        config: Any = None,
        licence: str = "Apache-2.0",
        source: str = "styleclip-rt demo train",
    ) -> None:
        """Adds or replaces a component; a module brings its own config. Raises PackError for a malformed name."""
        if not COMPONENT.fullmatch(component):
            raise PackError(f"component name {component!r} may hold only a-z, 0-9, '-', '_' and one '/'")
        self.components[component] = Component(content, config, licence, source)

    def publish(self) -> Path:
        """Writes everything and returns the pack's folder."""
        with atomic_directory(self.path, MANIFEST) as folder:
            entries = {name: write_component(folder, name, part) for name, part in self.components.items()}
            manifest = {
                "format": FORMAT,
                "version": VERSION,
                "name": self.name,
                "created": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
                "components": entries,
                "templates": self.templates,
                "prompts": self.prompts,
                "alignment": self.alignment,
            }
            check_manifest(manifest, folder / MANIFEST)
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return self.path

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.publish()


def write_component(folder: Path, name: str, part: Component) -> dict[str, Any]:
    """Writes one component's file and returns its manifest entry."""
    from safetensors.torch import save_file

    stem = name.replace("/", "-")
    if isinstance(part.content, Path):
        file = f"{stem}{part.content.suffix}"
        shutil.copyfile(part.content, folder / file)
    else:
        file = f"{stem}.safetensors"
        state = state_of(part.content) if isinstance(part.content, nn.Module) else part.content
        stored = {key: stored_form(f"{name}.{key}", tensor, part.exact) for key, tensor in state.items()}
        save_file(stored, folder / file)
    path = safe_path(folder, file)
    path.chmod(0o644)  # safetensors writes 0600, which a system-wide install could not read
    return {
        "file": file,
        "sha256": sha256_of(path),
        "bytes": path.stat().st_size,
        "licence": part.licence,
        "source": part.source,
        "config": config_dict(part.content, part.config),
        **({"origin": dict(part.origin)} if part.origin else {}),
    }


def save_pack(path: str | Path, name: str, components: Mapping[str, Component], **manifest: Any) -> Path:
    """Writes a pack in one call; `manifest` may give templates, prompts and alignment. Returns the folder."""
    unknown = manifest.keys() - {"templates", "prompts", "alignment"}
    if unknown:
        raise PackError(f"save_pack got {sorted(unknown)}; expected templates, prompts, alignment")
    writer = PackWriter(path, name)
    writer.components.update(components)
    for key, value in manifest.items():
        setattr(writer, key, value)
    return writer.publish()
