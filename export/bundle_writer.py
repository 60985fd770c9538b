"""Pack -> engine bundle: every graph traced, checked against PyTorch, and published in one rename, or not at all."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from ..engines.bundle import sha256_of
from ..engines.errors import PackError
from ..engines.spec import GraphSpec
from ..runtime.training.needs import NEEDS
from ..runtime.training.networks.arcface import ArcFaceConfig
from ..runtime.training.networks.clip import front_end_settings, square_size
from ..runtime.training.networks.e4e import E4EConfig
from ..runtime.training.pack import Pack
from ..runtime.training.pack_format import atomic_directory
from .directions import write_directions
from .forms import form_for
from .graphs import Graph, graph_list
from .recipe import Recipe
from .verify import Check, check_graph
from .weights import WeightFile

FORMAT = "styleclip-rt/bundle"
VERSION = 1
MANIFEST = "bundle.json"
WEIGHTS = "weights.bin"
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to export: prompts (a table as in bundle.json), their mappers, and the bundle's name and default prompt."""

    name: str
    prompts: dict[str, dict[str, Any]] = field(default_factory=dict)
    default_prompt: str | None = None
    mappers: tuple[str, ...] = ()
    precision: str = "fp32"
    form: str = "auto"
    slider: bool = True


@dataclass(frozen=True)
class Row:
    """One exported graph: its ports, file, size and check. `bytes` counts the graph and the weights it reads."""

    spec: GraphSpec
    file: str
    bytes: int
    check: Check
    seconds: float
    precision: Mapping[str, Any] = field(default_factory=lambda: {"type": "fp32"})

    def as_json(self) -> dict[str, Any]:
        """The graph's entry of bundle.json."""
        return {
            "file": self.file,
            "inputs": [spec.as_json() for spec in self.spec.inputs],
            "outputs": [spec.as_json() for spec in self.spec.outputs],
            "check": self.check.as_json(),
            "precision": dict(self.precision),
            "export_s": round(self.seconds, 2),
            "bytes": self.bytes,
        }


@dataclass(frozen=True)
class Report:
    """What an export made: the folder, its rows, the whole size, and {graph: components that the pack lacks}.

    directions: names of the directions that the bundle serves.
    """

    path: Path
    rows: tuple[Row, ...]
    total_bytes: int
    missing: dict[str, list[str]]
    seconds: float
    directions: tuple[str, ...] = ()


def export_bundle(pack: Pack, plan: Plan, out: Path, progress: Progress = lambda name: None) -> Report:
    """Exports all graphs that the pack allows into the folder `out`.

    `progress` is called with each graph's name when it starts. Raises PackError when the pack allows no graph or a
    component is damaged, ToleranceError when a graph differs from PyTorch, InputError when `out` holds something else.
    In every such case `out` is left as it was.
    """
    start = time.perf_counter()
    builders, missing = graph_list(pack, plan.mappers)
    if not builders:
        raise PackError(f"pack {pack.name!r} allows no graph; it holds {', '.join(pack.components) or 'nothing'}")
    with atomic_directory(out, MANIFEST) as folder:
        rows = write_graphs(folder, pack, plan, builders, progress)
        if pack.has("tokenizer"):
            shutil.copyfile(pack.file("tokenizer"), folder / "tokenizer.json")
        named = write_directions(folder, pack)
        manifest = manifest_of(pack, plan, rows, folder, missing) | named
        (folder / MANIFEST).write_text(json_text(manifest), encoding="utf-8")
        total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Report(out, tuple(rows), total, missing, time.perf_counter() - start, tuple(named.get("directions", ())))


def write_graphs(
    folder: Path, pack: Pack, plan: Plan, builders: list[Callable[[], Graph]], progress: Progress = lambda name: None
) -> list[Row]:
    """Writes and checks every graph; the shared weights stand beside them, since ONNX readers refuse `../`.

    Networks are loaded when a graph needs them and dropped when the next one does not: together they would take
    gigabytes.
    """
    (folder / "graphs").mkdir()
    weights = WeightFile(folder / "graphs" / WEIGHTS)
    recipe = Recipe(pack, weights, plan.precision, plan.form, plan.slider)
    parts: dict[str, Graph] = {}
    rows = []
    try:
        for build in [*builders, *recipe.slice_graphs()]:
            graph = build()
            pack.release(*unneeded(pack, graph.name))
            progress(graph.name)
            rows.append(write_graph(folder, graph, recipe, parts))
            parts[graph.name] = replace(graph, module=nn.Identity())  # traced by now: the network may go
    finally:
        weights.close()
    return rows


