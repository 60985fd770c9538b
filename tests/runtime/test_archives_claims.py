"""Files that claim more than they hold, or unfold to more than any checkpoint: one clear error, and soon."""

from __future__ import annotations

import io
import json
import pickle
import struct
import time
import zipfile
import zlib

import numpy as np
import pytest

from styleclip_rt.runtime.archives import Limits, read_source

from .pickles import GOOD, MAGIC, PLACES, PROTOCOL, SYSTEM, refused, text, zipped


def tensor_pickle(count: int, size: bytes, stride: bytes, offset: int = 0, kind: bytes = b"FloatStorage") -> bytes:
    """torch's pickle of one tensor on storage "0" of `count` elements."""
    number = b"\x8a\x08" + struct.pack("<q", count)
    pid = b"(" + text("storage") + b"ctorch\n" + kind + b"\n" + text("0") + text("cpu") + number + b"tQ"
    place = b"\x8a\x08" + struct.pack("<q", offset)
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + pid + place + size + stride + b"\x89}tR."


def integers(*values: int) -> bytes:
    return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values) + b"t"


@pytest.mark.parametrize(
    ("name", "pickled"),
    [
        ("400 MB that are not there", tensor_pickle(100_000_000, integers(100_000_000), integers(1))),
        ("a shape beyond the storage", tensor_pickle(4, integers(100_000_000), integers(1))),
        ("strides of zero", tensor_pickle(4, integers(1 << 40), integers(0))),
        ("an offset beyond the storage", tensor_pickle(4, integers(1), integers(1), offset=4)),
        ("a negative offset", tensor_pickle(4, integers(1), integers(1), offset=-1)),
        ("negative strides", tensor_pickle(4, integers(4), integers(-1))),
        ("negative sizes", tensor_pickle(4, integers(-4), integers(1))),
        ("a stride beyond", tensor_pickle(4, integers(2), integers(4))),
        ("sizes that overflow", tensor_pickle(4, integers(1 << 62, 1 << 62), integers(1, 1))),
        ("more strides than sizes", tensor_pickle(4, integers(4), integers(1, 1))),
        ("a hundred dimensions", tensor_pickle(4, integers(*[1] * 100), integers(*[1] * 100))),
        ("a negative count", tensor_pickle(-4, integers(4), integers(1))),
        ("sizes that are no numbers", tensor_pickle(4, b"(" + text("4") + b"t", integers(1))),
    ],
)
@pytest.mark.parametrize("container", ["zip", "stream"])
def test_tensors_must_lie_within_their_storage(tmp_path, name, pickled, container):
    data = np.zeros(4, "<f4").tobytes()
    if container == "zip":
        content = zipped(data_pkl=pickled, data__0=data)
    else:
        storages = pickle.dumps(["0"], 2) + struct.pack("<q", 4) + data
        content = MAGIC + PROTOCOL + SYSTEM + pickled + storages
    start = time.process_time()
    refused(tmp_path / "x.pt", content)
    assert time.process_time() - start < 5


def test_the_same_tensor_in_bounds_is_read(tmp_path):
    """The pickles above are right but for what they claim."""
    (tmp_path / "x.pt").write_bytes(
        zipped(data_pkl=tensor_pickle(4, integers(2, 2), integers(2, 1)), data__0=bytes(16))
    )
    assert read_source(tmp_path / "x.pt").tree.shape == (2, 2)


def doubling(levels: int) -> bytes:
    """A list that holds the one before twice, and so on: 2 ** levels values in a few bytes."""
    return b"\x80\x04]\x94" + b"".join(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"e\x94" for i in range(levels)) + b"."


