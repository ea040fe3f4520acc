"""Carries a plan out, and has the same rules judge what came of it."""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from doctor import about
from doctor.diagnose import Report
from doctor.errors import DoctorError
from doctor.model import Severity, Text, Verdict, os_refusal
from doctor.repair import swap
from doctor.repair.action import Action, Changed, SelectedFix
from doctor.repair.context import RepairContext
from doctor.repair.errors import Interrupted, RepairError, StageError
from doctor.repair.installer import UNPACKED
from doctor.repair.manifest import Done, Effect
from doctor.repair.plan import Plan
from doctor.repair.resolver import Resolution
from doctor.repair.state import MAKING, Run, State

ROUNDS = 3
"""How often new findings may come into sight: an empty environment shows its compiler's faults
once vLLM is installed, and the linker's once it compiles."""

ActionOutcome = Literal["healed", "already-healed", "still-there", "failed"]


@dataclass(frozen=True)
class Result:
    """What came of one action. `tail`: the last lines of a tool that failed."""

    action: str
    ids: tuple[str, ...]
    outcome: ActionOutcome
    tail: str = ""


@dataclass(frozen=True)
class Applied:
    """What a whole run came to: the report made after it, its name for `undo`, by action what it
    changed, and what of a failed action could not be rolled back."""

    report: Report
    results: tuple[Result, ...]
    run: str | None
    changed: tuple[tuple[str, Changed], ...] = ()
    left: tuple[Text, ...] = ()


@dataclass(frozen=True)
class Judge:
    """How what was done is judged: `again(deep)` diagnoses anew, `replan` says what is done next,
    without the fixes that were tried."""

    fail_on: Severity
    again: Callable[[bool], RepairContext]
    replan: Callable[[RepairContext, Collection[SelectedFix]], Plan]


def must_fit(made: Plan, context: RepairContext) -> None:
    """Raises RepairError where the target may not be written, or its disk or the one of the
    installer's cache is too small for what is fetched."""
    if not made.actions:
        return
    for folder in (*context.site_packages[:1], context.prefix):
        if folder.is_dir() and not os.access(folder, os.W_OK):
            raise RepairError(Text("{folder} cannot be written by this user", folder=folder))
    if made.resolution is None:
        return
    cache = context.tool.cache(context.shell) if context.tool else context.prefix
    for one in rooms(context.prefix, cache, made.resolution):
        if not one.fits:
            raise RepairError(one.too_small)


@dataclass(frozen=True)
class Room:
    """Of one disk, in bytes: what is needed on it (None: not known), and what is free."""

    folder: Path
    needed: int | None
    free: int

    @property
    def fits(self) -> bool:
        return self.needed is None or self.free >= self.needed

    @property
    def too_small(self) -> Text:
        return Text(
            "{folder} has {free} KiB free, and this needs about {needed} KiB",
            folder=self.folder,
            free=self.free >> 10,
            needed=(self.needed or 0) >> 10,
        )


def rooms(prefix: Path, cache: Path, made: Resolution) -> tuple[Room, ...]:
    """What a transaction needs on disk: the installer unpacks what it downloads in its cache, and
    links from there into the target; where that is another disk, it copies all that is installed.
    Folders need not be there yet."""
    places = [next(p for p in (at, *at.parents) if p.is_dir()) for at in (cache, prefix)]
    rows = list(zip(places, (made.download_bytes, made.installed_bytes), strict=True))
    if places[0].stat().st_dev == places[1].stat().st_dev:
        rows = rows[:1]
    return tuple(
        Room(at, None if size is None else int(size * UNPACKED), shutil.disk_usage(at).free)
        for at, size in rows
    )


def adopt(state: State) -> Run:
    """A run that begins with the files of an environment that was just made: they go again with
    its undo."""
    run = state.begin(f"{about.NAME} {about.VERSION}")
    change = run.begin_change()
    run.adopt(change, swap.adopted(state.prefix, change, state.folder))
    done = Done("create", (), (f"made {state.prefix}",), (int(change.name),))
    run.note(actions=(done,), made=(".", *run.journal.made))
    (state.folder / MAKING).unlink(missing_ok=True)
    return run


