"""What resolves and installs: uv, or, where uv cannot run, the doctor's own pip.

Neither ever writes into the target: they resolve against what is installed there, and install what
changes, by hash, below a prefix of ours, from where it is swapped in.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from packaging.version import Version

from doctor.errors import DoctorError
from doctor.exits import FAILED
from doctor.model import Text, os_refusal
from doctor.numbers import version_of
from doctor.redact import redact
from doctor.repair.index import PackageIndex
from doctor.target import ending_with_us, read_regular

UNPACKED = 2.3
"""Bytes on disk for each byte of wheels: 8.5 GB of 3.8 GB for vLLM 0.22.0 and all it needs."""


class ToolError(DoctorError):
    """The tool could not do it. `tail`: the last lines it printed, without secrets.
    `no_solution`: an index answered, and what was asked does not go together there."""

    def __init__(self, text: Text, tail: str = "", no_solution: bool = False) -> None:
        super().__init__(text, FAILED, tail)
        self.no_solution = no_solution


@dataclass(frozen=True)
class Move:
    """One distribution that changes. `old` None: it is new; `new` None: it goes. `size`: bytes of
    its wheel, None where the index does not say; `cached`: it need not be downloaded."""

    name: str
    old: str | None
    new: str | None
    size: int | None = None
    cached: bool = False

    @property
    def is_downgrade(self) -> bool:
        """Whether an older version comes in the place of a newer one."""
        old, new = version_of(self.old), version_of(self.new)
        return bool(old and new and new < old)


@dataclass(frozen=True)
class Wanted:
    """What a tool is asked for. `roots`, `pinned`: requirements, the second as they are now;
    `reinstall`: names that are installed again even where they satisfy. `version`: of the
    target's Python; `site_packages`: the folders that installers write to."""

    python: Path
    version: Version
    site_packages: tuple[Path, ...]
    roots: tuple[str, ...]
    pinned: tuple[str, ...] = ()
    reinstall: tuple[str, ...] = ()


class Tool(Protocol):
    """uv or pip. Every method raises ToolError."""

    def resolve(
        self, wanted: Wanted, index: PackageIndex, shell: Mapping[str, str], seconds: int
    ) -> tuple[tuple[Move, ...], str]:
        """The moves and the requirements file of what is installed; the index has `seconds` to
        answer each question. Nothing that is installed in the target runs."""
        ...

    def newest(
        self,
        python: Path,
        version: Version,
        requirements: Sequence[str],
        index: PackageIndex,
        shell: Mapping[str, str],
    ) -> Version:
        """The newest release that these requirements of one name admit and that installs on the
        interpreter `python` of that version, whatever it asks for: by the index' Requires-Python,
        of which uv reads the lower bound alone, and by what its wheels are built for."""
        ...

    def stage(
        self,
        python: Path,
        requirements: Path,
        index: PackageIndex,
        shell: Mapping[str, str],
        into: Path,
        progress: Callable[[int], None],
    ) -> None:
        """Installs the file of requirements below `into`, laid out and with scripts as for the
        target. `progress` is told now and then about how many bytes are fetched and unpacked, of
        those that are downloaded; not by every tool."""
        ...

    def make_environment(self, base: str, prefix: Path, shell: Mapping[str, str]) -> None:
        """A virtual environment of the interpreter `base`."""
        ...

    def cache(self, shell: Mapping[str, str]) -> Path:
        """The folder in which it unpacks what it downloads."""
        ...

    def check(self, python: Path, shell: Mapping[str, str]) -> frozenset[str]:
        """What does not go together among what is installed, one sentence each."""
        ...


def show_installed(site_packages: Iterable[Path], folder: Path) -> None:
    """Makes `folder` a site-packages in which these distributions are installed, and nothing of
    theirs can run: it has their metadata alone, as links to the files (uv passes over a folder that
    is a link). Raises ToolError where they cannot be read."""
    folder.mkdir()
    try:
        for info in (p for site in site_packages for k in _METADATA for p in site.glob(f"*{k}")):
            made = folder / info.name
            if os.path.lexists(made):
                continue  # the first folder of an import path wins
            if info.is_file():
                made.symlink_to(info)
            elif info.is_dir():
                made.mkdir()
                for file in filter(Path.is_file, info.iterdir()):
                    (made / file.name).symlink_to(file)
    except OSError as error:
        raise ToolError(Text("not asked: {why}", why=os_refusal(error))) from None


