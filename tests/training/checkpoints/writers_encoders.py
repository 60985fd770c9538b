"""Random checkpoints in the published layouts of IR-SE50, e4e, pSp and StyleCLIP's mappers, from their key tables.

Beside each layout stands what it computes, written straight down from the published definition on the checkpoint's own
keys: nothing of the package is used here. Sizes are the published ones unless a test asks for narrow ones.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F

UNITS = (3, 4, 14, 3)
WIDTHS = (64, 128, 256, 512)
NARROW = (4, 8, 12, 16)  # the same depth, a thousandth of the weights
STRIDES = [stride for units in UNITS for stride in (2, *[1] * (units - 1))]
STYLE_CHANNELS = (*[512] * 15, 256, 256, 256, 128, 128, 128, 64, 64, 64, 32, 32)  # style space at 1024 px


class Draw:
    """Random tensors that keep signals near unit size."""

    def __init__(self, seed: int):
        self.rng = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, std: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=self.rng) * std

    def conv(self, outputs: int, inputs: int, kernel: int) -> torch.Tensor:
        return self.normal(outputs, inputs, kernel, kernel, std=1 / math.sqrt(inputs * kernel * kernel))

    def norm(self, key: str, channels: int) -> dict[str, torch.Tensor]:
        return {
            f"{key}.weight": torch.rand(channels, generator=self.rng) * 0.5 + 0.75,
            f"{key}.bias": self.normal(channels, std=0.1),
            f"{key}.running_mean": self.normal(channels, std=0.1),
            f"{key}.running_var": torch.rand(channels, generator=self.rng) + 0.5,
            f"{key}.num_batches_tracked": torch.tensor(7),
        }


def irse_body(draw: Draw, widths=WIDTHS, reduction: int = 16, prefix: str = "") -> dict[str, torch.Tensor]:
    """input_layer.* and body.* of the backbone."""
    stem = widths[0]
    state = {f"{prefix}input_layer.0.weight": draw.conv(stem, 3, 3), f"{prefix}input_layer.2.weight": prelu(draw, stem)}
    state |= draw.norm(f"{prefix}input_layer.1", stem)
    inputs, index = stem, 0
    for depth, units in zip(widths, UNITS, strict=True):
        for _ in range(units):
            key = f"{prefix}body.{index}"
            if inputs != depth:
                state[f"{key}.shortcut_layer.0.weight"] = draw.conv(depth, inputs, 1)
                state |= draw.norm(f"{key}.shortcut_layer.1", depth)
            state |= draw.norm(f"{key}.res_layer.0", inputs)
            state[f"{key}.res_layer.1.weight"] = draw.conv(depth, inputs, 3)
            state[f"{key}.res_layer.2.weight"] = prelu(draw, depth)
            state[f"{key}.res_layer.3.weight"] = draw.conv(depth, depth, 3)
            state |= draw.norm(f"{key}.res_layer.4", depth)
            state[f"{key}.res_layer.5.fc1.weight"] = draw.conv(depth // reduction, depth, 1)
            state[f"{key}.res_layer.5.fc2.weight"] = draw.conv(depth, depth // reduction, 1)
            inputs, index = depth, index + 1
    return state


def prelu(draw: Draw, channels: int) -> torch.Tensor:
    return torch.rand(channels, generator=draw.rng) * 0.5


def write_identity(seed: int = 0, widths=WIDTHS, reduction: int = 16, embed: int = 512) -> dict[str, torch.Tensor]:
    """model_ir_se50.pth: a bare state dict."""
    draw = Draw(seed)
    features = widths[-1] * 7 * 7
    return {
        **irse_body(draw, widths, reduction),
        **draw.norm("output_layer.0", widths[-1]),
        "output_layer.3.weight": draw.normal(embed, features, std=1 / math.sqrt(features)),
        "output_layer.3.bias": draw.normal(embed, std=0.1),
        **draw.norm("output_layer.4", embed),
    }


def write_encoder(
    seed: int = 0, styles: int = 18, widths=WIDTHS, reduction: int = 16, average: bool = True, **opts
) -> dict[str, object]:
    """An e4e checkpoint: {"state_dict": encoder.* and a scrap of decoder.*, "latent_avg", "opts"}."""
    draw, width = Draw(seed), widths[-1]
    state = irse_body(draw, widths, reduction, "encoder.")
    for layer in range(styles):
        depth = 4 if layer < 3 else 5 if layer < 7 else 6
        for i in range(depth):
            state[f"encoder.styles.{layer}.convs.{2 * i}.weight"] = draw.conv(width, width, 3) * 1.4
            state[f"encoder.styles.{layer}.convs.{2 * i}.bias"] = draw.normal(width, std=0.1)
        state[f"encoder.styles.{layer}.linear.weight"] = draw.normal(width, width)
        state[f"encoder.styles.{layer}.linear.bias"] = draw.normal(width, std=0.1)
    for name, inputs in (("latlayer1", widths[2]), ("latlayer2", widths[1])):
        state[f"encoder.{name}.weight"] = draw.conv(width, inputs, 1)
        state[f"encoder.{name}.bias"] = draw.normal(width, std=0.1)
    state["decoder.style.1.weight"] = draw.normal(4, 4)
    options = {"encoder_type": "Encoder4Editing", "dataset_type": "ffhq_encode", "stylegan_size": 1024}
    file = {"state_dict": state, "opts": {**options, "start_from_latent_avg": average, "device": "cuda:0", **opts}}
    if average:
        file["latent_avg"] = draw.normal(width).repeat(styles, 1)
    return file


def write_mapper(
    kind: str, seed: int = 0, width: int = 512, off=(), channels=STYLE_CHANNELS, opts=None
) -> dict[str, object]:
    """A mapper checkpoint: {"state_dict": mapper.* and a scrap of decoder.*, "opts"}.

    kind: "LevelsMapper" (`off` names groups that are off), "SingleMapper", "FullStyleSpaceMapper" or
    "WithoutToRGBStyleSpaceMapper".
    """
    draw = Draw(seed)
    if kind == "LevelsMapper":
        names = {"coarse": "course_mapping", "medium": "medium_mapping", "fine": "fine_mapping"}
        parts = {name: width for group, name in names.items() if group not in off}
    elif kind == "SingleMapper":
        parts = {"mapping": width}
    else:
        torgb = range(1, len(channels), 3) if kind.startswith("Without") else ()
        parts = {f"mapper_{c}": size for c, size in enumerate(channels) if c not in torgb}
    state = {}
    for name, size in parts.items():
        for layer in (1, 2, 3, 4):
            state[f"mapper.{name}.mapping.{layer}.weight"] = draw.normal(size, size, std=100.0)
            state[f"mapper.{name}.mapping.{layer}.bias"] = draw.normal(size, std=10.0)
    state["decoder.style.1.weight"] = draw.normal(4, 4)
    flags = {f"no_{group}_mapper": group in off for group in ("coarse", "medium", "fine")}
    stated = {"mapper_type": kind if kind in ("LevelsMapper", "SingleMapper") else "LevelsMapper"}
    stated |= {"work_in_stylespace": "StyleSpace" in kind, "description": "purple hair", "stylegan_size": 1024}
    return {"state_dict": state, "opts": {**flags, **stated, **(opts or {})}}


def write_generator(seed: int = 0, width: int = 8, channels=(8, 8, 6)) -> dict[str, torch.Tensor]:
    """The state dict of a small generator (4 px, doubling) in rosinality's layout, as these files hold it."""
    draw = Draw(seed)
    state = {"input.input": draw.normal(1, channels[0], 4, 4), "latent_avg": draw.normal(width)}
    for layer in (1, 2):
        state |= {f"style.{layer}.weight": draw.normal(width, width), f"style.{layer}.bias": draw.normal(width)}
    kernel = torch.outer(*[torch.tensor([1.0, 3.0, 3.0, 1.0])] * 2) / 16

    def conv(key: str, inputs: int, outputs: int, size: int) -> None:
        state[f"{key}.conv.weight"] = draw.normal(1, outputs, inputs, size, size)
        state[f"{key}.conv.modulation.weight"] = draw.normal(inputs, width)
        state[f"{key}.conv.modulation.bias"] = draw.normal(inputs) + 1

    def layer(key: str, inputs: int, outputs: int) -> None:
        conv(key, inputs, outputs, 3)
        state.update({f"{key}.noise.weight": draw.normal(1), f"{key}.activate.bias": draw.normal(outputs)})

    def rgb(key: str, inputs: int) -> None:
        conv(key, inputs, 3, 1)
        state[f"{key}.bias"] = draw.normal(1, 3, 1, 1)

    layer("conv1", channels[0], channels[0])
    rgb("to_rgb1", channels[0])
    state["noises.noise_0"] = draw.normal(1, 1, 4, 4)
    for k, (before, after) in enumerate(itertools.pairwise(channels)):
        layer(f"convs.{2 * k}", before, after)
        layer(f"convs.{2 * k + 1}", after, after)
        rgb(f"to_rgbs.{k}", after)
        state |= {f"convs.{2 * k}.conv.blur.kernel": kernel, f"to_rgbs.{k}.upsample.kernel": kernel}
        for i in (1, 2):
            state[f"noises.noise_{2 * k + i}"] = draw.normal(1, 1, 8 << k, 8 << k)
    return state


