"""fix: shows what would put the environment right, and with --apply does it."""

from __future__ import annotations

import contextlib
import functools
import shlex
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click
from packaging.version import Version

from doctor.cli.again import RunningCommand, told
from doctor.cli.changing import do_not_die_of_a_pipe, tell_left, with_way_out
from doctor.cli.options import (
    CommonOptions,
    accept_option,
    ids,
    patience,
    target_options,
    wait_option,
)
from doctor.cli.output import (
    confirm,
    fail,
    print_json,
    print_lines,
    print_report,
    rules_print_to_stderr,
    say,
    tell,
    verbatim,
    write_file,
)
from doctor.diagnose import Question, Report
from doctor.diagnose import diagnose as run_diagnosis
from doctor.engine import Crashed, Facts
from doctor.errors import UsageError
from doctor.exits import FAILED, FINDINGS, UNKNOWN, USAGE
from doctor.model import Missing, Rule, Severity, Stage, Verdict, os_refusal
from doctor.patience import AT_ONCE, Patience
from doctor.probes.environment import saved_below
from doctor.probes.interpreter import FoundBy, Where, distrusted
from doctor.profile import Profile
from doctor.target import Live, Target

if TYPE_CHECKING:
    from doctor.cli.create import Creation
    from doctor.repair.apply import Applied
    from doctor.repair.index import PackageIndex
    from doctor.repair.plan import Consent, Plan, SelectedFix, Withheld
    from doctor.repair.stage import RepairContext
    from doctor.repair.state import Run, State


_CONSENTS = ("core", "running")


_PROVEN = (Stage.IMPORT, Stage.COMPILE, Stage.LINK, Stage.LOAD)


@click.command()
@functools.partial(target_options, consents=_CONSENTS)
@click.option("--apply", "wanted", is_flag=True, help="Do it, check again, and say what was fixed.")
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
    help="Fix these ailments and no others; may be given several times.",
)
@accept_option
@click.option("--script", metavar="FILE", help="Write the plan as a shell script; - for stdout.")
@click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True
)
@click.option(
    "--fail-on",
    type=click.Choice([s.value for s in Severity]),
    default=Severity.ERROR.value,
    show_default=True,
    help="Lowest severity that sets exit code 1, and that is fixed.",
)
@wait_option
def fix(
    common: CommonOptions,
    wanted: bool,
    create: bool,
    mirrors: tuple[str, ...],
    keep_extra_indexes: bool,
    only: tuple[str, ...],
    accept: tuple[str, ...],
    script: str | None,
    form: str,
    fail_on: str,
    wait: float | None,
) -> None:
    """Show what would fix the environment; with --apply, fix it.

    Exit codes: 0 healthy, 1 findings are left, 2 usage, 3 could not tell, 4 a fix failed and
    was rolled back, 75 another vllm-doctor is running.
    """
    python, allow = common.python, common.allow
    if create and python is None:
        fail("--create makes the environment that --python names; name one", USAGE)
    if script is not None and wanted:
        fail("--script writes down what --apply does; give one of them", USAGE)
    if keep_extra_indexes and not mirrors:
        fail("--keep-extra-indexes belongs to --mirror; without one, they are kept", USAGE)
    rules = common.rules()
    asked = Asked(
        common.profile(),
        common.profile_name,
        rules,
        Severity(fail_on),
        form,
        ids("--only", only, rules),
        ids("--accept", accept, rules),
        patience(wait),
    )
    if wanted and python is not None:
        _mend_creation(Path(python), asked.patience)
    applied: Applied | None
    sources = functools.partial(_sources, asked, mirrors, keep_extra_indexes)
    if create and python is not None and not _is_environment(Path(python)):
        from doctor.cli.create import Creation

        path = Path(python).absolute()
        creation = Creation(path, asked.profile, sources(path), allow)
        if not wanted and (form == "json" or script is not None):
            fail(f"--create {python}: there is nothing to judge yet; add --apply", USAGE)
        if not wanted:
            creation.show()
            raise SystemExit(FINDINGS)
        fixing, plan, applied = _created(creation, asked, common, sources)
    else:
        fixing = _fixing(asked, common, sources, wanted)
        with rules_print_to_stderr():
            plan, applied = fixing.apply(allow) if wanted else (fixing.plan(), None)
    if form == "json":
        from doctor.report.repair_json import repair_json

        print_json(repair_json(fixing.report, plan, applied))
    elif script is not None:
        _write_script(script, fixing, plan)
    elif applied is None:
        fixing.show(plan)
    failed = applied is not None and any(r.outcome == "failed" for r in applied.results)
    raise SystemExit(FAILED if failed else fixing.report.exit_code)


