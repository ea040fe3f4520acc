"""The serve profile is typed and validated: whatever does not fit is named by its key."""

from __future__ import annotations

from pathlib import Path

import pytest

from doctor import profile as profiles
from doctor.errors import UsageError
from doctor.profile import DEFAULT_PROFILE, ModelNeeds, Profile


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("tensor_paralel_size=1", "tensor_paralel_size"),
        ("needs.nonsense=1", "needs.nonsense"),
        ("model.name=x", "model.name"),
        ("port.number=1", "port.number"),
        ("port", "port"),
        ("=1", "unknown key"),
        ("port=abc", "port"),
        ("port=", "port"),
        ("port=0", "port"),
        ("port=70000", "port"),
        ("port=8000.5", "port"),
        ("tensor_parallel_size=two", "tensor_parallel_size"),
        ("tensor_parallel_size=0", "tensor_parallel_size"),
        ("gpu_memory_utilization=90", "gpu_memory_utilization"),
        ("gpu_memory_utilization=nan", "gpu_memory_utilization"),
        ("gpu_memory_utilization=", "gpu_memory_utilization"),
        ("max_model_len=-1", "max_model_len"),
        ("max_model_len=32k", "max_model_len"),
        ("device=tpu", "device"),
        ("gpus=maybe", "gpus"),
        ("archs=nine", "archs"),
        ("archs=9.x", "archs"),
        ("archs=sm_90", "archs"),
        ("enable_auto_tool_choice=yes", "enable_auto_tool_choice"),
        ("needs=1", "needs"),
        ("env=1", "env"),
        ("needs.weights_gib=heavy", "needs.weights_gib"),
        ("needs.vllm=not a version", "needs.vllm"),
        ("needs.transformers=>=five", "needs.transformers"),
        ("needs.vllm=1..2", "needs.vllm"),
        ("needs.vllm=>=", "needs.vllm"),
        ("needs.vllm=0.22.0; echo", "needs.vllm"),
        ("needs.vllm=>=0.22 --index-url x", "needs.vllm"),
        ("needs.attention_heads=-3", "needs.attention_heads"),
        ("needs.attention_heads=0", "needs.attention_heads"),
        ("needs.attention_heads=" + "9" * 5000, "needs.attention_heads"),
        ("needs.moe_intermediate_size=-1", "needs.moe_intermediate_size"),
        ("needs.weights_gib=inf", "needs.weights_gib"),
        ("needs.weights_gib=nan", "needs.weights_gib"),
        ("needs.weights_gib=" + "9" * 400, "needs.weights_gib"),
        ("needs.kv_bytes_per_token=0", "needs.kv_bytes_per_token"),
        ("gpu_memory_utilization=inf", "gpu_memory_utilization"),
        ("tensor_parallel_size=99999999999", "tensor_parallel_size"),
        ("tensor_parallel_size=²", "tensor_parallel_size"),
        ("max_model_len=３２", "max_model_len"),
        ("port=８０００", "port"),
        ("archs=9.²", "archs"),
        ("archs=９.０", "archs"),
        ("archs=٩.٠", "archs"),
        ("archs=9." + "0" * 5000, "archs"),
    ],
)
def test_a_set_that_does_not_fit_names_its_key(value: str, key: str) -> None:
    with pytest.raises(UsageError) as error:
        profiles.load_profile(DEFAULT_PROFILE, [value])
    assert str(error.value).startswith("--set ")
    assert key in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model = 'm'\ntensor_paralel_size = 1", "tensor_paralel_size"),
        ("model = 'm'\n[needs]\nnonsense = 1", "needs.nonsense"),
        ("model = ''", "model: is empty"),
        ("[needs]\nattention_heads = 3", "needs"),
        ("model = 'm'\n[needs]\nweights_gib = " + "9" * 400, "weights_gib"),
        ("model = 'm'\n[needs]\nattention_heads = 0x" + "f" * 5000, "attention_heads"),
        ("model = 1", "model: expected text, got 1"),
        ("model = 'm'\nport = '8000'", "port: expected an integer"),
        ("model = 'm'\nport = true", "port: expected an integer"),
        ("model = 'm'\nport = 0", "port: 0 is not between 1 and 65535"),
        ("model = 'm'\ngpu_memory_utilization = nan", "gpu_memory_utilization"),
        ("model = 'm'\nenv = ['A=1']", "env: expected a table"),
        ("model = 'm'\n[env]\nA = 1", "env.A: expected text"),
        ("model = 'm'\narchs = '9.0'", "archs: expected a list"),
        ("model = 'm'\nport = 2026-01-01", "port: expected an integer"),
        ("model = ", "Invalid value"),
        ("\udcff", ""),
        ("a = " + "[" * 20_000, ""),
    ],
    ids=lambda t: ascii(t)[:24],
)
def test_a_file_that_does_not_fit_is_named_with_its_key(
    tmp_path: Path, text: str, words: str
) -> None:
    file = tmp_path / "profile.toml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError) as error:
        profiles.load_profile(str(file))
    assert str(error.value).startswith(f"--profile {file}: ")
    assert words in str(error.value)


def test_values_that_fit_are_put_in() -> None:
    made = profiles.load_profile(
        DEFAULT_PROFILE,
        [
            "port=8100",
            "device=cpu",
            "archs=8.0, 9.0",
            "max_model_len=",
            "env.A=b=c",
            "env.X.Y=1",
            "needs.weights_gib=7",
            "enable_auto_tool_choice=false",
        ],
    )
    assert (made.port, made.device, made.archs) == (8100, "cpu", ("8.0", "9.0"))
    assert made.max_model_len is None
    assert made.env_asked == {"A": "b=c", "X.Y": "1"}
    assert made.env == {"HF_ENDPOINT": "https://hf-mirror.com"}
    assert made.needs.weights_gib == 7
    assert made.enable_auto_tool_choice is False


