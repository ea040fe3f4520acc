"""What a log came to, for a person and for a program."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from doctor.exits import HEALTHY
from doctor.fixes import Doctor
from doctor.fixes.person import typed
from doctor.logs.explain import Earlier, Explanation
from doctor.logs.found import Unknown
from doctor.logs.judge import FindingRole, LogFinding, LogVerdict, fill
from doctor.logs.several import Whole
from doctor.logs.source import Log
from doctor.model import Fix, Installer, Rule, Severity, Text, printable
from doctor.report.ailment import take_apart
from doctor.report.json import (
    BOOL,
    INT,
    MACHINE,
    MAYBE_TEXT,
    TEXT,
    fix_json,
    fix_schema,
    list_of,
    machine_json,
    object_of,
)
from doctor.report.lines import MARKS, Line, Style, counted, fix_lines, wrapped
from doctor.report.machine import here_and_now
from doctor.report.measured import memory_json, memory_lines, memory_schema, quoted
from doctor.signatures import Ailment

if TYPE_CHECKING:
    from doctor.logs.confirm import Confirmed
    from doctor.logs.predicted import PredictedMemory

EXPLAIN_SCHEMA_VERSION = 1
_ALSO = 5
"""Further logs that are named for a finding in a text; JSON has all."""


@dataclass(frozen=True)
class Explained:
    """Logs, what they came to, and what is known of the ailments in them. `confirmed`: by id, what
    the rules of this machine say; empty where they were not asked. `live`: whether they were.
    `memory`: of a server that measured its memory, and what it should be."""

    logs: Sequence[Whole]
    told: Explanation
    rules: Mapping[str, Rule]
    ailments: Mapping[str, Ailment]
    confirmed: Mapping[str, Confirmed]
    live: bool
    installer: Installer
    memory: PredictedMemory | None = None

    def title(self, id: str) -> str:
        if id in self.rules:
            return self.rules[id].title
        ailment = self.ailments.get(id)
        return (ailment and ailment.title) or id

    def why(self, id: str) -> str | None:
        """The explanation, its paragraphs as one line each."""
        ailment = self.ailments.get(id)
        text = self.rules[id].explanation if id in self.rules else ailment and ailment.explanation
        return "\n\n".join(take_apart(text).why) if text else None

    def message(self, one: LogFinding) -> str:
        return quoted(one.message or self.title(one.id))

    def fixes(self, one: LogFinding) -> tuple[Fix, ...]:
        """What can be done: what the rule says on this machine, or how to ask it where it failed;
        then what the log's values say, which is all where the rule has no fix of its own."""
        there = self.confirmed.get(one.id)
        ours = tuple(f for finding in (there.findings if there else ()) for f in finding.fixes)
        if one.id in self.rules and not self.live:
            only = ("--only", one.id)
            steps = (Doctor("fix", only), Doctor("fix", (*only, "--apply")))
            title = Text("on the machine where it failed: show the fix, then apply it")
            ours = (Fix(title, steps),)
        ailment = self.ailments.get(one.id)
        values = tuple(_filled(ailment, one.values)) if ailment else ()
        if values and not self.live and not self._has_fix(one.id):
            return values
        return (*ours, *values)

    def _has_fix(self, id: str) -> bool:
        return id in self.rules and "Fix" in take_apart(self.rules[id].explanation).labelled

    @property
    def parts(self) -> list[Log]:
        return [log for whole in self.logs for log in whole.logs]

    @property
    def name(self) -> str:
        """That of the log, or how many there are."""
        parts = self.parts
        return parts[0].name if len(parts) == 1 else f"{len(parts)} files"

    def place(self, one: LogFinding | Unknown | Earlier) -> str:
        """The line, and the log where there is more than one."""
        where = f"line {one.line}"
        return where if len(self.parts) == 1 else f"{printable(one.log)}, {where}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever reads the result has to know of how it was come by."""
        parts = self.parts
        notes = [
            str(note) if len(parts) == 1 else f"{log.name}: {note}"
            for log in parts
            for note in log.notes
        ]
        skimmed = self.told.skimmed
        if not skimmed:
            return tuple(notes)
        note = Text(
            "this log is too repetitive: {lines} that may name a cause were searched, but not "
            "examined one by one",
            lines=counted(skimmed, "line"),
        )
        return (*notes, str(note))

    @property
    def conclusion(self) -> Text:
        """What the log says, over all, in one sentence."""
        told = self.told
        if told.verdict == "explained":
            return Text("Primary cause: {id}", id=told.primary)
        if told.verdict == "too-repetitive":
            return Text("Could not tell: nothing was found, but not every line was examined.")
        if told.verdict == "symptom":
            return Text("Only symptoms: the cause of the failure is not in this log.")
        if told.verdict == "unrecognised" and told.unknown and told.unknown.refused:
            return Text("Unrecognised failure of a request; the server is up.")
        if told.verdict == "unrecognised":
            return Text("Unrecognised failure.")
        if told.ready:
            return Text("Nothing found: the server became ready.")
        if told.earlier:
            return Text(
                "Nothing found: no failure in the last start in this log, and no sign that the "
                "server became ready."
            )
        return Text(
            "Nothing found: no failure in this log, and no sign that the server became ready."
        )

    @property
    def command(self) -> str | None:
        """What fixes, on this machine, all that `fix` can fix of it."""
        causes = (f for f in self.told.findings if f.role != "symptom")
        ids = [f.id for f in causes if self._fixable(f.id)]
        return self.installer.again("fix", "--apply", "--only", ",".join(ids)) if ids else None

    def _fixable(self, id: str) -> bool:
        there = self.confirmed.get(id)
        return bool(there and there.still and there.repairable)


