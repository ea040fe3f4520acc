"""Every rule over its cases: facts in, findings and steps out (fixtures/rules/<id>.toml)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from doctor import toml
from doctor.codec import decode
from doctor.engine import load_rules
from doctor.model import Finding, Missing, NotApplicable, Rule
from doctor.shipped import rules_folder

CASES = Path(__file__).parent.parent / "fixtures/rules"
RULES = {rule.id: rule for rule in load_rules(rules_folder())}
_OUTCOME_KEYS = {"name", "finds", "severity", "steps", "titles", "not_checked", "cannot_tell"}


@dataclass(frozen=True)
class Case:
    """`finds`: the messages; `severity`: of each; `steps`, `titles`: of the first fix of each
    finding, in order; `not_checked`: the reason why the question does not arise; `cannot_tell`: why
    it has no answer."""

    rule: Rule
    name: str
    facts: dict[str, Any]
    finds: list[str]
    severity: list[str] | None
    steps: list[str] | None
    titles: list[str] | None
    not_checked: str | None
    cannot_tell: str | None


def cases() -> list[Case]:
    made = []
    for path in sorted(CASES.glob("*.toml")):
        data = toml.load_toml(path)
        rule = RULES[path.stem]
        for row in data["case"]:
            given = {**data.get("given", {}), **row}
            facts = {k: v for k, v in given.items() if k not in _OUTCOME_KEYS}
            made.append(
                Case(
                    rule=rule,
                    name=row["name"],
                    facts=facts,
                    finds=row.get("finds", []),
                    severity=row.get("severity"),
                    steps=row.get("steps"),
                    titles=row.get("titles"),
                    not_checked=row.get("not_checked"),
                    cannot_tell=row.get("cannot_tell"),
                )
            )
    return made


def decode_facts(rule: Rule, given: dict[str, Any]) -> dict[str, Any]:
    """The rule's arguments: each decoded by its annotation; an optional one left out is None."""
    arguments: dict[str, Any] = {}
    for name, kind, optional in rule.needs:
        if name in given:
            arguments[name] = decode(kind, given.pop(name), name)
        elif optional:
            arguments[name] = None
        else:
            arguments[name] = decode(kind, {}, name)
    assert not given, f"{rule.id} takes no {sorted(given)}"
    return arguments


def run(case: Case) -> list[Finding]:
    answer = case.rule.function(**decode_facts(case.rule, dict(case.facts)))
    return [answer] if isinstance(answer, Finding) else list(answer or ())


@pytest.mark.parametrize("case", cases(), ids=lambda c: f"{c.rule.id}: {c.name}")
def test_a_rule_finds_what_its_case_says(case: Case) -> None:
    if why := case.not_checked or case.cannot_tell:
        with pytest.raises(Missing) as missing:
            run(case)
        assert str(missing.value.reason) == why
        assert case.not_checked or not isinstance(missing.value, NotApplicable)
        return
    found = run(case)
    assert [str(f.message) for f in found] == case.finds
    if case.severity is not None:
        assert [(f.severity or case.rule.severity).value for f in found] == case.severity
    if case.steps is not None:
        assert [str(s) for f in found if f.fixes for s in f.fixes[0].steps] == case.steps
    if case.titles is not None:
        assert [str(f.fixes[0].title) for f in found] == case.titles


@pytest.mark.parametrize("id", RULES)
def test_every_rule_fires_somewhere_and_is_quiet_somewhere(id: str) -> None:
    own = [c for c in cases() if c.rule.id == id]
    assert any(c.finds or c.cannot_tell for c in own), f"{id} fires in no case"
    quiet = [c for c in own if not (c.finds or c.not_checked or c.cannot_tell)]
    assert quiet, f"{id} is quiet in no case"


@pytest.mark.parametrize("id", RULES)
def test_every_rule_explains_itself(id: str) -> None:
    title, _, rest = RULES[id].explanation.partition("\n\n")
    assert title.endswith(".")
    assert rest, f"{id} explains no more than its title"
