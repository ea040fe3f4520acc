"""Makes a plan of a report, carries it out, and has the same rules judge what came of it."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from doctor import about
from doctor.diagnose import Report
from doctor.engine import Crashed
from doctor.fixes import SetAside
from doctor.model import Missing, Severity, Text, Verdict, os_refusal
from doctor.probes.host import HostCompilers
from doctor.repair import newest, resolver, running, stage, swap
from doctor.repair import plan as planning
from doctor.repair.index import PackageIndex
from doctor.repair.manifest import Done, Swap
from doctor.repair.plan import Action, Consent, Plan, SelectedFix, Withheld
from doctor.repair.resolver import Move, Resolution, ToolError, Wanted
from doctor.repair.stage import RepairContext, StageError
from doctor.repair.state import MAKING, Run, State
from doctor.target import Target

ROUNDS = 3
"""How often new findings may come into sight: an empty environment shows its compiler's faults
once vLLM is installed, and the linker's once it compiles."""
_UNPACKED = 2.3
"""Bytes on disk for each byte of wheels: 8.5 GB of 3.8 GB for vLLM 0.22.0 and all it needs."""


class RepairError(Exception):
    """A repair that cannot begin; one sentence. Nothing was changed."""

    def __init__(self, message: str, tail: str = "") -> None:
        super().__init__(message)
        self.tail = tail


FixOutcome = Literal["healed", "already-healed", "still-there", "failed"]


@dataclass(frozen=True)
class Result:
    """What came of one action. `tail`: the last lines of a tool that failed."""

    action: str
    ids: tuple[str, ...]
    outcome: FixOutcome
    tail: str = ""


@dataclass(frozen=True)
class Applied:
    """What a whole run came to: the report made after it, and its name for `undo`."""

    report: Report
    results: tuple[Result, ...]
    run: str | None


def context(
    report: Report, target: Target, tell: Callable[[str], None], bounds: newest.Bounds
) -> RepairContext:
    """What the repair of this report works on. Raises NotTrusted."""
    who = report.interpreter
    try:
        host = report.facts.get(HostCompilers).cxx.compiler
        compiler = (str(host.path), *host.arguments) if host else None
    except (Missing, Crashed):
        compiler = None
    return RepairContext(
        target=target,
        python=who.python,
        prefix=who.prefix,
        site_packages=who.site_packages,
        installed=planning.installed(report),
        compiler=compiler,
        tool=resolver.find_tool(target),
        tell=tell,
        bounds=bounds,
    )


def prepare(
    report: Report,
    context: RepairContext,
    indexes: Sequence[PackageIndex],
    fail_on: Severity,
    allowed: Collection[Consent],
    tried: Collection[SelectedFix] = (),
    only: Collection[str] = (),
) -> Plan:
    """The plan for a report, or for its ailments `only`, resolved. What needs a consent that is not
    `allowed` is withheld, and what hangs on it too. Raises RepairError where no index can give what
    is asked."""
    withheld: dict[str, Withheld] = {}
    while True:
        chosen, by_hand, untried = planning.select_fixes(report, fail_on, tried, withheld, only)
        actions = list(planning.actions(chosen))
        made = Plan(tuple(actions), tuple(by_hand), untried=tuple(untried), chosen=tuple(chosen))
        refused = list(_in_use(made, context))
        install = next((a for a in actions if a.kind == "install"), None)
        if install:
            made, asks = _resolved(made, install, report, context, indexes)
            refused += [
                Withheld(id, ask.why, ask.consent)
                for ask in asks
                if ask.consent not in allowed
                for id in _hang_on(ask, install, made.chosen)
            ]
        if not refused:
            return dataclasses.replace(made, withheld=tuple(withheld.values()))
        withheld.update({one.id: one for one in refused})


def _hang_on(
    ask: planning.ConsentRequest, install: Action, chosen: Iterable[SelectedFix]
) -> Iterable[str]:
    """The findings that need this yes: of a change of torch and its like, those whose own fix asks
    for it, so that the others are repaired without."""
    asking = [c.id for c in planning.asking(install, chosen)]
    return asking if ask.consent == "core" and asking else install.ids


def _in_use(made: Plan, context: RepairContext) -> Iterable[Withheld]:
    """Kernels that someone builds or has loaded are never set aside."""
    for action in made.actions:
        steps = [s for s in action.steps if isinstance(s, SetAside)]
        if action.kind != "set-aside" or not steps:
            continue
        folders = dict.fromkeys(step.path.parent for step in steps)
        who = [*running.users(context.prefix), *(p for f in folders for p in running.builders(f))]
        if who:
            why = Text("these kernels may be in use by {who}", who=list(dict.fromkeys(who)))
            yield from (Withheld(id, why) for id in action.ids)


