"""NVIDIA's pickles of StyleGAN2 (PyTorch and TensorFlow) with seeded random weights, made without NVIDIA's code.

Stand-ins of the classes exist only while a file is written, so that the file names them as the real ones do.
"""

from __future__ import annotations

import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .writers import KERNEL, Draw, published_channels, resolutions

SOURCE_TEXT = "raise SystemExit('the source inside a pickle was run')\n"


def nvidia_state(
    size: int = 64,
    mapping: int = 8,
    z_dim: int = 512,
    w_dim: int = 512,
    channels: Mapping[int, int] | None = None,
    base: int = 32768,
    seed: int = 0,
    use_noise: bool = True,
) -> dict[str, np.ndarray]:
    """The arrays of `G_ema` under the names of its state dict, filters included."""
    draw, c = Draw(seed), dict(channels or published_channels(size, base=base))
    state: dict[str, np.ndarray] = {}

    def affine(name: str, inputs: int) -> None:
        state[f"{name}.affine.weight"] = draw(inputs, w_dim)
        state[f"{name}.affine.bias"] = draw(inputs, scale=0.1, mean=1.0)

    def layer(name: str, inputs: int, outputs: int, r: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = draw(outputs, inputs, 3, 3), draw(outputs, scale=0.1)
        if use_noise:
            state[f"{name}.noise_strength"] = draw(scale=0.1)
            state[f"{name}.noise_const"] = draw(r, r)
        state[f"{name}.resample_filter"] = KERNEL
        affine(name, inputs)

    for i in range(mapping):
        state[f"mapping.fc{i}.weight"] = draw(w_dim, w_dim if i else z_dim, scale=100.0)
        state[f"mapping.fc{i}.bias"] = draw(w_dim, scale=10.0)
    state["mapping.w_avg"] = draw(w_dim, scale=0.3)
    for r in resolutions(size):
        block = f"synthesis.b{r}"
        state[f"{block}.resample_filter"] = KERNEL
        if r == 4:
            state[f"{block}.const"] = draw(c[4], 4, 4)
        else:
            layer(f"{block}.conv0", c[r // 2], c[r], r)
        layer(f"{block}.conv1", c[r], c[r], r)
        state[f"{block}.torgb.weight"], state[f"{block}.torgb.bias"] = draw(3, c[r], 1, 1), draw(3, scale=0.1)
        affine(f"{block}.torgb", c[r])
    return state


def nvidia_attributes(name: str, state: Mapping[str, np.ndarray], **options: Any) -> tuple[str, dict[str, Any]]:
    """Class name and plain attributes of the module at `name`, as NVIDIA's constructors set them.

    options: conv_clamp, architecture, c_dim, use_noise, and anything that overrides an attribute, as
    {"SynthesisLayer.activation": "relu"}.
    """
    sizes = {key: array.shape for key, array in state.items()}
    mapping = sum(key.endswith(".bias") and key.startswith("mapping.fc") for key in state)
    blocks = [int(key.split(".")[1][1:]) for key in state if key.endswith(".torgb.bias")]
    common = {
        "c_dim": options.get("c_dim", 0),
        "w_dim": sizes["mapping.w_avg"][0],
        "z_dim": sizes["mapping.fc0.weight"][1],
    }
    clamp, parts = options.get("conv_clamp"), name.split(".")
    if name == "":
        kind = ("Generator", {**common, "img_resolution": max(blocks), "img_channels": 3, "num_ws": 2 * len(blocks)})
    elif name == "mapping":
        own = {"num_ws": 2 * len(blocks), "num_layers": mapping, "w_avg_beta": 0.995}
        kind = ("MappingNetwork", {**common, **own})
    elif name == "synthesis":
        own = {"img_resolution": max(blocks), "img_resolution_log2": len(blocks) + 1, "img_channels": 3}
        kind = ("SynthesisNetwork", {"w_dim": common["w_dim"], **own, "block_resolutions": blocks})
    elif parts[0] == "mapping" or parts[-1] == "affine":
        inputs, mul = sizes[f"{name}.weight"][1], 0.01 if parts[0] == "mapping" else 1
        own = {"activation": "lrelu" if parts[0] == "mapping" else "linear"}
        kind = ("FullyConnectedLayer", {**own, "weight_gain": mul / np.sqrt(inputs), "bias_gain": mul})
    elif len(parts) == 2:
        r = int(parts[1][1:])
        own = {
            "in_channels": 0 if r == 4 else sizes[f"{name}.conv0.weight"][1],
            "w_dim": common["w_dim"],
            "resolution": r,
        }
        own |= {"img_channels": 3, "is_last": r == max(blocks), "architecture": options.get("architecture", "skip")}
        own |= {
            "use_fp16": bool(clamp) and r > 4,
            "channels_last": False,
            "num_conv": 1 if r == 4 else 2,
            "num_torgb": 1,
        }
        kind = ("SynthesisBlock", own)
    elif parts[-1] == "torgb":
        inputs = sizes[f"{name}.weight"][1]
        kind = ("ToRGBLayer", {"conv_clamp": clamp, "weight_gain": 1 / np.sqrt(inputs)})
    else:
        own = {"resolution": int(parts[1][1:]), "up": 2 if parts[-1] == "conv0" else 1, "activation": "lrelu"}
        own |= {"use_noise": f"{name}.noise_const" in state, "conv_clamp": clamp, "padding": 1, "act_gain": np.sqrt(2)}
        kind = ("SynthesisLayer", own)
    overrides = {key.split(".")[1]: value for key, value in options.items() if key.split(".")[0] == kind[0]}
    return kind[0], {**kind[1], **overrides}


@contextmanager
def stand_ins() -> Iterator[types.SimpleNamespace]:
    """The names that NVIDIA's pickles refer to, importable only inside the block; none of them does anything."""

    def _reconstruct_persistent_obj(meta: Any) -> None:
        raise AssertionError("a reader called it")

    class EasyDict(dict):
        pass

    class Network:
        pass

    names = {"torch_utils.persistence": _reconstruct_persistent_obj, "dnnlib.util": EasyDict}
    names["dnnlib.tflib.network"] = Network
    made = {"torch_utils", "dnnlib", "dnnlib.tflib"} | names.keys()
    before = {name: sys.modules.get(name) for name in made}
    sys.modules.update({name: types.ModuleType(name) for name in made})
    for module, thing in names.items():
        thing.__module__, thing.__qualname__ = module, thing.__name__
        setattr(sys.modules[module], thing.__name__, thing)
    try:
        yield types.SimpleNamespace(rebuild=_reconstruct_persistent_obj, EasyDict=EasyDict, Network=Network)
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class Persistent:
    """An object that pickles as NVIDIA's persistent classes do: its source text travels along."""

    def __init__(self, rebuild: Any, easy_dict: Any, class_name: str, state: dict[str, Any]):
        meta = {"type": "class", "version": 6, "module_src": SOURCE_TEXT, "class_name": class_name, "state": state}
        self.reduced = (rebuild, (easy_dict(meta),))

    def __reduce__(self) -> Any:
        return self.reduced


def persistent_module(names: Any, state: Mapping[str, np.ndarray], prefix: str = "", **options: Any) -> Persistent:
    """The module at `prefix` with its parameters, buffers and parts, as torch keeps them in `__dict__`."""
    class_name, attributes = nvidia_attributes(prefix, state, **options)
    parameters: OrderedDict[str, Any] = OrderedDict()
    buffers: OrderedDict[str, Any] = OrderedDict()
    modules: OrderedDict[str, Any] = OrderedDict()
    begin = f"{prefix}." if prefix else ""
    for key, array in state.items():
        if not key.startswith(begin):
            continue
        head, _, rest = key[len(begin) :].partition(".")
        if rest:
            modules[head] = None
        elif head in ("resample_filter", "noise_const", "w_avg"):
            buffers[head] = torch.from_numpy(np.array(array))
        else:
            parameters[head] = torch.nn.Parameter(torch.from_numpy(np.array(array)))
    for head in modules:
        modules[head] = persistent_module(names, state, f"{begin}{head}", **options)
    own = {"training": False, "_parameters": parameters, "_buffers": buffers, "_non_persistent_buffers_set": set()}
    own |= {"_backward_hooks": OrderedDict(), "_is_full_backward_hook": None, "_modules": modules}
    own |= {"_init_args": (), "_init_kwargs": names.EasyDict()}
    return Persistent(names.rebuild, names.EasyDict, class_name, {**own, **attributes})


def write_nvidia(
    path: Path, protocol: int = 4, options: Mapping[str, Any] | None = None, **sizes: Any
) -> dict[str, Any]:
    """Writes a `.pkl` as training does ({G, D, G_ema, training_set_kwargs, augment_pipe}); returns G_ema's arrays."""
    state, chosen = nvidia_state(**sizes), dict(options or {})
    with stand_ins() as names:
        g_ema = persistent_module(names, state, **chosen)
        discriminator = Persistent(names.rebuild, names.EasyDict, "Discriminator", {"training": False, "c_dim": 0})
        tree = {"G": g_ema, "D": discriminator, "G_ema": g_ema, "augment_pipe": None}
        tree["training_set_kwargs"] = names.EasyDict(class_name="training.dataset.ImageFolderDataset", path="data.zip")
        with path.open("wb") as stream:
            pickle.dump(tree, stream, protocol=protocol)
    return state


# TensorFlow (the first StyleGAN2 release)


def tensorflow_variables(
    size: int = 64, mapping: int = 8, width: int = 512, channels: Mapping[int, int] | None = None, seed: int = 0
) -> dict[str, dict[str, np.ndarray]]:
    """Variables of Gs by network ("", "mapping", "synthesis"): kernels are [height, width, in, out]."""
    draw, c = Draw(seed), dict(channels or published_channels(size))
    synthesis: dict[str, np.ndarray] = {}

    def modulated(name: str, inputs: int, outputs: int, kernel: int) -> None:
        synthesis[f"{name}/weight"] = draw(kernel, kernel, inputs, outputs)
        synthesis[f"{name}/mod_weight"] = draw(width, inputs)
        synthesis[f"{name}/mod_bias"] = draw(inputs, scale=0.1)
        if kernel == 3:
            synthesis[f"{name}/noise_strength"] = draw(scale=0.1)
        synthesis[f"{name}/bias"] = draw(outputs, scale=0.1)

    for index in range(2 * len(resolutions(size)) - 1):
        synthesis[f"noise{index}"] = draw(1, 1, 2 ** ((index + 5) // 2), 2 ** ((index + 5) // 2))
    synthesis["4x4/Const/const"] = draw(1, c[4], 4, 4)
    for r in resolutions(size):
        if r == 4:
            modulated("4x4/Conv", c[4], c[4], 3)
        else:
            modulated(f"{r}x{r}/Conv0_up", c[r // 2], c[r], 3)
            modulated(f"{r}x{r}/Conv1", c[r], c[r], 3)
        modulated(f"{r}x{r}/ToRGB", c[r], 3, 1)
    dense: dict[str, np.ndarray] = {}
    for i in range(mapping):
        dense[f"Dense{i}/weight"], dense[f"Dense{i}/bias"] = draw(width, width, scale=100.0), draw(width, scale=10.0)
    top = {"lod": np.float32(0).reshape(()), "dlatent_avg": draw(width, scale=0.3)}
    return {"": top, "mapping": dense, "synthesis": synthesis}


def write_tensorflow(path: Path, kwargs: Mapping[str, Any] | None = None, **sizes: Any) -> dict[str, Any]:
    """Writes the tuple (G, D, Gs) of `Network` objects; returns Gs' variables. kwargs: its static arguments."""
    variables = tensorflow_variables(**sizes)
    with stand_ins() as names:

        def network(name: str, kind: str, components: Mapping[str, Any]) -> Any:
            made = names.Network()
            made.__dict__ |= {
                "version": 4,
                "name": name or "Gs",
                "build_module_src": SOURCE_TEXT,
                "build_func_name": kind,
            }
            made.__dict__ |= {"static_kwargs": names.EasyDict(kwargs or {}), "components": names.EasyDict(components)}
            made.__dict__["variables"] = list(variables[name].items())
            return made

        parts = {
            "synthesis": network("synthesis", "G_synthesis_stylegan2", {}),
            "mapping": network("mapping", "G_mapping", {}),
        }
        average = network("", "G_main", parts)
        with path.open("wb") as stream:
            pickle.dump((average, average, average), stream, protocol=4)
    return variables
