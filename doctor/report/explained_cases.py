"""What logs came to, case by case."""

from __future__ import annotations

from collections.abc import Iterator

from doctor.exits import HEALTHY
from doctor.logs.found import Unknown
from doctor.logs.judge import LogFinding
from doctor.model import Severity
from doctor.report.cases import Case, Cases, CaseVerdict, fix_commands, safe_line
from doctor.report.explained import Explained
from doctor.report.machine import here_and_now
from doctor.report.measured import quoted

_AREA = "server log"


def explained_cases(one: Explained) -> Cases:
    """A case per finding, and one for a failure without a name; of a log without any, one that says
    so."""
    told = one.told
    cases = [_case(one, finding) for finding in told.findings]
    if told.unknown:
        cases.append(_unrecognised(told.unknown))
    if not cases:
        healthy = told.exit_code == HEALTHY
        verdict = CaseVerdict.PASSED if healthy else CaseVerdict.INCONCLUSIVE
        cases = [Case(told.verdict, _AREA, verdict, safe_line(one.conclusion), decides=not healthy)]
    about = here_and_now()
    return Cases(
        "explain",
        safe_line(one.conclusion),
        tuple(cases),
        about.host and safe_line(about.host),
        about.time,
        properties={"log": safe_line(one.name), "lines": str(told.lines)},
    )


def _case(one: Explained, finding: LogFinding) -> Case:
    follows = finding.role == "symptom" and one.told.verdict != "symptom"
    return Case(
        finding.id,
        _AREA,
        CaseVerdict.FAILED,
        safe_line(f"{'only a symptom: ' if follows else ''}{one.message(finding)}"),
        Severity.INFO if follows else finding.severity,
        decides=one.told.exit_code != HEALTHY and not follows,
        evidence=(safe_line(f"{one.place(finding)}: {quoted(finding.excerpt)}"),),
        commands=tuple(_commands(one, finding)),
        file=safe_line(finding.log or one.name),
        line=finding.line,
    )


def _commands(one: Explained, finding: LogFinding) -> Iterator[str]:
    """Those of the best fix."""
    for fix in one.fixes(finding)[:1]:
        yield from fix_commands(fix, one.installer)


def _unrecognised(unknown: Unknown) -> Case:
    where = {
        "raised in": unknown.raised_in,
        "called from": unknown.called_from,
        "logged at": unknown.logged_at,
    }
    return Case(
        "unrecognised",
        _AREA,
        CaseVerdict.INCONCLUSIVE,
        quoted(unknown.said),
        Severity.ERROR,
        decides=True,
        evidence=tuple(f"{name} {quoted(frame)}" for name, frame in where.items() if frame),
        file=safe_line(unknown.log),
        line=unknown.line,
    )
