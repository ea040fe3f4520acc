"""Proves files against what a hub lists of them. The clients of the hubs look at sizes alone."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from doctor.download.origin import DownloadError, ListedFile, Listing, Origin
from doctor.exits import FINDINGS
from doctor.frozen import dataclass
from doctor.model import Text, os_reason

_PIECE = 1 << 20
_THREADS = 4
"""Hashing frees the interpreter; one thread reads about 1.5 GB a second."""

_NO_FILE = (errno.ELOOP, errno.ENXIO)  # links in a circle, a socket

FileState = Literal["ok", "missing", "partial", "wrong"]


@dataclass(frozen=True)
class Proven:
    """A file as it lies here: `present` bytes of it. "partial": it ends too early; "wrong": it is
    longer, or no file, or has another hash, or the hub says no hash of it."""

    file: ListedFile
    present: int
    state: FileState


def verify(
    origin: Origin,
    listing: Listing,
    files: Sequence[ListedFile],
    read: Callable[[int], None],
) -> tuple[Proven, ...]:
    """Every one of these files, read to its end. `read` is told, from several threads, how many
    bytes more were read. Raises DownloadError where one cannot be read: that proves nothing of what
    is in it, and what is wrong is taken away."""
    stop = threading.Event()

    def one(file: ListedFile) -> Proven:
        return _proven(origin.place(listing, file), file, read, stop)

    # Whatever ends the waiting, such as Ctrl-C, ends the reading.
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            return tuple(pool.map(one, files))
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _proven(
    path: Path, file: ListedFile, read: Callable[[int], None], stop: threading.Event
) -> Proven:
    try:
        return _read(path, file, read, stop)
    except FileNotFoundError:
        return Proven(file, 0, "missing")
    except OSError as error:
        if error.errno in _NO_FILE:
            return Proven(file, 0, "wrong")
        why = Text("{path} cannot be read: {why}", path=path, why=os_reason(error))
        raise DownloadError(why, FINDINGS) from None


def _read(
    path: Path, file: ListedFile, read: Callable[[int], None], stop: threading.Event
) -> Proven:
    # Without waiting: a fifo has no other end, and is no file.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return Proven(file, 0, "wrong")
        if found.st_size != file.size:
            state: FileState = "partial" if found.st_size < file.size else "wrong"
            return Proven(file, min(found.st_size, file.size), state)
        right = _hashed(descriptor, file, read, stop)
        return Proven(file, file.size, "ok" if right else "wrong")
    finally:
        os.close(descriptor)


def _hashed(
    descriptor: int, file: ListedFile, read: Callable[[int], None], stop: threading.Event
) -> bool:
    if file.sha256:
        made, right = hashlib.sha256(), file.sha256
    else:  # git's own name of a file
        head = b"blob %d\0" % file.size
        made, right = hashlib.sha1(head, usedforsecurity=False), file.blob or ""
    while not stop.is_set() and (piece := os.read(descriptor, _PIECE)):
        made.update(piece)
        read(len(piece))
    return made.hexdigest() == right
