"""The target's interpreter is asked who it is once per command: that is a start of a Python."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.conftest import BASE_PYTHON, Environment, run_doctor, script
from tests.test_explain_cli import LOGS

CPU = ("--set", "device=cpu")


@pytest.fixture
def log(cpu_server: Environment, tmp_path: Path) -> Path:
    """Where the interpreter of the environment notes with what it is started."""
    noted = tmp_path / "starts"
    noted.touch()
    cpu_server.python.unlink()
    line = f'echo "$*" >> {shlex.quote(str(noted))}\nexec {BASE_PYTHON} "$@"'
    script(cpu_server.python, line)
    script(cpu_server.prefix / "bin/vllm", "exit 0")
    return noted


def inspections(log: Path) -> int:
    return sum("_inspect.py" in line for line in log.read_text().splitlines())


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("diagnose", CPU),
        ("diagnose", ("--deep", *CPU)),
        ("fix", CPU),
        ("fix", ("--apply", *CPU)),
        ("launch", ("--dry-run", *CPU)),
        ("launch", CPU),
        ("snapshot", ("-o", "-")),
        ("explain", (str(next(o.path for o in LOGS.values() if o.is_real)), *CPU)),
    ],
)
def test_a_command_asks_the_interpreter_once(
    cpu_server: Environment, log: Path, command: str, options: tuple[str, ...]
) -> None:
    said = run_doctor(command, "--python", cpu_server.prefix, *options)
    assert said.code in (0, 1), said.err
    assert inspections(log) == 1


def test_env_reads_who_a_virtual_environment_is_and_asks_nothing(
    cpu_server: Environment, log: Path
) -> None:
    assert run_doctor("env", "--python", cpu_server.prefix).code == 0
    assert inspections(log) == 0
