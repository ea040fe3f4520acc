"""The report that fits a screen: a line per finding, areas that passed in one, the next command."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from doctor.frozen import dataclass
from doctor.model import Finding, Outcome, Severity, Stage, Text, Verdict
from doctor.probes.interpreter import FoundBy
from doctor.probes.served import Profile
from doctor.report.closing import is_fixable, next_lines, snapshot_line, verdict_lines
from doctor.report.lines import MARKS, Line, Style, columns, counted, wrap, wrapped
from doctor.report.machine import fact, machine, prefix_of
from doctor.report.moments import MOMENTS, moment_of

if TYPE_CHECKING:
    from doctor.diagnose import Report

UNSURE = ("bold magenta", "?")
ACCEPTED = ("dim", "~")
NOT_RUN = ("dim", "-")
PASSED = ("green", "✓")
FAILED_MARK = ("bold red", "✗")
PRIMARY = "PRIMARY CAUSE"


@dataclass(frozen=True)
class Row:
    """One thing that a person should know. `tag` stands at the right of it; `stops`: the stage at
    which it stops the server, `number`: where several do; `command`: what only a person can do."""

    area: str
    mark: tuple[str, str]
    message: Text
    tag: str = ""
    primary: bool = False
    stops: Stage | None = None
    command: str | None = None
    number: int | None = None


def short_lines(report: Report, style: Style) -> Iterator[Line]:
    """The report, at most as wide as the style says, but for commands and paths."""
    if report.recorded:
        yield snapshot_line(report.recorded)
    yield from _header(report, style)
    rows = _arranged([*rows_of(report), *deep_rows(report)])
    yield from _block(rows, report, style)
    yield from _passed(report, style)
    yield from _stop(rows, style)
    yield ()
    yield from verdict_lines(report, style)
    yield from next_lines(report, style)


def quiet_lines(report: Report, style: Style) -> Iterator[Line]:
    """One line per finding, however long it is, and the verdict."""
    if report.recorded:
        yield snapshot_line(report.recorded)
    for row in (*rows_of(report), *deep_rows(report)):
        if row.mark not in (PASSED, NOT_RUN):
            name = f"{row.tag or row.area}{f' ({PRIMARY})' if row.primary else ''}"
            yield (row.mark, ("bold", f" {name}"), ("", f": {row.message}"))
    yield from verdict_lines(report, style)


def _header(report: Report, style: Style) -> Iterator[Line]:
    """What was judged, and what it is to serve, as far as it is known."""
    about, profile = machine(report), fact(report, Profile)
    names = about.gpus or ()
    gpus = [f"{names.count(name)} × {_gpu(name)}" for name in dict.fromkeys(names)]
    parts = [
        *([f"vLLM {about.vllm}"] if about.vllm else []),
        *([f"torch {about.torch}"] if about.torch else []),
        *gpus,
        *([f"driver {about.driver.partition('.')[0]}"] if about.driver else []),
    ]
    ranks = profile.tensor_parallel_size if profile else 1
    model = report.model.rpartition("/")[2] if report.model else "environment only"
    where = report.where
    line: Line = (("bold", str(prefix_of(report))),)
    if where.found_by is not FoundBy.OPTION:
        line = (*line, ("", f" ({where.how})"))
    for said in wrap(", ".join(parts), style.width - 2):
        if style.columns(line) + 2 + columns(said) > style.width:
            yield line
            line = ()
        line = (*line, ("", f"  {said}"))
    aim: Line = (("bold", f"→ {model}{f', TP {ranks}' if ranks > 1 else ''}"),)
    if style.columns(line) + 3 + style.columns(aim) > style.width:
        yield line
        line = ()
    yield (*line, ("", "   " if line else "  "), *aim)


def _gpu(name: str) -> str:
    """The name of a GPU without its maker and its kind of memory."""
    return re.sub(r" HBM\d\w*$", "", name.removeprefix("NVIDIA "))


def rows_of(report: Report) -> Iterator[Row]:
    """The findings, the gravest and earliest first; what crashed; and what is inconclusive, equal
    reasons once."""
    for outcome in report.outcomes:
        area, id = outcome.rule.area, outcome.rule.id
        if outcome.accepted:
            said = [f.message for f in outcome.findings] if outcome.why is None else [outcome.why]
            for what in said:
                yield Row(area, ACCEPTED, Text("accepted: {what}", what=what), id)
        elif outcome.verdict is Verdict.FOUND:
            for i, finding in enumerate(outcome.findings):
                yield _found(report, outcome, finding, outcome is report.primary and i == 0)
        elif outcome.verdict is Verdict.CRASHED:
            yield Row(area, UNSURE, Text("the check crashed: {why}", why=outcome.why), id)
    for why, outcomes in report.inconclusive():
        areas = list(dict.fromkeys(o.rule.area for o in outcomes))
        if len(outcomes) == 1:
            told = Text("inconclusive: {why}", why=why)
            yield Row(areas[0], UNSURE, told, outcomes[0].rule.id)
        elif len(areas) == 1:
            told = Text("{n} checks inconclusive: {why}", n=len(outcomes), why=why)
            yield Row(areas[0], UNSURE, told)
        else:
            told = Text(
                "{n} checks inconclusive: {why} ({areas})", n=len(outcomes), areas=areas, why=why
            )
            yield Row("several", UNSURE, told)


def _found(report: Report, outcome: Outcome, finding: Finding, primary: bool) -> Row:
    severity, stage = finding.severity or outcome.rule.severity, outcome.rule.stage
    commands = (line for fix in finding.fixes for line in fix.commands(report.installer))
    return Row(
        outcome.rule.area,
        MARKS[severity],
        finding.message,
        outcome.rule.id,
        primary,
        stage if severity is Severity.ERROR and moment_of(stage) else None,
        None if is_fixable(finding) else next(commands, None),
    )


def _brief(message: Text, report: Report) -> str:
    """The message, whose paths begin in the target's site-packages where they lead there: the
    header says which environment it is."""
    said = str(message)
    for folder in report.asked.site_packages if report.asked else ():
        if prefix_of(report) in folder.parents:
            said = said.replace(f"{folder}/", f"{folder.name}/")
    return said


def deep_rows(report: Report) -> Iterator[Row]:
    """The test build and the imports, a row each where they were asked for."""
    proof, made = report.proof, report.imports
    if proof and proof.ok:
        archs = [f"sm_{a}" for a in proof.archs]
        said = Text("compiled, linked and loaded for {archs}", archs=archs)
        yield Row("test build", PASSED, said)
    elif proof:
        said = Text("failed at {stage}: {line}", stage=proof.stage, line=proof.line.strip())
        yield Row("test build", FAILED_MARK, said)
    elif report.proof_missing:
        yield Row("test build", NOT_RUN, Text("not run: {why}", why=report.proof_missing))
    if made and made.died:
        names = [one.module for one in made.died]
        said = Text("{n} of {all} failed: {names}", n=len(names), all=len(made.rows), names=names)
        yield Row("imports", FAILED_MARK, said)
    elif made and made.failure:
        yield Row("imports", UNSURE, Text("not all were tried: {why}", why=made.failure))
    elif made:
        count = sum(row.outcome == "ok" for row in made.rows)
        said = Text("{n} of {all} modules that vLLM imports", n=count, all=len(made.rows))
        yield Row("imports", PASSED, said)
    elif report.imports_missing:
        yield Row("imports", NOT_RUN, Text("not run: {why}", why=report.imports_missing))


def _arranged(rows: Iterable[Row]) -> list[Row]:
    """The rows of an area together, areas by their first row; what stops the server is numbered
    where there are several."""
    areas: dict[str, list[Row]] = {}
    for row in rows:
        areas.setdefault(row.area, []).append(row)
    together = [row for area in areas.values() for row in area]
    if sum(row.stops is not None for row in together) < 2:
        return together
    numbers = itertools.count(1)
    return [r if r.stops is None else replace(r, number=next(numbers)) for r in together]


def _block(rows: Sequence[Row], report: Report, style: Style) -> Iterator[Line]:
    """The rows under each other: mark, area, message, and what names it at the right."""
    width = max((columns(row.area) for row in rows), default=0)
    digits = max((len(str(row.number)) for row in rows if row.number), default=0)
    before = ""
    for row in rows:
        area = "" if row.area == before else row.area
        number = f"{row.number or '':>{digits}} " if digits else ""
        name = f" {area}{' ' * (width - columns(area))}  "
        start = (row.mark, ("bold", name), ("dim", number))
        yield from _row(row, start, _brief(row.message, report), style)
        before = row.area


def _row(row: Row, start: Line, message: str, style: Style) -> Iterator[Line]:
    indent = " " * style.columns(start)
    colour = "" if row.mark != ACCEPTED else "dim"
    *above, last = wrap(message, style.width - len(indent)) or [""]
    for line in above:
        yield (*start, (colour, line))
        start = (("", indent),)
    yield from _tagged((*start, (colour, last)), _tag(row), style)
    if row.command:
        yield (("", f"{indent}(manual) "), ("cyan", row.command))


def _tag(row: Row) -> Line:
    primary = (("bold red", f"  {PRIMARY}"),) if row.primary else ()
    return (("dim", row.tag), *primary)


def _tagged(line: Line, tag: Line, style: Style) -> Iterator[Line]:
    """The line with the tag at the right edge, in a line of its own where there is no room."""
    taken, wide = style.columns(line), style.columns(tag)
    if not wide:
        yield line
    elif taken + 2 + wide <= style.width:
        yield (*line, ("", " " * (style.width - taken - wide)), *tag)
    else:
        yield line
        yield (("", " " * (style.width - wide)), *tag)


def _passed(report: Report, style: Style) -> Iterator[Line]:
    """The areas in which nothing is wrong or open in as few lines as they take, and how many checks
    passed in all."""
    passed = [o.rule.area for o in report.outcomes if o.verdict is Verdict.OK]
    sick = {o.rule.area for o in report.outcomes if o.verdict is not Verdict.OK}
    areas = sorted({*passed, *(n.rule.area for n in report.not_checked)} - sick)
    line: Line = ()
    for area in areas:
        mark = PASSED if area in passed else ("dim", "-")
        named: Line = (*([("", " ")] if line else []), mark, ("", f" {area}"))
        if line and style.columns(line) + style.columns(named) > style.width:
            yield line
            line, named = (), named[1:]
        line = (*line, *named)
    count = counted(len(passed), "check")
    told = Text("{checks} passed", checks=count)
    if skipped := len(report.not_checked):
        told = Text("{checks} passed, {n} not checked", checks=count, n=skipped)
    yield from _tagged(line, (("dim", str(told)),), style)


def _stop(rows: Sequence[Row], style: Style) -> Iterator[Line]:
    """The moments at which the server would stop, in their order."""
    told = []
    for moment, stages in MOMENTS:
        stopping = [row for row in rows if row.stops in stages]
        numbers = ranges([row.number for row in stopping if row.number])
        if stopping:
            told.append(f"{moment} ({numbers})" if numbers else str(moment))
    if told:
        yield from wrapped(str(Text("The server would stop at: {told}.", told=told)), "", style)


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in few words, such as "1, 3 to 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(
        f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs
    )
