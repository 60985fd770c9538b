"""CLIP as the library transformers saves it (`CLIPModel`): the same network under other names, sizes in config.json.

Queries, keys and values are three matrices there and one in open_clip's files; projections stand the other way round.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ....engines.errors import PackError
from .clip_architectures import OPENAI_FRONT_END, Architecture, read_json
from .rows import Array

CONFIG, FRONT_END = "config.json", "preprocessor_config.json"
FORMAT = "transformers CLIP"
ACTIVATIONS = {"quick_gelu": True, "gelu": False}
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
EPSILON = 1e-5  # of the layer norms, in open_clip's towers

_TOWERS = {"text": "transformer.resblocks", "vision": "visual.transformer.resblocks"}
_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
    "self_attn.q_proj": "attn.q",
    "self_attn.k_proj": "attn.k",
    "self_attn.v_proj": "attn.v",
}
_LAYER = re.compile(r"(text|vision)_model\.encoder\.layers\.(\d{1,4})\.(.+)\.(weight|bias)")
_OTHERS = {
    "logit_scale": "logit_scale",
    "text_projection.weight": "text_projection",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "visual_projection.weight": "visual.proj",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",  # spelled so in every file
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
}
_TURNED = ("text_projection", "visual.proj")
_COUNTED = re.compile(r"(text|vision)_model\.embeddings\.position_ids")  # 0, 1, 2 ...: no weights


def is_transformers(arrays: Mapping[str, Any]) -> bool:
    """Whether these are the names of the library transformers, of both towers of a CLIP or of its relatives."""
    marks = ("text_model.embeddings.token_embedding.weight", "vision_model.embeddings.patch_embedding.weight")
    return all(mark in arrays for mark in marks)


def as_open_clip(arrays: Mapping[str, Array], what: str) -> dict[str, Array]:
    """The arrays under open_clip's names.

    Raises:
        PackError: keys that `CLIPModel` does not have (SigLIP, Chinese CLIP and others are built in other ways), or
            queries, keys and values that do not belong together; all at once.
    """
    renamed = {_renamed(key): array for key, array in arrays.items() if not _COUNTED.fullmatch(key)}
    unknown = [key for key in arrays if not _COUNTED.fullmatch(key) and _renamed(key) is None]
    renamed.pop(None, None)
    found = {name: array for name, array in renamed.items() if name is not None}
    broken = _join(found)
    if unknown or broken:
        listed = ", ".join([key[:200] for key in sorted(unknown)[:12]] + broken[:12])
        raise PackError(
            f"{what} holds CLIP weights in the layout of the library transformers, but not those of its CLIPModel: "
            f"{listed}. Fetch the weights that open_clip reads"
        )
    return {name: np.transpose(array) if name in _TURNED else array for name, array in found.items()}


def _renamed(key: str) -> str | None:
    """open_clip's name of a tensor; None where it has none."""
    if match := _LAYER.fullmatch(key):
        tower, number, part, kind = match.groups()
        return f"{_TOWERS[tower]}.{number}.{_BLOCK[part]}.{kind}" if part in _BLOCK else None
    return _OTHERS.get(key)


def _join(arrays: dict[str, Array]) -> list[str]:
    """Puts queries, keys and values of every block into one tensor, in place; what does not fit together."""
    broken = []
    for stem in [name.removesuffix(".q.weight") for name in arrays if name.endswith(".attn.q.weight")]:
        for kind, joined in (("weight", "in_proj_weight"), ("bias", "in_proj_bias")):
            parts = [arrays.pop(f"{stem}.{letter}.{kind}", None) for letter in "qkv"]
            shapes = [None if part is None else part.shape for part in parts]
            if len(set(shapes)) != 1 or not shapes[0]:
                broken.append(f"q, k, v of {stem}.{kind} {shapes}")
            else:
                arrays[f"{stem}.{joined}"] = np.concatenate([part for part in parts if part is not None])
    return broken


def described(folder: Path) -> Architecture | None:
    """The network that `config.json` beside the weights describes, with the front-end of `preprocessor_config.json`.

    None where there is no config.json: the tensors then show all but the activation. Raises PackError for a file that
    cannot be read, or for what open_clip's towers cannot be.
    """
    config = _json(folder / CONFIG)
    if config is None:
        return None
    text, vision = ({**_part(config, f"{name}_config")} for name in ("text", "vision"))
    try:
        quick = {ACTIVATIONS[str(part.get("hidden_act", "quick_gelu"))] for part in (text, vision)}
        epsilons = {float(part.get("layer_norm_eps", EPSILON)) for part in (text, vision)}
        built = {
            "embed_dim": int(config.get("projection_dim", 512)),
            "vision_cfg": _vision(vision),
            "text_cfg": _text(text),
        }
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise PackError(f"{folder / CONFIG} is not that of a CLIPModel: {error!r}") from None
    if len(quick) != 1 or epsilons != {EPSILON}:
        raise PackError(
            f"{folder / CONFIG}: activations and layer norms (epsilon {sorted(epsilons)}) differ from those of a CLIP; "
            f"expected one activation and {EPSILON}"
        )
    found = Architecture(CONFIG, {**built, "quick_gelu": quick.pop(), **OPENAI_FRONT_END})
    return replace(found, config={**found.config, **_front_end(folder)})


def _vision(part: Mapping[str, Any]) -> dict[str, Any]:
    width, heads = int(part.get("hidden_size", 768)), int(part.get("num_attention_heads", 12))
    return {
        "layers": int(part.get("num_hidden_layers", 12)),
        "width": width,
        "head_width": width // heads,
        "mlp_ratio": int(part.get("intermediate_size", 3072)) / width,
        "patch_size": int(part.get("patch_size", 32)),
        "image_size": int(part.get("image_size", 224)),
    }


def _text(part: Mapping[str, Any]) -> dict[str, Any]:
    width = int(part.get("hidden_size", 512))
    return {
        "context_length": int(part.get("max_position_embeddings", 77)),
        "vocab_size": int(part.get("vocab_size", 49408)),
        "width": width,
        "heads": int(part.get("num_attention_heads", 8)),
        "layers": int(part.get("num_hidden_layers", 12)),
        "mlp_ratio": int(part.get("intermediate_size", 2048)) / width,
    }


def _front_end(folder: Path) -> dict[str, Any]:
    """Mean, std and interpolation where preprocessor_config.json states them."""
    stated = _json(folder / FRONT_END) or {}
    found = {
        ours: stated[theirs] for ours, theirs in (("mean", "image_mean"), ("std", "image_std")) if theirs in stated
    }
    if (method := INTERPOLATIONS.get(stated.get("resample", 3))) is not None:
        found["interpolation"] = method
    return found


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """One tower's settings; older files repeat them under another name, with the values that count."""
    parts = [config.get(f"{name}_dict"), config.get(name)]
    return next((part for part in parts if isinstance(part, dict) and part), {})


def _json(path: Path) -> dict[str, Any] | None:
    """An object of a JSON file; None where there is no file. PackError for anything else."""
    if not path.is_file():
        return None
    document = read_json(path)
    if not isinstance(document, dict):
        raise PackError(f"{path} is no object; expected the {path.name} that stands beside weights of a CLIPModel")
    return document
