"""Seeded damage to files: flipped bits, cuts, swapped pieces and shapes, huge numbers where lengths stand."""

from __future__ import annotations

import struct

import numpy as np

HUGE = (b"\xff" * 4, b"\xff" * 8, b"\xff\xff\xff\x7f", struct.pack("<Q", 1 << 40), struct.pack("<q", -1), b"\x00" * 8)


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    """One to three kinds of damage. Half of it falls on the first and last 2 KiB, where headers and directories are."""
    data = bytearray(content)
    for _ in range(random.integers(1, 4)):
        if not data:
            break
        DAMAGE[random.integers(len(DAMAGE))](data, random)
    return bytes(data)


def _place(data: bytearray, random: np.random.Generator) -> int:
    edge = min(2048, len(data))
    place = random.integers(4)
    if place == 0:
        return int(random.integers(edge))
    if place == 1:
        return int(len(data) - 1 - random.integers(edge))
    return int(random.integers(len(data)))


def _flip(data: bytearray, random: np.random.Generator) -> None:
    for _ in range(random.integers(1, 9)):
        data[_place(data, random)] ^= 1 << int(random.integers(8))


def _cut(data: bytearray, random: np.random.Generator) -> None:
    del data[_place(data, random) :]


def _remove(data: bytearray, random: np.random.Generator) -> None:
    at = _place(data, random)
    del data[at : at + int(random.integers(1, 64))]


def _repeat(data: bytearray, random: np.random.Generator) -> None:
    at = _place(data, random)
    data[at:at] = data[at : at + int(random.integers(1, 64))]


def _swap(data: bytearray, random: np.random.Generator) -> None:
    first, second, size = _place(data, random), _place(data, random), int(random.integers(1, 32))
    a, b = bytes(data[first : first + size]), bytes(data[second : second + size])
    data[first : first + len(b)], data[second : second + len(a)] = b, a


def _huge(data: bytearray, random: np.random.Generator) -> None:
    at, value = _place(data, random), HUGE[random.integers(len(HUGE))]
    data[at : at + len(value)] = value


def _shape(data: bytearray, random: np.random.Generator) -> None:
    """Another small number in place of a pickled one (BININT1), which is what most sizes and strides are."""
    places = [i for i, byte in enumerate(data[:20000]) if byte == ord("K")]
    if places:
        at = places[random.integers(len(places))] + 1
        if at < len(data):
            data[at] = int(random.integers(256))


DAMAGE = (_flip, _cut, _remove, _repeat, _swap, _huge, _shape)
