"""Where the model's configuration is read: folders and caches as they lie on a disk."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from doctor.command import ServerCommand
from doctor.consumers import hub
from doctor.model import Missing
from doctor.probes.arguments import ServerArguments
from doctor.probes.configuration import ModelConfiguration, ReadFrom, model_configuration
from doctor.probes.environment import LaunchEnv
from doctor.probes.model import model_path
from doctor.profile import Profile, ServeRequest
from doctor.redact import redacted
from doctor.tape import OfAnotherModel, Recorder, Tape, load_tape
from doctor.target import Live, Target
from tests.test_model_config import BY_NAME

GIB = 1 << 30
REPOSITORY = "somebody/Some-Model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "fedcba9876543210fedcba9876543210fedcba98"
QWEN = BY_NAME["Qwen/Qwen3-0.6B"]


def found(
    home: Path,
    model: str = REPOSITORY,
    env: Mapping[str, str] | None = None,
    target: Target | None = None,
    **options: Any,
) -> ModelConfiguration:
    variables = {"HOME": str(home), **(env or {})}
    arguments = ServerArguments({"model": model, **options})
    launch = LaunchEnv(variables)
    return model_configuration(target or Live(variables), ServeRequest(), arguments, launch)


def written(path: Path, values: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return path


def cached(
    cache: Path,
    values: Any,
    repository: str = REPOSITORY,
    commit: str = COMMIT,
    ref: str | None = "main",
) -> Path:
    """A revision's folder in a cache: a link to a blob, as huggingface_hub makes it."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    blob = written(folder / "blobs" / f"{len(list(folder.glob('blobs/*')))}a", values)
    link = folder / "snapshots" / commit / "config.json"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(blob, link.parent))
    if ref:
        written(folder / "refs" / ref, commit)
    return link.parent


def default_cache(home: Path) -> Path:
    return home / ".cache/huggingface/hub"


# Where the cache is.


@pytest.mark.parametrize(
    ("env", "place"),
    [
        ({}, ".cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "{}/xdg"}, "xdg/huggingface/hub"),
        ({"HF_HOME": "{}/hf", "XDG_CACHE_HOME": "{}/xdg"}, "hf/hub"),
        ({"HF_HOME": "~/hf"}, "hf/hub"),
        ({"HF_HOME": "$HOME/a/${NAME}", "NAME": "b"}, "a/b/hub"),
        ({"HUGGINGFACE_HUB_CACHE": "{}/old", "HF_HOME": "{}/hf"}, "old"),
        ({"HF_HUB_CACHE": "{}/new", "HUGGINGFACE_HUB_CACHE": "{}/old"}, "new"),
    ],
)
def test_the_cache_is_where_the_hubs_client_looks(
    tmp_path: Path, env: dict[str, str], place: str
) -> None:
    variables = {name: value.replace("{}", str(tmp_path)) for name, value in env.items()}
    folder = cached(tmp_path / place, QWEN)
    one = found(tmp_path, env=variables)
    assert one.values == QWEN
    assert one.source is ReadFrom.CACHE
    assert str(one.place) == str(folder / "config.json")


def test_a_variable_that_is_not_set_stays_as_it_is_written() -> None:
    assert hub.cache({"HF_HOME": "/x/$NOT/${HERE}"}) == Path("/x/$NOT/${HERE}/hub")
    assert hub.cache({"HF_HUB_CACHE": "~other/x"}) == Path("~other/x")


# Revisions.


def test_each_revision_has_its_own_configuration(tmp_path: Path) -> None:
    cache = default_cache(tmp_path)
    cached(cache, {"model_type": "new"})
    cached(cache, {"model_type": "old"}, commit=OTHER, ref="v1.0")
    cached(cache, {"model_type": "request"}, commit="a" * 40, ref="refs/pr/7")
    assert found(tmp_path).values == {"model_type": "new"}
    assert found(tmp_path, revision="v1.0").values == {"model_type": "old"}
    assert found(tmp_path, revision=OTHER).values == {"model_type": "old"}
    assert found(tmp_path, revision="refs/pr/7").values == {"model_type": "request"}
    assert found(tmp_path, revision="v2.0").values == {}


def test_no_other_revision_is_taken_where_there_is_no_ref(tmp_path: Path) -> None:
    cached(default_cache(tmp_path), QWEN, ref=None)
    one = found(tmp_path)
    assert (one.values, one.source) == ({}, None)
    assert str(one.why).endswith(
        "has no config.json of main: it is not downloaded, or not to its end"
    )


@pytest.mark.parametrize("said", ["../../../x", "..", "", "a b", "/etc", "\x1b[31m", "x\n"])
def test_a_ref_that_names_no_commit_leads_nowhere(tmp_path: Path, said: str) -> None:
    cache = default_cache(tmp_path)
    cached(cache, QWEN)
    written(cache / "models--somebody--Some-Model/refs/main", said)
    assert found(tmp_path).values == {}


def test_a_download_that_has_not_ended_has_no_configuration(tmp_path: Path) -> None:
    folder = cached(default_cache(tmp_path), QWEN)
    blob = (folder / "config.json").resolve()
    blob.rename(blob.with_suffix(".incomplete"))
    one = found(tmp_path)
    assert (one.values, one.source) == ({}, None)
    assert "not to its end" in str(one.why)


def test_the_table_stands_in_for_a_model_that_is_not_downloaded(tmp_path: Path) -> None:
    one = found(tmp_path, "Qwen/Qwen3-32B")
    assert one.values == BY_NAME["Qwen/Qwen3-32B"]
    assert one.source is ReadFrom.TABLE
    assert "ai-dynamo/aiconfigurator@095f58a51 of 2026-08-21" in str(one.place)
    assert one.weights
    assert round(one.weights / GIB, 1) == 61.0


def test_what_is_cached_wins_over_the_table(tmp_path: Path) -> None:
    cached(default_cache(tmp_path), QWEN, "Qwen/Qwen3-32B")
    assert found(tmp_path, "Qwen/Qwen3-32B").values == QWEN


def test_the_table_knows_the_newest_revision_alone(tmp_path: Path) -> None:
    assert found(tmp_path, "Qwen/Qwen3-32B", revision="v1").values == {}


@pytest.mark.parametrize("name", ["qwen/qwen3-32b", "Qwen/Qwen3-32B/", "x/Qwen3-32B-AWQ"])
def test_a_derived_model_is_not_known(tmp_path: Path, name: str) -> None:
    assert found(tmp_path, name).values == {}


# Folders.


def test_a_folder_is_read(tmp_path: Path) -> None:
    written(tmp_path / "model/config.json", QWEN)
    one = found(tmp_path, str(tmp_path / "model"))
    assert (one.values, one.source) == (QWEN, ReadFrom.FOLDER)
    assert str(one.place) == str(tmp_path / "model/config.json")


def test_what_is_here_wins_over_the_repository_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cached(default_cache(tmp_path), QWEN, "Qwen/Qwen3-32B")
    written(tmp_path / "Qwen/Qwen3-32B/config.json", {"model_type": "mine"})
    assert found(tmp_path, "Qwen/Qwen3-32B").values == {"model_type": "mine"}
    (tmp_path / "Qwen/Qwen3-32B/config.json").unlink()
    one = found(tmp_path, "Qwen/Qwen3-32B")
    assert (one.values, str(one.why)) == ({}, "Qwen/Qwen3-32B/config.json is not there")


def test_the_configuration_may_be_another_repositorys(tmp_path: Path) -> None:
    written(tmp_path / "other/config.json", QWEN)
    one = found(tmp_path, "s3://bucket/model", hf_config_path=str(tmp_path / "other"))
    assert one.values == QWEN


def test_a_separate_quantisation_is_part_of_it(tmp_path: Path) -> None:
    written(tmp_path / "config.json", QWEN)
    apart = written(tmp_path / "hf_quant_config.json", {"quantization": {"quant_algo": "FP8"}})
    values = found(tmp_path, str(tmp_path)).values
    assert values == {**QWEN, "quantization_config": {"quantization": {"quant_algo": "FP8"}}}
    written(tmp_path / "config.json", {**QWEN, "quantization_config": {"quant_method": "x"}})
    assert found(tmp_path, str(tmp_path)).values["quantization_config"] == {"quant_method": "x"}
    written(tmp_path / "config.json", QWEN)
    apart.write_text("{")
    one = found(tmp_path, str(tmp_path))
    assert one.values == {}
    assert "hf_quant_config.json not valid JSON" in str(one.why)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("s3://bucket/model", "s3://bucket/model: addresses and GGUF files are not read"),
        ("gs://bucket/model", "gs://bucket/model: addresses and GGUF files are not read"),
        ("/x/model.GGUF", "/x/model.GGUF: addresses and GGUF files are not read"),
        ("a/b:Q4_K_M", "a/b:Q4_K_M: addresses and GGUF files are not read"),
        ("/not/here", "there is no folder /not/here"),
        ("a/b/c", "there is no folder a/b/c"),
        ("a--b", "there is no folder a--b"),
        ("\x1b[31mx", r"there is no folder \x1b[31mx"),
        ("x\0y", r"there is no folder x\x00y"),
    ],
)
def test_what_is_not_read_is_said(tmp_path: Path, name: str, why: str) -> None:
    one = found(tmp_path, name)
    assert (one.values, one.source, str(one.why)) == ({}, None, why)


@pytest.mark.parametrize("value", ["true", "True", "1"])
def test_what_modelscope_has_is_not_read(tmp_path: Path, value: str) -> None:
    cached(default_cache(tmp_path), QWEN, "Qwen/Qwen3-32B")
    one = found(tmp_path, "Qwen/Qwen3-32B", {"VLLM_USE_MODELSCOPE": value})
    assert str(one.why) == "what ModelScope has of Qwen/Qwen3-32B is not read"
    assert (one.values, one.weights) == ({}, None)
    written(tmp_path / "config.json", QWEN)
    assert found(tmp_path, str(tmp_path), {"VLLM_USE_MODELSCOPE": value}).values == QWEN


# Hostile files.


def test_of_a_file_that_fills_a_disk_nothing_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.write(b"{}")
        file.truncate(200 << 20)
    one = found(tmp_path, str(tmp_path))
    assert (one.values, str(one.why)) == ({}, f"{path} is larger than 8 MiB")
    assert one.source is ReadFrom.FOLDER


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON, or truncated: nested too deep"),
        ('{"a": ' * 50_000 + "1" + "}" * 50_000, "nested too deep"),
        ("[]", "is not a JSON object"),
        ("null", "is not a JSON object"),
        ('"\x1b[31m"', "not valid JSON"),
        ('{"a": ' + "9" * 10_000 + "}", "not valid JSON"),
        ("{" + ",".join(f'"{i}": []' for i in range(300_000)) + "}", "lists and tables"),
    ],
)
def test_of_what_is_no_configuration_nothing_is_known(tmp_path: Path, text: str, why: str) -> None:
    written(tmp_path / "config.json", text)
    one = found(tmp_path, str(tmp_path))
    assert one.values == {}
    assert one.weights is None
    assert why in str(one.why)
    assert "\n" not in str(one.why)
    assert str(one.why).isprintable()


def test_a_fifo_and_a_folder_of_its_name_hold_nothing_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    assert str(found(tmp_path, str(tmp_path)).why).endswith("config.json is not a file")
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    assert str(found(tmp_path, str(tmp_path)).why).endswith("config.json is not a file")


def test_mistrals_own_format_is_said_to_be_not_read(tmp_path: Path) -> None:
    written(tmp_path / "params.json", {"dim": 1})
    assert "params.json, of Mistral's format, is not read" in str(
        found(tmp_path, str(tmp_path)).why
    )


def test_the_code_of_a_repository_is_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    code = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\nclass C: pass\n"
    (tmp_path / "configuration_x.py").write_text(code)
    values = {**QWEN, "auto_map": {"AutoConfig": "configuration_x.C"}}
    written(tmp_path / "config.json", values)
    recorder = Recorder(Live({}))
    assert found(tmp_path, str(tmp_path), target=recorder).values == values
    assert not marker.exists()
    assert "import pathlib" not in json.dumps(recorder.recording("x", "y", "z"))


# Weights.


def shards(folder: Path, sizes: list[int], of: int | None = None) -> None:
    for i, size in enumerate(sizes, 1):
        path = folder / f"model-{i:05}-of-{of or len(sizes):05}.safetensors"
        with path.open("wb") as file:
            file.truncate(size)


OPAQUE = {"model_type": "x"}


def test_weights_are_what_the_index_adds_up(tmp_path: Path) -> None:
    folder = cached(default_cache(tmp_path), OPAQUE)
    index = {"metadata": {"total_size": 7 * GIB}, "weight_map": {}}
    written(folder / "model.safetensors.index.json", index)
    assert found(tmp_path).weights == 7 * GIB  # its files are on their way
    shards(folder, [GIB])
    assert found(tmp_path).weights == 7 * GIB


def test_weights_are_the_sizes_of_all_files(tmp_path: Path) -> None:
    written(tmp_path / "config.json", OPAQUE)
    shards(tmp_path, [GIB, GIB + 1])
    assert found(tmp_path, str(tmp_path)).weights == 2 * GIB + 1


def test_weights_of_which_a_part_is_missing_are_not_known(tmp_path: Path) -> None:
    written(tmp_path / "config.json", OPAQUE)
    shards(tmp_path, [GIB, GIB], of=3)
    assert found(tmp_path, str(tmp_path)).weights is None
    shards(tmp_path, [GIB] * 3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    (tmp_path / "model-00002-of-00003.safetensors").symlink_to(tmp_path / "nowhere")
    assert found(tmp_path, str(tmp_path)).weights is None


def test_the_one_file_is_all(tmp_path: Path) -> None:
    written(tmp_path / "config.json", OPAQUE)
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(3 * GIB)
    (tmp_path / "adapter_model.safetensors").touch()
    assert found(tmp_path, str(tmp_path)).weights == 3 * GIB


def test_weights_may_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    cached(default_cache(tmp_path), OPAQUE)
    other = tmp_path / "downloads/models--somebody--Some-Model"
    written(other / "refs/main", COMMIT)
    index = {"metadata": {"total_size": 7 * GIB}}
    written(other / "snapshots" / COMMIT / "model.safetensors.index.json", index)
    assert found(tmp_path, download_dir=str(tmp_path / "downloads")).weights == 7 * GIB


def test_layers_that_are_not_loaded_do_not_count(tmp_path: Path) -> None:
    written(tmp_path / "config.json", BY_NAME["zai-org/GLM-4.7-Flash"])
    index = {"metadata": {"total_size": 62_442_980_000}}  # one MTP layer more
    written(tmp_path / "model.safetensors.index.json", index)
    weights = found(tmp_path, str(tmp_path)).weights
    assert weights
    assert round(weights / GIB, 1) == 55.8


@pytest.mark.parametrize(
    ("options", "gib"),
    [
        ({}, 61.0),
        ({"dtype": "float32"}, 122.0),
        ({"quantization": "fp8"}, 32.0),
        ({"quantization": "x"}, None),
    ],
)
def test_what_is_loaded_otherwise_has_another_size(
    tmp_path: Path, options: dict[str, Any], gib: float | None
) -> None:
    written(tmp_path / "config.json", BY_NAME["Qwen/Qwen3-32B"])
    index = {"metadata": {"total_size": 65_524_246_528}}
    written(tmp_path / "model.safetensors.index.json", index)
    weights = found(tmp_path, str(tmp_path), **options).weights
    assert (weights and round(weights / GIB, 0)) == gib


@pytest.mark.parametrize("said", ['"7"', "-7", "7e9", "[]", "1" + "0" * 30])
def test_a_total_that_is_none_is_not_taken(tmp_path: Path, said: str) -> None:
    written(tmp_path / "config.json", OPAQUE)
    written(tmp_path / "model.safetensors.index.json", f'{{"metadata": {{"total_size": {said}}}}}')
    assert found(tmp_path, str(tmp_path)).weights is None


# Snapshots.


def recorded(home: Path, model: str) -> Tape:
    recorder = Recorder(Live({}))
    found(home, model, target=recorder)
    data = recorder.recording("vllm-doctor 0.6.0", "/x/python", "option")
    return Tape(load_tape(redacted(json.loads(json.dumps(data)))))


@pytest.mark.parametrize("model", BY_NAME)
def test_a_snapshot_says_the_same_of_its_model(tmp_path: Path, model: str) -> None:
    cached(default_cache(tmp_path), BY_NAME[model])
    tape = recorded(tmp_path, REPOSITORY)
    assert found(tmp_path, target=tape) == found(tmp_path)
    assert found(tmp_path).values == BY_NAME[model]


def test_a_snapshot_holds_no_more_than_is_read(tmp_path: Path) -> None:
    folder = cached(default_cache(tmp_path), QWEN)
    index = json.dumps({"metadata": {"total_size": GIB}, "weight_map": {"x" * 99: "y"}})
    written(folder / "model.safetensors.index.json", index + " " * (1 << 20))
    recorder = Recorder(Live({}))
    found(tmp_path, target=recorder)
    assert len(json.dumps(recorder.recording("x", "y", "z"))) < 10_000


def test_a_snapshot_of_another_model_says_so_or_takes_the_table(tmp_path: Path) -> None:
    tape = recorded(tmp_path, REPOSITORY)
    other = found(tmp_path, "a/b", target=tape)
    assert other.values == {}
    assert other.why == OfAnotherModel("a/b").reason
    assert found(tmp_path, "Qwen/Qwen3-32B", target=tape).source is ReadFrom.TABLE


def test_an_older_snapshot_holds_nothing_of_it_and_does_not_fail(tmp_path: Path) -> None:
    recorder = Recorder(Live({}))
    recorder.stat(Path(REPOSITORY))  # what doctors have asked since 0.2
    tape = Tape(load_tape(recorder.recording("vllm-doctor 0.5.0", "/x", "option")))
    assert str(found(tmp_path, target=tape).why) == (
        f"this snapshot was made without the configuration of {REPOSITORY}"
    )


def test_without_a_model_nothing_is_asked(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="no model was named"):
        found(tmp_path, "")


def test_the_profiles_model_is_looked_for(tmp_path: Path) -> None:
    request = ServeRequest(Profile(model="Qwen/Qwen3-32B"))
    env = LaunchEnv({"HOME": str(tmp_path)})
    one = model_configuration(Live({}), request, ServerArguments(), env)
    assert one.source is ReadFrom.TABLE


def test_a_relative_name_is_of_the_folder_that_the_command_runs_in(tmp_path: Path) -> None:
    folder = written(tmp_path / "work/models/mine/config.json", {"model_type": "qwen3"}).parent
    command = ServerCommand(("vllm", "serve", "models/mine"), ("models/mine",))
    elsewhere = ServeRequest(command=dataclasses.replace(command, folder=tmp_path / "work"))
    arguments, launch = (
        ServerArguments({"model": "models/mine"}),
        LaunchEnv({"HOME": str(tmp_path)}),
    )
    made = model_configuration(Live({}), elsewhere, arguments, launch)
    assert (made.source, str(made.place)) == (ReadFrom.FOLDER, str(folder / "config.json"))
    path = model_path(Live({}), Profile("models/mine"), elsewhere)
    assert (path.path, path.config) == (folder, True)
    here = model_configuration(Live({}), ServeRequest(command=command), arguments, launch)
    assert here.source is None
