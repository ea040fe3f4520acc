"""What a person reads of an ailment: title, explanation, labelled paragraphs, fixes, messages."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest

from doctor.engine import load_rules
from doctor.model import Rule
from doctor.shipped import rules_folder
from doctor.signatures import Ailment, shipped_catalogue

LABELS = ("Fix", "Manual", "Workaround", "Sources", "See also")
RULES = load_rules(rules_folder())
IN_LOGS = tuple(shipped_catalogue().ailments.values())
TOLD_BY_LOGS = tuple(a for a in IN_LOGS if a.title is not None)
IDS = {r.id for r in RULES} | {a.id for a in IN_LOGS}

# The words that the field does not use for these things: "fix", "undo", "roll back", "snapshot",
# "inconclusive", "manual", "workaround", "same fix as" say it.
FORBIDDEN = re.compile(
    r"""(?ix) (?<![\w-]) (?:
        repair(?:s|ed|ing|able)? | mend(?:s|ed|ing)? | heal(?:s|ed|ing)? | cur(?:e|es|ed|ing)
        | remed(?:y|ies) | tapes? | by\ hand | do(?:es|ing)?\ without | could\ not\ be\ told
        | t(?:ake|akes|aken|aking|ook)\ (?:it\ )?back | mend\ this\ first | as\ for\ [a-z]+-[a-z]+
        | passed\ over | is\ no\ (?:mirror|URL|text) | go(?:es)?\ together | speaks?\ CUDA
        | anew | wants? | wanted | gives?\ up\ on
    ) (?![\w-])"""
)


def paragraphs(rule: Rule) -> list[str]:
    """Those after the title, each as one line."""
    return [" ".join(p.split()) for p in rule.explanation.split("\n\n")[1:]]


def label(paragraph: str) -> str | None:
    head, colon, _ = paragraph.partition(": ")
    return head if colon and head in LABELS else None


def labelled(rule: Rule) -> dict[str, str]:
    rows = [(label(p), p.partition(": ")[2]) for p in paragraphs(rule)]
    return {name: text for name, text in rows if name}


def see_also(one: Rule | Ailment) -> tuple[str, ...]:
    if isinstance(one, Ailment):
        return one.see_also
    return tuple(filter(None, labelled(one).get("See also", "").split(", ")))


def sources(one: Rule | Ailment) -> tuple[str, ...]:
    if isinstance(one, Ailment):
        return one.sources
    return tuple(filter(None, labelled(one).get("Sources", "").split(", ")))


by_id = pytest.mark.parametrize("one", [*RULES, *TOLD_BY_LOGS], ids=lambda one: one.id)
of_a_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)


@by_id
def test_a_title_is_one_short_line(one: Rule | Ailment) -> None:
    assert one.title
    assert len(one.title) <= 80
    assert not one.title.endswith(".")


@of_a_rule
def test_a_rule_says_why_and_what_to_do(rule: Rule) -> None:
    said = [label(p) for p in paragraphs(rule)]
    assert said[0] is None, "the explanation comes first"
    assert {"Fix", "Manual"} & set(said)


@of_a_rule
def test_labelled_paragraphs_come_last_each_once_and_in_one_order(rule: Rule) -> None:
    said = [label(p) for p in paragraphs(rule)]
    first = next((i for i, name in enumerate(said) if name), len(said))
    names = [name for name in said[first:] if name]
    assert said[first:] == names
    assert names == [name for name in LABELS if name in names]


@pytest.mark.parametrize("one", TOLD_BY_LOGS, ids=lambda one: one.id)
def test_an_ailment_of_logs_says_why_and_what_to_do(one: Ailment) -> None:
    assert one.explanation
    assert one.fix


@by_id
def test_what_is_to_be_seen_also_exists(one: Rule | Ailment) -> None:
    also = see_also(one)
    assert set(also) <= IDS - {one.id}
    assert len(set(also)) == len(also)


@by_id
def test_a_source_is_whole(one: Rule | Ailment) -> None:
    """They are divided at commas."""
    for source in sources(one):
        assert source.count("(") == source.count(")")
        assert not source.endswith(".")


def prose() -> Iterable[tuple[str, str]]:
    for rule in RULES:
        said = [p for p in paragraphs(rule) if label(p) not in ("Sources", "See also")]
        yield rule.id, "\n".join([rule.title, *said])
    for one in IN_LOGS:
        titles = [remedy.title for remedy in one.fix]
        yield one.id, "\n".join(filter(None, [one.title, one.explanation, *titles]))
    for row in shipped_catalogue().signatures:
        yield row.id, row.message or ""


def unquoted(text: str) -> str:
    """Without what is quoted: commands and literal messages, and names of values."""
    return re.sub(r"`[^`]*`|\{\w+\}", "", text)


def test_the_words_are_those_of_the_field() -> None:
    found = {id: m.group(0) for id, text in prose() if (m := FORBIDDEN.search(unquoted(text)))}
    assert found == {}
