"""What names and calls in a pickle mean here: a table of builders, none of which is the thing that it is named after.

Torch's tensors and numpy's arrays become arrays; objects of a few known kinds become `Opaque`; every other name is
refused, whether it is called or not. The source text in NVIDIA's pickles is dropped unread.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...engines.errors import PackError
from .source import MAX_DEPTH, Budget, Opaque
from .tensors import (
    DTYPES,
    ELEMENTS,
    NumpyArray,
    NumpyType,
    Storage,
    Tensor,
    is_count,
    item_size,
    make_tensor,
    numpy_type,
)

# Classes whose objects become Opaque: the name and the state, of which nothing is run.
INERT = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|dnnlib\.tflib\.network\.Network|"
    r"torch\.nn\.modules\.\w+\.\w+|__torch__(\.\w+)+"
)
STORAGE = re.compile(r"torch\.(?:cuda\.|storage\.)?(\w+?)Storage")
ELEMENT = re.compile(r"torch\.(\w+)")
ALIASES = (("numpy._core.", "numpy.core."), ("__builtin__.", "builtins."), ("copy_reg.", "copyreg."))
UNSUPPORTED = re.compile(r"torch\._utils\._rebuild_(\w+)")


@dataclass(frozen=True)
class Name:
    """A global that a pickle names; it is never looked up."""

    text: str


@dataclass
class Instance:
    """An object of an inert class, until it is resolved to `Opaque`."""

    name: str
    state: Any = None


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
        if "." in name or not self._known(text):
            unsupported = UNSUPPORTED.fullmatch(text)
            if unsupported:
                raise PackError(
                    f"it holds a tensor of a kind that is not read ({unsupported[1]}: sparse, quantised or without "
                    "data); save it again with dense tensors of floats"
                )
            raise PackError(
                f"its pickle names {text[:200]!r}, which no checkpoint needs; such a file can run code when it is "
                "loaded, so it is refused (nothing was run)"
            )
        self.seen.add(text)
        return Name(text)

    def _known(self, text: str) -> bool:
        return text in BUILDERS or text in REFERENCES or bool(INERT.fullmatch(text)) or element_of(text) is not None

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


def element_of(text: str) -> str | None:
    """ "float32" for "torch.FloatStorage" and for "torch.float32"; None for other names."""
    storage = STORAGE.fullmatch(text)
    if storage:
        return ELEMENTS.get(storage[1])
    plain = ELEMENT.fullmatch(text)
    return plain[1] if plain and plain[1] in DTYPES and plain[1] != "untyped" else None


def _merged(state: Any) -> Any:
    """The state of an object; the pair (attributes, slots) as one dict."""
    if isinstance(state, tuple) and len(state) == 2 and all(part is None or isinstance(part, dict) for part in state):
        return {**(state[0] or {}), **(state[1] or {})}
    return state


# Builders: each takes the `Objects` and the arguments that the pickle gives. A wrong number of them is a TypeError,
# which the reader reports as a malformed pickle.


def _ordered(_: Objects, pairs: Any = ()) -> dict[Any, Any]:
    if not isinstance(pairs, list | tuple):
        raise PackError("its pickle makes an OrderedDict of something that is not a list")
    if not all(isinstance(p, list | tuple) and len(p) == 2 and isinstance(p[0], str | int) for p in pairs):
        raise PackError("its pickle makes an OrderedDict of something that is not pairs")
    return {key: value for key, value in pairs}  # noqa: C416 - pairs may be lists


def _set(_: Objects, items: Any = ()) -> tuple[Any, ...]:
    if not isinstance(items, list | tuple):
        raise PackError("its pickle makes a set of something that is not a list")
    return tuple(items)


def _encode(objects: Objects, text: Any, coding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or coding not in ("latin1", "latin-1"):
        raise PackError("its pickle encodes something that is not a string in Latin 1")
    objects.budget.copy(len(text))
    return text.encode("latin-1")


def _bytes(objects: Objects, value: Any = b"", coding: Any = "latin-1") -> bytes | memoryview:
    return value if isinstance(value, bytes | memoryview) else _encode(objects, value, coding)


def _reconstructor(objects: Objects, kind: Any, base: Any, state: Any) -> Any:
    if state is not None or base not in (Name("builtins.object"), Name("builtins.dict")):
        raise PackError("its pickle reconstructs an object on an unknown base, which is refused")
    return objects.call(kind, ())


def _tensor(_: Objects, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    """`torch._utils._rebuild_tensor` and `_v2`, which adds requires_grad, hooks and sometimes flags."""
    if len(rest) > 3 or (len(rest) == 3 and rest[2]):
        raise PackError("a tensor is marked as conjugated or negated; save it again after resolve_conj and resolve_neg")
    return make_tensor(storage, None, offset, size, stride)


def _typed_tensor(_: Objects, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    """`torch._utils._rebuild_tensor_v3`: as `_v2`, with the element type."""
    element = element_of(rest[2].text) if len(rest) > 2 and isinstance(rest[2], Name) else None
    if element is None or not isinstance(storage, Storage):
        raise PackError("a tensor has an element type that is not read")
    whole = Storage("untyped", storage.count * item_size(storage.element), storage.data, storage.swapped)
    return make_tensor(storage if storage.data is None else whole, element, offset, size, stride)


def _parameter(_: Objects, data: Any, *rest: Any) -> Tensor:
    if not isinstance(data, Tensor) or len(rest) > 3:
        raise PackError("a parameter is built on something that is not a tensor")
    return data


def _from_type(objects: Objects, function: Any, kind: Any, args: Any, state: Any) -> Tensor:
    """`torch._tensor._rebuild_from_type_v2`: a tensor with attributes; those are dropped."""
    if not isinstance(function, Name) or BUILDERS.get(function.text) not in (_tensor, _typed_tensor, _parameter):
        raise PackError("its pickle rebuilds a tensor in an unknown way, which is refused")
    return objects.call(function, args if isinstance(args, tuple) else ())


def _nested_storage(objects: Objects, data: Any) -> Storage:
    """`torch.storage._load_from_bytes`: a storage saved by itself, inside a plain pickle."""
    if objects.nested is None or not isinstance(data, bytes | memoryview):
        raise PackError("its pickle nests a file in a place where none belongs, which is refused")
    return objects.nested(memoryview(data))


def _persistent_object(_: Objects, meta: Any) -> Instance:
    """NVIDIA's torch_utils.persistence: {type, version, module_src, class_name, state}; the source is not kept."""
    if not isinstance(meta, dict) or meta.get("type") != "class" or not isinstance(meta.get("class_name"), str):
        raise PackError("a persistent object has no class name; expected the form of NVIDIA's torch_utils.persistence")
    return Instance(meta["class_name"], meta.get("state"))


