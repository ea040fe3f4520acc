"""One diagnosis: facts, rules, what they came to, and which finding is the primary cause."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from doctor.engine import Crashed, Facts, check
from doctor.exits import FINDINGS, HEALTHY, UNKNOWN
from doctor.model import (
    Finding,
    Installer,
    Missing,
    NotChecked,
    Outcome,
    Rule,
    Severity,
    Text,
    Verdict,
)
from doctor.probes.driver import DeepAsked, Driver
from doctor.probes.host import HostCompilers
from doctor.probes.interpreter import Interpreter, Where
from doctor.probes.proof import Proof
from doctor.probes.wheels import Packages
from doctor.profile import Profile
from doctor.target import Target


@dataclass(frozen=True)
class Recorded:
    """Of a snapshot: which doctor made it, when (seconds since 1970) and on which machine, None
    where it does not say."""

    tool: str
    at: float | None = None
    host: str | None = None


@dataclass(frozen=True)
class Report:
    """What a diagnosis came to. `seconds` of wall time; `proof` None where it was not asked for;
    `facts`: what was found out, for a repair to ask; `recorded`: of a snapshot."""

    where: Where
    interpreter: Interpreter
    profile_name: str
    model: str | None
    source: Literal["live", "tape"]
    outcomes: tuple[Outcome, ...]
    not_checked: tuple[NotChecked, ...]
    primary: Outcome | None
    proof: Proof | None
    proof_missing: Text | None
    installer: Installer
    exit_code: int
    seconds: float
    rules: int
    facts: Facts
    fail_on: Severity
    recorded: Recorded | None = None

    @property
    def verdict(self) -> str:
        names = {HEALTHY: "healthy", FINDINGS: "findings"}
        return names.get(self.exit_code, "unknown")

    @property
    def accepted(self) -> list[str]:
        """The ids whose outcome decides nothing, since somebody said so."""
        return [o.rule.id for o in self.outcomes if o.accepted]

    def deciding(self, *verdicts: Verdict) -> list[Outcome]:
        """The outcomes of these verdicts that decide."""
        return _deciding(self.outcomes, *verdicts)


def diagnose(
    target: Target,
    where: Where,
    profile: Profile,
    rules: Iterable[Rule],
    *,
    profile_name: str,
    source: Literal["live", "tape"] = "live",
    deep: bool = False,
    fail_on: Severity = Severity.ERROR,
    accept: Collection[str] = (),
) -> Report:
    """Checks every rule against the target; `rules` may load them while they are asked for, which
    takes as long as the first children do. `accept`: ids whose outcome decides nothing. Raises
    Missing (NotPython) or Crashed where the interpreter does not answer: then nothing can be said
    about it at all."""
    began = time.perf_counter()
    facts = Facts(target, (where, profile, DeepAsked(deep)))
    facts.ask_ahead(Interpreter, Driver, HostCompilers)
    loaded = tuple(rules)
    interpreter = facts.get(Interpreter)
    outcomes, not_checked = check(loaded, facts)
    proof, missing = None, None
    if deep:
        try:
            proof = facts.get(Proof)
        except Missing as reason:
            missing = reason.reason
        except Crashed as crash:
            missing = Text("{crash}", crash=crash)
    if proof and not proof.ok:
        outcomes = explain(outcomes, proof)
    outcomes = [_accepted(o) if o.rule.id in accept else o for o in outcomes]
    first = primary(outcomes, fail_on)
    return Report(
        where=where,
        interpreter=interpreter,
        profile_name=profile_name,
        model=profile.model,
        source=source,
        outcomes=tuple(_ordered(outcomes, first)),
        not_checked=tuple(not_checked),
        primary=first,
        proof=proof,
        proof_missing=missing,
        installer=_installer(facts, where.python),
        exit_code=exit_code(outcomes, fail_on),
        seconds=time.perf_counter() - began,
        rules=len(outcomes) + len(not_checked),
        facts=facts,
        fail_on=fail_on,
    )


def explain(outcomes: list[Outcome], proof: Proof) -> list[Outcome]:
    """Puts what the failed test build said under the ailment it names. Where a rule had missed
    that ailment, the build is right and the rule is not: it is a finding."""
    said = Text("the test build failed at {stage}: {line}", stage=proof.stage, line=proof.line)
    by_id = {o.rule.id: o for o in outcomes}
    named = [by_id[id] for id in (*proof.ids, "deep-check-failed") if id in by_id]
    known = [o for o in named if o.verdict is Verdict.FOUND and o.severity is Severity.ERROR]
    if known:
        first = known[0]
        one, *more = first.findings
        one = dataclasses.replace(one, evidence=(*one.evidence, said))
        changed = dataclasses.replace(first, findings=(one, *more))
    else:
        first = named[0]
        finding = Finding(Text("{title}", title=first.rule.title), (said,), severity=Severity.ERROR)
        changed = Outcome(first.rule, Verdict.FOUND, (finding, *first.findings))
    return [changed if o is first else o for o in outcomes]


def primary(outcomes: list[Outcome], fail_on: Severity = Severity.ERROR) -> Outcome | None:
    """Of the gravest findings that count, the one that stops the server first."""
    least = max(fail_on.rank, Severity.WARNING.rank)
    found = [o for o in _deciding(outcomes, Verdict.FOUND) if o.severity.rank >= least]
    return min(found, key=lambda o: (-o.severity.rank, o.rule.stage.value), default=None)


def _ordered(outcomes: list[Outcome], primary: Outcome | None) -> list[Outcome]:
    """The primary cause first, then findings by gravity and stage, then the rest as loaded."""

    def key(o: Outcome) -> tuple[int, int, int]:
        found = o.verdict is Verdict.FOUND and not o.accepted
        rank = -o.severity.rank if found else 1
        return (0 if o is primary else 1, rank, o.rule.stage.value if found else 0)

    return sorted(outcomes, key=key)


def exit_code(outcomes: list[Outcome], fail_on: Severity) -> int:
    found = _deciding(outcomes, Verdict.FOUND)
    if any(o.severity.rank >= fail_on.rank for o in found):
        return FINDINGS
    return UNKNOWN if _deciding(outcomes, Verdict.UNKNOWN, Verdict.CRASHED) else HEALTHY


def _accepted(outcome: Outcome) -> Outcome:
    return dataclasses.replace(outcome, accepted=outcome.verdict is not Verdict.OK)


def _deciding(outcomes: Iterable[Outcome], *verdicts: Verdict) -> list[Outcome]:
    return [o for o in outcomes if o.verdict in verdicts and not o.accepted]


def _installer(facts: Facts, python: Path) -> Installer:
    try:
        return Installer(python, facts.get(Packages).version("pip") is not None)
    except (Missing, Crashed):
        return Installer(python, own_pip=False)
