"""Where a log comes from: a file, one packed with gzip or xz, or a pipe; read block by block."""

from __future__ import annotations

import codecs
import contextlib
import io
import lzma
import os
import select
import signal
import stat
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from doctor.errors import DoctorError
from doctor.exits import USAGE
from doctor.logs.packed import TooMuch, unpacked_gzip, unpacked_xz
from doctor.model import Text, os_reason

BLOCK = 2 << 20
"""Bytes that are read at once, and searched at once."""
_SAMPLE = 1 << 16


_DAMAGED = (EOFError, zlib.error, lzma.LZMAError)


class LogError(DoctorError):
    """A log that cannot be read, or from which nothing can be told."""

    def __init__(self, text: Text, exit_code: int = USAGE) -> None:
        super().__init__(text, exit_code)


@dataclass
class Log:
    """A log that is being read; `size` in bytes and the rest are whole once `blocks` has ended.
    `notes`: sentences for whoever reads the result. `damaged`: not all of it could be read."""

    name: str
    size: int = 0
    damaged: bool = False
    notes: list[Text] = field(default_factory=list)
    sample: bytes = b""

    def blocks(self) -> Iterator[bytes]:
        """The log from its beginning, unpacked. A file that is being written ends where it ended
        when this began; a packed one that is cut off, where it is cut; a pipe also at Ctrl-C.
        Raises LogError where there is no log."""
        with _opened(self.name) as (stream, most):
            try:
                for block in _unpacked(self.name, stream, most):
                    self.sample = self.sample or block[:_SAMPLE]
                    self.size += len(block)
                    yield block
            except _DAMAGED as error:
                self.damaged = True
                self.notes.append(
                    Text("cut off or damaged after {n} bytes: {why}", n=self.size, why=error)
                )
            except TooMuch as error:
                self.damaged = True
                self.notes.append(
                    Text("only the first {n} bytes were read: {why}", n=self.size, why=error)
                )
            except OSError as error:
                if not self.size:
                    raise _unreadable(self.name, os_reason(error)) from None
                self.damaged = True
                why = os_reason(error)
                self.notes.append(Text("unreadable after {n} bytes: {why}", n=self.size, why=why))
            if isinstance(stream.raw, _Pipe) and stream.raw.interrupted:
                self.notes.append(Text("interrupted; only what was read until then was analysed"))
            if most is not None and os.fstat(stream.fileno()).st_size > most:
                self.notes.append(
                    Text(
                        "file grew while being read; only the first {n} bytes were analysed", n=most
                    )
                )

    @property
    def is_binary(self) -> bool:
        """Whether it begins as no text does, in any encoding that servers print."""
        data = self.sample.replace(b"\0", b"")
        controls = len(data) - len(data.translate(None, bytes(_CONTROLS)))
        unreadable = data.decode("utf-8", "replace").count("\ufffd")
        return bool(self.sample) and (10 * max(controls, unreadable) > len(data) or not data)


def _unreadable(name: str, why: object) -> LogError:
    return LogError(Text("{name}: {why}", name=name, why=why))


_PACKED = (
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"PK\3\4", "zip"),
    (b"\4\x22M\x18", "lz4"),
)
_CONTROLS = set(range(32)) - set(b"\b\t\n\f\r\x1b")


@contextlib.contextmanager
def _opened(name: str) -> Iterator[tuple[io.BufferedReader, int | None]]:
    """The stream, and how many bytes of it there are where that is known."""
    if name == "-":
        if sys.stdin is None or sys.stdin.closed:
            raise LogError(Text("-: standard input is closed"))
        with _piped(sys.stdin.fileno()) as stream:
            yield stream, None
        return
    try:
        kind = Path(name).stat().st_mode
        if stat.S_ISDIR(kind):
            raise LogError(Text("{name} is a directory: name a log in it", name=name))
        if not (stat.S_ISREG(kind) or stat.S_ISFIFO(kind)):
            raise LogError(Text("{name} is neither a file nor a pipe", name=name))
        stream = Path(name).open("rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise _unreadable(name, os_reason(error)) from None
    except ValueError as error:  # a NUL in the name
        raise _unreadable(name, error) from None
    with stream:
        if stat.S_ISREG(kind):
            yield stream, os.fstat(stream.fileno()).st_size
        else:
            with _piped(stream.fileno()) as pipe:
                yield pipe, None


class _Pipe(io.RawIOBase):
    """What comes through a pipe or from a terminal. Ctrl-C is its end, and loses nothing of what
    came before: whoever waits for a server that hangs ends both with it."""

    def __init__(self, descriptor: int, wake: int) -> None:
        self._descriptor, self._wake = descriptor, wake
        self._ended = self.interrupted = False

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def interrupt(self, *_: object) -> None:
        self.interrupted = True

    def readinto(self, buffer: Any) -> int:
        ready = select.poll()
        for descriptor in (self._descriptor, self._wake):
            ready.register(descriptor, select.POLLIN)
        while not (self.interrupted or self._ended):
            if any(found == self._descriptor for found, _ in ready.poll()):
                count = os.readv(self._descriptor, [buffer])
                self._ended = not count  # a terminal would be asked for another end
                return count
            os.read(self._wake, 512)  # a signal, perhaps another one
        return 0


@contextlib.contextmanager
def _piped(descriptor: int) -> Iterator[io.BufferedReader]:
    """The pipe, which Ctrl-C ends. Its handler only notes it, and a wait for the pipe is woken up
    by way of another one: an exception out of a read could take with it what was just read."""
    wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    pipe = _Pipe(descriptor, wake)
    handler = signal.signal(signal.SIGINT, pipe.interrupt)
    other = signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    try:
        yield io.BufferedReader(pipe)
    finally:
        signal.set_wakeup_fd(other)
        signal.signal(signal.SIGINT, handler)
        os.close(wake)
        os.close(woken)


def _unpacked(name: str, stream: io.BufferedReader, most: int | None) -> Iterator[bytes]:
    """Raises EOFError, zlib.error or LZMAError where packed data is cut or damaged, TooMuch, and
    LogError where it is packed otherwise."""
    first = stream.peek(6)
    if first.startswith(b"\x1f\x8b"):
        yield from _full(unpacked_gzip(stream))
    elif first.startswith(b"\xfd7zXZ\0"):
        yield from _full(unpacked_xz(stream))
    elif first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        # What PowerShell makes of `>`.
        text = codecs.getincrementaldecoder("utf-16")("replace")
        while block := stream.read(BLOCK):
            yield text.decode(block).encode()
    elif kind := next((name for magic, name in _PACKED if first.startswith(magic)), None):
        raise LogError(
            Text(
                "{name} is packed with {kind}, which is not supported: unpack it first",
                name=name,
                kind=kind,
            )
        )
    elif most is None:
        while block := stream.read(BLOCK):
            yield block
    else:
        while most and (block := stream.read(min(BLOCK, most))):
            yield block
            most -= len(block)


def _full(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same in full blocks, for each is searched with what surrounds it. What was unpacked
    before an error is not lost with it."""
    block = bytearray()
    try:
        for piece in pieces:
            block += piece
            while len(block) >= BLOCK:
                yield bytes(block[:BLOCK])
                del block[:BLOCK]
    except (*_DAMAGED, TooMuch, OSError):
        yield bytes(block)
        raise
    yield bytes(block)
