"""AOTInductor packages: the graphs of the ONNX export compiled ahead of time, with no Python in the hot path.

A package (.pt2) is native code for one machine, so it is kept as TensorRT's plans are, in the same cache
(`engines.plan_cache`): private, authenticated, under a key that names everything it depends on; a pack or a bundle
never carries one. On CUDA it is recorded once into a CUDA graph and replayed.

`python -m styleclip_rt.benchmarks.aoti` writes one for a C++ program of one's own; see docs/engines.md.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import click
import numpy as np
import torch
from torch import Tensor, nn

from ..engines.errors import BundleError, EngineError, EngineUnavailable, StyleclipError
from ..engines.plan_cache import PlanCache
from ..engines.session import Engine, first_line
from ..engines.spec import GraphSpec, TensorSpec
from ..export.forms import form_for
from ..export.graphs import Graph, GraphFactory
from ..export.precision import settle
from ..export.precision_layers import TypedSynthesis
from ..export.ranges import sample_styles
from ..runtime.training.pack import Pack
from .machine import processor_name
from .network import Network, NetworkSpec, load_network

WARM_UP = 3
GRAPHS = ("synthesize", "synthesize_u8", "edit_global")
Feeds = tuple[Tensor, ...]


# The graph --------------------------------------------------------------------------------------------------------


class TypedGenerator(nn.Module):
    """A generator whose synthesis is the one that the ONNX export traces."""

    def __init__(self, typed: TypedSynthesis) -> None:
        super().__init__()
        self.typed = typed

    def styles(self, w: Tensor) -> Tensor:
        """w [N, L, W] -> s [N, S]."""
        return self.typed.generator.styles(w)

    def synthesize(self, s: Tensor) -> Tensor:
        """s [N, S] -> image [N, 3, R, R] in -1..1."""
        return cast(Tensor, self.typed(s))


def export_graph(network: Network, name: str, precision: str = "fp32", typed: Path | None = None) -> Graph:
    """The graph `name` of `GRAPHS` as `export` writes it to ONNX: its module, in its form and precision, and its ports.

    typed: the file that `prepare` wrote of the islands and scales of the float16 graphs; without it they are settled
    here, which takes minutes at full size.
    """
    factory = GraphFactory(cast(Pack, network))
    form = form_for("auto", precision)
    islands, scales = (None, {}) if precision == "fp32" else _typing(network, form, typed)
    graph = cast(Graph, getattr(factory, name)())
    graph.module.generator = TypedGenerator(TypedSynthesis(network.generator, form, islands, scales))
    return replace(graph, module=graph.module.eval())


def _typing(network: Network, form: str, file: Path | None) -> tuple[list[str], dict[str, float]]:
    """(islands, scales) of the float16 form."""
    if file is None or not file.is_file():
        choice = settle(network.generator, sample_styles(cast(Pack, network)), form)
        return list(choice.islands), choice.scales
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return list(record["islands"]), dict(record["scales"])
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{file} is damaged ({error}); delete the workload and run the bench again") from None


def fixed_spec(graph: Graph, batch: int) -> GraphSpec:
    """The ports of a graph at one batch size."""

    def fixed(ports: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(replace(p, shape=tuple(batch if size == "N" else size for size in p.shape)) for p in ports)

    return GraphSpec(graph.name, fixed(graph.inputs), fixed(graph.outputs))


# The package ------------------------------------------------------------------------------------------------------


def package_key(program: torch.export.ExportedProgram, inputs: Feeds, max_autotune: bool = False) -> dict[str, Any]:
    """What a package depends on: the code of the graph, its constants, its inputs, torch, and this machine."""
    digest = hashlib.sha256(program.graph_module.code.encode())
    for name, tensor in sorted({**program.state_dict, **program.constants}.items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        digest.update(array.view(torch.uint8).numpy() if array.dim() else array.numpy())
    on_cuda = inputs[0].is_cuda
    place = [torch.cuda.get_device_name(), *torch.cuda.get_device_capability()] if on_cuda else _processor()
    return {
        "kind": "aotinductor",
        "graph": digest.hexdigest(),
        "inputs": [[str(tensor.dtype), *tensor.shape] for tensor in inputs],
        "torch": [torch.__version__, torch.version.cuda if on_cuda else torch.backends.cpu.get_cpu_capability()],
        "place": place,
        "max_autotune": max_autotune,
    }


def _processor() -> list[str]:
    """The CPU's name, vague on some virtual machines, and a digest of what it can do: the code is made for that."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    return [processor_name(), hashlib.sha256(found[1].encode()).hexdigest() if found else ""]


def compile_package(program: torch.export.ExportedProgram, max_autotune: bool = False) -> bytes:
    """Compile for exactly the shapes of `program`; minutes at full size.

    Raises:
        EngineError: the compiler failed, for example because no C++ compiler is installed.
    """
    settings: dict[str, Any] = {"max_autotune": True} if max_autotune else {}
    with tempfile.TemporaryDirectory(prefix="styleclip-rt-aoti-") as folder:  # mode 0700: its files become code
        target = str(Path(folder) / "package.pt2")
        try:
            with torch.no_grad():
                torch._inductor.aoti_compile_and_package(program, package_path=target, inductor_configs=settings)
            return Path(target).read_bytes()
        except Exception as error:  # the compiler raises anything
            raise EngineError(f"AOTInductor cannot compile the graph: {first_line(error)}") from error


