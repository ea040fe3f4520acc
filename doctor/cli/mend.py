"""Commands that change the target and take it back: fix, undo."""

from __future__ import annotations

import contextlib
import functools
import shutil
import signal
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from doctor.cli.output import (
    confirm,
    fail,
    print_json,
    print_lines,
    rules_print_to_stderr,
    say,
    tell,
    verbatim,
    write_file,
)
from doctor.cli.shared import (
    did_you_mean,
    fail_to_judge,
    live,
    load,
    profile,
    python_options,
    target_options,
)
from doctor.diagnose import Report
from doctor.diagnose import diagnose as run_diagnosis
from doctor.engine import Crashed
from doctor.exits import FAILED, FINDINGS, UNKNOWN, USAGE
from doctor.locate import LocateError, base_python
from doctor.model import Missing, Rule, Severity, reason, refusal
from doctor.probes.interpreter import OWN, Interpreter, Where
from doctor.profile import Profile
from doctor.target import Live, Target

if TYPE_CHECKING:
    from doctor.repair.apply import Applied
    from doctor.repair.index import Index
    from doctor.repair.plan import Chosen, Consent, Plan
    from doctor.repair.stage import Ground
    from doctor.repair.state import Run, State

_CONSENTS = ("core", "running")


@click.command()
@functools.partial(target_options, consents=_CONSENTS)
@click.option("--apply", "wanted", is_flag=True, help="Do it, judge again, say what healed.")
@click.option("--create", is_flag=True, help="Make the environment of --python if it is not there.")
@click.option(
    "--mirror",
    "mirrors",
    multiple=True,
    metavar="aliyun|tuna|ustc|default|URL",
    help="Where to fetch from; several are asked in turn. Else pip's configuration, else the "
    "profile's.",
)
@click.option(
    "--keep-extra-indexes", is_flag=True, help="With --mirror, keep pip's other indexes too."
)
@click.option(
    "--only",
    "only",
    multiple=True,
    metavar="ID[,ID...]",
    help="Repair these ailments and no others; may be given several times.",
)
@click.option("--script", metavar="FILE", help="Write the plan as a shell script; - for stdout.")
@click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True
)
@click.option(
    "--fail-on",
    type=click.Choice([s.value for s in Severity]),
    default=Severity.ERROR.value,
    show_default=True,
    help="The least finding that is repaired.",
)
def fix(
    python: str | None,
    profile_name: str,
    sets: tuple[str, ...],
    allow: tuple[str, ...],
    rules_dir: str | None,
    wanted: bool,
    create: bool,
    mirrors: tuple[str, ...],
    keep_extra_indexes: bool,
    only: tuple[str, ...],
    script: str | None,
    form: str,
    fail_on: str,
) -> None:
    """Show what would repair the environment; with --apply, repair it.

    Exit codes: 0 healthy, 1 findings are left, 2 usage, 3 could not tell, 4 a repair failed and
    was taken back.
    """
    if create and python is None:
        fail("--create makes the environment that --python names; name one", USAGE)
    if script is not None and wanted:
        fail("--script writes down what --apply does; give one of them", USAGE)
    if keep_extra_indexes and not mirrors:
        fail("--keep-extra-indexes belongs to --mirror; without one, they are kept", USAGE)
    rules = load(rules_dir)
    asked = Asked(
        profile(profile_name, sets),
        profile_name,
        rules,
        Severity(fail_on),
        form,
        frozenset(_known(only, rules)),
    )
    if wanted and python is not None:
        _mend_creation(Path(python))
    fresh = create and python is not None and not _is_environment(Path(python))
    if fresh and not wanted:
        fail(f"--create {python}: there is nothing to judge yet; add --apply", USAGE)
    if fresh and python is not None:
        _sources(asked, mirrors, keep_extra_indexes, Path(python).absolute())
        _make_environment(Path(python), asked)
    target, where = live(python, allow)
    if wanted and where.found_by == OWN:
        fail("no environment is active: name the one to repair with --python", USAGE)
    try:
        with rules_print_to_stderr():
            fixing = Fixing(asked, target, where)
            fixing.find_indexes(mirrors, keep_extra_indexes)
            plan, applied = fixing.apply(allow, fresh) if wanted else (fixing.plan(), None)
    except (Missing, Crashed) as error:
        fail_to_judge(error)
    if form == "json":
        from doctor.report.json import repair_json

        print_json(repair_json(fixing.report, plan, applied))
    elif script is not None:
        _write_script(script, fixing, plan)
    elif applied is None:
        fixing.show(plan)
    failed = applied is not None and any(r.outcome == "failed" for r in applied.results)
    raise SystemExit(FAILED if failed else fixing.report.exit_code)