def _filled(ailment: Ailment, values: Mapping[str, str]) -> Iterator[Fix]:
    clean = {name: quoted(value) for name, value in values.items()}
    for remedy in ailment.fix:
        title = fill(remedy.title, clean)
        lines = [_command(command, clean) for command in remedy.commands]
        if title is not None and None not in lines:
            steps = tuple(typed(line) for line in lines if line is not None)
            yield Fix(Text("{title}", title=title), steps, remedy.needs)


def _command(template: str, values: Mapping[str, str]) -> str | None:
    """A command with its values, each a word for a shell whatever a log says; None where one is
    lacking, or would have to be quoted inside of quotes."""
    line = fill(template, values)
    safe = fill(template, {name: shlex.quote(value) for name, value in values.items()})
    return None if safe != line and not _QUOTES.isdisjoint(template) else safe


_QUOTES = frozenset("'\"")


def explained_json(one: Explained) -> dict[str, Any]:
    """The shape is `explained_schema()`."""
    told = one.told
    return {
        "schema_version": EXPLAIN_SCHEMA_VERSION,
        "source": {
            "path": printable(one.name),
            "bytes": sum(log.size for log in one.parts),
            "lines": told.lines,
        },
        "files": [{"path": printable(log.name), "bytes": log.size} for log in one.parts],
        **machine_json(here_and_now()),
        "verdict": told.verdict,
        "primary": told.primary,
        "findings": [_finding_json(one, f) for f in told.findings],
        "harmless": [
            {"id": h.id, "file": printable(h.log), "line": h.line, "count": h.count}
            for h in told.harmless
        ],
        "unrecognised": told.unknown
        and {
            "file": printable(told.unknown.log),
            "line": told.unknown.line,
            "exception": quoted(told.unknown.said),
            "raised_in": told.unknown.raised_in and quoted(told.unknown.raised_in),
            "called_from": told.unknown.called_from and quoted(told.unknown.called_from),
            "logged_at": told.unknown.logged_at and quoted(told.unknown.logged_at),
        },
        "attempts": told.attempts,
        "ready": told.ready,
        "restarting": told.restarting,
        "earlier": [{"file": printable(e.log), "line": e.line, "id": e.id} for e in told.earlier],
        "command": one.command,
        "memory": memory_json(one.memory) if one.memory else None,
        "notes": [printable(n) for n in one.notes],
    }


