"""Another doctor at work on the same environment: exit code 75 in every command, or a wait."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from doctor.exits import BUSY, INTERRUPTED
from doctor.probes.environment import HOME
from tests.conftest import DOCTOR, SYSTEM, Environment, run_doctor
from tests.test_launch import ON_CPU, add_server
from tests.test_state import HOLD

CHANGING = [
    ("fix", "--apply", *ON_CPU),
    ("undo",),
    ("undo", "--purge"),
    ("launch", *ON_CPU),
    ("launch", "--dry-run", *ON_CPU),
]


@pytest.fixture
def served(cpu_server: Environment) -> Environment:
    add_server(cpu_server)
    return cpu_server


@contextlib.contextmanager
def held(prefix: Path) -> Iterator[subprocess.Popen[str]]:
    """Another doctor that works on the environment until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(prefix)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield other
        other.kill()


def started(served: Environment, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [DOCTOR, *words, "--python", served.prefix],
        env={**SYSTEM, "RECORD": "/dev/null", "EXITS": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def waiting(child: subprocess.Popen[str], other: subprocess.Popen[str], prefix: Path) -> None:
    """Returns when the child has said that it waits, and for whom."""
    assert child.stderr is not None
    assert child.stderr.readline() == told(other, prefix) + "waiting for it\n"


def told(other: subprocess.Popen[str], prefix: Path) -> str:
    return f"vllm-doctor: another vllm-doctor (pid {other.pid}) is changing {prefix}; "


@pytest.mark.parametrize("words", CHANGING, ids=" ".join)
def test_another_doctor_is_told_by_its_pid(served: Environment, words: tuple[str, ...]) -> None:
    with held(served.prefix) as other:
        said = run_doctor(*words, "--python", served.prefix)
        assert (said.code, said.out) == (BUSY, "")
        assert said.err.splitlines()[-1] == told(other, served.prefix) + "use --wait to wait for it"


@pytest.mark.parametrize("words", [("undo",), ("launch", *ON_CPU)], ids=" ".join)
def test_a_wait_that_is_over_ends_the_same(served: Environment, words: tuple[str, ...]) -> None:
    with held(served.prefix) as other:
        said = run_doctor(*words, "--wait", "0.2", "--python", served.prefix)
        assert (said.code, said.out) == (BUSY, "")
        begin = told(other, served.prefix)
        assert said.err.splitlines() == [
            f"{begin}waiting for it",
            f"{begin}use --wait to wait for it",
        ]


@pytest.mark.parametrize(
    "words",
    [
        ("undo", "--wait"),
        ("undo", "--wait", "0"),
        ("fix", "--apply", *ON_CPU, "--wait=600"),
        ("launch", *ON_CPU, "--wait"),
    ],
    ids=" ".join,
)
def test_a_command_that_waits_goes_on_when_the_other_has_ended(
    served: Environment, words: tuple[str, ...]
) -> None:
    with held(served.prefix) as other, started(served, *words) as child:
        waiting(child, other, served.prefix)
        other.communicate("")
        _, err = child.communicate(timeout=60)
        assert child.returncode == 0, err
        assert "waiting" not in err
    assert not (served.prefix / HOME / "lock").exists()


@pytest.mark.parametrize("words", [CHANGING[0], CHANGING[2], CHANGING[3]], ids=" ".join)
def test_ctrl_c_ends_the_wait_in_one_line(served: Environment, words: tuple[str, ...]) -> None:
    with held(served.prefix) as other, started(served, *words, "--wait") as child:
        waiting(child, other, served.prefix)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
        assert (child.returncode, out) == (INTERRUPTED, "")
        assert err.strip() == "vllm-doctor: interrupted; nothing was changed"


@pytest.mark.parametrize("value", ["-1", "soon", "nan"])
def test_a_wait_is_a_number_of_seconds(value: str) -> None:
    said = run_doctor("undo", f"--wait={value}")
    assert (said.code, said.out) == (2, "")
    assert value in said.err