def _resolved(
    made: Plan,
    install: Action,
    report: Report,
    context: RepairContext,
    indexes: Sequence[PackageIndex],
) -> tuple[Plan, tuple[planning.ConsentRequest, ...]]:
    _must_not_be_the_systems(report)
    asked = planning.request(install, made.chosen, report)
    request = dataclasses.replace(asked, roots=context.bounds.roots(asked.roots))
    resolution = Resolution(indexes[0], ())
    if request.roots:
        if context.tool is None:
            raise RepairError("there is no uv to resolve and install with: pip install uv")
        try:
            resolution = _resolution(context.tool, request, report, context, indexes)
        except ToolError as error:
            # Of what does not go together the tool says more than a sentence; of all else, no more.
            tail = error.tail if error.no_solution else ""
            bounds = context.bounds if request != asked else None
            within, way_out = (bounds, bounds.way_out) if bounds else ("", "")
            said = f"no index can give what is needed{within}: {error}{way_out}"
            raise RepairError(said, tail) from None
    going = [
        Move(name, str(context.installed[name].version), None)
        for name in request.remove
        if name in context.installed and name not in {m.name for m in resolution.moves}
    ]
    resolution = dataclasses.replace(resolution, moves=(*resolution.moves, *going))
    asks = planning.consents(install, made.chosen, resolution.moves, running.users(context.prefix))
    asking = dataclasses.replace(install, asks=asks)
    actions = tuple(asking if a is install else a for a in made.actions)
    return (
        dataclasses.replace(made, actions=actions, request=request, resolution=resolution),
        asks,
    )


def _must_not_be_the_systems(report: Report) -> None:
    """PEP 668: what the distribution's package manager owns is not ours to change."""
    who = report.interpreter
    version = f"python{who.version.major}.{who.version.minor}"
    mark = who.base_prefix / "lib" / version / "EXTERNALLY-MANAGED"
    if not who.virtual and mark.exists():
        home = str(Path.home() / "vllm-env")
        command = report.installer.again("fix", "--apply", "--create", "--python", home)
        raise RepairError(
            f"{who.python} belongs to the system's package manager ({mark}); make an environment: "
            f"{command}"
        )


def _resolution(
    tool: resolver.Tool,
    request: planning.Request,
    report: Report,
    context: RepairContext,
    indexes: Sequence[PackageIndex],
) -> Resolution:
    """With torch, vLLM, FlashInfer and triton held; where there is no such solution, with them
    moved, which then needs a yes."""
    who = report.interpreter
    wanted = Wanted(
        who.python, who.version, who.installs_to, request.roots, request.pinned, request.reinstall
    )
    try:
        return newest.resolve_newest(tool, wanted, indexes, context.target.env, context.bounds)
    except ToolError as error:
        if not (error.no_solution and request.pinned):
            raise
    free = dataclasses.replace(wanted, pinned=())
    return newest.resolve_newest(tool, free, indexes, context.target.env, context.bounds)


def must_fit(made: Plan, context: RepairContext) -> None:
    """Raises RepairError where the target may not be written, or its disk or the one of the
    installer's cache is too small for what is fetched."""
    if not made.actions:
        return
    for folder in (*context.site_packages[:1], context.prefix):
        if folder.is_dir() and not os.access(folder, os.W_OK):
            raise RepairError(f"{folder} cannot be written by this user")
    resolution = made.resolution
    if resolution is None:
        return
    fetched = resolution.download_bytes or 0
    cache = context.tool.cache(context.target.env) if context.tool else context.prefix
    for folder, need in _room(context.prefix, cache, fetched):
        free = shutil.disk_usage(folder).free
        if free < need:
            raise RepairError(
                f"{folder} has {free >> 10} KiB free, and this needs about {need >> 10} KiB"
            )


def _room(prefix: Path, cache: Path, fetched: int) -> list[tuple[Path, int]]:
    """It unpacks while it downloads, and links from there into the target where it can."""
    there = next(p for p in (cache, *cache.parents) if p.is_dir())
    unpacked = int(fetched * _UNPACKED)
    rows = [(there, unpacked)]
    if there.stat().st_dev != prefix.stat().st_dev:
        rows.append((prefix, unpacked))
    return rows


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


