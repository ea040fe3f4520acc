"""Every log of the corpus, judged: its cause, its values, and nothing where nothing is wrong."""

from __future__ import annotations

from collections import Counter

import pytest

from doctor.logs.judge import fill
from doctor.signatures import shipped_catalogue
from tests.corpus import HEALTHY, UNRECOGNISED, Logged, explained, logs

LOGS = logs()


@pytest.mark.parametrize("logged", LOGS, ids=lambda one: one.name)
def test_the_primary_cause_is_the_one_that_the_folder_names(logged: Logged) -> None:
    told = explained(logged.data)
    found = [(f.id, f.role, f.line, f.excerpt[:90]) for f in told.findings]
    assert (told.verdict, told.primary) == (logged.verdict, logged.primary), (found, told.unknown)


@pytest.mark.parametrize(
    "logged", [one for one in LOGS if one.folder == HEALTHY], ids=lambda one: one.name
)
def test_a_healthy_log_gives_no_finding(logged: Logged) -> None:
    assert [f for f in explained(logged.data).findings if f.severity == "error"] == []


@pytest.mark.parametrize(
    "logged", [one for one in LOGS if one.path.with_suffix(".toml").exists()], ids=lambda o: o.name
)
def test_the_values_of_the_log_are_in_the_message_and_in_the_commands(logged: Logged) -> None:
    told = explained(logged.data)
    first = next(f for f in told.findings if f.id == logged.folder)
    more = logged.more
    assert {name: first.values.get(name) for name in more.values} == more.values
    ailment = shipped_catalogue().ailments.get(first.id)
    remedies = ailment.fix if ailment else ()
    commands = [fill(c, first.values) for r in remedies for c in (r.title, *r.commands)]
    said = "\n".join(filter(None, [first.message, *commands]))
    assert [text for text in more.says if text not in said] == [], said
    assert set(more.contributing) <= {f.id for f in told.findings}


def test_every_ailment_has_two_logs_and_no_log_lacks_its_ailment() -> None:
    named = {
        s.id for s in shipped_catalogue().signatures if s.role in ("cause", "generic", "request")
    }
    counts = Counter(one.folder for one in LOGS)
    assert {i: counts[i] for i in named if counts[i] < 2} == {}
    known = {s.id for s in shipped_catalogue().signatures} | {HEALTHY, UNRECOGNISED}
    assert set(counts) - known == set()


def test_the_corpus_is_as_large_as_it_has_to_be() -> None:
    assert len([one for one in LOGS if one.folder == HEALTHY]) >= 30
    assert len({one.folder for one in LOGS if one.is_real and one.primary}) >= 20


def test_no_log_is_there_twice() -> None:
    assert len({one.data for one in LOGS}) == len(LOGS)
