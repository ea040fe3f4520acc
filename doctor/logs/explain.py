"""From the hits in a log to one explanation: which line is the root cause, and what only follows.

A log holds one start of a server, or several, of which the last one counts. In it the first cause
that stopped the server is the primary one; wrappers and consequences are symptoms; and where a
failure is told that no signature knows, that is said instead of a guess.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from doctor.exits import FINDINGS, HEALTHY, UNKNOWN
from doctor.logs.lines import (
    Line,
    Surroundings,
    enveloped,
    owner,
    split,
    tells_of_work,
    unwrapped,
)
from doctor.logs.prefix import without_unknown_prefix
from doctor.logs.regex import compiled
from doctor.logs.scan import Hit, Scanner
from doctor.logs.traceback import Block
from doctor.logs.values import derive
from doctor.model import Severity
from doctor.signatures import LEVELS, Level, Signature, squeezed

_LOOKS, _LOOK_EVERY = 50, 1 << 20
"""How often in an attempt a row may have the surroundings of a line looked at, and after that once
in how many bytes: a log that is full of what could be something must not take more time."""
_PLAIN = ("harmless", "start", "ready", "stop", "failure")
"""Roles of rows that give no values and are taken as they are."""
_BANNER = 12
"""Lines that a start prints before the one that is known as a start."""
_FOLLOWING = 100
"""Lines after a failure within which a process that works on says so."""
_FAILURES = 50
"""So many failures of an attempt are looked at as they come; of more, the last ones."""
_LAST = 16
_KEPT = 50
_COUNTED = 200
"""After so many harmless lines of a kind, further ones are counted by their literal alone."""
_EXCERPT = 400
_LINE_MOST = 16 << 10
"""Bytes of a line of a failure that are looked at."""

Verdict = Literal["explained", "unrecognised", "nothing-found"]
FindingRole = Literal["primary", "contributing", "symptom"]
EXITS: Mapping[Verdict, int] = {
    "explained": FINDINGS,
    "unrecognised": UNKNOWN,
    "nothing-found": HEALTHY,
}


@dataclass
class Found:
    """Where a row was found in an attempt, first and last (bytes into the log), and how often.

    `soft`: only at a level at which it is no failure. `went_on`: the process worked on after it.
    `served`: it answered requests after it.
    """

    row: Signature
    line: int
    offset: int
    excerpt: str = ""
    values: Mapping[str, str] = field(default_factory=dict)
    count: int = 1
    last: int = 0
    soft: bool = False
    went_on: bool = False
    served: bool = False

    @property
    def is_bad(self) -> bool:
        """Whether it tells of what stops a server."""
        return _is_bad(self.row) and not self.went_on


@dataclass(frozen=True)
class Unknown:
    """A failure that no signature knows. `line`: of `said`. `raised_in`, `called_from`: the frame
    at the bottom of it and the one above, where it has any."""

    line: int
    said: str
    raised_in: str | None
    called_from: str | None
    offset: int
    """Where all of it begins in the log, in bytes."""
    end: int
    bottom: tuple[int, int]
    """Where its innermost exception begins and ends."""
    process: str | None
    went_on: bool


@dataclass(frozen=True)
class LogFinding:
    """What one ailment came to in the log; `values` out of all its lines."""

    id: str
    role: FindingRole
    severity: Severity
    line: int
    excerpt: str
    message: str | None
    values: Mapping[str, str]
    count: int


@dataclass(frozen=True)
class Harmless:
    id: str
    line: int
    count: int


@dataclass(frozen=True)
class Earlier:
    """An earlier attempt that failed: `id` None where no signature knows why."""

    line: int
    id: str | None


@dataclass(frozen=True)
class Explanation:
    """`primary`: the id to look at first. `ready`: the server of the last attempt served."""

    verdict: Verdict
    primary: str | None
    findings: tuple[LogFinding, ...]
    unknown: Unknown | None
    harmless: tuple[Harmless, ...]
    earlier: tuple[Earlier, ...]
    attempts: int
    ready: bool
    lines: int

    @property
    def exit_code(self) -> int:
        return EXITS[self.verdict]


class Index:
    """Signatures made ready to be searched for, in one log after the other."""

    def __init__(self, rows: Iterable[Signature]) -> None:
        self.rows = tuple(rows)
        literals = [squeezed(row.literal).encode() for row in self.rows]
        numbers = {one: i for i, one in enumerate(dict.fromkeys(literals))}
        self._rows_of: list[list[int]] = [[] for _ in numbers]
        for row, literal in enumerate(literals):
            self._rows_of[numbers[literal]].append(row)
        self.scanner = Scanner(list(numbers))
        self.rows_of = functools.lru_cache(1 << 12)(self._rows)

    def _rows(self, literals: tuple[int, ...]) -> tuple[tuple[int, Signature], ...]:
        """The rows that have these literals, and their numbers; those of failures first, so that
        the others can explain them."""
        numbers = [number for literal in literals for number in self._rows_of[literal]]
        numbers.sort(key=lambda number: self.rows[number].role != "failure")
        return tuple((number, self.rows[number]) for number in numbers)

    def in_line(self, raw: bytes) -> Iterator[Signature]:
        """The rows whose literal is in a physical line."""
        yield from (row for _, row in self.rows_of(self.scanner.all(raw[:_LINE_MOST])))


def explain(blocks: Iterable[bytes], index: Index) -> Explanation:
    """Reads the log to its end, in memory of a fixed size and time linear in it."""
    return _Reading(index).read(blocks)


@dataclass
class _Attempt:
    """One start of a server, as far as it was read."""

    line: int = 1
    found: dict[int, Found] = field(default_factory=dict)
    survived: dict[int, Found] = field(default_factory=dict)
    unknown: list[Unknown] = field(default_factory=list)
    failures: int = 0
    ready: bool = False
    stopped: float = math.inf
    """From which byte on it was told to end."""

    @property
    def last_bad(self) -> int:
        """Where it last told of what stops a server; -1: nowhere."""
        bad = [f.last for f in self.found.values() if not f.soft and f.is_bad]
        return max([*bad, *(u.offset for u in self.unknown if not u.went_on)], default=-1)


def _is_bad(row: Signature) -> bool:
    return row.severity is Severity.ERROR and row.role in ("cause", "generic", "symptom")


class _Reading:
    """The state while a log is read."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._attempt = _Attempt()
        self._attempts = 0
        self._earlier: deque[Earlier] = deque(maxlen=20)
        self._harmless: dict[str, Found] = {}
        self._looks: dict[int, tuple[int, int]] = {}
        self._recent: deque[Hit] = deque(maxlen=_LAST)
        self._failure_until = -1

    def read(self, blocks: Iterable[bytes]) -> Explanation:
        for hit in self._index.scanner.hits(without_unknown_prefix(blocks)):
            around = Surroundings(hit)
            for number, row in self._index.rows_of(hit.literals):
                if row.role == "failure":
                    self._failure(row, hit, around)
                else:
                    self._take(number, row, hit, around)
        for hit in self._recent:
            self._look_at_failure(Block.at(hit))
        self._drop_unless_last()
        return self._conclude()

    def _take(self, number: int, row: Signature, hit: Hit, around: Surroundings) -> None:
        known = self._attempt.found.get(number)
        if row.role == "harmless":
            known = self._harmless.get(row.id)
            if known and known.count >= _COUNTED:
                known.count += 1
                return
        elif known and (not known.soft or _below(row.level, around.alone.level)):
            known.count += 1
            known.last = hit.offset
            self._knows(row, hit, around)
            return
        found = self._fit(number, row, hit, around)
        if found is None:
            return
        self._knows(row, hit, around)
        if row.role == "harmless" or found.soft:
            earlier = self._harmless.setdefault(row.id, found)
            if earlier is not found:
                earlier.count += 1
        if row.role == "start":
            self._begin(hit)
        elif row.role == "ready":
            self._serves()
        elif row.role == "stop":
            if self._attempt.last_bad < 0:
                self._attempt.stopped = min(self._attempt.stopped, hit.offset)
        elif row.role != "harmless":
            if known:
                found.count += known.count
            self._attempt.found[number] = found

    def _fit(self, number: int, row: Signature, hit: Hit, around: Surroundings) -> Found | None:
        """What the row makes of the line; None where its pattern or the surroundings say no."""
        lines = around
        looked = self._matching(number, row, hit, lines)
        if looked is None:
            return None
        line, values, far = looked
        found = Found(row, hit.line, hit.offset, line.text, values, last=hit.offset)
        if row.role in _PLAIN:
            return found
        if lines.is_code or ((row.near or row.unless) and not (far and _surrounded(row, lines))):
            return None
        if row.role != "symptom":
            if far:
                found.went_on, found.served = self._aftermath(lines.after, line.process)
            found.soft = _below(row.level, _level(line, lines, found.went_on))
        return found

    def _matching(
        self, number: int, row: Signature, hit: Hit, lines: Surroundings
    ) -> tuple[Line, Mapping[str, str], bool] | None:
        """(the line that fits the pattern, the values, whether it was looked at from all sides)."""
        if row.role in _PLAIN:
            values = row.values(lines.alone.text)
            if values is not None:
                return lines.alone, values, False
        far = self._may_look(number, hit.offset)
        for line in lines.own if far else (lines.alone,):
            values = row.values(line.text)
            if values is not None:
                return line, values, far
        return None

    def _may_look(self, number: int, offset: int) -> bool:
        """Whether a row may have the surroundings of one more line looked at, which takes time."""
        many, last = self._looks.get(number, (0, -_LOOK_EVERY))
        if many >= _LOOKS and offset - last < _LOOK_EVERY:
            return False
        self._looks[number] = many + 1, offset
        return True

    def _aftermath(self, after: Iterable[Line], process: str | None) -> tuple[bool, bool]:
        """Whether the process told of further work in these lines, and whether it answered
        requests. Where it is not known which one it was, it takes more to say so; and what a new
        start tells of is not its work."""
        needed = 4 if process is None else 2
        work: list[int] = []
        served = False
        for number, line in enumerate(after):
            if served and len(work) >= needed and number > work[needed - 1] + _BANNER:
                break
            if not tells_of_work(line):
                continue
            roles = {row.role for row in self._index.in_line(line.text.encode(errors="replace"))}
            if "start" in roles:
                work = [one for one in work if one < number - _BANNER]
                break
            served = served or bool(_SERVED.search(line.text))
            if "harmless" not in roles and process in (None, line.process):
                work.append(number)
        return len(work) >= needed, served and bool(work)

    def _knows(self, row: Signature, hit: Hit, around: Surroundings) -> None:
        """Strikes out the failures that this line explains: a cause anywhere in one; a wrapper or a
        harmless line only at the bottom, for above it they say nothing of what they wrap, and only
        of the same process."""
        if not self._attempt.unknown:
            return
        whole = row.role in ("cause", "generic", "request")
        process = around.alone.process
        self._attempt.unknown = [
            u
            for u in self._attempt.unknown
            if not _within(hit.offset, (u.offset, u.end) if whole else u.bottom)
            or not (whole or process == u.process)
        ]

    def _begin(self, hit: Hit) -> None:
        """A server begins to start. What was told since the last failure, or when there was none,
        is already of this start: some warnings come before its banner."""
        attempt, last_bad = self._attempt, self._attempt.last_bad
        if last_bad >= 0 or attempt.ready or not self._attempts:  # else its banner's second line
            self._attempts += 1
        fresh = _Attempt(hit.line)
        if last_bad >= 0:
            told = self._judge(attempt)
            if told.verdict != "nothing-found":
                line = told.unknown.line if told.unknown else told.findings[0].line
                self._earlier.append(Earlier(line, told.primary))
        if not attempt.ready:
            fresh.found = {
                n: f for n, f in attempt.found.items() if f.last > last_bad and not f.is_bad
            }
        self._attempt = fresh
        self._looks.clear()

    def _serves(self) -> None:
        attempt = self._attempt
        attempt.ready = True
        attempt.survived.update((n, f) for n, f in attempt.found.items() if _is_bad(f.row))
        attempt.found = {}
        attempt.unknown = []
        self._recent.clear()
        self._looks.clear()

    def _failure(self, row: Signature, hit: Hit, around: Surroundings) -> None:
        """Notes that something failed, for the case that no row knows it."""
        if hit.offset < self._failure_until:
            return
        if self._matching(-1, row, hit, around) is None:
            return
        self._attempt.failures += 1
        if self._attempt.failures > _FAILURES:
            self._recent.append(hit)
        elif not around.is_code:
            self._look_at_failure(Block.at(hit), around.before)

    def _look_at_failure(self, block: Block, before: Sequence[Line] = ()) -> None:
        failure, lines = block.failure, block.lines
        following = lines[failure.length : failure.length + _FOLLOWING]
        after, _ = self._aftermath(following, lines[0].process)
        self._failure_until = block.place(failure.length)
        if _below("error", lines[0].level or (owner(before) if after else None)):
            return
        if before and self._is_told(before[-1].text):
            return
        noted = Unknown(
            block.line(failure.line),
            failure.said[:_EXCERPT],
            failure.raised_in,
            failure.called_from,
            block.place(0),
            self._failure_until,
            (block.place(failure.bottom[0]), block.place(failure.bottom[1])),
            lines[0].process,
            after,
        )
        if len(self._attempt.unknown) < _KEPT:
            self._attempt.unknown.append(noted)

    def _named(self, unknown: Unknown) -> Found | None:
        """A row that fits what was put together of a failure, where it fits no line of it."""
        for _, row in self._index.rows_of(self._index.scanner.all(unknown.said.encode())):
            if row.role in ("cause", "generic", "request") and not (row.near or row.unless):
                values = row.values(unknown.said)
                if values is not None:
                    at = unknown.offset
                    found = Found(row, unknown.line, at, unknown.said, values, last=at)
                    return dataclasses.replace(found, went_on=unknown.went_on)
        return None

    def _is_told(self, header: str) -> bool:
        """Whether the line above a traceback says what it is about, and a row knows that."""
        return any(
            row.role in ("cause", "request") and row.values(header) is not None
            for row in self._index.in_line(header.encode(errors="replace"))
        )

    def _drop_unless_last(self) -> None:
        """Hangs: they count only where the log ends with them."""
        found, scanner = self._attempt.found, self._index.scanner
        for number, one in list(found.items()):
            if not one.row.last:
                continue
            near = one.last >= scanner.base
            rest = unwrapped(split(scanner.tail[one.last - scanner.base :])) if near else []
            if not near or any(self._tells_of_work(text) for _, text in rest[1:]):
                del found[number]

    def _tells_of_work(self, text: str) -> bool:
        if not tells_of_work(enveloped(text)):
            return False
        rows = self._index.in_line(text.encode())
        return not any(r.last or r.role in ("symptom", "harmless") for r in rows)

    def _conclude(self) -> Explanation:
        told = self._judge(self._attempt)
        harmless = (Harmless(i, f.line, f.count) for i, f in self._harmless.items())
        return dataclasses.replace(
            told,
            harmless=tuple(sorted(harmless, key=lambda h: h.line)),
            earlier=tuple(self._earlier),
            attempts=max(1, self._attempts),
            lines=self._index.scanner.lines,
        )

    def _judge(self, attempt: _Attempt) -> Explanation:
        hard = [f for f in attempt.found.values() if not f.soft and f.count >= f.row.times]
        hard = [f for f in hard if f.row.role != "symptom" or f.offset < attempt.stopped]
        survived = [f for f in hard if f.served and f.row.role in ("cause", "generic")]
        unknowns = []
        for failure in attempt.unknown:
            if named := self._named(failure):
                hard.append(named)
            elif failure.offset < attempt.stopped:
                unknowns.append(failure)
        hard = sorted((f for f in hard if f not in survived), key=lambda f: f.offset)
        failures = [u for u in unknowns if not u.went_on]
        stops = [f for f in hard if f.row.role in ("cause", "generic") and not f.row.last]
        if failures or any(_is_bad(f.row) for f in stops):
            hard = [f for f in hard if not f.row.last]  # it does not hang, it fails
        covered: set[str] = set()
        for one in hard:  # of two that explain each other, the first one does
            covered |= set(one.row.over) if one.row.id not in covered else set()
        told = [f for f in hard if f.row.id not in covered]
        causes = [f for f in told if f.row.role == "cause" and _is_bad(f.row)]
        generic = [f for f in told if f.row.role == "generic"]
        symptoms = [f for f in told if f.row.role == "symptom"]
        if any(_is_bad(f.row) for f in symptoms):
            failures = unknowns
        unknown = failures[0] if failures else None
        stopped = [f for f in causes if not f.went_on]
        primary: Found | None = None
        if causes and (stopped or unknown is None):
            primary = (stopped or causes)[0]
        elif generic and (unknown is None or generic[0].offset < unknown.offset):
            primary = generic[0]
        elif unknown is None:
            requests = [f for f in told if f.row.role == "request"]
            hints = [f for f in told if f.row.role == "cause" and not _is_bad(f.row)]
            serious = [f for f in symptoms if not attempt.ready or _is_bad(f.row)]
            primary = next(iter([*requests, *([] if attempt.ready else hints), *serious]), None)
        if primary:
            unknown = None
        verdict: Verdict = (
            "explained" if primary else "unrecognised" if unknown else "nothing-found"
        )
        shown = hard if verdict != "nothing-found" else [f for f in hard if f.row.role != "symptom"]
        findings = _findings(primary, shown, covered, [*attempt.survived.values(), *survived])
        return Explanation(
            verdict,
            primary.row.id if primary else None,
            findings,
            unknown,
            (),
            (),
            1,
            attempt.ready,
            0,
        )


