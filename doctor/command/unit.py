"""The command of a systemd service, as the unit's files say it (systemd.unit(5), systemd.exec(5),
systemd.service(5)). systemd itself is not asked."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from doctor.command.server import ServerCommand, read_command
from doctor.command.shell import ASSIGNMENT, brief
from doctor.errors import DoctorError, UsageError
from doctor.exits import UNKNOWN
from doctor.frozen import dataclass
from doctor.model import Text, os_reason
from doctor.target import must_read

SYSTEM_FOLDERS = tuple(
    Path(folder, "systemd/system") for folder in ("/etc", "/run", "/usr/local/lib", "/usr/lib")
)
"""Where the units of the system lie, the first wins."""
_USER_FOLDERS = tuple(
    Path(folder, "systemd/user") for folder in ("/etc", "/run", "/usr/local/lib", "/usr/lib")
)
_FILE_MOST = 1 << 20
# What a service has where nothing else is said (systemd.exec(5), "Environment variables").
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NAME = re.compile(r"[A-Za-z0-9:_.\\-]+(?:@[A-Za-z0-9:_.\\-]*)?\.service")
_ELSEWHERE = ("RootDirectory", "RootImage")


@dataclass(frozen=True)
class _Place:
    """Where units are looked for; `user`: those of the person's own manager."""

    folders: tuple[Path, ...]
    user: bool = False


def unit_folders(home: str | None) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """(folders of the system's units, of the user's), in systemd's order."""
    own = (Path(home, ".config/systemd/user"),) if home else ()
    return SYSTEM_FOLDERS, (*own, *_USER_FOLDERS)


def read_unit(
    name: str, system: Sequence[Path], user: Sequence[Path], home: str | None = None
) -> ServerCommand:
    """The command that the service starts, with its variables and its folder. `system`, `user`:
    the folders of units, the first wins; `home`: of the person. Raises UsageError where there is
    no such unit, or it cannot be read without systemd; DoctorError (could not tell) where this user
    may not read a file of it."""
    full = name if name.endswith(".service") else f"{name}.service"
    if not _NAME.fullmatch(full):
        raise UsageError(Text("--unit {name} is not the name of a service", name=brief(name)))
    for place in (_Place(tuple(system)), _Place(tuple(user), user=True)):
        if files := _files(full, place.folders):
            return _Unit(full, files, place, home).command()
    looked = (*system, *user)
    said = Text("--unit {name}: no such unit in {folders}", name=full, folders=looked)
    raise UsageError(said)


def _files(name: str, folders: Iterable[Path]) -> list[Path]:
    """The unit's own file and what is dropped in beside it, in the order in which they count."""
    prefix, at, rest = name.partition("@")
    template = f"{prefix}@.service" if at and rest != ".service" else None
    spellings = [name, *([template] if template else [])]
    own = next(
        (folder / one for one in spellings for folder in folders if os.path.lexists(folder / one)),
        None,
    )
    if own is None:
        return []
    dropped: dict[str, Path] = {}
    for one in (*spellings, *_beginnings(name), "service"):
        for folder in folders:
            for path in sorted((folder / f"{one}.d").glob("*.conf")):
                dropped.setdefault(path.name, path)
    return [own, *(dropped[file] for file in sorted(dropped) if not _is_masked(dropped[file]))]


def _beginnings(name: str) -> Iterator[str]:
    """a-b-.service and a-.service for a-b-c.service, the longest first."""
    stem = name.removesuffix(".service").partition("@")[0]
    for at in range(len(stem) - 1, 0, -1):
        if stem[at - 1] == "-":
            yield f"{stem[:at]}.service"


def _is_masked(path: Path) -> bool:
    return os.path.realpath(path) == os.devnull


