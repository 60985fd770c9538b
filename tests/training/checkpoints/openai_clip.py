"""OpenAI's CLIP written out from its maths, over a flat dict of tensors; and files of it as OpenAI publishes them.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision". Nothing of open_clip is
used: attention is spelled out head by head, layer norms and convolutions are plain functions of the tensors.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = dict[str, Tensor]
HALF = (
    "conv1.",
    "conv2.",
    "conv3.",
    "downsample.0",
    "in_proj",
    "out_proj",
    "c_fc",
    "c_proj",
    "q_proj",
    "k_proj",
    "v_proj",
)


@dataclass(frozen=True)
class Sizes:
    """Sizes of a CLIP; heads are 64 wide. `blocks`: of the four stages of a ResNet, or None for a ViT of `layers`."""

    embed: int = 48
    width: int = 128
    layers: int = 2
    patch: int = 16
    image: int = 64
    blocks: tuple[int, ...] | None = None
    text_width: int = 128
    text_layers: int = 2
    context: int = 77
    vocab: int = 49408


VIT = Sizes()
RESNET = Sizes(width=16, image=64, blocks=(1, 2, 1, 1))


def block_shapes(stem: str, width: int) -> dict[str, tuple[int, ...]]:
    """One residual attention block."""
    return {
        f"{stem}.ln_1.weight": (width,),
        f"{stem}.ln_1.bias": (width,),
        f"{stem}.attn.in_proj_weight": (3 * width, width),
        f"{stem}.attn.in_proj_bias": (3 * width,),
        f"{stem}.attn.out_proj.weight": (width, width),
        f"{stem}.attn.out_proj.bias": (width,),
        f"{stem}.ln_2.weight": (width,),
        f"{stem}.ln_2.bias": (width,),
        f"{stem}.mlp.c_fc.weight": (4 * width, width),
        f"{stem}.mlp.c_fc.bias": (4 * width,),
        f"{stem}.mlp.c_proj.weight": (width, 4 * width),
        f"{stem}.mlp.c_proj.bias": (width,),
    }


def norm_shapes(stem: str, width: int, batch: bool = False) -> dict[str, tuple[int, ...]]:
    names = ("weight", "bias", *(("running_mean", "running_var") if batch else ()))
    return {f"{stem}.{name}": (width,) for name in names}


def vit_shapes(s: Sizes) -> dict[str, tuple[int, ...]]:
    shapes = {
        "visual.class_embedding": (s.width,),
        "visual.positional_embedding": ((s.image // s.patch) ** 2 + 1, s.width),
        "visual.proj": (s.width, s.embed),
        "visual.conv1.weight": (s.width, 3, s.patch, s.patch),
        **norm_shapes("visual.ln_pre", s.width),
        **norm_shapes("visual.ln_post", s.width),
    }
    for i in range(s.layers):
        shapes |= block_shapes(f"visual.transformer.resblocks.{i}", s.width)
    return shapes


def resnet_shapes(s: Sizes) -> dict[str, tuple[int, ...]]:
    half, shapes = s.width // 2, {}
    for i, (cin, cout) in enumerate(((3, half), (half, half), (half, s.width)), start=1):
        shapes |= {f"visual.conv{i}.weight": (cout, cin, 3, 3), **norm_shapes(f"visual.bn{i}", cout, True)}
    cin = s.width
    for stage, blocks in enumerate(s.blocks or (), start=1):
        planes = s.width << (stage - 1)
        for block in range(blocks):
            stem = f"visual.layer{stage}.{block}"
            for i, (a, b, k) in enumerate(((cin, planes, 1), (planes, planes, 3), (planes, 4 * planes, 1)), start=1):
                shapes |= {f"{stem}.conv{i}.weight": (b, a, k, k), **norm_shapes(f"{stem}.bn{i}", b, True)}
            if block == 0:
                shapes |= {f"{stem}.downsample.0.weight": (4 * planes, cin, 1, 1)}
                shapes |= norm_shapes(f"{stem}.downsample.1", 4 * planes, True)
            cin = 4 * planes
    pool = "visual.attnpool"
    shapes[f"{pool}.positional_embedding"] = ((s.image // 32) ** 2 + 1, cin)
    for name, out in (("q_proj", cin), ("k_proj", cin), ("v_proj", cin), ("c_proj", s.embed)):
        shapes |= {f"{pool}.{name}.weight": (out, cin), f"{pool}.{name}.bias": (out,)}
    return shapes


def clip_shapes(s: Sizes) -> dict[str, tuple[int, ...]]:
    """The key table of OpenAI's state dicts, without the three sizes."""
    shapes = resnet_shapes(s) if s.blocks else vit_shapes(s)
    shapes |= {
        "positional_embedding": (s.context, s.text_width),
        "text_projection": (s.text_width, s.embed),
        "token_embedding.weight": (s.vocab, s.text_width),
        "logit_scale": (),
        **norm_shapes("ln_final", s.text_width),
    }
    for i in range(s.text_layers):
        shapes |= block_shapes(f"transformer.resblocks.{i}", s.text_width)
    return shapes


