"""Who would be hurt by a fix: processes that run out of an environment, or build or hold what
lies in a cache folder.

What this user may not look into (processes of others) is skipped; root sees all.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from doctor.model import printable
from doctor.redact import redact, redacted_words
from doctor.target import Live

if TYPE_CHECKING:
    import psutil

# What a program of Python runs as. A server may call itself something else (vLLM's engine is
# VLLM::EngineCore): its executable says what it is.
_PYTHON = re.compile(r"(python|pypy)[\d.]*t?")
# Below a prefix that the whole machine shares (/usr), only what loaded one of these matters.
_SERVED_WITH = ("/torch/", "/vllm/", "/flashinfer/")
# How a server of vLLM is started, and what its processes call themselves.
_VLLM = re.compile(r"(?:.*/)?vllm|vllm\.entrypoints\..+|VLLM::.*")
_VLLM_LOADED = re.compile(r" (/.*)/lib/python[\d.]+t?/site-packages/vllm/")
_PYTHONS_OWN = re.compile(r"-[uISBEsOPq]+")
_MAPS_MOST = 16 << 20
_NAME_MOST = 60


@dataclass(frozen=True)
class Process:
    """A process; `name` is its command line up to the first option, whose values may be secret."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


def users(prefix: Path, ignore_own: bool = True) -> tuple[Process, ...]:
    """Processes that run out of the environment: started from its bin folder, or with one of its
    files loaded. `ignore_own`: without this process, what started it and what it has started."""
    where = _Prefix(prefix)
    return tuple(_process(p) for p in _processes(ignore_own) if _uses(p, where))


def builders(folder: Path, ignore_own: bool = True) -> tuple[Process, ...]:
    """Processes that build, hold or have loaded something at or below a folder of a cache: they
    stand in it, name it, or have a file of it open or loaded. For a kernel of FlashInfer's also
    those that hold or wait for its lock, and a ninja that builds many at once from the folder
    above."""
    spellings = _spellings(folder)
    lock = folder.parent / "tmp" / f"{folder.name}.lock"
    locks = _spellings(lock)
    return tuple(
        _process(p) for p in _processes(ignore_own) if _builds(p, folder, spellings, locks)
    )


def servers() -> dict[Path, Process]:
    """The interpreters that run vLLM now, as they are called, and one process of each."""
    found: dict[Path, Process] = {}
    for process in _processes(ignore_own=True):
        command = _command(process)
        if any(_VLLM.fullmatch(word) for word in command[:4]):
            for python in _interpreter_of(process, command):
                if python not in found:
                    found[python] = _process(process)
    return found


def _interpreter_of(process: psutil.Process, command: list[str]) -> Iterator[Path]:
    """As it was called: its executable is the one that an environment was made of. A process that
    calls itself something else has vLLM's files loaded out of it."""
    if command[0].startswith("/") and _PYTHON.fullmatch(Path(command[0]).name):
        yield Path(command[0])
        return
    for row in _maps(process.pid):
        if match := _VLLM_LOADED.search(row):
            yield Path(match[1], "bin/python")
            return


class _Prefix:
    """An environment's folder, as it is called and as it is, ready to be compared with."""

    def __init__(self, prefix: Path) -> None:
        self.names = _spellings(prefix)
        self.bins = tuple(f"{name}/bin" for name in self.names)
        # A virtual environment, or conda's, is one's own; anything else is the whole machine's.
        conda = (prefix / "conda-meta").is_dir()
        self.own = conda or (prefix / "pyvenv.cfg").is_file()
        # conda's bin may hold the shell that one types in; what wheels bring runs from lib.
        self.tools = tuple(f"{name}/lib" for name in self.names) if conda else self.names


def _spellings(path: Path) -> tuple[str, ...]:
    absolute = os.path.abspath(path)  # noqa: PTH100 - links are kept, and "." and ".." are not
    return tuple(dict.fromkeys((absolute, os.path.realpath(path))))


def _uses(process: psutil.Process, where: _Prefix) -> bool:
    command = _command(process)
    return bool(command) and _runs(process, command, where) and _sees(process.pid, where.names[0])


