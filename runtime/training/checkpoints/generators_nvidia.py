"""Generators from NVIDIA's PyTorch pickles: stylegan2-ada-pytorch, and StyleGAN2 from the stylegan3 repository.

The pickles carry the source of their classes. It is never read: what the network computes is taken from the class names
and attributes in the file, and whatever is not the StyleGAN2 of this project is refused with its reason.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ....engines.errors import PackError
from ...archives import Array, Opaque, Source, flat_arrays, listed, members
from ..networks.stylegan2 import GeneratorConfig
from .generators_common import Draft, check_filter, plane, sides, sized
from .rows import Imported, Row

PICKLE = "NVIDIA StyleGAN2 pickle"
STYLEGAN3 = "NVIDIA StyleGAN3 pickle"
STATE = "NVIDIA StyleGAN2 (state dict)"
SIGN = "synthesis.b4.const"

ROWS = (
    Row(r"mapping\.(w_avg|fc\d+\.(?:weight|bias))", r"mapping.\1"),
    Row(r"synthesis\.(b4\.const)", r"synthesis.\1"),
    Row(r"synthesis\.(b\d+\.(?:conv[01]|torgb)\.(?:affine\.)?(?:weight|bias))", r"synthesis.\1"),
    Row(r"synthesis\.(b\d+\.conv[01]\.noise_strength)", r"synthesis.\1"),
    Row(r"synthesis\.(b\d+\.conv[01]\.noise_const)", r"synthesis.\1", plane),
    Row(r"synthesis\.b\d+\.(?:conv[01]\.|torgb\.)?resample_filter", None, check_filter(1)),
)

# Class -> attribute -> (the value that this project computes with, what another value means).
RULES: Mapping[str, Mapping[str, tuple[Any, str]]] = {
    "Generator": {"c_dim": (0, "is conditional: it needs a label for each picture, which a pack does not hold")},
    "MappingNetwork": {"c_dim": (0, "is conditional: it needs a label for each picture, which a pack does not hold")},
    "SynthesisNetwork": {"img_channels": (3, "does not make RGB pictures")},
    "SynthesisBlock": {
        "architecture": ("skip", "has another architecture than StyleGAN2's 'skip' (config-e or older experiments)"),
        "img_channels": (3, "does not make RGB pictures"),
    },
    "SynthesisLayer": {
        "activation": ("lrelu", "has another activation than the leaky ReLU"),
        "act_gain": (math.sqrt(2.0), "has another gain after its activation"),
    },
    "ToRGBLayer": {},
    "FullyConnectedLayer": {},
}
LEARNING_RATE = {"mapping": 0.01, "synthesis": 1.0}


def recognises(source: Source) -> str | None:
    """The variant of NVIDIA's networks, or None."""
    if source.kind == "nvidia":
        network, _ = _network(source)
        if network is None:
            return None
        return PICKLE if _is_stylegan2(network) else STYLEGAN3
    return STATE if source.kind == "torch" and SIGN in _state_dict(source) else None


def import_generator(source: Source) -> Imported:
    """The component from G_ema (or G, noted). Raises PackError for what is not an unconditional StyleGAN2."""
    what = source.path.name
    if source.kind != "nvidia":
        note = "a state dict does not say whether activations were clamped: none are (conv_clamp None)"
        return _finish(_state_dict(source), what, STATE, None, [note], frozenset())
    network, key = _network(source)
    if network is None:
        raise PackError(f"{what} holds no generator: it has {listed(members(source.tree))}; expected G_ema")
    if not _is_stylegan2(network):
        raise PackError(
            f"{what} is a StyleGAN3 generator (alias-free layers, no blocks b4, b8, ...); StyleCLIP and this project "
            "work with StyleGAN2. Train or fetch a StyleGAN2 one (--cfg=stylegan2 in the stylegan3 repository)"
        )
    modules = dict(_modules(network))
    _check_rules(modules, what)
    notes = [] if key != "G" else ["the file has no G_ema: the generator as trained (G) was taken"]
    if any(module.state.get("use_fp16") for module in modules.values()):
        notes.append("the original computes its largest layers in float16; here all are float32, which is finer")
    silent = frozenset(name for name, module in modules.items() if module.state.get("use_noise") is False)
    return _finish(flat_arrays(network), what, PICKLE, _clamp(modules, what), notes, silent)


def _finish(
    arrays: Mapping[str, Array], what: str, form: str, clamp: float | None, notes: list[str], silent: frozenset[str]
) -> Imported:
    """silent: layers that the file says use no noise."""
    if any(key.startswith("mapping.embed.") for key in arrays):
        raise PackError(f"{what}: the generator {RULES['Generator']['c_dim'][1]}")
    config = config_of(arrays, clamp, what)
    parts = ("noise_const", "noise_strength")
    zeros = [f"{layer}.{part}" for layer in sorted(silent) for part in parts if f"{layer}.{part}" not in arrays]
    if silent:
        notes = [*notes, "the network was trained without noise: it has none here either"]
    draft = Draft(what, form, config, dict(arrays), ROWS, notes, zeros)
    draft.fill_noise(_missing_noise(arrays, config, frozenset(zeros)))
    return draft.finish()


