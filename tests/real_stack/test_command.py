"""A person's own command against a real environment: its interpreter, its options, a profile of it.
Nothing is started."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from doctor.arguments import parse_arguments
from doctor.probes.arguments import ServerOptions
from tests.conftest import Environment, facts_of
from tests.real_stack import isolate, lab
from tests.real_stack.place import DOCTOR

pytestmark = pytest.mark.real_stack

PLACE = ("--set", "gpus=later", "--set", "archs=9.0")
ARGUMENTS = (
    *("org/m", "-tp", "2", "--max-model-len=4k", "--enforce-eager", "--no-enable-prefix-caching"),
    *("-q", "fp8", "--seed", "7", "--hf-overrides", '{"a": {"b": [1, null]}}'),
    *("--allowed-origins", '["a", "b"]', "-O3", "--served-model-name", "x"),
)


@pytest.fixture(scope="module")
def python() -> Path:
    try:
        return lab.environment(lab.REFERENCE).python
    except lab.LabError as error:
        pytest.fail(str(error))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def doctor(home: Path, *words: str | Path) -> str:
    ran = subprocess.run(
        [DOCTOR, *words],
        env={"PATH": isolate.SYSTEM_PATH, "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.stdout or pytest.fail(ran.stderr)


def values(python: Path, words: list[str]) -> Mapping[str, Any]:
    """What vLLM's parser gets of a command."""

    def no_file(file: str) -> Mapping[Any, Any]:
        raise AssertionError(file)

    table = facts_of(Environment(python.parent.parent)).get(ServerOptions).table
    made = parse_arguments(words[words.index("serve") + 1 :], table, "serve", no_file)
    assert not made.problems
    return made.values


def test_a_profile_of_a_command_serves_the_same(python: Path, home: Path) -> None:
    command = ["A=1", "vllm", "serve", *ARGUMENTS]
    profile = home / "mine.toml"
    profile.write_text(
        doctor(home, "profile", "--from-command", "--python", python, "--", *command)
    )
    words = ("--python", python, *PLACE, "--profile", profile)
    shown = doctor(home, "launch", "--dry-run", *words).splitlines()
    assert "export A=1" in shown
    asked, started = values(python, command), values(python, shlex.split(shown[-1]))
    assert {name: started.get(name) for name in asked} == asked


def test_the_script_and_the_module_lead_to_the_same_environment(python: Path, home: Path) -> None:
    module = ("-m", "vllm.entrypoints.openai.api_server", "--model")
    for command in ((python.with_name("vllm"), "serve"), (python, *module)):
        said = doctor(home, "diagnose", *PLACE, "--format", "json", "--", *command, *ARGUMENTS)
        report = json.loads(said)
        assert report["target"]["prefix"] == str(python.parent.parent)
        assert report["target"]["model"] == "org/m"
        assert report["versions"]["vllm"] == "0.22.0"


def test_a_wrong_option_is_answered_with_the_corrected_command(python: Path, home: Path) -> None:
    command = ("vllm", "serve", "org/m", "--tensor-paralel-size", "2", "--seed", "1")
    said = doctor(home, "diagnose", "-v", "--python", python, *PLACE, "--", *command)
    assert "unknown-server-option" in said
    (line,) = (one for one in said.splitlines() if " -- vllm serve org/m --seed 1" in one)
    assert shlex.split(line)[-4:] == ["--seed", "1", "--tensor-parallel-size", "2"]
