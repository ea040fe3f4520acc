"""Runs a hub's client and watches what it brings: bytes on the disk, and nothing that it says."""

from __future__ import annotations

import collections
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import BinaryIO

from doctor.download.origin import Client, DownloadError, ListedFile, Listing, Origin
from doctor.exits import UNKNOWN
from doctor.frozen import dataclass
from doctor.model import Text, os_reason
from doctor.redact import redact
from doctor.target import ending_with_us

STALL = 60.0
"""Seconds without a byte after which a client hangs: through a CAS that is not reached it says
nothing for 261 s, and ends then."""

_LOOK_EVERY = 0.5  # seconds
_JOIN = 5.0  # seconds; of a client that has ended, nobody holds the pipe any more
_TAIL = 8192  # bytes
_LINE = 300


@dataclass(frozen=True)
class Fetched:
    """How a client ended. `code`: None where it `stalled` and was ended; `gained`: bytes;
    `seconds`: how long it was at work; `said`: the last line that it printed."""

    code: int | None
    gained: int
    seconds: float
    said: str

    @property
    def stalled(self) -> bool:
        return self.code is None


def bytes_here(origin: Origin, listing: Listing, files: Sequence[ListedFile]) -> int:
    """How much of these files is on the disk, in parts or whole."""
    whole = {f.path: size for f in files if (size := _size(origin, listing, f)) is not None}
    parts = (p for p in origin.parts(listing) if p.listed not in whole)
    return sum(whole.values()) + sum(part.size for part in parts)


def _size(origin: Origin, listing: Listing, file: ListedFile) -> int | None:
    try:
        return origin.place(listing, file).stat().st_size
    except OSError:
        return None


def fetch(client: Client, here: Callable[[], int], stall: float) -> Fetched:
    """Runs the client to its end, or until `here`, which counts the bytes, stands still for `stall`
    seconds. Whatever ends us ends it. Raises DownloadError where it cannot be started."""
    began = moved = time.monotonic()
    first = last = here()
    with _started(client) as child, _Tail(child) as tail:
        try:
            while (code := _wait(child, _LOOK_EVERY)) is None:
                now, bytes_now = time.monotonic(), here()
                if bytes_now != last:
                    last, moved = bytes_now, now
                if now - moved > stall:
                    break
        finally:
            _end(child)
    return Fetched(code, here() - first, time.monotonic() - began, tail.last_line())


def _started(client: Client) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            client.words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(client.env),
            cwd="/",  # nothing of the current directory is read
            start_new_session=True,  # what a terminal sends is ours to pass on
            preexec_fn=ending_with_us(signal.SIGKILL),  # noqa: PLW1509 - no lock is taken in it
        )
    except (OSError, ValueError) as error:
        why = os_reason(error) if isinstance(error, OSError) else str(error).lower()
        said = Text("{program} cannot be started: {why}", program=client.words[0], why=why)
        raise DownloadError(said, UNKNOWN) from None


def _wait(child: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return child.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _end(child: subprocess.Popen[bytes]) -> None:
    """By force: huggingface_hub hears of Ctrl-C only once the files at work are fetched."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


class _Tail:
    """The end of what a child prints, so that no pipe fills and no memory."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._end: collections.deque[int] = collections.deque(maxlen=_TAIL)
        self._thread = threading.Thread(target=self._read, args=(child.stdout,), daemon=True)

    def __enter__(self) -> _Tail:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(_JOIN)

    def _read(self, pipe: BinaryIO) -> None:
        while piece := os.read(pipe.fileno(), _TAIL):
            self._end.extend(piece)

    def last_line(self) -> str:
        """Without secrets; of an exception, what it says, or what the client calls the error, below
        which it gives hints."""
        lines = bytes(self._end).decode("utf-8", "replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        errors = [line for line in said if line.startswith("Error: ")]
        return redact((errors or said)[-1])[:_LINE] if said else ""