class _Unit:
    """One service. Its settings by name, each with its values in order; an empty one takes back
    those before it."""

    def __init__(self, name: str, files: Sequence[Path], place: _Place, home: str | None) -> None:
        self._name = name
        self._user = place.user
        self._home = home if place.user else "/root"
        self._settings: dict[str, list[str]] = {}
        if _is_masked(files[0]) or not self._text(files[0]).strip():
            raise self._wrong(Text("the unit is masked"))
        for file in files:
            for key, value in _rows(self._text(file)):
                if value:
                    self._settings.setdefault(key, []).append(value)
                else:
                    self._settings.pop(key, None)

    def command(self) -> ServerCommand:
        for key in _ELSEWHERE:
            if self._last(key):
                said = Text("it has {key}, and sees other files than this machine", key=key)
                raise self._wrong(said)
        starts = self._settings.get("ExecStart", [])
        if len(starts) != 1:
            count = len(starts)
            raise self._wrong(
                Text("{count} lines of ExecStart, where one was expected", count=count)
            )
        environ = self._environ()
        words = self._start(starts[0], environ)
        folder = self._folder()
        try:
            made = read_command(words, folder)
        except UsageError as error:
            raise self._wrong(Text("ExecStart: {why}", why=error.text)) from None
        if made.container is None:
            environ |= made.env
        return dataclasses.replace(
            made,
            env=made.env if made.container else {},
            found=f"unit {self._name}",
            environ=environ,
            folder=folder,
        )

    def _wrong(self, why: Text) -> UsageError:
        return UsageError(Text("--unit {name}: {why}", name=self._name, why=why))

    def _text(self, file: Path) -> str:
        try:
            return must_read(file, _FILE_MOST).decode("utf-8")
        except PermissionError as error:
            raise self._unreadable(file, error) from None
        except (OSError, ValueError) as error:
            why = os_reason(error) if isinstance(error, OSError) else error
            raise self._wrong(Text("{file}: {why}", file=file, why=why)) from None

    def _unreadable(self, file: Path, error: OSError) -> DoctorError:
        said = Text(
            "--unit {name}: {file}: {why}; run the doctor as root",
            name=self._name,
            file=file,
            why=os_reason(error),
        )
        return DoctorError(said, UNKNOWN)

    def _last(self, key: str) -> str | None:
        return self._settings.get(key, [None])[-1]

    def _folder(self) -> Path:
        said = self._specified((self._last("WorkingDirectory") or "/").removeprefix("-"))
        if said == "~":
            return Path(self._account().get("HOME", self._home or "/"))
        if not said.startswith("/"):
            shown = brief(said)
            raise self._wrong(Text("WorkingDirectory={value} is not a full path", value=shown))
        return Path(said)

    # Variables.

    def _environ(self) -> dict[str, str]:
        made = {"PATH": _PATH, **self._account()}
        for row in self._settings.get("Environment", []):
            made |= self._assigned(self._specified(row))
        for row in self._settings.get("EnvironmentFile", []):
            made |= self._of_file(self._specified(row))
        for row in self._settings.get("UnsetEnvironment", []):
            for name in row.split():
                made.pop(name, None)
        return made

    def _account(self) -> dict[str, str]:
        """What systemd says of the user that the service runs as."""
        import pwd

        user = None if self._user else self._last("User")
        if user is None:
            return {"HOME": self._home} if self._user and self._home else {}
        try:
            row = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
        except (KeyError, OverflowError):
            return {}
        names = {"HOME": row.pw_dir, "SHELL": row.pw_shell}
        return {**names, "USER": row.pw_name, "LOGNAME": row.pw_name}

    def _assigned(self, row: str) -> dict[str, str]:
        made: dict[str, str] = {}
        for word in self._words("Environment", row):
            variable = ASSIGNMENT.fullmatch(word)
            if variable is None or "\0" in word:
                raise self._wrong(Text("Environment: a word of it is not NAME=VALUE"))
            made[variable[1]] = variable[2]
        return made

    def _of_file(self, row: str) -> dict[str, str]:
        path = Path(row.removeprefix("-"))
        if not path.is_absolute() or any(sign in row for sign in "*?["):
            said = Text(
                "EnvironmentFile={value} is not the full path of one file", value=brief(row)
            )
            raise self._wrong(said)
        if row.startswith("-") and not os.path.lexists(path):
            return {}
        made: dict[str, str] = {}
        for line in _joined(self._text(path)):
            name, equals, value = line.partition("=")
            if equals and (variable := ASSIGNMENT.fullmatch(f"{name.strip()}=")):
                made[variable[1]] = self._unquoted(path, value.strip())
        return made

    def _unquoted(self, path: Path, value: str) -> str:
        if not any(sign in value for sign in "\"'\\"):
            return value
        try:
            return " ".join(shlex.split(value))
        except ValueError as error:
            why = str(error).lower()
            raise self._wrong(Text("{path}: {why}", path=path, why=why)) from None

    # The command.

    def _start(self, row: str, environ: Mapping[str, str]) -> tuple[str, ...]:
        """The words of ExecStart, with all that systemd puts in."""
        prefixes = re.match(r"[-@:+!|]*", row)
        signs = prefixes[0] if prefixes else ""
        first, *rest = self._words("ExecStart", self._specified(row[len(signs) :])) or ("",)
        if "@" in signs:
            del rest[:1]  # what the process is to call itself
        if ";" in rest:
            raise self._wrong(Text("ExecStart: several commands in one line are not read"))
        if ":" in signs:
            return (first, *rest)
        return (first, *(one for word in rest for one in self._substituted(word, environ)))

    def _words(self, key: str, row: str) -> list[str]:
        if "\\" in row:
            raise self._wrong(Text("{key}: escapes with a backslash are not read", key=key))
        try:
            return shlex.split(row)
        except ValueError as error:
            why = str(error).lower()
            raise self._wrong(Text("{key}: {why}", key=key, why=why)) from None

    def _substituted(self, word: str, environ: Mapping[str, str]) -> list[str]:
        """${NAME} inside a word, $NAME as a word that is split at blanks, $$ for itself."""

        def value(name: str) -> str:
            if name not in environ:
                said = Text("ExecStart: ${name} is not set in the unit's files", name=name)
                raise self._wrong(said)
            return environ[name]

        if whole := re.fullmatch(r"\$([A-Za-z_][A-Za-z0-9_]*)", word):
            return value(whole[1]).split()
        pattern = r"\$\$|\$\{([A-Za-z_][A-Za-z0-9_]*)\}"
        return [re.sub(pattern, lambda m: value(m[1]) if m[1] else "$", word)]

    def _specified(self, text: str) -> str:
        """The text without its specifiers (systemd.unit(5), "Specifiers"): those that do not depend
        on systemd's own state."""
        stem = self._name.removesuffix(".service")
        prefix, _, instance = stem.partition("@")
        known: dict[str, Callable[[], str | None]] = {
            "%": lambda: "%",
            "n": lambda: self._name,
            "N": lambda: stem,
            "p": lambda: prefix,
            "i": lambda: instance,
            "I": lambda: None if "\\" in instance else instance.replace("-", "/"),
            "h": lambda: self._home,
        }

        def put(found: re.Match[str]) -> str:
            made = known.get(found[1], lambda: None)()
            if made is None:
                said = Text("what systemd puts in for %{sign} is not known", sign=found[1])
                raise self._wrong(said)
            return made

        return re.sub(r"%(.?)", put, text)


def _joined(text: str) -> Iterator[str]:
    """Lines without comments, those that end in a backslash joined with the next one."""
    held = ""
    for line in text.splitlines():
        if line.lstrip().startswith(("#", ";")):
            continue
        if line.rstrip().endswith("\\"):
            held += line.rstrip()[:-1] + " "
            continue
        yield (held + line).strip()
        held = ""
    if held:
        yield held.strip()


def _rows(text: str) -> Iterator[tuple[str, str]]:
    """(key, value) of the section [Service]."""
    section = ""
    for line in _joined(text):
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line:
            key, _, value = line.partition("=")
            yield key.strip(), value.strip()
