"""From findings to what is done about them: which fix of each, merged into few actions."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from doctor.diagnose import Report
from doctor.fixes import KINDS
from doctor.model import Fix, Needs, Severity, Step, Text, Verdict
from doctor.repair.action import Action, Consent, ConsentRequest, SelectedFix
from doctor.repair.context import RepairContext
from doctor.repair.resolver import Resolution
from doctor.repair.transaction import Transaction


@dataclass(frozen=True)
class Scope:
    """Which findings are fixed: those that are as grave as `fail_on` or graver, or `only` these
    where there are any; nothing of which a consent is missing from `allowed`; no fix that was
    `tried`. `named`: the consents that the person gave unasked."""

    fail_on: Severity
    only: frozenset[str] = frozenset()
    allowed: frozenset[Consent] = frozenset()
    tried: frozenset[SelectedFix] = frozenset()
    named: frozenset[Consent] = frozenset()


@dataclass(frozen=True)
class Manual:
    """A finding that only a person can fix, with what they can do."""

    id: str
    fixes: tuple[Fix, ...]


@dataclass(frozen=True)
class Withheld:
    """A finding that is left for want of a consent; `consent` None: it cannot be given."""

    id: str
    why: Text
    consent: Consent | None = None


@dataclass(frozen=True)
class Untried:
    """A fix that was not selected: an alternative to the one that was, or (`conflicts`) one that
    does not go together with another finding's; the finding is judged again once that is done."""

    id: str
    fix: Fix
    conflicts: bool = False


@dataclass(frozen=True)
class Selection:
    """Of each finding that counts the fix that is carried out, or why there is none."""

    chosen: tuple[SelectedFix, ...] = ()
    manual: tuple[Manual, ...] = ()
    untried: tuple[Untried, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What is done, in order, and what is left: to a person, for want of a consent (`withheld`),
    or for another time."""

    actions: tuple[Action, ...] = ()
    selection: Selection = Selection()
    withheld: tuple[Withheld, ...] = ()

    @property
    def manual(self) -> tuple[Manual, ...]:
        return self.selection.manual

    @property
    def untried(self) -> tuple[Untried, ...]:
        return self.selection.untried

    @property
    def asks(self) -> dict[Consent, ConsentRequest]:
        """What its actions ask for, one of each consent."""
        rows = (ask for action in self.actions for ask in action.asks)
        return {ask.consent: ask for ask in rows if ask.consent is not None}

    @property
    def resolution(self) -> Resolution | None:
        """What is downloaded and installed; None where nothing is."""
        settled = (action.settled for action in self.actions)
        return next((one.resolution for one in settled if isinstance(one, Transaction)), None)


def make_plan(context: RepairContext, scope: Scope) -> Plan:
    """The plan for the context's report. What needs a consent that is not allowed is withheld, and
    what hangs on it too. Raises RepairError where no index can give what is asked."""
    withheld: dict[str, Withheld] = {}
    while True:
        selection = select_fixes(context.report, scope, withheld)
        made = tuple(_planned(action, context) for action in actions(selection.chosen))
        refused = [
            Withheld(id, ask.why, ask.consent)
            for action in made
            for ask in action.asks
            if ask.consent not in scope.allowed
            for id in ask.ids
        ]
        if not refused:
            return Plan(made, selection, tuple(withheld.values()))
        withheld.update({one.id: one for one in refused})


def _planned(action: Action, context: RepairContext) -> Action:
    settled = action.kind.plan(context, action)
    asks = tuple(action.kind.consent(context, settled))
    return dataclasses.replace(settled, asks=asks)


def select_fixes(report: Report, scope: Scope, without: Collection[str] = ()) -> Selection:
    """Of each finding that counts, the first fix that the doctor can carry out. Of the others, only
    what sweeps caches or our own folder, or what the person named. `without`: ids whose fix may
    not be used."""
    chosen: list[SelectedFix] = []
    manual: list[Manual] = []
    untried: list[Untried] = []
    claims: dict[str, Step] = {}
    for id, fixes, grave in _findings(report, scope.fail_on):
        if scope.only and id not in scope.only:
            continue
        counts = grave or id in scope.only
        ours = [f for f in fixes if KINDS.automatic(f)]
        if not counts:
            ours = [f for f in ours[:1] if _is_done_anyway(f, scope.named)]
        if not ours:
            if counts and fixes:
                manual.append(Manual(id, fixes))
            continue
        one = SelectedFix(id, ours[0])
        if id in without or one in scope.tried:
            continue
        if _conflicts(one.fix, claims):
            untried.append(Untried(id, one.fix, conflicts=True))
            continue
        claims.update(KINDS.claims(one.fix))
        chosen.append(one)
        untried += [Untried(id, fix) for fix in fixes if fix is not one.fix]
    return Selection(tuple(chosen), tuple(manual), tuple(untried))


def _findings(report: Report, fail_on: Severity) -> Iterator[tuple[str, tuple[Fix, ...], bool]]:
    for outcome in report.outcomes:
        if outcome.verdict is Verdict.FOUND and not outcome.accepted:
            for finding in outcome.findings:
                severity = finding.severity or outcome.rule.severity
                yield outcome.rule.id, finding.fixes, severity.rank >= fail_on.rank


def _is_done_anyway(fix: Fix, named: Collection[Consent]) -> bool:
    kinds = [kind for step in fix.steps if (kind := KINDS.of(step))]
    sweeps = fix.needs is Needs.SAFE and all(kind.sweeps for kind in kinds)
    return len(kinds) == len(fix.steps) and (
        sweeps or all(kind.wanted_by in named for kind in kinds)
    )


def _conflicts(fix: Fix, claims: Mapping[str, Step]) -> bool:
    """Another fix has laid claim to the same thing, and wants it otherwise."""
    ours = KINDS.claims(fix).items()
    return any(claim in claims and claims[claim] != step for claim, step in ours)


def actions(chosen: Iterable[SelectedFix]) -> tuple[Action, ...]:
    """The steps of all fixes, each once, by kind and in the order of the kinds."""
    rows = [(KINDS.of(step), one, step) for one in chosen for step in one.fix.steps]
    made = []
    for kind in KINDS:
        ours = [(one, step) for of, one, step in rows if of is kind]
        if ours:
            fixes = tuple(dict.fromkeys(one for one, _ in ours))
            made.append(Action(kind, fixes, tuple(dict.fromkeys(step for _, step in ours))))
    return tuple(made)
