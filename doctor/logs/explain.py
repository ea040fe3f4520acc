"""From the hits in a log to one explanation: which line is the root cause, and what only follows.

A log holds one start of a server, or several, of which the last one counts. In it the first cause
that stopped the server is the primary one; wrappers and consequences are symptoms; and where a
failure is told that no signature knows, that is said instead of a guess.
"""

from __future__ import annotations

import dataclasses
import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from doctor.exits import FINDINGS, HEALTHY, UNKNOWN
from doctor.logs.lines import Line, Surroundings, clean, owner, split, went_on
from doctor.logs.regex import compiled
from doctor.logs.scan import AHEAD, Hit, Scanner
from doctor.logs.traceback import innermost
from doctor.logs.values import derive
from doctor.model import Severity
from doctor.signatures import LEVELS, Level, Signature, squeezed

_LOOKED_AT = 300
"""How often a row's surroundings, or the exceptions of an attempt, are looked at; a log that is
full of them must not cost more."""
_COUNTED = 1000
"""After so many harmless lines of a kind, further ones are counted by their literal alone."""
_EXCERPT = 400
_ONLY_INSIDE = ("symptom", "harmless")

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


@dataclass(frozen=True)
class Unknown:
    """A failure that no signature knows. `line`: of `said`. `raised_in`, `called_from`: the frame
    at the bottom of it and the one above, where it has any."""

    line: int
    said: str
    raised_in: str | None
    called_from: str | None
    offset: int
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


def explain(blocks: Iterable[bytes], rows: Iterable[Signature]) -> Explanation:
    """Reads the log to its end, in memory of a fixed size and time linear in it."""
    return _Reading(tuple(rows)).read(blocks)


@dataclass
class _Attempt:
    """One start of a server, as far as it was read."""

    line: int = 1
    found: dict[int, Found] = field(default_factory=dict)
    survived: dict[int, Found] = field(default_factory=dict)
    unknown: list[Unknown] = field(default_factory=list)
    looked_at: int = 0
    ready: bool = False

    @property
    def last_bad(self) -> int:
        """Where it last told of what stops a server; -1: nowhere."""
        bad = [f.last for f in self.found.values() if not f.soft and _is_bad(f.row)]
        return max([*bad, *(u.offset for u in self.unknown if not u.went_on)], default=-1)


def _is_bad(row: Signature) -> bool:
    return row.severity is Severity.ERROR and row.role in ("cause", "generic", "symptom")


