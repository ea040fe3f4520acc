"""A plan, what came of it, and the runs that can be taken back, for a person at a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from doctor.diagnose import Report
from doctor.fixes import CudaHome, SetAside
from doctor.model import Fix, Installer, printable
from doctor.repair.apply import Applied
from doctor.repair.plan import Action, Plan, is_core
from doctor.repair.resolver import Move, Resolution, name_of
from doctor.repair.state import Run, Unusable
from doctor.report.lines import Line, served

_TITLES = {
    "install": "install distributions, in one transaction",
    "cuda-home": "make a CUDA home of links over the wheels",
    "environment": "save variables for the server and for `vllm-doctor env`",
    "set-aside": "set kernels aside that cannot be used",
}
_FRESH = 20
"""Distributions that are only added are named up to this many: an empty environment gets 194."""
_WORDS = {
    "healed": ("bold green", "✓ healed"),
    "already-healed": ("green", "✓ already-healed"),
    "still-there": ("bold yellow", "! still there"),
    "failed": ("bold red", "✗ failed, taken back"),
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
    for number, action in enumerate(plan.actions, 1):
        yield (("bold", f"{number}. {_TITLES[action.kind]}"),)
        yield (("dim", f"   for {', '.join(action.ids)}"),)
        yield from _changes(action, plan)
        for ask in action.asks:
            yield (("bold yellow", f"   needs --allow {ask.consent}: {ask.why}"),)
        yield from _commands(action, plan, report.installer)
        yield ()
    if not plan.actions:
        yield (("", "Nothing to repair here." if not plan.by_hand else "Nothing to do by itself."),)
        yield ()
    if plan.untried:
        yield (("dim", f"Judged again after that: {', '.join(plan.untried)}"),)
        yield ()
    if report.accepted:
        yield (("dim", f"Accepted, and left as it is: {', '.join(report.accepted)}"),)
        yield ()
    for held in plan.withheld:
        how = f"  (--allow {held.consent})" if held.consent else ""
        yield (("bold yellow", "- "), ("bold", held.id), ("", f"  left: {held.why}{how}"))
    if plan.withheld:
        yield ()
    for left in plan.by_hand:
        yield (("bold yellow", "- "), ("bold", left.id), ("", "  by hand:"))
        for fix in left.fixes:
            yield from _by_hand(fix, report.installer)
        yield ()


def _changes(action: Action, plan: Plan) -> Iterator[Line]:
    if action.kind != "install" or plan.resolution is None:
        for step in action.steps:
            yield (("", f"   {step}"),)
        return
    moves = plan.resolution.moves
    fresh = [m for m in moves if m.old is None and not _named(m, plan)]
    told = moves if len(fresh) <= _FRESH else [m for m in moves if m not in fresh]
    width = max((len(m.name) for m in told), default=0)
    for move in told:
        mark = "  (downgrade)" if move.is_downgrade and is_core(move.name) else ""
        what = f"{move.old or '-'} → {move.new or 'removed'}{mark}"
        yield (("", f"   {move.name:<{width}}  {what}"),)
    if len(told) < len(moves):
        yield (("", f"   and {len(fresh)} more that they need and that are not installed"),)
    if plan.resolution.why:
        yield (("", f"   {plan.resolution.why}"),)
    for reason in plan.resolution.passed_over:
        yield (("yellow", f"   passed over: {reason}"),)
    yield (("", f"   from {plan.resolution.index.name}, {fetched(plan.resolution)}"),)
    for note in plan.resolution.index.notes:
        yield (("dim", f"   {note}"),)


def _named(move: Move, plan: Plan) -> bool:
    return is_core(move.name) or move.name in {name_of(r) for r in plan.request.roots}


def fetched(resolution: Resolution) -> str:
    """How much has to be downloaded, in words."""
    size = resolution.download_bytes
    if size is None:
        return "download size unknown (this index does not say)"
    return f"{size / 2**20:.0f} MiB to download" if size else "nothing to download"


def _commands(action: Action, plan: Plan, installer: Installer) -> Iterator[Line]:
    """By hand, the same: what is set aside goes before what is installed in its place."""
    for step in action.steps:
        if isinstance(step, (CudaHome, SetAside)):
            for command in step.commands(installer):
                yield (("cyan", f"     {command}"),)
    if action.kind == "install" and plan.request.uninstalled:
        yield (("cyan", f"     {installer.line('uninstall', plan.request.uninstalled)}"),)
    if action.kind == "install" and plan.request.roots:
        yield (("cyan", f"     {installer.line('install', plan.request.roots)}"),)


def _by_hand(fix: Fix, installer: Installer) -> Iterator[Line]:
    yield (("green", f"    {fix.title}"),)
    for step in fix.steps:
        for command in step.commands(installer):
            yield (("cyan", f"      {command}"),)


def result_lines(applied: Applied) -> Iterator[Line]:
    """What healed, and how to take it back."""
    for result in applied.results:
        colour, word = _WORDS[result.outcome]
        yield ((colour, word), ("", f"  {result.action}"), ("dim", f"  {', '.join(result.ids)}"))
        if result.outcome == "failed":
            for line in result.tail.splitlines()[-12:]:
                yield (("dim", f"    {printable(line)}"),)
    if applied.run:
        yield ()
        command = applied.report.installer.again("undo", applied.run)
        yield (("dim", f"Take it back: {command}"),)


def run_lines(runs: Iterable[Run | Unusable]) -> Iterator[Line]:
    """The runs, oldest first: those that can be taken back, and why others cannot."""
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
