"""Recorded machines, judged whole: the report of each is in fixtures/tapes/<name>.txt (-v), the one
that fits a screen in <name>.short.txt, and of one machine those that are for programs.

The tapes are of real environments (tests/real_stack/test_tapes.py makes them); after a change of
rules or wording, `python -m tests.regenerate` writes the reports anew, and the difference is there
to be read.
"""

from __future__ import annotations

import json
import platform
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from doctor.cli import cli
from doctor.diagnose import Question, Report, diagnose
from doctor.engine import REGISTRY, Facts, Registry, load_rules
from doctor.exits import FINDINGS, HEALTHY, UNKNOWN
from doctor.model import Fact, Finding, Rule, Severity, Stage, Text, Verdict
from doctor.probes.interpreter import recorded_where
from doctor.profile import DEFAULT_PROFILE, ServeRequest, load_profile
from doctor.report.formats import CASE_FORMS
from doctor.report.json import report_schema
from doctor.report.schema import snapshot_schema
from doctor.shipped import rules_folder
from doctor.tape import Tape, load_tape
from doctor.target import Target
from tests.conftest import Environment, must_fit, run_doctor
from tests.tapes import FIXTURES, TAPES, laid_over, with_answers

SHOWN = next(t for t in TAPES if t.stem == "cuda-home-unset")
"""Whose reports for programs are golden."""
OLD = sorted((FIXTURES / "snapshots-0.1.0").glob("*.json"))
"""As vllm-doctor 0.1.0 wrote them."""
QWEN = """
model = "Qwen/Qwen3-8B"

[needs]
architecture = "Qwen3ForCausalLM"
model_type = "qwen3"
attention_heads = 32
weights_gib = 15.3
"""


def judge(tape: Path, *options: str) -> tuple[int, str]:
    ran = CliRunner().invoke(cli, ["diagnose", "--from", str(tape), *options])
    return ran.exit_code, ran.output


Answer = tuple[str, object]


def outcomes(tape: Path, *options: str) -> dict[str, Answer]:
    """What each check came to, by id: a verdict with messages, or why it was not checked."""
    report = json.loads(judge(tape, "--format", "json", *options)[1])
    made: dict[str, Answer] = {
        o["id"]: (o["verdict"], [f["message"] for f in o["findings"]]) for o in report["outcomes"]
    }
    return made | {n["id"]: ("not checked", n["why"]) for n in report["not_checked"]}


def unknown(found: dict[str, Answer]) -> set[str]:
    return {id for id, (verdict, _) in found.items() if verdict == "unknown"}


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    path = tmp_path / "qwen3.toml"
    path.write_text(QWEN, encoding="utf-8")
    return path


def golden_reports() -> dict[Path, str]:
    """What each of the files beside the tapes has to hold."""
    made = {}
    with tempfile.TemporaryDirectory() as scratch:
        for tape in TAPES:
            laid = with_answers(tape, Path(scratch))
            code, output = judge(laid, "-v")
            made[tape.with_suffix(".txt")] = f"{output}exit code {code}\n"
            code, output = judge(laid)
            told = output.replace(str(laid), tape.name)
            made[tape.with_suffix(".short.txt")] = f"{told}exit code {code}\n"
        for form in CASE_FORMS:
            output = judge(with_answers(SHOWN, Path(scratch)), "--format", form)[1]
            made[SHOWN.with_suffix(f".{form}.txt")] = re.sub(r' time="[0-9.]+"', "", output)
    return made


def test_recorded_machines_get_their_golden_reports() -> None:
    made = golden_reports()
    assert {path: path.read_text(encoding="utf-8") for path in made} == made


@pytest.mark.parametrize("tape", TAPES, ids=lambda t: t.stem)
def test_report_and_snapshot_keep_to_their_schemas(tape: Path) -> None:
    must_fit(json.loads(tape.read_text(encoding="utf-8")), snapshot_schema)
    code, output = judge(tape, "--format", "json")
    report = json.loads(output)
    must_fit(report, report_schema)
    assert report["exit_code"] == code
    assert report["target"]["source"] == "tape"