# What the layouts compute ---------------------------------------------------------------------------------------------


def norm_of(x: torch.Tensor, state, key: str) -> torch.Tensor:
    return F.batch_norm(
        x, state[f"{key}.running_mean"], state[f"{key}.running_var"], state[f"{key}.weight"], state[f"{key}.bias"]
    )


def body_of(image: torch.Tensor, state, prefix: str = "") -> list[torch.Tensor]:
    """The map after every unit of the backbone."""
    x = F.conv2d(image, state[f"{prefix}input_layer.0.weight"], padding=1)
    x = F.prelu(norm_of(x, state, f"{prefix}input_layer.1"), state[f"{prefix}input_layer.2.weight"])
    maps = []
    for index, stride in enumerate(STRIDES):
        key = f"{prefix}body.{index}"
        if f"{key}.shortcut_layer.0.weight" in state:
            skip = F.conv2d(x, state[f"{key}.shortcut_layer.0.weight"], stride=stride)
            skip = norm_of(skip, state, f"{key}.shortcut_layer.1")
        else:
            skip = F.max_pool2d(x, 1, stride)
        y = F.conv2d(norm_of(x, state, f"{key}.res_layer.0"), state[f"{key}.res_layer.1.weight"], padding=1)
        y = F.prelu(y, state[f"{key}.res_layer.2.weight"])
        y = F.conv2d(y, state[f"{key}.res_layer.3.weight"], stride=stride, padding=1)
        y = norm_of(y, state, f"{key}.res_layer.4")
        gate = F.relu(F.conv2d(F.adaptive_avg_pool2d(y, 1), state[f"{key}.res_layer.5.fc1.weight"]))
        y = y * torch.sigmoid(F.conv2d(gate, state[f"{key}.res_layer.5.fc2.weight"]))
        x = y + skip
        maps.append(x)
    return maps


