"""Command lines as people write them, judged on recorded machines: the reports of each machine are
in fixtures/commands/<snapshot>.txt, and why each verdict is right stands in commands.toml.

After a change of rules or wording `python -m tests.regenerate` writes the reports anew, and the
difference is there to be read.
"""

from __future__ import annotations

import functools
import re
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from doctor import toml
from doctor.cli import cli
from doctor.exits import FINDINGS, HEALTHY
from tests.tapes import FIXTURES, TAPES, with_answers

FOLDER = FIXTURES / "commands"
TABLE: Mapping[str, Any] = toml.load_toml(FOLDER / "commands.toml")
MACHINES: Mapping[str, list[str]] = TABLE["snapshots"]
COMMANDS: list[Mapping[str, Any]] = TABLE["commands"]


@dataclass(frozen=True)
class Verdict:
    """What `vllm-doctor diagnose` said of a command line."""

    code: int
    text: str

    @property
    def errors(self) -> set[str]:
        """The ids of the lines that begin with a cross, or go on below one."""
        marked = re.findall(r"(?ms)^✗.*?(?=^[✗!i✓?-] |^The server|\Z)", self.text)
        return {id for one in marked for id in re.findall(_ID, one)}


_ID = r"(?m) ([a-z0-9]+(?:-[a-z0-9]+)+)(?:  PRIMARY CAUSE)?$"


@functools.cache
def verdicts(machine: str) -> tuple[Verdict, ...]:
    """Of each of the command lines, on one machine."""
    with tempfile.TemporaryDirectory() as scratch:
        (tape,) = (one for one in TAPES if one.stem == machine)
        laid = with_answers(tape, Path(scratch))
        made = []
        for one in COMMANDS:
            words = ["diagnose", "--from", str(laid), "--", *shlex.split(one["words"])]
            ran = CliRunner().invoke(cli, words)
            made.append(Verdict(ran.exit_code, ran.output.replace(str(laid), tape.name)))
    return tuple(made)


def golden_reports() -> dict[Path, str]:
    """What each of the reports has to hold."""
    made = {}
    for machine in MACHINES:
        rows = (
            f"$ {one['words']}\n# {one['why']}\n\n{said.text}exit code {said.code}\n"
            for one, said in zip(COMMANDS, verdicts(machine), strict=True)
        )
        made[FOLDER / f"{machine}.txt"] = "\n\n".join(rows)
    return made


def test_command_lines_get_their_golden_reports() -> None:
    made = golden_reports()
    assert {path: path.read_text(encoding="utf-8") for path in made} == made


@pytest.mark.parametrize("machine", MACHINES)
def test_each_command_line_gets_the_verdict_that_is_reasoned(machine: str) -> None:
    expected = {one["words"]: _expected(one, machine) for one in COMMANDS}
    said = zip(COMMANDS, verdicts(machine), strict=True)
    assert {one["words"]: (v.code, v.errors) for one, v in said} == expected


def _expected(one: Mapping[str, Any], machine: str) -> tuple[int, set[str]]:
    """The exit code and the errors: what the command has wrong, and the machine itself."""
    finds = one.get("finds", [])
    finds = finds.get(machine, []) if isinstance(finds, dict) else finds
    errors = {*finds, *MACHINES[machine]}
    return (FINDINGS if errors else one.get("code", HEALTHY)), errors


def test_no_report_shows_a_secret_of_its_command() -> None:
    secrets = re.findall(r"hf_secret|sk-private", " ".join(one["words"] for one in COMMANDS))
    assert secrets
    for machine in MACHINES:
        text = "".join(said.text for said in verdicts(machine))
        assert not [secret for secret in secrets if secret in text]