@pytest.mark.parametrize(
    ("said", "asks"),
    [
        ("0.22.0", ">=0.22.0"),
        ("0.22.0+cu129", ">=0.22.0"),
        ("0.34.0rc1", ">=0.34.0rc1"),
        ("==0.22.0", "==0.22.0"),
        (">=0.22,<0.33", ">=0.22,<0.33"),
        ("~=0.22.0", "~=0.22.0"),
        ("", ""),
    ],
)
def test_a_bare_version_of_vllm_is_the_oldest_that_will_do(said: str, asks: str) -> None:
    assert (
        profiles.load_profile(DEFAULT_PROFILE, [f"needs.vllm={said}"]).needs.vllm_specifiers == asks
    )


def test_another_model_is_not_taken_for_the_profiles_own() -> None:
    """What a profile says of the size and the class of its model is not true of another one."""
    made = profiles.load_profile(DEFAULT_PROFILE, ["model=Qwen/Qwen3-8B", "needs.weights_gib=16.4"])
    assert made.needs == ModelNeeds(weights_gib=16.4)
    assert made.served_model_name is None
    assert (made.reasoning_parser, made.tool_call_parser) == (None, None)
    assert not made.enable_auto_tool_choice
    assert (made.tensor_parallel_size, made.max_model_len) == (1, None)


def test_another_model_is_served_in_the_same_place() -> None:
    base, made = (
        profiles.load_profile(DEFAULT_PROFILE),
        profiles.load_profile(DEFAULT_PROFILE, ["model=Qwen/Qwen3-8B"]),
    )
    place = ("host", "port", "mirror", "env", "device", "gpus", "archs", "gpu_memory_utilization")
    assert [getattr(made, n) for n in place] == [getattr(base, n) for n in place]


def test_what_is_set_beside_another_model_is_kept() -> None:
    sets = ["tensor_parallel_size=4", "model=Qwen/Qwen3-8B", "reasoning_parser=qwen3"]
    made = profiles.load_profile(DEFAULT_PROFILE, sets)
    assert (made.tensor_parallel_size, made.reasoning_parser) == (4, "qwen3")
    left = profiles.left_out(profiles.load_profile(DEFAULT_PROFILE), made)
    assert "tool_call_parser" in left
    assert not {"tensor_parallel_size", "reasoning_parser"} & set(left)


def test_a_default_that_is_set_beside_another_model_is_not_told_as_left_out() -> None:
    base = profiles.load_profile(DEFAULT_PROFILE)
    sets = ["model=Qwen/Qwen3-8B", "tensor_parallel_size=1"]
    made = profiles.with_settings(base, sets)
    assert "tensor_parallel_size" in profiles.left_out(base, made)
    assert "tensor_parallel_size" not in profiles.left_out(base, made, sets)


def test_the_same_model_named_again_changes_nothing() -> None:
    base = profiles.load_profile(DEFAULT_PROFILE)
    made = profiles.load_profile(DEFAULT_PROFILE, [f"model={base.model}"])
    assert made == base
    assert not profiles.left_out(base, made)


def test_a_profile_without_a_model_is_one_of_the_place_alone(tmp_path: Path) -> None:
    file = tmp_path / "place.toml"
    file.write_text("port = 8100\n")
    assert profiles.load_profile(str(file)).model is None
    made = profiles.load_profile(DEFAULT_PROFILE, ["model="])
    assert (made.model, made.needs) == (None, ModelNeeds())


@pytest.mark.parametrize("sets", [["needs.attention_heads=32", "model=m"], ["model=m"]])
def test_a_model_may_be_put_into_a_profile_that_has_none(tmp_path: Path, sets: list[str]) -> None:
    file = tmp_path / "place.toml"
    file.write_text("port = 8100\n")
    assert profiles.load_profile(str(file), sets).model == "m"


def test_the_order_of_the_sets_does_not_matter() -> None:
    sets = ["needs.weights_gib=16.4", "model=Qwen/Qwen3-8B", "served_model_name=q"]
    assert profiles.load_profile(DEFAULT_PROFILE, sets) == profiles.load_profile(
        DEFAULT_PROFILE, sets[::-1]
    )


def test_the_default_profile_is_the_one_that_is_documented() -> None:
    made = profiles.load_profile(DEFAULT_PROFILE)
    assert made.model == "zai-org/GLM-4.7-Flash"
    assert (made.served_model_name, made.port) == ("glm-4.7-flash", 8099)
    assert made.host == "0.0.0.0"  # noqa: S104 - a server is meant to be reached
    assert (made.tensor_parallel_size, made.max_model_len) == (2, 32768)
    assert made.gpu_memory_utilization == 0.9
    assert (made.reasoning_parser, made.tool_call_parser) == ("glm45", "glm47")
    assert made.enable_auto_tool_choice
    assert (made.device, made.gpus) == ("cuda", "here")
    assert made.needs.model_type == "glm4_moe_lite"


@pytest.mark.parametrize("name", profiles.names())
def test_every_built_in_profile_loads(name: str) -> None:
    assert isinstance(profiles.load_profile(name), Profile)


@pytest.mark.parametrize("name", ["", "A B", "1A", "A-B", "Ä"])
def test_what_is_no_name_of_a_variable_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="not the name of a variable"):
        profiles.load_profile(DEFAULT_PROFILE, (f"env.{name}=x",))
