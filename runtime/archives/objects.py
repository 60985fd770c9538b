"""The `World` of a checkpoint's pickle: names are looked up in the table of `builders`, and the tree is finished."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...engines.errors import PackError
from .builders import ALIASES, BUILDERS, INERT, Instance, Name, element_of, is_known, refusal
from .source import MAX_DEPTH, Budget, Opaque
from .tensors import NumpyArray, NumpyType, Storage, Tensor, is_count


class Objects:
    """The `World` of a checkpoint's pickle.

    storage: gives the storage of a key, element type and count (`persistent` names it). nested: reads the bytes of a
    storage that was pickled by itself. `seen` collects the names that occurred.
    """

    def __init__(
        self,
        budget: Budget,
        storage: Callable[[str, str, int], Storage] | None = None,
        nested: Callable[[memoryview], Storage] | None = None,
    ):
        self.budget, self.storage, self.nested = budget, storage, nested
        self.seen: set[str] = set()

    # what the reader asks

    def find(self, module: str, name: str) -> Name:
        """The name, if it is known; nothing is imported."""
        text = f"{module}.{name}"
        for old, new in ALIASES:
            text = new + text.removeprefix(old) if text.startswith(old) else text
        if "." in name or not is_known(text):
            raise PackError(refusal(text))
        self.seen.add(text)
        return Name(text)

    def call(self, function: Any, args: tuple[Any, ...]) -> Any:
        """Builds what the name stands for."""
        if not isinstance(function, Name):
            raise PackError(f"its pickle calls a {type(function).__name__}, which is refused")
        if function.text in BUILDERS:
            return BUILDERS[function.text](self, *args)
        if INERT.fullmatch(function.text) and not args:
            return Instance(function.text)
        raise PackError(f"its pickle calls {function.text!r}, which is refused (nothing was run)")

    def build(self, instance: Any, state: Any) -> Any:
        """Gives a state to an object of ours; attributes of dicts (torch keeps versions there) are dropped."""
        if isinstance(instance, NumpyType):
            return instance.with_order(state)
        if isinstance(instance, NumpyArray):
            instance.state = state
        elif isinstance(instance, Instance):
            instance.state = _merged(state)
        elif type(instance) is not dict or type(state) is not dict:
            raise PackError(f"its pickle gives a state to a {type(instance).__name__}, which is refused")
        return instance

    def persistent(self, pid: Any) -> Storage:
        """A storage by torch's tuple ("storage", type, key, location, count)."""
        if self.storage is None or type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
            raise PackError("its pickle refers to something outside that is no storage, which is refused")
        kind, key, count = pid[1], pid[2], pid[4]
        element = element_of(kind.text) if isinstance(kind, Name) else None
        if element is None or not isinstance(key, str) or not is_count(count):
            raise PackError("its pickle describes a storage without a known type, key and size")
        if len(pid) == 6 and pid[5] is not None:
            raise PackError("it holds storages that are views (torch before 0.4); load it in torch and save it again")
        return self.storage(key, element, count)

    # the finished tree

    def resolve(self, value: Any, depth: int = 0) -> Any:
        """Placeholders to arrays, `Opaque` and plain values; PackError where the tree is too deep or too large."""
        self.budget.node()
        if depth > MAX_DEPTH:
            raise PackError(f"its values are nested more than {MAX_DEPTH} deep; no checkpoint's are")
        if isinstance(value, dict):
            return {key: self.resolve(part, depth + 1) for key, part in value.items()}
        if isinstance(value, list):
            return [self.resolve(part, depth + 1) for part in value]
        if isinstance(value, tuple | set | frozenset):
            return tuple(self.resolve(part, depth + 1) for part in value)
        if isinstance(value, Instance):
            return Opaque(value.name, self.resolve(value.state, depth + 1))
        return self._leaf(value)

    def _leaf(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.array(self.budget)
        if isinstance(value, NumpyArray):
            return value.array()
        if isinstance(value, Storage):
            return Tensor(value, value.element, 0, (value.count,), (1,)).array(self.budget)
        if isinstance(value, Name):
            return Opaque(value.text)
        if isinstance(value, NumpyType):
            return Opaque(f"numpy.{value.code}")
        if isinstance(value, memoryview):
            self.budget.copy(len(value))
            return bytes(value)
        return value


def _merged(state: Any) -> Any:
    """The state of an object; the pair (attributes, slots) as one dict."""
    if isinstance(state, tuple) and len(state) == 2 and all(part is None or isinstance(part, dict) for part in state):
        return {**(state[0] or {}), **(state[1] or {})}
    return state
