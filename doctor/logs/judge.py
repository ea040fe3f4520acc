"""Which of the things found in a start of a server is the root cause, and what only follows."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from doctor.logs.found import Attempt, Found, Unknown, is_bad
from doctor.logs.index import Index
from doctor.logs.lines import HEADER
from doctor.logs.values import derive
from doctor.model import Severity
from doctor.redact import redact

_EXCERPT = 400

Verdict = Literal["explained", "unrecognised", "nothing-found", "too-repetitive"]
"""too-repetitive: nothing was found, but not each line that could be something was looked at."""
FindingRole = Literal["primary", "contributing", "symptom"]


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


@dataclass(frozen=True)
class Judged:
    """`primary`: the id to look at first. `unknown`: the failure, where no signature knows it."""

    verdict: Verdict
    primary: str | None
    findings: tuple[LogFinding, ...]
    unknown: Unknown | None


def judge(attempt: Attempt, index: Index) -> Judged:
    """The first cause that stopped the server is the primary one. A failure that no row knows is
    that instead of a row that only says what kind of failure it was, or that the server survived.
    """
    hard = [f for f in attempt.found.values() if not f.soft and f.count >= f.row.times]
    hard = [f for f in hard if f.row.role != "symptom" or f.offset < attempt.stopped]
    survived = [f for f in hard if f.served and f.row.role in ("cause", "generic")]
    unknowns = []
    for failure in attempt.unknown:
        if named := _named(index, failure):
            hard.append(named)
        elif failure.offset < attempt.stopped and not (hard and HEADER in failure.said):
            unknowns.append(failure)
    hard = sorted((f for f in hard if f not in survived), key=lambda f: f.offset)
    failures = [u for u in unknowns if not u.went_on]
    stops = [f for f in hard if f.row.role in ("cause", "generic") and not f.row.last]
    if failures or any(is_bad(f.row) for f in stops):
        hard = [f for f in hard if not f.row.last]  # it does not hang, it fails
    covered: set[str] = set()
    for one in hard:  # of two that explain each other, the first one does
        covered |= set(one.row.over) if one.row.id not in covered else set()
    told = [f for f in hard if f.row.id not in covered]
    causes = [f for f in told if f.row.role == "cause" and is_bad(f.row)]
    generic = [f for f in told if f.row.role == "generic"]
    symptoms = [f for f in told if f.row.role == "symptom"]
    if any(is_bad(f.row) for f in symptoms):
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
        hints = [f for f in told if f.row.role == "cause" and not is_bad(f.row)]
        serious = [f for f in symptoms if not attempt.ready or is_bad(f.row)]
        primary = next(iter([*requests, *([] if attempt.ready else hints), *serious]), None)
    if primary:
        unknown = None
    verdict: Verdict = "explained" if primary else "unrecognised" if unknown else "nothing-found"
    shown = hard if verdict != "nothing-found" else [f for f in hard if f.row.role != "symptom"]
    findings = _findings(primary, shown, covered, [*attempt.survived.values(), *survived])
    return Judged(verdict, primary.row.id if primary else None, findings, unknown)


def _named(index: Index, unknown: Unknown) -> Found | None:
    """A row that fits what was put together of a failure, where it fits no line of it."""
    for _, row in index.rows_of(index.scanner.all(unknown.said.encode(errors="replace"))):
        if row.role in ("cause", "generic", "request") and not (row.near or row.unless):
            values = row.values(unknown.said)
            if values is not None:
                at = unknown.offset
                found = Found(row, unknown.line, at, unknown.said, values, last=at)
                return dataclasses.replace(found, went_on=unknown.went_on)
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
        redact(best.excerpt)[:_EXCERPT],
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