@dataclass(frozen=True)
class Asked:
    """What the person asked for."""

    profile: Profile
    profile_name: str
    rules: tuple[Rule, ...]
    fail_on: Severity
    form: str
    only: frozenset[str] = frozenset()


def _known(only: Iterable[str], rules: Iterable[Rule]) -> Iterator[str]:
    """The ids, one by one; none that no rule has."""
    known = {r.id for r in rules}
    for words in only:
        for id in filter(None, words.split(",")):
            if id not in known:
                fail(f"--only {id}: there is no such rule{did_you_mean(id, known)}", USAGE)
            yield id


class Fixing:
    """One `fix`: the report as it stands, and what the planner needs beside it."""

    def __init__(self, asked: Asked, target: Target, where: Where) -> None:
        self._asked = asked
        self._target = target
        self._where = where
        self._indexes: tuple[Index, ...] = ()
        self.report = self._judge(False)

    def _judge(self, deep: bool) -> Report:
        if deep:
            self._tell("proving it: a kernel is compiled, linked and loaded ...")
        return run_diagnosis(
            self._target,
            self._where,
            self._asked.profile,
            self._asked.rules,
            profile_name=self._asked.profile_name,
            deep=deep,
            fail_on=self._asked.fail_on,
        )

    def _tell(self, line: str) -> None:
        """What goes on, for a person who waits; programs read the result."""
        if self._asked.form == "text" and line.strip():
            with contextlib.suppress(OSError):  # nobody reads any more: no reason to stop half-way
                say(f"  {line.strip()}", err=True)

    def find_indexes(self, mirrors: tuple[str, ...], keep_extra: bool) -> None:
        prefix = self.report.interpreter.prefix
        self._indexes = _sources(self._asked, mirrors, keep_extra, prefix)

    def plan(self) -> Plan:
        """What would be done if every consent were given."""
        from doctor.repair import apply as work

        try:
            return self._prepare(self.report, self._ground(), _CONSENTS)
        except work.RepairError as error:
            fail(_with_tail(error), UNKNOWN)

    def _ground(self) -> Ground:
        from doctor.repair import apply as work

        return work.ground(self.report, self._target, self._tell)

    def _prepare(
        self,
        report: Report,
        ground: Ground,
        allowed: Collection[str],
        tried: Collection[Chosen] = (),
    ) -> Plan:
        from doctor.repair import apply as work

        consents = cast("Collection[Consent]", allowed)
        asked = self._asked
        return work.prepare(
            report, ground, self._indexes, asked.fail_on, consents, tried, asked.only
        )

    def apply(self, allow: tuple[str, ...], created: bool) -> tuple[Plan, Applied]:
        from doctor.repair import apply as work
        from doctor.repair.state import KEEP_DAYS, State, StateError

        _do_not_die_of_a_pipe()
        state = State(self.report.interpreter.prefix)
        try:
            with state.locked():
                run = work.adopt(state) if created else None
                try:
                    self._mend(state, run)
                    state.purge(KEEP_DAYS * 86400)
                    plan, ground, allowed = self._agreed(allow)

                    def replan(report: Report, ground: Ground, tried: Collection[Chosen]) -> Plan:
                        more = self._prepare(report, ground, allowed, tried)
                        if more.actions:
                            self._tell("what was hidden until now:")
                            self._show(more, report)
                        return more

                    applied = work.apply(
                        plan,
                        self.report,
                        ground,
                        state,
                        run,
                        self._judge,
                        replan,
                        self._asked.fail_on,
                    )
                    self._remember(applied.report)
                except BaseException:
                    if run and run.folder.exists():
                        state.undo(run)
                    raise
        except StateError as error:
            fail(str(error), FAILED)
        except work.RepairError as error:
            fail(_with_tail(error), FAILED)
        except OSError as error:
            fail(refusal(error), FAILED)
        self.report = applied.report
        if self._asked.form == "text":
            from doctor.report.repair import result_lines

            print_lines(result_lines(applied), sys.stderr)
            _print_verdict(self.report)
        return plan, applied

    def _remember(self, report: Report) -> None:
        """What was proven here need not be proven again by the next `launch`."""
        from doctor.launch import remember, toolchain

        with contextlib.suppress(Missing, Crashed):
            if report.proof and report.proof.ok and (key := toolchain(self._target, report.facts)):
                remember(self._target, report.interpreter.prefix, key)

    def _mend(self, state: State, ours: Run | None) -> None:
        """Takes back what a killed doctor left half-way, and judges what is there then."""
        mended = state.recover(ours)
        for run, left in mended:
            self._tell(f"the run {run.id} was cut off: it is taken back")
            _tell_left(left)
        if mended:
            self.report = self._judge(False)

    def _agreed(self, allow: tuple[str, ...]) -> tuple[Plan, Ground, Collection[str]]:
        """The plan with all that was allowed, also at the prompt; without what was not."""
        ground = self._ground()
        plan = self._prepare(self.report, ground, _CONSENTS)
        if self._asked.form == "text":
            self._show(plan, self.report)
        allowed = set(allow)
        asks = {ask.consent: ask for action in plan.actions for ask in action.asks}
        for consent, ask in asks.items():
            person = sys.stdin is not None and sys.stdin.isatty() and self._asked.form == "text"
            if consent not in allowed and person and confirm(f"{ask.why}. Do it?"):
                allowed.add(consent)
        if not set(asks) <= allowed:
            plan = self._prepare(self.report, ground, allowed)
            for one in plan.withheld:
                how = f"; --allow {one.consent} allows it" if one.consent else ""
                tell(f"{one.id} is left: {one.why}{how}")
        return plan, ground, allowed

    def show(self, plan: Plan) -> None:
        """The plan as text on stdout."""
        from doctor.report.repair import plan_lines

        print_lines(plan_lines(plan, self.report))
        if plan.actions:
            say("Nothing was changed. To do it: vllm-doctor fix --apply")
        else:
            _print_verdict(self.report)

    def _show(self, plan: Plan, report: Report) -> None:
        from doctor.report.repair import plan_lines

        print_lines(plan_lines(plan, report), sys.stderr)

    def script(self, plan: Plan) -> str:
        from doctor.report.sh import script

        return script(plan, self.report, self._target.env)