@pytest.mark.parametrize("tape", TAPES, ids=lambda t: t.stem)
def test_a_tape_holds_no_path_of_the_machine_it_was_recorded_on(tape: Path) -> None:
    text = tape.read_text(encoding="utf-8")
    assert not re.search(r"/root/|/work/|/tmp/pytest|/home/(?!user\b)", text)
    assert len(text) < 420_000  # the options of vLLM 0.33, which are twice those of 0.22


@pytest.mark.parametrize("tape", TAPES, ids=lambda t: t.stem)
def test_a_recorded_machine_is_judged_for_another_model(tape: Path, qwen: Path) -> None:
    other = outcomes(tape, "--profile", str(qwen))
    assert (unknown(outcomes(tape)), unknown(other)) == (set(), set())
    assert other["architecture-not-in-transformers"] == ("ok", [])
    assert other["architecture-not-in-vllm"] == ("ok", [])
    assert judge(tape, "--profile", str(qwen))[0] in (HEALTHY, FINDINGS)


BEFORE = ("not checked", "recorded by vllm-doctor 0.1.0, before this check existed")


@pytest.mark.parametrize("tape", OLD, ids=lambda t: t.stem)
def test_what_an_older_doctor_recorded_is_judged_as_far_as_it_goes(tape: Path) -> None:
    """As the same machine in a snapshot of today, but for the checks that are newer."""
    old, today = outcomes(tape), outcomes(FIXTURES / "tapes" / tape.name)
    newer = {id for id, answer in old.items() if answer == BEFORE}
    assert {"tool-parser-unknown", "unknown-server-option", "model-path-missing"} <= newer
    assert {id: old[id] for id in old.keys() - newer} == {
        id: today[id] for id in old.keys() - newer
    }
    assert unknown(old) == set()
    assert old["architecture-not-in-vllm"] == ("ok", [])


@pytest.mark.parametrize("tape", OLD, ids=lambda t: t.stem)
def test_what_an_older_doctor_did_not_ask_of_another_model_is_inconclusive(
    tape: Path, qwen: Path
) -> None:
    assert "architecture-not-in-vllm" in unknown(outcomes(tape, "--profile", str(qwen)))


@dataclass(frozen=True)
class Weather(Fact):
    """What nobody has asked a machine for."""

    word: str = ""


def weather_is_bad(weather: Weather) -> Finding | None:
    return Finding(Text("it is {word}", word=weather.word)) if weather.word == "bad" else None


BAD_WEATHER = Rule(
    id="bad-weather",
    severity=Severity.ERROR,
    stage=Stage.SHELL,
    title="Bad weather",
    explanation="Bad weather.",
    area="sky",
    function=weather_is_bad,
    needs=(("weather", Weather, False),),
)


def judged_with_another_probe(data: dict[str, Any]) -> Report:
    registry = Registry(REGISTRY)

    @registry.probe
    def weather(target: Target) -> Weather:
        return Weather((target.read(Path("/proc/weather")) or b"").decode())

    recording = load_tape(data)
    given = (
        recorded_where(recording.python, recording.found_by),
        ServeRequest(load_profile(DEFAULT_PROFILE)),
    )
    facts = Facts(Tape(recording), given, registry)
    return diagnose(facts, (*load_rules(rules_folder()), BAD_WEATHER), Question(DEFAULT_PROFILE))


@pytest.mark.parametrize("tape", TAPES, ids=lambda t: t.stem)
def test_a_new_question_changes_nothing_of_an_older_snapshots_report(tape: Path) -> None:
    report = judged_with_another_probe(json.loads(tape.read_text(encoding="utf-8")))
    skipped = {n.rule.id: ("not checked", str(n.why)) for n in report.not_checked}
    assert skipped.pop("bad-weather") == BEFORE
    found = {
        o.rule.id: (o.verdict.value, [str(f.message) for f in o.findings]) for o in report.outcomes
    }
    assert {**found, **skipped} == outcomes(tape)
    golden = tape.with_suffix(".txt").read_text(encoding="utf-8")
    assert golden.endswith(f"exit code {report.exit_code}\n")


