"""undo and its kin where something is wrong with what the doctor keeps: one sentence, the
documented code, and a way out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from doctor.probes.environment import SAVED
from tests.conftest import Environment, Said, cpu_environment, run_doctor, run_inside
from tests.stand_ins.killer import tree
from tests.test_old_runs import run_of, unpacked

CPU = ("--set", "device=cpu")


@pytest.fixture
def tmp_path(in_memory: Path) -> Path:
    return in_memory


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """An environment with one finished run."""
    return unpacked("finished", tmp_path)


def one_sentence(said: Said, code: int, *words: str) -> None:
    assert said.code == code, said
    assert said.err.startswith("vllm-doctor: ")
    assert said.err.count("\n") == 1, said.err
    assert "report it" not in said.err
    for word in words:
        assert word in said.err


def test_a_damaged_run_is_listed_refused_and_forgotten(prefix: Path) -> None:
    run = run_of(prefix)
    file = prefix / f"share/vllm-doctor/runs/{run}/1/manifest.json"
    file.write_text("")
    was = tree(prefix)
    way_out = f"undo --python {prefix} --forget {run}"
    one_sentence(run_inside("undo", "--python", prefix), 4, str(file), way_out)
    one_sentence(run_inside("undo", "--purge", "--python", prefix), 4, str(file), way_out)
    listed = run_inside("undo", "--list", "--python", prefix)
    assert (listed.code, listed.err) == (0, "")
    assert listed.out.startswith(f"{run}  damaged: {file} cannot be used")
    assert tree(prefix) == was
    forgotten = run_inside("undo", "--forget", run, "--python", prefix)
    assert (forgotten.code, forgotten.err) == (0, "")
    assert forgotten.out == (
        f"deleting run {run}: 3 files (0.0 MiB) that it had set aside are gone for good, and "
        "what is in place now stays\n"
    )
    left = {path: one for path, one in was.items() if "/runs/" not in path}
    assert tree(prefix) == left
    assert run_inside("undo", "--python", prefix).out.startswith("nothing to undo")


def test_a_run_from_elsewhere_is_listed_and_refused(prefix: Path, tmp_path: Path) -> None:
    run = run_of(prefix)
    file = prefix / f"share/vllm-doctor/runs/{run}/journal.json"
    data = {**json.loads(file.read_text()), "schema_version": 2, "inode": 1, "prefix": "/opt/env"}
    file.write_text(json.dumps(data))
    was = tree(prefix)
    said = run_inside("undo", "--python", prefix)
    one_sentence(said, 4, f"run {run} was made in /opt/env", f"--forget {run}")
    assert "made elsewhere, in /opt/env" in run_inside("undo", "--list", "--python", prefix).out
    assert tree(prefix) == was
    assert run_inside("undo", "--purge", "--python", prefix).code == 0
    assert not list((prefix / "share/vllm-doctor").glob("runs/*"))


@pytest.mark.parametrize(
    "words",
    [("--list", "--purge"), ("--list", "--forget", "x"), ("x", "--forget", "y")],
    ids=" ".join,
)
def test_what_excludes_each_other_is_told(prefix: Path, words: tuple[str, ...]) -> None:
    one_sentence(run_inside("undo", *words, "--python", prefix), 2)


@pytest.mark.parametrize("name", ["nothing", "..", "../runs", "/", "a\x1bb"])
def test_a_run_that_is_not_there_cannot_be_forgotten(prefix: Path, name: str) -> None:
    was = tree(prefix)
    one_sentence(run_inside("undo", "--forget", name, "--python", prefix), 2, "there is no run")
    assert tree(prefix) == was


def test_no_control_character_of_a_journal_reaches_the_terminal(prefix: Path) -> None:
    file = prefix / f"share/vllm-doctor/runs/{run_of(prefix)}/journal.json"
    data = json.loads(file.read_text())
    evil = "\x1b]0;evil\x07"
    data["actions"][0] |= {"action": evil, "ids": [evil], "summary": [evil]}
    file.write_text(json.dumps(data))
    (file.parent.parent / evil).mkdir()
    (file.parent.parent / evil / "journal.json").write_text(json.dumps({**data, "run": evil}))
    for words in ((), ("--list",), ("--purge",)):
        said = run_inside("undo", *words, "--python", prefix)
        assert "\\x1b]0;evil\\x07" in said.out + said.err
        assert not [c for c in said.out + said.err if not c.isprintable() and c != "\n"]


# Other commands.


@pytest.fixture
def stranger(tmp_path: Path, prefix: Path) -> Environment:
    """A healthy environment with a copy of someone's run in it."""
    made = cpu_environment(tmp_path / "venv")
    shutil.copytree(prefix / "share", made.prefix / "share")
    return made


