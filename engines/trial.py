"""A one-node graph by which an engine proves that it runs on a device, rather than being presumed to."""

from __future__ import annotations

import base64
from collections.abc import Callable

import numpy as np

from .errors import StyleclipError
from .session import Engine, first_line

# ONNX, opset 13: y = x + x, float32 [1]. One kernel of the library's own build must run for it.
TRIAL_GRAPH = base64.b64decode(
    "CAg6OQoOCgF4CgF4EgF5IgNBZGQSBXRyaWFsWg8KAXgSCgoICAESBAoCCAFiDwoBeRIKCggIARIECgIIAUIECgAQDQ=="
)


def trial(engine: Callable[..., Engine], device: str) -> str:
    """Why `engine` does not run on `device`; "" if the trial graph has just run there."""
    try:
        with engine(TRIAL_GRAPH, device=device, threads=1) as session:
            doubled = float(session.run({"x": np.array([21.0], np.float32)})["y"][0])
    except StyleclipError as error:
        return str(error)
    except Exception as error:  # a library of a version that nobody has tried: whatever it raises, it does not run
        return f"the trial graph ended in {type(error).__name__}: {first_line(error)}"
    return "" if doubled == 42.0 else f"it computes wrongly: 21 + 21 gave {doubled}"