def identity_of(image: torch.Tensor, state) -> torch.Tensor:
    """StyleCLIP's identity features of an image [N,3,H,W] in -1..1."""
    if image.shape[2] != 256:
        image = F.adaptive_avg_pool2d(image, (256, 256))
    face = F.adaptive_avg_pool2d(image[:, :, 35:223, 32:220], (112, 112))
    x = norm_of(body_of(face, state)[-1], state, "output_layer.0")
    x = F.linear(x.flatten(1), state["output_layer.3.weight"], state["output_layer.3.bias"])
    x = norm_of(x, state, "output_layer.4")
    return x / torch.norm(x, 2, 1, True)


def raised_plus(x: torch.Tensor, lateral: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, size=lateral.shape[2:], mode="bilinear", align_corners=True) + lateral


def style_of(x: torch.Tensor, state, layer: int) -> torch.Tensor:
    key, i = f"encoder.styles.{layer}", 0
    while f"{key}.convs.{i}.weight" in state:
        x = F.conv2d(x, state[f"{key}.convs.{i}.weight"], state[f"{key}.convs.{i}.bias"], stride=2, padding=1)
        x, i = torch.where(x > 0, x, 0.01 * x), i + 2
    weight = state[f"{key}.linear.weight"]
    return F.linear(x.reshape(-1, weight.shape[1]), weight / math.sqrt(weight.shape[1]), state[f"{key}.linear.bias"])


