"""What the fixes saved, as text that sets it elsewhere: a shell's commands, a unit's lines, a file.

Pure: from the shell's variables and what was saved. Only names that a fix of ours sets are printed
(doctor.variables). What the profile adds for the server (HF_ENDPOINT and such)
is left out: it belongs to that server, and in a shell it would change every other program as well.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from doctor.errors import DoctorError
from doctor.exits import UNKNOWN
from doctor.model import Text
from doctor.probes.environment import Saved, SavedValue
from doctor.variables import VARIABLES

EXPORT_FORMS = ("sh", "fish", "systemd", "dotenv", "json")
# No file of lines holds them, and bytes that are no UTF-8 (lone surrogates) would be printed as ?.
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class ExportError(DoctorError):
    """A value that a form cannot hold; one sentence."""

    def __init__(self, text: Text) -> None:
        super().__init__(text, UNKNOWN)


def exports(form: str, shell: Mapping[str, str], saved: Saved, prefix: Path) -> str:
    """The text, "" where there is nothing to set. `form` is one of EXPORT_FORMS; `prefix`: of the
    environment that it was saved for.

    A variable that has a value of the shell's own which was never judged bad is not in it: the
    shell's wins. Raises ExportError where a value does not fit the form.
    """
    if form == "systemd":
        return _unit(saved.ours(), prefix)
    standing = {n: v for n, v in saved.ours().items() if v.stands(shell.get(n))}
    for name, one in standing.items():
        # A shell still has its own part of a list; elsewhere it has to be written down with ours.
        value = one.value if form in ("sh", "fish") else one.over(shell.get(name))
        _must_fit(name, value)
    if form == "json":
        made = {name: one.over(shell.get(name)) for name, one in standing.items()}
        return json.dumps(made, indent=1) + "\n" if made else ""
    line = _LINES[form]
    return "".join(f"{line(n, v, v.over(shell.get(n)))}\n" for n, v in standing.items())


def _sh(name: str, one: SavedValue, _: str | None) -> str:
    """For any POSIX shell. A folder that is already there is not put in again; reading `${NAME-}`
    and not `$NAME` also works under `set -u`."""
    if one.value is None:
        return f"unset {name}"
    if not one.prepend:
        return f"export {name}={_sh_quoted(one.value)}"
    return "\n".join(
        f'case ":${{{name}-}}:" in *:{folder}:*) ;; '
        f'*) export {name}={folder}"${{{name}:+:${name}}}" ;; esac'
        for folder in map(_sh_quoted, _last_first(one.value))
    )


def _fish(name: str, one: SavedValue, _: str | None) -> str:
    """fish itself takes a variable whose name ends in PATH for a list, and joins it with colons."""
    if one.value is None:
        return f"set -e {name}"
    if not one.prepend:
        return f"set -gx {name} {_fish_quoted(one.value)}"
    return "\n".join(
        f"contains -- {folder} ${name}; or set -gx {name} {folder} ${name}"
        for folder in map(_fish_quoted, _last_first(one.value))
    )


_UNITS_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What a unit has without a word about it (systemd.exec(5)); the last two where /usr is split."""


def _unit(saved: Mapping[str, SavedValue], prefix: Path) -> str:
    """A drop-in of a service. No shell is behind it: PATH is ours, the environment's own programs,
    and what systemd gives; what a fix has taken out goes where the unit sets that very value."""
    lines = []
    for name, one in saved.items():
        if one.value is None:
            lines += [f"UnsetEnvironment={_word(name, value)}" for value in one.instead_of]
        elif name != "PATH":
            lines.append(f"Environment={_word(name, one.value)}")
    if not saved:
        return ""
    first = saved["PATH"].value if "PATH" in saved else None
    folders = ":".join(filter(None, (first, str(prefix / "bin"), _UNITS_PATH)))
    return "\n".join(["[Service]", *lines, f"Environment={_word('PATH', folders)}", ""])


def _word(name: str, value: str) -> str:
    """An assignment as a quoted word with C escapes, in which % begins a specifier and $ is a plain
    character (systemd.exec(5), systemd.syntax(7))."""
    _must_fit(name, value)
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%")):
        value = value.replace(plain, escaped)
    return f'"{name}={value}"'


def _must_fit(name: str, value: str | None) -> None:
    if value is not None and _UNFIT.search(value):
        raise ExportError(
            Text("{name} contains a control character: {value}", name=name, value=value)
        )


# What every reader of such files takes as it stands, without quotes and with.
_BARE = re.compile(r"[\w@%+=:,./-]+", re.ASCII)
_DISPUTED = re.compile(r"['\\$`]")


def _dotenv(name: str, _: SavedValue, value: str | None) -> str:
    """There is no standard; docker's --env-file knows no quotes, others unquote and expand. So
    there are quotes only where they are needed, and nothing that readers take in different ways."""
    if value is None:
        raise ExportError(
            Text("a dotenv file cannot unset {name}: unset it, or use another --shell", name=name)
        )
    if disputed := _DISPUTED.search(value):
        raise ExportError(
            Text(
                "{name} contains {sign}, which readers of dotenv files interpret differently: "
                "use another --shell",
                name=name,
                sign=disputed[0],
            )
        )
    return f"{name}={value}" if _BARE.fullmatch(value) else f"{name}='{value}'"


_LINES: dict[str, Callable[[str, SavedValue, str | None], str]] = {
    "sh": _sh,
    "fish": _fish,
    "dotenv": _dotenv,
}


def _sh_quoted(value: str) -> str:
    return "'" + value.replace("'", "'\"'\"'") + "'"


def _fish_quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _last_first(folders: str) -> list[str]:
    """In the order in which they are put in front."""
    return [f for f in folders.split(os.pathsep) if f][::-1]


_NOT_NEEDED = ("CPATH", "LIBRARY_PATH", "LD_LIBRARY_PATH")


def notes(shell: Mapping[str, str], saved: Saved) -> Iterator[Text]:
    """Why each variable is set, or is not, one line each."""
    ours = saved.ours()
    if not ours:
        yield Text("nothing is saved for this environment: no fix has set a variable")
        return
    for row in VARIABLES:
        if row.name in ours:
            note = _note(ours[row.name], shell.get(row.name))
            yield Text("{name}: {note} ({why})", name=row.name, note=note, why=row.why)
    absent = [name for name in _NOT_NEEDED if name not in ours]
    if "CUDA_HOME" in ours and absent:
        yield Text(
            "not set: {names}; CUDA_HOME and PATH are enough, and CPATH would come before the "
            "headers of any other nvcc",
            names=absent,
        )


def _note(one: SavedValue, shells: str | None) -> Text:
    if one.prepend:
        there = set((shells or "").split(os.pathsep))
        new = [f for f in (one.value or "").split(os.pathsep) if f and f not in there]
        return (
            Text("{folders} put in front", folders=new) if new else Text("contains the saved value")
        )
    kept = Text("unset") if one.value is None else Text("{value}", value=one.value)
    if one.stands(shells):
        if shells and shells != one.value:
            return Text(
                "{kept}, since this shell's {value} was judged bad", kept=kept, value=shells
            )
        return kept
    if shells is None:
        return Text("to be unset, but this shell does not have it")
    if not shells:
        return Text("this shell's own empty value wins; saved: {kept}", kept=kept)
    return Text("this shell's own value {value} wins; saved: {kept}", value=shells, kept=kept)
