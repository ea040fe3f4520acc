"""The person's own command in the place of a profile: what is judged, refused, said again, started
and written down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from doctor.cli import cli
from doctor.cli.profile import profile_lines
from doctor.command import ServerCommand
from doctor.profile import Profile, load_profile
from doctor.redact import hide_values_of
from doctor.report.json import report_schema
from tests.conftest import (
    Environment,
    bare_environment,
    must_fit,
    run_doctor,
    run_inside,
    script,
)
from tests.test_again import commands, parsed
from tests.test_launch import REFUSED, add_server, records
from tests.test_running import SLEEP, running_as

SERVE = ("vllm", "serve", "org/m")
LATER = ("--set", "gpus=later", "--set", "archs=9.0")
PASSWORD = "-".join(("not", "a", "real", "one"))
ROOT = Path(__file__).parent.parent
TAPE = ROOT / "fixtures/tapes/folder-of-links.json"
FOUR = ("diagnose", "fix", "launch", "snapshot")


def options(verb: str) -> tuple[str, ...]:
    return ("-o", "/dev/null") if verb == "snapshot" else ()


# What cannot be: one sentence, code 2.


@pytest.mark.parametrize("verb", FOUR)
@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--profile", "glm-4.7-flash", "--", *SERVE), "--profile glm-4.7-flash: a command says"),
        (("--set", "model=x", "--", *SERVE), "--set model: a command says itself"),
        (("--set", "tensor_parallel_size=2", "--", *SERVE), "put the option into it, behind --"),
        (("--set", "needs.weights_gib=2", "--", *SERVE), "--set needs.weights_gib: a command"),
        (("--set", "device=tpu", "--", *SERVE), "--set device"),
        (("--pid", "1", "--unit", "x"), "--pid, --unit exclude each other"),
        (("--pid", "1", "--", *SERVE), "--pid, -- exclude each other"),
        (("--unit", "x", "--", "--port", "1"), "--unit, -- exclude each other"),
        (("--pid", "0"), "Invalid value for '--pid'"),
        (("--pid", "vllm"), "Invalid value for '--pid'"),
        (("--pid", "4194999"), "--pid 4194999: there is no such process"),
        (("--unit", "no-such-unit"), "--unit no-such-unit.service: no such unit"),
        (("--", "org/other"), "org/other: not the command of a vLLM server"),
        (("--", ""), "'': not the command of a vLLM server"),
        (("--", "--port", "1"), "use --set port=... instead"),
        (("--", "bash", "-c", "cd x; vllm serve m"), "';' is for a shell"),
        (("--", "/no/such/vllm", "serve", "m"), "the command: /no/such/vllm does not exist"),
        (("--", "/no/such/python", "/x/vllm", "serve"), "the command /no/such/python: "),
        (("vllm", "serve", "m"), "vllm: put -- before the server's command"),
        (("vllm", "--", "serve", "m"), "vllm: put -- before the server's command"),
        (("vllm", "serve", "m", "--tensor-parallel-size", "2"), "Put -- before the server's"),
    ],
)
def test_what_cannot_be_is_refused(verb: str, words: tuple[str, ...], why: str) -> None:
    said = run_inside(verb, *options(verb), *words)
    assert said.code == 2
    assert why in said.err
    assert said.out == ""


def test_an_interpreter_of_another_environment_than_the_one_named_is_refused(
    bare: Environment, tmp_path: Path
) -> None:
    other = bare_environment(tmp_path / "other")
    vllm = script(other.prefix / "bin/vllm", SLEEP, str(other.python))
    for command in ((vllm, "serve", "m"), (other.python, vllm, "serve", "m")):
        said = run_inside("diagnose", "--python", bare.prefix, "--", *command)
        assert said.code == 2
        assert f"--python {bare.prefix}: the command names another interpreter" in said.err


def test_the_same_environment_may_be_named_twice_however_it_is_spelled(
    server: Environment, tmp_path: Path
) -> None:
    link = tmp_path / "a link"
    link.symlink_to(server.prefix)
    words = ("--python", link, *LATER, "--format", "json")
    said = run_inside(
        "diagnose", *words, "--", server.python, "-m", "vllm.entrypoints.cli.main", "serve"
    )
    assert said.report["target"]["found_by"] == "--python"


# Which interpreter, and how it was found.


def test_the_commands_own_interpreter_is_judged(server: Environment) -> None:
    vllm = script(server.prefix / "bin/vllm", "exit 0", str(server.python))
    for command in (("VLLM_LOGGING_LEVEL=INFO", vllm, "serve"), (server.python, vllm, "serve")):
        said = run_inside("diagnose", "--format", "json", *LATER, "--", *command, "org/m")
        report = said.report
        must_fit(report, report_schema)
        assert report["target"]["python"] == str(server.python)
        assert report["target"]["found_by"].startswith("the command")
        assert report["target"]["profile"] is None
        assert report["command"] == [*map(str, command), "org/m"]


def test_a_bare_name_is_looked_for_as_everywhere(server: Environment) -> None:
    there = {"VIRTUAL_ENV": str(server.prefix)}
    said = run_doctor("diagnose", "--format", "json", *LATER, "--", *SERVE, env=there)
    assert said.report["target"]["found_by"] == "VIRTUAL_ENV"
    shown = run_doctor("diagnose", "-v", *LATER, "--", *SERVE, env=there)
    assert "(your command)" in shown.out


def test_nothing_of_the_default_profile_is_in_force(server: Environment) -> None:
    """Its mirror of the hub least of all, which would cost the server its token."""
    add_server(server)
    said = run_doctor(
        *("launch", "--dry-run", "--python", server.prefix, *LATER, "--", *SERVE, "--port", "80"),
        env={"HF_TOKEN": PASSWORD},
    )
    assert "HF_ENDPOINT" not in said.out + said.err
    assert said.out.splitlines()[-1] == f"{server.prefix}/bin/vllm serve org/m --port 80"


# What is said again.


def test_every_command_that_is_printed_has_the_servers_own(server: Environment) -> None:
    words = ("--python", str(server.prefix), *LATER)
    said = run_inside("diagnose", *words, "--", "A=a b", *SERVE)
    assert said.code in (1, 3)
    found = [parsed(one) for one in commands(said.out, "vllm-doctor") if one[0] in FOUR]
    assert found
    for one in found:
        assert one["words"] == ("A=a b", *SERVE)
        assert one["sets"] == LATER[1::2]
    planned = run_inside("fix", *words, "--", *SERVE)
    for line in commands(planned.out, "vllm-doctor"):
        if line[0] in FOUR:
            assert parsed(line)["words"] == SERVE


def test_further_options_of_a_profile_are_said_again_too(server: Environment) -> None:
    said = run_inside("diagnose", "--python", server.prefix, *LATER, "--", "--enforce-eager")
    found = [parsed(one) for one in commands(said.out, "vllm-doctor") if one[0] in FOUR]
    assert found
    assert {one["words"] for one in found} == {("--enforce-eager",)}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Rules that want an option and a variable changed."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "own.py").write_text(
        "from doctor import Finding, Fix, Needs, Severity, Stage, Text, rule\n"
        "from doctor.fixes import Doctor\n"
        "from doctor.profile import ServeRequest\n"
        "@rule('own', Severity.ERROR, Stage.IMPORT)\n"
        "def own(request: ServeRequest) -> Finding:\n"
        '    """Mine.\n\n    Of this site."""\n'
        "    sets = ('--set', 'tensor_parallel_size=4', '--set', 'env.X=1', '--set', 'seed=')\n"
        "    return Finding(Text('x'), (), (Fix(Text('y'), (Doctor('diagnose', sets),),\n"
        "                   Needs.PERSON),))\n"
    )
    return folder


def test_a_fix_of_an_option_is_the_corrected_command_whole(server: Environment, site: Path) -> None:
    words = ("--python", str(server.prefix), *LATER, "--rules", str(site))
    command = ("bash", "-c", "X='a b' exec vllm serve org/m -tp 8 --seed 1 --port 80")
    said = run_inside("diagnose", "-v", *words, "--", *command)
    (one,) = (
        p
        for w in commands(said.out, "vllm-doctor")
        if "env.X=1" in (p := parsed(w)).get("sets", ())
    )
    assert one["words"] == (
        *("bash", "-c"),
        "X='a b' exec vllm serve org/m --tensor-parallel-size 4 --port 80",
    )
    assert one["sets"] == ("gpus=later", "archs=9.0", "env.X=1")
    secret = run_inside("diagnose", "-v", *words, "--", *SERVE, "--api-key", PASSWORD)
    assert PASSWORD not in secret.out + secret.err
    assert "with --tensor-parallel-size=4 behind --, without --seed behind --" in secret.out
    typed = run_inside("diagnose", "-v", *words, "--", *SERVE, "-tp", "8", "--api-key", PASSWORD)
    assert "=4 in place of its --tensor-parallel-size behind --, without --seed" in typed.out


def test_of_a_process_with_a_secret_the_correction_is_said_of_its_own_command(
    server: Environment, site: Path
) -> None:
    """--pid takes nothing behind --."""
    words = ("--python", str(server.prefix), *LATER, "--rules", str(site))
    vllm = script(server.prefix / "bin/vllm", SLEEP, str(server.python))
    with running_as(vllm, "serve", "org/m", "--api-key", PASSWORD) as pid:
        said = run_inside("diagnose", "-v", "--pid", str(pid), *words)
    (fix,) = (line for line in said.out.splitlines() if "without --seed" in line)
    assert fix.strip().startswith(f"the command of pid {pid}, with ")
    assert fix.endswith(", with --tensor-parallel-size=4, without --seed")
    assert PASSWORD not in said.out + said.err


def test_no_secret_of_a_command_is_printed(server: Environment) -> None:
    token = "hf_" + "abcdefghij" * 3
    command = (f"HF_TOKEN={token}", "MY_PASSWORD=" + PASSWORD, *SERVE, "--api-key", PASSWORD)
    for form in ("text", "json", "junit"):
        said = run_inside("diagnose", "--python", server.prefix, "--format", form, "--", *command)
        assert token not in said.out + said.err
        assert PASSWORD not in said.out + said.err


def test_the_values_of_another_process_are_hidden() -> None:
    from doctor.redact import redact

    value = "xk" + PASSWORD
    hide_values_of({"SOME_API_KEY": value})
    assert value not in redact(f"it said {value} twice")


# A process and a unit.


def test_a_running_server_is_judged_with_its_own_environment(
    server: Environment, tmp_path: Path
) -> None:
    vllm = script(server.prefix / "bin/vllm", SLEEP, str(server.python))
    env = {"VLLM_NO_SUCH_NAME": "1", "MY_SECRET": PASSWORD}
    with running_as(vllm, "serve", "org/m", "-tp", "2", env=env, cwd=tmp_path) as pid:
        said = run_doctor("diagnose", "--pid", str(pid), *LATER, "--format", "json")
        text = run_doctor("diagnose", "-v", "--pid", str(pid), *LATER)
        launch = run_doctor("launch", "--pid", str(pid))
    report = said.report
    assert report["command"][1:] == [str(vllm), "serve", "org/m", "-tp", "2"]
    assert report["target"]["python"] == str(server.python)
    assert "VLLM_NO_SUCH_NAME" in said.out
    assert PASSWORD not in said.out + text.out + text.err
    assert f"(the command of pid {pid})" in text.out
    again = [parsed(one) for one in commands(text.out) if one[0] in FOUR]
    assert again
    assert {(one["pid"], one["words"]) for one in again} == {(pid, ())}
    assert launch.code == 2
    assert f"pid {pid}: it is judged by diagnose" in launch.err


def test_a_process_that_is_no_server_is_a_slip(bare: Environment) -> None:
    with running_as(bare.python, "-c", SLEEP) as pid:
        said = run_inside("diagnose", "--pid", str(pid))
    assert said.code == 2
    assert "is not a server of vLLM" in said.err


def test_a_users_unit_is_judged(server: Environment, tmp_path: Path) -> None:
    folder = tmp_path / ".config/systemd/user"
    folder.mkdir(parents=True)
    name = "vllm-doctor-test-unit"
    (folder / f"{name}.service").write_text(
        f"[Service]\nEnvironment=VLLM_NO_SUCH_NAME=1\n"
        f"ExecStart={server.python} -m vllm.entrypoints.openai.api_server --model org/m\n"
    )
    there = {"HOME": str(tmp_path), "VLLM_OTHER_NAME": "of the shell"}
    said = run_doctor("diagnose", "--unit", name, *LATER, "--format", "json", env=there)
    assert said.report["command"][-2:] == ["--model", "org/m"]
    assert "VLLM_NO_SUCH_NAME" in said.out
    assert "VLLM_OTHER_NAME" not in said.out


# A container.


DOCKER = ("docker", "run", "--gpus", "all", "vllm/vllm-openai:v0.22.0", "--model", "org/m")


def test_of_an_image_that_was_not_entered_it_cannot_tell() -> None:
    said = run_inside("diagnose", "--format", "json", *LATER, "--", *DOCKER)
    assert said.code == 3
    must_fit(said.report, report_schema)
    why = said.outcome("container-not-entered")["why"]
    assert "--entrypoint vllm-doctor vllm/vllm-openai:v0.22.0 diagnose -- vllm serve" in why
    ids = {one["id"] for one in said.report["outcomes"]}
    assert not ids & {"nvcc-missing", "c-compiler-missing", "vllm-missing", "ninja-missing"}
    assert not ids & {"server-config-file-unreadable", "unknown-server-option"}
    text = run_inside("diagnose", *LATER, "--", *DOCKER)
    assert text.code == 3
    assert "an image that was not entered" in text.out
    (line,) = (one for one in text.out.splitlines() if one.startswith("in the image:"))
    assert line.split()[3:6] == ["docker", "run", "--rm"]
    assert " diagnose -- vllm serve --model org/m" in line


@pytest.mark.parametrize("verb", ["fix", "snapshot", "launch"])
def test_an_image_is_not_changed_recorded_or_started(verb: str) -> None:
    said = run_inside(verb, *options(verb), "--", *DOCKER)
    assert said.code == 2
    assert "docker run --gpus all" in said.err or "docker run --rm --gpus all" in said.err


def test_an_environment_or_a_snapshot_may_stand_for_the_image(server: Environment) -> None:
    said = run_inside(
        "diagnose", "--format", "json", "--python", server.prefix, *LATER, "--", *DOCKER
    )
    assert said.outcome("container-not-entered")["verdict"] == "ok"
    recorded = run_inside("diagnose", "--from", TAPE, "--format", "json", "--", *DOCKER)
    ids = {o["id"]: o["verdict"] for o in json.loads(recorded.out)["outcomes"]}
    assert ids["container-not-entered"] == "ok"


def test_a_container_has_only_the_gpus_that_it_is_given() -> None:
    for gpus, found in (("1", True), ('"device=0"', True), ("all", False), ("2", False)):
        command = (
            "docker",
            "run",
            "--gpus",
            gpus,
            "--ipc=host",
            "vllm/vllm-openai",
            "m",
            "-tp",
            "2",
        )
        said = run_inside("diagnose", "--from", TAPE, "--format", "json", "--", *command)
        ids = {o["id"] for o in json.loads(said.out)["outcomes"] if o["verdict"] == "found"}
        assert ("tp-exceeds-visible-gpus" in ids) is found


# A snapshot, launch, a profile.


def test_a_snapshot_is_judged_for_a_command() -> None:
    said = run_inside("diagnose", "--from", TAPE, "--format", "json", "--", *SERVE)
    assert json.loads(said.out)["command"] == list(SERVE)
    for other in (("--pid", "1"), ("--unit", "x")):
        refused = run_inside("diagnose", "--from", TAPE, *other)
        assert refused.code == 2
        assert "a snapshot has no processes and units" in refused.err


@pytest.mark.parametrize("option", ["--device", "--mirror"])
def test_an_option_of_a_settings_name_is_taken_out_of_the_command(option: str) -> None:
    """`--set device=` is of the place, where the command itself has no such option."""
    said = run_inside("diagnose", "--from", TAPE, "--", *SERVE, option, "x")
    lines = said.out.splitlines()
    (corrected,) = (line for line in lines if line.endswith(" ".join(SERVE)))
    assert f"has no option {option}" in said.out
    assert "--set" not in corrected


def test_a_command_without_a_model_is_judged_for_vllms_own() -> None:
    said = run_inside("diagnose", "--from", TAPE, "--format", "json", "--", "vllm", "serve")
    model = json.loads(said.out)["model"]
    assert (model["name"], model["source"]) == ("Qwen/Qwen3-0.6B", "table")


def test_launch_starts_exactly_the_command(cpu_server: Environment, tmp_path: Path) -> None:
    add_server(cpu_server)
    record = tmp_path / "record"
    accept = ("--accept", "model-not-known", "--accept", "unknown-server-option")
    said = run_doctor(
        *("launch", "--set", "device=cpu", *accept, "--python", cpu_server.prefix),
        *("--", "EXITS=7", *SERVE, "--seed", "3"),
        env={"RECORD": str(record)},
    )
    assert said.code == 7, said.err
    (row,) = records(record)
    assert row["argv"] == ["serve", "org/m", "--seed", "3"]
    assert row["env"]["EXITS"] == "7"


@pytest.mark.parametrize(
    "words", [("numactl", "-N", "0", *SERVE), ("nohup", "bash", "-c", " ".join(SERVE))]
)
def test_launch_leaves_out_nothing_of_the_command(words: tuple[str, ...]) -> None:
    said = run_doctor("launch", *LATER, "--", *words)
    assert said.code == 2
    assert f"{words[0]}: the server would be started without it" in said.err


def test_a_refused_command_is_not_started(server: Environment) -> None:
    add_server(server)
    said = run_doctor("launch", "--python", server.prefix, *LATER, "--", *SERVE)
    assert said.code == REFUSED


def test_a_profile_holds_what_the_command_says_and_no_secret(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    values = {
        "model": "org/m",
        "max_model_len": 4096,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "hf_overrides": {"a": [1, None], "b": "\u00fc\x7f"},
        "allowed_origins": ["a", 'b"c'],
        "quantization": "fp8",
        "ratio": float("inf"),
        "api_key": [PASSWORD],
        "seed": None,
    }
    served = Profile("org/m", port=80, tensor_parallel_size=2, max_model_len=4096)
    command = ServerCommand((), (), env={"A": "1", 'B"\nport = 9': "2", "HF_TOKEN": PASSWORD})
    file = tmp_path / "mine.toml"
    file.write_text("".join(f"{line}\n" for line in profile_lines(served, values, command)))
    said = file.read_text() + capsys.readouterr().err
    assert PASSWORD not in said
    assert "left out: api_key (a secret)" in said
    assert "left out: HF_TOKEN (secrets)" in said
    made = load_profile(str(file))
    assert made.options == {
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "hf_overrides": json.dumps(values["hf_overrides"]),
        "allowed_origins": ["a", 'b"c'],
        "quantization": "fp8",
        "ratio": float("inf"),
    }
    env = {"A": "1", 'B"\nport = 9': "2"}
    assert (made.port, made.tensor_parallel_size, made.env) == (80, 2, env)


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (("--from-command",), 2, "--from-command: name the command"),
        (("--from-command", "--", "--port", "1"), 2, "use --set port=... instead"),
        (("--", *SERVE), 2, "Missing option '--from-command'"),
        (("--from-command", "--", "x"), 2, "x: not the command of a vLLM server"),
        (("--from-command", "--", *DOCKER), 3, "options of the installed vLLM cannot be read"),
    ],
)
def test_what_is_no_command_makes_no_profile(words: tuple[str, ...], code: int, why: str) -> None:
    said = run_inside("profile", *words)
    assert (said.code, said.out) == (code, "")
    assert why in said.err


def test_every_command_that_serves_says_how_a_command_is_given() -> None:
    for verb in FOUR:
        usage = run_inside(verb, "--help").out
        assert "[-- COMMAND]" in usage
        opts = {opt for one in cli.commands[verb].params for opt in one.opts}
        assert {"--pid", "--unit", "--online"} <= opts
