"""The engine: what rules need is found out once, and whatever breaks is named and hides nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from doctor import engine
from doctor.engine import Crashed, Facts, Registry, RuleError, check, load_rules
from doctor.model import (
    Fact,
    Finding,
    Missing,
    NotApplicable,
    NotChecked,
    Outcome,
    Rule,
    Severity,
    Stage,
    Text,
    Verdict,
)
from doctor.tape import Recording, Tape
from doctor.target import Live, Target


@dataclass(frozen=True)
class Given(Fact):
    value: int = 1


@dataclass(frozen=True)
class Counted(Fact):
    value: int


@dataclass(frozen=True)
class Derived(Fact):
    value: int


@dataclass(frozen=True)
class Absent(Fact):
    """Its probe cannot tell."""


@dataclass(frozen=True)
class Broken(Fact):
    """Its probe crashes."""


@dataclass(frozen=True)
class Hen(Fact):
    """Needs the egg."""


@dataclass(frozen=True)
class Egg(Fact):
    """Needs the hen."""


@dataclass(frozen=True)
class Newer(Fact):
    """Asks what doctors before 0.2.0 did not."""

    since: ClassVar[str] = "0.2.0"


@dataclass(frozen=True)
class Older(Fact):
    """Asks what every doctor has asked."""


@dataclass(frozen=True)
class OnNewer(Fact):
    """Needs the newer one."""


@dataclass(frozen=True)
class NewerOnOlder(Fact):
    """Is newer, and fails for what an older one lacks."""

    since: ClassVar[str] = "0.2.0"


@dataclass(frozen=True)
class Orphan(Fact):
    """Has no probe."""


COUNT: list[int] = []


@pytest.fixture(autouse=True)
def nothing_counted() -> None:
    COUNT.clear()


PROBES = Registry()
"""Probes of these tests alone."""


@PROBES.probe
def find_counted(given: Given) -> Counted:
    COUNT.append(1)
    return Counted(given.value + 1)


@PROBES.probe
def find_derived(counted: Counted, absent: Absent | None) -> Derived:
    return Derived(counted.value if absent is None else -1)


@PROBES.probe
def find_absent() -> Absent:
    raise Missing(Text("nobody knows {what}", what="it"), ("known-ailment",))


@PROBES.probe
def find_broken() -> Broken:
    raise ZeroDivisionError("by nought")


@dataclass(frozen=True)
class Unsaid(Fact):
    """Its probe cannot tell, nor say why."""


@PROBES.probe
def find_unsaid() -> Unsaid:
    raise Missing(Text("{value} is not there"))


@PROBES.probe
def find_newer(target: Target) -> Newer:
    target.listdir(Path("/new"))
    return Newer()


@PROBES.probe
def find_older(target: Target) -> Older:
    target.listdir(Path("/old"))
    return Older()


@PROBES.probe
def find_on_newer(newer: Newer) -> OnNewer:
    return OnNewer()


@PROBES.probe
def find_newer_on_older(older: Older) -> NewerOnOlder:
    return NewerOnOlder()


@PROBES.probe
def find_hen(egg: Egg) -> Hen:
    return Hen()


@PROBES.probe
def find_egg(hen: Hen) -> Egg:
    return Egg()


def facts(registry: Registry = PROBES) -> Facts:
    return Facts(Live({}), (Given(),), registry)


def a_rule(function: Callable[..., Any], id: str = "one") -> Rule:
    needs = tuple(engine._parameters(function))
    return Rule(
        id, Severity.ERROR, Stage.SHELL, "Title", "Title.\n\nMore.", "area", function, needs
    )


def outcome(function: Callable[..., Any]) -> Outcome:
    ((one,), skipped) = check([a_rule(function)], facts())
    assert not skipped
    return one


def test_a_fact_is_found_out_once() -> None:
    made = facts()
    assert made.get(Counted) == made.get(Counted) == Counted(2)
    assert made.get(Derived) == Derived(2)
    assert len(COUNT) == 1


def test_another_given_fact_asks_anew_for_what_rests_on_it_and_for_nothing_else() -> None:
    registry = Registry(PROBES)
    asked: list[str] = []

    @registry.probe
    def orphan() -> Orphan:
        asked.append("orphan")
        return Orphan()

    first = facts(registry)
    assert (first.get(Derived), first.get(Orphan)) == (Derived(2), Orphan())
    second = first.given(Given(7))
    assert (second.get(Derived), second.get(Orphan)) == (Derived(8), Orphan())
    assert (len(COUNT), asked) == (2, ["orphan"])
    assert first.get(Derived) == Derived(2)
    assert first.given(Given()) is first


def test_a_registry_on_top_leaves_the_one_below_as_it_is() -> None:
    registry = Registry(PROBES)

    @registry.probe
    def orphan() -> Orphan:
        return Orphan()

    assert facts(registry).get(Orphan) == Orphan()
    assert set(registry.kinds()) - set(PROBES.kinds()) == {Orphan}
    with pytest.raises(Crashed, match="no probe returns Orphan"):
        facts().get(Orphan)


def test_a_fact_is_found_out_once_however_many_threads_ask() -> None:
    made = facts()
    made.ask_ahead(*[Counted] * 8, Derived)
    assert made.get(Derived) == Derived(2)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.daemon:
            thread.join(5)
    assert len(COUNT) == 1


def test_facts_that_are_asked_ahead_may_be_missing_or_broken() -> None:
    made = facts()
    made.ask_ahead(Absent, Broken)
    with pytest.raises(Missing):
        made.get(Absent)
    with pytest.raises(Crashed):
        made.get(Broken)


def test_no_rule_waits_for_a_fact_of_the_background_while_others_could_be_judged() -> None:
    """And all are told in the order in which they are written."""
    judged = threading.Event()
    registry = Registry(PROBES)

    @registry.probe
    def slow(given: Given) -> Newer:
        assert judged.wait(10)
        return Newer()

    def waits(newer: OnNewer) -> None: ...

    def does_not(counted: Counted, hen: Hen | None) -> None: ...

    def ends() -> None:
        judged.set()

    made = facts(registry)
    made.ask_ahead(Newer)
    rules = [a_rule(waits, "waits"), a_rule(does_not, "circle"), a_rule(ends, "ends")]
    outcomes, _ = check(rules, made)
    assert [(o.rule.id, o.verdict) for o in outcomes] == [
        ("waits", Verdict.OK),
        ("circle", Verdict.CRASHED),
        ("ends", Verdict.OK),
    ]


def test_an_optional_fact_that_is_missing_is_none() -> None:
    assert facts().get(Derived).value == 2


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Broken, "the probe of Broken crashed: ZeroDivisionError: by nought (test_engine.py:"),
        (Hen, "probes ask each other in a circle: Hen -> Egg -> Hen"),
        (Orphan, "no probe returns Orphan"),
        (
            Unsaid,
            "the probe of Unsaid crashed: TypeError: the template '{value} is not there' lacks",
        ),
    ],
)
def test_a_fact_that_cannot_be_had_is_named(kind: type[Fact], words: str) -> None:
    with pytest.raises(Crashed) as crash:
        facts().get(kind)
    assert str(crash.value).startswith(words)


def test_a_rule_whose_fact_is_missing_is_unknown_never_fine() -> None:
    def needs_it(absent: Absent) -> None: ...

    one = outcome(needs_it)
    assert (one.verdict, str(one.why)) == (Verdict.UNKNOWN, "nobody knows it")


def test_a_rule_whose_missing_fact_a_finding_explains_is_not_checked() -> None:
    def needs_it(absent: Absent) -> None: ...

    def explains() -> Finding:
        return Finding(Text("that is why"))

    both = [a_rule(needs_it, "one"), a_rule(explains, "known-ailment")]
    (found,), (skipped,) = check(both, facts())
    assert (found.rule.id, found.verdict) == ("known-ailment", Verdict.FOUND)
    assert (skipped.rule.id, str(skipped.why)) == ("one", "nobody knows it")


def replayed(function: Callable[..., Any], tool: str) -> tuple[list[Outcome], list[NotChecked]]:
    """What a rule comes to on an empty recording of this doctor."""
    recording = Recording(1, tool, "/v/bin/python", "--python", {})
    return check([a_rule(function)], Facts(Tape(recording), (Given(),), PROBES))


def on_newer(newer: Newer) -> None: ...
def on_newer_if_there(newer: Newer | None) -> None: ...
def on_what_needs_it(on_newer: OnNewer) -> None: ...
def on_older(older: Older) -> None: ...
def on_newer_on_older(newer: NewerOnOlder) -> None: ...


@pytest.mark.parametrize("function", [on_newer, on_newer_if_there, on_what_needs_it])
def test_what_an_older_doctor_did_not_ask_is_not_checked(function: Callable[..., Any]) -> None:
    outcomes, (skipped,) = replayed(function, "vllm-doctor 0.1.0")
    assert not outcomes
    assert str(skipped.why) == "recorded by vllm-doctor 0.1.0, before this check existed"


@pytest.mark.parametrize(
    ("function", "tool"),
    [
        (on_newer, "vllm-doctor 0.2.0"),
        (on_newer, "vllm-doctor 0.10.0"),
        (on_newer, "something else"),
        (on_older, "vllm-doctor 0.1.0"),
        (on_newer_on_older, "vllm-doctor 0.1.0"),
    ],
)
def test_a_gap_in_a_recording_is_unknown(function: Callable[..., Any], tool: str) -> None:
    (one,), skipped = replayed(function, tool)
    assert (one.verdict, skipped) == (Verdict.UNKNOWN, [])


def test_an_explanation_that_was_not_found_explains_nothing() -> None:
    def needs_it(absent: Absent) -> None: ...

    def is_fine() -> None: ...

    outcomes, skipped = check([a_rule(needs_it), a_rule(is_fine, "known-ailment")], facts())
    assert [o.verdict for o in outcomes] == [Verdict.OK, Verdict.UNKNOWN]
    assert not skipped


def test_a_question_that_does_not_arise_is_not_checked() -> None:
    def not_here() -> None:
        raise NotApplicable(Text("no GPU is needed"))

    outcomes, (skipped,) = check([a_rule(not_here)], facts())
    assert (outcomes, str(skipped.why)) == ([], "no GPU is needed")


def no_text() -> Finding:
    return Finding("no Text")  # type: ignore[arg-type]


def no_value() -> Finding:
    return Finding(Text("{value} is not given"))


def no_template() -> Finding:
    return Finding(Text("{"))


def no_value_in_evidence() -> Finding:
    return Finding(Text("x"), (Text("{y}"),))


def no_value_in_a_reason() -> None:
    raise Missing(Text("{y}"))


def no_value_where_it_does_not_arise() -> None:
    raise NotApplicable(Text("{y}", x=1))


def no_finding() -> str:
    return "a text"


def no_findings() -> list[int]:
    return [1]


def a_flag() -> bool:
    return True


def raises() -> None:
    raise ValueError("over here")


def leaves() -> None:
    raise SystemExit(0)


def raises_late() -> Iterator[Finding]:
    yield Finding(Text("one"))
    raise ValueError("over here")


def never_ends() -> None:
    never_ends()


def needs_a_broken_fact(broken: Broken) -> None: ...


@pytest.mark.parametrize(
    "function",
    [
        raises,
        leaves,
        raises_late,
        never_ends,
        no_text,
        no_value,
        no_template,
        no_value_in_evidence,
        no_value_in_a_reason,
        no_value_where_it_does_not_arise,
        no_finding,
        no_findings,
        a_flag,
        needs_a_broken_fact,
    ],
)
def test_a_rule_that_breaks_has_crashed_with_a_reason_and_hides_nothing(
    function: Callable[..., Any],
) -> None:
    def fine() -> None: ...

    outcomes, skipped = check([a_rule(function), a_rule(fine, "fine")], facts())
    assert [o.verdict for o in outcomes] == [Verdict.CRASHED, Verdict.OK]
    assert outcomes[0].findings == ()
    assert str(outcomes[0].why)
    assert not skipped


def test_a_rule_may_return_none_one_or_several_findings() -> None:
    a, b = Finding(Text("a")), Finding(Text("b"), severity=Severity.INFO)
    answers: list[tuple[Finding | Iterable[Finding] | None, tuple[Finding, ...]]] = [
        (None, ()),
        (a, (a,)),
        ([], ()),
        ((a, b), (a, b)),
        (iter([b]), (b,)),
    ]

    def returning(answer: Finding | Iterable[Finding] | None) -> Callable[[], Any]:
        return lambda: answer

    for answer, findings in answers:
        one = outcome(returning(answer))
        assert one.findings == findings
        assert one.verdict is (Verdict.FOUND if findings else Verdict.OK)


def test_an_outcome_is_as_grave_as_its_gravest_finding() -> None:
    def mild() -> Finding:
        return Finding(Text("b"), severity=Severity.INFO)

    assert outcome(mild).severity is Severity.INFO


HEAD = "from doctor import Fact, Finding, Missing, Severity, Stage, Text, rule\n"
RULE = """
@rule("{id}", Severity.ERROR, Stage.SHELL)
def {name}({needs}) -> Finding | None:
    \"\"\"Its title.

    Its explanation.
    \"\"\"
