"""From outcomes to a verdict: the primary cause, the exit code, what a test build adds."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from doctor.diagnose import attribute_build_failure, exit_code, primary
from doctor.model import Finding, Outcome, Rule, Severity, Stage, Text, Verdict


def rule(id: str, severity: Severity = Severity.ERROR, stage: Stage = Stage.COMPILE) -> Rule:
    return Rule(id, severity, stage, f"{id} is wrong", "", "area", lambda: None, ())


def found(id: str, severity: Severity = Severity.ERROR, stage: Stage = Stage.COMPILE) -> Outcome:
    return Outcome(rule(id, severity, stage), Verdict.FOUND, (Finding(Text("found")),))


def fine(id: str) -> Outcome:
    return Outcome(rule(id), Verdict.OK)


def unknown(id: str) -> Outcome:
    return Outcome(rule(id), Verdict.UNKNOWN, why=Text("no idea"))


def test_the_primary_cause_is_what_stops_the_server_first() -> None:
    link, compile_ = found("link", stage=Stage.LINK), found("compile")
    assert primary([link, fine("x"), compile_]) is compile_


def test_a_warning_of_an_earlier_stage_does_not_outrank_an_error() -> None:
    error = found("error", stage=Stage.LOAD)
    assert primary([found("warning", Severity.WARNING, Stage.INSTALL), error]) is error


def test_an_information_is_never_the_primary_cause() -> None:
    assert primary([found("info", Severity.INFO), fine("x")]) is None


@pytest.mark.parametrize(
    ("outcomes", "fail_on", "code"),
    [
        ([fine("a")], Severity.ERROR, 0),
        ([found("a")], Severity.ERROR, 1),
        ([found("a"), unknown("b")], Severity.ERROR, 1),
        ([unknown("b"), fine("a")], Severity.ERROR, 3),
        ([Outcome(rule("a"), Verdict.CRASHED, why=Text("boom"))], Severity.ERROR, 3),
        ([found("a", Severity.WARNING)], Severity.ERROR, 0),
        ([found("a", Severity.WARNING)], Severity.WARNING, 1),
        ([found("a", Severity.WARNING), unknown("b")], Severity.ERROR, 3),
        ([found("a", Severity.INFO)], Severity.WARNING, 0),
        ([found("a", Severity.INFO)], Severity.INFO, 1),
    ],
)
def test_exit_codes(outcomes: Iterable[Outcome], fail_on: Severity, code: int) -> None:
    assert exit_code(list(outcomes), fail_on) == code


FAILED = Text("the test build failed at link: cannot find -lcudart")


def test_a_failed_test_build_is_evidence_under_the_finding_it_confirms() -> None:
    (outcome,) = attribute_build_failure([found("layout")], FAILED, ("layout",))
    (finding,) = outcome.findings
    assert [str(e) for e in finding.evidence] == [
        "the test build failed at link: cannot find -lcudart"
    ]


def test_a_failed_test_build_makes_a_finding_of_what_its_rule_had_missed() -> None:
    (outcome, other) = attribute_build_failure([fine("layout"), fine("else")], FAILED, ("layout",))
    assert outcome.verdict is Verdict.FOUND
    assert outcome.severity is Severity.ERROR
    assert other.verdict is Verdict.OK


def test_a_failed_test_build_makes_an_error_of_what_was_only_a_warning() -> None:
    warned = Outcome(
        rule("layout"), Verdict.FOUND, (Finding(Text("maybe"), severity=Severity.WARNING),)
    )
    (outcome,) = attribute_build_failure([warned], FAILED, ("layout",))
    assert outcome.severity is Severity.ERROR