def _finding_json(one: Explained, finding: LogFinding) -> dict[str, Any]:
    there = one.confirmed.get(finding.id)
    return {
        "id": finding.id,
        "role": finding.role,
        "severity": finding.severity.value,
        "file": printable(finding.log),
        "line": finding.line,
        "also_in": [printable(name) for name in finding.also],
        "excerpt": quoted(finding.excerpt),
        "message": one.message(finding),
        "values": {name: quoted(value) for name, value in finding.values.items()},
        "fixes": [fix_json(fix, one.installer) for fix in one.fixes(finding)],
        "confirmed": there.still if there else None,
    }


def explained_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of `explained_json`."""
    finding = object_of(
        id=TEXT,
        role={"enum": ["primary", "contributing", "symptom"]},
        severity={"enum": [s.value for s in Severity]},
        file=TEXT,
        line=INT,
        also_in=list_of(TEXT),
        excerpt=TEXT,
        message=TEXT,
        values={"type": "object", "additionalProperties": TEXT},
        fixes=list_of(fix_schema()),
        confirmed={"type": ["boolean", "null"]},
    )
    place = MAYBE_TEXT
    unknown = object_of(
        file=TEXT, line=INT, exception=TEXT, raised_in=place, called_from=place, logged_at=place
    )
    schema = object_of(
        schema_version={"const": EXPLAIN_SCHEMA_VERSION},
        source=object_of(path=TEXT, bytes=INT, lines=INT),
        files=list_of(object_of(path=TEXT, bytes=INT)),
        **MACHINE,
        verdict={"enum": list(get_args(LogVerdict))},
        primary=MAYBE_TEXT,
        findings=list_of(finding),
        harmless=list_of(object_of(id=TEXT, file=TEXT, line=INT, count=INT)),
        unrecognised={"anyOf": [unknown, {"type": "null"}]},
        attempts=INT,
        ready=BOOL,
        restarting=BOOL,
        earlier=list_of(object_of(file=TEXT, line=INT, id=MAYBE_TEXT)),
        command=MAYBE_TEXT,
        memory={"anyOf": [memory_schema(), {"type": "null"}]},
        notes=list_of(TEXT),
    )
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def explained_lines(one: Explained, style: Style) -> Iterator[Line]:
    """The same for a person; commands are never wrapped, so that they can be copied."""
    for line in _lines(one, style):
        yield tuple((colour, printable(piece)) for colour, piece in line)


def _lines(one: Explained, style: Style) -> Iterator[Line]:
    told = one.told
    yield from wrapped(f"{one.name}: {counted(told.lines, 'line')}{_starts(told)}", "", style)
    for note in one.notes:
        yield from wrapped(note, "", style, "yellow")
    yield ()
    symptoms = [f for f in told.findings if f.role == "symptom"]
    first = [symptoms.pop(0)] if told.verdict == "symptom" else []
    for finding in [*first, *(f for f in told.findings if f.role != "symptom")]:
        yield from _finding(one, finding, style)
    if told.unknown:
        yield from _unknown(one, told.unknown, style)
    for symptom in symptoms:
        where = one.place(symptom)
        text = f"~ {symptom.id} ({where}): only a symptom: {one.message(symptom)}"
        yield from wrapped(text, "", style, "dim", "  ")
    if symptoms:
        yield ()
    for earlier in told.earlier:
        what = earlier.id or "a failure that no signature knows"
        text = f"- an earlier start failed, {one.place(earlier)}: {what}"
        yield from wrapped(text, "", style, "dim", "  ")
    if one.memory:
        yield from memory_lines(one.memory, style)
    yield from _closing(one, style)


def _starts(told: Explanation) -> str:
    if told.restarting:
        return str(
            Text(
                "; the last start is still under way, neither failed nor ready: this is about the "
                "one before"
            )
        )
    many = Text("; {n} starts, the last one counts", n=told.attempts)
    return str(many) if told.attempts > 1 else ""


def _finding(one: Explained, finding: LogFinding, style: Style) -> Iterator[Line]:
    """The one to fix first with all that is known; of another one, what it is and where."""
    colour, mark = MARKS[finding.severity]
    alone = one.told.verdict == "symptom"
    first = alone or finding.id == one.told.primary
    role = _ROLES[finding.role]
    yield ((colour, f"{mark if first else '+'} {finding.id}"), ("bold", f"  {role}"))
    message = one.message(finding)
    yield from wrapped(message, "    ", style, "bold")
    where = one.place(finding)
    yield from wrapped(f"{where}: {quoted(finding.excerpt)}", "    ", style, "dim", "  ")
    if finding.also:
        also = ", ".join(map(printable, finding.also[:_ALSO]))
        if (more := len(finding.also) - _ALSO) > 0:
            also += f" and {counted(more, 'more log')}"
        yield from wrapped(f"also in {also}", "    ", style, "dim", "  ")
    if first:
        for paragraph in (one.why(finding.id) or "").split("\n\n"):
            if paragraph.rstrip(".") != message:
                yield from wrapped(paragraph, "    ", style)
        for fix in one.fixes(finding):
            yield from fix_lines(fix, one.installer, style)
    yield from _there(one, finding, style)
    yield ()


_ROLES: Mapping[FindingRole, Text] = {
    "primary": Text("PRIMARY CAUSE: fix this first"),
    "contributing": Text("also found"),
    "symptom": Text("a symptom: its cause is not in this log"),
}


def _there(one: Explained, finding: LogFinding, style: Style) -> Iterator[Line]:
    """What this machine says to it, where it was asked."""
    there = one.confirmed.get(finding.id)
    if there is None:
        return
    if there.still:
        yield (("bold", "    this machine still has it"),)
        for found in there.findings:
            yield from wrapped(f"- {found.message}", "    ", style, "dim", "  ")
        if there.repairable:
            command = one.installer.again("fix", "--apply", "--only", finding.id)
            yield (("cyan", f"      {command}"),)
    elif there.still is False:
        yield (("green", "    this machine no longer has it"),)
    else:
        yield from wrapped(
            f"whether this machine still has it is inconclusive: {there.why}", "    ", style
        )


def _unknown(one: Explained, unknown: Unknown, style: Style) -> Iterator[Line]:
    what = "a request failed, and the server is up" if unknown.refused else "no signature knows it"
    yield (("bold magenta", "? unrecognised failure"), ("bold", f"  {what}"))
    yield from wrapped(f"{one.place(unknown)}: {quoted(unknown.said)}", "    ", style, "bold", "  ")
    if unknown.raised_in:
        yield (("", f"    raised in   {quoted(unknown.raised_in)}"),)
    if unknown.called_from:
        yield (("", f"    called from {quoted(unknown.called_from)}"),)
    if unknown.logged_at and not unknown.raised_in:
        yield (("", f"    logged at   {quoted(unknown.logged_at)}"),)
    yield ()


def _closing(one: Explained, style: Style) -> Iterator[Line]:
    told, say = one.told, one.installer.again
    if harmless := sum(h.count for h in told.harmless):
        yield (("dim", f"{counted(harmless, 'line')} known to be harmless left out"),)
    if told.verdict == "explained":
        why = (("", "why:  "), ("cyan", say("rules", "show", str(told.primary))))
        yield (("", "fix:  "), ("cyan", one.command)) if one.command else why
        return
    if told.exit_code == HEALTHY:
        yield from wrapped(str(one.conclusion), "", style, "bold green")
        return
    yield from wrapped(f"{one.conclusion} {_HINTS[told.verdict]}", "", style, "bold")
    if told.verdict != "too-repetitive" and not (told.unknown and told.unknown.refused):
        yield (("", "judge the environment:  "), ("cyan", say("diagnose", "--deep")))


_HINTS: Mapping[LogVerdict, Text] = {
    "unrecognised": Text("The quoted line is what to search for."),
    "symptom": Text(
        "Look above its first line, or in the log of the process that it names as failed."
    ),
    "too-repetitive": Text("Name a shorter part of the log, from the last start of the server on."),
}