def _do_not_die_of_a_pipe() -> None:
    """`vllm-doctor fix --apply | head` must not end between two renames."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def _print_verdict(report: Report) -> None:
    from doctor.report import text

    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    quiet = text.Style(quiet=True, width=width)
    print_lines(text.lines(report, quiet))


def _with_tail(error: Exception) -> str:
    """The sentence; what the tool said goes before it, for whoever has to look closer."""
    tail = getattr(error, "tail", "")
    for line in tail.splitlines()[-12:]:
        say(f"  {line}", err=True)
    return str(error)


def _tell_left(left: Iterable[Path]) -> None:
    for path in left:
        tell(f"{path} was changed since, and is left as it is")


def _is_environment(path: Path) -> bool:
    return path.is_file() or (path / "bin/python").exists()


def _sources(
    asked: Asked, mirrors: tuple[str, ...], keep_extra: bool, prefix: Path
) -> tuple[Index, ...]:
    from doctor.repair.index import MirrorError, choose

    try:
        return choose(mirrors, keep_extra, asked.profile.mirror, Live().env, prefix)
    except MirrorError as error:
        fail(str(error), USAGE)


def _mend_creation(path: Path) -> None:
    """Takes back the making of an environment that was cut off: it would end what judges it."""
    from doctor.repair.state import State, StateError

    state = State(path.absolute())
    if not state.folder.is_dir():
        return
    try:
        with state.locked():
            state.recover()
    except StateError as error:
        fail(str(error), FAILED)


def _make_environment(path: Path, asked: Asked) -> None:
    """An empty virtual environment, or the rest of one whose making was cut off."""
    from doctor.repair import resolver
    from doctor.repair.state import MAKING, State

    mark = State(path.absolute()).folder / MAKING
    if path.is_dir() and any(path.iterdir()) and not mark.is_file():
        fail(f"--create {path}: the folder is there, and holds something else", USAGE)
    try:
        base = base_python()
    except LocateError as error:
        fail(str(error), FAILED)
    tool = resolver.find()
    if tool is None:
        fail("there is no uv to make an environment with: pip install uv", FAILED)
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        tool.make_environment(base, path.absolute(), Live().env)
    except resolver.ToolError as error:
        fail(f"--create {path}: it {error}", FAILED)
    except OSError as error:
        fail(f"--create {path}: {reason(error)}", FAILED)


def _write_script(file: str, fixing: Fixing, plan: Plan) -> None:
    text = fixing.script(plan)
    if file == "-":
        verbatim(text)
        return
    write_file("--script", file, text, executable=True)
    say(f"wrote {file}; read it, then: sh {file}", err=True)


@click.command()
@functools.partial(python_options, consents=("running",))
@click.argument("run", required=False)
@click.option("--list", "listed", is_flag=True, help="The runs that can be taken back.")
@click.option("--purge", is_flag=True, help="Remove what was set aside; no run can be undone then.")
def undo(
    python: str | None,
    allow: tuple[str, ...],
    run: str | None,
    listed: bool,
    purge: bool,
) -> None:
    """Put everything back as it was before RUN, by default the last one. Needs no network.

    Exit codes: 0 done, 1 something was changed since and is left, 2 usage, 4 it failed.
    """
    from doctor.repair.state import State, StateError

    if listed and purge:
        fail("--list and --purge exclude each other", USAGE)
    if run and (listed or purge):
        fail(f"{run}: --list and --purge take no run", USAGE)
    state = State(_prefix(python, allow))
    try:
        if listed:
            _list(state)
            return
        # What was cut off is taken back whoever runs: half a change serves nobody.
        if not any(r.journal.state in ("applying", "undoing") for r in state.runs()):
            _must_not_run(state.prefix, allow)
        _do_not_die_of_a_pipe()
        with state.locked():
            left = _purge(state) if purge else _undo(state, run)
    except StateError as error:
        fail(str(error), FAILED)
    except OSError as error:
        fail(refusal(error), FAILED)
    raise SystemExit(FINDINGS if left else 0)


def _must_not_run(prefix: Path, allow: tuple[str, ...]) -> None:
    from doctor.repair import running

    if "running" not in allow and (users := running.users(prefix)):
        who = ", ".join(map(str, users))
        fail(f"{who} runs out of this environment; to undo all the same: --allow running", FINDINGS)


def _prefix(python: str | None, allow: tuple[str, ...]) -> Path:
    from doctor.engine import Facts
    from doctor.repair.state import State

    if python and (State(Path(python).absolute()).folder / "runs").is_dir():
        # Its journal is there, whatever became of its interpreter.
        return Path(python).absolute()
    target, where = live(python, allow)
    try:
        return Facts(target, (where,)).get(Interpreter).prefix
    except (Missing, Crashed) as error:
        fail_to_judge(error)


def _list(state: State) -> None:
    from doctor.report.repair import run_lines

    runs = state.runs()
    if not runs:
        say(f"nothing to take back in {state.prefix}")
    print_lines(run_lines(runs))


def _purge(state: State) -> list[Path]:
    for run in state.purge():
        say(f"removed what the run {run.id} had set aside")
    return []


def _undo(state: State, name: str | None) -> list[Path]:
    """The paths that were left alone."""
    mended = state.recover()
    for run, left in mended:
        say(f"the run {run.id} was cut off: it is taken back")
        _tell_left(left)
    runs = state.runs()
    if name is None and mended:
        return [path for _, left in mended for path in left]
    if not runs:
        if name is None:
            say(f"nothing to take back in {state.prefix}")
            return []
        fail(f"there is no run {name} in {state.prefix}", USAGE)
    chosen = runs[-1] if name is None else next((r for r in runs if r.id == name), None)
    if chosen is None:
        known = ", ".join(r.id for r in runs)
        fail(f"there is no run {name}; there are {known}", USAGE)
    if chosen is not runs[-1]:
        fail(f"the run {runs[-1].id} came after {chosen.id}: undo that one first", USAGE)
    left = state.undo(chosen)
    _tell_left(left)
    say(f"took back the run {chosen.id}")
    return left
