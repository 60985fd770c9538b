"""Generators from the pickles of the first StyleGAN2 release (TensorFlow): a tuple (G, D, Gs) of `Network` objects.

Kernels there are [height, width, in, out], the style's bias lacks its one, and up-sampling layers hold their kernel
mirrored, since TensorFlow's transposed convolution is written as a convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ....engines.errors import PackError
from ...archives import Array, Opaque, Source, members
from ..networks.stylegan2 import GeneratorConfig
from .generators_common import Draft, average, first, flat, plane, scalar, sides, sized
from .rows import Imported, Row

FORM = "NVIDIA StyleGAN2 pickle (TensorFlow)"
OLDER = "NVIDIA StyleGAN pickle (TensorFlow)"
NETWORK = "dnnlib.tflib.network.Network"
CONVERTER = "convert it with legacy.py of NVIDIA's stylegan2-ada-pytorch and import the result"
# Static arguments that change what is computed: the value that this project has, None where the argument is absent.
ARGUMENTS: Mapping[str, tuple[Any, ...]] = {
    "architecture": (None, "skip"),
    "resample_kernel": (None, [1, 3, 3, 1], (1, 3, 3, 1)),
    "resample_filter": (None, [1, 3, 3, 1], (1, 3, 3, 1)),
    "nonlinearity": (None, "lrelu"),
    "act": (None, "lrelu"),
    "mapping_nonlinearity": (None, "lrelu"),
    "mapping_lrmul": (None, 0.01),
    "normalize_latents": (None, True),
    "normalize_z": (None, True),
    "label_size": (None, 0),
    "num_channels": (None, 3),
}


def recognises(source: Source) -> str | None:
    """Whether the pickle holds TensorFlow networks of StyleGAN2 (or of the first StyleGAN, which is refused)."""
    network = _network(source)
    if network is None:
        return None
    return FORM if "synthesis/4x4/Conv/mod_weight" in _variables(network) else OLDER


def import_generator(source: Source) -> Imported:
    """The component from Gs. Raises PackError for what is not an unconditional StyleGAN2."""
    what, network = source.path.name, _network(source)
    if network is None or recognises(source) != FORM:
        raise PackError(f"{what} holds TensorFlow networks that are not StyleGAN2's generator; expected (G, D, Gs)")
    arguments = _arguments(network)
    odd = [f"{k}={str(arguments[k])[:40]}" for k, allowed in ARGUMENTS.items() if arguments.get(k) not in allowed]
    arrays = _variables(network)
    if odd or any("LabelEmbed" in key or "LabelConcat" in key for key in arrays):
        raise PackError(f"{what} is a StyleGAN2 that is not computed here ({', '.join(odd) or 'conditional'})")
    config = config_of(arrays, _clamp(arguments, what), what)
    draft = Draft(what, FORM, config, arrays, rows(config))
    missing = {f"synthesis/noise{i}": 2 ** ((i + 5) // 2) for i in range(2 * len(config.resolutions) - 1)}
    draft.fill_noise({key: side for key, side in missing.items() if key not in arrays})
    return draft.finish()


def config_of(arrays: Mapping[str, Array], clamp: float | None, what: str) -> GeneratorConfig:
    """Every size from the shapes; nothing from a table."""
    blocks = [r for k in range(2, 16) if f"synthesis/{(r := 2**k)}x{r}/ToRGB/weight" in arrays]
    if not blocks or blocks != [4 << k for k in range(len(blocks))]:
        raise PackError(f"{what}: has toRGB layers at {blocks} px; expected all of 4, 8, ... ('skip' architecture)")
    channels = {r: sides(arrays, f"synthesis/{r}x{r}/ToRGB/weight", what, 4)[2] for r in blocks}
    depth = sum(f"mapping/Dense{i}/weight" in arrays for i in range(64))
    z_dim = sides(arrays, "mapping/Dense0/weight", what, 2)[0]
    w_dim = sides(arrays, "synthesis/4x4/Conv/mod_weight", what, 2)[0]
    return sized(blocks[-1], z_dim, w_dim, depth, channels, clamp, what)


def rows(config: GeneratorConfig) -> list[Row]:
    """Where each variable goes."""
    table = [
        Row(r"dlatent_avg", "mapping.w_avg", average),
        Row(r"(?:.*/)?lod", None),  # the level of detail of progressive training; StyleGAN2 does not read it
        Row(r"mapping/Dense(\d+)/weight", r"mapping.fc\1.weight", np.transpose),
        Row(r"mapping/Dense(\d+)/bias", r"mapping.fc\1.bias"),
        Row(r"synthesis/4x4/Const/const", "synthesis.b4.const", first),
    ]
    noise = 0
    for r in config.resolutions:
        layers = {"conv1": "Conv"} if r == 4 else {"conv0": "Conv0_up", "conv1": "Conv1"}
        for ours, theirs in layers.items():
            target = f"synthesis.b{r}.{ours}"
            table += _modulated_rows(f"synthesis/{r}x{r}/{theirs}", target, mirrored if ours == "conv0" else kernel)
            table.append(Row(f"synthesis/{r}x{r}/{theirs}/noise_strength", f"{target}.noise_strength", scalar))
            table.append(Row(f"synthesis/noise{noise}", f"{target}.noise_const", plane))
            noise += 1
        table += _modulated_rows(f"synthesis/{r}x{r}/ToRGB", f"synthesis.b{r}.torgb", kernel)
    return table


def _modulated_rows(theirs: str, ours: str, weight: Callable[[Array], Array]) -> list[Row]:
    return [
        Row(f"{theirs}/weight", f"{ours}.weight", weight),
        Row(f"{theirs}/bias", f"{ours}.bias", flat),
        Row(f"{theirs}/mod_weight", f"{ours}.affine.weight", np.transpose),
        Row(f"{theirs}/mod_bias", f"{ours}.affine.bias", plus_one),
    ]


def kernel(array: Array) -> Array:
    """[kh, kw, Ci, Co] -> [Co, Ci, kh, kw]."""
    return array.transpose(3, 2, 0, 1)


def mirrored(array: Array) -> Array:
    """[kh, kw, Ci, Co] of an up-sampling layer -> [Co, Ci, kh, kw]."""
    return array[::-1, ::-1].transpose(3, 2, 0, 1)


def plus_one(array: Array) -> Array:
    """The style's bias: TensorFlow adds its one when the network runs."""
    return array + np.float32(1)


