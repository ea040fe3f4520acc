"""How every report ends: the verdict in one line, and the commands to go on with."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from doctor.model import Finding, Needs, Severity, Text, Verdict
from doctor.report.lines import Line, Style, columns, counted, wrapped

if TYPE_CHECKING:
    from doctor.diagnose import Recorded, Report

_VERDICTS = {
    "healthy": ("bold green", Text("Healthy")),
    "findings": ("bold red", Text("Not healthy")),
    "unknown": ("bold magenta", Text("Could not tell")),
}


def snapshot_line(recorded: Recorded) -> Line:
    """Says that a snapshot was judged, and of when and where it is."""
    when = ""
    if recorded.at is not None:
        when = time.strftime(" %Y-%m-%d %H:%M UTC", time.gmtime(recorded.at))
    said = Text(
        "Snapshot recorded{when}{where} by {tool}; this machine was not asked",
        when=when,
        where=f" on {recorded.host}" if recorded.host else "",
        tool=recorded.tool,
    )
    return (("bold yellow", str(said)),)


def verdict_lines(report: Report, style: Style) -> Iterator[Line]:
    """Healthy, not healthy, or could not tell; and of what it consists."""
    colour, word = _VERDICTS[report.verdict]
    told = verdict_sentence(report) + ("" if report.verdict == "healthy" else ".")
    for i, (line,) in enumerate(wrapped(told, "", style)):
        beginning = str(word) if i == 0 else ""
        yield ((colour, beginning), ("", line[1][len(beginning) :]))


def verdict_sentence(report: Report) -> str:
    """The verdict in one line, without a full stop."""
    word, parts = str(_VERDICTS[report.verdict][1]), "; ".join(map(str, _parts(report)))
    if not parts:
        return word
    return f"{word} ({parts})" if report.verdict == "healthy" else f"{word}: {parts}"


def _parts(report: Report) -> Iterator[Text]:
    """What the verdict consists of, in few words each."""
    found = [(o, f) for o in report.deciding(Verdict.FOUND) for f in o.findings]
    each = [f.severity or o.rule.severity for o, f in found]
    counts = [counted(each.count(s), s.value) for s in reversed(Severity) if each.count(s)]
    if counts:
        if fixable := sum(is_fixable(f) for _, f in found):
            yield Text("{findings}, {n} fixable", findings=counts, n=fixable)
        elif Severity.ERROR in each:
            yield Text("{findings}, no automatic fix", findings=counts)
        else:
            yield Text("{findings}", findings=counts)
    if unknown := report.deciding(Verdict.UNKNOWN, Verdict.CRASHED):
        yield Text("{checks} inconclusive", checks=counted(len(unknown), "check"))
    if report.model is None:
        yield Text("environment only")
    if report.checked_up_to:
        yield Text("checked up to vLLM {version}", version=report.checked_up_to)
    if report.accepted:
        yield Text("accepted: {ids}", ids=report.accepted)


def is_fixable(finding: Finding) -> bool:
    """Whether `fix --apply` would do something about it."""
    return any(fix.needs is not Needs.PERSON for fix in finding.fixes)


def next_lines(report: Report, style: Style) -> Iterator[Line]:
    """The commands to go on with, complete, each on a line of its own, where something is wrong."""
    rows = [(str(label), command) for label, command in _commands(report, style)]
    width = max((columns(label) for label, _ in rows), default=0)
    for label, command in rows:
        yield (("", f"{label}{' ' * (width - columns(label))}  "), ("cyan", command))


def _commands(report: Report, style: Style) -> Iterator[tuple[Text, str]]:
    say = report.installer.again
    found = [(o, f) for o in report.deciding(Verdict.FOUND) for f in o.findings]
    fixable = [f.severity or o.rule.severity for o, f in found if is_fixable(f)]
    if fixable:
        gravest = max(fixable, key=lambda s: s.rank)
        counts = gravest.rank >= report.fail_on.rank
        words = () if counts else ("--fail-on", gravest.value)
        label = Text("fix on the recorded machine:") if report.recorded else Text("fix:")
        yield label, say("fix", "--apply", *words)
    if not style.verbose and (found or report.verdict != "healthy"):
        label = Text("every command:") if found else Text("details:")
        yield label, say("diagnose", "-v")
    if (command := report.command) and command.container and report.asked is None:
        from doctor.command.container import entering_line

        yield Text("in the image:"), entering_line(command, command.container)
    if report.primary and report.verdict != "healthy":
        yield Text("why:"), say("rules", "show", report.primary.rule.id)
