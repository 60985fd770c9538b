"""rosinality's checkpoints with seeded random weights, at any size: what the real files hold, key by key.

The keys and shapes come from the code that writes the public files. NVIDIA's are in `writers_nvidia`.
"""

from __future__ import annotations

import argparse
import math
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

KERNEL = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.float32) / 64


def resolutions(size: int) -> list[int]:
    """4, 8 ... size."""
    return [2**i for i in range(2, int(math.log2(size)) + 1)]


def published_channels(size: int, multiplier: int = 2, base: int | None = None, most: int = 512) -> dict[int, int]:
    """rosinality's channels by its multiplier (2: config-f), or NVIDIA's by its channel base (32768: config-f)."""
    base = 16384 * multiplier if base is None else base
    return {r: min(base // r, most) for r in resolutions(size)}


class Draw:
    """Seeded float32 numbers for weights, biases, affine biases (near one) and strengths of the noise."""

    def __init__(self, seed: int):
        self.random = np.random.default_rng(seed)

    def __call__(self, *shape: int, scale: float = 1.0, mean: float = 0.0) -> np.ndarray:
        values = self.random.standard_normal(shape, dtype=np.float32)
        if scale != 1.0:
            values = values * np.float32(scale)
        return values + np.float32(mean) if mean else values


# rosinality


def rosinality_state(
    size: int = 64,
    multiplier: int = 2,
    mapping: int = 8,
    width: int = 512,
    channels: Mapping[int, int] | None = None,
    seed: int = 0,
    noises: bool = True,
) -> dict[str, np.ndarray]:
    """The arrays of `g_ema`: 171 of them at 1024 px. Real files have noise buffers; some have lost them."""
    draw, c = Draw(seed), dict(channels or published_channels(size, multiplier))
    state: dict[str, np.ndarray] = {}

    def styled(name: str, inputs: int, outputs: int, up: bool) -> None:
        state[f"{name}.conv.weight"] = draw(1, outputs, inputs, 3, 3)
        if up:
            state[f"{name}.conv.blur.kernel"] = KERNEL * 4
        _modulation(f"{name}.conv", inputs)
        state[f"{name}.noise.weight"] = draw(1, scale=0.1)
        state[f"{name}.activate.bias"] = draw(outputs, scale=0.1)

    def rgb(name: str, inputs: int, up: bool) -> None:
        state[f"{name}.bias"] = draw(1, 3, 1, 1, scale=0.1)
        if up:
            state[f"{name}.upsample.kernel"] = KERNEL * 4
        state[f"{name}.conv.weight"] = draw(1, 3, inputs, 1, 1)
        _modulation(f"{name}.conv", inputs)

    def _modulation(name: str, inputs: int) -> None:
        state[f"{name}.modulation.weight"] = draw(inputs, width)
        state[f"{name}.modulation.bias"] = draw(inputs, scale=0.1, mean=1.0)

    for i in range(1, mapping + 1):
        state[f"style.{i}.weight"], state[f"style.{i}.bias"] = draw(width, width, scale=100.0), draw(width, scale=10.0)
    state["input.input"] = draw(1, c[4], 4, 4)
    styled("conv1", c[4], c[4], False)
    rgb("to_rgb1", c[4], False)
    for k, r in enumerate(resolutions(size)[1:]):
        styled(f"convs.{2 * k}", c[r // 2], c[r], True)
        styled(f"convs.{2 * k + 1}", c[r], c[r], False)
        rgb(f"to_rgbs.{k}", c[r], True)
    if noises:
        for i in range(2 * len(resolutions(size)) - 1):
            state[f"noises.noise_{i}"] = draw(1, 1, 2 ** ((i + 5) // 2), 2 ** ((i + 5) // 2))
    return state


def tensors(state: Mapping[str, np.ndarray]) -> OrderedDict[str, torch.Tensor]:
    """As a state dict of torch."""
    return OrderedDict((name, torch.from_numpy(np.ascontiguousarray(array))) for name, array in state.items())


def write_rosinality(path: Path, variant: str = "converted", legacy: bool = False, **sizes: Any) -> dict[str, Any]:
    """Writes a `.pt` and returns its arrays {"g_ema": ..., "latent_avg": ...}.

    variant: "converted" (convert_weight.py: g_ema and latent_avg), "trained" (train.py: the networks, their optimisers
    and arguments, no latent_avg), "g" (a generator without its average), or "state" (the bare state dict).
    """
    state = rosinality_state(**sizes)
    g_ema, average = tensors(state), Draw(99)(state["style.1.weight"].shape[0], scale=0.3)
    if variant == "converted":
        tree: Any = {"g_ema": g_ema, "latent_avg": torch.from_numpy(average)}
    elif variant == "trained":
        tree = {"g": g_ema, "d": _discriminator(g_ema), "g_ema": g_ema, **_optimisers(g_ema)}
        tree |= {"args": argparse.Namespace(size=64, batch=4, path="data", ckpt=None), "ada_aug_p": 0.25}
    else:
        tree = {"g": {"g": g_ema}, "state": g_ema}[variant]
    torch.save(tree, path, _use_new_zipfile_serialization=not legacy)
    return {"g_ema": state, "latent_avg": average}


def _discriminator(g_ema: Mapping[str, torch.Tensor]) -> OrderedDict[str, torch.Tensor]:
    """Stands for the discriminator: as many weights as the generator, under names of its own."""
    return OrderedDict((f"convs.{i}.0.weight", tensor.clone()) for i, tensor in enumerate(g_ema.values()))


def _optimisers(g_ema: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """State of Adam, of both networks: two moments for each weight."""
    moments = {i: {"step": 9, "exp_avg": t.clone(), "exp_avg_sq": t.clone()} for i, t in enumerate(g_ema.values())}
    group = {"lr": 0.002, "betas": (0.0, 0.99), "eps": 1e-08, "weight_decay": 0, "amsgrad": False}
    state = {"state": moments, "param_groups": [{**group, "params": list(moments)}]}
    return {"g_optim": state, "d_optim": state}
