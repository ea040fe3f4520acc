"""Figures of logs that public starts of vLLM printed, each with a model and a release."""

from __future__ import annotations

from typing import Any

import pytest

from doctor.consumers.known_models import known_model
from doctor.consumers.model_config import ConfigJson
from doctor.fit.defaults import settled
from doctor.fit.layers import kv_layers
from doctor.fit.options import memory_options
from doctor.fit.pool import Pool, pool
from doctor.fit.releases import release
from doctor.fit.sizes import GIB, NotKnown
from doctor.fit.verdict import GpuMemory
from doctor.fit.weights import weights_on
from doctor.profile import Profile

_QWEN_NEXT = {
    "architectures": ["Qwen3NextForCausalLM"],
    "model_type": "qwen3_next",
    "torch_dtype": "bfloat16",
    "num_hidden_layers": 48,
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "full_attention_interval": 4,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "max_position_embeddings": 262144,
    "vocab_size": 151936,
}
_MISTRAL_4 = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "model_type": "mistral4",
    "dtype": "bfloat16",
    "num_hidden_layers": 36,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "kv_lora_rank": 256,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 64,
    "v_head_dim": 128,
    "max_position_embeddings": 1048576,
    "vocab_size": 131072,
}
_NOT_SHIPPED = {
    "Qwen/Qwen3-Next-80B-A3B-Instruct": _QWEN_NEXT,
    "mistralai/Mistral-Small-4": _MISTRAL_4,
}
_GLM, _GEMMA = "zai-org/GLM-4.7-Flash", "nvidia/Gemma-4-31B-IT-NVFP4"


def config_of(model: str) -> ConfigJson:
    row = known_model(model)
    return ConfigJson(_NOT_SHIPPED[model] if row is None else row.values)


def made(model: str, version: str, tensor: int = 1, capability: int = 90, **options: Any) -> Pool:
    """The pool of a server of this release on GPUs of 140 GiB."""
    config, rules = config_of(model), release(version)
    asked = memory_options(Profile(tensor_parallel_size=tensor, options=options), options)
    gpu = GpuMemory("a GPU", 140 * GIB, capability=capability)
    layers = kv_layers(config, asked, rules, capability)
    return pool(layers, config, asked, rules, settled(config, asked, rules, gpu))


def mtp(tokens: int) -> dict[str, Any]:
    return {"speculative_config": {"method": "mtp", "num_speculative_tokens": tokens}}


@pytest.mark.parametrize(
    ("model", "version", "options", "token"),
    [
        (_GLM, "0.11.2", {}, 54144),
        (_GLM, "0.22.0", {}, 54144),
        (_GLM, "0.33.0", {}, 54144),
        ("zai-org/GLM-5.1", "0.23.0", {}, 100152),
        ("zai-org/GLM-5.1", "0.24.0", {}, 100152),
        ("zai-org/GLM-5.2", "0.23.0", {"capability": 100, "kv_cache_dtype": "fp8"}, 55224),
        ("zai-org/GLM-5.2", "0.24.0", {"capability": 100, "kv_cache_dtype": "fp8"}, 47700),
        ("deepseek-ai/DeepSeek-R1", "0.11.2", {}, 70272),
        ("Qwen/Qwen3-0.6B", "0.22.0", {}, 114688),
        ("Qwen/Qwen2.5-7B-Instruct", "0.22.0", {"tensor": 4}, 14336),
        ("Qwen/Qwen2.5-7B-Instruct", "0.22.0", {"tensor": 7}, 14336),
    ],
)
def test_bytes_of_a_token(model: str, version: str, options: dict[str, Any], token: int) -> None:
    assert made(model, version, **options).bytes_per_token == token


@pytest.mark.parametrize(
    ("model", "options", "block"),
    [
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", {}, 544),
        ("Qwen/Qwen3.5-35B-A3B", {}, 1056),
        ("Qwen/Qwen3.5-27B", {"kv_cache_dtype": "fp8"}, 1568),
        ("Qwen/Qwen3.5-27B", {"kv_cache_dtype": "fp8", **mtp(2)}, 1600),
        ("Qwen/Qwen3.5-27B", {"kv_cache_dtype": "fp8", **mtp(3)}, 1600),
        ("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-FP8", {}, 8320),
    ],
)
def test_blocks_of_models_that_also_keep_states(
    model: str, options: dict[str, Any], block: int
) -> None:
    assert made(model, "0.22.0", **options).block_size == block


def test_of_unlike_layers_the_smaller_ones_have_larger_blocks() -> None:
    found = made(_GEMMA, "0.22.0", kv_cache_dtype="bfloat16")
    assert sorted({paged.block for group in found.groups for paged in group}) == [16, 32]


@pytest.mark.parametrize(("version", "gib"), [("0.25.1", 45.79), ("0.26.0", 70.79)])
def test_a_window_keeps_all_tokens_in_flight(version: str, gib: float) -> None:
    found = made(_GEMMA, version, kv_cache_dtype="bfloat16", max_num_batched_tokens=32768)
    assert found.needed(262144) / GIB == pytest.approx(gib, abs=0.005)


def test_what_the_server_of_glm_printed() -> None:
    found = made(_GLM, "0.22.0", capability=80)
    assert found.tokens(round(15.03 * GIB), 32768) == 298048
    assert found.needed(32768) / GIB == pytest.approx(1.65, abs=0.005)
    assert found.longest(GIB, 32768) == 19824


def test_decode_context_parallelism_divides_the_positions_of_latent_attention() -> None:
    model, length = "moonshotai/Kimi-K2-Instruct", 131072
    one = made(model, "0.22.0", 8)
    eight = made(model, "0.22.0", 8, decode_context_parallel_size=8)
    available = one.needed(715072)
    assert abs(one.tokens(available, length) - 715072) < 128
    assert abs(eight.tokens(available, length) - 5721088) < 8 * 128


