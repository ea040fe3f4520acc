"""The report that is shown without -v: it fits a screen, and says what to do next."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doctor import profile as profiles
from doctor.codec import parse_json
from doctor.diagnose import Question, Recorded, Report, diagnose
from doctor.engine import Facts, load_rules
from doctor.fixes import Command
from doctor.model import (
    Finding,
    Fix,
    Needs,
    NotChecked,
    Outcome,
    Rule,
    Severity,
    Stage,
    Text,
    Verdict,
)
from doctor.probes.interpreter import recorded_where
from doctor.probes.proof import Proof
from doctor.profile import ServeRequest
from doctor.report.lines import Line, Style, columns, wrap
from doctor.report.short import ranges
from doctor.report.text import report_lines
from doctor.shipped import rules_folder
from doctor.tape import Tape, load_tape
from tests.conftest import run_inside

TAPES = sorted((Path(__file__).parent.parent / "fixtures/tapes").glob("*.json"))
CUDA_HOME_UNSET = next(t for t in TAPES if t.stem == "cuda-home-unset")
HEALTHY = next(t for t in TAPES if t.stem == "folder-of-links")


@functools.cache
def judged(tape: Path) -> Report:
    recording = load_tape(parse_json(tape.read_bytes()))
    where = recorded_where(recording.python, recording.found_by)
    profile = profiles.load_profile(profiles.DEFAULT_PROFILE)
    question = Question(profiles.DEFAULT_PROFILE, recorded=Recorded(recording.tool))
    return diagnose(
        Facts(Tape(recording), (where, ServeRequest(profile))), load_rules(rules_folder()), question
    )


def lines(report: Report, width: int = 100, quiet: bool = False) -> list[str]:
    return [text(line) for line in report_lines(report, Style(quiet=quiet, width=width))]


def text(line: Line) -> str:
    return "".join(piece for _, piece in line)


def rule(id: str, area: str = "host", stage: Stage = Stage.COMPILE) -> Rule:
    return Rule(id, Severity.ERROR, stage, id, "", area, lambda: None, ())


def having(*outcomes: Outcome, code: int = 1, skipped: Iterable[NotChecked] = ()) -> Report:
    """A report of the healthy machine with these outcomes instead of its own."""
    found = next((o for o in outcomes if o.verdict is Verdict.FOUND and not o.accepted), None)
    return replace(
        judged(HEALTHY),
        outcomes=outcomes,
        not_checked=tuple(skipped),
        primary=found,
        exit_code=code,
        recorded=None,
    )


def found(id: str, message: str, *fixes: Fix, area: str = "host") -> Outcome:
    return Outcome(rule(id, area), Verdict.FOUND, (Finding(Text("{m}", m=message), fixes=fixes),))


def test_it_fits_a_screen_and_ends_with_the_command_that_fixes() -> None:
    made = lines(judged(CUDA_HOME_UNSET))
    assert len(made) <= 22
    assert any("vllm-doctor fix --apply" in line for line in made[-4:])


def test_of_a_snapshot_the_command_is_for_the_recorded_machine() -> None:
    said = run_inside("diagnose", "--from", CUDA_HOME_UNSET)
    (command,) = (line for line in said.out.splitlines()[-4:] if " fix " in line)
    assert command.startswith("fix on the recorded machine:")
    assert command.endswith("vllm-doctor fix --apply --python /opt/vllm-env/bin/python")


@pytest.mark.parametrize("tape", TAPES, ids=lambda t: t.stem)
def test_no_line_is_wider_than_the_terminal_and_every_finding_is_named(tape: Path) -> None:
    report = judged(tape)
    ids = {o.rule.id for o in report.outcomes if o.verdict is Verdict.FOUND}
    for width in range(60, 121):
        made = lines(report, width)
        assert ids <= set(re.split(r"\s+", "\n".join(made)))
        wide = [line for line in made[1:] if columns(line) > width]  # the first: of a snapshot
        assert [line for line in wide if "vllm-doctor" not in line and "/" not in line] == []


@pytest.mark.parametrize("tape", TAPES, ids=lambda t: t.stem)
def test_no_word_is_broken(tape: Path) -> None:
    report = judged(tape)
    whole = " ".join(" ".join(lines(report, 400)).split())
    for width in (60, 80, 100):
        assert set(" ".join(lines(report, width)).split()) == set(whole.split())


def test_it_says_what_was_judged_and_at_which_moments_the_server_would_stop() -> None:
    made = lines(judged(CUDA_HOME_UNSET))
    assert made[1] == (
        "/opt/vllm-env  vLLM 0.22.0, torch 2.11.0+cu130, 2 × H100 80GB, driver 580   "
        "→ GLM-4.7-Flash, TP 2"
    )
    stop = (
        "The server would stop at: loading the model's config (1), the first kernel build (2 to 4)."
    )
    assert stop in made
    assert sum(line.endswith("PRIMARY CAUSE") for line in made) == 1


def test_a_healthy_machine_has_one_line_for_all_areas_and_the_word() -> None:
    made = lines(judged(HEALTHY))
    assert made[-1] == "Healthy"
    assert 1 <= sum("✓" in line for line in made) <= 2
    count = sum(o.verdict is Verdict.OK for o in judged(HEALTHY).outcomes)
    assert f"{count} checks passed" in "\n".join(made)


def test_what_could_not_be_told_is_neither_healthy_nor_not() -> None:
    why = Text("the driver does not answer")
    outcomes = [
        Outcome(rule(f"rule-{i}", area), Verdict.UNKNOWN, why=why)
        for i, area in enumerate(("gpu", "gpu", "driver"))
    ]
    made = "\n".join(lines(having(*outcomes, code=3)))
    assert "? several  3 checks inconclusive: the driver does not answer (gpu, driver)" in made
    assert made.count("does not answer") == 1
    assert "Could not tell: 3 checks inconclusive." in made
    assert "ealthy" not in made
    assert "✓" not in made


def test_what_only_a_person_can_fix_shows_its_first_command() -> None:
    steps = (Command("apt-get install one"), Command("apt-get install two"))
    manual = Fix(Text("install it"), steps, Needs.PERSON)
    made = "\n".join(lines(having(found("no-driver", "there is no driver", manual))))
    assert "(manual) apt-get install one" in made
    assert "apt-get install two" not in made
    assert "1 error, no automatic fix" in made
    assert " fix " not in made


def test_what_was_accepted_is_shown_as_such_and_does_not_decide() -> None:
    one = replace(found("old-driver", "the driver is old"), accepted=True)
    made = lines(having(one, Outcome(rule("fine", "gpu"), Verdict.OK), code=0))
    assert any(line.startswith("~ host  accepted: the driver is old") for line in made)
    assert made[-1] == "Healthy (accepted: old-driver)"


def test_a_check_that_crashed_is_named() -> None:
    made = lines(having(Outcome(rule("odd"), Verdict.CRASHED, why=Text("KeyError")), code=3))
    assert any(re.match(r"\? host  the check crashed: KeyError +odd$", line) for line in made)


def test_a_warning_has_its_mark_and_stops_nothing() -> None:
    warned = Finding(Text("the cache is large"), severity=Severity.WARNING)
    made = lines(having(Outcome(rule("cache"), Verdict.FOUND, (warned,)), code=0))
    assert any(line.startswith("! host  the cache is large") for line in made)
    assert not [line for line in made if "would stop" in line]
    assert "Healthy (1 warning)" in made


@pytest.mark.parametrize(("ok", "mark"), [(True, "✓"), (False, "✗")])
def test_a_test_build_is_one_line(ok: bool, mark: str) -> None:
    proof = Proof(ok=ok, stage=None if ok else "link", archs=("90",), line="cannot find -lx")
    made = lines(replace(judged(HEALTHY), proof=proof))
    (line,) = (line for line in made if "test build" in line)
    assert line.startswith(f"{mark} test build")
    assert ("sm_90" in line) is ok
    assert ("failed at link: cannot find -lx" in line) is not ok


@pytest.mark.parametrize("tape", TAPES, ids=lambda t: t.stem)
def test_quiet_is_a_line_per_finding_and_the_verdict(tape: Path) -> None:
    report = judged(tape)
    count = sum(len(o.findings) for o in report.outcomes if o.verdict is Verdict.FOUND)
    _, *findings, verdict = lines(report, quiet=True)
    assert len(findings) == count
    assert re.match("Healthy|Not healthy", verdict)


def test_text_of_the_machine_drives_no_terminal() -> None:
    made = lines(having(found("odd", "a\x1b[2Jb \u202e c")))
    assert not [c for line in made for c in line if not c.isprintable()]


def test_wide_characters_take_two_columns() -> None:
    assert [columns(word) for word in ("nvcc", "显存", "e\u0301", "✓")] == [4, 4, 1, 1]
    made = lines(having(found("odd", "显存不足 " * 30)), width=60)
    assert max(map(columns, made[:-3])) <= 60


@given(
    st.lists(st.text(st.sampled_from("ab显-/"), min_size=1, max_size=70)),
    st.integers(10, 100),
    st.integers(0, 6),
)
def test_wrapping_keeps_every_word_and_the_width(words: list[str], width: int, hang: int) -> None:
    made = list(wrap(" ".join(words), width, hang))
    assert " ".join(made).split() == words
    for i, line in enumerate(made):
        assert columns(line) <= width - (hang if i else 0) or " " not in line


@pytest.mark.parametrize(
    ("numbers", "said"),
    [([], ""), ([1], "1"), ([1, 2], "1, 2"), ([1, 3, 4, 5], "1, 3 to 5")],
)
def test_numbers_are_told_in_few_words(numbers: list[int], said: str) -> None:
    assert ranges(numbers) == said
