"""One diagnosis: facts, rules, what they came to, and which finding is the primary cause."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal, TypeVar

from packaging.version import Version

from doctor.command import ServerCommand
from doctor.consumers.vllm import CHECKED_UP_TO
from doctor.engine import REGISTRY, Crashed, Facts, Sealed, check
from doctor.exits import FINDINGS, HEALTHY, UNKNOWN
from doctor.fixes import KINDS
from doctor.frozen import dataclass
from doctor.model import (
    Fact,
    Finding,
    Installer,
    Missing,
    NotApplicable,
    NotChecked,
    Outcome,
    Rule,
    Severity,
    Text,
    Verdict,
)
from doctor.probes.arguments import ServerArguments
from doctor.probes.checkpoint import CheckpointHeaders
from doctor.probes.configuration import ModelConfiguration
from doctor.probes.driver import CuInit, DeepAsked, Driver, Gpus, GpusWanted, InstalledDriver
from doctor.probes.environment import LaunchEnv
from doctor.probes.host import HostCompilers
from doctor.probes.imports import Imported, Imports
from doctor.probes.interpreter import FoundBy, Interpreter, Where
from doctor.probes.proof import Proof
from doctor.probes.served import Profile
from doctor.probes.toolkit import Toolkits
from doctor.probes.wheels import Packages, Vllm
from doctor.profile import ServeRequest
from doctor.target import Target

F = TypeVar("F", bound=Fact)


@dataclass(frozen=True)
class Recorded:
    """Of a snapshot: which doctor made it, when (seconds since 1970) and on which machine, None
    where it does not say."""

    tool: str
    at: float | None = None
    host: str | None = None


@dataclass(frozen=True)
class Report:
    """What a diagnosis came to. `asked`: the interpreter, None of an image that was not entered;
    `seconds` of wall time; `proof` and `imports` None where they were
    not asked for; `facts`: what was found out, for a fix to ask; `recorded`: of a snapshot;
    `checked_up_to`: the newest vLLM that is known here, where the target's is newer."""

    where: Where
    asked: Interpreter | None
    profile_name: str
    model: str | None
    outcomes: tuple[Outcome, ...]
    not_checked: tuple[NotChecked, ...]
    primary: Outcome | None
    proof: Proof | None
    proof_missing: Text | None
    imports: Imports | None
    imports_missing: Text | None
    installer: Installer
    exit_code: int
    seconds: float
    rules: int
    facts: Facts
    fail_on: Severity
    recorded: Recorded | None = None
    checked_up_to: str | None = None

    @property
    def interpreter(self) -> Interpreter:
        """Raises Missing where nobody could ask it."""
        return self.asked or self.facts.get(Interpreter)

    @property
    def command(self) -> ServerCommand | None:
        """The one that is in force in the place of a profile."""
        return self.facts.get(ServeRequest).command

    @property
    def profile(self) -> str | None:
        """The name of the profile; None where a command is in force."""
        return None if self.command else self.profile_name

    @property
    def source(self) -> Literal["live", "tape"]:
        return "tape" if self.recorded else "live"

    @property
    def verdict(self) -> str:
        names = {HEALTHY: "healthy", FINDINGS: "findings"}
        return names.get(self.exit_code, "unknown")

    @property
    def accepted(self) -> list[str]:
        """The ids whose outcome decides nothing, since somebody said so."""
        return [o.rule.id for o in self.outcomes if o.accepted]

    def inconclusive(self) -> tuple[tuple[Text, tuple[Outcome, ...]], ...]:
        """What could not be told, each reason once with all that it leaves open, in the order of
        the outcomes."""
        reasons: dict[Text, list[Outcome]] = {}
        for one in self.deciding(Verdict.UNKNOWN):
            reasons.setdefault(one.why or Text(""), []).append(one)
        return tuple((why, tuple(those)) for why, those in reasons.items())

    def deciding(self, *verdicts: Verdict) -> list[Outcome]:
        """The outcomes of these verdicts that decide."""
        return _deciding(self.outcomes, *verdicts)


@dataclass(frozen=True)
class Question:
    """What is asked about a target beside its profile, which is a fact. `deep`: the verdict is to
    be proven; `accept`: ids whose outcome decides nothing; `recorded`: of a snapshot."""

    profile_name: str
    deep: bool = False
    fail_on: Severity = Severity.ERROR
    accept: Collection[str] = ()
    recorded: Recorded | None = None


# What a container has of its host, and what its command says.
_OF_THE_HOST: frozenset[type[Fact]] = frozenset(
    (
        *(Where, ServeRequest, DeepAsked, LaunchEnv),
        *(InstalledDriver, GpusWanted, Driver, CuInit, Gpus),
        *(ServerArguments, ModelConfiguration, CheckpointHeaders, Profile),
    )
)


def facts_about(target: Target, where: Where, request: ServeRequest) -> Facts:
    """The facts for a diagnosis. Of an image that was not entered only those are found out that
    its host and its command tell."""
    command = request.command
    if where.found_by is not FoundBy.IMAGE or command is None or command.container is None:
        return Facts(target, (where, request))
    from doctor.command.inside import Inside

    container = command.container
    shell = {n: target.env[n] for n in container.inherited if n in target.env}
    said = {"HOME": "/root", **shell, **command.env}  # vllm/vllm-openai runs as root
    # Its paths are not those of the host, whose driver is asked here.
    variables = {n: v for n, v in said.items() if not n.startswith("LD_")}
    why = NotApplicable(Text("the image {image} was not entered", image=container.image))
    sealed = Sealed(REGISTRY, _OF_THE_HOST, why)
    inside = Inside(target, container.mounts)
    return Facts(inside, (where, request, LaunchEnv(variables)), sealed)


