"""Pickles written opcode by opcode, and the containers that they can lie in."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path

import pytest

from styleclip_rt.engines.errors import PackError
from styleclip_rt.runtime.archives import Limits, read_source

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
PROTOCOL = pickle.dumps(1001, 2)
SYSTEM = pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, 2)
GOOD = pickle.dumps({"a": 1}, 2)


def text(value: str) -> bytes:
    """A string in protocol 4."""
    data = value.encode()
    return b"\x8c" + bytes([len(data)]) + data if len(data) < 256 else b"X" + struct.pack("<I", len(data)) + data


def called(module: str, name: str, *args: bytes) -> bytes:
    """GLOBAL and REDUCE."""
    return b"\x80\x04c" + f"{module}\n{name}\n".encode() + b"(" + b"".join(args) + b"tR."


def stack_called(module: str, name: str, *args: bytes) -> bytes:
    """STACK_GLOBAL, whose names may have dots, and REDUCE."""
    return b"\x80\x04" + text(module) + text(name) + b"\x93(" + b"".join(args) + b"tR."


def short_bytes(data: bytes) -> bytes:
    """A byte string below 256."""
    return b"C" + bytes([len(data)]) + data


def code(marker: Path) -> bytes:
    """Python source that leaves the marker, as a string on the stack."""
    return text(f"open({str(marker)!r}, 'w').close()")


def touch(marker: Path) -> bytes:
    """A shell command that leaves the marker, as a string on the stack."""
    return text(f"touch {marker}")


def zipped(**parts: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in parts.items():
            archive.writestr(f"archive/{name.replace('__', '/').replace('_pkl', '.pkl')}", data)
    return out.getvalue()


def npy_of_objects(attack: bytes) -> bytes:
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + attack


def npz_of_objects(attack: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.npy", npy_of_objects(attack))
    return out.getvalue()


def nested(stream: bytes) -> bytes:
    """A plain pickle that holds a stream as NVIDIA's hold their storages."""
    return b"\x80\x04ctorch.storage\n_load_from_bytes\nB" + struct.pack("<I", len(stream)) + stream + b"\x85R."


KEYS = pickle.dumps([], 2)
PLACES = {
    "plain pickle": lambda a: a,
    "zip: data.pkl": lambda a: zipped(data_pkl=a),
    "zip: constants.pkl": lambda a: zipped(data_pkl=GOOD, constants_pkl=a),
    "zip: another folder": lambda a: zipped(data_pkl=GOOD, extra__data_pkl=a),
    "stream: magic number": lambda a: a + MAGIC + PROTOCOL + SYSTEM + GOOD + KEYS,
    "stream: protocol": lambda a: MAGIC + a + SYSTEM + GOOD + KEYS,
    "stream: system": lambda a: MAGIC + PROTOCOL + a + GOOD + KEYS,
    "stream: value": lambda a: MAGIC + PROTOCOL + SYSTEM + a + KEYS,
    "stream: keys": lambda a: MAGIC + PROTOCOL + SYSTEM + GOOD + a,
    "nested: first": lambda a: nested(a),
    "nested: protocol": lambda a: nested(MAGIC + a + SYSTEM + GOOD + KEYS),
    "nested: system": lambda a: nested(MAGIC + PROTOCOL + a + GOOD + KEYS),
    "nested: value": lambda a: nested(MAGIC + PROTOCOL + SYSTEM + a + KEYS),
    "nested: keys": lambda a: nested(MAGIC + PROTOCOL + SYSTEM + GOOD + a),
    "npy of objects": npy_of_objects,
    "npz of objects": npz_of_objects,
}


def refused(path: Path, content: bytes, limits: Limits | None = None) -> str:
    path.write_bytes(content)
    with pytest.raises(PackError) as raised:
        read_source(path, limits)
    assert str(path) in str(raised.value)
    return str(raised.value)
