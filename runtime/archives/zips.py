"""Zip archives as torch and numpy write them: stored parts are views, deflated ones are bounded."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from ...engines.errors import PackError
from .source import Budget

END, END64, LOCATOR64, CENTRAL, LOCAL = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x01\x02", b"PK\x03\x04"
STORED, DEFLATED, ENCRYPTED = 0, 8, 1


@dataclass(frozen=True)
class Entry:
    """One file of the archive: where its local header stands, and what the directory says of it."""

    name: str
    method: int
    flags: int
    crc: int
    packed: int
    size: int
    header: int


class Zip:
    """The entries of an archive in `data`. Raises PackError for a directory that is damaged, or files that overlap."""

    def __init__(self, data: memoryview, budget: Budget):
        self.data, self.budget = data, budget
        self.entries: dict[str, Entry] = {}
        try:
            self._read_directory()
            self._starts = {entry.name: self._start(entry) for entry in self.entries.values()}
        except (struct.error, IndexError, UnicodeDecodeError):
            raise PackError("its zip directory is damaged or cut; fetch the file again") from None
        self._check_overlap()

    def read(self, name: str) -> memoryview:
        """The bytes of a file: a view where it is stored, inflated within the budget where it is deflated."""
        if name not in self.entries:
            raise PackError(f"the archive has no part {name[-80:]!r}; it is incomplete")
        entry, start = self.entries[name], self._starts[name]
        packed = self.data[start : start + entry.packed]
        if entry.flags & ENCRYPTED:
            raise PackError("the archive is encrypted; expected a plain checkpoint")
        if entry.method == STORED and entry.packed == entry.size:
            return packed
        if entry.method != DEFLATED:
            raise PackError(f"the part {name[-80:]!r} is compressed in an unknown way ({entry.method})")
        return memoryview(self._inflate(entry, packed))

    def _inflate(self, entry: Entry, packed: memoryview) -> bytes:
        self.budget.copy(entry.size)
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            result = inflater.decompress(packed, entry.size + 1)
        except zlib.error as error:
            raise PackError(
                f"the part {entry.name[-80:]!r} cannot be inflated ({error}); fetch the file again"
            ) from None
        if len(result) != entry.size or zlib.crc32(result) != entry.crc:
            raise PackError(f"the part {entry.name[-80:]!r} is damaged: its size or checksum differs; fetch it again")
        return result

    def _read_directory(self) -> None:
        count, size, offset = self._end()
        if count > self.budget.limits.entries or offset + size > len(self.data):
            raise PackError(
                "its zip directory is larger than the file or than any checkpoint's; it is damaged or hostile"
            )
        for _ in range(count):
            if bytes(self.data[offset : offset + 4]) != CENTRAL:
                raise PackError("its zip directory is damaged or cut; fetch the file again")
            entry, offset = self._entry(offset)
            if entry.name in self.entries:
                raise PackError(f"two parts of the archive are called {entry.name[-80:]!r}")
            self.entries[entry.name] = entry

    def _end(self) -> tuple[int, int, int]:
        """Number of entries, size and offset of the directory; from the 64-bit records where there are some."""
        tail = max(0, len(self.data) - 65557)
        at = bytes(self.data[tail:]).rfind(END)
        if at < 0:
            raise PackError("its zip directory is missing: the file is cut; fetch it again")
        at += tail
        count, size, offset = struct.unpack_from("<HII", self.data, at + 10)
        if at >= 20 and bytes(self.data[at - 20 : at - 16]) == LOCATOR64:
            (where,) = struct.unpack_from("<Q", self.data, at - 12)
            if where > len(self.data) - 56 or bytes(self.data[where : where + 4]) != END64:
                raise PackError("its zip directory is damaged or cut; fetch the file again")
            count, size, offset = struct.unpack_from("<QQQ", self.data, where + 32)
        return count, size, offset

    def _entry(self, at: int) -> tuple[Entry, int]:
        """The entry at `at` of the directory, and where the next begins."""
        flags, method, _, _, crc, packed, size, name, extra, comment = struct.unpack_from(
            "<HHHHIIIHHH", self.data, at + 8
        )
        (header,) = struct.unpack_from("<I", self.data, at + 42)
        begin = at + 46
        text = bytes(self.data[begin : begin + name]).decode("utf-8")
        sizes = self._long_sizes(self.data[begin + name : begin + name + extra], (size, packed, header))
        return Entry(text, method, flags, crc, sizes[1], sizes[0], sizes[2]), begin + name + extra + comment

    def _long_sizes(self, extra: memoryview, sizes: tuple[int, int, int]) -> list[int]:
        """Sizes that do not fit 32 bits stand in extra field 1, in the order uncompressed, compressed, offset."""
        at, result = 0, list(sizes)
        while at + 4 <= len(extra):
            kind, length = struct.unpack_from("<HH", extra, at)
            if kind == 1:
                wide = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
                result = [next(wide, value) if value == 0xFFFFFFFF else value for value in result]
            at += 4 + length
        return result

    def _start(self, entry: Entry) -> int:
        """Where an entry's bytes begin: behind its local header, whose lengths may differ from the directory's."""
        if entry.header > len(self.data) - 30 or bytes(self.data[entry.header : entry.header + 4]) != LOCAL:
            raise PackError(
                f"the part {entry.name[-80:]!r} is not where the directory says; the file is damaged or cut"
            )
        name, extra = struct.unpack_from("<HH", self.data, entry.header + 26)
        start = entry.header + 30 + name + extra
        if start + entry.packed > len(self.data):
            raise PackError(f"the part {entry.name[-80:]!r} reaches beyond the end of the file; it is cut")
        return start

    def _check_overlap(self) -> None:
        end = 0
        for entry in sorted(self.entries.values(), key=lambda e: e.header):
            if entry.header < end:
                raise PackError(f"the part {entry.name[-80:]!r} overlaps another; the archive is damaged or hostile")
            end = self._starts[entry.name] + entry.packed