def config_of(arrays: Mapping[str, Array], clamp: float | None, what: str) -> GeneratorConfig:
    """Every size from the shapes; nothing from a table."""
    blocks = sorted({int(m[1]) for key in arrays if (m := re.fullmatch(r"synthesis\.b(\d{1,5})\..*", key))})
    if not blocks or blocks != [4 << k for k in range(len(blocks))]:
        raise PackError(f"{what}: has blocks of {blocks} px; expected 4, 8, ... up to the picture's size")
    channels = {r: sides(arrays, f"synthesis.b{r}.conv1.weight", what, 4)[0] for r in blocks}
    depth = sum(bool(re.fullmatch(r"mapping\.fc\d+\.weight", key)) for key in arrays)
    z_dim = sides(arrays, "mapping.fc0.weight", what, 2)[1]
    w_dim = sides(arrays, "synthesis.b4.conv1.affine.weight", what, 2)[1]
    return sized(blocks[-1], z_dim, w_dim, depth, channels, clamp, what)


def _missing_noise(arrays: Mapping[str, Array], config: GeneratorConfig, known: frozenset[str]) -> dict[str, int]:
    names = {f"synthesis.b{r}.{c}.noise_const": r for r in config.resolutions for c in ("conv0", "conv1")[r == 4 :]}
    return {key: side for key, side in names.items() if key not in arrays and key not in known}


def _check_rules(modules: Mapping[str, Opaque], what: str) -> None:
    """All that differs from the network of this project, in one PackError."""
    faults = [fault for name, module in modules.items() for fault in _faults(name, module)]
    if faults:
        raise PackError(f"{what} cannot be imported: {'; '.join(faults[:6])}" + (" ..." if len(faults) > 6 else ""))


def _faults(name: str, module: Opaque) -> Iterator[str]:
    shown = name or "the generator"
    if module.name not in RULES:
        yield f"{shown} is of class {module.name[:60]!r}, which is not of StyleGAN2"
        return
    for attribute, (value, meaning) in RULES[module.name].items():
        found = module.state.get(attribute, value)
        if not _equal(found, value):
            yield f"{shown} {meaning} ({attribute} is {str(found)[:40]}, expected {value})"
    if module.name == "FullyConnectedLayer":
        yield from _linear_faults(name, module)


def _linear_faults(name: str, module: Opaque) -> Iterator[str]:
    """The gains of the equalised learning rate are part of the network; they must be those of the published code."""
    part = name.split(".")[0]
    activation = "lrelu" if part == "mapping" else "linear"
    if module.state.get("activation", activation) != activation:
        yield f"{name} has the activation {str(module.state['activation'])[:40]!r}, expected {activation!r}"
    weight = members(module).get("weight")
    if part in LEARNING_RATE and isinstance(weight, np.ndarray) and weight.ndim == 2:
        gains = {"weight_gain": LEARNING_RATE[part] / math.sqrt(weight.shape[1] or 1), "bias_gain": LEARNING_RATE[part]}
        for attribute, value in gains.items():
            found = module.state.get(attribute, value)
            if not _equal(found, value):
                yield f"{name} has another learning rate inside ({attribute} {str(found)[:40]}, expected {value:g})"


def _equal(found: Any, value: Any) -> bool:
    if isinstance(value, float) and isinstance(found, int | float):
        return math.isclose(found, value, rel_tol=1e-5)
    return bool(type(found) in (str, int) and found == value)


def _clamp(modules: Mapping[str, Opaque], what: str) -> float | None:
    """The one limit of activations that all layers share; PackError where they differ or it is no number."""
    layers = [m for m in modules.values() if m.name in ("SynthesisLayer", "ToRGBLayer")]
    found = {m.state.get("conv_clamp") if _is_limit(m.state.get("conv_clamp")) else "?" for m in layers}
    if len(found) != 1 or "?" in found:
        raise PackError(f"{what}: conv_clamp is not one number for all layers; expected the same throughout")
    clamp = found.pop()
    return None if clamp is None else float(clamp)


def _is_limit(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 < value < math.inf)


def _modules(module: Opaque, name: str = "") -> Iterator[tuple[str, Opaque]]:
    """(dotted name, module) of a module and all its parts."""
    yield name, module
    parts = module.state.get("_modules") if isinstance(module.state, dict) else None
    for key, part in (parts if isinstance(parts, dict) else {}).items():
        if isinstance(part, Opaque) and isinstance(part.state, dict):
            yield from _modules(part, f"{name}.{key}" if name else str(key))


def _network(source: Source) -> tuple[Opaque | None, str]:
    """The generator in a pickle, and its key: G_ema, else G, else the pickle itself."""
    tree = members(source.tree)
    for key, value in (("G_ema", tree.get("G_ema")), ("G", tree.get("G")), ("", source.tree)):
        if isinstance(value, Opaque) and {"mapping", "synthesis"} <= members(value).keys():
            return value, key
    return None, ""


def _is_stylegan2(network: Opaque) -> bool:
    return "b4" in members(members(network)["synthesis"])


def _state_dict(source: Source) -> dict[str, Array]:
    """The arrays of a state dict that was saved by itself, or under one of the usual keys."""
    tree = members(source.tree)
    for key in ("G_ema", "g_ema", "G", "state_dict"):
        if SIGN in members(tree.get(key)):
            return flat_arrays(members(tree[key]))
    return flat_arrays(tree) if SIGN in tree else {}
