"""Whether what is to be downloaded finds room: bytes, quota, inodes."""

from __future__ import annotations

import ctypes
import errno
import os
import tempfile
from pathlib import Path

from doctor.download.origin import DownloadError
from doctor.exits import FINDINGS
from doctor.model import Text, os_reason
from doctor.numbers import shown_size

_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE of linux/falloc.h
_FULL = {errno.ENOSPC: Text("the disk is full"), errno.EDQUOT: Text("the quota does not allow it")}


def free_bytes(folder: Path) -> int:
    """Of the file system on which the folder lies, or will, for this user. Raises OSError."""
    found = os.statvfs(existing(folder))
    return found.f_bavail * found.f_frsize


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def must_have_room(folder: Path, needs: int, files: int) -> None:
    """Raises DownloadError where the folder does not take so many bytes and files more."""
    place = existing(folder)
    try:
        found = os.statvfs(place)
        free = found.f_bavail * found.f_frsize
        if free < needs:
            raise DownloadError(
                Text(
                    "{needs} are missing, and {folder} has {free} free: make room there, or put "
                    "the cache on another disk (HF_HOME, or MODELSCOPE_CACHE)",
                    needs=shown_size(needs),
                    folder=place,
                    free=shown_size(free),
                ),
                FINDINGS,
            )
        # A file system without a number of its own for them says 0 of 0.
        if found.f_files and found.f_favail < 2 * files:
            raise DownloadError(
                Text(
                    "{files} files are missing, and {folder} has {free} inodes free: remove files "
                    "there",
                    files=files,
                    folder=place,
                    free=found.f_favail,
                ),
                FINDINGS,
            )
        _allocate(place, needs)
    except OSError as error:
        why = _FULL.get(error.errno or 0) or os_reason(error)
        needed = shown_size(needs)
        said = Text("{needs} for {folder}: {why}", needs=needed, folder=place, why=why)
        raise DownloadError(said, FINDINGS) from None


def _allocate(folder: Path, size: int) -> None:
    """Takes the room, and gives it back: a quota is known to the kernel alone. Raises OSError.

    fallocate(2), and not posix_fallocate(3), which writes every block where a file system cannot
    allocate without.
    """
    call = ctypes.CDLL(None, use_errno=True).fallocate
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    with tempfile.TemporaryFile(dir=folder) as file:
        if size and call(file.fileno(), _KEEP_SIZE, 0, size):
            number = ctypes.get_errno()
            if number in _FULL:
                raise OSError(number, os.strerror(number))