_Sources = Callable[[Path], "tuple[PackageIndex, ...]"]


def _fixing(asked: Asked, common: CommonOptions, sources: _Sources, wanted: bool) -> Fixing:
    target, where = common.named()
    if wanted and where.found_by is FoundBy.OWN:
        fail("no environment is active: name the one to repair with --python", USAGE)
    with rules_print_to_stderr():
        fixing = Fixing(asked, target, where)
        fixing.must_know_what_is_saved(FAILED if wanted else UNKNOWN)
        fixing.find_indexes(sources)
    return fixing


_RELEASES = 3


"""How many releases of vLLM are tried before one that is not proven is left in place: each is a
download of gigabytes, and what three of them die of is hardly their own."""


def _created(
    creation: Creation, asked: Asked, common: CommonOptions, sources: _Sources
) -> tuple[Fixing, Plan, Applied]:
    """The environment with the newest vLLM that is proven in it: the next older one where one does
    not import, compile, link or load."""
    from doctor.repair.newest import vllm_of
    from doctor.repair.resolver import ToolError

    creation.must_choose(FAILED)
    for number in range(1, _RELEASES + 1):
        creation.make()
        fixing = _fixing(asked, common, sources, True)
        with rules_print_to_stderr():
            plan, applied = fixing.apply(common.allow, created=True)
            failed = fixing.unproven()
        if failed is None or applied.run is None:
            break
        if number == _RELEASES:
            tell(f"{failed.why}; {number} releases were tried, and this one is left in place")
            break
        try:
            older = vllm_of(creation.choose(failed.version))
        except ToolError as error:
            tell(f"{failed.why}; there is no older one to try: {error}")
            break
        tell(f"{failed.why}; it is taken back, and {older} is tried, the next older one")
        if not fixing.take_back():
            break
        asked = replace(asked, below=failed.version)
    return fixing, plan, applied


@dataclass(frozen=True)
class Unproven:
    """A vLLM that was installed, and did not stand the proof."""

    version: Version
    why: str


@dataclass(frozen=True)
class Asked:
    """What the person asked for. `below`: a release of vLLM that is too new."""

    profile: Profile
    profile_name: str
    rules: tuple[Rule, ...]
    fail_on: Severity
    form: str
    only: frozenset[str] = frozenset()
    accept: frozenset[str] = frozenset()
    patience: Patience = AT_ONCE
    below: Version | None = None