def test_an_answer_that_is_laid_under_a_snapshot_is_all_that_a_new_question_needs() -> None:
    data = json.loads(TAPES[0].read_text(encoding="utf-8"))
    under = {"asked": ["Weather"], "read": {"/proc/weather": "bad"}}
    report = judged_with_another_probe(laid_over(data, under))
    assert [o.rule.id for o in report.outcomes if o.rule.id == "bad-weather" and o.findings]


def test_a_gap_in_a_fact_that_a_snapshot_was_asked_for_is_inconclusive() -> None:
    data = json.loads(TAPES[0].read_text(encoding="utf-8"))
    report = judged_with_another_probe(laid_over(data, {"asked": ["Weather"]}))
    (new,) = [o for o in report.outcomes if o.rule is BAD_WEATHER]
    why = "this snapshot does not contain /proc/weather"
    assert (new.verdict, str(new.why)) == (Verdict.UNKNOWN, why)


def test_one_reason_that_leaves_many_checks_open_is_told_once(tmp_path: Path) -> None:
    data = json.loads(TAPES[0].read_text(encoding="utf-8"))
    lost = next(path for path in data["search"] if path.endswith("vllm-0.22.0.dist-info/METADATA"))
    del data["search"][lost]
    path = tmp_path / "gap.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    count = len(unknown(outcomes(path)))
    code, output = judge(path)
    assert (code, count > 10) == (3, True)
    said = " ".join(output.split())
    assert f"{count} checks inconclusive" in said
    assert said.count("does not contain") == 1


def test_the_first_line_says_that_it_is_a_snapshot(tmp_path: Path) -> None:
    tape = json.loads(TAPES[0].read_text(encoding="utf-8"))
    first = "Snapshot recorded by vllm-doctor 0.1.0; this machine was not asked"
    assert judge(TAPES[0])[1].splitlines()[0] == first
    assert judge(TAPES[0], "-q")[1].splitlines()[0] == first
    tape |= {"recorded": 1795000000, "host": "node\x1b7", "tool": "vllm-doctor 0.2.0"}
    known = tmp_path / "known.json"
    known.write_text(json.dumps(tape), encoding="utf-8")
    assert judge(known)[1].splitlines()[0] == (
        "Snapshot recorded 2026-11-18 11:06 UTC on node\\x1b7 by vllm-doctor 0.2.0; "
        "this machine was not asked"
    )
    report = json.loads(judge(known, "--format", "json")[1])
    must_fit(report, report_schema)
    assert report["target"]["recorded"] == {
        "tool": "vllm-doctor 0.2.0",
        "at": 1795000000.0,
        "host": "node\x1b7",
    }


@pytest.mark.parametrize("moment", ["-1", "1e300", "NaN", "Infinity", '"now"'])
def test_a_moment_that_is_none_is_refused(moment: str, tmp_path: Path) -> None:
    text = TAPES[0].read_text(encoding="utf-8").replace("{", f'{{"recorded": {moment},', 1)
    (tmp_path / "m.json").write_text(text, encoding="utf-8")
    code, output = judge(tmp_path / "m.json")
    assert code == 2
    assert "recorded" in output


def test_a_snapshot_says_when_it_was_made_and_where_only_if_asked(
    shared_cpu_server: Environment, tmp_path: Path
) -> None:
    began = int(time.time())
    options = ("--python", shared_cpu_server.prefix, "--set", "device=cpu")
    for extra, host in (((), None), (("--host",), platform.node())):
        made = run_doctor("snapshot", *options, *extra, "-o", "-")
        tape = json.loads(made.out)
        must_fit(tape, snapshot_schema)
        assert began <= tape["recorded"] <= time.time() + 1
        assert tape["host"] == host


def test_a_snapshot_that_leaves_our_facts_out_of_what_it_was_asked_is_inconclusive(
    tmp_path: Path,
) -> None:
    """Else whoever empties a snapshot of a broken machine would make it a healthy one."""
    tape = json.loads(TAPES[0].read_text(encoding="utf-8"))
    lists = ("read", "search", "listdir", "stat", "executable", "realpath", "elf")
    emptied = tmp_path / "emptied.json"
    emptied.write_text(
        json.dumps({**tape, "asked": ["Interpreter"], **{name: {} for name in lists}})
    )
    code, output = judge(emptied)
    assert code == UNKNOWN, output
    assert "Healthy" not in output
