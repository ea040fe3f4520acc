"""Which of the things found in a start of a server is the root cause, and what only follows."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from doctor.logs.found import Attempt, Found, Unknown, is_bad
from doctor.logs.index import SignatureIndex
from doctor.logs.lines import HEADER
from doctor.logs.values import derive
from doctor.model import Severity
from doctor.redact import beginning
from doctor.signatures import CAUSES, EXPLAINING

_EXCERPT = 400

LogVerdict = Literal["explained", "unrecognised", "symptom", "nothing-found", "too-repetitive"]
"""symptom: it failed, and the log holds only what follows from the cause. too-repetitive: nothing
was found, but not each line that could be something was looked at."""
FindingRole = Literal["primary", "contributing", "symptom"]


@dataclass(frozen=True)
class LogFinding:
    """What one ailment came to in the log; `values` out of all its lines. `log`: the name of the
    one that `line` is in, where that was told; `also`: others that say the same."""

    id: str
    role: FindingRole
    severity: Severity
    line: int
    excerpt: str
    message: str | None
    values: Mapping[str, str]
    log: str = ""
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class JudgedAttempt:
    """`primary`: what to look at first. `unknown`: the failure, where no signature knows it.
    `symptom`: what only follows, where nothing says more. `found`: all that counts, of which the
    ailments `covered` are explained by others; `survived`: what did not stop the server."""

    verdict: LogVerdict
    primary: Found | None
    unknown: Unknown | None
    symptom: Found | None
    found: Sequence[Found]
    covered: Collection[str]
    survived: Sequence[Found]

    @property
    def _telling(self) -> Found | Unknown | None:
        return self.primary or self.unknown or self.symptom

    @property
    def id(self) -> str | None:
        """Of what tells most; None where no signature knows that."""
        told = self._telling
        return told.row.id if isinstance(told, Found) else None

    @property
    def line(self) -> int:
        """The number of the line that tells most; 0 where nothing does."""
        return self._telling.line if self._telling else 0

    @property
    def time(self) -> str | None:
        """When that was, as far as the log says."""
        return self._telling.time if self._telling else None

    @property
    def certain(self) -> bool:
        """Whether the primary one is a cause by itself."""
        return self.primary is not None and self.primary.row.role == "cause"

    def findings(self, printed: Mapping[int, str]) -> tuple[LogFinding, ...]:
        """One per ailment, the primary one first; `printed` lines, by number, are quoted so."""
        made = _findings(self.primary, self.found, self.covered, self.survived)
        return tuple(
            dataclasses.replace(f, excerpt=printed[f.line]) if f.line in printed else f
            for f in made
        )

    def quoted(self, printed: Mapping[int, str]) -> Unknown | None:
        """The failure without a name; a `printed` line, by number, is quoted so."""
        unknown = self.unknown
        if unknown and unknown.line in printed:
            return dataclasses.replace(unknown, said=printed[unknown.line])
        return unknown


def judge_attempt(attempt: Attempt, index: SignatureIndex) -> JudgedAttempt:
    """The first cause that stopped the server is the primary one. A failure that no row knows is
    that instead of a row that only says what kind of failure it was, or that the server survived.
    """
    hard, survived, unknowns = _counting(attempt, index)
    failures = [u for u in unknowns if not u.went_on or u.refused]
    if failures or any(is_bad(f.row) for f in hard if f.row.role in CAUSES and not f.row.last):
        hard = [f for f in hard if not f.row.last]  # it does not hang, it fails
    covered = _covered(hard)
    told = [f for f in hard if f.row.id not in covered]
    symptoms = [f for f in told if f.row.role == "symptom"]
    if any(is_bad(f.row) for f in symptoms):
        known = {f.line for f in told if f.row.role in CAUSES}
        payloads = [f for f in symptoms if f.values.get("payload") and f.line not in known]
        failures = [*unknowns, *map(_unnamed, payloads)]
    # Of a line that only its level makes a failure of, anything else says more.
    unknown = min(failures, key=lambda u: (u.logged, u.offset), default=None)
    primary = _primary(told, unknown, attempt.ready)
    if primary:
        unknown = None
    symptom = next((f for f in symptoms if not attempt.ready or is_bad(f.row)), None)
    verdict: LogVerdict = "nothing-found"
    if primary or unknown or symptom:
        verdict = "explained" if primary else "unrecognised" if unknown else "symptom"
    else:
        hard = [f for f in hard if f.row.role != "symptom"]
    later = [*attempt.survived.values(), *survived]
    return JudgedAttempt(verdict, primary, unknown, symptom, hard, covered, later)


def _counting(
    attempt: Attempt, index: SignatureIndex
) -> tuple[list[Found], list[Found], list[Unknown]]:
    """(what was found and counts, in the order of the log; what the server survived of it; the
    failures without a name). On what is not CUDA the faults of CUDA's libraries are no causes: one
    that stopped the server there is a failure without a name."""
    known = [f for f in attempt.found.values() if not f.soft and f.count >= f.row.times]
    foreign = [f for f in known if f.row.of == "cuda" and attempt.elsewhere]
    hard = [f for f in known if f not in foreign]
    hard = [f for f in hard if f.row.role != "symptom" or f.offset < attempt.stopped]
    survived = [f for f in hard if f.served and f.row.role in CAUSES]
    unknowns = []
    for failure in [*attempt.unknown, *(_unnamed(f) for f in foreign if not f.warned)]:
        if named := _named(index, failure, attempt.elsewhere):
            hard.append(named)
        elif failure.offset < attempt.stopped and not (hard and HEADER in failure.said):
            unknowns.append(failure)
    hard = sorted((f for f in hard if f not in survived), key=lambda f: f.offset)
    return hard, survived, unknowns


def _covered(hard: Iterable[Found]) -> set[str]:
    """The ids that others explain; of two that explain each other, the first one does."""
    covered: set[str] = set()
    for one in hard:
        covered |= set(one.row.over) if one.row.id not in covered else set()
    return covered


def _primary(told: Sequence[Found], unknown: Unknown | None, ready: bool) -> Found | None:
    """What to mend first; None where the failure without a name is that, or nothing is."""
    causes = [f for f in told if f.row.role == "cause" and is_bad(f.row)]
    generic = next((f for f in told if f.row.role == "generic"), None)
    stopped = [f for f in causes if not f.went_on]
    weak = unknown is None or unknown.logged
    if causes and (stopped or weak):
        return (stopped or causes)[0]
    if generic and (unknown is None or weak or generic.offset < unknown.offset):
        return generic
    if unknown is not None:
        return None
    requests = [f for f in told if f.row.role == "request"]
    hints = [f for f in told if f.row.role == "cause" and not is_bad(f.row) and not ready]
    return next(iter([*requests, *hints]), None)


def _unnamed(found: Found) -> Unknown:
    """The failure that a row tells of, told without its name: what the row wraps, or its line."""
    said = beginning(found.values.get("payload") or found.excerpt.strip(), _EXCERPT)
    at = found.offset
    return Unknown(
        found.line,
        said,
        None,
        None,
        None,
        at,
        at + 1,
        (at, at + 1),
        None,
        found.went_on,
        time=found.time,
    )


def _named(index: SignatureIndex, unknown: Unknown, elsewhere: bool) -> Found | None:
    """A row that fits what was put together of a failure, where it fits no line of it."""
    for _, row in index.rows_of(index.scanner.all(unknown.said.encode(errors="replace"))):
        if elsewhere and row.of == "cuda":
            continue
        if row.role in EXPLAINING and not (row.near or row.unless):
            values = row.values(unknown.said)
            if values is not None:
                at = unknown.offset
                return Found(
                    row,
                    unknown.line,
                    at,
                    unknown.said,
                    values,
                    last=at,
                    went_on=unknown.went_on,
                    time=unknown.time,
                )
    return None


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
    later = {f.row.id: [f] for f in survived if not f.soft and f.row.role in CAUSES}
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
    many = sum(f.count for f in rows)
    if first.row.role == "request":
        values["times"] = "a request" if many == 1 else f"{many} requests"
    values = derive(id, values)
    told = next((f for f in rows if f.row.message and _has(f.row.message, values)), None)
    best = told or max(rows, key=lambda f: len(f.values))
    return LogFinding(
        id,
        role,
        Severity.WARNING if survived else first.row.severity,
        best.line,
        beginning(best.excerpt, _EXCERPT),
        fill(told.row.message, values) if told and told.row.message else None,
        values,
    )


_NAME = re.compile(r"\{(\w+)\}")


def _has(template: str, values: Mapping[str, str]) -> bool:
    return set(_NAME.findall(template)) <= set(values)


def fill(template: str, values: Mapping[str, str]) -> str | None:
    """The template with its values; None where the log did not give one of them."""
    if not _has(template, values):
        return None
    return _NAME.sub(lambda found: values[found.group(1)], template)