def random_state(s: Sizes, seed: int = 0) -> State:
    """Random weights with activations of order one, so that both activations and all layers matter."""
    rng = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in clip_shapes(s).items():
        value = torch.randn(shape, generator=rng)
        if name.endswith("running_var"):
            value = value.abs() * 0.5 + 0.5
        elif name.endswith("weight") and len(shape) == 1:
            value = 1 + 0.2 * value
        elif name.endswith(("bias", "running_mean")):
            value = 0.1 * value
        elif name.endswith("embedding") or "embedding.weight" in name:
            value = 0.5 * value
        elif shape:
            gain = 5.0 if "mlp.c_proj" in name else 1.4  # the activation must show in the embedding
            value = gain * value / (shape[0] if name.endswith(("proj", "projection")) else value[0].numel()) ** 0.5
        state[name] = value
    state["logit_scale"] = torch.tensor(100.0).log()
    return state


def halved(state: State) -> State:
    """float16 where OpenAI's program keeps it: convolutions, linear layers, projections; not norms and embeddings."""
    plain = ("visual.proj", "text_projection")
    return {k: v.half() if k in plain or any(part in k for part in HALF) else v for k, v in state.items()}


def activation(x: Tensor, quick: bool) -> Tensor:
    """QuickGELU x sigmoid(1.702 x), or GELU x Phi(x)."""
    return x / (1 + torch.exp(-1.702 * x)) if quick else 0.5 * x * (1 + torch.erf(x / 2**0.5))


def layer_norm(state: State, stem: str, x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5) * state[f"{stem}.weight"] + state[f"{stem}.bias"]


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool) -> Tensor:
    """q [N,Q,W], k and v [N,K,W] -> [N,Q,W], head by head."""
    width, outputs = int(q.shape[-1]) // heads, []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / width**0.5
        if causal:
            later = torch.ones(scores.shape[1:]).triu(1) > 0
            scores = scores.masked_fill(later, float("-inf"))
        weights = torch.exp(scores - scores.amax(-1, keepdim=True))
        outputs.append(weights / weights.sum(-1, keepdim=True) @ v[..., part])
    return torch.cat(outputs, -1)


