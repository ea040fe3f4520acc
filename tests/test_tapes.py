"""Recorded machines, judged whole: the report of each is in fixtures/tapes/<name>.txt.

The tapes are of real environments (tests/real_stack/test_tapes.py makes them); after a change of
rules or wording, `python -m tests.regenerate` writes the reports anew, and the difference is there
to be read.
"""

from __future__ import annotations

import json
import platform
import re
import time
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from doctor.cli import cli
from doctor.report.json import report_schema
from doctor.report.schema import snapshot_schema
from tests.conftest import Environment, run_doctor

TAPES = sorted((Path(__file__).parent.parent / "fixtures/tapes").glob("*.json"))


def judge(tape: Path, *options: str) -> tuple[int, str]:
    ran = CliRunner().invoke(cli, ["diagnose", "--from", str(tape), *options])
    return ran.exit_code, ran.output


def golden_report(tape: Path) -> str:
    """What the file beside the tape has to hold."""
    code, output = judge(tape, "-v")
    return f"{output}exit code {code}\n"


@pytest.mark.parametrize("tape", TAPES, ids=lambda t: t.stem)
def test_a_recorded_machine_gets_its_golden_report(tape: Path) -> None:
    assert golden_report(tape) == tape.with_suffix(".txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("tape", TAPES, ids=lambda t: t.stem)
def test_report_and_snapshot_keep_to_their_schemas(tape: Path) -> None:
    jsonschema.validate(json.loads(tape.read_text(encoding="utf-8")), snapshot_schema())
    code, output = judge(tape, "--format", "json")
    report = json.loads(output)
    jsonschema.validate(report, report_schema())
    assert report["exit_code"] == code
    assert report["target"]["source"] == "tape"


@pytest.mark.parametrize("tape", TAPES, ids=lambda t: t.stem)
def test_a_tape_holds_no_path_of_the_machine_it_was_recorded_on(tape: Path) -> None:
    text = tape.read_text(encoding="utf-8")
    assert not re.search(r"/root/|/work/|/tmp/pytest|/home/(?!user\b)", text)
    assert len(text) < 100_000


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
    jsonschema.validate(report, report_schema())
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
        jsonschema.validate(tape, snapshot_schema())
        assert began <= tape["recorded"] <= time.time() + 1
        assert tape["host"] == host