def _runs(process: psutil.Process, command: list[str], where: _Prefix) -> bool:
    executable = _executable(process)
    if not _is_python(command, executable):
        started = (executable, _started(process, command[0]))
        return where.own and any(_below(path, where.tools) for path in started)
    if where.own:
        if _below(executable, where.names):
            return True
        if any(_below(_started(process, word), where.bins) for word in command[:2]):
            return True
    marks = [f"{name}/" for name in where.names]
    rows = (row for row in _maps(process.pid) if any(mark in row for mark in marks))
    return any(where.own or any(part in row for part in _SERVED_WITH) for row in rows)


def _sees(pid: int, folder: str) -> bool:
    """The folder of this name is the same one to the process: in a container it may be another."""
    try:
        return Path(f"/proc/{pid}/root{folder}").samefile(folder)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # this user may not look: then it counts


def _builds(
    process: psutil.Process, folder: Path, spellings: tuple[str, ...], locks: tuple[str, ...]
) -> bool:
    command = _command(process)
    if not command or not _sees(process.pid, spellings[0]):
        return False
    at = _current(process)
    if _below(at, spellings) or any(_mentions(word, spellings) for word in command):
        return True
    if Path(command[0]).name == "ninja" and at in _spellings(folder.parent):
        return True
    if not _is_python(command, _executable(process)):
        return False
    return any(_below(path, (*spellings, *locks)) for path in _open(process.pid)) or any(
        f"{name}/" in row for row in _maps(process.pid) for name in spellings
    )


def _mentions(word: str, spellings: Iterable[str]) -> bool:
    """The word holds the path: itself, one below it, or behind an option (`-o/the/path/x.o`)."""
    return any(re.search(rf"{re.escape(name)}(?![\w.-])", word) for name in spellings)


def _processes(ignore_own: bool) -> Iterator[psutil.Process]:
    import psutil  # late: only a repair asks

    own: set[int] = set()
    if ignore_own:
        me = psutil.Process()
        own = {me.pid, *(p.pid for p in me.parents())}
        own.update(p.pid for p in me.children(recursive=True))
    yield from (p for p in psutil.process_iter() if p.pid not in own)


def _process(process: psutil.Process) -> Process:
    words: list[str] = []
    for word in _command(process):
        if words and _PYTHONS_OWN.fullmatch(word):
            continue
        if word.startswith("-") and word != "-m":
            break
        words.append(Path(word).name if word.startswith("/") else word)
    # Before it is cut: of half a secret nobody knows any more that it was one.
    name = printable(redact(" ".join(redacted_words(words))))[:_NAME_MOST]
    return Process(process.pid, name or "a process")


def _command(process: psutil.Process) -> list[str]:
    import psutil

    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _executable(process: psutil.Process) -> str:
    import psutil

    try:
        return process.exe().removesuffix(" (deleted)")
    except psutil.Error:
        return ""


def _current(process: psutil.Process) -> str:
    import psutil

    try:
        return process.cwd()
    except psutil.Error:
        return ""


def _is_python(command: list[str], executable: str) -> bool:
    names = (Path(executable).name, Path(command[0]).name)
    return any(_PYTHON.fullmatch(name) for name in names)


def _started(process: psutil.Process, word: str) -> str:
    """The file that a word of the command line names: below the current directory, or for a bare
    name where the process's own PATH has it. Its folder is followed through links, itself not: an
    environment's python is a link to the one that it was made from."""
    import psutil

    if "/" in word:
        path = Path(_current(process), word)
        return str(Path(os.path.realpath(path.parent), path.name))
    try:
        folders = process.environ().get("PATH", "").split(os.pathsep)
    except psutil.Error:
        return ""
    found = (f for f in folders if f.startswith("/") and Path(f, word).is_file())
    return next((str(Path(os.path.realpath(f), word)) for f in found), "")


def _below(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def _open(pid: int) -> Iterator[str]:
    """Where the descriptors of a process lead."""
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                yield str(descriptor.readlink())


def _maps(pid: int) -> Iterator[str]:
    """The rows of what a process has loaded."""
    data = Live({}).read(Path(f"/proc/{pid}/maps"), _MAPS_MOST) or b""
    yield from data.decode("utf-8", "surrogateescape").splitlines()