def _array(_: Objects, kind: Any, shape: Any, code: Any) -> NumpyArray:
    if kind != Name("numpy.ndarray"):
        raise PackError("its pickle builds a kind of array that is not numpy.ndarray")
    return NumpyArray()


def _dtype(_: Objects, code: Any, *rest: Any) -> NumpyType:
    return numpy_type(code)


def _scalar(_: Objects, kind: Any, data: Any = b"") -> Any:
    array = NumpyArray((1, (), kind, False, data)).array()
    return array.item()


def _frombuffer(_: Objects, data: Any, kind: Any, shape: Any, order: Any) -> NumpyArray:
    """`numpy.core.numeric._frombuffer`, which protocol 5 writes."""
    return NumpyArray((1, shape, kind, order == "F", data))


def _values(_: Objects, *args: Any) -> tuple[Any, ...]:
    """torch.Size."""
    return tuple(args[0]) if len(args) == 1 and isinstance(args[0], list | tuple) else tuple(args)


def _text(_: Objects, *args: Any) -> str:
    """torch.device and torch's layouts: the arguments as text."""
    return ":".join(str(arg) for arg in args if isinstance(arg, str | int))


def _first(_: Objects, value: Any, *rest: Any) -> Any:
    """TorchScript's typed lists: the plain value."""
    return value


BUILDERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "dnnlib.util.EasyDict": _ordered,
    "dnnlib.EasyDict": _ordered,
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "_codecs.encode": _encode,
    "copyreg._reconstructor": _reconstructor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.storage._load_from_bytes": _nested_storage,
    "torch.Size": _values,
    "torch.device": _text,
    "torch.serialization._get_layout": _text,
    "torch.jit._pickle.build_intlist": _first,
    "torch.jit._pickle.build_doublelist": _first,
    "torch.jit._pickle.build_boollist": _first,
    "torch.jit._pickle.build_tensorlist": _first,
    "torch.jit._pickle.restore_type_tag": _first,
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent_object,
    "numpy.core.multiarray._reconstruct": _array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _frombuffer,
    "numpy.dtype": _dtype,
}
# Names that stand as values and are never called.
REFERENCES = {
    "builtins.object", "builtins.dict", "numpy.ndarray", "torch.Tensor", "torch.nn.parameter.Parameter",
    "torch.strided", "torch.contiguous_format", "torch.channels_last",
}  # fmt: skip
for _kind in ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool_"):
    REFERENCES.add(f"numpy.{_kind}")
