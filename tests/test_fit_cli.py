"""`vllm-doctor fit` as a person types it: what it takes, what it prints, its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from doctor.consumers.known_models import known_model
from doctor.report.fit_json import fit_schema
from tests import stand_ins
from tests.conftest import Said, must_fit, run_doctor, run_inside

QWEN, FLASH = "Qwen/Qwen3-32B", "zai-org/GLM-4.7-Flash"
NEWEST = ("--vllm-version", "0.33.0")
JSON = ("--format", "json")
H100 = ("--gpu", "h100-80gb")
MODULE = ("python", "-m", "vllm.entrypoints.openai.api_server")


def asked(*words: str | Path) -> tuple[dict[str, Any], int]:
    """The object that it prints, of its schema, and its exit code."""
    said = run_inside("fit", *words, *JSON) if "--" not in words else _before(words)
    made = json.loads(said.out)
    must_fit(made, fit_schema)
    assert said.code == {"fits": 0, "does-not-fit": 1}.get(made["verdict"], 3)
    return made, said.code


def _before(words: tuple[str | Path, ...]) -> Said:
    at = words.index("--")
    return run_inside("fit", *words[:at], *JSON, *words[at:])


# The forms.


@pytest.mark.parametrize(
    "words",
    [
        (*H100, *NEWEST, "--", "vllm", "serve", QWEN, "--tensor-parallel-size", "2"),
        (QWEN, *H100, "--gpus", "2", *NEWEST, "--tensor-parallel-size", "2"),
        (*H100, QWEN, "-tp", "2", *NEWEST),
        (QWEN, "--tensor-parallel-size=2", *NEWEST, *H100),
        (*H100, *NEWEST, QWEN, "--", "--tensor-parallel-size", "2"),
        (*H100, *NEWEST, "--", *MODULE, "--model", QWEN, "-tp", "2"),
    ],
)
def test_each_form_asks_the_same(words: tuple[str, ...]) -> None:
    made, _ = asked(*words)
    assert made["model"]["name"] == QWEN
    assert made["gpu"]["count"] == 2
    assert len(made["per_gpu"]) == 2
    assert made["rules"] == "vllm 0.33.0"
    assert made["verdict"] == "fits"


def test_the_profile_is_asked_where_nothing_is_said() -> None:
    made, _ = asked(*H100, "--gpus", "2", *NEWEST)
    assert made["model"]["name"] == FLASH
    assert made["kv"]["max_model_len"] == 32768  # the profile's own


def test_a_gpu_may_be_described_by_its_memory_alone() -> None:
    named, _ = asked(QWEN, *H100, *NEWEST)
    sized, _ = asked(QWEN, "--gpu-memory", "79.18GiB", *NEWEST)
    assert sized["gpu"]["total_bytes"] == named["gpu"]["total_bytes"]
    assert sized["kv"] == named["kv"]
    both, _ = asked(QWEN, *H100, "--gpu-memory", "40GiB", *NEWEST)
    assert both["gpu"] == {**named["gpu"], "total_bytes": 40 << 30}


def test_no_bytes_for_the_cache_are_as_none_said() -> None:
    """vLLM asks whether the number is true (v1/worker/gpu_worker.py)."""
    unsaid, _ = asked(FLASH, *H100, *NEWEST)
    made, _ = asked(FLASH, *H100, *NEWEST, "--kv-cache-memory-bytes", "0")
    assert made == unsaid


def test_of_the_longest_that_fits_no_request_is_compared() -> None:
    made, code = asked(FLASH, *H100, *NEWEST, "--max-model-len", "auto")
    longest = made["kv"]["longest_max_model_len"]
    assert code == 0
    assert made["why"].endswith(f"{longest['low']} to {longest['high']} tokens")


def test_options_of_the_server_count() -> None:
    plain, _ = asked(FLASH, *H100, *NEWEST)
    eighth, _ = asked(FLASH, *H100, *NEWEST, "--kv-cache-dtype", "fp8")
    assert eighth["per_gpu"][0]["kv_bytes_per_token"] < plain["per_gpu"][0]["kv_bytes_per_token"]
    short, _ = asked(FLASH, *H100, *NEWEST, "--max-model-len", "4096")
    assert short["kv"]["max_model_len"] == 4096
    assert short["kv"]["needed_bytes"] < plain["kv"]["needed_bytes"]


@pytest.mark.parametrize(
    ("tensor", "size", "fits"), [("4", "4", True), ("4", "3", False), ("1", "7", False)]
)
def test_ranks_that_make_no_groups_do_not_share_the_cache(
    tensor: str, size: str, fits: bool
) -> None:
    words = (FLASH, "--gpu", "h200", "--gpus", "8", *NEWEST, "-tp", tensor, "-dcp", size)
    made, _ = asked(*words, "--max-model-len", "4096")
    assert (made["verdict"] == "fits") == fits


def test_what_a_log_says_is_available_is_exact() -> None:
    made, code = asked(
        FLASH, "--available-kv", "15.03GiB", "--vllm-version", "0.22.0", "--max-model-len", "40960"
    )
    assert code == 0
    tokens = made["kv"]["tokens"]
    assert tokens["low"] == tokens["likely"] == tokens["high"] == 298048
    (rank,) = made["per_gpu"]
    assert rank["available_kv_bytes"]["low"] == rank["available_kv_bytes"]["high"]
    assert rank["kv_bytes_per_token"] == 54144
    least, code = asked(
        FLASH, "--available-kv", "1.0GiB", "--vllm-version", "0.22.0", "--max-model-len", "32768"
    )
    assert (code, least["verdict"]) == (1, "does-not-fit")
    assert least["kv"]["longest_max_model_len"]["likely"] == 19824


def test_a_config_wins_over_what_the_name_would_give(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    values = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    config.write_text(json.dumps(values), encoding="utf-8")
    made, code = asked(QWEN, "--config", config, "--gpu", "rtx-3060", *NEWEST)
    assert code == 0
    assert made["model"] == {
        "name": QWEN,
        "config_from": str(config),
        "weights_from": "config",
    }
    assert made["per_gpu"][0]["kv_bytes_per_token"] == 16 * 2 * 8 * 64 * 2
    halved, _ = asked(
        *("org/other", "--config", config, "--gpu", "rtx-3060", *NEWEST),
        *("--hf-overrides", '{"num_hidden_layers": 8}'),
    )
    assert halved["per_gpu"][0]["kv_bytes_per_token"] == 8 * 2 * 8 * 64 * 2


def test_how_a_model_is_quantised_is_read_beside_its_config(tmp_path: Path) -> None:
    row = known_model(QWEN)
    assert row is not None
    config = tmp_path / "config.json"
    config.write_text(json.dumps(row.values), encoding="utf-8")
    whole, _ = asked("org/m", "--config", config, *H100, *NEWEST)
    said = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}
    said["quantization"]["kv_cache_quant_algo"] = "FP8"
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(said), encoding="utf-8")
    eighth, _ = asked("org/m", "--config", config, *H100, *NEWEST)
    assert (
        2 * eighth["per_gpu"][0]["kv_bytes_per_token"] == whole["per_gpu"][0]["kv_bytes_per_token"]
    )


@pytest.mark.parametrize("producer", [{"producer": {"name": "modelopt"}}, {}])
def test_how_a_model_is_quantised_is_read_in_a_copy_that_holds_both_files(
    producer: dict[str, Any], tmp_path: Path
) -> None:
    row = known_model(QWEN)
    assert row is not None
    said = {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
    config = tmp_path / "copy.json"
    copied = {**row.values, "_hf_quant_config": {**producer, **said}}
    config.write_text(json.dumps(copied), encoding="utf-8")
    made, _ = asked("org/m", "--config", config, *H100, *NEWEST)
    rank = made["per_gpu"][0]
    assert rank["kv_bytes_per_token"] == 64 * 2 * 8 * 128
    assert made["verdict"] == ("fits" if producer else "unknown")
    assert (rank["weights_bytes"] is None) == (not producer)


def test_without_a_gpu_what_needs_none_is_told(tmp_path: Path) -> None:
    made, _ = asked(QWEN, *NEWEST)
    assert made["verdict"] == "unknown"
    assert made["why"].startswith("no GPU can be asked here")
    assert made["kv"]["needed_bytes"] == 10 << 30
    assert made["per_gpu"][0]["kv_bytes_per_token"] == 1 << 18
    assert made["per_gpu"][0]["weights_bytes"] > 60 << 30
    unknown, _ = asked("org/unknown", *NEWEST)
    assert "--config" in unknown["why"]


def test_a_model_of_a_folder_is_read_there(tmp_path: Path) -> None:
    values = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    made, code = asked(tmp_path, *H100, *NEWEST)
    assert (code, made["verdict"]) == (3, "unknown")
    assert made["model"]["config_from"] == str(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("tag", "rules"),
    [
        ("v0.11.2", "vllm 0.11.2"),
        ("v0.33.0", "vllm 0.33.0"),
        ("v0.30.0.post1@sha256:0123", "vllm 0.30.0.post1"),
        ("latest", None),
        ("nightly-0123", None),
        ("v..", None),
    ],
)
def test_an_image_names_its_version(tag: str, rules: str | None) -> None:
    image = f"vllm/vllm-openai:{tag}"
    words = ("--", "docker", "run", "--gpus", "all", image, "--model", QWEN)
    made, code = asked(*H100, *words)
    assert made["rules"] == rules
    assert (code == 3) or rules
    if rules is None:
        assert "--vllm-version" in made["why"]
    said, _ = asked(*H100, "--vllm-version", "0.22.0", *words)
    assert said["rules"] == "vllm 0.22.0"
    assert said["kv"]["needed_bytes"] is not None


def test_the_folders_of_a_container_are_those_that_it_mounts(tmp_path: Path) -> None:
    row = known_model(QWEN)
    assert row is not None
    (tmp_path / "config.json").write_text(json.dumps(row.values), encoding="utf-8")
    image = "vllm/vllm-openai:v0.33.0"
    words = ("docker", "run", "-v", f"{tmp_path}:/models/q", image, "--model", "/models/q")
    made, _ = asked(*H100, "--", *words)
    assert made["model"]["name"] == "/models/q"
    assert made["kv"]["needed_bytes"] is not None


# What cannot be told: one object all the same.


def test_a_model_that_nobody_knows() -> None:
    made, code = asked("org/nobody-knows-it", *H100, *NEWEST)
    assert (code, made["verdict"]) == (3, "unknown")
    assert all(hint in made["why"] for hint in ("--config", "--online", "folder"))
    assert len(made["per_gpu"]) == 1
    assert made["per_gpu"][0]["weights_bytes"] is None


def test_no_vllm_here_and_none_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    made, code = asked(QWEN, *H100)
    assert (code, made["rules"]) == (3, None)
    assert "--vllm-version" in made["why"]
    assert made["model"]["name"] == QWEN
    assert made["gpu"]["count"] == 1


def test_no_gpu_here_and_none_named() -> None:
    made, code = asked(QWEN, *NEWEST)
    assert (code, made["verdict"]) == (3, "unknown")
    assert "--gpu" in made["why"]
    assert made["gpu"] == {"name": None, "total_bytes": None, "free_bytes": None, "count": 0}


def test_more_stages_than_layers_are_not_reckoned_one_by_one() -> None:
    made, _ = asked(QWEN, *H100, *NEWEST, "-pp", "1000")
    assert made["verdict"] == "unknown"
    assert made["why"] == "1000 pipeline stages are too many to reckon"


# What is refused: one sentence, code 2.


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((QWEN, "--gpu", "a100", *NEWEST), "did you mean a100-80gb"),
        ((QWEN, "--gpu", "", *NEWEST), "unknown GPU"),
        ((QWEN, "--gpu-memory", "80", *NEWEST), "less than any GPU has"),
        ((QWEN, "--gpu-memory", "lots", *NEWEST), "--gpu-memory lots is not a size such as"),
        ((QWEN, "--gpu-memory", "-8GiB", *NEWEST), "less than any GPU has"),
        ((QWEN, "--available-kv", "15.03 pounds", *NEWEST), "is not a size such as"),
        ((QWEN, "--gpus", "0", *NEWEST), "Invalid value for '--gpus'"),
        ((QWEN, *H100, "--vllm-version", "newest"), "--vllm-version newest: not a version"),
        ((QWEN, *H100, "--vllm-version", "9" * 500), "not a version"),
        ((QWEN, *H100, *NEWEST, "--max-model-length", "4096"), "did you mean --max-model-len?"),
        ((QWEN, *H100, *NEWEST, "-tp", "two"), "vLLM would refuse -tp two"),
        ((QWEN, *H100, *NEWEST, "--max-model-len"), "vLLM would refuse --max-model-len"),
        ((QWEN, "extra", *H100, *NEWEST), "vLLM would refuse extra"),
        ((QWEN, *H100, *NEWEST, "-tp", "0"), "--tensor-parallel-size 0: 0 is not between"),
        ((QWEN, *H100, *NEWEST, "--gpu-memory-utilization", "1.5"), "1.5 is not between"),
        ((QWEN, *H100, *NEWEST, "--gpu-memory-utilization", "nan"), "nan is not between"),
        ((QWEN, *H100, *NEWEST, "--max-model-len", "-5"), "--max-model-len -5"),
        ((QWEN, *H100, *NEWEST, "--max-num-seqs", "0"), "--max-num-seqs 0: it has to be 1"),
        ((QWEN, *H100, *NEWEST, "--speculative-config", "{"), "it has to be JSON"),
        (("--gup", "h100", *NEWEST), "No such option: --gup"),
        (("--tensor-parallel-size", "2", *H100), "stand behind the model"),
        ((QWEN, *H100, "--", "vllm", "serve", "x"), "the command behind -- names the model"),
        ((QWEN, "--config", "/no/such/file", *H100, *NEWEST), "--config /no/such/file: no such"),
        ((QWEN, "--from", "/no/such/file"), "--from /no/such/file: no such"),
        (("--", "vllm", "bench"), "vllm bench: not the command of a server"),
    ],
)
def test_what_cannot_be_is_refused(words: tuple[str, ...], why: str) -> None:
    said = run_inside("fit", *words)
    assert said.code == 2
    assert why in said.err
    assert said.out == ""


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no json",
        b"[]",
        b"{}",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b"{" + b'"a":{' * 5000,
        b'{"a": ' + b"9" * 100_000 + b"}",
    ],
)
def test_a_config_that_is_none_is_refused(tmp_path: Path, data: bytes) -> None:
    config = tmp_path / "config.json"
    config.write_bytes(data)
    said = run_inside("fit", QWEN, "--config", config, *H100, *NEWEST, *JSON)
    assert said.code in (2, 3)
    assert said.err.count("\n") <= 1
    if said.code == 3:
        must_fit(json.loads(said.out), fit_schema)


def test_a_config_of_200_megabytes_is_not_read(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    with config.open("wb") as file:
        file.truncate(200 << 20)
    said = run_inside("fit", QWEN, "--config", config, *H100, *NEWEST)
    assert said.code == 2
    assert said.err.count("\n") == 1


ODD = ["32", -1, 0, 1 << 62, 1e308, True, None, [], {}, "x" * 1000]


@pytest.mark.parametrize("value", ODD, ids=repr)
@pytest.mark.parametrize(
    "name", ["hidden_size", "num_hidden_layers", "num_key_value_heads", "vocab_size", "head_dim"]
)
def test_a_config_of_odd_values_is_answered(tmp_path: Path, name: str, value: object) -> None:
    row = known_model(QWEN)
    assert row is not None
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**row.values, name: value}), encoding="utf-8")
    made, _ = asked(QWEN, "--config", config, *H100, *NEWEST)
    assert made["verdict"] in ("fits", "too-close", "does-not-fit", "unknown")


# As a person reads it.


def shown(*words: str, **variables: str) -> Said:
    return run_doctor("fit", *words, env={"COLUMNS": "80", **variables})


def test_a_page_says_the_verdict_first_and_is_no_wider_than_80_columns() -> None:
    from doctor.report.lines import columns

    said = shown(QWEN, "--gpu", "h100", *NEWEST, LANG="C.UTF-8")
    first, *rest = said.out.splitlines()
    assert first.startswith(("✓", "!", "✗"))
    assert QWEN in first
    assert any("█" in line for line in rest)
    assert all(columns(line) <= 80 for line in rest if "vllm serve" not in line)
    assert "\x1b" not in said.out


def test_it_is_ascii_where_the_locale_is() -> None:
    said = shown(QWEN, "--gpu", "h100", *NEWEST, LANG="C", LC_ALL="C", PYTHONIOENCODING="ascii")
    assert said.out.isascii()
    assert "#" in said.out


def test_it_is_chinese_where_the_locale_is() -> None:
    from doctor.report.lines import columns

    said = shown(FLASH, "--gpu", "l4", *NEWEST, LANG="zh_CN.UTF-8")
    assert "放不下" in said.out.splitlines()[0]
    assert all(columns(line) <= 80 for line in said.out.splitlines() if "vllm serve" not in line)
    first = shown(FLASH, "--gpu", "l4", *NEWEST, LC_ALL="C.UTF-8", LANG="zh_CN.UTF-8")
    assert "it does not fit" in first.out  # LC_ALL comes first


def test_the_command_is_said_whole_with_what_to_change() -> None:
    words = (
        "--",
        "vllm",
        "serve",
        FLASH,
        "-tp",
        "1",
        "--port",
        "9000",
        "--max-model-len",
        "202752",
    )
    said = shown("--gpu", "l40s", "--gpus", "2", *NEWEST, *words)
    (line,) = (line.strip() for line in said.out.splitlines() if line.strip().startswith("vllm "))
    assert "--port 9000" in line
    assert line.count("-tp") + line.count("--tensor-parallel-size") == 1


# The machine's own GPUs.


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stand_ins.build(tmp_path_factory.mktemp("driver"))


def here(libraries: Path, *words: str, **settings: object) -> tuple[dict[str, Any], int]:
    said = run_doctor(
        "fit", *words, *NEWEST, *JSON, env=stand_ins.environment(libraries, **settings)
    )
    made = json.loads(said.out)
    must_fit(made, fit_schema)
    return made, said.code


def test_the_gpus_here_are_asked_and_what_others_hold(libraries: Path) -> None:
    made, code = here(libraries, QWEN, "-tp", "2", gpus=2, reserved_mib=480)
    assert (code, made["gpu"]["count"]) == (0, 2)
    assert made["gpu"]["total_bytes"] == (81559 - 480) << 20
    assert made["gpu"]["free_bytes"] is not None
    busy, code = here(libraries, QWEN, "-tp", "2", gpus=2, free_mib=60000)
    assert (code, busy["verdict"]) == (1, "does-not-fit")
    assert all(rank["others_bytes"] > 20 << 30 for rank in busy["per_gpu"])
    assert any("--gpu-memory-utilization" in flag for flag in busy["flags"])


def test_more_gpus_of_the_kind_that_is_here(libraries: Path) -> None:
    made, _ = here(libraries, QWEN, "--gpus", "4", "-tp", "4", gpus=1)
    assert made["gpu"]["count"] == 4
    assert len(made["per_gpu"]) == 4


def test_a_gpu_without_memory_of_its_own_has_the_machines(libraries: Path, tmp_path: Path) -> None:
    scenario = tmp_path / "scenario"
    scenario.write_text("* fail nvmlDeviceGetMemoryInfo 3\n", encoding="utf-8")
    made, code = here(libraries, QWEN, gpus=1, name="NVIDIA GB10", cc="12.1", scenario=scenario)
    assert code in (0, 1, 3)
    total = Path("/proc/meminfo").read_text(encoding="utf-8").split()[1]
    assert made["gpu"]["total_bytes"] == int(total) << 10


def test_a_gpu_that_is_named_is_judged_and_not_the_one_here(libraries: Path) -> None:
    made, _ = here(libraries, QWEN, *H100, gpus=1, memory_mib=8192, name="NVIDIA RTX 4000")
    assert made["gpu"]["name"] == "NVIDIA H100 80GB HBM3"
    assert made["gpu"]["free_bytes"] is None


def test_an_instance_of_mig_is_not_the_whole_gpu(libraries: Path) -> None:
    made, code = here(libraries, QWEN, "--max-model-len", "4096", gpus=1, mig=1)
    assert (code, made["verdict"]) == (3, "unknown")
    assert "MIG is on" in made["why"]
    assert made["kv"]["needed_bytes"] == 1 << 30
    named, _ = here(libraries, QWEN, *H100, gpus=1, mig=1)
    assert named["gpu"]["name"] == "NVIDIA H100 80GB HBM3"


def test_of_unlike_gpus_it_is_not_guessed_which_the_server_gets(
    libraries: Path, tmp_path: Path
) -> None:
    scenario = tmp_path / "scenario"
    scenario.write_text("0 name NVIDIA L4\n0 memory_mib 23034\n", encoding="utf-8")
    about = (QWEN, "--max-model-len", "4096")
    made, code = here(libraries, *about, gpus=2, scenario=scenario)
    assert (code, made["verdict"]) == (3, "unknown")
    assert "CUDA_DEVICE_ORDER" in made["why"]
    told, _ = here(libraries, *about, "--available-kv", "2GiB", gpus=2, scenario=scenario)
    assert told["verdict"] == "fits"


def test_what_others_hold_is_not_met_by_larger_gpus(libraries: Path, tmp_path: Path) -> None:
    env = stand_ins.environment(libraries, gpus=1, free_mib=11000)
    said = run_doctor("fit", QWEN, *NEWEST, env=env)
    assert said.code == 1
    assert "beside what others hold" in said.out
    assert "larger ones" not in said.out


# A snapshot.

TAPE = Path(__file__).parent.parent / "fixtures/tapes/cuda-home-unset.json"


def test_a_snapshot_is_judged_by_its_own_vllm_and_gpus() -> None:
    made, code = asked("--from", TAPE)
    assert (code, made["verdict"], made["rules"]) == (0, "fits", "vllm 0.22.0")
    assert made["gpu"]["name"] == "NVIDIA H100 80GB HBM3"
    other, _ = asked(QWEN, "--from", TAPE, "--gpu", "rtx-4090", *NEWEST)
    assert (other["rules"], other["verdict"]) == ("vllm 0.33.0", "does-not-fit")


def test_a_snapshot_has_no_processes() -> None:
    said = run_inside("fit", "--from", str(TAPE), "--pid", "1")
    assert said.code == 2
    assert "--from" in said.err


def test_the_schema_is_printed() -> None:
    assert run_inside("schema", "fit").report == fit_schema()


def test_a_crash_of_ours_is_an_answer_too(monkeypatch: pytest.MonkeyPatch) -> None:
    import doctor.fit.judge

    def crash(question: object) -> None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(doctor.fit.judge, "judge_fit", crash)
    made, code = asked(QWEN, *H100, *NEWEST)
    assert (code, made["verdict"]) == (3, "unknown")
    assert "please report it" in made["why"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_secret_of_the_command_is_shown(form: str) -> None:
    secret = "-".join(("not", "a", "real", "one"))
    words = (f"HF_TOKEN={secret}", "vllm", "serve", FLASH, "--api-key", secret)
    said = run_inside(
        "fit", "--gpu", "l40s", "--gpus", "2", *NEWEST, "--format", form, "--", *words
    )
    assert said.code == 1
    assert secret not in said.out + said.err


def _checkpoint(folder: Path, header: bytes) -> None:
    row = known_model(QWEN)
    assert row is not None
    (folder / "config.json").write_text(json.dumps(row.values), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(header)


@pytest.mark.parametrize(
    "header",
    [(2 << 30).to_bytes(8, "little") + b"{}", b"abc", (4).to_bytes(8, "little") + b"abcd"],
    ids=["2 GiB long", "short", "no JSON"],
)
def test_a_checkpoint_that_no_server_could_load_does_not_fit_by_its_config(
    header: bytes, tmp_path: Path
) -> None:
    _checkpoint(tmp_path, header)
    made, code = asked(tmp_path, "--gpu", "b200", *NEWEST)
    assert (code, made["verdict"]) == (3, "unknown")
    assert "model.safetensors" in made["why"]
    assert made["per_gpu"][0]["weights_bytes"] is None
    assert made["kv"]["needed_bytes"] == 10 << 30
    told, _ = asked(tmp_path, *NEWEST, "--available-kv", "12GiB")
    assert told["verdict"] == "fits"


def test_headers_that_lack_layers_are_no_small_model(tmp_path: Path) -> None:
    said = {"model.layers.0.x.weight": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}
    header = json.dumps(said).encode()
    _checkpoint(tmp_path, len(header).to_bytes(8, "little") + header + bytes(8))
    made, code = asked(tmp_path, "--gpu", "b200", *NEWEST)
    assert (code, made["verdict"]) == (3, "unknown")
    assert made["why"] == "the checkpoint's headers have no tensors of layer 1"


def test_without_a_gpu_what_a_model_needs_is_told() -> None:
    made, code = asked(QWEN, *NEWEST, "--max-model-len", "4096")
    named, _ = asked(QWEN, *H100, *NEWEST, "--max-model-len", "4096")
    assert (code, made["verdict"], made["flags"]) == (3, "unknown", [])
    assert "--gpu" in made["why"]
    for key in ("needed_bytes", "block_size", "max_model_len"):
        assert made["kv"][key] == named["kv"][key] > 0
    for key in ("weights_bytes", "kv_bytes_per_token"):
        assert made["per_gpu"][0][key] == named["per_gpu"][0][key] > 0
