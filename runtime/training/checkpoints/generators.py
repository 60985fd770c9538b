"""Generators from public checkpoints: rosinality's, NVIDIA's (PyTorch and TensorFlow), and those of our own packs."""

from __future__ import annotations

import json
from types import ModuleType

from ....engines.errors import PackError, StyleclipError
from ...archives import Source, describe, listed, members
from ..networks.stylegan2 import GeneratorConfig
from ..pack import generator_config
from ..pack_format import MANIFEST, read_manifest
from . import generators_nvidia, generators_rosinality, generators_tensorflow
from .generators_common import Draft
from .generators_nvidia import config_of
from .generators_rosinality import generator_from_arrays
from .rows import Imported, Row

__all__ = ["generator_from_arrays", "import_generator", "recognises"]

OURS = "styleclip-rt generator"
FORMATS: tuple[ModuleType, ...] = (generators_rosinality, generators_nvidia, generators_tensorflow)


def recognises(source: Source) -> str | None:
    """The format's name where the file holds a generator; by its content, never by its name."""
    if _is_ours(source):
        return OURS
    return next((form for module in FORMATS if (form := module.recognises(source))), None)


def import_generator(source: Source) -> Imported:
    """The generator of a file as component "generator", all tensors float32 and named as in docs/formats.md.

    Every size comes from the file. Raises PackError for a file that holds none, that does not fit (all mismatches at
    once), or whose network is not StyleGAN2 as this project computes it, with the reason.
    """
    if _is_ours(source):
        return _import_ours(source)
    for module in FORMATS:
        if module.recognises(source):
            return module.import_generator(source)
    raise PackError(
        f"{source.path.name} holds no generator: it is {describe(source.tree)} with {listed(members(source.tree))}; "
        "expected rosinality's .pt (g_ema), NVIDIA's .pkl (G_ema), or a pack's generator.safetensors"
    )


def _is_ours(source: Source) -> bool:
    return source.kind == "safetensors" and {"mapping.w_avg", "synthesis.b4.const"} <= members(source.tree).keys()


def _import_ours(source: Source) -> Imported:
    """A pack's file; its config is that of the pack.json beside it, where it is the one listed there."""
    config, notes = _config_beside(source), []
    if config is None:
        config = config_of(source.tree, None, source.path.name)
        notes.append("no pack.json lists this file: sizes are from its shapes, activations are not clamped")
    return Draft(source.path.name, OURS, config, dict(source.tree), [Row(r"(.+)", r"\1")], notes).finish()


def _config_beside(source: Source) -> GeneratorConfig | None:
    if not (source.path.parent / MANIFEST).is_file():
        return None
    try:
        manifest, _ = read_manifest(source.path.parent)
    except (StyleclipError, OSError, json.JSONDecodeError):
        return None
    entry = manifest["components"].get("generator", {})
    return generator_config(entry["config"]) if entry.get("sha256") == source.sha256 else None
