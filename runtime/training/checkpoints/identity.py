"""IR-SE50, the identity network of the ArcFace family as published (`model_ir_se50.pth`), into a pack.

The crop and the two poolings in front of it (StyleCLIP's and pSp's identity loss) are part of our network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import groupby

import torch

from ....engines.errors import PackError
from ...archives import Source
from ..networks.arcface import IR_SE50, ArcFace, ArcFaceConfig, Stages
from ..pack_writer import state_of
from .psp_files import LEFT_OUT, file_arrays, shape_of
from .rows import Array, Imported, Row, convert

FORMAT = "IR-SE50"
UNITS = tuple(units for _, units in IR_SE50)


def recognises(source: Source) -> str | None:
    """ "IR-SE50" for a state dict with the published backbone and its embedding layer."""
    arrays = file_arrays(source)
    wanted = ("input_layer.0.weight", "body.0.res_layer.1.weight", "output_layer.3.weight")
    return FORMAT if all(key in arrays for key in wanted) else None


def import_identity(source: Source) -> Imported:
    """The identity network of `model_ir_se50.pth`; widths are the file's. Raises PackError."""
    what, arrays = f"{source.path.name} as {FORMAT}", file_arrays(source)
    stem, stages, reduction = backbone_layout(arrays, "", what)
    embed_dim, features = shape_of(arrays, "output_layer.3.weight", what, 2)
    config = replace(ArcFaceConfig.ir_se50(), stem=stem, stages=stages, reduction=reduction, embed_dim=embed_dim)
    if features != stages[-1][0] * config.feature_size**2:
        raise PackError(
            f"{what}: the embedding layer reads {features} values; expected {stages[-1][0]} x {config.feature_size}^2, "
            f"those of a face of {config.pool_size} px"
        )
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in state_of(ArcFace(config)).items()}
    rows = [*LEFT_OUT, *backbone_rows("", stages), *HEAD]
    return Imported("identity", convert(arrays, rows, expected, what), config.to_dict(), FORMAT)


HEAD = (
    Row(r"output_layer\.0\.(\w+)", r"norm.\1"),
    Row(r"output_layer\.3\.(\w+)", r"embed.\1"),
    Row(r"output_layer\.4\.(\w+)", r"embed_norm.\1"),
)


def backbone_layout(arrays: Mapping[str, Array], prefix: str, what: str) -> tuple[int, Stages, int]:
    """(stem, stages, reduction) of an IR-SE50 backbone, whose keys start with `prefix`.

    Raises PackError for another depth: pyramid taps and published weights belong to 3 + 4 + 14 + 3 units; and for the
    kind without squeeze-and-excitation.
    """
    stem = shape_of(arrays, f"{prefix}input_layer.0.weight", what, 4)[0]
    depths: list[int] = []
    while (key := f"{prefix}body.{len(depths)}.res_layer.3.weight") in arrays:
        depths.append(shape_of(arrays, key, what, 4)[0])
    stages = tuple((width, len(list(units))) for width, units in groupby(depths))
    if tuple(units for _, units in stages) != UNITS:
        raise PackError(
            f"{what}: stages (width, units) are {list(stages[:8])}; expected {UNITS} units, those of IR-SE50"
        )
    gate = f"{prefix}body.0.res_layer.5.fc1.weight"
    if gate not in arrays:
        raise PackError(f"{what}: no squeeze-and-excitation (mode 'ir'); only the mode 'ir_se' is published and read")
    return stem, stages, max(1, depths[0] // shape_of(arrays, gate, what, 4)[0])


def backbone_rows(prefix: str, stages: Stages, target: str = "backbone.") -> list[Row]:
    """The backbone's keys -> ours: units are counted through all stages there, per stage here."""
    start = prefix.replace(".", r"\.")
    rows = [Row(rf"{start}input_layer\.(\d)\.(\w+)", rf"{target}stem.\1.\2")]
    places = [(stage, unit) for stage, (_, units) in enumerate(stages) for unit in range(units)]
    for index, (stage, unit) in enumerate(places):
        ours = f"{target}stages.{stage}.{unit}."
        rows.append(Row(rf"{start}body\.{index}\.res_layer\.(.+)", rf"{ours}residual.\1"))
        rows.append(Row(rf"{start}body\.{index}\.shortcut_layer\.(.+)", rf"{ours}shortcut.\1"))
    return rows
