"""Make a workload folder: graphs exported from the network, feeds, and PyTorch FP32 pictures to compare with.

Runs in a process of its own (`python -m styleclip_rt.benchmarks.prepare SPEC`), so that the measuring process loads no
torch. Without torch a ready-made bundle serves: its graphs, no reference, no PyTorch baselines.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..engines.bundle import open_bundle
from ..engines.errors import BundleError, MissingDependency
from ..engines.session import first_line
from ..runtime.store import find_bundle
from .network import Network, NetworkSpec, load_network, make_inputs
from .workload import HALF, MATMUL, TASKS, TYPED, Workload, read_workload

if TYPE_CHECKING:
    from torch import nn

    from ..runtime.training.pack import Pack

Progress = Callable[[str], None]
REFERENCES = 2  # pictures to compare: two of a batch, so that mixing up the batch is seen
MATMUL_SIZE = 2048


def prepare(
    folder: Path,
    spec: NetworkSpec,
    batch: int,
    precisions: Sequence[str] = ("fp32",),
    progress: Progress = lambda text: None,
) -> Workload:
    """The workload of a network in `folder`, made if it is not there: `batch` rows of feeds, graphs in `precisions`.

    Raises:
        MissingDependency: a network without a ready-made bundle, and torch is not installed.
        PackError, BundleError: the network cannot be read.
    """
    if (folder / "workload.json").is_file():
        return read_workload(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        (_from_network if _has_torch() else _from_bundle)(work, spec, batch, precisions, progress)
        os.replace(work, folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return read_workload(folder)


def _has_torch() -> bool:
    from importlib.util import find_spec

    return all(find_spec(name) is not None for name in ("torch", "safetensors"))


def _from_network(work: Path, spec: NetworkSpec, batch: int, precisions: Sequence[str], progress: Progress) -> None:
    import torch

    progress("network")
    network = load_network(spec)
    config = network.generator.config
    np.savez(work / "inputs.npz", **cast("dict[str, Any]", make_inputs(network, batch, spec.seed)))
    workload = Workload(work, vars(spec), dict(config.channels), config.w_dim, batch, reference="PyTorch FP32")
    progress("reference pictures")
    with torch.no_grad():
        np.savez(work / "reference.npz", **cast("dict[str, Any]", _references(network, workload)))
    progress("graphs")
    graphs, notes = export_graphs(network, work, precisions)
    Workload(**{**vars(workload), "graphs": graphs, "notes": notes}).save()


def _references(network: Network, workload: Workload) -> dict[str, np.ndarray]:
    """uint8 pictures of the export form in PyTorch, one at a time."""
    import torch

    from ..export.modules import DirectionGraph, EditGlobalGraph, SynthesizeU8Graph

    modules: dict[str, nn.Module] = {
        "synthesize": SynthesizeU8Graph(network.generator),
        "edit": EditGlobalGraph(network.generator, DirectionGraph(network.directions, network.sigma)),
    }
    pictures = {}
    for task, module in modules.items():
        feeds = workload.feeds(task, REFERENCES)
        rows = [module(*(torch.from_numpy(a[i : i + 1]) for a in feeds.values())) for i in range(REFERENCES)]
        pictures[task] = torch.cat(rows).numpy()
    return pictures


def export_graphs(network: Network, work: Path, precisions: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """({graph: file}, notes) of the tasks, sliders and a matrix product; a note says what is missing and why."""
    graphs: dict[str, str] = {}
    notes: list[str] = []
    for precision in precisions:
        try:
            graphs |= _export(network, work, precision)
        except ImportError as error:
            notes.append(f"no {precision} graph: {error.name} is not installed")
        except Exception as error:  # the exporter raises anything; the PyTorch rows do not need it
            notes.append(f"no {precision} graph: {type(error).__name__}: {first_line(error)}")
    return (graphs | {MATMUL: _write_matmul(work)} if "fp32" in precisions and graphs else graphs), tuple(notes)


def _export(network: Network, work: Path, precision: str) -> dict[str, str]:
    """Files of the graphs of one precision, each precision with weights of its own."""
    from ..export.recipe import Recipe, save
    from ..export.weights import WeightFile

    plain = precision == "fp32"
    folder, prefix = f"graphs{'' if plain else '-fp16'}", "" if plain else HALF
    (work / folder).mkdir()
    weights = WeightFile(work / folder / "weights.bin")
    try:
        recipe = Recipe(cast("Pack", network), weights, precision, slider=plain)
        factory = recipe.factory
        parts = {graph.name: graph for graph in (factory.style(), factory.synthesize(), factory.direction())}
        files = {}
        for graph in (factory.synthesize_u8(), factory.edit_global(), *(build() for build in recipe.slice_graphs())):
            files[prefix + graph.name] = f"{folder}/{graph.name.replace('/', '.')}.onnx"
            save(recipe.maker.model(graph, parts), work / files[prefix + graph.name])
        if not plain:
            record = {"islands": list(recipe.choice.islands), "scales": recipe.choice.scales}
            (work / TYPED).write_text(json.dumps(record) + "\n", encoding="utf-8")
    finally:
        weights.close()
    return files


def _write_matmul(work: Path) -> str:
    """A large FP32 matrix product as a graph, by which a library's own rate is measured."""
    from onnx import parser

    side, file = MATMUL_SIZE, f"graphs/{MATMUL}.onnx"
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
    matmul (float[{side},{side}] a, float[{side},{side}] b) => (float[{side},{side}] y) {{ y = MatMul(a, b) }}"""
    (work / file).write_bytes(parser.parse_model(text).SerializeToString())
    return file


def _from_bundle(work: Path, spec: NetworkSpec, batch: int, precisions: Sequence[str], progress: Progress) -> None:
    """The base install: the bundle of the same name, with feeds from its own graphs, in the precision that it has."""
    if spec.pack is None:
        raise MissingDependency(
            "a network of random weights needs torch: install `styleclip-rt[torch]`, or bench --pack toyfaces"
        )
    progress("bundle")
    found = find_bundle(spec.pack)
    with open_bundle(found.path, device="cpu", engine="onnxruntime") as bundle:
        missing = [graph for graph in (*TASKS.values(), "mapping", "style", "direction") if graph not in bundle.graphs]
        if missing:
            raise BundleError(f"the bundle {found} lacks {', '.join(missing)}, which the bench needs")
        model = bundle.manifest["model"]
        rng = np.random.RandomState(spec.seed)
        z = rng.randn(batch, int(model["z_dim"])).astype(np.float32)
        w = bundle.run("mapping", z=z, psi=np.full(batch, 0.7, np.float32))["w"]
        delta_t = rng.randn(batch, int(model["clip"]["embed_dim"])).astype(np.float32)
        inputs: dict[str, Any] = {
            "w": w,
            "s": bundle.run("style", w=w)["s"],
            "delta_t": delta_t / np.linalg.norm(delta_t, axis=1, keepdims=True),
            "alpha": np.full(batch, 3.0, np.float32),
            "beta": np.full(batch, 0.02, np.float32),  # random directions are less relevant than a text's
        }
        files = {name: bundle.manifest["graphs"][name]["file"] for name in TASKS.values()}
    np.savez(work / "inputs.npz", **inputs)
    os.symlink(found.path / "graphs", work / "graphs")
    notes = ("torch is not installed: no PyTorch baselines, and no accuracy against PyTorch",)
    Workload(work, vars(spec), channels_of(model), int(model["w_dim"]), batch, files, "", notes).save()


def channels_of(model: dict[str, Any]) -> dict[int, int]:
    """Feature maps by resolution of a bundle's `model` entry: what its toRGB layers read."""
    rgb = [layer for layer in model["layers"] if layer["kind"] == "torgb"]
    return {int(layer["name"].split(".")[0][1:]): int(layer["channels"]) for layer in rgb}


def main() -> None:
    """`... benchmarks.prepare '{"folder": ..., "network": {...}, "batch": 8, "precisions": ["fp32"]}'`."""
    request = json.loads(sys.argv[1])

    def progress(text: str) -> None:
        sys.stderr.write(f"prepare: {text}\n")
        sys.stderr.flush()

    prepare(
        Path(request["folder"]),
        NetworkSpec(**request["network"]),
        int(request["batch"]),
        tuple(request["precisions"]),
        progress,
    )


if __name__ == "__main__":
    main()