def encoder_of(image: torch.Tensor, file, styles: int | None = None) -> torch.Tensor:
    """w+ of an image at the encoder's size, the average latent added: Encoder4Editing or GradualStyleEncoder."""
    state = file["state_dict"]
    count = sum(key.endswith(".linear.weight") for key in state)
    maps = body_of(image, state, "encoder.")
    c1, c2, c3 = maps[6], maps[20], maps[23]
    p2 = raised_plus(c3, F.conv2d(c2, state["encoder.latlayer1.weight"], state["encoder.latlayer1.bias"]))
    p1 = raised_plus(p2, F.conv2d(c1, state["encoder.latlayer2.weight"], state["encoder.latlayer2.bias"]))
    outputs = [style_of(c3 if i < 3 else p2 if i < 7 else p1, state, i) for i in range(count)]
    if file["opts"]["encoder_type"] == "Encoder4Editing":
        w = outputs[0].repeat(count, 1, 1).permute(1, 0, 2).clone()
        for i in range(1, count):
            w[:, i] += outputs[i]
    else:
        w = torch.stack(outputs, dim=1)
    if file["opts"]["start_from_latent_avg"]:
        w = w + file["latent_avg"].repeat(len(w), 1, 1)
    return w[:, :styles]


def mapped(x: np.ndarray, state, name: str) -> np.ndarray:
    """One Mapper in float64: the root mean square over axis 1, then four equalised layers with leaky ReLU."""
    x = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-8)
    for layer in (1, 2, 3, 4):
        weight = state[f"mapper.{name}.mapping.{layer}.weight"].numpy().astype(np.float64)
        bias = state[f"mapper.{name}.mapping.{layer}.bias"].numpy().astype(np.float64)
        x = x @ (weight * 0.01 / math.sqrt(weight.shape[1])).T + bias * 0.01
        x = np.where(x > 0, x, 0.2 * x) * math.sqrt(2)
    return x


def mapper_of(latents: np.ndarray, kind: str, file, channels=STYLE_CHANNELS) -> np.ndarray:
    """0.1 * mapper(latents): w+ [N,L,W], or all of style space side by side [N,S]."""
    state, x = file["state_dict"], latents.astype(np.float64)
    if kind == "SingleMapper":
        return 0.1 * mapped(x, state, "mapping")
    if kind == "LevelsMapper":
        groups = (("course_mapping", 0, 4), ("medium_mapping", 4, 8), ("fine_mapping", 8, x.shape[1]))
        there = {name for name, a, b in groups if f"mapper.{name}.mapping.1.weight" in state and x[:, a:b].size}
        parts = [mapped(x[:, a:b], state, name) if name in there else 0 * x[:, a:b] for name, a, b in groups]
        return 0.1 * np.concatenate(parts, axis=1)
    parts = []
    for c, entry in enumerate(np.split(x, np.cumsum(channels)[:-1], axis=1)):
        there = f"mapper.mapper_{c}.mapping.1.weight" in state
        parts.append(mapped(entry, state, f"mapper_{c}") if there else np.zeros_like(entry))
    return 0.1 * np.concatenate(parts, axis=1)