BOMBS = {
    "doubling lists": doubling(50),
    "deep lists": b"\x80\x04" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "deep tuples": b"\x80\x04)" + b"\x85" * 200_000 + b".",
    "a list that holds itself": b"\x80\x04]\x94h\x00a.",
    "a dict that holds itself": b"\x80\x04}\x94K\x01h\x00s.",
    "a huge memo index": b"\x80\x04]r\xff\xff\xff\xffj\x00\x00\x00\x00.",
    "bytes that are not there": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"x.",
    "a bytearray that is not there": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.",
    "a string that is not there": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"x.",
    "a frame that is not there": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.",
    "an integer of a megabyte": b"\x80\x04\x8b" + struct.pack("<I", 1 << 20) + b"\x7f" * (1 << 20) + b".",
    "an integer of a million digits": b"L" + b"9" * 1_000_000 + b"L\n.",
    "a line without an end": b"V" + b"x" * (3 << 20),
    "protocol 9": b"\x80\x09N.",
    "no stop": b"\x80\x04N",
    "an empty stack": b"\x80\x04.",
    "a mark that is not there": b"\x80\x04t.",
    "unhashable keys": b"\x80\x04}]K\x01s.",
    "a dict without a value": b"\x80\x04}(K\x01u.",
    "items for a number": b"\x80\x04K\x01(K\x02e.",
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("place", ["plain pickle", "zip: data.pkl", "stream: value", "nested: value"])
def test_bombs_end_soon(tmp_path, bomb, place):
    start = time.process_time()
    refused(tmp_path / "x.pt", PLACES[place](BOMBS[bomb]))
    assert time.process_time() - start < 30


def test_more_operations_than_any_checkpoint(tmp_path):
    assert "operations" in refused(tmp_path / "x", b"\x80\x04" + b"N0" * 5000 + b"N.", Limits(operations=1000))


# Zip archives


def bomb_npz(size: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(size))
    return out.getvalue()


def test_a_compressed_bomb_is_refused_before_it_unfolds(tmp_path):
    content = bomb_npz(70 << 20)
    assert len(content) < 1 << 20
    assert "memory" in refused(tmp_path / "x.npz", content)


def test_a_deflated_part_must_have_the_size_it_states(tmp_path):
    """The directory may lie about the size: no more is inflated than it states."""
    content = bytearray(bomb_npz(1 << 20))
    central = content.index(b"PK\x01\x02")
    struct.pack_into("<I", content, central + 24, 1000)
    assert "damaged" in refused(tmp_path / "x.npz", bytes(content))


def test_overlapping_parts_are_refused(tmp_path):
    content = bytearray(zipped(data_pkl=GOOD, data__0=bytes(64), data__1=bytes(64)))
    first = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)
    second = content.index(b"PK\x01\x02", first + 1)
    content[second + 42 : second + 46] = content[first + 42 : first + 46]
    assert "overlaps" in refused(tmp_path / "x.pt", bytes(content))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c, at, end: c.__setitem__(slice(at + 8, at + 10), b"\x01\x00"), "encrypted"),
        (lambda c, at, end: c.__setitem__(slice(at + 10, at + 12), b"\x63\x00"), "unknown way"),
        (lambda c, at, end: c.__setitem__(slice(end + 10, end + 12), b"\xff\xff"), "zip directory"),
        (lambda c, at, end: c.__setitem__(slice(end + 16, end + 20), b"\xff\xff\xff\x7f"), "zip directory"),
        (lambda c, at, end: c.__setitem__(slice(at + 20, at + 28), b"\xff\xff\xff\x7f" * 2), "beyond the end"),
        (lambda c, at, end: c.__setitem__(slice(at + 42, at + 46), b"\xff\xff\xff\x7f"), "not where the directory"),
        (lambda c, at, end: c.__setitem__(slice(end, end + 4), b"XXXX"), "directory is missing"),
    ],
    ids=["encrypted", "method", "count", "directory offset", "sizes", "header offset", "no end"],
)
def test_broken_directories(tmp_path, change, reason):
    content = bytearray(zipped(data_pkl=GOOD))
    change(content, content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06"))
    assert reason in refused(tmp_path / "x.pt", bytes(content))


def test_two_parts_of_one_name_are_refused(tmp_path):
    content = zipped(data_pkl=GOOD, date_pkl=GOOD).replace(b"archive/date.pkl", b"archive/data.pkl")
    assert "two parts" in refused(tmp_path / "x.pt", content)


# Bare arrays


def safetensors_of(header: object, body: bytes = b"") -> bytes:
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(data)) + data + body


def row(shape: object, first: object, last: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 1 << 39) + b"{" * 30,
        struct.pack("<Q", 20) + b"{" * 20,
        safetensors_of(b"{" * 5000),
        safetensors_of(b'{"a":' * 5000),
        safetensors_of(b'{"a": ' + b"9" * 10_000 + b"}"),
        safetensors_of({"a": 1}),
        safetensors_of({"a": row([1], 0, 8)}, bytes(4)),
        safetensors_of({"a": row([2], 0, 4)}, bytes(4)),
        safetensors_of({"a": row([1], 0, 8)}, bytes(8)),
        safetensors_of({"a": row([-1], 0, 4)}, bytes(4)),
        safetensors_of({"a": row([1], -4, 0)}, bytes(4)),
        safetensors_of({"a": row([1], 0, 4), "b": row([1], 0, 4)}, bytes(4)),
        safetensors_of({"a": row([1], 0, 4), "b": row([1], 8, 12)}, bytes(12)),
        safetensors_of({"a": row([1 << 62, 1 << 62], 0, 4)}, bytes(4)),
        safetensors_of({"a": row([1], 0, 4, "F8_E4M3")}, bytes(4)),
        safetensors_of({"a": row("x", 0, 4)}, bytes(4)),
        safetensors_of({"a": row([1], True, 4)}, bytes(4)),
    ],
    ids=[
        "header beyond",
        "no json",
        "open braces",
        "deep json",
        "long number",
        "no row",
        "cut",
        "short",
        "long",
        "negative",
        "before",
        "overlap",
        "gap",
        "overflow",
        "type",
        "shape",
        "offsets",
    ],
)
def test_hostile_safetensors(tmp_path, content):
    refused(tmp_path / "x.safetensors", content)


def npy(header: str, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + body


@pytest.mark.parametrize(
    "content",
    [
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (100000000,), }", bytes(16)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }", bytes(15)),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", bytes(16)),
        npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", bytes(4)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", bytes(4)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (999999999999999999, 999999999999999999), }", bytes(4)),
        npy("__import__('os').system('true')", bytes(4)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1, " * 40 + "), }", bytes(4)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1" * 3000 + "x), }", bytes(4)),
        b"\x93NUMPY\x01\x00\xff\xff{",
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
        b"\x93NUMPY\x09\x00\x10\x00" + b"{" * 30,
        b"\x93NUMPY",
    ],
    ids=[
        "claim",
        "cut",
        "objects",
        "fields",
        "negative",
        "overflow",
        "code",
        "dimensions",
        "digits",
        "header",
        "header 2",
        "version",
        "magic",
    ],
)
def test_hostile_npy(tmp_path, content):
    start = time.process_time()
    refused(tmp_path / "x.npy", content)
    assert time.process_time() - start < 5


def test_checksum_of_deflated_parts(tmp_path):
    out = io.BytesIO()
    np.savez_compressed(out, a=np.arange(100.0))
    content = bytearray(out.getvalue())
    crc = struct.pack("<I", zlib.crc32(zipfile.ZipFile(io.BytesIO(content)).read("a.npy")))
    at = content.rindex(crc)
    content[at] ^= 1
    assert "checksum" in refused(tmp_path / "x.npz", bytes(content))
