"""Text-driven face editing (StyleCLIP) from exported engines; importing this package loads no backend and no torch.

The public names are resolved on first use (PEP 562), so that `import styleclip_rt` costs a few milliseconds:

    editor = styleclip_rt.Editor.open("toyfaces")
    bundle = styleclip_rt.open_bundle("path/to/bundle")
    styleclip_rt.edits.direction(...)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .engines.bundle import Bundle, open_bundle
    from .engines.errors import StyleclipError
    from .runtime import edits
    from .runtime.editor import Editor

__version__ = "0.1.0"
__all__ = ["Bundle", "Editor", "StyleclipError", "__version__", "edits", "open_bundle"]

# public name -> (module that defines it, attribute; None: the module itself)
_PUBLIC: dict[str, tuple[str, str | None]] = {
    "Bundle": (".engines.bundle", "Bundle"),
    "Editor": (".runtime.editor", "Editor"),
    "StyleclipError": (".engines.errors", "StyleclipError"),
    "edits": (".runtime.edits", None),
    "open_bundle": (".engines.bundle", "open_bundle"),
}


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public names: {', '.join(__all__)}")
    module_name, attribute = _PUBLIC[name]
    module = importlib.import_module(module_name, __name__)
    value = module if attribute is None else getattr(module, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
