"""What vLLM's parser makes of a server's command line, by a table with an option of each kind;
tests/real_stack holds it against vLLM's own.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from doctor.arguments import (
    ArgumentProblem,
    By,
    Parsed,
    ProblemFound,
    Wrong,
    config_of,
    parse_arguments,
    plain_values,
    profile_words,
)
from doctor.command import ServerCommand, read_command
from doctor.consumers.server_options import DEMANDS, OptionTable, ServerOption, Takes
from doctor.engine import Facts
from doctor.model import Missing, NotApplicable
from doctor.probes.arguments import ServerArguments, ServerOptions
from doctor.probes.interpreter import FoundBy, Where
from doctor.probes.served import Profile
from doctor.profile import PLACE, ServeRequest
from doctor.tape import Recorder, Tape, load_tape
from doctor.target import Live
from tests.conftest import SYSTEM, Environment, bare_environment

NO_EAGER = "--no-enforce-eager"
TABLE = OptionTable(
    (
        ServerOption(("-h", "--help"), "help", Takes.SWITCH),
        ServerOption(("--model",), "model", default="org/default"),
        ServerOption(("--served-model-name",), "served_model_name", many="+", optional=True),
        ServerOption(("--port",), "port", Takes.INT, default=8000),
        ServerOption(("--tensor-parallel-size", "-tp"), "tensor_parallel_size", Takes.INT),
        ServerOption(("--nnodes", "-n"), "nnodes", Takes.INT),
        ServerOption(("--gpu-memory-utilization",), "gpu_memory_utilization", Takes.FLOAT),
        ServerOption(("--max-model-len",), "max_model_len", Takes.LENGTH),
        ServerOption(("--max-num-batched-tokens",), "max_num_batched_tokens", Takes.SIZE),
        ServerOption(("--max-num-seqs",), "max_num_seqs", Takes.INT, optional=True),
        ServerOption(("--dtype",), "dtype", choices=("auto", "bfloat16", "half")),
        ServerOption(("--backend",), "backend", choices=("auto", "a_b"), lowered=True),
        ServerOption(("--reasoning-parser",), "reasoning_parser", or_none=True),
        ServerOption(
            ("--enforce-eager", NO_EAGER), "enforce_eager", Takes.PAIR, negative=(NO_EAGER,)
        ),
        ServerOption(("--headless",), "headless", Takes.SWITCH),
        ServerOption(("--hf-token",), "hf_token", many="?", without=True),
        ServerOption(("--middleware",), "middleware", repeated=True),
        ServerOption(("--override",), "override", Takes.JSON),
        ServerOption(("--hf-overrides",), "hf_overrides", Takes.TEXT_OR_JSON),
        ServerOption(
            ("--compilation-config", "-cc"),
            "compilation_config",
            Takes.CONFIG,
            keys=("mode", "sizes", "pass_config"),
        ),
        ServerOption(("--optimization-level",), "optimization_level"),
        ServerOption(("--config",), "config"),
        ServerOption(("--api-server-count", "-asc"), "api_server_count", Takes.INT),
        ServerOption(("--enable-log-outputs",), "enable_log_outputs", Takes.SWITCH),
        ServerOption(("--enable-log-requests",), "enable_log_requests", Takes.SWITCH),
        ServerOption(("--data-parallel-rank",), "data_parallel_rank", Takes.INT),
        ServerOption(("--data-parallel-hybrid-lb",), "data_parallel_hybrid_lb", Takes.SWITCH),
        ServerOption(("--lora-modules",), "lora_modules", Takes.UNKNOWN, many="+"),
    ),
    demands=DEMANDS,
)


def parsed(line: str, by: By = "serve", config: str | None = None) -> Parsed:
    data = None if config is None else config.encode()
    return parse_arguments(shlex.split(line), TABLE, by, lambda file: config_of(file, data))


GOOD: list[tuple[str, dict[str, Any]]] = [
    ("org/m", {"model": "org/m"}),
    ("--port 1 org/m", {"port": 1, "model": "org/m"}),
    ("--port 1 --model org/m", {"port": 1, "model": "org/m"}),
    ("--model=org/m --port 1", {"port": 1, "model": "org/m"}),
    ("m --max_model_len=40k", {"max_model_len": 40_000}),
    ("m --max-model-len 40K", {"max_model_len": 40_960}),
    ("m --max-model-len auto", {"max_model_len": -1}),
    ("m --max-model 25.6k", {"max_model_len": 25_600}),
    ("m --max-num-batched-tokens 8k", {"max_num_batched_tokens": 8000}),
    ("m --max-num-seqs None", {"max_num_seqs": None}),
    ("m -tp 2 -tp=4", {"tensor_parallel_size": 4}),
    ("m -n2", {"nnodes": 2}),
    ("m --port 1 --port=2", {"port": 2}),
    ("m --enforce-eager --no-enforce-eager", {"enforce_eager": False}),
    ("m --enforce --headless", {"enforce_eager": True, "headless": True}),
    ("m --backend A-B", {"backend": "a_b"}),
    ("m --reasoning-parser None", {"reasoning_parser": ""}),
    ("m --hf-token", {"hf_token": True}),
    ("m --hf-token x", {"hf_token": "x"}),
    ("m --middleware a --middleware b", {"middleware": ["a", "b"]}),
    ("m --served-model-name a b", {"served_model_name": ["a", "b"]}),
    ("m -O3", {"optimization_level": "3"}),
    ("m -O 2", {"optimization_level": "2"}),
    ("m -O=1", {"optimization_level": "1"}),
    ("m --override '{\"a\": 1}'", {"override": {"a": 1}}),
    ("m --hf-overrides word", {"hf_overrides": "word"}),
    (
        "m --hf-overrides.a.b 8k --hf-overrides.a.c x",
        {"hf_overrides": {"a": {"b": 8000, "c": "x"}}},
    ),
    ("m -cc '{\"sizes\": [8k]}'", {"compilation_config": {"sizes": [8000]}}),
    ("m -cc.mode 3 -cc.sizes+ 1,2", {"compilation_config": {"mode": 3, "sizes": ["1", "2"]}}),
    ("m --lora-modules {", {"lora_modules": ["{"]}),
]


@pytest.mark.parametrize(("line", "values"), GOOD)
def test_a_line_says_what_vllm_takes_it_for(line: str, values: dict[str, Any]) -> None:
    assert parsed(line) == Parsed({"model": "m", **values})


BAD: list[tuple[str, Wrong, str, str | None]] = [
    ("m --tensor-parallel-sise 2", Wrong.UNKNOWN, "--tensor-parallel-sise", "2"),
    ("m -tp2", Wrong.UNKNOWN, "-tp2", None),
    ("m --max-num 2", Wrong.AMBIGUOUS, "--max-num", None),
    ("m --dtype bf16", Wrong.CHOICE, "--dtype", "bf16"),
    ("m --port http", Wrong.TYPE, "--port", "http"),
    ("m --max-model-len 1.5K", Wrong.TYPE, "--max-model-len", "1.5K"),
    ("m --override {a:1}", Wrong.TYPE, "--override", "{a:1}"),
    ("m --hf-overrides {a:1}", Wrong.TYPE, "--hf-overrides", "{a:1}"),
    ("m -cc.moed 3", Wrong.TYPE, "-cc", '{"moed": 3}'),
    ("m -cc []", Wrong.TYPE, "-cc", "[]"),
    ("m --port", Wrong.LACKS_VALUE, "--port", None),
    ("m --port --headless", Wrong.LACKS_VALUE, "--port", None),
    ("m -cc.mode", Wrong.LACKS_VALUE, "-cc.mode", None),
    ("--model", Wrong.LACKS_VALUE, "--model", None),
    ("--served-model-name x", Wrong.LACKS_VALUE, "model", None),
    ("m --headless=1", Wrong.TAKES_NO_VALUE, "--headless", "1"),
    ("m other", Wrong.UNEXPECTED, "other", None),
    ("m --port 1 -- --port", Wrong.UNEXPECTED, "--port", None),
    ("m --config x.json", Wrong.CONFIG_FILE, "--config", "x.json"),
    ("m --config x.yaml", Wrong.CONFIG_FILE, "--config", "x.yaml"),
    ("m --config x.yaml --config y.yaml", Wrong.CONFIG_FILE, "--config", None),
    ("m --config", Wrong.LACKS_VALUE, "--config", None),
    ("m --headless -asc 2", Wrong.EXCLUSIVE, "--headless", None),
    ("m --enable-log-outputs", Wrong.NEEDS, "--enable-log-outputs", None),
]


@pytest.mark.parametrize(("line", "kind", "option", "value"), BAD)
def test_what_vllm_ends_for_is_a_problem(
    line: str, kind: Wrong, option: str, value: str | None
) -> None:
    (problem,) = parsed(line).problems
    assert (problem.kind, problem.option, problem.value) == (kind, option, value)


def test_each_problem_is_told_and_what_is_wrong_says_nothing() -> None:
    made = parsed("m --dtype bf16 --port http --ports 1 -tp 2")
    assert [problem.option for problem in made.problems] == ["--dtype", "--port", "--ports"]
    assert made.values == {"model": "m", "tensor_parallel_size": 2}
    assert made.problems[0].meant[0] == "bfloat16"
    assert made.problems[2].meant == ("--port",)


@pytest.mark.parametrize("by", ["serve", "module"])
def test_an_option_of_the_file_is_weaker_than_one_of_the_line(by: By) -> None:
    config = "port: 1\nmax_model_len: 8k\nheadless: true\nenforce-eager: false\nmodel: org/f\n"
    made = parsed("--config x.yaml --port 2", by, config)
    says = {"port": 2, "max_model_len": 8000, "headless": True, "model": "org/f"}
    assert {k: v for k, v in made.values.items() if k != "config"} == says


def test_a_file_of_0_33_may_switch_off_for_the_module() -> None:
    table = dataclasses.replace(TABLE, config_says_no=True)
    words = ["--config", "x.yaml"]
    read = {"enforce-eager": False, "model": "m"}
    made = parse_arguments(words, table, "module", lambda _: read)
    assert made.values == {"model": "m", "enforce_eager": False}
    assert parse_arguments(words, table, "serve", lambda _: read).values == {"model": "m"}


@pytest.mark.parametrize(
    "config", ["- a\n", "word", "{", "", "1: 2\n", "port: [1", "\x00", "a: !!python/name:os.x\n"]
)
def test_a_file_that_vllm_cannot_read_is_a_problem(config: str) -> None:
    made = parsed("org/m --config x.yaml", config=config)
    assert [problem.kind for problem in made.problems] == [Wrong.CONFIG_FILE]
    assert made.values == {"model": "org/m"}


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(8)
)


# Each time it is looked into, it holds itself a hundred thousand times more.
WIDE = "a: &a [" + "*a, " * 100_000 + "]\n"


@pytest.mark.parametrize("config", [BOMB, "a: &a [*a]\n", "a: 1\n" * 300_000, WIDE])
def test_a_file_that_is_endless_is_not_read(config: str) -> None:
    with pytest.raises(Missing):
        parsed("org/m --config x.yaml", config=config)


def test_without_pyyaml_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(Missing, match="pip install pyyaml"):
        parsed("org/m --config x.yaml", config="port: 1\n")


@pytest.mark.parametrize(
    "word", ["\0", "x" * 1_000_000, "=", "--", "-", "--=", "-.", "-.=x", "\udcff", "--x.y"]
)
def test_any_word_is_taken(word: str) -> None:
    for words in (["m", word], [word], ["m", "--dtype", word], ["m", f"--port={word}", word]):
        made = parse_arguments(words, TABLE, "serve", lambda file: config_of(file, None))
        assert all(len(problem.value or "") < 300 for problem in made.problems)


def test_deep_json_is_a_problem() -> None:
    deep = "[" * 100_000
    words = ["m", "--override", deep, f"--hf-overrides.a={deep}"]
    made = parse_arguments(words, TABLE, "serve", lambda file: config_of(file, None))
    assert [problem.option for problem in made.problems] == ["--override"]


def test_what_is_said_key_by_key_too_deep_is_a_problem() -> None:
    (problem,) = parsed(f"m --hf-overrides.{'a.' * 20_000}b 1").problems
    assert (problem.kind, problem.option) == (Wrong.TYPE, "--hf-overrides")


def test_a_number_beyond_all_is_a_problem() -> None:
    beyond = "9" * 400 + "k"
    words = f"m --max-model-len {beyond}"
    made = parsed(words)
    assert [(p.kind, p.option) for p in made.problems] == [(Wrong.TYPE, "--max-model-len")]
    assert "max_model_len" not in plain_values(words.split(), "serve")


def test_the_time_for_json_that_does_not_end_grows_with_its_length() -> None:
    """Of 128 KiB a minute and more, where each of its quotes were tried to the end."""
    words = ["m", "-cc", '"' + '\\"' * 60_000]
    began = time.process_time()
    (problem,) = parse_arguments(words, TABLE, "serve", lambda _: {}).problems
    assert time.process_time() - began < 5
    assert problem.kind is Wrong.TYPE


def test_a_profile_is_passed_as_words() -> None:
    options = {
        "enforce_eager": False,
        "headless": "false",
        "reasoning_parser": "-x",
        "override": {"a": [1]},
        "middleware": ["a"],
        "dtype": "half",
    }
    words = profile_words(Profile(model="m", port=1, options=options), TABLE)
    assert words[:1] == ["m"]
    made = parse_arguments(words, TABLE, "serve", lambda file: config_of(file, None))
    unknown = [problem.option for problem in made.problems]
    assert unknown == ["--host"]  # which the small table lacks
    assert made.values["enforce_eager"] is False
    assert "headless" not in made.values
    assert made.values["reasoning_parser"] == "-x"
    assert made.values["override"] == {"a": [1]}


def test_plain_values_are_read_without_a_table() -> None:
    words = "m --tensor_parallel_size=2 --max-model-len 8k --port x -q fp8 --model n --dtype half"
    assert plain_values(shlex.split(words), "serve") == {
        "model": "n",
        "tensor_parallel_size": 2,
        "max_model_len": 8000,
    }
    assert plain_values(["m", "--port=1"], "module") == {"port": 1}


# The probes, over an environment in which vLLM is installed.


def facts(environment: Environment, request: ServeRequest, target: Any = None) -> Facts:
    return Facts(target or Live(SYSTEM), (Where(environment.python, FoundBy.OPTION), request))


def command(line: str) -> ServeRequest:
    place = Profile(gpus="later", archs=("9.0",))
    return ServeRequest(place, command=read_command(shlex.split(line)))


def test_a_command_is_in_force_as_it_is_parsed(shared_server: Environment) -> None:
    made = facts(shared_server, command("vllm serve org/m --port 9 -q fp8 --model-impl=vllm"))
    profile = made.get(Profile)
    assert (profile.model, profile.port) == ("org/m", 9)
    assert profile.options == {"quantization": "fp8", "model_impl": "vllm"}
    assert profile.gpus == "later"


def test_what_no_server_can_have_is_a_problem_and_no_crash(shared_server: Environment) -> None:
    made = facts(shared_server, command("vllm serve org/m --port 99999"))
    (problem,) = made.get(ServerArguments).problems
    assert problem == ArgumentProblem(Wrong.RANGE, "--port", "99999", why=problem.why)
    assert made.get(Profile).port == 8000


def test_a_plain_profile_asks_for_no_table(shared_server: Environment) -> None:
    recorder = Recorder(Live(SYSTEM))
    request = ServeRequest(Profile(model="org/m", tensor_parallel_size=2))
    arguments = facts(shared_server, request, recorder).get(ServerArguments)
    assert arguments.values["tensor_parallel_size"] == 2
    asked = recorder.recording("x", "x", "x")["search"]
    assert not any(path.endswith("arg_utils.py") for path in asked)


def test_what_stands_behind_a_profile_is_parsed_with_it(shared_server: Environment) -> None:
    profile = Profile(model="org/m", port=9, options={"quantization": "fp8"})
    made = facts(shared_server, ServeRequest(profile, ("--no-such", "--model-impl", "vllm")))
    arguments = made.get(ServerArguments)
    assert [problem.option for problem in arguments.problems] == ["--no-such"]
    assert made.get(Profile).options == {"quantization": "fp8", "model_impl": "vllm"}


def test_a_config_file_is_read_through_the_target(
    shared_server: Environment, tmp_path: Path
) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("port: 9\n", encoding="utf-8")
    asked = command(f"vllm serve org/m --config {file}")
    assert facts(shared_server, asked).get(Profile).port == 9
    file.unlink()
    arguments = facts(shared_server, asked).get(ServerArguments)
    assert [problem.kind for problem in arguments.problems] == [Wrong.CONFIG_FILE]
    assert facts(shared_server, asked).get(Profile).model == "org/m"


def test_without_vllm_a_command_is_not_read(tmp_path: Path) -> None:
    bare = bare_environment(tmp_path / "venv")
    made = facts(bare, command("vllm serve org/m --tensor-parallel-size 2 --dtype x"))
    arguments = made.get(ServerArguments)
    assert arguments.unread
    assert made.get(Profile).tensor_parallel_size == 2
    with pytest.raises(Missing) as missing:
        arguments.found(Wrong.CHOICE)
    assert missing.value.explained_by == ("vllm-missing",)


def recorded(environment: Environment, kinds: tuple[type, ...], tool: str) -> Tape:
    recorder = Recorder(Live(SYSTEM))
    made = facts(environment, ServeRequest(Profile(model="org/m")), recorder)
    for kind in kinds:
        made.get(kind)
    names = [kind.__name__ for kind in kinds]
    return Tape(load_tape(recorder.recording(tool, str(environment.python), "option", asked=names)))


def test_a_snapshot_that_holds_the_table_answers_for_any_command(
    shared_server: Environment,
) -> None:
    kinds = (ServerOptions, ServerArguments)
    tape = recorded(shared_server, kinds, "vllm-doctor 0.6.0")
    made = facts(shared_server, command("vllm serve org/m --prot 9"), tape)
    assert [problem.option for problem in made.get(ServerArguments).problems] == ["--prot"]


@pytest.mark.parametrize("whole", [True, False])
def test_a_snapshot_of_an_older_doctor_is_asked_only_for_a_command(
    shared_server: Environment, whole: bool
) -> None:
    """Of a profile's server it was judged without the options; a command may hold any."""
    from doctor.probes.vllm_names import VllmOptions

    tape = recorded(shared_server, (VllmOptions,), "vllm-doctor 0.5.0")
    profile = ServeRequest(Profile(model="org/m"), ("--prot", "9"))
    request = command("vllm serve org/m --prot 9") if whole else profile
    made = facts(shared_server, request, tape)
    arguments = made.get(ServerArguments)
    assert made.get(Profile).model == "org/m"
    said = Missing if whole else NotApplicable
    with pytest.raises(said, match=r"recorded by vllm-doctor 0\.5\.0"):
        arguments.found(Wrong.UNKNOWN)


def test_a_request_of_a_command_has_the_place_alone() -> None:
    plain = Profile()
    request = command("vllm serve m")
    kept = {name for name in vars(plain) if getattr(request.profile, name) != getattr(plain, name)}
    assert kept <= set(PLACE)
    assert isinstance(request.command, ServerCommand)
    with pytest.raises(ProblemFound):
        config_of("x.yaml", None)
