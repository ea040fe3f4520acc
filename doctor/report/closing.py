"""How every report ends: the verdict in one line, and the commands to go on with."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from doctor.model import Finding, Needs, Severity, Verdict
from doctor.report.lines import Line, Style, columns, counted, wrapped

if TYPE_CHECKING:
    from doctor.diagnose import Recorded, Report

VERDICTS = {
    "healthy": ("bold green", "Healthy"),
    "findings": ("bold red", "Not healthy"),
    "unknown": ("bold magenta", "Could not tell"),
}


def snapshot_line(recorded: Recorded) -> Line:
    """Says that a snapshot was judged, and of when and where it is."""
    when = ""
    if recorded.at is not None:
        when = time.strftime(" %Y-%m-%d %H:%M UTC", time.gmtime(recorded.at))
    where = f" on {recorded.host}" if recorded.host else ""
    said = f"Snapshot recorded{when}{where} by {recorded.tool}; this machine was not asked"
    return (("bold yellow", said),)


def verdict_lines(report: Report, style: Style) -> Iterator[Line]:
    """Healthy, not healthy, or could not tell; and of what it consists."""
    colour, word = VERDICTS[report.verdict]
    told = verdict_sentence(report) + ("" if report.verdict == "healthy" else ".")
    for i, (line,) in enumerate(wrapped(told, "", style)):
        beginning = word if i == 0 else ""
        yield ((colour, beginning), ("", line[1][len(beginning) :]))


def verdict_sentence(report: Report) -> str:
    """The verdict in one line, without a full stop."""
    word, parts = VERDICTS[report.verdict][1], "; ".join(_parts(report))
    if not parts:
        return word
    return f"{word} ({parts})" if report.verdict == "healthy" else f"{word}: {parts}"


def _parts(report: Report) -> Iterator[str]:
    """What the verdict consists of, in few words each."""
    found = [(o, f) for o in report.deciding(Verdict.FOUND) for f in o.findings]
    each = [f.severity or o.rule.severity for o, f in found]
    counts = [counted(each.count(s), s.value) for s in reversed(Severity) if each.count(s)]
    if counts:
        fixable = sum(is_fixable(f) for _, f in found)
        tail = (
            f", {fixable} fixable"
            if fixable
            else ", no automatic fix"
            if Severity.ERROR in each
            else ""
        )
        yield f"{', '.join(counts)}{tail}"
    if unknown := report.deciding(Verdict.UNKNOWN, Verdict.CRASHED):
        yield f"{counted(len(unknown), 'check')} inconclusive"
    if report.model is None:
        yield "environment only"
    if report.checked_up_to:
        yield f"checked up to vLLM {report.checked_up_to}"
    if report.accepted:
        yield f"accepted: {', '.join(report.accepted)}"


def is_fixable(finding: Finding) -> bool:
    """Whether `fix --apply` would do something about it."""
    return any(fix.needs is not Needs.PERSON for fix in finding.fixes)


def next_lines(report: Report, style: Style) -> Iterator[Line]:
    """The commands to go on with, complete, each on a line of its own, where something is wrong."""
    commands = dict(_commands(report, style))
    width = max(map(columns, commands), default=0)
    for label, command in commands.items():
        yield (("", f"{label:<{width}}  "), ("cyan", command))


def _commands(report: Report, style: Style) -> Iterator[tuple[str, str]]:
    say = report.installer.again
    found = [(o, f) for o in report.deciding(Verdict.FOUND) for f in o.findings]
    fixable = [f.severity or o.rule.severity for o, f in found if is_fixable(f)]
    if fixable:
        gravest = max(fixable, key=lambda s: s.rank)
        counts = gravest.rank >= report.fail_on.rank
        there = " on the recorded machine" if report.recorded else ""
        words = () if counts else ("--fail-on", gravest.value)
        yield f"fix{there}:", say("fix", "--apply", *words)
    if not style.verbose and (found or report.verdict != "healthy"):
        yield "every command:" if found else "details:", say("diagnose", "-v")
    if report.primary and report.verdict != "healthy":
        yield "why:", say("rules", "show", report.primary.rule.id)