class Fixing:
    """One `fix`: the report as it stands, and what the planner needs beside it."""

    def __init__(self, asked: Asked, target: Target, where: Where) -> None:
        self._asked = asked
        self._target = target
        self._where = where
        self._indexes: tuple[PackageIndex, ...] = ()
        self.report = self._judge(False)

    def _judge(self, deep: bool) -> Report:
        if deep:
            self._tell("proving it: a kernel is built, and what vLLM imports is imported ...")
        asked = self._asked
        facts = Facts(self._target, (self._where, asked.profile))
        question = Question(asked.profile_name, deep, asked.fail_on, asked.accept)
        report = run_diagnosis(facts, asked.rules, question)
        return told(report, RunningCommand(self._where))

    def _tell(self, line: str) -> None:
        """What goes on, for a person who waits; programs read the result."""
        if self._asked.form == "text" and line.strip():
            with contextlib.suppress(OSError):  # nobody reads any more: no reason to stop half-way
                say(f"  {line.strip()}", err=True)

    def must_know_what_is_saved(self, code: int) -> None:
        """Ends in a sentence where earlier fixes kept something that cannot be read."""
        try:
            saved_below(self._target, self.report.interpreter.prefix)
        except Missing as error:
            fail(f"{error}; what it held is lost: remove it, and fix again", code)

    def find_indexes(self, sources: _Sources) -> None:
        self._indexes = sources(self.report.interpreter.prefix)

    def plan(self) -> Plan:
        """What would be done if every consent were given."""
        from doctor.repair import apply as work

        try:
            return self._prepare(self.report, self._context(), _CONSENTS)
        except work.RepairError as error:
            fail(_with_tail(error), UNKNOWN)

    def _context(self) -> RepairContext:
        from doctor.repair import apply as work
        from doctor.repair.newest import Bounds, cuda_of_driver

        asked, cuda = self._asked, cuda_of_driver(self.report.facts)
        bounds = Bounds(asked.profile.needs, cuda, asked.below)
        return work.context(self.report, self._target, self._tell, bounds)

    def _prepare(
        self,
        report: Report,
        context: RepairContext,
        allowed: Collection[str],
        tried: Collection[SelectedFix] = (),
    ) -> Plan:
        from doctor.repair import apply as work

        consents = cast("Collection[Consent]", allowed)
        asked = self._asked
        return work.prepare(
            report, context, self._indexes, asked.fail_on, consents, tried, asked.only
        )

    def apply(self, allow: tuple[str, ...], created: bool = False) -> tuple[Plan, Applied]:
        from doctor.repair import apply as work
        from doctor.repair.state import KEEP_DAYS, State, StateError

        who = self.report.interpreter
        # uv's own check runs what is in the target's site-packages.
        if why := distrusted(self._target, who, {"PYTHONNOUSERSITE": "1"}):
            raise UsageError(why)
        do_not_die_of_a_pipe()
        state = State(who.prefix)
        try:
            with state.locked(self._asked.patience):
                run = work.adopt(state) if created else None
                try:
                    self._mend(state, run)
                    state.purge(KEEP_DAYS * 86400)
                    plan, context, allowed = self._agreed(allow)

                    def replan(
                        report: Report, context: RepairContext, tried: Collection[SelectedFix]
                    ) -> Plan:
                        more = self._prepare(report, context, allowed, tried)
                        if more.actions:
                            self._tell("what was hidden until now:")
                            self._show(more, report)
                        return more

                    applied = work.apply(
                        plan,
                        self.report,
                        context,
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
            fail(with_way_out(error), FAILED)
        except work.RepairError as error:
            fail(_with_tail(error), FAILED)
        except OSError as error:
            fail(os_refusal(error), FAILED)
        self.report = applied.report
        if self._asked.form == "text":
            from doctor.report.repair import result_lines

            print_lines(result_lines(applied), sys.stderr)
            print_report(self.report, quiet=True)
        return plan, applied

    def unproven(self) -> Unproven | None:
        """The vLLM that was installed, where it does not load or only the proof shows what is wrong
        with it. Of what reading shows as well, such as a missing compiler, an older one is no way
        out."""
        from doctor.probes.wheels import Vllm

        least = self._asked.fail_on.rank
        found = [o for o in self.report.deciding(Verdict.FOUND) if o.rule.stage in _PROVEN]
        found = [o for o in found if o.severity.rank >= least]
        if not found:
            return None
        read = {o.rule.id for o in self._judge(False).outcomes if o.verdict is Verdict.FOUND}
        found = [o for o in found if o.rule.stage is Stage.IMPORT or o.rule.id not in read]
        try:
            vllm = self.report.facts.get(Vllm)
        except (Missing, Crashed):
            return None
        why = [f"{vllm.name} {vllm.version} is not proven: {o.findings[0].message}" for o in found]
        return Unproven(Version(vllm.version.public), why[0]) if why else None

    def take_back(self) -> bool:
        """Undoes the last run; whether nothing of it is left."""
        from doctor.repair.state import State, StateError

        state = State(self.report.interpreter.prefix)
        try:
            with state.locked(self._asked.patience):
                left = state.undo(state.runs()[-1])
        except StateError as error:
            fail(with_way_out(error), FAILED)
        tell_left(left)
        return not left

    def _remember(self, report: Report) -> None:
        """What was proven here need not be proven again by the next `launch`."""
        from doctor.serve.gate import keep

        with contextlib.suppress(Missing, Crashed):
            keep(self._target, report)

    def _mend(self, state: State, ours: Run | None) -> None:
        """Takes back what a killed doctor left half-way, and judges what is there then."""
        mended = state.recover(ours)
        for run, left in mended:
            self._tell(f"the run {run.id} was cut off: it is taken back")
            tell_left(left)
        if mended:
            self.report = self._judge(False)

    def _agreed(self, allow: tuple[str, ...]) -> tuple[Plan, RepairContext, Collection[str]]:
        """The plan with all that was allowed, also at the prompt; without what was not."""
        context = self._context()
        plan = self._prepare(self.report, context, _CONSENTS)
        if self._asked.form == "text":
            self._show(plan, self.report)
        allowed = set(allow)
        asks = plan.asks
        for consent, ask in asks.items():
            person = sys.stdin is not None and sys.stdin.isatty() and self._asked.form == "text"
            if consent not in allowed and person and confirm(f"{ask.why}. Do it?"):
                allowed.add(consent)
        if not set(asks) <= allowed:
            plan = self._prepare(self.report, context, allowed)
            for one in plan.withheld:
                tell(f"{one.id} is left: {one.why}{self._allowing(one)}")
        return plan, context, allowed

    def _allowing(self, one: Withheld) -> str:
        if one.consent is None:
            return ""
        command = self.report.installer.again("fix", "--apply", "--allow", one.consent)
        return f"; to allow it: {command}"

    def show(self, plan: Plan) -> None:
        """The plan as text on stdout."""
        from doctor.report.repair import plan_lines

        print_lines(plan_lines(plan, self.report))
        if plan.actions:
            consents = [word for consent in plan.asks for word in ("--allow", consent)]
            command = self.report.installer.again("fix", "--apply", *consents)
            say(f"Nothing was changed. To do it: {command}")
        else:
            print_report(self.report, quiet=True)

    def _show(self, plan: Plan, report: Report) -> None:
        from doctor.report.repair import plan_lines

        print_lines(plan_lines(plan, report), sys.stderr)

    def script(self, plan: Plan) -> str:
        from doctor.report.sh import script

        return script(plan, self.report, self._target.env)


def _with_tail(error: Exception) -> str:
    """The sentence; what the tool said goes before it, for whoever has to look closer."""
    tail = getattr(error, "tail", "")
    for line in tail.splitlines()[-12:]:
        say(f"  {line}", err=True)
    return str(error)


def _is_environment(path: Path) -> bool:
    return path.is_file() or (path / "bin/python").exists()


def _sources(
    asked: Asked, mirrors: tuple[str, ...], keep_extra: bool, prefix: Path
) -> tuple[PackageIndex, ...]:
    from doctor.repair.index import MirrorError, choose_indexes

    try:
        return choose_indexes(mirrors, keep_extra, asked.profile.mirror, Live().env, prefix)
    except MirrorError as error:
        fail(str(error), USAGE)


def _mend_creation(path: Path, patience: Patience) -> None:
    """Takes back the making of an environment that was cut off: it would end what judges it."""
    from doctor.repair.state import State, StateError

    state = State(path.absolute())
    if not state.folder.is_dir():
        return
    try:
        with state.locked(patience):
            state.recover()
    except StateError as error:
        fail(with_way_out(error), FAILED)


def _write_script(file: str, fixing: Fixing, plan: Plan) -> None:
    text = fixing.script(plan)
    if file == "-":
        verbatim(text)
        return
    write_file("--script", file, text, executable=True)
    say(f"wrote {file}; read it, then: {shlex.join(['sh', file])}", err=True)
