"""Every command that is printed is whole: the same target, profile, settings, mirror, rules."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from doctor.cli import cli
from doctor.probes.environment import HOME, SAVED
from doctor.redact import holds_secret
from tests.conftest import DOCTOR, SYSTEM, Environment, bare_environment, run_doctor, script
from tests.corpus import logs
from tests.stand_ins.fixtures import FOR_H100, Bench
from tests.stand_ins.index import Index
from tests.test_running import SLEEP, running_as

ROOT = Path(__file__).parent.parent
LOG = next(o.path for o in logs() if o.folder == "cuda-home-bad-path" and o.is_real)
UNKNOWN_LOG = 'Traceback (most recent call last):\n  File "/x.py", line 1, in f\nOddError: no\n'


def commands(text: str, start: str = str(DOCTOR)) -> list[list[str]]:
    """The commands of the doctor's own in what it printed, as words behind its name."""
    found = re.findall(rf"(?m){re.escape(start)} ([^\n]*)", text)
    return [shlex.split(one.split(')"')[0].replace('\\"', '"')) for one in found]


def parsed(words: list[str]) -> dict[str, Any]:
    """The parameters as click takes them; a command that does not exist, or takes other options, is
    an error."""
    verb, *rest = words
    command = cli.commands[verb]
    return command.make_context(verb, rest, parent=click.Context(cli)).params


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """A site's own rules, with one finding of which nothing is known elsewhere."""
    folder = tmp_path / "site's rules"
    folder.mkdir()
    (folder / "own.py").write_text(
        "from doctor import Finding, Fix, Severity, Stage, Text, rule\n"
        "from doctor.fixes import SetVariable\n"
        "from doctor.profile import Profile\n"
        "@rule('own', Severity.ERROR, Stage.SHELL)\n"
        "def own(profile: Profile) -> Finding:\n"
        '    """Mine.\n\n    Of this site."""\n'
        "    fix = Fix(Text('set it'), (SetVariable('VLLM_USE_FLASHINFER_SAMPLER', '0'),))\n"
        "    return Finding(Text('found'), (), (fix,))\n"
    )
    return folder


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "my profile.toml"
    built_in = (ROOT / "doctor/profiles/glm-4.7-flash.toml").read_text()
    path.write_text(built_in.replace("port = 8099", "port = 8123"))
    return path


class Asked:
    """What each command is asked for, and what each of its own commands has to ask for again."""

    def __init__(self, environment: Environment, profile: Path, rules: Path) -> None:
        self.environment = environment
        self.words = [
            *("--python", str(environment.prefix), "--profile", str(profile)),
            *("--set", "gpus=later", "--set", "archs=9.0", "--rules", str(rules)),
        ]
        self.profile, self.rules = str(profile), str(rules)

    def check(self, text: str, *verbs: str) -> list[list[str]]:
        """The commands in a text: among them these verbs, and each one whole."""
        found = commands(text)
        assert {words[0] for words in found} >= set(verbs), text
        for words in found:
            asked = parsed(words)
            if words[0] == "rules":
                assert asked["rules_dir"] == self.rules
                continue
            assert Path(asked["python"]) in (self.environment.prefix, self.environment.python)
            if "rules_dir" in asked and "profile_name" in asked:
                assert asked["profile_name"] == self.profile
                assert asked["rules_dir"] == self.rules
                assert asked["sets"][:2] == ("gpus=later", "archs=9.0")
        return found


@pytest.fixture
def asked(server: Environment, profile: Path, rules: Path) -> Asked:
    return Asked(server, profile, rules)


def test_those_of_a_diagnosis(asked: Asked) -> None:
    said = run_doctor("diagnose", *asked.words)
    found = asked.check(said.out, "fix", "rules")
    assert said.code == 1
    assert said.out.splitlines()[-3].startswith("fix: ")
    (about,) = (words for words in found if words[0] == "rules")
    shown = run_doctor(*about)
    assert (shown.code, shown.err) == (0, "")


def test_those_of_a_rule_change_what_they_name_and_keep_the_rest(asked: Asked) -> None:
    options = ("--set", "tensor_parallel_size=8", "--fail-on", "warning")
    said = run_doctor("diagnose", *asked.words, *options)
    found = asked.check(said.out, "diagnose", "fix")
    sets = [parsed(w)["sets"] for w in found if w[0] == "diagnose"]
    assert ("gpus=later", "archs=9.0", "tensor_parallel_size=4") in sets
    (fix,) = (parsed(w) for w in found if w[0] == "fix")
    assert fix["fail_on"] == "warning"
    assert "tensor_parallel_size=8" in fix["sets"]
    again = next(w for w in found if "tensor_parallel_size=4" in w)
    assert "tp-not-dividing-heads" not in run_doctor(*again).out