def diagnose(facts: Facts, rules: Iterable[Rule], question: Question) -> Report:
    """Checks every rule against the target of `facts`, which were given Where and ServeRequest;
    `rules` may load them while they are asked for, which takes as long as the first children do.
    What is known of the target already is not asked again. Raises Missing (NotPython) or Crashed
    where the interpreter does not answer: then nothing can be said about it at all."""
    began = time.perf_counter()
    deep = question.deep
    facts = facts.given(DeepAsked(deep))
    facts.ask_ahead(Interpreter, Driver, HostCompilers, *((CuInit, Imports) if deep else ()))
    loaded, where = tuple(rules), facts.get(Where)
    interpreter = None if where.found_by is FoundBy.IMAGE else facts.get(Interpreter)
    # What is read of files goes beside what waits for the driver.
    facts.ask_ahead(Toolkits, *((ServerArguments,) if facts.get(ServeRequest).command else ()))
    outcomes, not_checked = check(loaded, facts)
    outcomes = [_settled(o) for o in outcomes]
    proof, missing = _asked(facts, Proof) if deep else (None, None)
    imports, unimported = _asked(facts, Imports) if deep else (None, None)
    outcomes = _with_proof(outcomes, proof, imports)
    outcomes = [_accepted(o) if o.rule.id in question.accept else o for o in outcomes]
    first = primary(outcomes, question.fail_on)
    served = _asked(facts, Profile)[0] or facts.get(ServeRequest).profile
    return Report(
        where=where,
        asked=interpreter,
        profile_name=question.profile_name,
        model=served.model,
        outcomes=tuple(_ordered(outcomes, first)),
        not_checked=tuple(not_checked),
        primary=first,
        proof=proof,
        proof_missing=missing,
        imports=imports,
        imports_missing=unimported,
        installer=_installer(facts, where.python),
        exit_code=exit_code(outcomes, question.fail_on),
        seconds=time.perf_counter() - began,
        rules=len(outcomes) + len(not_checked),
        facts=facts,
        fail_on=question.fail_on,
        recorded=question.recorded,
        checked_up_to=_checked_up_to(facts),
    )


def _with_proof(
    outcomes: list[Outcome], proof: Proof | None, imports: Imports | None
) -> list[Outcome]:
    """What failed when it was tried, each under the ailment that its words name."""
    if proof and not proof.ok and proof.doubt is None:
        said = Text("the test build failed at {stage}: {line}", stage=proof.stage, line=proof.line)
        outcomes = attribute_build_failure(outcomes, said, (*proof.ids, "deep-check-failed"))
    for one in imports.died if imports else ():
        if one.ids and one.always:
            outcomes = _told_by_its_name(outcomes, one)
    return outcomes


def _asked(facts: Facts, kind: type[F]) -> tuple[F | None, Text | None]:
    """(a fact that proves, why there is none)."""
    try:
        return facts.get(kind), None
    except Missing as missing:
        return None, missing.reason
    except Crashed as crash:
        return None, crash.text


def _checked_up_to(facts: Facts) -> str | None:
    try:
        installed = facts.get(Vllm).version
    except (Missing, Crashed):
        return None
    newer = Version(installed.base_version) > Version(CHECKED_UP_TO)
    return CHECKED_UP_TO if newer else None


def _told_by_its_name(outcomes: list[Outcome], one: Imported) -> list[Outcome]:
    """An import that died goes to the ailment that its words name, where a rule knows that."""
    explained = attribute_build_failure(outcomes, one.told, one.ids)
    if explained is outcomes:
        return outcomes
    return [_without(o, one.module) if o.rule.id == "import-fails" else o for o in explained]


def _without(outcome: Outcome, subject: str) -> Outcome:
    findings = tuple(f for f in outcome.findings if f.subject != subject)
    verdict = Verdict.FOUND if findings else Verdict.OK
    return dataclasses.replace(outcome, findings=findings, verdict=verdict)


def attribute_build_failure(
    outcomes: list[Outcome], said: Text, ids: Iterable[str]
) -> list[Outcome]:
    """Puts what failed when it was tried under the ailment of these that a rule knows, best first.
    Where the rule had missed it, what was tried is right and the rule is not: it is a finding."""
    by_id = {o.rule.id: o for o in outcomes}
    named = [by_id[id] for id in ids if id in by_id]
    if not named:
        return outcomes  # the rule that would say so was not asked
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


def _settled(outcome: Outcome) -> Outcome:
    """Fixes that nobody carries out are a person's: in the plan as in every report."""
    findings = tuple(
        dataclasses.replace(f, fixes=tuple(map(KINDS.settled, f.fixes))) for f in outcome.findings
    )
    return dataclasses.replace(outcome, findings=findings) if findings else outcome


def _accepted(outcome: Outcome) -> Outcome:
    return dataclasses.replace(outcome, accepted=outcome.verdict is not Verdict.OK)


def _deciding(outcomes: Iterable[Outcome], *verdicts: Verdict) -> list[Outcome]:
    return [o for o in outcomes if o.verdict in verdicts and not o.accepted]


def _installer(facts: Facts, python: Path) -> Installer:
    try:
        return Installer(python, facts.get(Packages).version("pip") is not None)
    except (Missing, Crashed):
        return Installer(python, own_pip=False)
