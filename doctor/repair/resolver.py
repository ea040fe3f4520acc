"""What a transaction changes: resolved and staged by a tool that never writes into the target.

The tool is uv, which also serves a target without pip, or, where uv cannot run, the doctor's own
pip. It resolves against what is installed in the target, and installs what changes, by hash, below
a prefix of ours, from where it is swapped in.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from packaging.version import Version

from doctor.model import Text, os_refusal
from doctor.numbers import version_of
from doctor.redact import redact
from doctor.repair.index import PackageIndex
from doctor.target import Target, ending_with_us

ANSWER_IN = 3
"""Seconds within which a mirror has to answer while there is another one to ask."""
_LAST_ANSWER_IN = 15


class ToolError(Exception):
    """The tool could not do it. `tail`: the last lines it printed, without secrets.
    `no_solution`: an index answered, and what was asked does not go together there."""

    def __init__(self, message: str, tail: str = "", no_solution: bool = False) -> None:
        super().__init__(message)
        self.tail = tail
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


@dataclass(frozen=True)
class Resolution:
    """What one transaction comes to. `requirements`: a requirements file of exactly what is
    installed, with hashes, "" where nothing is; `passed_over`: the mirrors that were asked before,
    each with the reason; `why`: where a vLLM was chosen, why this one."""

    index: PackageIndex
    moves: tuple[Move, ...]
    requirements: str = ""
    passed_over: tuple[str, ...] = ()
    why: Text | None = None

    @property
    def download_bytes(self) -> int | None:
        """What has to be fetched; None where the index does not say how large it is."""
        sizes = [m.size for m in self.moves if m.new and not m.cached]
        return None if None in sizes else sum(s for s in sizes if s is not None)


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
        tell: Callable[[str], None],
    ) -> None:
        """Installs the file of requirements below `into`, laid out and with scripts as for the
        target. `tell` is called with each line that the tool prints."""
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


def find_tool(target: Target) -> Tool | None:
    """uv, else a current pip of the doctor's own environment. Raises NotTrusted where root would
    have to start a uv that another user could exchange."""
    from doctor.repair import pip, uv

    return uv.find_uv(target) or pip.find_pip()


def resolve(
    tool: Tool, wanted: Wanted, indexes: Sequence[PackageIndex], shell: Mapping[str, str]
) -> Resolution:
    """What `wanted` changes in the target, asked of one index after the other until one has all.

    Raises ToolError, which names every index that was asked and why it could not serve.
    """
    passed_over: list[str] = []
    tail, no_solution = "", False
    for number, index in enumerate(indexes, 1):
        seconds = ANSWER_IN if number < len(indexes) else _LAST_ANSWER_IN
        try:
            moves, requirements = tool.resolve(wanted, index, shell, seconds)
            return Resolution(index, moves, requirements, tuple(passed_over))
        except ToolError as error:
            passed_over.append(f"{index.name} {error}")
            tail, no_solution = error.tail, no_solution or error.no_solution
    raise ToolError("; ".join(passed_over), tail, no_solution)


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
        raise ToolError(f"is not asked: {os_refusal(error)}") from None


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
            raise ToolError(f"has no wheel of {name} {version} with a hash")
        lines = [f"{name}=={version}", *(f"    --hash=sha256:{h}" for h in hashes)]
        made.append(" \\\n".join(lines) + "\n")
    return "".join(made)


def run(
    command: Sequence[str], env: Mapping[str, str], tell: Callable[[str], None] | None = None
) -> str:
    """What the tool printed on both its outputs. Raises ToolError with the cause in one
    sentence."""
    lines = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(env),
        cwd="/",  # nothing of the current directory is read
        text=True,
        errors="backslashreplace",
        preexec_fn=ending_with_us(signal.SIGKILL),  # noqa: PLW1509 - no lock is taken in it
    ) as child:
        try:
            for line in child.stdout or ():
                lines.append(line.rstrip("\n"))
                if tell:
                    tell(lines[-1])
        except BaseException:
            child.kill()
            raise
    if child.returncode != 0:
        said = [line for line in lines if not line.startswith(("DEBUG", "TRACE", "INFO"))]
        text = redact("\n".join(said))
        cause = _cause(text, child.returncode)
        raise ToolError(cause, "\n".join(text.splitlines()[-20:]), bool(_NOT_THERE.search(text)))
    return "\n".join(lines)


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


def _cause(text: str, code: int) -> str:
    """The tool's own words for what went wrong, shortened to a sentence."""
    mark = re.compile(r"^[\s×├╰─▶]*(error|cause)?[\s:]*", re.IGNORECASE)
    words = [mark.sub("", line) for line in text.splitlines()]
    words = [w for w in words if w and not w.startswith(("Using Python", "hint:", "note:"))]
    last = words[-1] if words else f"it ended with {code}"
    if refused := _REFUSED.search(text):
        return f"wants a name and a password, or other ones ({refused[0]})"
    if _NOT_THERE.search(text):
        because = next((w for w in words if w.startswith("Because")), last)
        return f"cannot give it: {because}"
    if _SILENT.search(text):
        return f"does not answer ({last})"
    if _UNREACHABLE.search(text):
        return f"cannot be reached ({last})"
    return f"failed: {last}"
