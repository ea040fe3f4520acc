"""The machine under judgement. The only module that starts a process, opens a file or reads
`os.environ` on a probe's behalf; `doctor.tape` answers the same questions from a recording.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import functools
import os
import re
import resource
import select
import signal
import stat as stat_mode
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

from doctor import elf, safetensors, trust
from doctor.elf import Elf
from doctor.frozen import dataclass
from doctor.model import Missing, Text, os_reason
from doctor.safetensors import Header

READ_MOST = 1 << 20
OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)
_SEARCH_MOST = 8 << 20
_OUTPUT_MOST = 1 << 20

# In an argv: our own interpreter, and files of our own package. Live puts the real paths in;
# a tape keeps the names, so that it can be judged by a doctor installed elsewhere.
OWN = "vllm-doctor:"
OWN_PYTHON = OWN + "python"
_PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Ran:
    """What a child process came to.

    `code` is its exit status, negative for a signal, None where it did not start or end in time;
    `failure` then says why in a few words.
    """

    code: int | None
    out: str = ""
    err: str = ""
    failure: str | None = None

    @property
    def ok(self) -> bool:
        return self.code == 0


@dataclass(frozen=True)
class Stat:
    """Of a path, links followed: kind, size in bytes, mtime in nanoseconds, owner, mode bits."""

    kind: Literal["file", "dir", "other"]
    size: int
    mtime: int
    uid: int
    mode: int


class Target(Protocol):
    """Everything a probe may ask. No method raises for what the machine answers: Missing where it
    was not asked, NotTrusted (a Missing) of `run` for what root does not start."""

    @property
    def env(self) -> Mapping[str, str]:
        """The shell's environment the doctor was started in."""
        ...

    @property
    def hidden(self) -> tuple[str, ...]:
        """The variables that are set there beside those of `env`, and whose values are not known:
        a recording keeps of most no more than the name."""
        ...

    def run(
        self, *argv: str, timeout: float = 10.0, env: Mapping[str, str] | None = None
    ) -> Ran: ...

    def distrust(self, path: Path, searched: bool = False) -> Text | None:
        """Why what is at `path` may not be run or loaded, for what a child does of itself: in one
        sentence, None where it may (see `doctor.trust.refusal`)."""
        ...

    def read(self, path: Path, limit: int = READ_MOST) -> bytes | None:
        """The first `limit` bytes of a regular file, or None."""
        ...

    def search(self, path: Path, pattern: str) -> tuple[str, ...] | None:
        """What `pattern` (of one group, or none) matches in the first 8 MiB of a file, in order;
        () where nothing, None where the file cannot be read. Only the matches are recorded."""
        ...

    def listdir(self, path: Path) -> tuple[str, ...] | None:
        """Sorted names, or None where it is no readable folder."""
        ...

    def stat(self, path: Path) -> Stat | None: ...

    def executable(self, path: Path) -> bool:
        """A regular file that this user may execute."""
        ...

    def realpath(self, path: Path) -> Path: ...

    def elf(self, path: Path) -> Elf | None: ...

    def tensors(self, path: Path) -> Header | None:
        """The header of a safetensors file; None where there is no file that can be read."""
        ...


class OutOfFiles(Missing):
    """The doctor may open no more files: nothing is known of what it would have read."""

    absent = False


class TooLarge(ValueError):
    """A file larger than any of its kind; one sentence with its path and the limit."""

    def __init__(self, path: Path, at_most: int) -> None:
        most = f"{at_most >> 20} MiB" if at_most >= 1 << 20 else f"{at_most} bytes"
        super().__init__(f"{path} is larger than {most}, which no such file is")


def read_regular(path: Path, at_most: int) -> bytes | None:
    """The whole of a regular file, links followed; None where there is none that can be read.

    Raises TooLarge beyond `at_most` bytes. Who has to tell a missing file from an unreadable one
    asks `must_read`.
    """
    try:
        return must_read(path, at_most)
    except OSError:
        return None


def must_read(path: Path, at_most: int) -> bytes:
    """The same, but raises OSError where it cannot be read: FileNotFoundError, IsADirectoryError,
    "Not a regular file" for a fifo or a device."""
    with _regular(path) as file:
        if os.fstat(file.fileno()).st_size > at_most:
            raise TooLarge(path, at_most)
        data = file.read(at_most + 1)
    if len(data) > at_most:  # it grew, or it is one of those in /proc, which tell no size
        raise TooLarge(path, at_most)
    return data


