"""The doctor killed with SIGKILL right before or right after one of its own changes, and what a
folder holds, for the comparison afterwards.

The product has no hook for it: a driver wraps functions of `os` and then runs the console script.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from tests.conftest import DOCTOR, SYSTEM, Said

BOUNDARIES = (
    "os.rename",
    "os.replace",
    "os.link",
    "os.unlink",
    "os.mkdir",
    "os.rmdir",
    "os.symlink",
    "os.write",
)

_DRIVER = r"""
import importlib, json, os, posix, signal, sys
import shutil  # it notes at import what os can do, and has to see the real functions

asked = json.loads(sys.argv[1])
sys.argv[:] = asked["command"]
notes = posix.open(asked["notes"], posix.O_WRONLY | posix.O_APPEND | posix.O_CLOEXEC)
ours, seen = posix.getpid(), 0
PATHS = {"os.rename": (0, 1), "os.replace": (0, 1), "os.link": (0, 1), "os.symlink": (1,)}

def place(path, folder):
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}")
    base = os.getcwd() if folder is None else os.readlink(f"/proc/self/fd/{folder}")
    return os.path.normpath(os.path.join(base, os.fsdecode(path)))

def is_counted(places):
    below = asked["below"]
    return not below or any(f"{p}/".startswith(f"{b}/") for p in places for b in below)

class Wrapped:  # an object and no function: as an attribute of a class it has to stay what it is
    def __init__(self, name, real):
        self.name, self.real = name, real
        for known in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
            if real in known:
                known.add(self)

    def __call__(self, *given, **words):
        global seen
        if posix.getpid() != ours:  # between fork and exec
            return self.real(*given, **words)
        folders = {0: words.get("dir_fd", words.get("src_dir_fd")), 1: words.get("dst_dir_fd")}
        if self.name == "os.symlink":
            folders[1] = words.get("dir_fd")
        numbers = PATHS.get(self.name, (0,))
        places = [place(given[i], folders[i]) for i in numbers if i < len(given)]
        if not is_counted(places):
            return self.real(*given, **words)
        seen += 1
        number = seen
        posix.write(notes, (json.dumps([self.name, places]) + "\n").encode())
        if number == asked["at"] and asked["when"] == "before":
            posix.kill(ours, signal.SIGKILL)
        try:
            return self.real(*given, **words)
        finally:
            if number == asked["at"]:
                posix.kill(ours, signal.SIGKILL)

# Until Python 3.10, pathlib keeps the functions that it saw at import.
accessor = getattr(sys.modules.get("pathlib"), "_NormalAccessor", None)
for name in asked["functions"]:
    module, _, attribute = name.rpartition(".")
    holder = importlib.import_module(module)
    real = getattr(holder, attribute)
    setattr(holder, attribute, Wrapped(name, real))
    if accessor and vars(accessor).get(attribute) is real:
        setattr(accessor, attribute, getattr(holder, attribute))

sys.path.remove("")
from doctor import cli
cli.main()
"""


class Call(NamedTuple):
    """One counted call: the function, and the absolute paths that it was to change."""

    function: str
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Killed(Said):
    """How a run ended, -9 where it was killed. `calls`: all that were counted, in order; of a
    killed run the last is the one at which it was."""

    calls: tuple[Call, ...] = ()

    @property
    def was_killed(self) -> bool:
        return self.code == -9


def run_killed(
    *arguments: str | Path,
    at: int,
    when: Literal["before", "after"] = "before",
    functions: Iterable[str] = BOUNDARIES,
    below: Path | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 120,
) -> Killed:
    """`vllm-doctor ARGUMENTS`, killed at the `at`-th call of `functions` in the doctor's own
    process, before it does anything or after it did. 0 kills none, and counts them all.

    `below`: only calls that change something below this folder are counted. A function is named
    with its module, such as "os.fsync"; it takes a path or a descriptor first.
    """
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as notes:
        asked = {
            "command": [str(DOCTOR), *map(str, arguments)],
            "notes": notes.name,
            "functions": list(functions),
            "at": at,
            "when": when,
            "below": [str(below), str(below.resolve())] if below else [],
        }
        ran = subprocess.run(
            [sys.executable, "-c", _DRIVER, json.dumps(asked)],
            env={**SYSTEM, **(env or {})},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        rows = map(json.loads, notes.readlines())
        calls = tuple(Call(name, tuple(paths)) for name, paths in rows)
    out, err = (said.decode("utf-8", "replace") for said in (ran.stdout, ran.stderr))
    return Killed(ran.returncode, out, err, calls)


class Entry(NamedTuple):
    """One path: permissions, size in bytes (0 of what is no file), and the sha256 of a file or
    where a link leads."""

    kind: Literal["file", "link", "folder", "other"]
    mode: int
    size: int
    content: str


def tree(folder: Path, without: Collection[str] = ()) -> dict[str, Entry]:
    """Everything below a folder, by its path from there: files, links, and folders too. `without`:
    names that are left out with all that is in them, such as "__pycache__"."""
    return dict(_entries(str(folder), "", frozenset(without)))


def _entries(at: str, prefix: str, without: frozenset[str]) -> Iterator[tuple[str, Entry]]:
    with os.scandir(at) as found:
        for one in sorted(found, key=lambda entry: entry.name):
            if one.name in without:
                continue
            name, seen = f"{prefix}{one.name}", one.stat(follow_symlinks=False)
            mode = stat.S_IMODE(seen.st_mode)
            if one.is_symlink():
                yield name, Entry("link", mode, 0, os.readlink(one.path))  # noqa: PTH115 - for speed
            elif one.is_dir():
                yield name, Entry("folder", mode, 0, "")
                yield from _entries(one.path, f"{name}/", without)
            elif one.is_file():
                digest = hashlib.sha256(Path(one.path).read_bytes()).hexdigest()
                yield name, Entry("file", mode, seen.st_size, digest)
            else:
                yield name, Entry("other", mode, 0, "")