def _within(offset: int, span: tuple[int, int]) -> bool:
    return span[0] <= offset < span[1]


def _surrounded(row: Signature, lines: Surroundings) -> bool:
    text = lines.text()
    if row.near and compiled(row.near)(text) is None:
        return False
    return not (row.unless and compiled(row.unless)(text) is not None)


def _level(line: Line, lines: Surroundings, after: bool) -> Level | None:
    """That of the line's record; a line without one belongs to a warning before it only where the
    process worked on."""
    return line.level or (owner(lines.before) if after else None)


def _below(least: Level, level: Level | None) -> bool:
    return level is not None and LEVELS.index(level) < LEVELS.index(least)


def _findings(
    primary: Found | None,
    hard: Iterable[Found],
    covered: Collection[str],
    survived: Iterable[Found],
) -> tuple[LogFinding, ...]:
    """One finding per ailment: the primary one, what contributed, the symptoms."""
    by_id: dict[str, list[Found]] = {}
    for one in hard:
        by_id.setdefault(one.row.id, []).append(one)
    later = {f.row.id: [f] for f in survived if not f.soft and f.row.role in ("cause", "generic")}
    made = [_finding(i, rows, primary, i in covered, False) for i, rows in by_id.items()]
    made += [_finding(i, rows, primary, False, True) for i, rows in later.items() if i not in by_id]
    order = {"primary": 0, "contributing": 1, "symptom": 2}
    return tuple(
        sorted(
            made, key=lambda f: (not (primary and f.id == primary.row.id), order[f.role], f.line)
        )
    )


