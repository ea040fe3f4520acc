"""A plan, what came of it, and the runs that can be undone, for a person at a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from doctor.diagnose import Report
from doctor.model import Fix, Installer, printable
from doctor.repair.apply import Applied
from doctor.repair.create import CreationPlan
from doctor.repair.plan import Manual, Plan
from doctor.repair.resolver import fetched
from doctor.repair.state import Run, Unusable
from doctor.report.lines import Line, served

_WORDS = {
    "healed": ("bold green", "✓ fixed"),
    "already-healed": ("green", "✓ already fixed"),
    "still-there": ("bold yellow", "! still there"),
    "failed": ("bold red", "✗ failed, rolled back"),
}


def plan_lines(plan: Plan, report: Report) -> Iterator[Line]:
    """What is to be done, why, with which commands, and how much is fetched."""
    for line in _plan_lines(plan, report):
        yield tuple((colour, printable(piece)) for colour, piece in line)


def _plan_lines(plan: Plan, report: Report) -> Iterator[Line]:
    where = report.where
    yield (
        ("", "Plan for "),
        ("bold", f"{where.python}"),
        ("", f" (found by {where.how}), to serve "),
        *served(report),
    )
    yield ()
    yield from _actions(plan, report.installer)
    if not plan.actions:
        none = "No automatic fix; manual steps below." if plan.manual else "Nothing to fix."
        yield (("", none),)
        yield ()
    if conflicts := [one.id for one in plan.untried if one.conflicts]:
        yield (("dim", f"Judged again after that: {', '.join(conflicts)}"),)
        yield ()
    if report.accepted:
        yield (("dim", f"Accepted, and left as it is: {', '.join(report.accepted)}"),)
        yield ()
    for held in plan.withheld:
        how = f"  (--allow {held.consent})" if held.consent else ""
        yield (("bold yellow", "- "), ("bold", held.id), ("", f"  skipped: {held.why}{how}"))
    if plan.withheld:
        yield ()
    for left in plan.manual:
        yield from _manual(left, report.installer)


def _actions(plan: Plan, installer: Installer) -> Iterator[Line]:
    for number, action in enumerate(plan.actions, 1):
        yield (("bold", f"{number}. {action.kind.title}"),)
        yield (("dim", f"   for {', '.join(action.ids)}"),)
        for colour, line in action.kind.lines(action):
            yield ((colour, f"   {line}"),)
        for ask in action.asks:
            yield (("bold yellow", f"   needs --allow {ask.consent}: {ask.why}"),)
        for command in action.kind.commands(action, installer):
            yield (("cyan", f"     {command}"),)
        yield ()


def _manual(left: Manual, installer: Installer) -> Iterator[Line]:
    yield (("bold yellow", "- "), ("bold", left.id), ("", "  (manual):"))
    for fix in left.fixes:
        yield (("green", f"    {fix.title}"),)
        for command in _commands(fix, installer):
            yield (("cyan", f"      {command}"),)
    yield ()


def _commands(fix: Fix, installer: Installer) -> Iterator[str]:
    return (line for step in fix.steps for line in step.commands(installer))


def size_text(size: int) -> str:
    """Bytes, in the unit that a person reads with ease."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def creation_lines(plan: CreationPlan, command: str) -> Iterator[Line]:
    """What `command` would make, as far as it goes before there is anything to judge."""
    for line in _creation_lines(plan, command):
        yield tuple((colour, printable(piece)) for colour, piece in line)


def _creation_lines(plan: CreationPlan, command: str) -> Iterator[Line]:
    made, base = plan.resolution, plan.base
    yield (("", "Plan for "), ("bold", str(plan.path)), ("", ", which is not there yet"))
    yield ()
    yield (("bold", "1. make a virtual environment"),)
    yield (("", f"   of {base.path} (Python {base.version})"),)
    yield (("bold", "2. install distributions, in one transaction"),)
    held = f"vLLM {plan.vllm}, which the profile holds"
    yield (("", f"   {made.why or held}"),)
    for skipped in made.passed_over:
        yield (("yellow", f"   skipped mirror {skipped}"),)
    size = fetched(made.download_bytes)
    yield (("", f"   {len(made.moves)} packages from {made.index.name}, {size}"),)
    for room in plan.rooms:
        known = made.download_bytes is not None
        needed = f"about {size_text(room.needed)}" if known else "size unknown"
        yield (("", f"   disk: {needed} in {room.folder}, {size_text(room.free)} free"),)
    yield (("bold", "3. diagnose it, fix what is found, and verify it"),)
    yield ()
    if plan.fits:
        yield (("", f"Nothing was changed. To do it: {command}"),)
    else:
        yield (("bold red", "It does not fit on the disk. Nothing was changed."),)


def result_lines(applied: Applied) -> Iterator[Line]:
    """What was fixed, and how to undo it."""
    for result in applied.results:
        colour, word = _WORDS[result.outcome]
        yield ((colour, word), ("", f"  {result.action}"), ("dim", f"  {', '.join(result.ids)}"))
        if result.outcome == "failed":
            for line in result.tail.splitlines()[-12:]:
                yield (("dim", f"    {printable(line)}"),)
    if applied.run:
        yield ()
        command = applied.report.installer.again("undo", applied.run)
        yield (("dim", f"Undo it: {command}"),)


def run_lines(runs: Iterable[Run | Unusable]) -> Iterator[Line]:
    """The runs, oldest first: those that can be undone, and why others cannot."""
    for run in runs:
        if isinstance(run, Unusable):
            yield (("bold", printable(run.id)), ("red", f"  damaged: {printable(run.why)}"))
            continue
        if run.elsewhere is not None:
            where = printable(run.elsewhere)
            yield (("bold", run.id), ("", f"  made elsewhere, in {where}: undo it there"))
            continue
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.journal.began))
        size = f"{run.size() / 2**20:.0f} MiB set aside"
        yield (("bold", run.id), ("", f"  {began}  {run.journal.state}  {size}"))
        for done in run.journal.actions:
            ids = f"  {printable(done.ids)}"
            yield (("", f"    {printable(done.action)}"), ("dim", ids))
            for line in done.summary[:20]:
                yield (("dim", f"      {printable(line)}"),)
