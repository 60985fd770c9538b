"""Pack -> engine bundle: every graph traced, checked against PyTorch, and published in one rename, or not at all."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch

from ..engines.errors import PackError
from ..engines.spec import GraphSpec
from ..runtime.training.pack import Pack
from ..runtime.training.pack_format import atomic_directory, sha256_of
from .graphs import Graph, graph_list
from .onnx_writer import ModelMaker
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


@dataclass(frozen=True)
class Row:
    """One exported graph: its ports, file, size and check. `bytes` counts the graph and the weights it reads."""

    spec: GraphSpec
    file: str
    bytes: int
    check: Check
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The graph's entry of bundle.json."""
        return {
            "file": self.file,
            "inputs": [spec.as_json() for spec in self.spec.inputs],
            "outputs": [spec.as_json() for spec in self.spec.outputs],
            "check": self.check.as_json(),
            "export_s": round(self.seconds, 2),
            "bytes": self.bytes,
        }


@dataclass(frozen=True)
class Report:
    """What an export made: the folder, its rows, the whole size, and {graph: components that the pack lacks}."""

    path: Path
    rows: tuple[Row, ...]
    total_bytes: int
    missing: dict[str, list[str]]
    seconds: float


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
        rows = write_graphs(folder, builders, progress)
        if pack.has("tokenizer"):
            shutil.copyfile(pack.file("tokenizer"), folder / "tokenizer.json")
        (folder / MANIFEST).write_text(json_text(manifest_of(pack, plan, rows, folder)), encoding="utf-8")
        total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Report(out, tuple(rows), total, missing, time.perf_counter() - start)


def write_graphs(folder: Path, builders: list[Callable[[], Graph]], progress: Progress) -> list[Row]:
    """Writes and checks every graph; the shared weights stand beside them, since ONNX readers refuse `../`."""
    graphs = [build() for build in builders]
    parts = {graph.name: graph for graph in graphs}
    (folder / "graphs").mkdir()
    maker, weights = ModelMaker(), WeightFile(folder / "graphs" / WEIGHTS)
    rows = []
    try:
        for graph in graphs:
            progress(graph.name)
            rows.append(write_graph(folder, graph, maker, parts, weights))
    finally:
        weights.close()
    return rows


def write_graph(folder: Path, graph: Graph, maker: ModelMaker, parts: dict[str, Graph], weights: WeightFile) -> Row:
    """Writes one graph file, has it checked by the ONNX checker and against PyTorch, and returns its row."""
    start = time.perf_counter()
    model = maker.model(graph, parts)
    weights.take(model)
    file = f"graphs/{graph.name.replace('/', '.')}.onnx"
    path = folder / file
    path.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path), full_check=True)
    check = check_graph(graph, path)
    size = path.stat().st_size + external_bytes(model)
    return Row(GraphSpec(graph.name, graph.inputs, graph.outputs), file, size, check, time.perf_counter() - start)


def external_bytes(model: onnx.ModelProto) -> int:
    """Bytes that the model reads from the shared weights."""
    entries = [{entry.key: entry.value for entry in tensor.external_data} for tensor in model.graph.initializer]
    return sum({entry["offset"]: int(entry["length"]) for entry in entries if entry}.values())


def manifest_of(pack: Pack, plan: Plan, rows: list[Row], folder: Path) -> dict[str, Any]:
    """bundle.json, format version 1."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": plan.name,
        "created": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "tool": tool_versions(),
        "pack": {"name": pack.name, "sha256": pack.sha256, "licences": pack.licences},
        "precision": "fp32",
        "files": {
            path.relative_to(folder).as_posix(): {"sha256": sha256_of(path), "bytes": path.stat().st_size}
            for path in files
        },
        "graphs": {row.spec.name: row.as_json() for row in rows},
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
        generator = pack.generator
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
        clip = pack.clip
        entry["clip"] = {
            "embed_dim": clip.embed_dim,
            "image_size": clip.image_size,
            "context_length": clip.context_length,
            "mean": clip.preprocess.mean.flatten().tolist(),
            "std": clip.preprocess.std.flatten().tolist(),
        }
    if pack.has("inverter"):
        entry["invert_size"] = pack.inverter.config.input_size
    if pack.has("identity"):
        entry["identify_size"] = pack.identity.config.input_size
    return entry


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