def test_a_program_reads_the_same(asked: Asked) -> None:
    said = run_doctor("diagnose", *asked.words, "--set", "tensor_parallel_size=8", "--format=json")
    steps = [
        step
        for outcome in said.report["outcomes"]
        for finding in outcome["findings"]
        for fix in finding["fixes"]
        for step in fix["steps"]
        if step["kind"] == "command"
    ]
    asked.check("\n".join(step["line"] for step in steps), "diagnose")


def test_what_was_found_and_not_named_is_named(asked: Asked) -> None:
    words = asked.words[2:]
    said = run_doctor("diagnose", *words, env={"VIRTUAL_ENV": str(asked.environment.prefix)})
    asked.check(said.out, "fix")


def test_those_of_a_shell_that_has_not_what_was_saved(asked: Asked) -> None:
    path = asked.environment.prefix / SAVED
    path.parent.mkdir(parents=True)
    kept = {"schema_version": 1, "variables": {"CC": {"value": "gcc"}}}
    path.write_text(json.dumps(kept))
    asked.check(run_doctor("diagnose", *asked.words).out, "env")


def test_those_of_an_interrupted_repair(asked: Asked) -> None:
    run = asked.environment.prefix / HOME / "runs/20261124-091500"
    run.mkdir(parents=True)
    (run / "journal.json").write_text('{"run": "20261124-091500", "state": "applying"}')
    asked.check(run_doctor("diagnose", *asked.words).out, "undo")


def test_those_of_a_refused_start(asked: Asked) -> None:
    script(asked.environment.prefix / "bin/vllm", "exit 0")
    asked.check(run_doctor("launch", *asked.words).err, "fix", "rules")
    said = run_doctor("launch", *asked.words, "--dry-run", "--", "--enforce-eager")
    asked.check(said.err, "diagnose")


def test_those_of_an_explanation(asked: Asked, tmp_path: Path) -> None:
    there = {"CUDA_HOME": "/nowhere"}
    for options in ((), ("--no-live",)):
        said = run_doctor("explain", LOG, *asked.words, *options, env=there)
        asked.check(said.out, "fix")
    said = run_doctor("explain", LOG, *asked.words, "--format", "json", env=there)
    asked.check(said.report["command"], "fix")
    (tmp_path / "log").write_text(UNKNOWN_LOG)
    said = run_doctor("explain", tmp_path / "log", *asked.words)
    (deep,) = asked.check(said.out, "diagnose")
    assert parsed(deep)["deep"]


def test_those_of_a_snapshot_are_for_the_machine_that_was_recorded(
    asked: Asked, tmp_path: Path
) -> None:
    tape = tmp_path / "m.json"
    assert run_doctor("snapshot", *asked.words, "-o", tape).code == 0
    settings = asked.words[2:]
    said = run_doctor("diagnose", "--from", tape, *settings, "--set", "tensor_parallel_size=8")
    (line,) = (
        one for one in said.out.splitlines() if one.startswith("fix on the recorded machine")
    )
    (fix,) = map(parsed, commands(line, "  vllm-doctor"))
    assert fix["python"] == str(asked.environment.python)
    assert fix["sets"] == ("gpus=later", "archs=9.0", "tensor_parallel_size=8")
    again = [parsed(w) for w in commands(said.out) if w[0] == "diagnose"]
    assert again
    assert {(one["tape"], one["python"]) for one in again} == {(str(tape), None)}


