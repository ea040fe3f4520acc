"""The few words of an ELF file that say what it loads: NEEDED, SONAME, RPATH, RUNPATH."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import BinaryIO

from doctor.frozen import dataclass
from doctor.numbers import number_of

_NEEDED, _STRTAB, _SONAME, _RPATH, _RUNPATH = 1, 5, 14, 15, 29
_PT_LOAD, _PT_DYNAMIC = 1, 2
_MOST = 1 << 20  # bytes of a program header table or dynamic section; a real one is far smaller
_NAME_MOST = 4096


@dataclass(frozen=True)
class Elf:
    """What the loader reads of a shared library. `bits` is 32 or 64."""

    bits: int
    needed: tuple[str, ...] = ()
    soname: str | None = None
    rpath: str | None = None
    runpath: str | None = None


def cudart_major(needed: Iterable[str]) -> int | None:
    """The major of the CUDA runtime that a library needs; None where it needs none."""
    for name in needed:
        base, _, major = name.partition(".so.")
        if base == "libcudart" and (number := number_of(major)) is not None:
            return number
    return None


def parse(file: BinaryIO) -> Elf | None:
    """The dynamic section of an open ELF file; None where it is no (whole, little-endian) ELF.

    Format: System V ABI, chapters 4 and 5.
    """
    try:
        return _parse(file)
    except (struct.error, OSError, ValueError, OverflowError, LookupError):
        return None


def _parse(file: BinaryIO) -> Elf | None:
    ident = file.read(64)
    if ident[:4] != b"\x7fELF" or ident[5] != 1:
        return None
    wide = ident[4] == 2
    (phoff,) = struct.unpack_from("<Q", ident, 32) if wide else struct.unpack_from("<I", ident, 28)
    phentsize, phnum = struct.unpack_from("<HH", ident, 54 if wide else 42)
    file.seek(phoff)
    table = file.read(min(phentsize * phnum, _MOST))
    loads, dynamic = [], None
    for i in range(phnum):
        if wide:
            kind, _, offset, vaddr, _, size = struct.unpack_from("<IIQQQQ", table, i * phentsize)
        else:
            kind, offset, vaddr, _, size = struct.unpack_from("<IIIII", table, i * phentsize)
        if kind == _PT_LOAD:
            loads.append((vaddr, offset, size))
        elif kind == _PT_DYNAMIC:
            dynamic = (offset, min(size, _MOST))
    if dynamic is None:
        return Elf(64 if wide else 32)
    file.seek(dynamic[0])
    entries = list(struct.iter_unpack("<qQ" if wide else "<iI", file.read(dynamic[1])))
    tags = dict(entries)
    strings = _file_offset(loads, tags[_STRTAB])

    def name(offset: int | None) -> str | None:
        if offset is None:
            return None
        file.seek(strings + offset)  # torch's table of names has megabytes; few are wanted
        return file.read(_NAME_MOST).partition(b"\0")[0].decode("utf-8", "backslashreplace")

    return Elf(
        bits=64 if wide else 32,
        needed=tuple(filter(None, (name(v) for tag, v in entries if tag == _NEEDED))),
        soname=name(tags.get(_SONAME)),
        rpath=name(tags.get(_RPATH)),
        runpath=name(tags.get(_RUNPATH)),
    )


def _file_offset(loads: list[tuple[int, int, int]], address: int) -> int:
    for vaddr, offset, length in loads:
        if vaddr <= address < vaddr + length:
            return offset + address - vaddr
    raise ValueError("the table of names lies in no segment")
