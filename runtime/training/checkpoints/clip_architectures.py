"""Which network a CLIP is: open_clip's registry by name, and the architectures whose tensors have a file's shapes.

A state dict shows widths and depths, but neither the number of heads nor the activation, and GELU and QuickGELU models
have the same tensors. What cannot be seen is asked for, never guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ....engines.errors import InputError, MissingDependency, PackError
from ..networks.clip import OPENAI_MEAN, OPENAI_STD, Clip, clip_config
from ..pack_writer import state_of

Shapes = Mapping[str, tuple[int, ...]]
MAX_SIDECAR_BYTES = 1 << 20
QUICK = "-quickgelu"
FRONT_END = ("mean", "std", "interpolation", "resize_mode")
OPENAI_FRONT_END = {
    "mean": list(OPENAI_MEAN),
    "std": list(OPENAI_STD),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
OPENAI_HEAD_WIDTH = 64


@dataclass(frozen=True)
class Architecture:
    """A CLIP to build. config: as the pack stores it. name: in the registry, or the file it was read from.

    pretrained: the tag of open_clip's weights, where one was named. notes: what was settled by a rule.
    """

    name: str
    config: dict[str, Any]
    pretrained: str | None = None
    notes: tuple[str, ...] = field(default_factory=tuple)

    def with_config(self, note: str = "", **changes: Any) -> Architecture:
        """The same with other values in its config."""
        return replace(self, config={**self.config, **changes}, notes=(*self.notes, note) if note else self.notes)

    @property
    def tokenizer(self) -> str | None:
        """The Hugging Face repository of its vocabulary; None for CLIP's own, which ships with open_clip."""
        return self.config["text_cfg"].get("hf_tokenizer_name") or None


def named(text: str) -> Architecture:
    """The architecture for "NAME", "NAME/TAG", "NAME:TAG" or a path to an `open_clip_config.json`.

    A tag settles the activation and the front-end as those weights need them, whatever the name says. Raises InputError
    that lists what there is, and PackError for one that cannot be built here.
    """
    if text.endswith(".json"):
        return from_json(Path(text))
    name, tag = split_name(text)
    config = registry()[name]
    clip_config(config)
    tags = tags_of(name)
    front, notes = _front_end(name, tags)
    quick = bool(config.get("quick_gelu", False))
    if tags and not quick and all(entry.get("quick_gelu") for entry in tags.values()):
        notes = (*notes, f"{name} has GELU, but all published weights of its shapes need {name}{QUICK}")
    if tag is not None:
        front = {key: tags[tag][key] for key in FRONT_END}
        quick, notes = bool(tags[tag].get("quick_gelu", False)), ()
    return Architecture(name, {**config, "quick_gelu": quick, **_plain(front)}, tag, notes)


def split_name(text: str) -> tuple[str, str | None]:
    """(name, tag or None) in open_clip's registry; OpenAI's own spelling "ViT-B/32" is known. Raises InputError."""
    names = registry()
    for sign in ("/", ":"):
        head, _, tag = text.rpartition(sign)
        if head and head.replace("/", "-") in names:
            name, tag = head.replace("/", "-"), tag.lower().replace("-", "_")
            if tag not in tags_of(name):
                known = ", ".join(sorted(tags_of(name))) or "none"
                raise InputError(f"open_clip knows no weights {tag!r} of {name}; it knows {known}")
            return name, tag
    name = text.replace("/", "-").replace("@", "-").removesuffix("px")
    if name not in names:
        close = [known for known in names if known.lower().startswith(name.lower()[:5])][:12]
        raise InputError(
            f"{text!r} is neither a file nor an architecture of open_clip; expected NAME or NAME/TAG such as "
            "ViT-B-32/openai" + (f". Similar names: {', '.join(close)}" if close else "")
        )
    return name, None


@cache
def registry() -> dict[str, dict[str, Any]]:
    """The configs of open_clip's registry by name; MissingDependency without open_clip."""
    try:
        import open_clip
    except ImportError as error:
        raise MissingDependency(f"CLIP needs open_clip_torch ({error}); pip install 'styleclip-rt[torch]'") from None
    return {name: open_clip.get_model_config(name) for name in open_clip.list_models()}


