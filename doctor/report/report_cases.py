"""A diagnosis, case by case."""

from __future__ import annotations

from typing import TYPE_CHECKING

from doctor.model import NotChecked, Outcome, Verdict
from doctor.report.cases import Case, Cases, CaseVerdict, commands, safe_line
from doctor.report.closing import verdict_sentence
from doctor.report.machine import machine

if TYPE_CHECKING:
    from doctor.diagnose import Report


def report_cases(report: Report) -> Cases:
    """A case per rule."""
    about = machine(report)
    known = {
        "python": str(report.where.python),
        "profile": report.profile,
        "model": report.model,
        "vllm": about.vllm,
        "torch": about.torch,
        "driver": about.driver,
    }
    return Cases(
        "diagnose",
        safe_line(verdict_sentence(report)),
        (*(_case(o, report) for o in report.outcomes), *map(_skipped, report.not_checked)),
        about.host and safe_line(about.host),
        about.time,
        report.seconds,
        {name: safe_line(value) for name, value in known.items() if value is not None},
    )


_VERDICTS = {
    Verdict.OK: CaseVerdict.PASSED,
    Verdict.FOUND: CaseVerdict.FAILED,
    Verdict.UNKNOWN: CaseVerdict.INCONCLUSIVE,
    Verdict.CRASHED: CaseVerdict.INCONCLUSIVE,
}


def _case(outcome: Outcome, report: Report) -> Case:
    verdict = _VERDICTS[outcome.verdict]
    counts = outcome.severity.rank >= report.fail_on.rank
    bad = verdict is CaseVerdict.INCONCLUSIVE or (verdict is CaseVerdict.FAILED and counts)
    said = [f.message for f in outcome.findings] if outcome.why is None else [outcome.why]
    return Case(
        outcome.rule.id,
        safe_line(outcome.rule.area),
        verdict,
        "; ".join(map(safe_line, said)),
        outcome.severity,
        decides=bad and not outcome.accepted,
        accepted=outcome.accepted,
        evidence=tuple(safe_line(e) for f in outcome.findings for e in f.evidence),
        commands=tuple(commands(outcome.findings, report.installer)),
    )


def _skipped(one: NotChecked) -> Case:
    rule = one.rule
    area, why = safe_line(rule.area), safe_line(one.why)
    return Case(rule.id, area, CaseVerdict.NOT_CHECKED, why, rule.severity)