def test_those_of_a_repair(
    bench: Bench, index: Index, broken: Environment, rules: Path, profile: Path
) -> None:
    """The plan's own command does it, with the consent that it needs; and what that prints for
    taking it back does that."""
    (broken.site / "torch/lib/libtorch_python.so").unlink()
    mirrors = ("--mirror", index.url, "--keep-extra-indexes")
    words = (*FOR_H100, "--profile", str(profile), "--rules", str(rules), *mirrors)
    before = sorted(p.name for p in broken.site.iterdir())
    planned = bench.doctor("fix", *words, index=index.url, environment=broken)
    (line,) = commands(planned.out.splitlines()[-1])
    asked = parsed(line)
    assert Path(asked["python"]) == broken.python
    assert (asked["wanted"], asked["allow"]) == (True, ("core",))
    assert (asked["mirrors"], asked["keep_extra_indexes"]) == ((index.url,), True)
    assert (asked["profile_name"], asked["rules_dir"]) == (str(profile), str(rules))
    assert asked["sets"] == tuple(FOR_H100[1::2])
    shell = bench.shell(index.url, broken)
    done = run_doctor(*line, env=shell)
    assert "✓ fixed" in done.err, done.err
    (undo,) = (w for w in commands(done.err) if w[0] == "undo")
    assert run_doctor(*undo, env={**shell, "VIRTUAL_ENV": ""}).code == 0
    assert sorted(p.name for p in broken.site.iterdir()) == before
    refused = bench.doctor("fix", *words, "--apply", index=index.url, environment=broken)
    (allowing, *_) = (w for w in commands(refused.err) if w[0] == "fix")
    assert parsed(allowing) == {**asked, "sets": asked["sets"]}


def test_those_of_an_undo_while_a_process_runs_there(bare: Environment) -> None:
    (bare.prefix / HOME / "runs").mkdir(parents=True)
    with running_as(bare.python, "-c", SLEEP):
        said = run_doctor("undo", "--purge", "--python", bare.prefix)
        assert said.code == 1
        (words,) = commands(said.err)
        assert parsed(words) == {
            **parsed(["undo", "--purge", "--python", str(bare.prefix), "--allow", "running"]),
        }
        assert run_doctor(*words).code == 0


# The name of the program.


def name(*started: str | Path, path: str = SYSTEM["PATH"], cwd: Path | None = None) -> str:
    """How a doctor that is started so calls itself in the commands that it prints."""
    ran = subprocess.run(
        [*started, "diagnose", "--python", "/usr/bin/true", "--nonsense"],
        env={**SYSTEM, "PATH": path},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    (usage,) = re.findall(r"Try '(.*) diagnose --help'", ran.stderr)
    return str(usage)


def test_it_calls_itself_as_it_was_started(tmp_path: Path) -> None:
    spaced = tmp_path / "my tools/vllm-doctor"
    spaced.parent.mkdir()
    spaced.symlink_to(DOCTOR)
    ours = f"{DOCTOR.parent}:{SYSTEM['PATH']}"
    assert name("vllm-doctor", path=ours) == "vllm-doctor"
    assert name(DOCTOR) == str(DOCTOR)
    assert name(DOCTOR, path=ours) == "vllm-doctor"
    assert name(spaced) == shlex.quote(str(spaced))
    assert name("./vllm-doctor", cwd=DOCTOR.parent) == str(DOCTOR)
    assert name(sys.executable, "-m", "doctor") == f"{sys.executable} -m doctor"
    assert name(sys.executable, "-I", "-m", "doctor") == f"{sys.executable} -I -m doctor"


def test_another_tool_of_the_name_on_path_is_not_called(tmp_path: Path) -> None:
    script(tmp_path / "vllm-doctor", "exit 9")
    assert name(DOCTOR, path=f"{tmp_path}:{SYSTEM['PATH']}") == str(DOCTOR)


# Secrets.

PASSWORD = "-".join(("not", "a", "real", "one"))


@pytest.mark.parametrize(
    "option",
    [
        ("--set", f"env.HF_TOKEN={PASSWORD}"),
        ("--set", f"env.MY_PASSWORD={PASSWORD}"),
        ("--mirror", f"https://me:{PASSWORD}@mirror.example/simple"),
    ],
)
def test_no_command_shows_a_secret_of_the_persons_own_words(
    option: tuple[str, str], tmp_path: Path
) -> None:
    said = run_doctor("fix", *option, cwd=tmp_path)
    assert said.code == 2
    assert PASSWORD not in said.err + said.out
    assert "the same command again, with --python" in said.err


def test_what_a_diagnosis_says_in_place_of_a_command_with_a_secret(server: Environment) -> None:
    options = ("--set", "gpus=later", "--set", f"env.API_KEY={PASSWORD}")
    said = run_doctor("diagnose", "--python", server.prefix, *options)
    assert PASSWORD not in said.out
    assert re.search(
        "(?m)^fix: +the same command again, as fix in place of diagnose, with --apply$", said.out
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--set", "gpus=later", "--python", "/home/token/venv", "--apply"],
        ["--mirror", "https://mirror.example/simple", "--set", "served_model_name=secret"],
        ["--set", "model=org/tokenizer-password"],
    ],
)
def test_plain_words_are_no_secrets(words: list[str]) -> None:
    assert not holds_secret(words)