# What a pattern for the beginning of lines begins with, as it stands there.
_LINE = re.compile(r"(\(\?ms?\))\^([\w #:-]{3,})(?![*+?{])")


@functools.cache
def _sought(pattern: str) -> bytes:
    """A pattern that matches the same, faster: `re` finds a literal at once, and tries `^` at every
    single line. What comes before the literal is looked at behind it."""
    return _LINE.sub(r"\1\2(?<![^\n]\2)", pattern, count=1).encode()


@contextlib.contextmanager
def _regular(path: Path) -> Iterator[BinaryIO]:
    """The file opened for reading. Raises OSError for anything else: a fifo or a device in its
    place must not hang a diagnosis."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    kind = os.fstat(handle).st_mode
    if stat_mode.S_ISREG(kind):
        with os.fdopen(handle, "rb") as file:
            yield file
        return
    os.close(handle)
    if stat_mode.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "Not a regular file", str(path))


class Live:
    """This machine. `foreign`: root also runs what another user could exchange."""

    def __init__(self, env: Mapping[str, str] | None = None, foreign: bool = False) -> None:
        self._env = dict(os.environ if env is None else env)
        self._foreign = foreign
        self._headers: dict[tuple[int, ...], Header] = {}

    @property
    def env(self) -> Mapping[str, str]:
        return self._env

    @property
    def hidden(self) -> tuple[str, ...]:
        return ()

    def run(self, *argv: str, timeout: float = 10.0, env: Mapping[str, str] | None = None) -> Ran:
        env = self._env if env is None else env
        if not self._foreign:
            trust.must_be_roots(argv, env)
            env = trust.with_roots_path(env)
        return run_child(map(_own, argv), timeout, env)

    def distrust(self, path: Path, searched: bool = False) -> Text | None:
        return None if self._foreign else trust.why_not_trusted(path, searched)

    def read(self, path: Path, limit: int = READ_MOST) -> bytes | None:
        try:
            with _regular(path) as file:
                size = os.fstat(file.fileno()).st_size  # 0 in /proc, which tells none
                # Memory for all that is asked for would be got first, 8 MiB for each search.
                return file.read(min(limit, size + 1) if size else limit)
        except OSError as error:
            _must_be_an_answer(error)
            return None

    def search(self, path: Path, pattern: str) -> tuple[str, ...] | None:
        data = self.read(path, _SEARCH_MOST)
        if data is None:
            return None
        found = re.findall(_sought(pattern), data)
        return tuple(m.decode("utf-8", "backslashreplace") for m in found)

    def listdir(self, path: Path) -> tuple[str, ...] | None:
        try:
            return tuple(sorted(os.listdir(path)))  # noqa: PTH208 - names, not paths
        except OSError as error:
            _must_be_an_answer(error)
            return None
        except ValueError:
            return None

    def stat(self, path: Path) -> Stat | None:
        try:
            s = os.stat(path)  # noqa: PTH116 - a path may hold a NUL; os.stat says so as ValueError
        except (OSError, ValueError):
            return None
        is_dir, is_file = stat_mode.S_ISDIR(s.st_mode), stat_mode.S_ISREG(s.st_mode)
        kind: Literal["file", "dir", "other"] = "dir" if is_dir else "file" if is_file else "other"
        return Stat(kind, s.st_size, s.st_mtime_ns, s.st_uid, stat_mode.S_IMODE(s.st_mode))

    def executable(self, path: Path) -> bool:
        try:
            return path.is_file() and os.access(path, os.X_OK)
        except (OSError, ValueError):
            return False

    def realpath(self, path: Path) -> Path:
        try:
            return Path(os.path.realpath(path))
        except (OSError, ValueError):
            return path

    def elf(self, path: Path) -> Elf | None:
        try:
            with _regular(path) as file:
                return elf.parse(file)
        except OSError as error:
            _must_be_an_answer(error)
            return None

    def tensors(self, path: Path) -> Header | None:
        try:
            with _regular(path) as file:
                stat = os.fstat(file.fileno())
                key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
                # Several facts ask; two hundred of a large model take half a second.
                if key not in self._headers:
                    self._headers[key] = safetensors.header_in(file)
                return self._headers[key]
        except OSError as error:
            _must_be_an_answer(error)
            return None


def _must_be_an_answer(error: OSError) -> None:
    """Raises Missing where it is the doctor that may open no more: that tells nothing of a file."""
    if error.errno in OUT_OF_FILES:
        raise OutOfFiles(Text("{why}: raise `ulimit -n`", why=os_reason(error)))


def _own(argument: str) -> str:
    if argument == OWN_PYTHON:
        return sys.executable
    if argument.startswith(OWN):
        return str(_PACKAGE / argument[len(OWN) :])
    return argument


def run_child(argv: Iterable[str], timeout: float, env: Mapping[str, str]) -> Ran:
    """Runs `argv` in a session of its own, without a shell, its output capped at 1 MiB a stream.

    Never raises for what the child does: a child that does not start, hangs or dies is a value;
    Missing where the doctor itself may open no more files. When `timeout` (seconds) is over, its
    whole process group is killed.
    """
    with contextlib.ExitStack() as stack:
        try:
            out, err = (stack.enter_context(_memory_file()) for _ in range(2))
            with _starting:
                if _ending:
                    return Ran(None, failure="the doctor is ending")
                child = subprocess.Popen(
                    list(argv),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env=dict(env),
                    start_new_session=True,
                )
                _children.add(child)
        except ValueError as error:  # a NUL among the words
            return Ran(None, failure=str(error).lower())
        except OSError as error:
            _must_be_an_answer(error)
            return Ran(None, failure=os_reason(error))
        ended = False
        try:
            ended = _wait(child, timeout)
        finally:
            code = _end(child)
        if not ended:
            return Ran(None, _written(out), _written(err), f"did not end within {timeout:g} s")
        return Ran(code, _written(out), _written(err))


def ending_with_us(number: signal.Signals) -> Callable[[], None]:
    """What a child runs before its exec (preexec_fn), so that it gets the signal `number` when we
    are gone, however we ended (prctl(2))."""
    import ctypes  # before the fork: between that and the exec nothing may be loaded

    prctl, ours = ctypes.CDLL(None).prctl, os.getpid()

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != ours:  # gone before it was asked for
            os._exit(128 + number)

    return prepare


_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_children: set[subprocess.Popen[bytes]] = set()
_starting = threading.Lock()
_ending = False


def _end(child: subprocess.Popen[bytes]) -> int:
    """Ends a child and whatever it left running in its group, and returns its exit code; a second
    to clean up after itself is given to one that still runs."""
    if child.returncode is None:
        if not _wait(child, 0):
            _signal(child, signal.SIGTERM)
            _wait(child, 1.0)
        # Before it is reaped: afterwards its number may be another's.
        _signal(child, signal.SIGKILL)
    code = child.wait()
    _children.discard(child)
    return code


def _signal(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


@atexit.register
def _end_all() -> None:
    # Children that a background thread waits for, when Ctrl-C ends the doctor before them; the
    # thread then goes on to its next one, which must not start any more.
    global _ending  # noqa: PLW0603 - there is one end of the process
    with _starting:
        _ending = True
    for child in tuple(_children):
        _end(child)


def _wait(child: subprocess.Popen[bytes], timeout: float) -> bool:
    """Whether it ends within `timeout` seconds; it is not reaped. Popen.wait sleeps up to 50 ms too
    long: a process descriptor wakes at once. Kernels before 5.3 have none."""
    try:
        descriptor = os.pidfd_open(child.pid)
    except (AttributeError, OSError):
        return _wait_polling(child, timeout)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(timeout * 1000))
    finally:
        os.close(descriptor)


def _wait_polling(child: subprocess.Popen[bytes], timeout: float) -> bool:
    ends = time.monotonic() + timeout
    try:
        while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() >= ends:
                return False
            time.sleep(0.01)
    except ChildProcessError:  # another thread reaped it
        pass
    return True


def _memory_file() -> BinaryIO:
    """A file in memory, since a diagnosis writes nothing to disk, that cannot grow beyond what is
    read of it: a child that never stops printing gets an error, not all the memory."""
    descriptor = os.memfd_create("output", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    most = _OUTPUT_MOST if limit == resource.RLIM_INFINITY else min(_OUTPUT_MOST, limit)
    os.ftruncate(descriptor, most)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return os.fdopen(descriptor, "w+b", buffering=0)


def _written(file: BinaryIO) -> str:
    # The child shares our offset, which stands where it stopped writing.
    data = os.pread(file.fileno(), file.tell(), 0)
    return data.decode("utf-8", "backslashreplace")
