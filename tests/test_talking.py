"""Long work, as the person who waits sees it: phases, and at a terminal how far a download is."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from doctor.cli.talking import Talking
from doctor.talk import VERIFYING
from tests.conftest import DOCTOR, Environment, run_doctor
from tests.stand_ins import index as indexes
from tests.stand_ins.fixtures import FOR_H100, Bench
from tests.stand_ins.index import Faults, Index

PHASES = (
    "resolving what goes together with what is installed ...",
    "install distributions, in one transaction ...",
    "make a CUDA home of links over the wheels ...",
    "save variables for the server and for `vllm-doctor env` ...",
    str(VERIFYING),
)


def at_a_terminal(*words: str | Path, env: Mapping[str, str]) -> str:
    """What a command writes to stderr where that is a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [DOCTOR, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env={**env, "TERM": "xterm", "COLUMNS": "100"},
    ) as child:
        os.close(theirs)
        out = b""
        while piece := _read(ours):
            out += piece
    os.close(ours)
    assert child.returncode == 0, out.decode()
    return out.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # the other end is closed
        return b""


def test_without_a_terminal_each_phase_has_a_line(
    bench: Bench, index: Index, broken: Environment
) -> None:
    said = bench.doctor("fix", "--apply", *FOR_H100, index=index.url, environment=broken)
    assert said.code == 0, said.err
    lines = [line.strip() for line in said.err.splitlines()]
    assert [line for line in lines if line in PHASES] == list(PHASES)
    assert "\x1b" not in said.err


def test_what_a_program_reads_has_no_phases_where_nobody_looks(
    bench: Bench, index: Index, broken: Environment
) -> None:
    words = ("fix", "--apply", "--format", "json", *FOR_H100)
    said = bench.doctor(*words, index=index.url, environment=broken)
    assert (said.code, said.err) == (0, "")


def test_a_terminal_shows_bytes_of_bytes_rate_and_time_left(
    bench: Bench, world: Path, broken: Environment, tmp_path: Path
) -> None:
    cold = {"UV_CACHE_DIR": str(tmp_path / "uv"), "UV_CONCURRENT_DOWNLOADS": "1"}
    with indexes.serve(world, faults=Faults(delay=0.5)) as slow:
        env = bench.shell(slow.url, broken, **cold)
        words = ("fix", "--apply", "--python", broken.prefix, *FOR_H100)
        out = at_a_terminal(*words, env=env)
    for phase in PHASES:
        assert phase in out
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", out)
    assert re.search(r"[\d.]+/[\d.]+ (bytes|KiB|MiB)", plain), plain
    assert re.search(r"([\d.]+ \w+/s|\?)", plain)


def test_a_proof_says_that_it_is_made(shared_server: Environment) -> None:
    words = ("diagnose", "--set", "gpus=later", "--python", shared_server.python)
    assert str(VERIFYING) in run_doctor(*words, "--deep").err
    assert str(VERIFYING) not in run_doctor(*words).err


def test_a_log_has_a_line_for_each_tenth_of_what_takes_long(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Talking("text") as talk:
        for done in range(0, 101):
            talk.progress(done * 500_000_000, 50_000_000_000)
        talk.progress(5, 10)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("  5.0 GB of 50.0 GB, ")
    assert lines[-1].endswith(" 0 minutes left")