# Where nothing is named.


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder with an environment that has vLLM, one that has not, and what is none."""
    folder = tmp_path / "work"
    with_vllm = bare_environment(folder / "z with vllm")
    with_vllm.install("vllm", "0.22.0")
    bare_environment(folder / "a-bare")
    (folder / "broken").mkdir()
    (folder / "broken/pyvenv.cfg").touch()
    return folder


JUDGING = [
    ("diagnose", "--set", "gpus=later"),
    ("fix",),
    ("fix", "--apply"),
    ("fix", "--script", "x.sh"),
    ("launch", "--", "--enforce-eager"),
    ("snapshot", "-o", "x.json"),
    ("undo",),
]


@pytest.mark.parametrize("words", JUDGING, ids=" ".join)
def test_without_an_environment_those_there_are_are_listed(
    words: tuple[str, ...], elsewhere: Path
) -> None:
    before = sorted(elsewhere.rglob("*"))
    said = run_doctor(*words, cwd=elsewhere)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("vllm-doctor: no environment is active")
    rows = re.findall(r"(?m)^  # (\./.*)$", said.err)
    assert rows == ["./z with vllm: has vLLM", "./a-bare: without vLLM"]
    # A server may run on the machine that tests it, and comes before them.
    first, second, make = commands(said.err)[-3:]
    assert (parsed(first)["python"], parsed(second)["python"]) == ("./z with vllm", "./a-bare")
    for name, value in parsed(list(words)).items():
        assert parsed(first)[name] == ("./z with vllm" if name == "python" else value)
    assert make[0] == "fix"
    assert parsed(make)["create"]
    assert sorted(elsewhere.rglob("*")) == before


def test_what_it_then_tells_to_run_is_taken(elsewhere: Path) -> None:
    said = run_doctor("diagnose", "--set", "gpus=later", cwd=elsewhere)
    judged = run_doctor(*commands(said.err)[-3], cwd=elsewhere)
    assert judged.code in (0, 1, 3)
    assert "z with vllm" in judged.out


def test_nothing_of_what_is_listed_runs(elsewhere: Path) -> None:
    python = elsewhere / "z with vllm/bin/python"
    python.unlink()
    script(python, f"touch {shlex.quote(str(elsewhere / 'it ran'))}")
    assert run_doctor("diagnose", cwd=elsewhere).code == 2
    assert not (elsewhere / "it ran").exists()


def test_in_an_empty_place_it_says_how_to_go_on(tmp_path: Path) -> None:
    said = run_doctor("diagnose", cwd=tmp_path)
    judge, make = commands(said.err)[-2:]
    assert said.code == 2
    assert parsed(judge)["python"].startswith("/")
    assert parsed(make)["python"] == "./vllm-env"


def test_an_explanation_does_not_judge_the_doctors_own(tmp_path: Path) -> None:
    said = run_doctor("explain", LOG, env={"CUDA_HOME": "/nowhere"}, cwd=tmp_path)
    assert said.code == 1
    assert "this machine" in said.out
    assert "no environment is active" in said.out
    assert "no longer has it" not in said.out


@pytest.fixture
def serving(bare: Environment, tmp_path: Path) -> Iterator[Environment]:
    """A process that runs the `vllm` command of an environment."""
    vllm = script(bare.prefix / "bin/vllm", SLEEP, str(bare.python))
    with running_as(vllm, "serve", cwd=tmp_path):
        yield bare


def test_a_server_that_runs_names_its_environment(serving: Environment, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    said = run_doctor("diagnose", cwd=empty)
    row = next(r for r in said.err.splitlines() if str(serving.python) in r)
    assert re.fullmatch(r"  # .*: .*vllm serve \(pid \d+\) runs it", row)
    assert ["diagnose", "--python", str(serving.python)] in commands(said.err)


def test_what_explains_a_finding_of_a_snapshot_is_asked_of_this_doctor() -> None:
    tape = Path(__file__).parent.parent / "fixtures/tapes/cuda-home-unset.json"
    said = run_doctor("diagnose", "--from", tape)
    (more,) = (line for line in said.out.splitlines() if line.startswith("why: "))
    command = shlex.split(more.removeprefix("why: "))
    assert Path(command[0]) == DOCTOR
