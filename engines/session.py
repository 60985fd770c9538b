"""The one engine contract: a loaded graph that validates its feeds, then runs them on one backend and device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import numpy as np

from .errors import BundleError, EngineError, EngineUnavailable
from .spec import GraphSpec, check_feeds, spec_differences

PARTS = ("h2d_ms", "compute_ms", "d2h_ms")
"""What a run on a device consists of, in this order."""


class Engine(ABC):
    """A graph loaded on a backend.

    `run` may be called from several threads at once. Feeds belong to the caller: they are read during the call and
    never kept or written. Outputs are fresh arrays that belong to the caller: a later run does not touch them.

    Attributes:
        spec: what the graph takes and gives.
        device: `"cpu"` or `"cuda"`, where it really runs.
        backend: name of the library that runs it, as in `select.ENGINES`.
    """

    backend: ClassVar[str]

    def __init__(self, spec: GraphSpec, device: str) -> None:
        self.spec = spec
        self.device = device
        self._closed = False

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name for feeds by name.

        Raises:
            InputError: the feeds do not fit `spec`.
            EngineError: the backend failed, or the engine is closed.
        """
        return self._run(self._checked(feeds))

    def run_device(
        self, feeds: Mapping[str, Any], outputs: Mapping[str, Any] | None = None, stream: Any = None
    ) -> dict[str, Any]:
        """As `run`, over arrays that lie on the device, without a copy; see the engines that can.

        Raises:
            EngineUnavailable: this engine takes host arrays only.
        """
        raise EngineUnavailable(
            f"the engine {self.backend!r} takes arrays on the host; use run(), or engine='tensorrt'."
        )

    def split_ms(self, feeds: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Milliseconds of one run by its parts, a figure for each of `PARTS`: copies in, computation, copies out.

        Empty where there is nothing to tell apart: on the CPU, and on engines that cannot.

        Raises:
            InputError: the feeds do not fit `spec`.
            EngineError: the backend failed, or the engine is closed.
        """
        return self._split_ms(self._checked(feeds))

    def _checked(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._closed:
            raise self._closed_error()
        return check_feeds(self.spec, feeds)

    def _split_ms(self, feeds: dict[str, np.ndarray]) -> dict[str, float]:
        """As `_run`, for `split_ms`."""
        return {}

    @abstractmethod
    def _run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run checked feeds, given as contiguous arrays in the order of `spec.inputs`."""

    def close(self) -> None:
        """Free the backend's memory; a second call does nothing."""
        self._closed = True

    def _closed_error(self) -> EngineError:
        return EngineError(f"graph {self.spec.name!r}: the engine is closed; open the bundle again to run it.")

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def agreed_spec(promised: GraphSpec | None, found: GraphSpec, model: Path | bytes) -> GraphSpec:
    """The promised spec where there is one (it names the free dimensions), checked against the file's own.

    Raises:
        BundleError: the file takes or gives something else than was promised.
    """
    if promised is None:
        return found
    faults = spec_differences(promised, found)
    if faults:
        raise BundleError(f"{model_name(model)} is not what bundle.json says: {'; '.join(faults)}. Export it again.")
    return promised


def model_name(model: Path | bytes) -> str:
    """How messages name a model."""
    return "a graph in memory" if isinstance(model, bytes) else str(model)


def first_line(error: BaseException) -> str:
    """The gist of a backend's error: its first line, at most 300 characters."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