def package_of(module: nn.Module, inputs: Feeds, cache: PlanCache | None = None) -> bytes:
    """The package of `module` for the shapes of `inputs`: from the cache of this machine, else compiled and kept.

    Raises:
        EngineError: the module cannot be traced or compiled, or the cache cannot be used.
    """
    cache, max_autotune = cache or PlanCache(), inputs[0].is_cuda
    try:
        with torch.no_grad():
            program = torch.export.export(module, inputs)
    except Exception as error:  # the tracer raises anything
        raise EngineError(f"torch.export cannot trace the graph: {first_line(error)}") from error
    key = package_key(program, inputs, max_autotune)
    return cache.get_or_build(key, lambda: compile_package(program, max_autotune))


class Replay:
    """A recorded CUDA graph on fixed buffers: a call replays it on what the input buffers hold then.

    One caller at a time: inputs and output are shared by all calls. `turn` is held by whoever uses them.
    """

    def __init__(self, graph: Any, inputs: Feeds, out: Tensor) -> None:
        self.graph, self.inputs, self.out = graph, inputs, out
        self.turn = threading.Lock()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The output buffer, overwritten by the next call. `inputs` other than the recorded buffers are copied in."""
        for mine, given in zip(self.inputs, inputs, strict=True):
            if mine.data_ptr() != given.data_ptr():
                mine.copy_(given)
        self.graph.replay()
        return self.out


def record(callee: Callable[..., Tensor], inputs: Feeds) -> Replay:
    """Record a call on CUDA, after a few plain ones."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            callee(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = callee(*inputs)
    return Replay(graph, inputs, out)


def load_package(package: bytes, inputs: Feeds) -> Callable[..., Tensor]:
    """A package as a callable of tensors, on CUDA a `Replay`; `inputs` are the buffers that it is recorded on.

    package: bytes that this process compiled or authenticated, never any others: loading them runs native code.
    """
    on_cuda = inputs[0].is_cuda
    loaded = torch._inductor.aoti_load_package(io.BytesIO(package), run_single_threaded=on_cuda)

    def call(*given: Tensor) -> Tensor:
        result = loaded(*given)
        return cast(Tensor, result[0] if isinstance(result, (tuple, list)) else result)

    return record(call, inputs) if on_cuda else call


class AotiEngine(Engine):
    """A package under the engine contract: fixed batch, fresh outputs, every feed checked, calls from any thread."""

    backend: ClassVar[str] = "aotinductor"

    def __init__(self, package: bytes, spec: GraphSpec, device: str = "cpu") -> None:
        """Load a package of `package_of`, of a module with the ports of `spec` (all dimensions fixed, one output).

        Raises:
            EngineUnavailable: CUDA was asked for and torch sees none.
            EngineError: the package cannot be loaded.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise EngineUnavailable("AOTInductor was asked for CUDA, and torch sees no CUDA device; use device='cpu'.")
        super().__init__(spec, device)
        buffers = tuple(
            torch.zeros([int(size) for size in port.shape], dtype=getattr(torch, port.dtype), device=device)
            for port in spec.inputs
        )
        try:
            self._callee: Callable[..., Tensor] | None = load_package(package, buffers)
        except Exception as error:  # the loader raises RuntimeError and its own classes
            raise EngineError(f"AOTInductor cannot load the package of {spec.name!r}: {first_line(error)}") from error

    def _run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        callee = self._callee  # close() in another thread must not take it away half-way
        if callee is None:
            raise self._closed_error()
        given = [torch.from_numpy(feeds[port.name]).to(self.device) for port in self.spec.inputs]
        try:
            with torch.no_grad():
                found = _copy_of(callee, given)
        except RuntimeError as error:
            raise EngineError(f"graph {self.spec.name!r} failed in AOTInductor: {first_line(error)}") from error
        return {self.spec.outputs[0].name: found}

    def close(self) -> None:
        """Free the package, once the runs in progress have ended."""
        super().close()
        self._callee = None


def _copy_of(callee: Callable[..., Tensor], given: list[Tensor]) -> np.ndarray:
    """What a call gives, as an array of its own; buffers that calls share are one caller's until it has its copy."""
    if not isinstance(callee, Replay):
        return np.array(callee(*given).numpy())
    with callee.turn:
        return np.array(callee(*given).cpu().numpy())


# A package for a program of one's own -----------------------------------------------------------------------------


@click.command()
@click.option("--pack", default="toyfaces", show_default=True, metavar="NAME|DIR", help="Whose generator.")
@click.option("--graph", type=click.Choice(GRAPHS), default="synthesize", show_default=True)
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="It is fixed.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, metavar="FILE.pt2")
def main(pack: str, graph: str, batch: int, device: str, out: Path) -> None:
    """Compile a graph of a pack into a package for this machine, for a C++ program; takes a C++ compiler and minutes.

    \b
    Example:
      python -m styleclip_rt.benchmarks.aoti --pack toyfaces --graph synthesize --out synthesize.pt2
    """
    try:
        if device == "cuda" and not torch.cuda.is_available():
            raise EngineUnavailable("torch sees no CUDA device here; use --device cpu")
        made = export_graph(load_network(NetworkSpec(pack=pack)), graph)
        feeds = tuple(feed.to(device) for feed in made.feeds(batch, torch.Generator().manual_seed(0)))
        package = package_of(made.module.to(device), feeds)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
            whole = Path(folder) / out.name
            whole.write_bytes(package)
            whole.replace(out)
    except (StyleclipError, OSError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{out}  {fixed_spec(made, batch)}")


if __name__ == "__main__":
    main()