class _Reading:
    """The state while a log is read."""

    def __init__(self, rows: tuple[Signature, ...]) -> None:
        self._rows = rows
        literals = list(dict.fromkeys(squeezed(r.literal).encode() for r in rows))
        numbers = {one: i for i, one in enumerate(literals)}
        self._rows_of: list[list[int]] = [[] for _ in literals]
        for i, row in enumerate(rows):
            self._rows_of[numbers[squeezed(row.literal).encode()]].append(i)
        self._scanner = Scanner(literals)
        self._attempt = _Attempt()
        self._attempts = 0
        self._earlier: deque[Earlier] = deque(maxlen=20)
        self._harmless: dict[str, Found] = {}
        self._looked_at: dict[int, int] = {}
        self._recent: deque[tuple[int, int, bytes]] = deque(maxlen=4)
        self._failure_until = -1

    def read(self, blocks: Iterable[bytes]) -> Explanation:
        for hit in self._scanner.hits(blocks):
            around = _Late(hit)
            for literal in hit.literals:
                for number in self._rows_of[literal]:
                    self._take(number, hit, around)
        for line, offset, data in self._recent:
            self._look_at_failure(line, offset, data)
        self._drop_unless_last()
        return self._conclude()

    def _take(self, number: int, hit: Hit, around: _Late) -> None:
        row = self._rows[number]
        if row.role == "failure":
            self._failure(row, hit, around)
            return
        known = self._attempt.found.get(number)
        if row.role == "harmless":
            known = self._harmless.get(row.id)
            if known and known.count >= _COUNTED:
                known.count += 1
                return
        elif known and not known.soft:
            known.count += 1
            known.last = hit.offset
            return
        found = self._fit(number, row, hit, around)
        if found is None:
            return
        if row.role == "harmless" or found.soft:
            earlier = self._harmless.setdefault(row.id, found)
            if earlier is not found:
                earlier.count += 1
        if row.role == "start":
            self._begin(hit)
        elif row.role == "ready":
            self._serves()
        elif row.role != "harmless":
            if known:
                found.count += known.count
            self._attempt.found[number] = found

    def _fit(self, number: int, row: Signature, hit: Hit, around: _Late) -> Found | None:
        """What the row makes of the line; None where its pattern or the surroundings say no."""
        match: Mapping[str, str] | None = {}
        for line in around.lines.own:
            match = compiled(row.pattern)(line.text) if row.pattern else {}
            if match is not None:
                break
        else:
            return None
        if row.near or row.unless:
            looked = self._looked_at[number] = self._looked_at.get(number, 0) + 1
            if looked > _LOOKED_AT or not _surrounded(row, around.lines):
                return None
        found = Found(row, hit.line, hit.offset, line.text, match or {}, last=hit.offset)
        if row.role in ("cause", "generic", "request"):
            found.went_on = went_on(around.lines.after, line.process)
            found.soft = _below(row.level, _level(line, around.lines, found.went_on))
        return found

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
                n: f for n, f in attempt.found.items() if f.last > last_bad and not _is_bad(f.row)
            }
        self._attempt = fresh
        self._looked_at.clear()

    def _serves(self) -> None:
        attempt = self._attempt
        attempt.ready = True
        attempt.survived.update(attempt.found)
        attempt.found = {}
        attempt.unknown = []
        self._recent.clear()

    def _failure(self, row: Signature, hit: Hit, around: _Late) -> None:
        """Notes that something failed, for the case that no row knows it."""
        if hit.offset < self._failure_until:
            return
        line = around.lines.own[0]
        if row.pattern and compiled(row.pattern)(line.text) is None:
            return
        data = hit.window[hit.start : hit.start + AHEAD]
        self._attempt.looked_at += 1
        if self._attempt.looked_at > _LOOKED_AT:
            self._recent.append((hit.line, hit.base + hit.start, data))
            return
        level = _level(line, around.lines, went_on(around.lines.after, line.process))
        if _below("error", level):
            return
        self._look_at_failure(hit.line, hit.base + hit.start, data)

    def _look_at_failure(self, line: int, offset: int, data: bytes) -> None:
        physical = split(data)
        lines = [clean(raw) for raw in physical]
        failure = innermost(lines)
        length = sum(len(raw) + 1 for raw in physical[: failure.length])
        self._failure_until = offset + length
        if self._is_known(physical[: failure.length], lines, failure.span):
            return
        after = went_on(lines[failure.length :], lines[0].process)
        noted = Unknown(
            line + failure.line,
            failure.said[:_EXCERPT],
            failure.raised_in,
            failure.called_from,
            offset,
            after,
        )
        kept = [u for u in self._attempt.unknown if not u.went_on]
        if not after and len(kept) < 50:
            kept.append(noted)
        self._attempt.unknown = kept

    def _is_known(self, physical: list[bytes], lines: list[Line], span: tuple[int, int]) -> bool:
        """Whether a row knows the failure: a cause anywhere in it; a wrapper or a harmless line
        only at the bottom, for above it they say nothing about what they wrap."""
        for number, raw in enumerate(physical):
            for literal in self._scanner.all(raw[: 1 << 14]):
                for row in (self._rows[i] for i in self._rows_of[literal]):
                    inner = span[0] <= number < span[1]
                    tells = ("cause", "generic", "request", *(_ONLY_INSIDE if inner else ()))
                    fits = row.pattern is None or compiled(row.pattern)(lines[number].text)
                    if row.role in tells and fits not in (None, False):
                        return True
        return False

    def _drop_unless_last(self) -> None:
        """Hangs: they count only where the log ends with them."""
        found, base = self._attempt.found, self._scanner.base
        for number, one in list(found.items()):
            if not one.row.last:
                continue
            rest = self._scanner.tail[max(0, one.last - base) :] if one.last >= base else None
            if rest is None or any(self._tells_of_work(raw) for raw in split(rest)[1:]):
                del found[number]

    def _tells_of_work(self, raw: bytes) -> bool:
        if not went_on([clean(raw)], None):
            return False
        rows = (self._rows[i] for literal in self._scanner.all(raw) for i in self._rows_of[literal])
        return not any(r.last or r.role in ("symptom", "harmless") for r in rows)

    def _conclude(self) -> Explanation:
        told = self._judge(self._attempt)
        harmless = (Harmless(i, f.line, f.count) for i, f in self._harmless.items())
        return dataclasses.replace(
            told,
            harmless=tuple(sorted(harmless, key=lambda h: h.line)),
            earlier=tuple(self._earlier),
            attempts=max(1, self._attempts),
            lines=self._scanner.lines,
        )

    def _judge(self, attempt: _Attempt) -> Explanation:
        hard = [f for f in attempt.found.values() if not f.soft and f.count >= f.row.times]
        hard.sort(key=lambda f: f.offset)
        covered = {i for f in hard for i in f.row.over}
        errors = [f for f in hard if f.row.severity is Severity.ERROR and f.row.id not in covered]
        causes = [f for f in errors if f.row.role == "cause"]
        generic = [f for f in errors if f.row.role == "generic"]
        symptoms = [f for f in hard if f.row.role == "symptom"]
        failed = any(f.row.severity is Severity.ERROR for f in symptoms)
        unknown = next((u for u in attempt.unknown if failed or not u.went_on), None)
        stopped = [f for f in causes if not f.went_on]
        primary: Found | None = None
        if causes and (stopped or unknown is None):
            primary = (stopped or causes)[0]
        elif generic and (unknown is None or generic[0].offset < unknown.offset):
            primary = generic[0]
        elif unknown is None:
            requests = [f for f in errors if f.row.role == "request"]
            hints = [
                f for f in hard if f.row.severity is not Severity.ERROR and f.row.role == "cause"
            ]
            serious = [f for f in symptoms if not attempt.ready or f.row.severity is Severity.ERROR]
            if attempt.ready:
                hints = []
            primary = next(iter([*requests, *hints, *serious]), None)
        if primary:
            unknown = None
        verdict: Verdict = (
            "explained" if primary else "unrecognised" if unknown else "nothing-found"
        )
        shown = hard if verdict != "nothing-found" else [f for f in hard if f.row.role != "symptom"]
        findings = _findings(primary, shown, attempt.survived.values())
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