@pytest.mark.parametrize(("tensor", "gib"), [(1, 55.87), (2, 28.04), (4, 14.16)])
def test_weights_are_never_the_whole_divided_by_the_ranks(tensor: int, gib: float) -> None:
    options = memory_options(Profile(tensor_parallel_size=tensor), {})
    found = weights_on(config_of(_GLM), None, options, release("0.22.0"), 0)
    assert found.bytes <= gib * GIB <= found.high


_FP8: dict[str, Any] = {"kv_cache_dtype": "fp8"}
_PREFIXES: dict[str, Any] = {"enable_prefix_caching": True}
_ONE_PP: dict[str, Any] = {"pipeline_parallel_size": 2}


@pytest.mark.parametrize(
    ("source", "model", "version", "options", "length", "gib", "tokens"),
    [
        ("LMCache#1739", "Qwen/Qwen3-14B", "0.11.0", {}, 32768, 6.51, 42656),
        ("vllm#25350", "Qwen/Qwen3-30B-A3B-FP8", "0.10.2", _FP8, 100000, 10.55, 230528),
        (
            "club-3090#612",
            "nvidia/Qwen3.6-35B-A3B-NVFP4",
            "0.24.0",
            {**_FP8, **_PREFIXES, "max_num_batched_tokens": 8192, "max_num_seqs": 1},
            131072,
            5.98,
            567978,
        ),
        (
            "talos-argocd-proxmox#1995",
            "Qwen/Qwen3.5-27B",
            "0.27.1",
            {**_FP8, **_PREFIXES, "tensor": 2, "max_num_batched_tokens": 8192},
            131072,
            4.99,
            302921,
        ),
        (
            "file 67494338468",
            "nvidia/Qwen3.6-27B-NVFP4",
            "0.20.2",
            {**_FP8, **_PREFIXES, **mtp(2)},
            262144,
            59.54,
            1708404,
        ),
        (
            "file 54698501030",
            "deepseek-ai/DeepSeek-R1",
            "0.12.0",
            {"tensor": 8},
            8192,
            41.6,
            635648,
        ),
    ],
)
def test_tokens_that_servers_printed(
    source: str,
    model: str,
    version: str,
    options: dict[str, Any],
    length: int,
    gib: float,
    tokens: int,
) -> None:
    """`file N`: of a public repository, by its number in the index of code."""
    of = made(model, version, **options)
    low, high = (of.tokens(round((gib + odd) * GIB), length) for odd in (-0.005, 0.005))
    assert low <= tokens <= high, source


@pytest.mark.parametrize(
    ("source", "model", "version", "options", "length", "needed", "gib", "longest"),
    [
        (
            "kaito#2132",
            "mistralai/Mistral-Small-4",
            "0.22.0",
            {"tensor": 2},
            1048576,
            22.5,
            17.39,
            810208,
        ),
        (
            "recipes#653",
            "nvidia/MiniMax-M3-NVFP4",
            "0.25.1",
            {"tensor": 8, "kv_cache_dtype": "bfloat16"},
            1048576,
            44.25,
            8.42,
            199552,
        ),
        (
            "spark-vllm-docker#396",
            "MiniMaxAI/MiniMax-M2.7",
            "0.29.0",
            {"tensor": 2},
            196608,
            23.25,
            22.5,
            190272,
        ),
        ("vllm#25350", "Qwen/Qwen3-30B-A3B-FP8", "0.10.2", _FP8, 221000, 10.12, 5.59, 122080),
        ("vllm#34076", "Qwen/Qwen3-30B-A3B-FP8", "0.15.1", _ONE_PP, 262144, 24.0, 3.18, 34736),
        ("file 62151952140", "Qwen/Qwen3.5-27B", "0.27.1", {}, 131072, 8.18, 7.04, 112896),
        (
            "file 61070459083",
            "nvidia/Qwen3.6-27B-NVFP4",
            "0.25.1",
            {"kv_cache_dtype": "bfloat16", **_PREFIXES, **mtp(2)},
            262144,
            17.64,
            9.67,
            139200,
        ),
        (
            "file 19203168638",
            "Qwen/Qwen3-VL-2B-Instruct",
            "0.11.0",
            {},
            262144,
            28.0,
            13.69,
            128128,
        ),
    ],
)
def test_lengths_that_refusals_estimated(
    source: str,
    model: str,
    version: str,
    options: dict[str, Any],
    length: int,
    needed: float,
    gib: float,
    longest: int,
) -> None:
    of = made(model, version, **options)
    assert of.needed(length) / GIB == pytest.approx(needed, abs=0.0051), source
    low, high = (of.longest(round((gib + odd) * GIB), length) for odd in (-0.005, 0.005))
    assert low <= longest <= high, source


@pytest.mark.parametrize(
    ("architecture", "token"),
    [("Mistral3ForConditionalGeneration", 163840), ("MistralForCausalLM", None)],
)
def test_windows_of_mistral_that_nobody_tells(architecture: str, token: int | None) -> None:
    """Of Small 3.2 there is none; its class alone would have one of 4,096 tokens."""
    values = {"architectures": [architecture], "model_type": "mistral", "num_hidden_layers": 40}
    values |= {"hidden_size": 5120, "num_attention_heads": 32, "num_key_value_heads": 8}
    values |= {"head_dim": 128, "dtype": "bfloat16", "vocab_size": 131072}
    config, rules, options = ConfigJson(values), release("0.33.0"), memory_options(Profile(), {})
    if token is None:
        with pytest.raises(NotKnown):
            kv_layers(config, options, rules, 90)
    else:
        layers = kv_layers(config, options, rules, 90)
        assert sum(one.token_bytes for one in layers) == token
