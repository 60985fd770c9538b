"""The TensorRT library, whichever of its packages is installed. The only module that imports it, when it is wanted.

`tensorrt` (10 and 11) and `tensorrt_rtx` have one Python API for what is used here, so everything else takes the module
as an argument named `trt`, and tests can build with the one that needs no driver.
"""

from __future__ import annotations

import importlib
from collections import deque
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from .errors import MissingDependency
from .session import first_line

MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
"""Import names in the order of preference; the wheels of TensorRT-RTX install the third alone."""
MEND = "python -m pip install 'styleclip-rt[tensorrt]'"
MEND_CUDA = "python -m pip install 'cuda-bindings>=12.6'"
LABEL = "built and parsed in CI, not yet run on hardware"
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "INT32": "int32", "INT8": "int8", "UINT8": "uint8",
           "BOOL": "bool"}  # fmt: skip
_KEPT_MESSAGES = 20


def installed() -> str:
    """The import name of the TensorRT that is installed, "" if none is."""
    return next((name for name in MODULES if find_spec(name) is not None), "")


@lru_cache(maxsize=1)
def library() -> Any:
    """The module itself, imported.

    Raises:
        MissingDependency: none is installed, or it cannot be imported.
    """
    name = installed()
    if not name:
        raise MissingDependency(f"TensorRT is not installed; run: {MEND}")
    try:
        return importlib.import_module(name)
    except Exception as error:  # a stub whose libraries did not come raises what it likes
        raise MissingDependency(f"{name} cannot be imported ({first_line(error)}); run: {MEND}") from error


def is_rtx(trt: Any) -> bool:
    """Whether it is TensorRT-RTX: builds without a driver and compiles for the card at run time."""
    return "rtx" in str(trt.__name__)


def major(trt: Any) -> int:
    """The first number of its version."""
    return int(str(trt.__version__).split(".")[0])


def product(trt: Any) -> str:
    """Name and version, as they stand in messages and in the key of a plan."""
    return f"{'TensorRT-RTX' if is_rtx(trt) else 'TensorRT'} {trt.__version__}"


def numpy_dtype(dtype: Any) -> str:
    """Our name of a `trt.DataType`; its own name in lower case where numpy has none."""
    return _DTYPES.get(dtype.name, dtype.name.lower())


@lru_cache(maxsize=4)
def journal(trt: Any) -> Any:
    """The one logger of a library in this process; it prints nothing.

    `take()` gives the last warnings and errors and forgets them. TensorRT wants one logger for as long as anything of
    it lives, so this one is never dropped. It also stands in for an `IErrorRecorder`: one set from Python ends the
    process when its builder is freed after a parse (seen with TensorRT-RTX 1.7.1), and says nothing that is not here.
    """

    class Journal(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: deque[str] = deque(maxlen=_KEPT_MESSAGES)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.messages.append(str(message))

        def take(self) -> str:
            """The messages since the last call, oldest first, in one line."""
            taken = list(dict.fromkeys(self.messages))
            self.messages.clear()
            return one_line(taken)

    return Journal()


def one_line(messages: list[str]) -> str:
    """Messages of the library without their line breaks, at most 600 characters."""
    return "; ".join(" ".join(text.split()) for text in messages)[:600]
