"""Torch's containers: zip archives (torch 1.6 and later, TorchScript), the older stream, and plain pickles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...engines.errors import PackError
from .objects import Objects
from .opcodes import Reader
from .source import Budget
from .tensors import Storage, item_size
from .zips import Zip

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of torch's older format
PROTOCOL = 1001
DATA = "data.pkl"
Tree = tuple[str, Any]


def read_zip(archive: Zip, budget: Budget) -> Tree:
    """("torch" or "torchscript", tree) of an archive with a data.pkl.

    Whatever other pickles it has (TorchScript's constants and traced inputs) are read by the same rules, so that they
    are refused where they name code; their tensors are not looked for.
    """
    root = _root(archive)
    objects = Objects(budget, _storages(archive, root))
    value = Reader(archive.read(f"{root}{DATA}"), objects, budget).read()
    for name in archive.entries:
        if name.endswith(".pkl") and name != f"{root}{DATA}":
            Reader(archive.read(name), Objects(budget, unread), budget).read()
    script = any(name.startswith((f"{root}code/", f"{root}constants.pkl")) for name in archive.entries)
    return ("torchscript" if script else "torch"), objects.resolve(value)


def unread(key: str, element: str, count: int) -> Storage:
    """A storage that is not looked for."""
    return Storage(element, count)


def _storages(archive: Zip, root: str) -> Callable[[str, str, int], Storage]:
    """Finds the storages of data.pkl: files of data/ named by their keys, in the byte order that the archive states."""
    order = bytes(archive.read(f"{root}byteorder")[:16]) if f"{root}byteorder" in archive.entries else b"little"
    if order not in (b"little", b"big"):
        raise PackError("the archive states a byte order that is neither little nor big")
    storages: dict[str, Storage] = {}

    def storage(key: str, element: str, count: int) -> Storage:
        if key not in storages:
            made = Storage(element, count, swapped=order == b"big")
            made.fill(archive.read(f"{root}data/{key}"), f"storage {key[:40]!r}")
            storages[key] = made
        return _same(storages[key], element, count, key)

    return storage


def _root(archive: Zip) -> str:
    """The folder inside the archive that holds data.pkl, with its slash."""
    found = sorted((name for name in archive.entries if f"/{name}".endswith(f"/{DATA}")), key=len)
    if not found:
        raise PackError("the archive holds no data.pkl and no arrays; expected a checkpoint of torch or numpy's .npz")
    return found[0].removesuffix(DATA)


def _same(storage: Storage, element: str, count: int, key: str) -> Storage:
    if (storage.element, storage.count) != (element, count):
        raise PackError(f"storage {key[:40]!r} is described twice, differently; the file is damaged or hostile")
    return storage


def read_pickle(data: memoryview, budget: Budget) -> Tree:
    """(kind, tree) of a file that starts with a pickle: torch's older stream, NVIDIA's, or arrays of numpy."""
    kind, objects, value = read_stream(data, budget, nested=False)
    if kind == "pickle":
        if "torch_utils.persistence._reconstruct_persistent_obj" in objects.seen:
            kind = "nvidia"
        elif "dnnlib.tflib.network.Network" in objects.seen:
            kind = "tensorflow"
    return kind, objects.resolve(value)


def read_stream(data: memoryview, budget: Budget, nested: bool) -> tuple[str, Objects, Any]:
    """(kind, `Objects`, value) of a stream: torch's where its magic number comes first, else one pickle.

    nested: whether the stream lies inside a pickle itself; then nothing may be nested further.
    """
    storages: dict[str, Storage] = {}

    def storage(key: str, element: str, count: int) -> Storage:
        return _same(storages.setdefault(key, Storage(element, count)), element, count, key)

    def inner(part: memoryview) -> Storage:
        return read_nested(part, budget)

    objects = Objects(budget, storage, None if nested else inner)
    first = Reader(data, objects, budget)
    value = first.read()
    if not (type(value) is int and value == MAGIC):
        if storages:
            raise PackError("its pickle refers to storages, and the file holds none")
        return "pickle", objects, value
    header, position = [], first.position
    for _ in range(4):  # protocol, system, the value, the keys of the storages that follow
        reader = Reader(data, objects, budget, position)
        header.append(reader.read())
        position = reader.position
    protocol, _, value, keys = header
    if protocol != PROTOCOL:
        raise PackError(f"it is a torch file of protocol {str(protocol)[:20]}; expected {PROTOCOL}")
    _fill(data, position, storages, keys)
    return "torch", objects, value


def _fill(data: memoryview, position: int, storages: dict[str, Storage], keys: Any) -> None:
    """Gives each storage its bytes: behind the pickles, in the order of `keys`, each after its count (int64)."""
    if not isinstance(keys, list) or len(keys) != len(storages) or any(type(key) is not str for key in keys):
        raise PackError("its list of storages does not fit its tensors; the file is damaged")
    for key in keys:
        if key not in storages or storages[key].data is not None:
            raise PackError(f"storage {key[:40]!r} is listed twice or not known; the file is damaged")
        part = storages[key]
        count = int.from_bytes(data[position : position + 8], "little", signed=True)
        if len(data) < position + 8 or count != part.count:
            raise PackError(f"storage {key[:40]!r} has {count} values, its tensors say {part.count}; the file is cut")
        part.fill(data[position + 8 :], f"storage {key[:40]!r}")
        position += 8 + part.count * item_size(part.element)


def read_nested(data: memoryview, budget: Budget) -> Storage:
    """A storage that was saved by itself into a byte string, as plain pickles hold tensors."""
    kind, _, value = read_stream(data, budget, nested=True)
    if kind != "torch" or not isinstance(value, Storage):
        raise PackError("its pickle nests a file that is not a storage of torch, which is refused")
    return value
