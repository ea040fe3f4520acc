"""Files below one folder, reached through open folders.

A path that was looked at can be another one when it is used: someone who may write into a folder
on the way puts a link there. Here every folder on the way is opened by its name in the one before,
never through a link, and what is done is done in the folder that is open.
"""

# Everything here works on open folders, for which pathlib has nothing.
# ruff: noqa: PTH208

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from doctor.model import Text

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LISTED = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FRESH = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_MOST = 64
"""Folders kept open: what comes in the order of its path is never opened twice."""


class Tree:
    """What lies below `top`, an absolute path without links; it need not be there yet. Paths are
    relative to it, "" is the folder itself. Every method raises NotADirectoryError where a folder
    on the way is a link or a file; errors name the whole path. Looking may be done by threads."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self._first: int | None = None
        self._absent = False
        self._open: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.RLock()

    def __enter__(self) -> Tree:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._forget("")
        if self._first is not None:
            os.close(self._first)
            self._first = None

    @contextlib.contextmanager
    def _at(self, path: str) -> Iterator[tuple[int, str]]:
        """The open folder of a path, and the name in it."""
        folder, _, name = path.rpartition("/")
        with self._lock:
            try:
                yield self._folder(folder), name or "."
            except OSError as error:
                error.filename, error.filename2 = f"{self.top}/{path}", None
                raise

    def _folder(self, path: str) -> int:
        at = path
        while at and at not in self._open:
            at = at.rpartition("/")[0]
        if at:
            self._open.move_to_end(at)
            folder = self._open[at]
        else:
            folder = self._top()
        for name in filter(None, path[len(at) :].split("/")):
            at = f"{at}/{name}" if at else name
            folder = self._open[at] = os.open(name, _FOLDER, dir_fd=folder)
            if len(self._open) > _OPEN_MOST:
                os.close(self._open.popitem(last=False)[1])
        return folder

    def _top(self) -> int:
        if self._absent:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if self._first is None:
            try:
                self._first = _opened(self.top)
            except FileNotFoundError:
                self._absent = True  # until it is made here: seventy thousand paths may be asked
                raise
        return self._first

    def make(self) -> None:
        """The folder itself, and those on the way to it, where they are not there."""
        if self._first is None:
            self._first = _opened(self.top, make=True)
            self._absent = False

    def _forget(self, path: str) -> None:
        """Closes a folder, and those below: another one may stand there next."""
        for one in [p for p in self._open if not path or f"{p}/".startswith(f"{path}/")]:
            os.close(self._open.pop(one))

    def lstat(self, path: str) -> os.stat_result | None:
        """Of a file, folder or link; None where there is nothing."""
        if self._absent:
            return None
        try:
            with self._at(path) as (folder, name):
                return os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def open_or_make(self, path: str, flags: int) -> int:
        """A descriptor of a file, which is made with 0644."""
        with self._at(path) as (folder, name):
            return os.open(name, flags, 0o644, dir_fd=folder)

    def readlink(self, path: str) -> str:
        with self._at(path) as (folder, name):
            return os.readlink(name, dir_fd=folder)

    def open(self, path: str) -> int:
        """A regular file, for reading. Raises OSError for anything else."""
        with self._at(path) as (folder, name):
            handle = os.open(name, _READ, dir_fd=folder)
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                os.close(handle)
                raise OSError(errno.EINVAL, "not a regular file")
            return handle

    def names(self, path: str) -> list[str]:
        """Sorted, of a folder; none where it is not there."""
        try:
            with self._at(path) as (folder, name):
                handle = os.open(name, _LISTED, dir_fd=folder)
        except FileNotFoundError:
            return []
        try:
            return sorted(os.listdir(handle))
        finally:
            os.close(handle)

    def files(self, path: str) -> Iterator[tuple[str, os.stat_result]]:
        """Everything below a folder that is no folder itself."""
        waiting = [path]
        while waiting:
            at = waiting.pop()
            for name in self.names(at):
                below = f"{at}/{name}" if at else name
                found = self.lstat(below)
                if found and stat.S_ISDIR(found.st_mode):
                    waiting.append(below)
                elif found:
                    yield below, found

    def unlink(self, path: str) -> None:
        """Removes a file or link; nothing need be there."""
        with contextlib.suppress(FileNotFoundError), self._at(path) as (folder, name):
            os.unlink(name, dir_fd=folder)

    def mkdir(self, path: str, mode: int | None = None) -> None:
        """A folder, which may be there, and those on the way to it. `mode`: exactly its
        permissions, if it was not there."""
        try:
            with self._at(path) as (folder, name):
                os.mkdir(name, 0o755, dir_fd=folder)
                if mode is not None:
                    handle = os.open(name, _LISTED, dir_fd=folder)
                    try:
                        os.fchmod(handle, mode)
                    finally:
                        os.close(handle)
        except FileExistsError:
            pass
        except FileNotFoundError:
            if "/" not in path:
                raise
            self.mkdir(path.rpartition("/")[0])
            self.mkdir(path, mode)

    def rmdir(self, path: str) -> None:
        """Removes a folder if it is there and empty."""
        with contextlib.suppress(OSError), self._at(path) as (folder, name):
            os.rmdir(name, dir_fd=folder)
            self._forget(path)

    def rename(self, path: str, name: str) -> None:
        """Another name in the same folder."""
        with self._at(path) as (folder, old):
            os.rename(old, name, src_dir_fd=folder, dst_dir_fd=folder)
            self._forget(path)

    def move(self, path: str, other: Tree) -> None:
        """To the same path below another top, over what is there: a rename; across filesystems a
        copy that appears whole or not at all, then the removal."""
        with self._at(path) as (here, name), other._at(path) as (there, _):
            try:
                os.replace(name, name, src_dir_fd=here, dst_dir_fd=there)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                copy = name_of_copy(name)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(copy, dir_fd=there)
                _copy(here, name, there, copy)
                os.replace(copy, name, src_dir_fd=there, dst_dir_fd=there)
                os.unlink(name, dir_fd=here)

    def write(self, path: str, data: bytes) -> None:
        """A file of ours, whole or not at all, and on disk before this returns."""
        with self._at(path) as (folder, name):
            fresh = f".{name}.new"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(fresh, dir_fd=folder)
            try:
                with os.fdopen(os.open(fresh, _FRESH, 0o644, dir_fd=folder), "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(fresh, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(fresh, dir_fd=folder)
                raise
            _sync_folder(folder)

    def remove(self, path: str) -> None:
        """A file, or a folder with all that is in it, however deep: what is in a folder of it is
        first moved up beside it. Nothing need be there."""
        found = self.lstat(path)
        if found is None:
            return
        if not stat.S_ISDIR(found.st_mode):
            self.unlink(path)
            return
        self._forget(path)
        with self._at(path) as (parent, name):
            top = os.open(name, _LISTED, dir_fd=parent)
            try:
                _empty(top)
            finally:
                os.close(top)
            os.rmdir(name, dir_fd=parent)

    def sync(self) -> None:
        """What was done so far on this filesystem is on disk when this returns: one call for
        seventy thousand files (syncfs(2))."""
        import ctypes

        handle = os.open(".", _LISTED, dir_fd=self._folder(""))
        try:
            if ctypes.CDLL(None, use_errno=True).syncfs(handle):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), str(self.top))
        finally:
            os.close(handle)

    def sync_folder(self, path: str) -> None:
        """The names in a folder are on disk when this returns."""
        with self._lock:
            _sync_folder(self._folder(path))


def _opened(top: Path, make: bool = False) -> int:
    """A descriptor of a folder to which no link leads."""
    at = os.open("/", _FOLDER)
    for name in top.parts[1:]:
        try:
            try:
                below = os.open(name, _FOLDER, dir_fd=at)
            except FileNotFoundError:
                if not make:
                    raise
                os.mkdir(name, 0o755, dir_fd=at)
                below = os.open(name, _FOLDER, dir_fd=at)
        finally:
            os.close(at)
        at = below
    return at


def name_of_copy(name: str) -> str:
    """What a file is called while it is copied to its place."""
    return f".{name}.vllm-doctor"


def why_not_ours(path: Path, found: os.stat_result) -> Text | None:
    """Why what lies at `path` is not to be obeyed, one sentence; None where only root and this user
    can have written it."""
    if stat.S_ISLNK(found.st_mode):
        return Text("{path} is a link; vllm-doctor keeps nothing behind a link", path=path)
    if found.st_uid not in (0, os.geteuid()):
        return Text(
            "{path} belongs to user {user}: run vllm-doctor as that user",
            path=path,
            user=found.st_uid,
        )
    if found.st_mode & 0o022:
        return Text(
            "{path} can be written by others: chmod go-w it if what it holds is yours", path=path
        )
    return None


def why_not_private(folder: Path) -> Text | None:
    """Why others than root and this user could change what `folder` is: one sentence. It, and every
    folder on the way that is there, belongs to one of them, is no link and can be written by no
    other; in a folder on the way with the sticky bit, such as /tmp, nobody can rename what is
    another's."""
    for at in (*reversed(folder.parents), folder):
        try:
            found = at.lstat()
        except FileNotFoundError:
            return None
        shared = at != folder and found.st_mode & stat.S_ISVTX and found.st_uid in (0, os.geteuid())
        if not (shared and stat.S_ISDIR(found.st_mode)) and (why := why_not_ours(at, found)):
            return why
    return None


