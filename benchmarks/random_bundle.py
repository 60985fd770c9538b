"""A bundle of random weights at any size, to measure how long a large one takes to open. Runs as a process.

    python -m styleclip_rt.benchmarks.random_bundle '{"folder": DIR, "network": {...}}'

It holds what an edit of latents needs, written and checked as an export does: mapping, styles, direction, synthesis
and the fused edit. Encoders and CLIP are not there: opening reads nothing of them, their graphs load on first use.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from ..engines.errors import MissingDependency
from .network import Network, NetworkSpec, random_network

if TYPE_CHECKING:
    from ..runtime.training.pack import Pack

GRAPHS = ("mapping", "style", "synthesize", "synthesize_u8", "direction", "edit_global")
NAME = "random-weights"
Progress = Callable[[str], None]


class RandomPack(Network):
    """A network of random weights with what the bundle writer reads of a pack besides."""

    name: ClassVar[str] = NAME
    sha256: ClassVar[str] = ""
    components: ClassVar[tuple[str, ...]] = ("generator", "statistics", "directions")
    licences: ClassVar[dict[str, str]] = {}
    templates: ClassVar[list[str]] = []
    alignment: ClassVar[dict[str, Any]] = {"kind": "none"}

    def config(self, component: str) -> dict[str, Any]:
        """Settings of a component: none."""
        return {}

    def release(self, *components: str) -> None:
        """Components that may go: they are all small beside the generator."""


def write_random_bundle(folder: Path, spec: NetworkSpec, progress: Progress = lambda text: None) -> None:
    """Write the bundle of a network of random weights to `folder`, whole or not at all.

    Raises:
        InputError: a size or width that is not offered, or `folder` holds something else.
        MissingDependency: torch or onnx is not installed.
        ToleranceError: a graph differs from PyTorch.
    """
    try:
        from ..export.bundle_writer import MANIFEST, Plan, json_text, manifest_of, write_graphs
        from ..export.graphs import GraphFactory
        from ..runtime.training.pack_format import atomic_directory
    except ImportError as error:
        raise MissingDependency(
            f"a bundle of random weights is written with torch and onnx ({error.name} is missing); "
            "run: python -m pip install 'styleclip-rt[torch]'"
        ) from error
    pack, plan = cast("Pack", RandomPack(**vars(random_network(spec)))), Plan(NAME, slider=False)
    factory = GraphFactory(pack)
    with atomic_directory(folder, MANIFEST) as work:
        rows = write_graphs(work, pack, plan, [getattr(factory, name) for name in GRAPHS], progress)
        manifest = manifest_of(pack, plan, rows, work, {})
        (work / MANIFEST).write_text(json_text(manifest), encoding="utf-8")


def main() -> None:
    """Answer one request; progress goes to stderr."""
    request = json.loads(sys.argv[1])

    def progress(text: str) -> None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    write_random_bundle(Path(request["folder"]), NetworkSpec(**request["network"]), progress)


if __name__ == "__main__":
    main()
