"""One `fix`, from the report to what came of it: the interpreter asked once per judgement, one
lock, one run. It talks to a person through `Talk`, and prints nothing."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from packaging.version import Version

from doctor.diagnose import Question, Report, diagnose
from doctor.engine import Crashed, Facts
from doctor.exits import FAILED, UNKNOWN, USAGE
from doctor.model import Again, Missing, Rule, Severity, Stage, Text, Verdict, os_refusal
from doctor.patience import AT_ONCE, Patience
from doctor.probes.environment import saved_below
from doctor.probes.interpreter import Where, distrusted
from doctor.probes.served import Profile
from doctor.probes.wheels import Vllm
from doctor.profile import ServeRequest
from doctor.repair.action import CONSENTS, Consent, SelectedFix
from doctor.repair.apply import Applied, Judge, adopt, apply, half_undone, roll_back, rolling_back
from doctor.repair.context import RepairContext
from doctor.repair.create import Creation
from doctor.repair.errors import Interrupted, RepairError
from doctor.repair.index import PackageIndex
from doctor.repair.installer import ToolError
from doctor.repair.newest import Bounds, cuda_of_driver, vllm_of
from doctor.repair.plan import Plan, Scope, Withheld, make_plan
from doctor.repair.resolver import find_tool
from doctor.repair.state import KEEP_DAYS, Run, State
from doctor.talk import VERIFYING, Talk
from doctor.target import Target

_PROVEN = (Stage.IMPORT, Stage.COMPILE, Stage.LINK, Stage.LOAD)


@dataclass(frozen=True)
class FixRequest:
    """What the person asked for. `sources`: the indexes for a prefix; `below`: a release of vLLM
    that is too new; `allowed`: the consents given on the command line."""

    serve: ServeRequest
    question: Question
    rules: tuple[Rule, ...]
    sources: Callable[[Path], tuple[PackageIndex, ...]]
    only: frozenset[str] = frozenset()
    allowed: frozenset[str] = frozenset()
    patience: Patience = AT_ONCE
    below: Version | None = None

    @property
    def fail_on(self) -> Severity:
        return self.question.fail_on


@dataclass(frozen=True)
class Person:
    """Who is served: `talk` to them, `again` says a command of ours as they would type it, `show`
    is given every plan before it is carried out."""

    talk: Talk
    again: Again
    show: Callable[[Plan, RepairContext], None]


@dataclass(frozen=True)
class Unproven:
    """A vLLM that was installed, and did not stand the proof."""

    version: Version
    why: Text


@dataclass(frozen=True)
class FixOutcome:
    """What a session came to. `applied` None: it was only planned."""

    context: RepairContext
    plan: Plan
    applied: Applied | None = None

    @property
    def report(self) -> Report:
        return self.context.report

    @property
    def exit_code(self) -> int:
        results = self.applied.results if self.applied else ()
        failed = any(result.outcome == "failed" for result in results)
        return FAILED if failed else self.report.exit_code

    def interrupted(self) -> Interrupted:
        """What Ctrl-C leaves, now that all is done but the telling."""
        if self.applied is None or self.applied.run is None:
            return Interrupted(Text("interrupted; nothing was changed"))
        return Interrupted(
            Text(
                "interrupted: run {run} is complete, and stays; to undo it: {command}",
                run=self.applied.run,
                command=self.report.installer.again("undo", self.applied.run),
            )
        )


class Session:
    """The report as it stands, and what is made of it. Every method may raise DoctorError; making
    one Missing (NotPython) or Crashed, where nothing can be said of the target at all."""

    def __init__(self, asked: FixRequest, target: Target, where: Where, person: Person) -> None:
        self._asked = asked
        self._target = target
        self._where = where
        self._person = person
        self.context = self._judge(False)

    @property
    def report(self) -> Report:
        return self.context.report

    def _judge(self, deep: bool) -> RepairContext:
        """What the rules say of the target now, and the means to change it."""
        asked, talk = self._asked, self._person.talk
        if deep:
            talk.phase(VERIFYING)
        facts = Facts(self._target, (self._where, asked.serve))
        report = diagnose(facts, asked.rules, dataclasses.replace(asked.question, deep=deep))
        installer = dataclasses.replace(report.installer, again=self._person.again)
        return RepairContext(
            report=dataclasses.replace(report, installer=installer),
            target=self._target,
            tool=find_tool(self._target),
            indexes=asked.sources(report.interpreter.prefix),
            bounds=Bounds(
                report.facts.get(Profile).needs, cuda_of_driver(report.facts), asked.below
            ),
            talk=talk,
        )

    def must_know_what_is_saved(self, code: int) -> None:
        """Raises RepairError, with this exit code, where earlier fixes kept something that cannot
        be read."""
        try:
            saved_below(self._target, self.context.prefix)
        except Missing as error:
            text = Text("{why}; what it held is lost: remove it, and fix again", why=error)
            raise RepairError(text, exit_code=code) from None

    def plan(self) -> FixOutcome:
        """What would be done if every consent were given."""
        try:
            return FixOutcome(self.context, self._plan(self.context, CONSENTS))
        except RepairError as error:
            error.exit_code = UNKNOWN
            raise

    def _plan(
        self,
        context: RepairContext,
        allowed: Collection[str],
        tried: Collection[SelectedFix] = (),
    ) -> Plan:
        given = frozenset(cast("Collection[Consent]", allowed))
        named = frozenset(cast("Collection[Consent]", self._asked.allowed))
        scope = Scope(self._asked.fail_on, self._asked.only, given, frozenset(tried), named)
        return make_plan(context, scope)

    def apply(self, created: bool = False) -> FixOutcome:
        """Carries out what is agreed to. `created`: the environment was just made, and goes with
        what is rolled back."""
        # uv's own check runs what is in the target's site-packages.
        if why := distrusted(self._target, self.report.interpreter, {"PYTHONNOUSERSITE": "1"}):
            raise RepairError(Text("{why}", why=why), exit_code=USAGE)
        state = State(self.context.prefix)
        try:
            with state.locked(self._asked.patience):
                run = adopt(state) if created else None
                try:
                    done = self._apply(state, run)
                except BaseException as error:
                    if run and run.folder.exists():
                        roll_back(state, run, error)
                    raise
        except OSError as error:
            raise RepairError(Text("{why}", why=os_refusal(error))) from None
        for line in done.applied.left if done.applied else ():
            self._person.talk.tell(line)
        return done

    def _apply(self, state: State, run: Run | None) -> FixOutcome:
        if recover(state, self._person.talk, run):
            self.context = self._judge(False)
        state.purge(KEEP_DAYS * 86400)
        plan, allowed = self._agreed()

        def replan(context: RepairContext, tried: Collection[SelectedFix]) -> Plan:
            more = self._plan(context, allowed, tried)
            if more.actions:
                self._person.talk.phase(Text("newly exposed problems:"))
                self._person.show(more, context)
            return more

        by = Judge(self._asked.fail_on, self._judge, replan)
        applied = apply(plan, self.context, state, run, by)
        self.context = dataclasses.replace(self.context, report=applied.report)
        done = FixOutcome(self.context, plan, applied)
        try:
            self._remember()
        except KeyboardInterrupt:
            raise done.interrupted() from None
        return done

    def _remember(self) -> None:
        """What was proven here need not be proven again by the next `launch`."""
        from doctor.serve.gate import keep

        with contextlib.suppress(Missing, Crashed):
            keep(self._target, self.report)

    def _agreed(self) -> tuple[Plan, Collection[str]]:
        """The plan with all that was allowed, also when asked now; without what was not."""
        plan = self._plan(self.context, CONSENTS)
        self._person.show(plan, self.context)
        allowed = set(self._asked.allowed)
        asks = plan.asks
        for consent, ask in asks.items():
            if consent not in allowed and self._person.talk.confirm(
                Text("{why}. Do it?", why=ask.why)
            ):
                allowed.add(consent)
        if not set(asks) <= allowed:
            plan = self._plan(self.context, allowed)
            for one in plan.withheld:
                self._person.talk.tell(self._skipped(one))
        return plan, allowed

    def _skipped(self, one: Withheld) -> Text:
        if one.consent is None:
            return Text("{id} skipped: {why}", id=one.id, why=one.why)
        return Text(
            "{id} skipped: {why}; to allow it: {command}",
            id=one.id,
            why=one.why,
            command=self._person.again("fix", "--apply", "--allow", one.consent),
        )

    def unproven(self) -> Unproven | None:
        """The vLLM that was installed, where it does not load or only the proof shows what is wrong
        with it. Of what reading shows as well, such as a missing compiler, an older one is no way
        out."""
        least = self._asked.fail_on.rank
        found = [o for o in self.report.deciding(Verdict.FOUND) if o.rule.stage in _PROVEN]
        found = [o for o in found if o.severity.rank >= least]
        if not found:
            return None
        outcomes = self._judge(False).report.outcomes
        read = {o.rule.id for o in outcomes if o.verdict is Verdict.FOUND}
        found = [o for o in found if o.rule.stage is Stage.IMPORT or o.rule.id not in read]
        try:
            vllm = self.report.facts.get(Vllm)
        except (Missing, Crashed):
            return None
        if not found:
            return None
        why = Text(
            "{name} {version} is not proven: {why}",
            name=vllm.name,
            version=vllm.version,
            why=found[0].findings[0].message,
        )
        return Unproven(Version(vllm.version.public), why)

    def give_up(self, failed: Unproven, creation: Creation, last: bool) -> bool:
        """Undoes the run that installed what is not proven, unless it was the `last` to be tried or
        there is none older: whether another one can be tried."""
        tell = self._person.talk.tell
        if last:
            tell(
                Text(
                    "{why}; {number} releases were tried, and this one is left in place",
                    why=failed.why,
                    number=RELEASES,
                )
            )
            return False
        try:
            older = vllm_of(creation.choose(failed.version))
        except ToolError as error:
            tell(
                Text(
                    "{why}; there is no older one to try: {error}",
                    why=failed.why,
                    error=error.text,
                )
            )
            return False
        tell(
            Text(
                "{why}; rolling back, and trying {older}, the next older one",
                why=failed.why,
                older=older,
            )
        )
        return self._undo()

    def _undo(self) -> bool:
        """Undoes the last run; whether nothing of it is left."""
        state = State(self.context.prefix)
        with state.locked(self._asked.patience):
            run = state.runs()[-1]
            try:
                left = state.undo(run)
            except KeyboardInterrupt:
                raise Interrupted(half_undone(run)) from None
        for line in left:
            self._person.talk.tell(line)
        return not left


RELEASES = 3
"""How many releases of vLLM are tried before one that is not proven is left in place: each is a
download of gigabytes, and what three of them die of is hardly their own."""


def make(
    creation: Creation, request: FixRequest, begin: Callable[[FixRequest], Session]
) -> FixOutcome:
    """The environment with the newest vLLM that is proven in it: the next older one where one does
    not import, compile, link or load. `begin`: a session in the environment that was made."""
    creation.must_fit()
    for number in range(1, RELEASES + 1):
        creation.make()
        try:
            session = begin(request)
        except KeyboardInterrupt:
            raise creation.interrupted() from None
        done = session.apply(created=True)
        try:
            failed = session.unproven()
        except KeyboardInterrupt:
            raise done.interrupted() from None
        if failed is None or done.applied is None or done.applied.run is None:
            break
        if not session.give_up(failed, creation, last=number == RELEASES):
            break
        request = dataclasses.replace(request, below=failed.version)
    return done


def recover(state: State, talk: Talk, ours: Run | None = None) -> bool:
    """Rolls back what a killed doctor left half-way, and says so; whether there was anything."""
    recovered = state.recover(ours)
    for run, left in recovered:
        talk.tell(rolling_back(run))
        for line in (*run.notes, *left):
            talk.tell(line)
    return bool(recovered)


def recover_below(prefix: Path, patience: Patience, talk: Talk) -> None:
    """Rolls back the making of an environment that was interrupted: it would end what judges
    it."""
    state = State(prefix)
    if state.folder.is_dir():
        with state.locked(patience):
            recover(state, talk)