def apply(
    first: Plan,
    report: Report,
    context: RepairContext,
    state: State,
    run: Run | None,
    judge: Callable[[bool], Report],
    replan: Callable[[Report, RepairContext, Collection[SelectedFix]], Plan],
    fail_on: Severity,
) -> Applied:
    """Carries the plan out, judges again, and goes on with what only then came into sight.

    `judge(deep)` diagnoses anew. A failed action is taken back by itself, and the rest of the plan
    stops. An interruption takes the whole run back and goes on its way.
    """
    if not first.actions and run is None:
        return Applied(report, _earlier(state, report, fail_on), None)
    run = run or state.begin(f"{about.NAME} {about.VERSION}")
    done: list[Done] = list(run.journal.actions)
    counted = _counted(report, fail_on)
    tried: set[SelectedFix] = set()
    plan = first
    failure: Result | None = None
    try:
        for number in range(ROUNDS):
            must_fit(plan, context)
            for action in plan.actions:
                try:
                    done.append(_carry_out(action, plan, context, run))
                except (StageError, OSError) as error:
                    failure = Result(action.kind, action.ids, "failed", _told(error))
                    break
                run.note(actions=tuple(done))
            tried |= set(plan.chosen)
            report = judge(failure is None)
            if failure is None:
                plan = _next(report, context, replan, tried)
            if failure or not plan.actions or number == ROUNDS - 1:
                break
            counted |= _counted(report, fail_on)
            context = dataclasses.replace(context, installed=planning.installed(report))
    except BaseException:
        state.undo(run)
        raise
    if done:
        run.note(state="applied", ended=time.time())
    else:
        state.undo(run)
    results = [
        Result(d.action, d.ids, "still-there" if _there(report, d.ids, counted) else "healed")
        for d in done
        if d.ids
    ]
    return Applied(report, (*results, *([failure] if failure else [])), run.id if done else None)


def _told(error: StageError | OSError) -> str:
    if isinstance(error, OSError):
        return os_refusal(error)
    return "\n".join(t for t in (str(error), error.tail) if t)


def _next(
    report: Report,
    context: RepairContext,
    replan: Callable[[Report, RepairContext, Collection[SelectedFix]], Plan],
    tried: Collection[SelectedFix],
) -> Plan:
    try:
        return replan(report, context, tried)
    except RepairError:
        return Plan()  # what is done stays done; the report says what is left


def _carry_out(action: Action, plan: Plan, context: RepairContext, run: Run) -> Done:
    """One action: staged, then made, change by change; a change that fails leaves nothing."""
    numbers: list[int] = []

    def change(prepare: _Prepare, then: Callable[[], None] | None = None) -> None:
        folder = run.begin_change()
        try:
            made = prepare(folder)
        except BaseException:
            run.drop(folder)
            raise
        run.commit(folder, made, then)
        numbers.append(int(folder.name))

    if action.kind == "install":
        wrong = _inconsistent(context)

        def no_worse() -> None:
            if worse := _inconsistent(context) - wrong:
                why = "what is installed would not go together any more"
                raise StageError(why, "\n".join(sorted(worse)))

        change(
            lambda at: stage.stage_distributions(context, at, plan.request, plan.resolution),
            no_worse,
        )
    elif action.kind == "cuda-home":
        change(lambda at: stage.stage_cuda_home(context, at, action.steps))
    elif action.kind == "environment":
        change(lambda at: stage.stage_environment(context, at, action.steps))
    else:
        for step in action.steps:
            if isinstance(step, SetAside) and os.path.lexists(step.path):
                aside = functools.partial(stage.stage_set_aside, context.prefix, run.id, step)
                change(aside)
    return Done(action.kind, action.ids, summary(action, plan), tuple(numbers))


_Prepare = Callable[[Path], Swap]


def _inconsistent(context: RepairContext) -> frozenset[str]:
    """What does not go together among the installed distributions, one sentence each."""
    if context.tool is None:
        return frozenset()
    return context.tool.check(context.python, context.target.env)


def summary(action: Action, plan: Plan) -> tuple[str, ...]:
    """The action in short lines, for the journal and for a person."""
    if action.kind == "install" and plan.resolution:
        return tuple(
            f"{m.name} {m.old or 'not installed'} → {m.new or 'removed'}"
            for m in plan.resolution.moves
        )
    return tuple(str(step) for step in action.steps)


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
    """Nothing is to be done: what the last run healed is healed still."""
    runs = [r for r in state.runs() if r.journal.state == "applied" and r.elsewhere is None]
    there = _counted(report, fail_on)
    return tuple(
        Result(d.action, d.ids, "already-healed")
        for d in (runs[-1].journal.actions if runs else ())
        if d.ids and not there & set(d.ids)
    )
