"""All that was found out and checked: what `-v` shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from doctor.model import (
    NO_MODEL,
    Finding,
    Fix,
    Installer,
    Outcome,
    Verdict,
)
from doctor.report.closing import next_lines, snapshot_line, verdict_lines
from doctor.report.lines import MARKS, Line, Style, counted, fix_lines, served, wrapped

if TYPE_CHECKING:
    from doctor.diagnose import Report
    from doctor.probes.imports import Imports
    from doctor.probes.proof import Proof

_TAIL = 8
"""Lines of a failed test build that are shown."""


def full_lines(report: Report, style: Style) -> Iterator[Line]:
    """The report with evidence, every command, and each rule that passed or was not checked."""
    if report.recorded:
        yield snapshot_line(report.recorded)
    yield from _header(report)
    shown: dict[Fix, str] = {}
    for outcome in report.outcomes:
        if outcome.accepted:
            yield from _accepted(outcome, style)
        elif outcome.verdict is Verdict.FOUND:
            for i, finding in enumerate(outcome.findings):
                first = outcome is report.primary and i == 0
                yield from _finding(outcome, finding, first, style)
                yield from _fixes(outcome, finding, shown, report.installer, style)
                yield ()
    yield from _inconclusive(report, style)
    if report.proof:
        yield from _proof(report.proof)
    elif report.proof_missing:
        yield from wrapped(f"Test build: not run, {report.proof_missing}", "", style)
        yield ()
    if report.imports:
        yield from _imports(report.imports, style)
    elif report.imports_missing:
        yield from wrapped(f"Imports: not run, {report.imports_missing}", "", style)
        yield ()
    yield from _areas(report)
    yield from verdict_lines(report, style)
    yield from next_lines(report, style)


def _header(report: Report) -> Iterator[Line]:
    where = report.where
    if report.model is None:
        yield (("", f"environment only: {NO_MODEL}"),)
    yield (
        ("", "Judged "),
        ("bold", f"{where.python}"),
        ("", f" (found by {where.how}) for "),
        *served(report),
    )
    yield ()


def _accepted(outcome: Outcome, style: Style) -> Iterator[Line]:
    """What was accepted is told, without what could be done about it."""
    yield (("dim", f"~ {outcome.rule.id}"), ("", "  accepted"))
    for said in [str(f.message) for f in outcome.findings] or [str(outcome.why)]:
        yield from wrapped(said, "    ", style, "dim")
    yield ()


def _finding(outcome: Outcome, finding: Finding, first: bool, style: Style) -> Iterator[Line]:
    colour, mark = MARKS[finding.severity or outcome.rule.severity]
    role = "  PRIMARY CAUSE: fix this first" if first else ""
    yield ((colour, f"{mark} {outcome.rule.id}"), ("bold", role))
    yield from wrapped(str(finding.message), "    ", style, "bold")
    for evidence in finding.evidence:
        yield from wrapped(f"- {evidence}", "    ", style, "dim", hang="  ")


def _fixes(
    outcome: Outcome, finding: Finding, shown: dict[Fix, str], installer: Installer, style: Style
) -> Iterator[Line]:
    """The fixes of a finding; one that an earlier finding has shown, by its name."""
    for fix in finding.fixes:
        earlier = shown.setdefault(fix, outcome.rule.id)
        same = None if earlier == outcome.rule.id else earlier
        yield from fix_lines(fix, installer, style, same)


def _inconclusive(report: Report, style: Style) -> Iterator[Line]:
    """The checks that crashed or could not tell; those with the same reason are told together."""
    for outcome in report.deciding(Verdict.CRASHED):
        yield (("bold magenta", "? "), ("bold", outcome.rule.id), ("", "  crashed"))
        yield from wrapped(str(outcome.why), "    ", style)
        yield ()
    for why, outcomes in report.inconclusive():
        ids = [outcome.rule.id for outcome in outcomes]
        named = ids[0] if len(ids) == 1 else counted(len(ids), "check")
        yield (("bold magenta", "? "), ("bold", named), ("", "  inconclusive"))
        yield from wrapped(str(why), "    ", style)
        if len(ids) > 1:
            yield from wrapped(", ".join(ids), "    ", style, "dim")
        yield ()


def _proof(proof: Proof) -> Iterator[Line]:
    if proof.ok:
        archs = ", ".join(f"sm_{a}" for a in proof.archs)
        yield (("green", "✓ test build"), ("", f"  compiled, linked and loaded for {archs}"))
    else:
        yield (("bold red", "✗ test build"), ("", f"  failed at {proof.stage}"))
        for line in proof.output.splitlines()[-_TAIL:]:
            yield (("dim", f"    {line.strip()}"),)
    if proof.stand_in:
        yield (("dim", "    no driver here: linked with an empty stub of libcuda.so"),)
    yield ()


def _imports(made: Imports, style: Style) -> Iterator[Line]:
    count = sum(row.outcome == "ok" for row in made.rows)
    told = f"  {count} of {len(made.rows)} modules that vLLM imports, in {made.seconds:.1f} s"
    yield (("bold red", "✗ imports") if made.died else ("green", "✓ imports"), ("", told))
    for row in made.rows:
        why = f": {row.error} ({row.error.place})" if row.error else ""
        said = f"{_IMPORT_WORDS[row.outcome]} {row.module}{why}"
        yield from wrapped(said, "    ", style, "dim", hang="  ")
    if made.failure:
        yield from wrapped(str(made.failure), "    ", style, "dim", hang="  ")
    yield ()


_IMPORT_WORDS = {
    "ok": "imported",
    "died": "failed:",
    "caught": "vLLM goes on without",
    "not-checked": "not checked without a GPU:",
    "not-reached": "not reached:",
}


def _areas(report: Report) -> Iterator[Line]:
    """Each rule that passed or was not checked, by area."""
    areas: dict[str, list[Line]] = {}
    for outcome in report.outcomes:
        if outcome.verdict is Verdict.OK:
            passed = (("green", "  ✓ "), ("", outcome.rule.id))
            areas.setdefault(outcome.rule.area, []).append(passed)
    for other in report.not_checked:
        skipped = (("dim", f"  - {other.rule.id}: not checked, {other.why}"),)
        areas.setdefault(other.rule.area, []).append(skipped)
    for area, lines in sorted(areas.items()):
        yield (("bold", area),)
        yield from lines
