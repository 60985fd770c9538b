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

from ...engines.bundle import sha256_of
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
)

FP16_MAX = 65504.0
TYPE_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
}
"""The types that a pack stores, by their names in safetensors."""


@dataclass(frozen=True)
class Component:
    """One component to write: a module, a dict of tensors, a file or its bytes (JSON); with config, licence and source.

    `exact` stores float32 as it is: imported weights must give the picture of the original to the last digit. `origin`
    says what file an imported component came from: {"file", "sha256", "format"}.
    """

    content: nn.Module | Mapping[str, Tensor] | Path | bytes
    config: Any = None
    licence: str = "Apache-2.0"
    source: str = "styleclip-rt demo train"
    exact: bool = False
    origin: Mapping[str, Any] | None = None


def state_of(module: nn.Module, keep_vars: bool = False) -> dict[str, Tensor]:
    """The tensors that a pack stores for a module, under their names there (CLIP: open_clip's own names).

    They share storage with the module; with `keep_vars` they are its very parameters and buffers. The batch counters of
    batch norms are left out: nothing reads them in eval.
    """
    state = (module.model if isinstance(module, Clip) else module).state_dict(keep_vars=keep_vars)
    rename = pack_name if isinstance(module, Generator) else str
    return {rename(name): tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def stored_dtype(name: str, tensor: Tensor, exact: bool = False) -> torch.dtype:
    """fp16 for matrices and kernels, float32 for vectors and scalars (biases, moments) and where `exact`.

    PackError if not finite.
    """
    tensor = tensor.detach()
    if not tensor.is_floating_point():
        return tensor.dtype
    if not torch.isfinite(tensor).all():
        raise PackError(f"tensor {name!r} holds NaN or infinity; the training that made it went wrong")
    wide = exact or tensor.ndim <= 1 or not tensor.numel() or tensor.abs().max() > FP16_MAX
    return torch.float32 if wide else torch.float16


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
            self.write_manifest(folder, entries)
        return self.path

    def write_manifest(self, folder: Path, entries: Mapping[str, Any]) -> None:
        """Writes pack.json into `folder` for components that stand there already; PackError if it is malformed."""
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "created": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
            "components": dict(entries),
            "templates": self.templates,
            "prompts": self.prompts,
            "alignment": self.alignment,
        }
        check_manifest(manifest, folder / MANIFEST)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.publish()


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], where: str, exact: bool = False) -> None:
    """Writes tensors in their stored form, one at a time: an encoder of 1 GB needs no second GB.

    The bytes are those of safetensors' own writer (widest type first, then by name). `where` names the component.
    """
    dtypes = {name: stored_dtype(f"{where}.{name}", tensor, exact) for name, tensor in tensors.items()}
    order = sorted(tensors, key=lambda name: (-dtypes[name].itemsize, name))
    header, offset = {}, 0
    for name in order:
        if dtypes[name] not in TYPE_NAMES:
            raise PackError(f"tensor {where}.{name!r} has type {dtypes[name]}, which a pack does not store")
        end = offset + tensors[name].numel() * dtypes[name].itemsize
        entry = {"dtype": TYPE_NAMES[dtypes[name]], "shape": list(tensors[name].shape), "data_offsets": [offset, end]}
        header[name], offset = entry, end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            stored = tensors[name].detach().cpu().to(dtypes[name]).contiguous()
            stream.write(stored.reshape(-1).view(torch.uint8).numpy().data if stored.numel() else b"")


def write_component(folder: Path, name: str, part: Component) -> dict[str, Any]:
    """Writes one component's file and returns its manifest entry."""
    stem = name.replace("/", "-")
    if isinstance(part.content, Path):
        file = f"{stem}{part.content.suffix}"
        shutil.copyfile(part.content, folder / file)
    elif isinstance(part.content, bytes):
        file = f"{stem}.json"
        (folder / file).write_bytes(part.content)
    else:
        file = f"{stem}.safetensors"
        state = state_of(part.content) if isinstance(part.content, nn.Module) else part.content
        write_safetensors(folder / file, state, name, part.exact)
    path = safe_path(folder, file)
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
