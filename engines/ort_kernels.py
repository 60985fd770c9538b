"""ONNX Runtime on the CPU with custom operators of our own: the engine, how a new library proves itself, its building.

The file stays as it is; what fits is rewritten in memory by `ort_forms`, and everything else runs as ever.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from . import kernels, ort_forms
from .errors import EngineUnavailable, StyleclipError
from .ort import OrtEngine, open_session, version
from .session import first_line
from .spec import GraphSpec

MAX_ERROR = 1e-3
"""Of the trial graph, largest difference over largest value; tiles in float32 come to about 1e-6."""
TRIAL_S = 120.0
"""A trial that takes longer is stopped."""


class OrtKernelsEngine(OrtEngine):
    """One ONNX file in ONNX Runtime, its styled convolutions by the library of `kernels`."""

    backend: ClassVar[str] = "onnxruntime-kernels"
    providers: ClassVar[dict[str, str]] = {"cpu": "cpu"}

    def __init__(
        self,
        model: Path | bytes,
        spec: GraphSpec | None = None,
        device: str = "cpu",
        threads: int | None = None,
        operators: str | None = None,
    ) -> None:
        """As `OrtEngine`; operators: path of the library, None for the one that is kept on this machine.

        Raises:
            EngineUnavailable: the graph has layers for the library, which is not built or cannot run here, or `device`
                is not `"cpu"`.
            EngineError: the file cannot be loaded.
            BundleError: the file is not what `spec` says.
        """
        self._operators = operators
        super().__init__(model, spec, device, threads)

    def _open(self, model: Path | bytes, provider: str, threads: int) -> Any:
        graph = ort_forms.styled(model)
        if graph is None:  # nothing in it is for the library
            return super()._open(model, provider, threads)
        return open_session(model, provider, threads, graph, self._operators or kept_operators())


def kept_operators() -> str:
    """The path under which the kept library of this machine can be loaded.

    Where ONNX Runtime is another than the one that the library was tried with, it is tried with this one first, once.

    Raises:
        EngineUnavailable: it is not built, or cannot run here.
        Refused: it was found wrong.
        EngineError: the cache cannot be used.
    """
    reason = kernels.unsupported()
    library = None if reason else kernels.built()
    if library is None:
        reason = reason or kernels.NOT_BUILT
        mend = kernels.mend(reason)
        raise EngineUnavailable(
            f"ONNX Runtime cannot run with own kernels: {reason}" + (f"; run: {mend}" if mend else "")
        )
    if library.made.onnxruntime != version():
        kernels.try_again(library, fault_apart, version())
    return kernels.path_in_memory(library.content)


def build_kernels(say: Callable[[str], None], rebuild: bool = False) -> tuple[kernels.Library, bool]:
    """The library of this machine, tried, and whether it was built just now; see `kernels.build` for what it raises.

    say: hears what takes time. Also raises MissingDependency without ONNX Runtime.
    """
    return kernels.build(fault_apart, version(), say, rebuild)


def engine_fault() -> str:
    """Why the engine does not run here, "" if the kept library has just passed its trial."""
    reason = kernels.fault()
    if reason:
        return reason
    try:
        return library_fault(kept_operators())
    except StyleclipError as error:
        return str(error)


def library_fault(operators: str) -> str:
    """What is wrong with the library at a path, "" if the trial graph gives with it what it gives without."""
    from . import kernels_trial  # an edit need not import it

    graph = kernels_trial.graph()
    try:
        if ort_forms.styled(graph) is None:
            return "the trial graph does not use it"
        with (
            OrtEngine(graph, threads=1) as plain,
            OrtKernelsEngine(graph, threads=2, operators=operators) as own,
        ):
            for batch in (1, 3):
                feeds = kernels_trial.feeds(batch)
                found, wanted = own.run(feeds), plain.run(feeds)
                error = max(float(np.abs(found[n] - y).max() / np.abs(y).max()) for n, y in wanted.items())
                if not error <= MAX_ERROR:
                    return f"it computes wrongly: the trial graph is off by {error:.1e} at batch {batch}"
    except StyleclipError as error:
        return str(error)
    except Exception as error:  # a version of ONNX Runtime that nobody has tried: whatever it raises, it does not run
        return f"the trial graph ended in {type(error).__name__}: {first_line(error)}"
    return ""


def fault_apart(content: bytes) -> str:
    """`library_fault` of a library that was never tried, in a process of its own, which it may end."""
    import signal
    import subprocess

    command = [sys.executable, "-m", f"{__package__}.ort_kernels"]
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}  # nothing of the folder that a user happens to stand in
    try:
        done = subprocess.run(
            command, input=content, capture_output=True, check=False, timeout=TRIAL_S, env=environment
        )
    except subprocess.TimeoutExpired:
        return f"the trial graph did not end within {TRIAL_S:g} s"
    if done.returncode < 0:
        return f"the trial graph ended the process by {signal.Signals(-done.returncode).name}"
    lines = (done.stderr if done.returncode else done.stdout).decode(errors="replace").strip().splitlines()
    if done.returncode or not lines:
        return f"the trial graph ended with code {done.returncode}: {lines[-1][:300] if lines else 'it says nothing'}"
    return str(json.loads(lines[-1]))


def main() -> None:
    """The process of `fault_apart`: a library on stdin, what is wrong with it as JSON on stdout."""
    operators = kernels.path_in_memory(sys.stdin.buffer.read())
    sys.stdout.write(f"\n{json.dumps(library_fault(operators))}\n")


if __name__ == "__main__":
    main()