def cut_off_elsewhere(journal: Path) -> None:
    data = json.loads(journal.read_text())
    state = {"state": "applying", "schema_version": 2, "inode": 1, "prefix": "/opt/env"}
    journal.write_text(json.dumps({**data, **state}))


HARM: dict[str, Callable[[Path], object]] = {
    "elsewhere": cut_off_elsewhere,
    "empty": lambda path: path.write_text(""),
    "lost": lambda path: path.unlink(),
    "odd state": lambda path: path.write_text('{"run": "x", "state": []}'),
}


@pytest.mark.parametrize("harm", HARM)
def test_fix_changes_nothing_while_a_run_is_in_doubt(stranger: Environment, harm: str) -> None:
    run = run_of(stranger.prefix)
    HARM[harm](stranger.prefix / f"share/vllm-doctor/runs/{run}/journal.json")
    was = tree(stranger.prefix, without={"__pycache__"})
    said = run_inside("fix", "--apply", *CPU, "--python", stranger.prefix)
    one_sentence(said, 4, run, f"--forget {run}")
    assert tree(stranger.prefix, without={"__pycache__"}) == was
    judged = run_inside("diagnose", *CPU, "--python", stranger.prefix)
    assert judged.code == (1 if harm == "elsewhere" else 3)
    assert run_inside("undo", "--forget", run, "--python", stranger.prefix).code == 0
    assert run_inside("fix", "--apply", *CPU, "--python", stranger.prefix).code == 0


def test_fix_goes_on_beside_a_finished_run_from_elsewhere(stranger: Environment) -> None:
    file = stranger.prefix / f"share/vllm-doctor/runs/{run_of(stranger.prefix)}/journal.json"
    state = {"ended": 1e10, "schema_version": 2, "inode": 1, "prefix": "/opt/env"}
    file.write_text(json.dumps({**json.loads(file.read_text()), **state}))
    assert run_inside("fix", "--apply", *CPU, "--python", stranger.prefix).code == 0
    assert file.exists()


def too_large(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


GARBLED: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_text(""),
    "zeroed": lambda path: path.write_bytes(bytes(40)),
    "half": lambda path: path.write_text('{"schema_version": 1, "vari'),
    "wrong type": lambda path: path.write_text('{"variables": {"PATH": 7}}'),
    "too large": too_large,
    "a fifo": os.mkfifo,
    "a folder": Path.mkdir,
}


@pytest.mark.parametrize("how", GARBLED)
def test_saved_variables_that_cannot_be_read_are_named_by_every_command(
    cpu_server: Environment, how: str
) -> None:
    path = cpu_server.prefix / SAVED
    path.parent.mkdir(parents=True)
    GARBLED[how](path)
    about = (*CPU, "--python", cpu_server.prefix)
    one_sentence(run_inside("env", "--python", cpu_server.prefix), 3, str(path))
    one_sentence(run_inside("launch", "--dry-run", *about), 78, str(path))
    one_sentence(run_inside("fix", *about), 3, str(path), "remove it")
    one_sentence(run_inside("fix", "--only", "nvcc-missing", *about), 3, str(path))
    one_sentence(run_inside("fix", "--apply", *about), 4, str(path), "remove it")
    assert run_inside("diagnose", *about).code == 3


@pytest.mark.parametrize("text", ["", "[]", '{"proven": {"a": 1' + "0" * 400 + "}}", "\0" * 9])
def test_proofs_that_cannot_be_read_prove_nothing(cpu_server: Environment, text: str) -> None:
    path = cpu_server.prefix / "share/vllm-doctor/proofs.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    said = run_doctor("launch", "--dry-run", *CPU, "--python", cpu_server.prefix)
    assert said.code == 0, said.err


def test_a_path_with_a_line_end_gets_no_command_into_a_script(tmp_path: Path) -> None:
    prefix = tmp_path / "a\ntouch PLANTED\n#"
    made = cpu_environment(prefix)
    file = tmp_path / "fix.sh"
    said = run_doctor("fix", "--python", made.python, "--set", "device=cpu", "--script", file)
    assert said.code in (0, 1, 3)
    subprocess.run(["sh", str(file)], cwd=tmp_path, capture_output=True, check=False)
    assert file.is_file()
    assert not (tmp_path / "PLANTED").exists()
