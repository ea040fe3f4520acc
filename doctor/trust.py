"""What root may run, load, or read code from: only what nobody but root could have put there, or
could exchange between our look and its use. Any other user runs what that user may.
"""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from doctor.model import Missing, Text
from doctor.variables import Trait, names_with

ALLOW = "foreign-owner"
"""The value of --allow that switches all of this off."""

_FILES = names_with(Trait.CODE_FILES)
_CODE = (*_FILES, *names_with(Trait.CODE_FOLDERS))
_FLAGS = names_with(Trait.FLAGS)
_LINKS_MOST = 40  # as the kernel follows (path_resolution(7))


class NotTrusted(Missing):
    """Something was not run, since another user could decide what it does: nothing is known of
    what it would have said."""

    absent = False


def why_not_trusted(path: Path, searched: bool = False) -> Text | None:
    """Why this process does not use what is at `path`, in one sentence; None where it may. Only
    root refuses. `searched`: a folder in which code is looked for by name, so that it counts who
    may put something new into it."""
    if os.geteuid() != 0:
        return None
    why = _flaw(path, searched)
    if why is None:
        return None
    return Text(
        "as root, {path} is not used: {why}; --allow {allow} allows it",
        path=path,
        why=why,
        allow=ALLOW,
    )


def must_be_roots(words: Iterable[str], env: Mapping[str, str]) -> None:
    """Raises NotTrusted where a command would run or load what another user could exchange: every
    path among its words, behind an option too, and what its environment has loaded."""
    if os.geteuid() != 0:
        return
    added = (word for name in _FLAGS for word in env.get(name, "").split())
    for word in (*words, *added):
        path = re.match("(?:-[^/]*)?(/.*)", word)  # also -I/path, -fplugin=/path, -Wl,-rpath,/path
        if path and (why := why_not_trusted(Path(path[1]))):
            raise NotTrusted(why)
    for name in _CODE:
        separator = "[: ]" if name in _FILES else "[:;]"
        for entry in re.split(separator, env[name]) if env.get(name) else ():
            if name in _FILES and "/" not in entry:
                continue  # found in the folders of the loader
            # An empty entry is the current directory.
            if why := why_not_trusted(Path(entry or "."), searched=name not in _FILES):
                raise NotTrusted(Text("{name}: {why}", name=name, why=why))


def with_roots_path(env: Mapping[str, str]) -> Mapping[str, str]:
    """The environment with a PATH of those folders alone in which nobody else puts programs: what
    a child starts by name, it does not find there."""
    folders = env["PATH"].split(os.pathsep) if env.get("PATH") else []
    kept = [f for f in folders if why_not_trusted(Path(f or "."), searched=True) is None]
    # An empty one would be the current directory.
    return {**env, "PATH": os.pathsep.join(kept) or os.defpath} if kept != folders else env


def _flaw(path: Path, searched: bool) -> Text | None:
    """What is wrong with a path, one of its folders, or a link on the way. What is not there has
    the flaws of the folders above it."""
    at, links, flaw = Path("/"), 0, _look(Path("/"))[0]
    try:
        rest = _parts(path if path.is_absolute() else Path.cwd() / path)
        while rest and flaw is None and links <= _LINKS_MOST:
            name = rest.pop()
            here = at.parent if name == ".." else at / name
            flaw, _, link = _look(here)
            if link is None:
                at = here
                continue
            links += 1
            at = Path("/") if link.is_absolute() else at
            rest += _parts(link)
    except (OSError, ValueError):
        flaw = None  # it is not there, and neither is what is below it
    return flaw or (_look(at)[1] if searched else None)


def _parts(path: Path) -> list[str]:
    """The names of a path, the first one last."""
    return [name for name in reversed(path.parts) if not name.startswith("/")]


@functools.cache
def _look(path: Path) -> tuple[Text | None, Text | None, Path | None]:
    """(what is wrong with this one path, what is wrong with it as a folder to put something new
    into, where it leads as a link). Raises OSError, which is not remembered."""
    s = path.lstat()
    link = path.readlink() if stat.S_ISLNK(s.st_mode) else None
    flaw: Text | None = None
    shared: Text | None = None
    if s.st_uid != 0:
        flaw = Text("{path} belongs to {owner}", path=path, owner=_name("pwd", s.st_uid))
    elif stat.S_ISREG(s.st_mode) or stat.S_ISDIR(s.st_mode):
        flaw = _writable(path, s)
    if flaw and s.st_uid == 0 and stat.S_ISDIR(s.st_mode) and s.st_mode & stat.S_ISVTX:
        # Nobody replaces there what is another's, as in /tmp; what lies in it is looked at too.
        flaw, shared = None, flaw
    return flaw, shared, link


def _writable(path: Path, s: os.stat_result) -> Text | None:
    if s.st_mode & stat.S_IWOTH:
        return Text("{path} is writable by everybody", path=path)
    if s.st_mode & stat.S_IWGRP:
        if s.st_gid != 0:
            group = _name("grp", s.st_gid)
            return Text("{path} is writable by the group {group}", path=path, group=group)
        if "system.posix_acl_access" in _attributes(path):
            return Text("{path} is writable by those in its access list", path=path)
    return None


def _attributes(path: Path) -> list[str]:
    try:
        return os.listxattr(path)
    except OSError:
        return []


def _name(kind: str, number: int) -> str:
    try:
        if kind == "pwd":
            import pwd

            return pwd.getpwuid(number).pw_name
        import grp

        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
