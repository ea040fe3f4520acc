"""What a config.json says, as vLLM reads it: real models, and what nobody should write."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from doctor.consumers.known_models import TABLE, known_model, with_nulls
from doctor.consumers.model_config import (
    UNSCALED,
    ConfigJson,
    Quantization,
    needs_of,
)
from doctor.profile import ModelNeeds
from doctor.shipped import rules_folder
from doctor.toml import load_section, load_toml
from tests.models_table import essentials, section, source_of

MODELS = Path(__file__).parent.parent / "fixtures" / "models"
REAL = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(MODELS.glob("*.json"))]
BY_NAME = {one["model"]: one["config"] for one in REAL}
# _get_and_verify_max_len of each.
NOT_SCALED = {
    "0.22.0": UNSCALED,
    "0.33.0": (*UNSCALED, "yarn", "deepseek_yarn", "deepseek_llama_scaling"),
}
# What a class of the installed software says, whatever the file does.
BY_CLASS = {("moonshotai/Kimi-K2.5", "0.33.0", "text_model_type"): "deepseek_v3"}


def read(config: ConfigJson, version: str) -> dict[str, Any]:
    length = config.length(NOT_SCALED[version])
    return {
        "architectures": [*config.architectures],
        "model_type": config.model_type,
        "text_model_type": config.text_model_type,
        "hidden_size": config.hidden_size,
        "layers": config.layers,
        "attention_heads": config.attention_heads,
        "head_size": config.head_size,
        "vocabulary": config.vocabulary,
        "key_value_heads": config.key_value_heads,
        "experts": config.experts,
        "mla": config.mla,
        "length": length and length.tokens,
        "quant": config.quantization and config.quantization.method,
        "dtype": config.dtype,
    }


JUDGED = [
    pytest.param(one, version, id=f"{one['model']} {version}")
    for one in REAL
    for version, said in one["vllm"].items()
    if said
]


@pytest.mark.parametrize(("one", "version"), JUDGED)
def test_a_real_model_is_read_as_vllm_reads_it(one: dict[str, Any], version: str) -> None:
    """tests/real_stack/test_model_config.py asks vLLM itself again."""
    mine, theirs = read(ConfigJson(one["config"]), version), dict(one["vllm"][version])
    for (model, release, name), value in BY_CLASS.items():
        if (model, release) == (one["model"], version):
            assert theirs.pop(name) == value
            del mine[name]
    if mine["dtype"] is None:  # vLLM asks the weights, and the folder has none
        assert theirs.pop("dtype") == "float32"
        del mine["dtype"]
    assert mine == theirs


def test_models_of_every_kind_are_among_them() -> None:
    configs = [ConfigJson(config) for config in BY_NAME.values()]
    assert len(configs) >= 20
    assert all(one["source"] for one in REAL)
    assert any(c.mla for c in configs)
    assert any(c.experts for c in configs)
    assert any(c.vision_heads for c in configs)
    assert any(c.quantization for c in configs)
    assert any(c.pooling for c in configs)
    assert any(c.count("full_attention_interval") for c in configs)


# Wrong and missing values.


@pytest.mark.parametrize("value", ["32", 32.0, True, None, [32], {"": 32}, 0, -32, 1 << 70, "x"])
def test_a_count_of_another_type_is_not_known(value: Any) -> None:
    config = ConfigJson(
        {
            "num_attention_heads": value,
            "num_key_value_heads": value,
            "hidden_size": value,
            "num_hidden_layers": value,
            "vocab_size": value,
            "max_position_embeddings": value,
            "vision_config": {"num_heads": value},
        }
    )
    for name in ("attention_heads", "key_value_heads", "hidden_size", "layers", "vocabulary"):
        assert getattr(config, name) is None
    assert config.vision_heads is None
    assert config.length() is None
    assert config.head_size is None


ODD = ["x", 1, None, True, [], [[]], {}, {"x": {}}, [None], "y" * 1000, -1, 1e300, float("nan")]
KEYS = sorted({key for config in BY_NAME.values() for key in config} | {"thinker_config", "x"})


@pytest.mark.parametrize("odd", ODD, ids=lambda value: repr(value)[:20])
def test_no_value_of_any_key_is_more_than_can_be_borne(odd: Any) -> None:
    """Each key of the real models replaced in turn."""
    for config in (*BY_NAME.values(), {}):
        for key in (*config, "thinker_config", "text_config"):
            made = ConfigJson({**config, key: odd})
            read(made, "0.22.0")
            assert made.auto_map is not None
            assert made.pooling in (None, True, False)
            needs_of(Found({**config, key: odd}))


@dataclass
class Found:
    values: dict[str, Any]
    weights: int | None = None


def test_what_is_left_out_is_not_made_up() -> None:
    config = ConfigJson({"model_type": "mistral", "num_attention_heads": 32, "hidden_size": 4096})
    assert config.key_value_heads is None  # 8 in transformers' class
    assert config.head_size == 128
    assert ConfigJson({"model_type": "qwen3", "num_attention_heads": 2}).head_size is None
    llama = ConfigJson({"model_type": "llama", "num_attention_heads": 32})
    assert llama.key_value_heads == 32
    assert ConfigJson({}).quantization is None
    assert ConfigJson({}).architectures == ()
    assert needs_of(Found({})) == ModelNeeds()


@pytest.mark.parametrize(
    ("values", "heads"),
    [
        ({"model_type": "falcon", "n_head": 71, "multi_query": True}, 1),
        (
            {
                "model_type": "falcon",
                "num_attention_heads": 128,
                "n_head_kv": 8,
                "multi_query": True,
                "new_decoder_architecture": True,
            },
            8,
        ),
        ({"model_type": "mpt", "n_heads": 32, "attn_config": {"kv_n_heads": 4}}, 4),
        ({"model_type": "dbrx", "n_heads": 48, "attn_config": {"x": 1}}, 48),
        ({"model_type": "chatglm", "num_attention_heads": 32, "multi_query_group_num": 2}, 2),
        ({"model_type": "step3p5", "num_attention_heads": 64, "num_attention_groups": 8}, 8),
        ({"model_type": "gemma", "num_attention_heads": 16, "num_key_value_heads": None}, 16),
        ({"model_type": "gpt2", "n_head": 12}, 12),
        ({"model_type": "mamba"}, None),
    ],
)
def test_key_value_heads_have_many_names(values: dict[str, Any], heads: int | None) -> None:
    assert ConfigJson(values).key_value_heads == heads


@pytest.mark.parametrize(
    "parts",
    [
        {"text_config": {"num_attention_heads": 7}},
        {"llm_config": {"num_attention_heads": 7}},
        {"language_config": {"num_attention_heads": 7}},
        {"thinker_config": {"text_config": {"num_attention_heads": 7}}},
        {"text_config": None, "num_attention_heads": 7},
        {"text_config": "x", "num_attention_heads": 7},
    ],
)
def test_the_part_about_text_is_found(parts: dict[str, Any]) -> None:
    assert ConfigJson(parts).attention_heads == 7


def test_of_two_parts_about_text_neither_is_taken() -> None:
    both = {"text_config": {"num_attention_heads": 7}, "decoder": {"num_attention_heads": 8}}
    assert ConfigJson(both).attention_heads is None


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    ("more", "version", "tokens", "key"),
    [
        ({}, "0.22.0", 40960, "max_position_embeddings"),
        ({"seq_length": 2048}, "0.22.0", 2048, "seq_length"),
        ({"model_max_length": 131072}, "0.22.0", 131072, "model_max_length"),
        ({"rope_scaling": YARN}, "0.22.0", 131072, "max_position_embeddings"),
        ({"rope_scaling": YARN}, "0.33.0", 40960, "max_position_embeddings"),
        ({"rope_parameters": YARN}, "0.22.0", 131072, "max_position_embeddings"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "0.33.0",
            81920,
            "max_position_embeddings",
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "0.22.0",
            40960,
            "max_position_embeddings",
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 8.0}, "model_type": "gemma3"},
            "0.22.0",
            40960,
            "max_position_embeddings",
        ),
        (
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 2},
                    "sliding_attention": {"rope_type": "default"},
                }
            },
            "0.22.0",
            81920,
            "max_position_embeddings",
        ),
    ],
)
def test_how_long_a_request_may_be(
    more: dict[str, Any], version: str, tokens: int, key: str
) -> None:
    found = ConfigJson({"max_position_embeddings": 40960, **more}).length(NOT_SCALED[version])
    assert found is not None
    assert (found.tokens, found.key) == (tokens, key)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "yarn", "factor": 4.0},
        {"rope_type": "linear", "factor": "2"},
        {"rope_type": "linear", "factor": float("inf")},
        {"rope_type": "linear", "factor": -1},
    ],
)
def test_a_length_with_a_factor_that_is_none_is_not_known(rope: dict[str, Any]) -> None:
    assert ConfigJson({"max_position_embeddings": 8, "rope_scaling": rope}).length() is None


# Quantisation.


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ({"quant_method": "FP8"}, Quantization("fp8", None, 8)),
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 128},
            Quantization("gptq", None, 4, 128),
        ),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, Quantization("awq", None, 4, 64)),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            Quantization("bitsandbytes", None, 4),
        ),
        (
            {
                "quant_method": "compressed_tensors",
                "format": "pack-quantized",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 32}}},
                "ignore": ["lm_head"],
            },
            Quantization("compressed-tensors", "pack-quantized", 4, 32, ("lm_head",)),
        ),
        (
            {
                "producer": {"name": "modelopt"},
                "quantization": {
                    "quant_algo": "NVFP4",
                    "group_size": 16,
                    "exclude_modules": ["lm_head"],
                },
            },
            Quantization("modelopt_fp4", "NVFP4", 4, 16, ("lm_head",)),
        ),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, Quantization("modelopt", "FP8", 8)),
        ({"quant_method": 4, "bits": "4"}, Quantization("")),
        ({"config_groups": [], "ignore": {}, "bits": 4}, Quantization("", None, 4)),
    ],
)
def test_how_a_checkpoint_is_quantised(said: dict[str, Any], kind: Quantization) -> None:
    assert ConfigJson({"quantization_config": said}).quantization == kind
    assert ConfigJson({"text_config": {"quantization_config": said}}).quantization == kind


# Needs.


def test_the_needs_of_the_default_model_are_those_of_its_profile() -> None:
    needs = needs_of(Found(BY_NAME["zai-org/GLM-4.7-Flash"], 59_886_661_632))
    assert needs == ModelNeeds(
        model_type="glm4_moe_lite",
        architecture="Glm4MoeLiteForCausalLM",
        attention_heads=20,
        intermediate_size=10240,
        moe_intermediate_size=1536,
        weights_gib=59_886_661_632 / (1 << 30),
    )


def test_values_beyond_what_a_profile_may_say_are_no_needs() -> None:
    values = {"num_attention_heads": 1 << 20, "intermediate_size": 1 << 30, "model_type": "x" * 999}
    assert needs_of(Found(values, 1)) == ModelNeeds()


# The table.


@pytest.mark.parametrize("one", REAL, ids=lambda one: str(one["model"]))
def test_the_table_has_what_the_files_say(one: dict[str, Any]) -> None:
    row = known_model(one["model"])
    if one["model"].startswith("BAAI/"):
        assert row is None
        return
    assert row is not None
    assert row.values == one["config"]
    assert row.source == one["source"]


@pytest.mark.parametrize(
    "name",
    [
        "qwen/qwen3-32b",
        "Qwen/Qwen3-32B/",
        "Qwen/Qwen3-32",
        "somebody/Qwen3-32B",
        "unsloth/Qwen3-32B-FP8",
        "Qwen3-32B",
        'Qwen/Qwen3-32B".quantization_config',
        'x"]\n[',
        "",
    ],
)
def test_another_name_is_another_model(name: str) -> None:
    assert known_model(name) is None


def test_the_table_is_small_sorted_and_says_where_each_row_was_read() -> None:
    path = rules_folder() / TABLE
    text = path.read_text(encoding="utf-8")
    assert len(text) < 200_000
    rows = load_toml(path)
    assert len(rows) > 90
    assert [*rows] == sorted(rows)
    for name, row in rows.items():
        assert row["source"]
        assert not re.search(r"general knowledge|index id|/root|/work", row["source"])
        assert load_section(path, name) == row


def test_a_section_ends_where_another_models_begins(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('["a/b"]\nx = 1\n\n["a/b".c]\ny = [[1]]\n\n["a/b".c.d]\n\n["a/bc"]\nz = 2\n')
    assert load_section(path, "a/b") == {"x": 1, "c": {"y": [[1]], "d": {}}}
    assert load_section(path, "a/bc") == {"z": 2}
    assert load_section(path, "a/") is None


def test_what_is_known_by_heart_is_not_shipped() -> None:
    assert source_of("general knowledge of the hub file, checked by a log") is None
    assert source_of("transformers 5.24.0 wheel: models/x/configuration_x.py defaults") is None
    copy = "github:a/b@095f58a51 x/y_config.json (a copy of the hub file)"
    assert source_of(copy) == "a/b@095f58a51 of 2026-08-21, x/y_config.json"


def test_the_table_is_written_so_that_it_is_read_the_same(tmp_path: Path) -> None:
    values = essentials({**BY_NAME["nvidia/GLM-5-NVFP4"], "head_dim": None, "eos_token_id": 1})
    path = tmp_path / "x.toml"
    path.write_text("\n".join(section('"a/b"', values)) + "\n")
    row = load_section(path, "a/b")
    assert row is not None
    assert with_nulls(row) == values
    assert values["head_dim"] is None
    assert "eos_token_id" not in values
