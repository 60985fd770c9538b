"""The names that a checkpoint's pickle may use, and what each builds, which is never the thing that it is named after.

Torch's tensors and numpy's arrays become arrays; objects of a few known kinds become `Opaque`; every other name is
refused, whether it is called or not. The source text in NVIDIA's pickles is dropped unread.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...engines.errors import PackError
from .tensors import (
    DTYPES,
    ELEMENTS,
    NumpyArray,
    NumpyType,
    Storage,
    Tensor,
    item_size,
    make_tensor,
    numpy_type,
)

if TYPE_CHECKING:
    from .objects import Objects

# Classes whose objects become Opaque: the name and the state, of which nothing is run.
INERT = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|dnnlib\.tflib\.network\.Network|"
    r"torch\.nn\.modules\.\w+\.\w+|__torch__(\.\w+)+"
)
STORAGE = re.compile(r"torch\.(?:cuda\.|storage\.)?(\w+?)Storage")
ELEMENT = re.compile(r"torch\.(\w+)")
ALIASES = (("numpy._core.", "numpy.core."), ("__builtin__.", "builtins."), ("copy_reg.", "copyreg."))
UNSUPPORTED = re.compile(
    r"torch\._utils\._rebuild_(\w+)|torch\.(?:cuda\.)?(\w+Storage|float[48]_\w+|complex\w+|q\w?int\w+|bits\w+)"
)


@dataclass(frozen=True)
class Name:
    """A global that a pickle names; it is never looked up."""

    text: str


@dataclass
class Instance:
    """An object of an inert class, until it is resolved to `Opaque`."""

    name: str
    state: Any = None


def is_known(text: str) -> bool:
    """Whether a name stands for something here."""
    return text in BUILDERS or text in REFERENCES or bool(INERT.fullmatch(text)) or element_of(text) is not None


def refusal(text: str) -> str:
    """Why a name is refused: tensors of kinds that are not read, and all that is no part of a checkpoint."""
    kind = UNSUPPORTED.fullmatch(text)
    if kind:
        shown = next(part for part in kind.groups() if part)
        return (
            f"it holds tensors of a kind that is not read ({shown}); save it again with dense tensors of floats, not "
            "sparse, quantised, complex or without data"
        )
    return (
        f"its pickle names {text[:200]!r}, which no checkpoint needs; such a file can run code when it is loaded, so "
        "it is refused (nothing was run)"
    )


def element_of(text: str) -> str | None:
    """ "float32" for "torch.FloatStorage" and for "torch.float32"; None for other names."""
    storage = STORAGE.fullmatch(text)
    if storage:
        return ELEMENTS.get(storage[1])
    plain = ELEMENT.fullmatch(text)
    return plain[1] if plain and plain[1] in DTYPES and plain[1] != "untyped" else None


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
