"""Logs packed with gzip or xz: unpacked piece by piece, in little memory whatever they hold."""

from __future__ import annotations

import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

_PIECE = 1 << 9
"""Bytes that are unpacked at once: xz can make 7,000 times as much of them."""
_DICTIONARY, _GREAT = 18 << 20, 80 << 20
"""Bytes that xz may take, enough for `xz -7`; and for `xz -9`, which takes more as a log grows."""
_BOMB, _RATIO = 256 << 20, 250
"""Past so many bytes a log may not be more than so many times as large as what it is packed in."""
_MEMBERS, _MEMBER = 10_000, 32
"""Past so many members they have to hold so many bytes each; a line of a log has more."""


_FIRST = "unpack it first: xz -dc FILE | vllm-doctor explain -"


class TooMuch(Exception):
    """Packed data that is made to take time or memory; says how, as the end of a sentence."""


class _Member(Protocol):
    """gzip's and xz's members may stand one behind the other."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def unpacked_gzip(stream: io.BufferedReader) -> Iterator[bytes]:
    """Raises zlib.error, EOFError and TooMuch as `_unpacked` does."""
    return _unpacked(stream, lambda: zlib.decompressobj(wbits=16 + zlib.MAX_WBITS))


def unpacked_xz(stream: io.BufferedReader) -> Iterator[bytes]:
    """Of a log with a great dictionary, only as much as that may take of memory. Raises
    lzma.LZMAError, EOFError and TooMuch as `_unpacked` does."""
    memory, most = _DICTIONARY, None
    try:
        _xz(memory).decompress(stream.peek(_PIECE)[:_PIECE])
    except lzma.LZMAError:  # if it is damaged instead, that is found again
        memory, most = _GREAT, _DICTIONARY
    try:
        for piece in _unpacked(stream, lambda: _xz(memory)):
            yield piece
            most = most and max(1, most - len(piece))
            if most == 1:
                raise TooMuch(f"an xz dictionary so large takes too much memory; {_FIRST}")
    except lzma.LZMAError as error:
        if "Memory usage limit" in str(error):
            raise TooMuch(f"its xz dictionary takes too much memory; {_FIRST}") from None
        raise


def _xz(memory: int) -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memory)


def _unpacked(stream: io.BufferedReader, new: Callable[[], _Member]) -> Iterator[bytes]:
    """What all the members hold. Raises the error of their format where they are damaged, EOFError
    where the last one is cut off, TooMuch."""
    packed = size = members = 0
    data = stream.read(_PIECE)
    while data:
        member = new()
        while not member.eof:
            if not data:
                raise EOFError("its end is missing")
            piece = member.decompress(data)
            packed, size = packed + len(data), size + len(piece)
            if size > max(_BOMB, _RATIO * packed):
                raise TooMuch(f"it unpacks to more than {_RATIO} times its size")
            yield piece
            data = member.unused_data if member.eof else stream.read(_PIECE)
        packed -= len(data)
        members += 1
        if members > max(_MEMBERS, size // _MEMBER):
            raise TooMuch(f"it consists of members of less than {_MEMBER} bytes")
        # What fills up a block of a tape or a disk is no member.
        while not (data := data.lstrip(b"\0")) and (more := stream.read(_PIECE)):
            data = more
