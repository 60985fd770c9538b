"""e4e (Encoder4Editing) and pSp (GradualStyleEncoder) into a pack's inverter.

Both have the same keys; only the file's `opts.encoder_type` tells them apart, so a file without it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ....engines.errors import PackError
from ...archives import Source
from ..networks.e4e import KINDS, E4EConfig, Encoder4Editing
from ..pack_writer import state_of
from .identity import backbone_layout, backbone_rows
from .psp_files import LEFT_OUT, file_arrays, options, shape_of
from .rows import Array, Imported, Row, convert

TYPES = {"Encoder4Editing": "e4e", "GradualStyleEncoder": "psp"}
PUBLISHED_STYLES = 18
CARS_STYLES = 16
CARS_SHAPE = (192, 256)
STYLE = re.compile(r"encoder\.styles\.(\d{1,4})\.linear\.weight")
MAX_STYLES = 64  # a generator of 1024 px has 18
HEADS = (
    Row(r"encoder\.styles\.(\d+)\.(convs\.\d+|linear)\.(weight|bias)", r"heads.\1.\2.\3"),
    Row(r"encoder\.latlayer([12])\.(weight|bias)", r"laterals.\1.\2"),
    Row(r"w_avg", "w_avg"),
)


def recognises(source: Source) -> str | None:
    """ "e4e", "pSp" or "e4e or pSp" (where the file does not say which) for a file with such an encoder."""
    arrays = file_arrays(source)
    if "encoder.input_layer.0.weight" not in arrays or not any(STYLE.fullmatch(key) for key in arrays):
        return None
    kind = TYPES.get(str((options(source) or {}).get("encoder_type")))
    return {"e4e": "e4e", "psp": "pSp"}.get(str(kind), "e4e or pSp")


def import_inverter(source: Source, kind: str | None = None) -> Imported:
    """The encoder of an e4e or pSp checkpoint with its average latent.

    kind: "e4e" or "psp", for a file that does not say. Raises PackError for other encoders, for input that is no RGB
    photo, and where the file contradicts itself.
    """
    what, arrays, opts = f"{source.path.name} as an inverter", file_arrays(source), options(source) or {}
    config = inverter_config(arrays, opts, kind_of(opts, kind, what), what)
    notes, cut = [], []
    if is_cars(opts):
        config = replace(config, input_height=CARS_SHAPE[0], input_width=CARS_SHAPE[1])
        notes.append(f"an encoder of cars: photos are resized to {CARS_SHAPE[1]} x {CARS_SHAPE[0]} px, not cropped")
        if config.num_ws == PUBLISHED_STYLES:  # the published inference drops them: the generator has 512 px
            config = replace(config, num_ws=CARS_STYLES)
            notes.append(f"{PUBLISHED_STYLES} styles, of which the first {CARS_STYLES} are used, as published for cars")
            cut = [Row(rf"encoder\.styles\.({CARS_STYLES}|{CARS_STYLES + 1})\..*", None)]
    average, more = average_latent(arrays, opts, config, what)
    config = replace(config, average_per_layer=average.ndim == 2)
    arrays = {key: array for key, array in arrays.items() if key != "latent_avg"} | {"w_avg": average}
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in state_of(Encoder4Editing(config)).items()}
    rows = [*LEFT_OUT, *cut, *backbone_rows("encoder.", config.stages), *HEADS]
    content = convert(arrays, rows, expected, what)
    return Imported(
        "inverter", content, config.to_dict(), {"e4e": "e4e", "psp": "pSp"}[config.kind], notes=(*notes, *more)
    )


def kind_of(opts: Mapping[str, Any], kind: str | None, what: str) -> str:
    """The encoder's kind from `opts.encoder_type` or the caller; PackError where it is unknown or contradicted."""
    stated = opts.get("encoder_type")
    if stated is None and kind is None:
        raise PackError(
            f"{what}: it has no opts.encoder_type, and e4e and pSp have the same keys; say which it is ({KINDS})"
        )
    if stated is not None and stated not in TYPES:
        raise PackError(f"{what}: encoder_type is {stated!r}, another network; expected one of {', '.join(TYPES)}")
    found = TYPES[str(stated)] if stated is not None else kind
    if found not in KINDS or kind not in (None, found):
        raise PackError(f"{what}: kind {kind!r} was given; the file's encoder_type is {stated!r}, expected one {KINDS}")
    return str(found)


def inverter_config(arrays: Mapping[str, Array], opts: Mapping[str, Any], kind: str, what: str) -> E4EConfig:
    """Sizes as the file's arrays have them, at the published 256 px."""
    colours = shape_of(arrays, "encoder.input_layer.0.weight", what, 4)[1]
    if colours != 3 or opts.get("label_nc"):
        raise PackError(f"{what}: it reads {colours} channels of label maps or sketches; expected RGB photos")
    stem, stages, reduction = backbone_layout(arrays, "encoder.", what)
    styles = sorted(int(match[1]) for key in arrays if (match := STYLE.fullmatch(key)))
    if not 0 < len(styles) <= MAX_STYLES or styles != list(range(len(styles))):
        raise PackError(f"{what}: encoder.styles holds {styles[:MAX_STYLES]}; expected one head per layer, 0 and up")
    w_dim = shape_of(arrays, "encoder.styles.0.linear.weight", what, 2)[0]
    width = shape_of(arrays, "encoder.latlayer1.weight", what, 4)[0]
    base = E4EConfig.published(len(styles), kind)
    return replace(base, w_dim=w_dim, stem=stem, stages=stages, reduction=reduction, width=width)


def is_cars(opts: Mapping[str, Any]) -> bool:
    """Whether the encoder was trained on cars; the published code asks the name of the data set the same way."""
    return "cars_" in str(opts.get("dataset_type", ""))


def average_latent(
    arrays: Mapping[str, Array], opts: Mapping[str, Any], config: E4EConfig, what: str
) -> tuple[Array, list[str]]:
    """(w_avg [W], or [L,W] where its rows differ; notes). Zeros where the encoder does not start from an average."""
    given = arrays.get("latent_avg")
    starts = opts.get("start_from_latent_avg")
    if starts is None:
        starts = given is not None  # training saves an average only where it starts from one
    if starts and given is None:
        raise PackError(f"{what}: opts.start_from_latent_avg is set, but latent_avg is missing")
    if not starts or given is None:
        unused = "the file's latent_avg is not added: opts.start_from_latent_avg is off"
        return np.zeros(config.w_dim, np.float32), [unused] if given is not None else []
    if given.dtype.kind not in "fiu":
        raise PackError(f"{what}: latent_avg holds {given.dtype.name}; expected numbers")
    rows = np.atleast_2d(np.asarray(given, np.float32))
    shapes = ((1, config.w_dim), (config.num_ws, config.w_dim))
    if is_cars(opts) and len(rows) == PUBLISHED_STYLES:
        rows = rows[: config.num_ws]
    if rows.shape not in shapes:
        expected = " or ".join(str(list(shape)) for shape in ((config.w_dim,), *shapes))
        raise PackError(f"{what}: latent_avg is {list(given.shape)}; expected {expected}")
    return (rows[0] if (rows == rows[:1]).all() else rows), []