def _clamp(arguments: Mapping[str, Any], what: str) -> float | None:
    clamp = arguments.get("conv_clamp")
    if clamp is not None and (type(clamp) not in (int, float) or not 0 < clamp < 1e9):
        raise PackError(f"{what}: conv_clamp is {str(clamp)[:40]}; expected a number or nothing")
    return None if clamp is None else float(clamp)


def _network(source: Source) -> Opaque | None:
    """Gs of (G, D, Gs), or a network that was pickled by itself."""
    if source.kind != "tensorflow":
        return None
    tree = source.tree
    found = tree[2] if isinstance(tree, list | tuple) and len(tree) == 3 else tree
    return found if isinstance(found, Opaque) and found.name == NETWORK and isinstance(found.state, dict) else None


def _parts(network: Opaque) -> dict[str, Opaque]:
    found = members(network.state.get("components"))
    return {k: part for k, part in found.items() if isinstance(part, Opaque) and isinstance(part.state, dict)}


def _variables(network: Opaque, prefix: str = "") -> dict[str, Array]:
    """{path: array} of a network's variables and, under their names, of its components."""
    result = {}
    for row in network.state.get("variables") or ():
        if not isinstance(row, tuple | list) or len(row) != 2 or not isinstance(row[0], str):
            raise PackError(f"the variables of the TensorFlow network are not (name, array); {CONVERTER}")
        value = row[1]
        if not isinstance(value, np.ndarray | int | float):
            raise PackError(f"the variable {row[0][:80]!r} of the TensorFlow network is no array; {CONVERTER}")
        result[prefix + row[0]] = np.asarray(value)
    for name, part in _parts(network).items():
        result.update(_variables(part, f"{prefix}{name}/"))
    return result


def _arguments(network: Opaque) -> dict[str, Any]:
    """Static arguments of a network and its components."""
    result: dict[str, Any] = {}
    for part in (*_parts(network).values(), network):
        result.update(members(part.state.get("static_kwargs")))
    return result