_METADATA = (".dist-info", ".egg-info", ".egg-link")


def name_of(requirement: str) -> str:
    """The normalised name (PEP 503) that a requirement begins with."""
    match = re.match(r"[A-Za-z0-9][\w.-]*", requirement)
    return re.sub(r"[-_.]+", "-", match[0] if match else requirement).lower()


def requirements_file(rows: Iterable[tuple[str, str, Sequence[str]]]) -> str:
    """A requirements file of (name, version, sha256 of the files that may be taken for it).
    Raises ToolError where one has no hash."""
    made = []
    for name, version, hashes in rows:
        if not hashes:
            raise ToolError(
                Text("no wheel of {name} {version} has a hash", name=name, version=version)
            )
        lines = [f"{name}=={version}", *(f"    --hash=sha256:{h}" for h in hashes)]
        made.append(" \\\n".join(lines) + "\n")
    return "".join(made)


def run(
    command: Sequence[str],
    env: Mapping[str, str],
    wrote: Callable[[int], None] | None = None,
) -> str:
    """What the tool printed on both its outputs. `wrote` is told now and then how many bytes it has
    written. Raises ToolError with the cause in one sentence."""
    lines = []
    with (
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(env),
            cwd="/",  # nothing of the current directory is read
            text=True,
            errors="backslashreplace",
            preexec_fn=ending_with_us(signal.SIGKILL),  # noqa: PLW1509 - no lock is taken in it
        ) as child,
        _watched(child.pid, wrote),
    ):
        try:
            lines += [line.rstrip("\n") for line in child.stdout or ()]
        except BaseException:
            child.kill()
            raise
    if child.returncode != 0:
        said = [line for line in lines if not line.startswith(("DEBUG", "TRACE", "INFO"))]
        text = redact("\n".join(said))
        cause = _cause(text, child.returncode)
        raise ToolError(cause, "\n".join(text.splitlines()[-20:]), bool(_NOT_THERE.search(text)))
    return "\n".join(lines)


_LOOK_EVERY = 0.5  # seconds
_IO_MOST = 4096  # bytes


@contextlib.contextmanager
def _watched(pid: int, wrote: Callable[[int], None] | None) -> Iterator[None]:
    """Tells `wrote` what the kernel counts of the child's writes (proc_pid_io(5)). What it prints
    names no bytes, and its cache may hold a million files of others."""
    if wrote is None:
        yield
        return
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_LOOK_EVERY):
            data = read_regular(Path(f"/proc/{pid}/io"), _IO_MOST) or b""
            if found := re.search(rb"wchar: (\d+)", data):
                wrote(int(found[1]))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


_SILENT = re.compile(r"timed? ?out|timeout", re.IGNORECASE)
_UNREACHABLE = re.compile(
    r"dns error|client error \(Connect\)|connection (refused|reset)|failed to fetch|"
    r"NewConnectionError",
    re.IGNORECASE,
)
_REFUSED = re.compile(r"\b(401|403) (Unauthorized|Forbidden)", re.IGNORECASE)
_NOT_THERE = re.compile(
    r"No solution found|not found in the package registry|No matching distribution|"
    r"ResolutionImpossible"
)


def _cause(text: str, code: int) -> Text:
    """The tool's own words for what went wrong, shortened to a sentence."""
    mark = re.compile(r"^[\s×├╰─▶]*(error|cause)?[\s:]*", re.IGNORECASE)
    words = [mark.sub("", line) for line in text.splitlines()]
    words = [w for w in words if w and not w.startswith(("Using Python", "hint:", "note:"))]
    last = words[-1] if words else f"exit code {code}"
    if refused := _REFUSED.search(text):
        return Text("authentication required or rejected ({status})", status=refused[0])
    if _NOT_THERE.search(text):
        because = next((w for w in words if w.startswith("Because")), last)
        return Text("no solution: {why}", why=because)
    if _SILENT.search(text):
        return Text("timed out ({why})", why=last)
    if _UNREACHABLE.search(text):
        return Text("cannot be reached ({why})", why=last)
    return Text("failed: {why}", why=last)