def apply(first: Plan, context: RepairContext, state: State, run: Run | None, by: Judge) -> Applied:
    """Carries the plan out, judges again, and goes on with what only then came into sight.

    A failed action is rolled back by itself, and the rest of the plan stops. An interruption rolls
    the whole run back and goes on its way.
    """
    report = context.report
    if not first.actions and run is None:
        return Applied(report, _earlier(state, report, by.fail_on), None)
    run = run or state.begin(f"{about.NAME} {about.VERSION}")
    done: list[Done] = list(run.journal.actions)
    counted = _counted(report, by.fail_on)
    tried: set[SelectedFix] = set()
    changed: list[tuple[str, Changed]] = []
    plan = first
    failure: Result | None = None
    try:
        for number in range(ROUNDS):
            must_fit(plan, context)
            for action in plan.actions:
                context.talk.phase(Text("{title} ...", title=action.kind.title))
                try:
                    done.append(_carry_out(action, context, run))
                except (DoctorError, OSError) as error:
                    failure = Result(action.kind.name, action.ids, "failed", _described(error))
                    break
                changed += [(action.kind.name, row) for row in action.kind.changes(action)]
                run.note(actions=tuple(done))
            tried |= set(plan.selection.chosen)
            context = by.again(failure is None)
            report = context.report
            if failure is None:
                plan = _next(context, by, tried)
            if failure or not plan.actions or number == ROUNDS - 1:
                break
            counted |= _counted(report, by.fail_on)
    except BaseException as error:
        roll_back(state, run, error)
    left = run.notes
    if done:
        run.note(state="applied", ended=time.time())
    else:
        left = state.undo(run)
    results = [
        Result(d.action, d.ids, "still-there" if _there(report, d.ids, counted) else "healed")
        for d in done
        if d.ids
    ]
    results += [failure] if failure else []
    name = run.id if done else None
    return Applied(report, tuple(results), name, tuple(changed), tuple(left))


def roll_back(state: State, run: Run, error: BaseException) -> NoReturn:
    """Undoes the run that `error` ended, and raises it; Ctrl-C as Interrupted, which says what is
    and is not changed."""
    try:
        left = state.undo(run)
    except KeyboardInterrupt:
        raise Interrupted(half_undone(run)) from None
    if not isinstance(error, KeyboardInterrupt):
        raise error
    if left:
        text = Text(
            "interrupted: run {run} was rolled back, but for: {left}", run=run.id, left=left
        )
        raise Interrupted(text) from None
    text = Text("interrupted: run {run} was rolled back; nothing is changed", run=run.id)
    raise Interrupted(text) from None


def rolling_back(run: Run) -> Text:
    """What is said of a run that a killed doctor left half-way."""
    return Text("run {run} was interrupted; rolling back", run=run.id)


def half_undone(run: Run) -> Text:
    """What Ctrl-C leaves amid the undo of a run."""
    return Text(
        "interrupted: run {run} is only partly rolled back; the next `undo` or `fix --apply` "
        "finishes it",
        run=run.id,
    )


def _described(error: DoctorError | OSError) -> str:
    if isinstance(error, OSError):
        return os_refusal(error)
    return "\n".join(t for t in (str(error), error.tail) if t)


def _next(context: RepairContext, by: Judge, tried: Collection[SelectedFix]) -> Plan:
    try:
        return by.replan(context, tried)
    except RepairError:
        return Plan()  # what is done stays done; the report says what is left


def _carry_out(action: Action, context: RepairContext, run: Run) -> Done:
    """One action: prepared, then made, change by change; a change that fails leaves nothing."""
    kind = action.kind
    numbers: list[int] = []
    wrong = kind.problems(context)

    def must_be_no_worse() -> None:
        if worse := kind.problems(context) - wrong:
            text = Text("installed packages would conflict")
            raise StageError(text, "\n".join(sorted(worse)))

    for part in kind.split(action):
        folder = run.begin_change()
        try:
            made = kind.prepare(context, part, folder)
        except BaseException:
            run.drop(folder)
            raise
        if isinstance(made, Effect):
            run.perform(folder, made, kind, functools.partial(kind.carry_out, context=context))
        else:
            run.commit(folder, made, must_be_no_worse)
        numbers.append(int(folder.name))
    return Done(kind.name, action.ids, kind.summary(action), tuple(numbers))


def _counted(report: Report, fail_on: Severity) -> set[str]:
    return {
        o.rule.id
        for o in report.outcomes
        if o.verdict is Verdict.FOUND and o.severity.rank >= fail_on.rank
    }


def _there(report: Report, ids: Iterable[str], counted: Collection[str]) -> bool:
    """One of these ailments is still found, and as gravely as when it was treated."""
    for outcome in report.outcomes:
        if outcome.rule.id in ids and outcome.verdict is not Verdict.OK:
            grave = outcome.severity is not Severity.INFO
            if outcome.verdict is not Verdict.FOUND or grave or outcome.rule.id not in counted:
                return True
    return False


def _earlier(state: State, report: Report, fail_on: Severity) -> tuple[Result, ...]:
    """Nothing is to be done: what the last run fixed is fixed still."""
    runs = [r for r in state.runs() if r.journal.state == "applied" and r.elsewhere is None]
    there = _counted(report, fail_on)
    return tuple(
        Result(d.action, d.ids, "already-healed")
        for d in (runs[-1].journal.actions if runs else ())
        if d.ids and not there & set(d.ids)
    )
