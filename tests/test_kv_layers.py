"""What each layer keeps of each token: numbers that vLLM printed, both sides of each change between
releases, and values that nobody should have written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doctor.consumers.model_config import ConfigJson
from doctor.consumers.shares import Layout
from doctor.fit.kv import Keeps, KvLayer, stage_sizes
from doctor.fit.layers import decoder_layers, kv_layers
from doctor.fit.options import MemoryOptions
from doctor.fit.releases import release
from doctor.fit.sizes import NotKnown
from tests.real_stack.kv_models import KINDS
from tests.tapes import FIXTURES

GLM_FLASH, QWEN = "zai-org__GLM-4.7-Flash", "Qwen__Qwen3-32B"


def real(name: str, **more: Any) -> dict[str, Any]:
    read = json.loads((FIXTURES / "models" / f"{name}.json").read_text(encoding="utf-8"))
    return {**read.get("config", read), **more}


def layers(
    values: Mapping[str, Any],
    version: str = "0.33.0",
    capability: int | None = 90,
    tensor: int = 1,
    **options: Any,
) -> tuple[KvLayer, ...]:
    asked = MemoryOptions(layout=Layout(tensor=tensor), **options)
    return kv_layers(ConfigJson(values), asked, release(version), capability)


def token(found: tuple[KvLayer, ...]) -> float:
    return sum(one.token_bytes for one in found)


MTP = {"method": "mtp", "num_speculative_tokens": 2}


@pytest.mark.parametrize(
    ("name", "options", "bytes_"),
    [
        (GLM_FLASH, {}, 54144),
        (GLM_FLASH, {"tensor": 8}, 54144),  # latent attention is whole on every rank
        (QWEN, {}, 262144),
        (QWEN, {"tensor": 2}, 131072),
        (QWEN, {"tensor": 16}, 32768),  # 8 KV heads: copies
        (QWEN, {"kv_cache_dtype": "fp8"}, 131072),
        ("zai-org__GLM-5.1", {}, 78 * (1152 + 132)),
        ("zai-org__GLM-5.1", {"kv_cache_dtype": "fp8", "capability": 100}, 78 * (576 + 132)),
        ("zai-org__GLM-5.1", {"kv_cache_dtype": "fp8"}, 78 * (656 + 132)),
        ("zai-org__GLM-5.1", {"capability": 120}, 78 * (656 + 132)),
    ],
)
def test_bytes_of_a_token_as_logs_have_them(
    name: str, options: dict[str, Any], bytes_: int
) -> None:
    assert token(layers(real(name), **options)) == bytes_


def test_layers_that_take_over_the_choice_of_another_one_have_no_indexer_from_0_24_on() -> None:
    values = real("zai-org__GLM-5.1", index_topk_freq=4, index_skip_topk_offset=3)
    found = {
        version: sum(one.token_bytes == 132 for one in layers(values, version))
        for version in ("0.23.0", "0.24.0")
    }
    assert found == {"0.23.0": 78, "0.24.0": 21}


def test_an_indexer_pattern_counts_for_the_decoder_and_never_for_mtp() -> None:
    values = real("zai-org__GLM-5.1", index_topk_pattern="FS" * 39, num_nextn_predict_layers=1)
    found = layers(values, speculative=MTP)
    assert sum(one.token_bytes == 132 for one in found) == 40
    assert [one.layer for one in found if one.draft] == [78, 78]


def test_cohere_sees_one_token_more_from_0_29_on() -> None:
    found = {v: layers(KINDS["cohere2"], v)[0].window for v in ("0.28.0", "0.29.0")}
    assert found == {"0.28.0": 1024, "0.29.0": 1025}


@pytest.mark.parametrize("kind", ["bamba", "minimax"])
def test_kinds_that_vllm_dropped_in_0_24(kind: str) -> None:
    assert layers(KINDS[kind], "0.23.0")
    with pytest.raises(NotKnown, match=r"since 0\.24"):
        layers(KINDS[kind], "0.24.0")


def test_the_state_of_nemotron_h_is_float32_from_0_20_on() -> None:
    name = "nvidia__NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"
    values = {k: v for k, v in real(name).items() if k != "mamba_ssm_cache_dtype"}
    found = [layers(values, version)[0].state_bytes for version in ("0.19.0", "0.20.0")]
    assert found[1] - found[0] == 64 * 64 * 128 * 2


def test_drafted_tokens_are_rows_of_a_state() -> None:
    values = real("Qwen__Qwen3.5-35B-A3B")
    plain, drafting = (layers(values, speculative=said) for said in ({}, MTP))
    states = [one.state_bytes for one in plain if one.keeps is Keeps.STATE]
    more = [one.state_bytes for one in drafting if one.keeps is Keeps.STATE]
    assert {b - a for a, b in zip(states, more, strict=True)} == {2 * 8192 * 2}
    assert [one.layer for one in drafting if one.draft] == [40]


def test_windows_chunks_and_shared_layers() -> None:
    gemma = layers(KINDS["gemma4_text"])
    assert [one.window for one in gemma] == [512] * 5 + [None] * 3
    assert [one.keeps for one in gemma[-2:]] == [Keeps.NOTHING] * 2
    assert gemma[5].token_bytes == 2 * 2 * 512 * 2  # two heads of 512, key and value both stored
    llama = layers(real("RedHatAI__Llama-4-Scout-17B-16E-Instruct-FP8-dynamic"))
    assert [one.keeps for one in llama[:4]] == [Keeps.CHUNKED] * 3 + [Keeps.FULL]
    assert {one.window for one in llama[:3]} == {8192}


def test_what_has_no_window_after_all() -> None:
    switched = layers(KINDS["gemma2"], given={"disable_sliding_window": True})
    assert {one.keeps for one in switched} == {Keeps.FULL}
    assert {one.keeps for one in layers({**KINDS["phi3"], "sliding_window": None})} == {Keeps.FULL}


def test_a_checkpoint_says_the_type_of_its_cache() -> None:
    scheme = layers(KINDS["qwen3 of compressed-tensors"])
    assert token(scheme) * 2 == token(
        layers(KINDS["qwen3 of compressed-tensors"], kv_cache_dtype="bfloat16")
    )
    modelopt = {"quant_method": "modelopt", "kv_cache_quant_algo": "FP8"}
    assert token(layers(real(QWEN, quantization_config=modelopt))) == 131072


@pytest.mark.parametrize(
    ("name", "head"), [("int8_per_token_head", 128 + 4), ("nvfp4", 64 + 8), ("fp8_e5m2", 128)]
)
def test_types_with_scales(name: str, head: int) -> None:
    assert token(layers(real(QWEN), kv_cache_dtype=name)) == 64 * 8 * 2 * head


@pytest.mark.parametrize(
    ("values", "options"),
    [
        (real("deepseek-ai__DeepSeek-V4-Flash"), {}),
        (real(QWEN, model_type="something_new"), {}),
        (real(QWEN), {"kv_cache_dtype": "turboquant_k8v4"}),
        (real(QWEN), {"kv_cache_dtype": "fp8", "given": {"kv_cache_dtype_skip_layers": ["0"]}}),
        (real(QWEN), {"speculative": {"method": "eagle3", "model": "x/y"}}),
        (real(QWEN), {"speculative": MTP}),
        (real(GLM_FLASH), {"speculative": {"method": "mtp"}}),
        (real("zai-org__GLM-5.1"), {"kv_cache_dtype": "fp8", "capability": None}),
        (real("zai-org__GLM-5.1"), {"kv_cache_dtype": "fp8_e4m3", "version": "0.29.0"}),
        (real("zai-org__GLM-5.1"), {"capability": 120, "version": "0.23.0"}),
        (real("zai-org__GLM-5.1"), {"capability": 89}),
        (KINDS["mamba2"], {"tensor": 3}),
        (KINDS["granitemoehybrid"], {"speculative": {"method": "suffix", **MTP}}),
        (KINDS["granitemoehybrid"], {"given": {"use_replayssm": True}}),
        (KINDS["granitemoehybrid"], {"given": {"mamba_ssm_cache_dtype": "fp8"}}),
        ({**KINDS["mistral with a window"], "layer_types": ["chunked_attention"] * 6}, {}),
        ({k: v for k, v in KINDS["mistral with a window"].items() if k != "sliding_window"}, {}),
        (real(QWEN, use_sliding_window=True, sliding_window=1024), {}),
        (real(QWEN, dtype="float8"), {"dtype": "float8"}),
        ({}, {}),
    ],
)
def test_what_is_not_known_is_said(values: dict[str, Any], options: dict[str, Any]) -> None:
    with pytest.raises(NotKnown):
        layers(values, **options)


def test_guessing_from_the_text_needs_no_layers() -> None:
    ngram = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}
    assert layers(real(QWEN), speculative=ngram) == layers(real(QWEN))


def test_encoders_keep_nothing() -> None:
    assert {one.keeps for one in layers(KINDS["bert"])} == {Keeps.NOTHING}


def test_whisper_keeps_what_its_encoder_made() -> None:
    found = layers(KINDS["whisper"])
    assert [one.keeps for one in found[:2]] == [Keeps.FULL, Keeps.CROSS]
    assert decoder_layers(ConfigJson(KINDS["whisper"])) == 4


def test_stages_before_the_last_one_have_the_remainder() -> None:
    assert stage_sizes(47, 4) == (12, 12, 12, 11)
    assert stage_sizes(61, 8) == (7, 7, 8, 8, 8, 8, 8, 7)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 1 << 70),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.one_of(st.integers(-2, 9), st.text(max_size=3)), max_size=5),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@settings(deadline=None)
@given(st.data())
def test_odd_values_make_known_layers_or_none(data: st.DataObject) -> None:
    values = dict(KINDS[data.draw(st.sampled_from(sorted(KINDS)))])
    for key in data.draw(st.lists(st.sampled_from(sorted(values)), min_size=1, max_size=3)):
        values[key] = data.draw(ODD)
    try:
        found = layers(values)
    except NotKnown:
        return
    assert all(
        one.token_bytes > 0 or one.state_bytes > 0 or one.keeps is Keeps.NOTHING for one in found
    )
    assert len(found) < 9000
