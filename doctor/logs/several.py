"""Several logs of one server: of ranks, of nodes, and in the parts that a rotation made of them."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from doctor.logs.explain import Earlier, Explanation, Harmless
from doctor.logs.found import Unknown
from doctor.logs.judge import LogFinding, LogVerdict
from doctor.logs.source import Log, LogError
from doctor.model import Text, os_reason

_MOST = 1000
"""Files of a folder that are read."""
_PART = re.compile(
    r"(?P<base>.+?)(?:[.-](?P<date>\d{4}-?\d\d-?\d\d(?:[T_-]?\d{2,6})?)|\.(?P<number>\d{1,4}))"
    r"(?:\.(?:gz|xz))?$"
)
"""A part that logrotate, docker or a logging library set aside: by number the newest is the first,
by date the last."""


class Whole:
    """A log with the parts that were set aside of it, the oldest first. `logs`: those that were
    read; whole once `blocks` has ended."""

    def __init__(self, names: Sequence[str]) -> None:
        self.logs = [Log(name) for name in names]
        self._ends: list[int] = []

    @property
    def name(self) -> str:
        return self.logs[-1].name

    def blocks(self) -> Iterator[bytes]:
        """All parts, one after the other. Raises LogError where there is no log."""
        lines = 0
        for log in self.logs:
            last = b"\n"
            for block in log.blocks():
                lines += block.count(b"\n")
                last = block[-1:] or last
                yield block
            if last != b"\n" and log is not self.logs[-1]:
                lines += 1
                yield b"\n"
            self._ends.append(lines)

    def place(self, line: int) -> tuple[str, int]:
        """The part that a line of the whole is in, and its number there."""
        before = 0
        for log, end in zip(self.logs[:-1], self._ends, strict=False):
            if line <= end:
                return log.name, line - before
            before = end
        return self.name, line - before


def wholes(names: Iterable[str]) -> list[Whole]:
    """The logs that these files and folders hold; the parts of one count as one. Raises LogError
    for a folder without a file, with too many, or that cannot be listed."""
    parts: dict[str, list[tuple[tuple[int, str], str]]] = {}
    for name in names:
        for file in _files(name) if name != "-" and os.path.isdir(name) else (name,):  # noqa: PTH112
            base, age = _age(file)
            parts.setdefault(base, []).append((age, file))
    return [Whole([file for _, file in sorted(set(one))]) for one in parts.values()]


def _files(folder: str) -> list[str]:
    """The files below a folder; what a link leads to is none of them. Raises LogError where not all
    of it can be listed: what is not read could be what failed."""

    def refuse(error: OSError) -> NoReturn:
        raise LogError(Text("{file}: {why}", file=error.filename, why=os_reason(error)))

    found: list[str] = []
    for at, folders, names in os.walk(folder, onerror=refuse):
        folders.sort()
        paths = [Path(at, name) for name in sorted(names)]
        found += [str(path) for path in paths if path.is_file() and not path.is_symlink()]
        if len(found) > _MOST:
            raise LogError(
                Text(
                    "{folder} holds more than {most} files: name the logs",
                    folder=folder,
                    most=_MOST,
                )
            )
    if not found:
        raise LogError(Text("{folder} holds no file: name the server's log", folder=folder))
    return found


def _age(name: str) -> tuple[str, tuple[int, str]]:
    """(the log that a file is a part of, what sorts its parts with the oldest first)."""
    found = _PART.fullmatch(name)
    if found is None:
        return name.removesuffix(".gz").removesuffix(".xz"), (1, "")
    if found["number"]:
        return found["base"], (-int(found["number"]), "")
    return found["base"], (0, found["date"])


_InALog = TypeVar("_InALog", LogFinding, Unknown, Harmless, Earlier)


def with_place(told: Explanation, whole: Whole) -> Explanation:
    """The same, each line with the file that it is in."""

    def there(one: _InALog) -> _InALog:
        log, line = whole.place(one.line)
        return dataclasses.replace(one, log=log, line=line)

    return dataclasses.replace(
        told,
        findings=tuple(map(there, told.findings)),
        unknown=told.unknown and there(told.unknown),
        harmless=tuple(map(there, told.harmless)),
        earlier=tuple(map(there, told.earlier)),
    )


_RANK: dict[LogVerdict, int] = {
    "explained": 0,
    "unrecognised": 1,
    "symptom": 3,
    "too-repetitive": 4,
    "nothing-found": 5,
}


def together(told: Sequence[Explanation]) -> Explanation:
    """One explanation of all, of which the first cause over all logs is the primary one."""
    first = min(told, key=_order)
    by_id: dict[str, LogFinding] = {}
    for one in sorted(told, key=lambda one: one is not first):
        for finding in one.findings:
            role = finding.role
            if role == "primary" and finding.id != first.primary:
                role = "contributing"
            known = by_id.setdefault(finding.id, dataclasses.replace(finding, role=role))
            if known.log != finding.log and finding.log not in known.also:
                by_id[finding.id] = dataclasses.replace(known, also=(*known.also, finding.log))
    return dataclasses.replace(
        first,
        findings=tuple(by_id.values()),
        harmless=_counted(h for one in told for h in one.harmless),
        earlier=tuple(e for one in told for e in one.earlier),
        attempts=max(one.attempts for one in told),
        ready=any(one.ready for one in told),
        lines=sum(one.lines for one in told),
        skimmed=sum(one.skimmed for one in told),
    )


def _order(told: Explanation) -> tuple[int, str]:
    """What says most stands first; of several, what came first, where their lines say when."""
    rank = _RANK[told.verdict]
    if told.verdict == "explained" and not told.certain:
        rank = 1  # any other cause says more, be it known or not
    if told.verdict == "unrecognised" and told.unknown and told.unknown.logged:
        rank = 2
    return rank, told.time or "~"


def _counted(harmless: Iterable[Harmless]) -> tuple[Harmless, ...]:
    made: dict[str, Harmless] = {}
    for one in harmless:
        known = made.get(one.id)
        made[one.id] = dataclasses.replace(known, count=known.count + one.count) if known else one
    return tuple(made.values())