def tags_of(name: str) -> dict[str, dict[str, Any]]:
    """{tag: open_clip's entry} of the weights that open_clip can fetch for an architecture, either activation."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    base = name.removesuffix(QUICK)
    return {tag: get_pretrained_cfg(each, tag) for each in (name, base) for tag in list_pretrained_tags_by_model(each)}


def from_json(path: Path) -> Architecture:
    """The architecture in an `open_clip_config.json`, as it stands beside weights on Hugging Face."""
    document = read_json(path)
    document = document if isinstance(document, dict) else {}
    config, front = document.get("model_cfg", document), document.get("preprocess_cfg") or {}
    if not isinstance(config, dict) or not isinstance(front, dict):
        raise PackError(f"{path}: model_cfg and preprocess_cfg must be objects; expected an open_clip_config.json")
    clip_config(config)
    stated = {key: front[key] for key in FRONT_END if front.get(key) is not None}
    return Architecture(path.name, {**config, **OPENAI_FRONT_END, **stated})


def read_json(path: Path) -> Any:
    """What a small JSON file beside weights holds; PackError where it is none, or too large to be one."""
    try:
        if path.stat().st_size > MAX_SIDECAR_BYTES:
            raise ValueError(f"it is larger than {MAX_SIDECAR_BYTES} bytes")
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise PackError(f"{path} cannot be read as JSON: {error}") from None


def openai_architecture(shapes: Shapes) -> Architecture:
    """The network of OpenAI's own archives, by the rules of its program: heads of width 64, square grids."""
    patch = shapes["visual.conv1.weight"]
    width = shapes["ln_final.weight"][0]
    if "visual.proj" in shapes:
        grid = grid_of(shapes["visual.positional_embedding"])
        vision: dict[str, Any] = {"layers": _depth(shapes, "visual.transformer.resblocks"), "width": patch[0]}
        vision |= {"patch_size": patch[-1], "image_size": patch[-1] * grid}
    else:
        grid = grid_of(shapes["visual.attnpool.positional_embedding"])
        vision = {"layers": [_depth(shapes, f"visual.layer{stage}") for stage in (1, 2, 3, 4)]}
        vision |= {"width": shapes["visual.layer1.0.conv1.weight"][0], "image_size": 32 * grid}
    text = {"context_length": shapes["positional_embedding"][0], "vocab_size": shapes["token_embedding.weight"][0]}
    text |= {"width": width, "heads": width // OPENAI_HEAD_WIDTH, "layers": _depth(shapes, "transformer.resblocks")}
    embed_dim = shapes["text_projection"][1]
    config = {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
    return Architecture("OpenAI's rules", {**config, **OPENAI_FRONT_END})


def grid_of(positions: tuple[int, ...]) -> int:
    """Side of a square grid from the shape of its position embeddings, which count one more for the class."""
    return round(max(positions[0] - 1, 0) ** 0.5)


def _depth(shapes: Shapes, stem: str) -> int:
    """Number of blocks under a name, as the file counts them."""
    return len({name.removeprefix(stem).split(".")[1] for name in shapes if name.startswith(f"{stem}.")})


def matching(shapes: Shapes) -> list[str]:
    """Names in the registry whose network has exactly these tensors; both activations of a pair match."""
    return [name for name, config in registry().items() if _may_fit(config, shapes) and fits(config, shapes)]


def fits(config: Mapping[str, Any], shapes: Shapes) -> bool:
    """Whether the network of a config has the tensors of a file; scalars and what `expected_shapes` lacks are free."""
    try:
        expected = expected_shapes(config)
    except PackError:
        return False
    return all(shapes.get(name) == shape for name, shape in expected.items() if shape not in ((), (1,)))


def _may_fit(config: Mapping[str, Any], shapes: Shapes) -> bool:
    """A look at a few sizes, before a network is laid out."""
    text, vision = config["text_cfg"], config["vision_cfg"]
    start = "text." if "text.token_embedding.weight" in shapes else ""
    words = (text.get("vocab_size", 49408), text.get("width", 512))
    positions = text.get("context_length", 77) + int(bool(text.get("embed_cls")))
    trunk = any(name.startswith("visual.trunk.") for name in shapes)
    return (
        shapes.get(f"{start}token_embedding.weight") == words
        and shapes.get(f"{start}positional_embedding") == (positions, words[1])
        and bool(vision.get("timm_model_name")) == trunk
        and not text.get("hf_model_name")
    )


def expected_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """{tensor: shape} of the network of a config, laid out without memory. Raises PackError as `Clip` does."""
    with torch.device("meta"), _NoInitialisation():
        return {name: tuple(tensor.shape) for name, tensor in state_of(Clip(config)).items()}


class _NoInitialisation(TorchFunctionMode):
    """Random initial values mean nothing on the device "meta", and drawing them takes most of the time there."""

    DRAWS = (
        nn.init.normal_,
        nn.init.uniform_,
        nn.init.trunc_normal_,
        nn.init.kaiming_uniform_,
        nn.init.xavier_uniform_,
    )

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in self.DRAWS:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def _front_end(name: str, tags: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The front-end that all published weights of an architecture share, or OpenAI's and a note of the exceptions."""
    fronts = {tag: _plain({key: entry[key] for key in FRONT_END}) for tag, entry in tags.items()}
    if not fronts:
        return dict(OPENAI_FRONT_END), ()
    colours = {tag: (front["mean"], front["std"]) for tag, front in fronts.items()}
    first = next(iter(fronts.values()))
    if all(colour == (first["mean"], first["std"]) for colour in colours.values()):
        return first, ()
    usual = (OPENAI_FRONT_END["mean"], OPENAI_FRONT_END["std"])
    others = ", ".join(f"{name}/{tag}" for tag, colour in colours.items() if colour != usual)
    return dict(OPENAI_FRONT_END), (f"mean and std are OpenAI's, which {others} would not have",)


def _plain(front: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in front.items()}