"""


PROBE = """
from doctor.engine import probe
from doctor.probes.wheels import Packages

@probe
def another() -> Packages: ...
"""


def rule_file(*ids: str, needs: str = "") -> str:
    rows = (RULE.format(id=id, name=f"rule_{i}", needs=needs) for i, id in enumerate(ids))
    return HEAD + "".join(rows)


def put(folder: Path, *texts: str) -> Path:
    for i, text in enumerate(texts):
        (folder / f"area{i}.py").write_text(text, encoding="utf-8")
    return folder


def test_rules_are_loaded_with_what_they_say_of_themselves(tmp_path: Path) -> None:
    put(tmp_path, rule_file("b-rule", "a-rule"), rule_file("c-rule"))
    rules = load_rules(tmp_path)
    assert [(r.id, r.area) for r in rules] == [
        ("b-rule", "area0"),
        ("a-rule", "area0"),
        ("c-rule", "area1"),
    ]
    assert rules[0].title == "Its title"
    assert rules[0].explanation == "Its title.\n\nIts explanation."


def test_loading_rules_writes_nothing_beside_them(tmp_path: Path) -> None:
    load_rules(put(tmp_path, rule_file("a-rule")))
    assert [p.name for p in tmp_path.iterdir()] == ["area0.py"]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ((), "holds no rules"),
        (("x = 1",), "holds no rules"),
        (("def broken(:",), "SyntaxError"),
        (("import not_there",), "not_there"),
        (("raise SystemExit(0)",), "cannot be loaded"),
        (("1 // 0",), "ZeroDivisionError"),
        (("\0",), "cannot be loaded"),
        ((rule_file("x", "x"),), "area0.py:10: there is a rule 'x' already"),
        ((rule_file("x"), rule_file("x")), "'x'"),
        ((rule_file("x", needs="it: Nonsense"),), "Nonsense"),
        ((rule_file("x", needs="it: int"),), "area0.py:3: the rule x: the parameter it is annot"),
        ((rule_file("x", needs="it"),), "area0.py:3: the rule x: the parameter it is annotated"),
        ((rule_file("x", needs="it: Fact | Finding"),), "area0.py:3: the rule x: the parameter it"),
        ((rule_file("a", "Odd_Id"),), "area0.py:10: the rule Odd_Id: an id is small letters"),
        ((HEAD + PROBE, HEAD + PROBE), "both have a probe of Packages"),
        ((HEAD + "@rule('x', Severity.INFO, Stage.SHELL)\ndef f() -> None: ...",), "docstring"),
        ((HEAD + "@rule('x')\ndef f() -> None: 'It.'",), "cannot be loaded"),
        ((rule_file("x").replace("Stage.SHELL", "'shell'"),), "shell"),
        ((rule_file("x").replace("Severity.ERROR", "'grave'"),), "grave"),
    ],
)
def test_rules_that_cannot_be_loaded_are_refused_in_one_sentence(
    tmp_path: Path, texts: tuple[str, ...], words: str
) -> None:
    with pytest.raises(RuleError) as error:
        load_rules(put(tmp_path, *texts))
    assert words in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_rule_that_breaks_is_told_by_its_file_and_line(tmp_path: Path) -> None:
    lines = (
        "    return Finding(Text('{value} is too much'))\n",
        "    return Text('It.').lines\n",
        "    raise Missing(Text('{value} is not there', size=1))\n",
    )
    texts = [rule_file(f"rule-{i}") + line for i, line in enumerate(lines)]
    outcomes, _ = check(load_rules(put(tmp_path, *texts)), facts())
    assert [str(one.why) for one in outcomes] == [
        "TypeError: the template '{value} is too much' lacks a value: 'value' (area0.py:3)",
        "AttributeError: 'Text' object has no attribute 'lines' (area1.py:9)",
        "TypeError: the template '{value} is not there' lacks a value: 'value' (area2.py:3)",
    ]


def test_a_folder_that_is_none_holds_no_rules(tmp_path: Path) -> None:
    with pytest.raises(RuleError):
        load_rules(tmp_path / "none")