class _Late:
    """The surroundings of a hit, made when a row asks for them."""

    def __init__(self, hit: Hit) -> None:
        self._hit = hit
        self._lines: Surroundings | None = None

    @property
    def lines(self) -> Surroundings:
        if self._lines is None:
            self._lines = Surroundings(self._hit)
        return self._lines


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
    primary: Found | None, hard: Iterable[Found], survived: Iterable[Found]
) -> tuple[LogFinding, ...]:
    """One finding per ailment: the primary one, what contributed, the symptoms."""
    by_id: dict[str, list[Found]] = {}
    for one in hard:
        by_id.setdefault(one.row.id, []).append(one)
    later = {f.row.id: [f] for f in survived if not f.soft and f.row.role in ("cause", "generic")}
    made = [_finding(i, rows, primary, False) for i, rows in by_id.items()]
    made += [_finding(i, rows, primary, True) for i, rows in later.items() if i not in by_id]
    order = {"primary": 0, "contributing": 1, "symptom": 2}
    return tuple(
        sorted(
            made, key=lambda f: (not (primary and f.id == primary.row.id), order[f.role], f.line)
        )
    )


def _finding(id: str, rows: list[Found], primary: Found | None, survived: bool) -> LogFinding:
    first = rows[0]
    is_primary = primary is not None and id == primary.row.id
    symptom = all(f.row.role == "symptom" for f in rows)
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


_NAME = re.compile(r"\{(\w+)\}")


def _has(template: str, values: Mapping[str, str]) -> bool:
    return set(_NAME.findall(template)) <= set(values)


def fill(template: str, values: Mapping[str, str]) -> str | None:
    """The template with its values; None where the log did not give one of them."""
    if not _has(template, values):
        return None
    return _NAME.sub(lambda found: values[found.group(1)], template)
