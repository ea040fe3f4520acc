"""The report for a person at a terminal."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from doctor.model import (
    NO_MODEL,
    Finding,
    Fix,
    Installer,
    Needs,
    NotChecked,
    Outcome,
    Severity,
    Text,
    Verdict,
    printable,
)
from doctor.redact import redact

if TYPE_CHECKING:
    from doctor.diagnose import Recorded, Report

# (style, text) pieces of one line; style is a rich style, "" for plain.
Line = tuple[tuple[str, str], ...]

MARKS = {
    Severity.ERROR: ("bold red", "✗"),
    Severity.WARNING: ("bold yellow", "!"),
    Severity.INFO: ("bold blue", "i"),
}


@dataclass(frozen=True)
class Style:
    """How much is shown, and how wide (columns)."""

    verbose: bool = False
    quiet: bool = False
    width: int = 100


def report_lines(report: Report, style: Style) -> Iterator[Line]:
    """The report line by line, free of control characters. Commands are never wrapped, so that
    they can be copied."""
    for line in _lines(report, style):
        yield tuple((colour, printable(piece)) for colour, piece in line)


def _lines(report: Report, style: Style) -> Iterator[Line]:
    if report.recorded:
        yield (("bold yellow", f"{_snapshot(report.recorded)}; this machine was not asked"),)
    if not style.quiet:
        yield from _header(report)
    shown: dict[Fix, str] = {}
    for outcome in report.outcomes:
        if outcome.accepted:
            yield from _accepted(outcome, style)
        elif outcome.verdict is Verdict.FOUND:
            for i, finding in enumerate(outcome.findings):
                first = outcome is report.primary and i == 0
                yield from _finding(outcome, finding, first, shown, report.installer, style)
        elif outcome.verdict is Verdict.CRASHED:
            yield (("bold magenta", "? "), ("bold", outcome.rule.id), ("", "  crashed"))
            yield from wrapped(str(outcome.why), "    ", style)
            yield ()
    for why, those in report.inconclusive():
        yield from _inconclusive(why, [one.rule.id for one in those], style)
    fine = report.proof is not None and report.proof.ok
    if (report.proof or report.proof_missing) and not (fine and style.quiet):
        yield from _deep(report, style)
    good = report.imports is not None and not (report.imports.died or report.imports.failure)
    if (report.imports or report.imports_missing) and not (good and style.quiet):
        yield from _imports(report, style)
    if not style.quiet:
        yield from _areas(report, style)
    yield from _verdict(report, style)


def _inconclusive(why: Text, ids: Sequence[str], style: Style) -> Iterator[Line]:
    """One reason, however many checks it leaves open."""
    heading = (("bold", ids[0]), ("", "  could not tell"))
    if len(ids) > 1:
        heading = (("bold", f"{len(ids)} checks inconclusive:"), ("", ""))
    yield (("bold magenta", "? "), *heading)
    yield from wrapped(str(why), "    ", style)
    if len(ids) > 1:
        yield from wrapped(", ".join(ids), "    ", style, "dim")
    yield ()


def _snapshot(recorded: Recorded) -> str:
    when = ""
    if recorded.at is not None:
        when = time.strftime(" %Y-%m-%d %H:%M UTC", time.gmtime(recorded.at))
    where = f" on {recorded.host}" if recorded.host else ""
    return f"Snapshot recorded{when}{where} by {recorded.tool}"


def _header(report: Report) -> Iterator[Line]:
    where = report.where
    if report.model is None:
        yield (("", "environment only: "), ("", str(NO_MODEL)))
    yield (
        ("", "Judged "),
        ("bold", f"{where.python}"),
        ("", f" (found by {where.found_by}) for "),
        *served(report),
    )
    yield ()


def served(report: Report) -> Line:
    """What is to be served, and which profile says so."""
    profile = f"(profile {report.profile_name})"
    if report.model is None:
        return (("", f"no model {profile}"),)
    return (("bold", report.model), ("", f" {profile}"))


def _accepted(outcome: Outcome, style: Style) -> Iterator[Line]:
    """What was accepted is told, without what could be done about it."""
    yield (("dim", f"~ {outcome.rule.id}"), ("", "  accepted"))
    for said in [str(f.message) for f in outcome.findings] or [str(outcome.why)]:
        yield from wrapped(said, "    ", style, "dim")
    yield ()


def _finding(
    outcome: Outcome,
    finding: Finding,
    first: bool,
    shown: dict[Fix, str],
    installer: Installer,
    style: Style,
) -> Iterator[Line]:
    colour, mark = MARKS[finding.severity or outcome.rule.severity]
    role = "  PRIMARY: mend this first" if first else ""
    yield ((colour, f"{mark} {outcome.rule.id}"), ("bold", role))
    yield from wrapped(str(finding.message), "    ", style, "bold")
    for evidence in finding.evidence:
        yield from wrapped(f"- {evidence}", "    ", style, "dim", hang="  ")
    for fix in finding.fixes:
        earlier = shown.setdefault(fix, outcome.rule.id)
        yield from fix_lines(fix, installer, None if earlier == outcome.rule.id else earlier)
    yield ()


def fix_lines(fix: Fix, installer: Installer, earlier: str | None) -> Iterator[Line]:
    """The commands of a repair; only its name where an earlier finding has shown them."""
    by_hand = " (by hand)" if fix.needs.value == "person" else ""
    again = f": as for {earlier}" if earlier else ""
    yield (("green", f"    repair: {fix.title}{by_hand}{again}"),)
    if earlier:
        return
    for step in fix.steps:
        for command in step.commands(installer):
            yield (("cyan", f"      {command}"),)


def _deep(report: Report, style: Style) -> Iterator[Line]:
    proof = report.proof
    if proof is None:
        yield from wrapped(f"Test build: not run, {report.proof_missing}", "", style)
    elif proof.ok:
        archs = ", ".join(f"sm_{a}" for a in proof.archs)
        yield (("green", "✓ test build"), ("", f"  compiled, linked and loaded for {archs}"))
    else:
        yield (("bold red", "✗ test build"), ("", f"  failed at {proof.stage}"))
        for line in proof.output.splitlines()[-8:] if style.verbose else [proof.line]:
            yield (("dim", f"    {line.strip()}"),)
    if proof and proof.stand_in:
        yield (("dim", "    no driver here: an empty libcuda.so stood in for the driver's"),)
    yield ()


def _imports(report: Report, style: Style) -> Iterator[Line]:
    made = report.imports
    if made is None:
        yield from wrapped(f"Imports: not made, {report.imports_missing}", "", style)
        yield ()
        return
    count = sum(row.outcome == "ok" for row in made.rows)
    told = f"  {count} of {len(made.rows)} modules that vLLM imports, in {made.seconds:.1f} s"
    bad = bool(made.died)
    yield (("bold red", "✗ imports") if bad else ("green", "✓ imports"), ("", told))
    for row in made.rows:
        if row.outcome != "ok" or style.verbose:
            why = f": {row.error} ({row.error.place})" if row.error else ""
            said = f"{_IMPORT_WORDS[row.outcome]} {row.module}{why}"
            yield from wrapped(said, "    ", style, "dim", hang="  ")
    if made.failure:
        yield from wrapped(made.failure, "    ", style, "dim", hang="  ")
    yield ()


_IMPORT_WORDS = {
    "ok": "imported",
    "died": "failed:",
    "caught": "vLLM goes on without",
    "not-checked": "not checked without a GPU:",
    "not-reached": "not reached:",
}


def _areas(report: Report, style: Style) -> Iterator[Line]:
    """One line per area with its fine and its unchecked rules; with -v one per rule."""
    areas: dict[str, tuple[list[Outcome], list[NotChecked]]] = {}
    for outcome in report.outcomes:
        areas.setdefault(outcome.rule.area, ([], []))[0].append(outcome)
    for skipped in report.not_checked:
        areas.setdefault(skipped.rule.area, ([], []))[1].append(skipped)
    for area, (outcomes, skipped_here) in sorted(areas.items()):
        fine = [o for o in outcomes if o.verdict is Verdict.OK]
        if style.verbose:
            yield (("bold", area),)
            for one in fine:
                yield (("green", "  ✓ "), ("", one.rule.id))
            for other in skipped_here:
                yield (("dim", f"  - {other.rule.id}: not checked, {other.why}"),)
        elif fine and len(fine) == len(outcomes):
            yield (("green", "✓ "), ("", f"{area:<12}{_fine(len(fine))}{_skipped(skipped_here)}"))
        elif skipped_here and not outcomes:
            yield (("dim", f"- {area:<12}{_skipped(skipped_here).lstrip(', ')}"),)


def _fine(count: int) -> str:
    return "1 check fine" if count == 1 else f"{count} checks fine"


def _skipped(skipped: Iterable[NotChecked]) -> str:
    whys = list(dict.fromkeys(str(s.why) for s in skipped))
    return f", not checked: {'; '.join(whys)}" if whys else ""


def _verdict(report: Report, style: Style) -> Iterator[Line]:
    found = report.deciding(Verdict.FOUND)
    each = [f.severity or o.rule.severity for o in found for f in o.findings]
    counts = [(each.count(s), s.value) for s in Severity]
    told = ", ".join(f"{n} {word}{'s' if n > 1 else ''}" for n, word in reversed(counts) if n)
    unknown = len(report.deciding(Verdict.UNKNOWN, Verdict.CRASHED))
    parts = [told] if told else []
    if report.model is None and report.verdict == "healthy":
        parts.append("environment only")
    if unknown:
        parts.append(f"{unknown} could not be told")
    if report.checked_up_to:
        parts.append(f"checked up to vLLM {report.checked_up_to}")
    if report.accepted:
        parts.append(f"accepted: {', '.join(report.accepted)}")
    if report.verdict == "healthy":
        yield (("bold green", "Healthy"), ("", f" ({'; '.join(parts)})" if parts else ""))
    else:
        yield (("bold", f"Not healthy: {'; '.join(parts)}."),)
    if not style.quiet:
        yield from _next(report)


def _next(report: Report) -> Iterator[Line]:
    """What to do now: where to read more, and the command that shows what `fix` would do."""
    say = report.installer.again
    if report.primary and report.verdict != "healthy":
        yield (("dim", f"More about it: {say('rules', 'show', report.primary.rule.id)}"),)
    fixable = [
        f.severity or o.rule.severity
        for o in report.outcomes
        for f in o.findings
        if any(fix.needs is not Needs.PERSON for fix in f.fixes)
    ]
    if fixable:
        gravest = max(fixable, key=lambda s: s.rank)
        counts = gravest.rank >= report.fail_on.rank
        command = say("fix", *(() if counts else ("--fail-on", gravest.value)))
        there = ", on the machine that was recorded" if report.recorded else ""
        yield (("bold", f"To fix it{there}: "), ("cyan", command))


def wrapped(
    text: str, indent: str, style: Style, colour: str = "", hang: str = ""
) -> Iterator[Line]:
    """A paragraph in lines of the style's width; words are never broken. Redacted before that: in
    two lines a name and its value might not be known again."""
    for line in textwrap.wrap(
        redact(text),
        style.width,
        initial_indent=indent,
        subsequent_indent=indent + hang,
        break_long_words=False,
        break_on_hyphens=False,
    ):
        yield ((colour, line),)