def unneeded(pack: Pack, graph: str) -> list[str]:
    """Components that a graph does not use; the generator always stays, it draws the example feeds."""
    return [part for part in pack.components if part not in (*NEEDS.get(graph, ()), "generator")]


def write_graph(folder: Path, graph: Graph, recipe: Recipe, parts: Mapping[str, Graph]) -> Row:
    """Writes one graph file, has it checked by the ONNX checker and against PyTorch, and returns its row."""
    start = time.perf_counter()
    file = f"graphs/{graph.name.replace('/', '.')}.onnx"
    path = folder / file
    made = recipe.made(graph, parts, path)
    onnx.checker.check_model(str(path), full_check=True)
    check = made.check or check_graph(graph, path)
    size = path.stat().st_size + external_bytes(made.model)
    spec = GraphSpec(graph.name, graph.inputs, graph.outputs)
    return Row(spec, file, size, check, time.perf_counter() - start, made.precision)


def external_bytes(model: onnx.ModelProto) -> int:
    """Bytes that the model reads from the shared weights."""
    entries = [{entry.key: entry.value for entry in tensor.external_data} for tensor in model.graph.initializer]
    return sum({entry["offset"]: int(entry["length"]) for entry in entries if entry}.values())


def manifest_of(
    pack: Pack, plan: Plan, rows: list[Row], folder: Path, missing: Mapping[str, list[str]]
) -> dict[str, Any]:
    """bundle.json, format version 1; `missing` names what each graph that is not there would need."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": plan.name,
        "created": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "tool": tool_versions(),
        "pack": {"name": pack.name, "sha256": pack.sha256, "licences": pack.licences},
        "precision": "fp16" if any(row.precision["type"] == "fp16" for row in rows) else "fp32",
        "form": form_for(plan.form, plan.precision),
        "files": {
            path.relative_to(folder).as_posix(): {"sha256": sha256_of(path), "bytes": path.stat().st_size}
            for path in files
        },
        "graphs": {row.spec.name: row.as_json() for row in rows},
        **({"missing": missing} if missing else {}),
        "model": model_entry(pack),
        "alignment": pack.alignment,
        "tokenizer": "tokenizer.json" if pack.has("tokenizer") else None,
        "tokens": pack.config("tokenizer") if pack.has("tokenizer") else None,
        "templates": pack.templates,
        "prompts": plan.prompts,
        "default_prompt": plan.default_prompt,
    }


def model_entry(pack: Pack) -> dict[str, Any]:
    """Sizes of the model: what the runtime derives its shapes from. Parts that the pack lacks are left out."""
    entry: dict[str, Any] = {}
    if pack.has("generator"):
        generator = pack.layout
        entry |= {
            "resolution": generator.config.resolution,
            "num_ws": generator.num_ws,
            "z_dim": generator.config.z_dim,
            "w_dim": generator.config.w_dim,
            "style_channels": generator.style_channels,
            "layers": [asdict(layer) for layer in generator.style_layers],
        }
    if pack.has("statistics"):
        entry["psi"] = float(pack.config("statistics").get("psi", 0.7))
    if pack.has("clip"):
        entry["clip"] = clip_entry(pack.config("clip"))
    if pack.has("inverter"):
        inverter = E4EConfig.from_dict(pack.config("inverter"))
        entry["invert_size"] = inverter.input_size
        if inverter.input_shape != (inverter.input_size,) * 2:
            entry["invert_shape"] = list(inverter.input_shape)
    if pack.has("identity"):
        entry["identify_size"] = ArcFaceConfig.from_dict(pack.config("identity")).input_size
    return entry


def clip_entry(config: Mapping[str, Any]) -> dict[str, Any]:
    """CLIP's sizes and normalisation."""
    mean, std = front_end_settings(config)[:2]
    return {
        "embed_dim": int(config["embed_dim"]),
        "image_size": square_size(config["vision_cfg"]),
        "context_length": int(config["text_cfg"].get("context_length", 77)),
        "mean": float32_list(mean),
        "std": float32_list(std),
    }


def float32_list(values: Sequence[float]) -> list[float]:
    """The values as the network holds them."""
    return [float(value) for value in torch.tensor(values, dtype=torch.float32)]


def tool_versions() -> dict[str, str]:
    """Versions of what made the bundle."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("styleclip-rt")
    except PackageNotFoundError:  # run from a source tree that was never installed
        own = "unknown"
    return {"styleclip_rt": own, "torch": torch.__version__, "onnx": onnx.__version__}


def json_text(manifest: Mapping[str, Any]) -> str:
    """Readable JSON with short lists on one line."""
    return json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
