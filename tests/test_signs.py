"""What is printed where the stream's encoding lacks our signs: no ?, which means something else."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from pathlib import Path

import pytest

from doctor.cli.signs import STAND_INS
from doctor.report.lines import MARKS
from doctor.report.repair import _WORDS
from tests.conftest import DOCTOR, SYSTEM, Environment, bare_environment, run_doctor
from tests.corpus import logs
from tests.stand_ins.fixtures import FOR_H100, Bench
from tests.stand_ins.index import Index

ROOT = Path(__file__).parent.parent
TAPE = ROOT / "fixtures/tapes/cuda-home-unset.json"
LOG = next(o.path for o in logs() if o.folder == "kv-cache-too-small" and o.is_real)
NARROW = ["gbk", "ascii"]


def test_no_two_signs_have_the_same_stand_in_and_none_means_that_it_cannot_be_told() -> None:
    signs = ["✓", "✗", "→"]
    others = ["!", "i", "+", "~", "-", "?"]
    assert len({STAND_INS[sign] for sign in signs} | set(others)) == len(signs) + len(others)
    assert all(stand_in.isascii() and "?" not in stand_in for stand_in in STAND_INS.values())


def test_every_sign_of_a_report_has_a_stand_in() -> None:
    marks = [mark for _, mark in MARKS.values()] + [word[0] for _, word in _WORDS.values()]
    assert {m for m in marks if not m.isascii()} <= set(STAND_INS)


@pytest.mark.parametrize("encoding", NARROW)
@pytest.mark.parametrize(
    "words", [("diagnose", "-v", "--from", TAPE), ("explain", "--no-live", LOG)], ids=["d", "e"]
)
def test_a_report_says_the_same_in_every_encoding(
    words: tuple[str | Path, ...], encoding: str
) -> None:
    plain = run_doctor(*words)
    narrow = run_doctor(*words, env={"PYTHONIOENCODING": encoding})
    expected = plain.out
    for sign, stand_in in STAND_INS.items():
        if encoding == "ascii" or sign.encode("gbk", "ignore") == b"":
            expected = expected.replace(sign, stand_in)
    assert (narrow.code, narrow.out) == (plain.code, expected)
    assert "✗" in plain.out
    assert re.search(r"(?m)^x \S", narrow.out)


@pytest.mark.parametrize("encoding", NARROW)
def test_a_plan_says_the_same(
    bench: Bench, index: Index, broken: Environment, encoding: str
) -> None:
    options = ("fix", *FOR_H100)
    said = bench.doctor(*options, index=index.url, environment=broken, PYTHONIOENCODING=encoding)
    arrow = "13.5.37 -> 13.0.88" if encoding == "ascii" else "13.5.37"
    assert arrow in said.out
    assert "?" not in said.out


def test_the_c_locale_has_all_signs() -> None:
    said = run_doctor("diagnose", "--from", TAPE, env={"LC_ALL": "C"})
    assert "✗ model" in said.out


@pytest.mark.parametrize("encoding", NARROW)
def test_a_terminal_gets_the_same_from_rich(encoding: str) -> None:
    ours, theirs = pty.openpty()
    env = {**SYSTEM, "PYTHONIOENCODING": encoding, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        [DOCTOR, "diagnose", "--from", TAPE], stdout=theirs, stdin=theirs, env=env
    ) as child:
        os.close(theirs)
        out = b""
        while piece := _read(ours):
            out += piece
    os.close(ours)
    assert child.returncode == 1
    text = re.sub(r"\x1b\[[\d;]*m", "", out.decode(encoding))
    assert re.search(r"(?m)^x model", text)
    assert re.search(r"(?m)^ok caches ok container ok driver", text)
    assert max(len(line) for line in text.splitlines() if DOCTOR.name not in line) <= 100
    assert "?" not in text


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # the other end is closed
        return b""


def test_a_character_that_no_table_has_is_escaped(tmp_path: Path) -> None:
    one = bare_environment(tmp_path / "сервер")
    options = ("diagnose", "--python", one.prefix, "--set", "gpus=later")
    said = run_doctor(*options, env={"PYTHONIOENCODING": "ascii"})
    assert r"\u0441\u0435\u0440\u0432\u0435\u0440" in said.out
    assert "?" not in said.out
