"""Whether this machine still has what a log tells of: the rules of the same ids are asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from doctor.engine import Facts, check
from doctor.model import Finding, Needs, Rule, Text, Verdict
from doctor.probes.driver import DeepAsked
from doctor.probes.interpreter import Where
from doctor.profile import ServeRequest
from doctor.target import Target


@dataclass(frozen=True)
class Confirmed:
    """`still`: True, it has it; False, no longer; None, that cannot be told, and `why`."""

    still: bool | None
    findings: tuple[Finding, ...] = ()
    why: Text | None = None

    @property
    def repairable(self) -> bool:
        """Whether `fix --apply` would do something about it."""
        return any(fix.needs is not Needs.PERSON for f in self.findings for fix in f.fixes)


def confirm_on_machine(
    ids: Iterable[str], target: Target, where: Where, serve: ServeRequest, rules: Iterable[Rule]
) -> Mapping[str, Confirmed]:
    """What the rules of these ids say of the target now; an id without a rule has no entry."""
    wanted = set(ids)
    facts = Facts(target, (where, serve, DeepAsked(False)))
    outcomes, not_checked = check([r for r in rules if r.id in wanted], facts)
    made = {n.rule.id: Confirmed(None, why=n.why) for n in not_checked}
    for one in outcomes:
        still = {Verdict.FOUND: True, Verdict.OK: False}.get(one.verdict)
        made[one.rule.id] = Confirmed(still, one.findings, one.why)
    return made


def unknown(ids: Iterable[str], why: str) -> Mapping[str, Confirmed]:
    """The same where there is no target to ask."""
    return {id: Confirmed(None, why=Text("{why}", why=why)) for id in ids}
