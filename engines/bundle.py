"""An engine bundle opened for running: graphs by name, loaded on first use, on one engine and device.

with open_bundle("bundles/bob-cut") as bundle:
    image = bundle.run("synthesize", s=s)["image"]
"""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from .cpu import thread_count
from .errors import BundleError, EngineError, InputError
from .manifest import FileEntry, read_manifest
from .select import choose, engine_class
from .session import Engine
from .spec import GraphSpec

if TYPE_CHECKING:
    from .build import BuildOptions, GraphProgress


def open_bundle(
    path: str | Path,
    device: str = "auto",
    engine: str | None = None,
    threads: int | None = None,
    tensorrt: BuildOptions | None = None,
    progress: GraphProgress | None = None,
) -> Bundle:
    """Open the bundle in the directory `path`; no graph is loaded yet.

    Args:
        path: the directory that holds `bundle.json`.
        device: `"auto"` (CUDA where it runs, else the CPU, with the reason in `device_reason`), `"cpu"` or `"cuda"`.
        engine: one of `select.ENGINES`; None takes the best that really runs on the device.
        threads: per graph on CPU; None takes STYLECLIP_RT_THREADS, else the physical cores.
        tensorrt: batches and workspace of TensorRT plans, `build.BuildOptions`; None takes what the variables
            `build.VARIABLES` say, else its defaults. No other engine builds plans.
        progress: called while TensorRT builds a plan, with (graph, phase, steps done, steps in all); False ends the
            build. The last call of a build has the phase `build.FINISHED`.

    Raises:
        BundleError: the bundle is missing, malformed, or of a version that this release cannot read.
        InputError: an unknown device or engine, or a bad number of threads.
        EngineUnavailable: the engine or device that was asked for cannot run here.
        MissingDependency: the engine's library is not installed.
    """
    return Bundle(Path(path), device, engine, threads, tensorrt, progress)


class Bundle:
    """The graphs of one bundle. Every method may be called from several threads at once.

    Attributes:
        path: the directory.
        manifest: `bundle.json` as a dictionary, checked; treat it as read-only.
        graphs: names of the graphs, in the order of the manifest.
        backend: the engine that runs them, one of `select.ENGINES`; a graph that TensorRT, chosen by itself, cannot
            build runs in ONNX Runtime, and its engine says so.
        device: `"cpu"` or `"cuda"`, where they run.
        device_reason: why that device, for example why CUDA was not taken.
        threads: CPU threads of each graph.
    """

    def __init__(
        self,
        path: Path,
        device: str,
        engine: str | None,
        threads: int | None,
        tensorrt: BuildOptions | None = None,
        progress: GraphProgress | None = None,
    ) -> None:
        self.path = path
        self._checked = read_manifest(path)
        self.manifest: dict[str, Any] = self._checked.raw
        self.graphs: tuple[str, ...] = tuple(self._checked.graphs)
        choice = choose(device, engine)
        self.backend, self.device, self.device_reason = choice.engine, choice.device, choice.reason
        self._builds = choice.fallback, tensorrt, progress
        self.threads = thread_count(threads)
        self._engines: dict[str, Engine] = {}
        self._loading = {name: threading.Lock() for name in self.graphs}
        self._closed = False

    def __repr__(self) -> str:
        return f"<Bundle {self.path} on {self.backend}/{self.device}: {', '.join(self.graphs)}>"

    def spec(self, name: str) -> GraphSpec:
        """What the graph `name` takes and gives.

        Raises:
            InputError: no such graph; the message lists the graphs.
        """
        if name not in self._checked.graphs:
            lacked = self.manifest.get("missing")
            parts = lacked.get(name) if isinstance(lacked, dict) else None
            why = (
                f" The pack that it was made from lacked {', '.join(map(str, parts))}."
                if isinstance(parts, list)
                else ""
            )
            raise InputError(
                f"no graph {name!r} in the bundle {self.path}; its graphs are: {', '.join(self.graphs)}.{why}"
            )
        return self._checked.graphs[name]

    def run(self, name: str, /, **feeds: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs of the graph `name` by name, as fresh arrays; the graph is loaded on first use.

        Raises:
            InputError: no such graph, or feeds that do not fit `spec(name)`.
            BundleError: the graph's file is not what the manifest says.
            EngineError: the engine cannot load or run the graph, or the bundle is closed.
        """
        return self.engine(name).run(feeds)

    def engine(self, name: str) -> Engine:
        """The loaded engine of the graph `name`, made once; the bundle owns it. Same errors as `run`."""
        spec = self.spec(name)
        engine = self._engines.get(name)
        if engine is not None:
            return engine
        with self._loading[name]:
            if self._closed:
                raise EngineError(f"the bundle {self.path} is closed; open it again to run {name!r}.")
            if name not in self._engines:
                make, file = engine_class(self.backend, *self._builds), self._checked.graph_files[name]
                self._engines[name] = make(file, spec, device=self.device, threads=self.threads)
            return self._engines[name]

    def file(self, relative: str) -> Path:
        """The real path of a file of the bundle, such as `bundle.manifest["tokenizer"]`.

        Raises:
            BundleError: the manifest does not list it (what is not listed has no hash), or it has gone.
        """
        entry = self._checked.files.get(relative) if isinstance(relative, str) else None
        if entry is None:
            known = ", ".join(self._checked.files)
            raise BundleError(
                f"{str(relative)[:200]!r} is not a file of the bundle {self.path}; its files are: {known}."
            )
        if not entry.path.is_file():
            raise BundleError(f"{self.path}: the file {relative} has gone since the bundle was opened; restore it.")
        return entry.path

    def verify(self) -> None:
        """Compute the SHA-256 of every file of the bundle.

        Raises:
            BundleError: some differ or cannot be read; all of them are named at once.
        """
        faults = [fault for name, entry in self._checked.files.items() if (fault := _hash_fault(name, entry))]
        if faults:
            raise BundleError(f"the bundle {self.path} is damaged: {'; '.join(faults)}. Copy or export it again.")

    def close(self) -> None:
        """Free every loaded graph; a second call does nothing."""
        self._closed = True
        for name, lock in self._loading.items():
            with lock:
                engine = self._engines.pop(name, None)
            if engine is not None:
                engine.close()

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _hash_fault(name: str, entry: FileEntry) -> str:
    try:
        found = sha256_of(entry.path)
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return "" if found == entry.sha256 else f"{name} has SHA-256 {found[:16]}..., expected {entry.sha256[:16]}..."


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hex, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
