"""Generators in the layout of rosinality/stylegan2-pytorch, on which StyleCLIP, e4e and pSp build."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ....engines.errors import PackError
from ...archives import Array, Source, flat_arrays, members
from ..networks.stylegan2 import GeneratorConfig
from .generators_common import Draft, average, check_filter, first, flat, plane, run_length, scalar, sides, sized
from .rows import Imported, Row

WHOLE = "rosinality StyleGAN2"
STATE = "rosinality StyleGAN2 (state dict)"
INSIDE = "rosinality StyleGAN2 inside a checkpoint of StyleCLIP, e4e or pSp"
SIGN = "input.input"
AVERAGE = "latent_avg"


def recognises(source: Source) -> str | None:
    """The variant of the layout, or None."""
    found = _found(source)
    return found[0] if found else None


def import_generator(source: Source) -> Imported:
    """The generator of any variant: `g_ema` before `g`, a bare state dict, or `decoder.*` of a larger checkpoint."""
    found = _found(source)
    if found is None:
        raise PackError(f"{source.path.name} holds no generator in rosinality's layout")
    form, part, key = found
    arrays, notes = _state(part, "decoder." if form == INSIDE else ""), []
    if key == "g":
        notes.append("the file has no g_ema: the generator as trained (g) was taken, whose pictures are rougher")
    latent_avg = members(source.tree).get(AVERAGE)
    if form == WHOLE:
        left = [name for name in members(source.tree) if name not in (key, AVERAGE)]
        notes += [f"left out of the file: {', '.join(map(str, left[:12]))}"] if left else []
    return generator_from_arrays(
        arrays, source.path.name, form, latent_avg if isinstance(latent_avg, np.ndarray) else None, notes
    )


def generator_from_arrays(
    arrays: Mapping[str, Array],
    what: str,
    form: str = WHOLE,
    latent_avg: Array | None = None,
    notes: list[str] | None = None,
) -> Imported:
    """The component from the arrays of a generator's state dict and its average of w, where there is one.

    `what` names the file in messages. Raises PackError that lists all that does not fit.
    """
    config = config_of(arrays, what)
    taken = {**arrays} if latent_avg is None else {**arrays, AVERAGE: latent_avg}
    draft = Draft(what, form, config, taken, rows(config), list(notes or ()))
    draft.fill_noise({key: side for key, side in noise_sides(config).items() if key not in arrays})
    return draft.finish()


def config_of(arrays: Mapping[str, Array], what: str) -> GeneratorConfig:
    """Every size from the shapes; nothing from a table."""
    steps = run_length(arrays, "to_rgbs.{}.bias")
    channels = {4: sides(arrays, SIGN, what, 4)[1]}
    for k in range(min(steps, 16)):
        channels[8 << k] = sides(arrays, f"convs.{2 * k + 1}.conv.weight", what, 5)[1]
    depth = run_length(arrays, "style.{}.weight", first=1)
    z_dim = sides(arrays, "style.1.weight", what, 2)[1]
    w_dim = sides(arrays, "conv1.conv.modulation.weight", what, 2)[1]
    return sized(4 << min(steps, 16), z_dim, w_dim, depth, channels, None, what)


def rows(config: GeneratorConfig) -> list[Row]:
    """Where each key goes. toRGB k shares its block with convs 2k and 2k + 1."""
    table = [
        Row(r"latent_avg", "mapping.w_avg", average),
        Row(r"input\.input", "synthesis.b4.const", first),
        Row(r".*\.(?:blur|upsample)\.kernel", None, check_filter(4)),  # up-sampling by two multiplies it by four
    ]
    table += [Row(rf"style\.{i + 1}\.(weight|bias)", rf"mapping.fc{i}.\1") for i in range(config.mapping_layers)]
    noise = 0
    for k, r in enumerate(config.resolutions):
        names = {"conv1": "conv1"} if k == 0 else {"conv0": f"convs.{2 * k - 2}", "conv1": f"convs.{2 * k - 1}"}
        for ours, theirs in names.items():
            table += _layer_rows(re.escape(theirs), f"synthesis.b{r}.{ours}")
            table.append(Row(rf"noises\.noise_{noise}", f"synthesis.b{r}.{ours}.noise_const", plane))
            noise += 1
        table += _rgb_rows("to_rgb1" if k == 0 else rf"to_rgbs\.{k - 1}", f"synthesis.b{r}.torgb")
    return table


def noise_sides(config: GeneratorConfig) -> dict[str, int]:
    """{key: pixels a side} of the noise buffers: one at 4 px, two at each larger resolution."""
    return {f"noises.noise_{i}": 2 ** ((i + 5) // 2) for i in range(2 * len(config.resolutions) - 1)}


def _layer_rows(theirs: str, ours: str) -> list[Row]:
    return [
        Row(rf"{theirs}\.conv\.weight", f"{ours}.weight", first),
        Row(rf"{theirs}\.conv\.modulation\.(weight|bias)", rf"{ours}.affine.\1"),
        Row(rf"{theirs}\.noise\.weight", f"{ours}.noise_strength", scalar),
        Row(rf"{theirs}\.activate\.bias", f"{ours}.bias"),
    ]


def _rgb_rows(theirs: str, ours: str) -> list[Row]:
    return [
        Row(rf"{theirs}\.bias", f"{ours}.bias", flat),
        Row(rf"{theirs}\.conv\.weight", f"{ours}.weight", first),
        Row(rf"{theirs}\.conv\.modulation\.(weight|bias)", rf"{ours}.affine.\1"),
    ]


def _found(source: Source) -> tuple[str, Any, str] | None:
    """(variant, the part of the tree that holds it, its key)."""
    if source.kind not in ("torch", "safetensors"):
        return None
    tree = members(source.tree)
    for key in ("g_ema", "g"):
        if SIGN in _state(tree.get(key)):
            return WHOLE, tree[key], key
    if SIGN in _state(source.tree):
        return STATE, source.tree, ""
    for part in (tree.get("state_dict"), source.tree):
        if f"decoder.{SIGN}" in members(part):
            return INSIDE, part, "decoder"
    return None


def _state(part: Any, prefix: str = "") -> dict[str, Array]:
    """The arrays of a state dict under `prefix`, without that and without `module.` of parallel training."""
    arrays = {} if part is None else flat_arrays(members(part))
    if arrays and all(key.startswith("module.") for key in arrays):
        arrays = {key.removeprefix("module."): array for key, array in arrays.items()}
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