def _sync_folder(folder: int) -> None:
    handle = os.open(".", _LISTED, dir_fd=folder)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _copy(here: int, name: str, there: int, copy: str) -> None:
    found = os.stat(name, dir_fd=here, follow_symlinks=False)
    if stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(name, dir_fd=here), copy, dir_fd=there)
        return
    with (
        os.fdopen(os.open(name, _READ, dir_fd=here), "rb") as source,
        os.fdopen(os.open(copy, _FRESH, 0o600, dir_fd=there), "wb") as made,
    ):
        shutil.copyfileobj(source, made)
        made.flush()
        shutil.copystat(source.fileno(), made.fileno())  # type: ignore[arg-type]


def _empty(top: int) -> None:
    """Removes everything in an open folder, folders one after the other and never one in another:
    those that are nested deeper than anything can walk as well."""
    number = 0
    waiting = os.listdir(top)
    while waiting:
        name = waiting.pop()
        if _unlinked(name, top):
            continue
        folder = os.open(name, _LISTED, dir_fd=top)
        try:
            for inner in os.listdir(folder):
                if not _unlinked(inner, folder):
                    number += 1
                    beside = f".{os.getpid()}-{number}.vllm-doctor"
                    os.rename(inner, beside, src_dir_fd=folder, dst_dir_fd=top)
                    waiting.append(beside)
        finally:
            os.close(folder)
        os.rmdir(name, dir_fd=top)


def _unlinked(name: str, folder: int) -> bool:
    """Removes what is no folder; False for a folder."""
    if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        return False
    os.unlink(name, dir_fd=folder)
    return True
