"""Whatever lies where a file is expected: no command hangs, and none fills the memory."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from doctor.codec import CodecError, decode, parse_json
from doctor.exits import FINDINGS, UNKNOWN, USAGE
from doctor.repair.errors import StageError
from doctor.repair.stage import _record
from doctor.tape import Recording, load_tape
from tests.conftest import Environment, Said, run_doctor, run_inside, script

HEAD = '{"schema_version":1,"tool":"t","python":"/p","found_by":"--python","env":{},"runs":['
HUGE = 2 << 30


def fifo(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path, 0o755)
    return path


def huge(path: Path) -> Path:
    """Two gigabytes without a block on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(HUGE)
    path.chmod(0o755)
    return path


ODD = pytest.mark.parametrize("odd", [fifo, huge], ids=["fifo", "huge"])
Odd = Callable[[Path], Path]


def within(mebibytes: int, *arguments: str | Path) -> Said:
    """The command, which may not take more memory than this."""

    def little() -> None:
        most = mebibytes << 20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    return run_doctor(*arguments, before=little)


def refused(said: Said, *words: str, code: int = USAGE) -> None:
    assert (said.code, said.out) == (code, ""), said
    assert said.err.count("\n") == 1, said.err
    assert len(said.err) < 1000
    assert all(word in said.err for word in words), said.err


@ODD
def test_a_vllm_on_path_that_is_no_script_names_no_interpreter(odd: Odd, tmp_path: Path) -> None:
    odd(tmp_path / "vllm")
    said = run_doctor("diagnose", env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert said.code in (FINDINGS, USAGE, UNKNOWN)
    assert "Traceback" not in said.err


@ODD
@pytest.mark.parametrize("command", ["diagnose", "rules", "explain"])
def test_a_rule_file_that_is_no_file_is_refused(odd: Odd, command: str, tmp_path: Path) -> None:
    path = odd(tmp_path / "x.py")
    log = script(tmp_path / "log", "RuntimeError: x")
    more = {"explain": [str(log)], "diagnose": ["--python", sys.executable]}
    words = [command, *more.get(command, [])]
    said = within(600, *words, "--rules", tmp_path)
    refused(said, str(path), "larger than 4 MiB" if odd is huge else "Not a regular file")


@ODD
def test_a_signature_file_that_is_no_file_is_refused(odd: Odd, tmp_path: Path) -> None:
    path = odd(tmp_path / "signatures/x.toml")
    said = run_inside("explain", script(tmp_path / "log", "x"), "--rules", tmp_path)
    refused(said, str(path), "larger than 1 MiB" if odd is huge else "not a regular file")


@ODD
@pytest.mark.parametrize("option", ["--profile", "--from"])
def test_a_file_that_is_named_and_none_is_refused(odd: Odd, option: str, tmp_path: Path) -> None:
    path = odd(tmp_path / "named")
    said = run_inside("diagnose", option, path)
    refused(said, option, str(path), "larger than" if odd is huge else "not a regular file")


@ODD
def test_a_record_that_is_no_file_removes_nothing(odd: Odd, bare: Environment) -> None:
    info = bare.install("odd", "1.0")
    (info / "RECORD").unlink()
    odd(info / "RECORD")
    if odd is fifo:
        assert _record(info) is None
    else:
        with pytest.raises(StageError, match="RECORD is larger than 8 MiB"):
            _record(info)


@pytest.mark.parametrize("piece", ["[],", "{},", '{"":0},', '["a"],', "1.5,", '"aa",'])
def test_no_snapshot_of_the_largest_size_takes_200_mib(piece: str, tmp_path: Path) -> None:
    path = tmp_path / "tape.json"
    path.write_text(HEAD + piece * (((4 << 20) - 100) // len(piece)) + "0]}")
    said = within(200, "diagnose", "--from", path)
    refused(said, f"--from {path}: ")


@pytest.mark.parametrize(
    "value",
    ["A" * 5_000_000, ["A" * 100] * 10_000, {"A" * 1_000_000: {}}, 10**4000, [[[[[["x"]]]]]]],
    ids=["text", "list", "table", "number", "nested"],
)
@pytest.mark.parametrize("key", ["python", "runs", "env", "read", "unknown"])
def test_an_error_does_not_repeat_a_value_of_megabytes(key: str, value: object) -> None:
    if key == "python" and isinstance(value, str):
        value = value.encode()  # text it may be
    good = {"schema_version": 1, "tool": "t", "python": "/p", "found_by": "--python", "env": {}}
    with pytest.raises(CodecError) as refusal:
        load_tape({**good, key: value})
    assert len(str(refusal.value)) < 300, str(refusal.value)[:2000]


def test_a_sentence_about_a_python_of_megabytes_is_short(tmp_path: Path) -> None:
    path = tmp_path / "tape.json"
    path.write_text(HEAD.replace("/p", "/" + "p" * 4_000_000) + "]}")
    said = run_inside("diagnose", "--from", path)
    assert (said.code, said.out) == (UNKNOWN, "")
    assert len(said.err) < 2100


def test_a_number_too_large_to_write_is_an_error_like_any(tmp_path: Path) -> None:
    path = tmp_path / "profile.toml"
    path.write_text(f"model = 0x{'f' * 100_000}\n")
    refused(run_inside("diagnose", "--profile", path), "model: expected text, got a number")


def test_a_whole_number_beyond_every_other_number_is_an_error_like_any() -> None:
    with pytest.raises(CodecError, match=r"x: 1000.*000 is too large"):
        decode(float, 10**400, "x")


def test_brackets_are_counted_before_they_are_parsed() -> None:
    text = HEAD + "[]," * 10 + "[]]}"
    assert len(parse_json(text, 20)["runs"]) == 11
    for data in (text, text.encode()):
        with pytest.raises(CodecError, match="more than 12 lists and tables"):
            parse_json(data, 12)
    with pytest.raises(CodecError, match=r"runs\[0\]"):
        decode(Recording, parse_json(text))