def _finding(
    id: str, rows: list[Found], primary: Found | None, covered: bool, survived: bool
) -> LogFinding:
    first = rows[0]
    is_primary = primary is not None and id == primary.row.id
    symptom = covered or all(f.row.role == "symptom" for f in rows)
    role: FindingRole = "symptom" if symptom else "primary" if is_primary else "contributing"
    values: dict[str, str] = {}
    for one in rows:
        values = {**one.values, **values}
    values = derive(id, values)
    told = next((f for f in rows if f.row.message and _has(f.row.message, values)), None)
    best = told or max(rows, key=lambda f: len(f.values))
    return LogFinding(
        id,
        role,
        Severity.WARNING if survived else first.row.severity,
        best.line,
        best.excerpt[:_EXCERPT],
        fill(told.row.message, values) if told and told.row.message else None,
        values,
        sum(f.count for f in rows),
    )


_SERVED = re.compile(r'"POST \S+ HTTP/1\.[01]" 2\d\d')
_NAME = re.compile(r"\{(\w+)\}")


def _has(template: str, values: Mapping[str, str]) -> bool:
    return set(_NAME.findall(template)) <= set(values)


def fill(template: str, values: Mapping[str, str]) -> str | None:
    """The template with its values; None where the log did not give one of them."""
    if not _has(template, values):
        return None
    return _NAME.sub(lambda found: values[found.group(1)], template)
