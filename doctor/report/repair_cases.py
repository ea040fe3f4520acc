"""A plan, or what came of one, case by case: beside the report, a case per action."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from doctor.report.cases import Case, Cases, CaseVerdict, safe_line
from doctor.report.report_cases import report_cases

if TYPE_CHECKING:
    from doctor.diagnose import Report
    from doctor.repair.apply import Applied, Result
    from doctor.repair.plan import Plan

_AREA = "fix"
_FIXED = ("healed", "already-healed")


def repair_cases(report: Report, plan: Plan, applied: Applied | None) -> Cases:
    """The cases of the report, which after --apply is the one that was made after it, and those of
    the actions: pending, or passed where they fixed what they were for."""
    made = report_cases(report)
    actions = map(_result, applied.results) if applied else _pending(plan)
    return replace(made, command="fix", cases=(*made.cases, *_numbered(actions)))


def _numbered(cases: Iterable[Case]) -> Iterator[Case]:
    """The cases, the further ones of an id with a number: a kind of action may come twice."""
    seen: Counter[str] = Counter()
    for case in cases:
        seen[case.id] += 1
        number = f" {seen[case.id]}" if seen[case.id] > 1 else ""
        yield replace(case, id=f"{case.id}{number}")


def _pending(plan: Plan) -> Iterator[Case]:
    for action in plan.actions:
        told = f"would fix {', '.join(action.ids)}"
        if action.asks:
            told += f"; needs {', '.join(f'--allow {ask.consent}' for ask in action.asks)}"
        steps = tuple(safe_line(step) for step in action.steps)
        yield Case(action.kind.name, _AREA, CaseVerdict.PENDING, safe_line(told), evidence=steps)
    for held in plan.withheld:
        yield Case(held.id, _AREA, CaseVerdict.PENDING, safe_line(f"skipped: {held.why}"))


def _result(result: Result) -> Case:
    fixed = result.outcome in _FIXED
    return Case(
        result.action,
        _AREA,
        CaseVerdict.PASSED if fixed else CaseVerdict.FAILED,
        safe_line(f"{'fixed' if fixed else result.outcome}: {', '.join(result.ids)}"),
        decides=not fixed,
        evidence=tuple(safe_line(line) for line in result.tail.splitlines()),
    )
