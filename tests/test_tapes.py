"""Recorded machines, judged whole: the report of each is in fixtures/tapes/<name>.txt.

The tapes are of real environments (tests/real_stack/test_tapes.py makes them); after a change of
rules or wording, UPDATE_GOLDEN=1 writes the reports anew, and the difference is there to be read.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from doctor.cli import cli
from doctor.report.json import report_schema
from doctor.report.schema import snapshot_schema

TAPES = sorted((Path(__file__).parent.parent / "fixtures/tapes").glob("*.json"))


def judge(tape: Path, *options: str) -> tuple[int, str]:
    ran = CliRunner().invoke(cli, ["diagnose", "--from", str(tape), *options])
    return ran.exit_code, ran.output


@pytest.mark.parametrize("tape", TAPES, ids=lambda t: t.stem)
def test_a_recorded_machine_gets_its_golden_report(tape: Path) -> None:
    code, output = judge(tape, "-v")
    report = f"{output}exit code {code}\n"
    golden = tape.with_suffix(".txt")
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(report, encoding="utf-8")
    assert report == golden.read_text(encoding="utf-8")


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