def transformer(state: State, stem: str, x: Tensor, quick: bool, causal: bool) -> Tensor:
    depth = sum(key.startswith(f"{stem}.") and key.endswith("ln_1.weight") for key in state)
    for i in range(depth):
        block = f"{stem}.{i}"
        y = layer_norm(state, f"{block}.ln_1", x) @ state[f"{block}.attn.in_proj_weight"].T
        q, k, v = (y + state[f"{block}.attn.in_proj_bias"]).chunk(3, -1)
        y = attend(q, k, v, int(x.shape[-1]) // 64, causal)
        x = x + y @ state[f"{block}.attn.out_proj.weight"].T + state[f"{block}.attn.out_proj.bias"]
        y = (
            layer_norm(state, f"{block}.ln_2", x) @ state[f"{block}.mlp.c_fc.weight"].T
            + state[f"{block}.mlp.c_fc.bias"]
        )
        y = activation(y, quick)
        x = x + y @ state[f"{block}.mlp.c_proj.weight"].T + state[f"{block}.mlp.c_proj.bias"]
    return x


def vit(state: State, image: Tensor, quick: bool) -> Tensor:
    kernel = state["visual.conv1.weight"]
    patch, width = int(kernel.shape[-1]), int(kernel.shape[0])  # plain numbers under tracing too
    patches = F.unfold(image, patch, stride=patch).transpose(1, 2) @ kernel.reshape(width, -1).T  # [N,grid^2,W]
    cls = state["visual.class_embedding"].expand(len(image), 1, width)
    x = torch.cat([cls, patches], 1) + state["visual.positional_embedding"]
    x = layer_norm(state, "visual.ln_pre", x)
    x = transformer(state, "visual.transformer.resblocks", x, quick, causal=False)
    return layer_norm(state, "visual.ln_post", x[:, 0]) @ state["visual.proj"]


def batch_norm(state: State, stem: str, x: Tensor) -> Tensor:
    gain = state[f"{stem}.weight"] / torch.sqrt(state[f"{stem}.running_var"] + 1e-5)
    shift = state[f"{stem}.bias"] - state[f"{stem}.running_mean"] * gain
    return x * gain[:, None, None] + shift[:, None, None]


def conv_bn(state: State, stem: str, i: int, x: Tensor, stride: int = 1) -> Tensor:
    kernel = state[f"{stem}.conv{i}.weight"]
    return batch_norm(state, f"{stem}.bn{i}", F.conv2d(x, kernel, stride=stride, padding=int(kernel.shape[-1]) // 2))


def bottleneck(state: State, stem: str, x: Tensor, stride: int) -> Tensor:
    """Strides are average pools (of the second convolution, and before the shortcut's)."""
    y = conv_bn(state, stem, 1, x).relu()
    y = conv_bn(state, stem, 2, y).relu()
    y = conv_bn(state, stem, 3, F.avg_pool2d(y, stride))
    if f"{stem}.downsample.0.weight" in state:
        x = F.conv2d(F.avg_pool2d(x, stride), state[f"{stem}.downsample.0.weight"])
        x = batch_norm(state, f"{stem}.downsample.1", x)
    return (x + y).relu()


def resnet(state: State, image: Tensor) -> Tensor:
    x = conv_bn(state, "visual", 1, image, stride=2).relu()
    x = conv_bn(state, "visual", 2, x).relu()
    x = F.avg_pool2d(conv_bn(state, "visual", 3, x).relu(), 2)
    for stage in (1, 2, 3, 4):
        block = 0
        while f"visual.layer{stage}.{block}.conv1.weight" in state:
            x = bottleneck(state, f"visual.layer{stage}.{block}", x, 2 if stage > 1 and block == 0 else 1)
            block += 1
    x = x.flatten(2).transpose(1, 2)  # [N,grid^2,W]
    x = torch.cat([x.mean(1, keepdim=True), x], 1) + state["visual.attnpool.positional_embedding"]

    def linear(name: str, y: Tensor) -> Tensor:
        return y @ state[f"visual.attnpool.{name}.weight"].T + state[f"visual.attnpool.{name}.bias"]

    y = attend(
        linear("q_proj", x[:, :1]), linear("k_proj", x), linear("v_proj", x), int(x.shape[-1]) // 64, causal=False
    )
    return linear("c_proj", y[:, 0])


def encode_image(state: State, image: Tensor, quick: bool = True) -> Tensor:
    """image [N,3,R,R], normalised -> embedding [N,E], not of unit length."""
    return vit(state, image, quick) if "visual.proj" in state else resnet(state, image)


def encode_text(state: State, tokens: Tensor, quick: bool = True) -> Tensor:
    """tokens [N,T] -> embedding [N,E], pooled at the largest id, which is the end of the text."""
    x = state["token_embedding.weight"][tokens] + state["positional_embedding"]
    x = layer_norm(state, "ln_final", transformer(state, "transformer.resblocks", x, quick, causal=True))
    return x[torch.arange(len(x)), tokens.argmax(1)] @ state["text_projection"]


class Holder(nn.Module):
    """A module tree that holds a flat dict of tensors under its dotted names."""

    def put(self, name: str, value: Tensor, buffer: bool) -> None:
        head, _, rest = name.partition(".")
        if rest:
            if head not in self._modules:
                self.add_module(head, Holder())
            getattr(self, head).put(rest, value, buffer)
        elif buffer:
            self.register_buffer(head, value)
        else:
            self.register_parameter(head, nn.Parameter(value, requires_grad=False))

    def get(self, name: str) -> Tensor:
        module: nn.Module = self
        *path, last = name.split(".")
        for part in path:
            module = getattr(module, part)
        return getattr(module, last)


class Traceable(Holder):
    """OpenAI's module as its archives hold it: the weights, three sizes as buffers, and the program."""

    def __init__(self, state: State, s: Sizes, quick: bool = True):
        super().__init__()
        self.names, self.quick = list(state), quick
        for name, value in state.items():
            self.put(name, value.clone(), "running_" in name)
        sizes = {"input_resolution": s.image, "context_length": s.context, "vocab_size": s.vocab}
        for name, size in sizes.items():
            self.register_buffer(name, torch.tensor(size))

    def forward(self, image: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        state = {name: self.get(name) for name in self.names}
        return encode_image(state, image, self.quick), encode_text(state, tokens, self.quick)


def write_archive(path: Path, state: State, s: Sizes) -> Path:
    """A TorchScript archive in OpenAI's form: traced, then float16 where `halved` says."""
    feeds = torch.zeros(1, 3, s.image, s.image), torch.zeros(1, s.context, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and the archives were made by it
        module = torch.jit.trace(Traceable(state, s), feeds, check_trace=False)
    half = halved(state)
    for name, parameter in module.named_parameters():
        parameter.data = parameter.data.to(half[name].dtype)
    torch.jit.save(module, str(path))
    return path
