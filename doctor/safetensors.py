"""What the header of a safetensors file says of its tensors; never their data.

Format: eight bytes, little-endian, of the header's length, the header as JSON, then the data
(github.com/huggingface/safetensors, README.md; safetensors/src/tensor.rs).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, Literal

from doctor.codec import CodecError, parse_json
from doctor.frozen import dataclass

_MOST = 32 << 20  # bytes; that of 170,000 tensors, in one of the files of a model
_MOST_LISTS = 1 << 19  # three for each tensor
_MOST_DIMENSIONS = 8
_LONGEST_NAME = 512
_MOST_NUMBERS = 16  # in a name; each takes a turn over all names to be put into ranges
_LARGEST = 1 << 48
_NUMBER = re.compile(r"(?<![^.])(\d{1,6})(?![^.])")
RANGE = re.compile(r"(?<![^.])(\d{1,6})-(\d{1,6})(?![^.])")
"""FIRST-LAST in the name of a TensorRow."""

_ODD_BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


Damage = Literal["length", "not-json", "tensors", "offsets", "cut"]
"""Why a header says nothing: it would be longer than the file, or than any is; its rows are not
those of tensors, or too many; the data overlap, have holes or are of another size than the shape
says; the file ends before its data."""


@dataclass(frozen=True)
class TensorRow:
    """Tensors of one dtype and shape. `name`: theirs, with FIRST-LAST in the place of a number that
    only tells them apart, as in `model.layers.0-46.mlp.experts.0-63.up_proj.weight`."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """`rows`: of all tensors, none where there is `damage`."""

    rows: tuple[TensorRow, ...] = ()
    damage: Damage | None = None


@dataclass(frozen=True)
class _Kind:
    dtype: str
    shape: tuple[int, ...]
    bits: int


class _Damaged(Exception):
    def __init__(self, damage: Damage) -> None:
        super().__init__(damage)
        self.damage = damage


def header_in(file: BinaryIO) -> Header:
    """Of an open safetensors file."""
    try:
        tensors = _read(file)
        return Header(tuple(_grouped(tensors)))
    except _Damaged as damaged:
        return Header(damage=damaged.damage)


def bits_of(dtype: str) -> int | None:
    """Of one element of such a dtype; None for one that does not say."""
    if (known := _ODD_BITS.get(dtype)) is not None:
        return known
    found = re.fullmatch(r"(?:BF|F|I|U|C)(8|16|32|64)(?:_\w{1,16})?", dtype)
    return int(found[1]) if found else None


def _read(file: BinaryIO) -> list[tuple[str, str, tuple[int, ...]]]:
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(_MOST, size - 8):
        raise _Damaged("length")
    try:
        said = parse_json(file.read(length), _MOST_LISTS)
    except CodecError:
        raise _Damaged("not-json") from None
    if not isinstance(said, dict):
        raise _Damaged("not-json")
    said.pop("__metadata__", None)
    kinds: dict[tuple[Any, Any], _Kind] = {}
    rows = [_row(name, row, kinds) for name, row in said.items()]
    end = 0
    for begin, after in sorted(row[3:] for row in rows):
        if begin != end or after < begin:
            raise _Damaged("offsets")
        end = after
    if end != size - 8 - length:
        raise _Damaged("cut" if end > size - 8 - length else "offsets")
    return [row[:3] for row in rows]


def _row(
    name: str, row: Any, kinds: dict[tuple[Any, Any], _Kind]
) -> tuple[str, str, tuple[int, ...], int, int]:
    """One tensor. `kinds`: what was seen to be right, since tensors are alike."""
    try:
        said = row["dtype"], tuple(row["shape"])
        begin, end = row["data_offsets"]
        kind = kinds.get(said)
    except (KeyError, TypeError, ValueError):
        raise _Damaged("tensors") from None
    if kind is None:
        kind = kinds[said] = _kind(*said)
    plain = type(begin) is int and type(end) is int and len(name) <= _LONGEST_NAME
    if not plain or "#" in name or ("-" in name and RANGE.search(name)):
        raise _Damaged("tensors")
    if kind.bits != 8 * (end - begin):
        raise _Damaged("offsets")
    return name, kind.dtype, kind.shape, begin, end


def _kind(dtype: Any, shape: tuple[Any, ...]) -> _Kind:
    plain = all(type(n) is int and 0 <= n < _LARGEST for n in shape)
    bits = bits_of(dtype) if isinstance(dtype, str) else None
    if not plain or bits is None or len(shape) > _MOST_DIMENSIONS:
        raise _Damaged("tensors")
    return _Kind(dtype, shape, math.prod(shape) * bits)


def _grouped(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> Iterator[TensorRow]:
    """Tensors that only numbers in their names tell apart are put together, as far as those
    numbers follow each other."""
    alike: dict[tuple[str, str, tuple[int, ...]], list[tuple[int, ...]]] = {}
    for name, dtype, shape in tensors:
        parts = _NUMBER.split(name)
        if len(parts) > 2 * _MOST_NUMBERS:
            raise _Damaged("tensors")
        numbers = tuple(map(int, parts[1::2]))
        alike.setdefault(("#".join(parts[::2]), dtype, shape), []).append(numbers)
    for (name, dtype, shape), found in alike.items():
        for box in _boxes(found):
            yield TensorRow(_named(name, box), dtype, shape)


_Box = tuple[tuple[int, int], ...]


def _boxes(found: list[tuple[int, ...]]) -> list[_Box]:
    """The numbers as ranges, the last ones first: what is alike in them is put together."""
    if not found[0]:
        return [()]
    within: dict[tuple[int, ...], list[int]] = {}
    for *outer, last in found:
        within.setdefault(tuple(outer), []).append(last)
    same: dict[tuple[tuple[int, int], ...], list[tuple[int, ...]]] = {}
    for outer_numbers, numbers in within.items():
        same.setdefault(tuple(_runs(sorted(numbers))), []).append(outer_numbers)
    return [(*box, run) for runs, outers in same.items() for box in _boxes(outers) for run in runs]


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    first = last = numbers[0]
    for number in numbers[1:]:
        if number > last + 1:
            yield first, last
            first = number
        last = number
    yield first, last


def _named(name: str, box: _Box) -> str:
    ranges = iter(box)
    return re.sub("#", lambda _: _ranged(*next(ranges)), name)


def _ranged(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
