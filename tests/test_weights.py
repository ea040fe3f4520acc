"""How large a model's weights are once they are loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from doctor.consumers.model_config import ConfigJson
from doctor.consumers.shares import Layout
from doctor.fit.allocator import allocated
from doctor.fit.headers import tensors_of
from doctor.fit.options import MemoryOptions
from doctor.fit.releases import release
from doctor.fit.sizes import NotKnown
from doctor.fit.verdict import Tensor
from doctor.fit.weights import Weights, WeightsFrom, loaded_bytes, weights_on
from tests.headers import published

GIB = 1 << 30
MODELS = Path(__file__).parent.parent / "fixtures" / "models"
REAL = {
    one["model"]: one
    for one in (json.loads(path.read_text(encoding="utf-8")) for path in MODELS.glob("*.json"))
}


def gib(
    model: str, asked: str | None = None, dtype_asked: str = "auto", **more: Any
) -> float | None:
    size = loaded_bytes(ConfigJson({**REAL[model]["config"], **more}), asked, dtype_asked)
    return None if size is None else size / GIB


@pytest.mark.parametrize("model", [name for name, one in REAL.items() if "printed_gib" in one])
def test_they_are_what_vllm_printed(model: str) -> None:
    """`Model loading took ... GiB` at one rank."""
    size, printed = gib(model), REAL[model]["printed_gib"]
    assert size is not None
    assert size <= printed * 1.003
    assert size >= printed * 0.997


def test_the_default_model_has_what_its_profile_says() -> None:
    assert round(gib("zai-org/GLM-4.7-Flash") or 0, 1) == 55.8


@pytest.mark.parametrize(
    ("quantization", "printed"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 5.1811),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 5.29),
    ],
)
def test_so_they_are_at_four_bits(quantization: dict[str, Any], printed: float) -> None:
    """Measured for a Qwen2.5-7B of each kind."""
    size = gib("Qwen/Qwen2.5-7B-Instruct", quantization_config=quantization)
    assert size == pytest.approx(printed, rel=0.02)


def test_what_vllm_quantises_as_it_loads_is_smaller() -> None:
    assert gib("Qwen/Qwen2.5-7B-Instruct", "fp8") == pytest.approx(8.1426, rel=0.01)
    assert gib("Qwen/Qwen2.5-7B-Instruct", "bitsandbytes") is None


def test_another_type_has_another_size() -> None:
    plain = gib("Qwen/Qwen3-0.6B") or 0
    assert gib("Qwen/Qwen3-0.6B", None, "float32") == pytest.approx(2 * plain, rel=1e-3)
    assert gib("Qwen/Qwen3-0.6B", None, "half") == plain
    # A checkpoint of float32 is loaded as one of two bytes.
    assert gib("Qwen/Qwen3-0.6B", None, "auto", dtype="float32") == plain


def test_mla_keeps_a_copy_of_what_is_quantised() -> None:
    """79.739 GiB were printed for each of eight ranks; 7 x 0.86 GiB of it are query and latent
    projections that each holds whole, 7 x 0.2 routers."""
    size = gib("deepseek-ai/DeepSeek-R1") or 0
    assert (size + 7 * 0.86 + 7 * 0.2) / 8 == pytest.approx(79.739, rel=0.01)


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        ("Qwen/Qwen3-30B-A3B", 30.5),  # what their cards and names say
        ("Qwen/Qwen3.5-27B", 27.4),
        ("Qwen/Qwen3.5-35B-A3B", 35.1),
        ("mistralai/Mixtral-8x7B-v0.1", 46.7),
        ("deepseek-ai/DeepSeek-V2-Lite", 15.7),
        ("01-ai/Yi-34B", 34.4),
        ("Qwen/Qwen3-VL-8B-Instruct", 8.77),
    ],
)
def test_they_are_as_many_as_the_model_is_said_to_have(model: str, billions: float) -> None:
    size = gib(model)
    assert size is not None
    assert size * GIB / 2e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize(
    "model",
    [
        "nvidia/GLM-5-NVFP4",  # layers that are not quantised beside those that are
        "RedHatAI/Llama-4-Scout-17B-16E-Instruct-FP8-dynamic",
        "moonshotai/Kimi-K2.5",
        "nvidia/Llama-3_3-Nemotron-Super-49B-v1",
        "deepseek-ai/DeepSeek-V4-Flash",
    ],
)
def test_what_is_not_understood_is_not_known(model: str) -> None:
    assert gib(model) is None


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "num_hidden_layers", "head_dim"])
def test_nothing_is_guessed_for_what_is_not_said(key: str) -> None:
    for value in (None, "5120"):
        config = ConfigJson({**REAL["Qwen/Qwen3-32B"]["config"], key: value})
        assert loaded_bytes(config) is None


def test_nothing_is_known_of_a_tower_that_is_not_understood() -> None:
    assert gib("Qwen/Qwen3-32B", vision_config={"hidden_size": 8}) is None
    assert gib("Qwen/Qwen3-32B", audio_config={"hidden_size": 8}) is None


def test_tied_embeddings_count_once() -> None:
    model = "Qwen/Qwen3-32B"
    once = (gib(model) or 0) - (gib(model, tie_word_embeddings=True) or 0)
    assert once * GIB == pytest.approx(2 * 151936 * 5120, rel=1e-3)
    assert gib(model, tie_word_embeddings="false") is None


def of_rank(
    model: str,
    layout: Layout | None = None,
    tensors: Iterable[Tensor] | None = None,
    version: str = "0.11.0",
    stage: int = 0,
    **options: Any,
) -> Weights:
    asked = MemoryOptions(layout=layout or Layout(), **options)
    config = ConfigJson(REAL[model]["config"])
    return weights_on(config, tensors, asked, release(version), stage)


@pytest.mark.parametrize(
    ("model", "ranks", "printed"),
    [
        ("zai-org/GLM-4.7-Flash", 1, 55.87),
        ("zai-org/GLM-4.7-Flash", 2, 28.04),
        ("zai-org/GLM-4.7-Flash", 4, 14.16),
        ("deepseek-ai/DeepSeek-R1", 8, 79.739),
        ("Qwen/Qwen3-32B", 2, 30.59),
        ("openai/gpt-oss-20b", 1, 13.47),
    ],
)
def test_each_rank_has_what_vllm_printed_for_it(model: str, ranks: int, printed: float) -> None:
    """`Model loading took ... GiB` of every rank."""
    made = of_rank(model, Layout(tensor=ranks))
    assert made.bytes / GIB == pytest.approx(printed, rel=0.003)
    assert made.source is WeightsFrom.CONFIG


@pytest.mark.parametrize(
    "model",
    ["zai-org/GLM-4.7-Flash", "Qwen/Qwen3-32B", "Qwen/Qwen3-30B-A3B", "Qwen/Qwen3.5-27B"],
)
@pytest.mark.parametrize("ranks", [1, 4])
def test_headers_say_the_same_as_the_configuration(model: str, ranks: int) -> None:
    layout = Layout(tensor=ranks)
    made = of_rank(model, layout, published(REAL[model]["config"]))
    assert made.source is WeightsFrom.HEADERS
    assert made.bytes == of_rank(model, layout).bytes


def test_one_allocation_is_what_torch_counts() -> None:
    mib = 1 << 20
    assert allocated(1) == 512
    assert allocated(10 * mib - 512) == 10 * mib - 512
    assert allocated(11 * mib) == 12 * mib
    assert allocated(11 * mib - 512) == 11 * mib - 512
    assert allocated(0) == 0


def test_the_newest_print_more_than_the_tensors() -> None:
    old, new = (of_rank("Qwen/Qwen3-32B", version=v) for v in ("0.21.0", "0.22.0"))
    assert old.bytes == old.high == new.bytes
    assert new.high == new.bytes + new.bytes // 100
    small = of_rank("Qwen/Qwen3-0.6B", version="0.33.0")
    assert small.high - small.bytes == 3 * GIB // 20


def test_expert_parallelism_gives_each_rank_whole_experts() -> None:
    cut = of_rank("zai-org/GLM-4.7-Flash", Layout(tensor=4))
    whole = of_rank("zai-org/GLM-4.7-Flash", Layout(tensor=4, experts_whole=True))
    assert whole.bytes == cut.bytes
    # 64 experts on 3 x 4 ranks: the fullest have 6 of them.
    layout = Layout(tensor=4, data=3, experts_whole=True)
    assert of_rank("zai-org/GLM-4.7-Flash", layout).bytes > cut.bytes // 3


def test_data_parallel_ranks_share_experts_and_nothing_else() -> None:
    one = of_rank("Qwen/Qwen3-30B-A3B", Layout(tensor=2)).bytes
    two = of_rank("Qwen/Qwen3-30B-A3B", Layout(tensor=2, data=2)).bytes
    experts = 48 * 128 * 3 * 2048 * 768 * 2
    assert one - two == pytest.approx(experts // 4, rel=1e-3)


def test_shared_experts_are_whole_where_ranks_share_tokens() -> None:
    layout = Layout(tensor=8, data=2, experts_whole=True)
    made = of_rank("deepseek-ai/DeepSeek-R1", layout).bytes
    other = of_rank("deepseek-ai/DeepSeek-R1", Layout(tensor=8, data=2)).bytes
    assert made - other == pytest.approx(58 * 3 * 7168 * 2048 * 7 / 8, rel=0.01)


def test_a_stage_has_its_layers_and_the_ends_have_the_tables() -> None:
    stages = [of_rank("Qwen/Qwen3-32B", Layout(pipeline=3), stage=n).bytes for n in range(3)]
    table = allocated(2 * 151936 * 5120)
    rotary = allocated(40960 * 128 * 2)
    assert sum(stages) == of_rank("Qwen/Qwen3-32B").bytes + 2 * rotary
    layer = (stages[1] - rotary) // 22  # of 64, 21, 22 and 21
    assert stages[0] == 21 * layer + table + rotary
    with pytest.raises(NotKnown):
        of_rank("Qwen/Qwen3-32B", Layout(pipeline=65), stage=64)


def test_tied_tables_are_on_both_ends() -> None:
    first, last = (of_rank("Qwen/Qwen3-0.6B", Layout(pipeline=2), stage=n).bytes for n in (0, 1))
    assert first == pytest.approx(last, abs=4096)


def test_layers_that_draft_are_loaded_for_that_alone() -> None:
    model, layout = "deepseek-ai/DeepSeek-R1", Layout(tensor=8)
    plain = of_rank(model, layout).bytes
    drafting = of_rank(model, layout, speculative={"method": "mtp", "num_speculative_tokens": 1})
    experts, eh_proj = 256 * 3 * 7168 * 2048 // 8, 2 * 2 * 7168 * 7168
    attention = 2112 * 7168 + (24576 * 1536 + 32768 * 512 + 7168 * 16384) // 8
    assert drafting.bytes - plain == pytest.approx(experts + eh_proj + attention, rel=0.01)
    ngrams = of_rank(model, layout, speculative={"method": "ngram", "num_speculative_tokens": 4})
    assert ngrams.bytes == plain
    for said in ({"method": "eagle3", "model": "a/b"}, {"model": "a/b"}, {"method": ["mtp"]}):
        with pytest.raises(NotKnown):
            of_rank(model, layout, speculative=said)


def test_headers_of_layers_that_draft_are_left_out_as_well() -> None:
    tensors = published(REAL["zai-org/GLM-4.7-Flash"]["config"])
    more = [
        Tensor("model.layers.47.eh_proj.weight", "BF16", (2048, 4096)),
        Tensor("model.layers.47.embed_tokens.weight", "BF16", (154880, 2048)),
        Tensor("model.layers.47.shared_head.head.weight", "BF16", (154880, 2048)),
        Tensor("mtp.layers.0.mlp.up_proj.weight", "BF16", (2048, 4096)),
    ]
    model = "zai-org/GLM-4.7-Flash"
    plain = of_rank(model).bytes
    assert of_rank(model, None, [*tensors, *more]).bytes == plain
    asked = {"method": "mtp", "num_speculative_tokens": 1}
    drafting = of_rank(model, None, [*tensors, *more], speculative=asked).bytes
    assert drafting == plain + 2 * allocated(2 * 2048 * 4096)


def test_what_a_vision_model_is_told() -> None:
    model, layout = "Qwen/Qwen3-VL-8B-Instruct", Layout(tensor=4)
    cut = of_rank(model, layout).bytes
    whole = of_rank(model, layout, whole_tower=True).bytes
    none = of_rank(model, layout, language_model_only=True).bytes
    assert none < cut < whole
    assert whole - none == pytest.approx(4 * (cut - none), rel=0.02)


def test_what_lies_in_the_machines_memory_is_not_on_the_gpu() -> None:
    whole = of_rank("Qwen/Qwen3-32B").bytes
    assert of_rank("Qwen/Qwen3-32B", offload_gib=8.0).bytes == whole - 8 * GIB
    assert of_rank("Qwen/Qwen3-32B", offload_gib=999.0).bytes == 0


def test_adapters_have_room() -> None:
    model = "meta-llama/Llama-3.1-8B-Instruct"
    more = of_rank(model, lora=True).bytes - of_rank(model).bytes
    assert more == 2 * 16 * 32 * (6 * 4096 + 2 * 1024 + 2 * 4096 + 3 * (14336 + 4096) - 2 * 4096)
    several = {"max_loras": 2, "max_lora_rank": 32}
    assert of_rank(model, lora=True, given=several).bytes - of_rank(model).bytes == 4 * more
    with pytest.raises(NotKnown):
        of_rank("Qwen/Qwen3-30B-A3B", lora=True)


def test_the_kernels_of_a_gpu_pad_mxfp4() -> None:
    config = ConfigJson(REAL["openai/gpt-oss-20b"]["config"])
    sizes = [
        weights_on(config, None, MemoryOptions(), release(version), 0, capability).bytes
        for version, capability in (
            ("0.22.0", 90),
            ("0.22.0", 80),
            ("0.22.0", 100),
            ("0.33.0", 100),
        )
    ]
    assert sizes[0] < sizes[1] == sizes[3] < sizes[2]
    unknown = weights_on(config, None, MemoryOptions(), release("0.22.0"), 0)
    assert unknown.bytes == sizes[0]
    assert unknown.high >= sizes[2]


def test_a_checkpoint_with_an_ignore_list_needs_its_headers() -> None:
    model = "nvidia/GLM-5-NVFP4"
    with pytest.raises(NotKnown, match="headers"):
        of_rank(model)
    config = {**REAL[model]["config"], "num_hidden_layers": 5, "quantization_config": None}
    assert of_rank(model, Layout(tensor=8), published(config)).bytes > 0


def test_headers_count_what_is_stored() -> None:
    """fp8 with a scale for each block, beside layers that are not quantised."""
    model = "deepseek-ai/DeepSeek-R1"
    tensors = (
        Tensor("model.layers.0.self_attn.o_proj.weight", "F8_E4M3", (7168, 16384)),
        Tensor("model.layers.0.self_attn.o_proj.weight_scale_inv", "F32", (56, 128)),
        Tensor("model.layers.0.self_attn.kv_b_proj.weight", "BF16", (32768, 512)),
    )
    rotary = 163840 * 64 * 2
    made = of_rank(model, Layout(tensor=8), tensors).bytes
    assert made == 7168 * 2048 + 56 * 16 * 4 + 4096 * 512 * 2 + rotary


def test_a_tensor_that_nobody_knows_is_of_no_rank_a_part() -> None:
    tensors = [*published(REAL["Qwen/Qwen3-0.6B"]["config"])]
    tensors.append(Tensor("model.layers.0.memory_bank.weight", "BF16", (50_000, 1024)))
    assert of_rank("Qwen/Qwen3-0.6B", None, tensors).bytes > 0
    with pytest.raises(NotKnown, match="how ranks share"):
        of_rank("Qwen/Qwen3-0.6B", Layout(tensor=2), tensors)


def test_odd_types_are_not_guessed() -> None:
    with pytest.raises(NotKnown, match="X3"):
        of_rank("Qwen/Qwen3-0.6B", None, [Tensor("model.norm.weight", "X3", (8,))])


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), -1, 10**30, "4", None, True])
def test_no_rope_breaks_it(factor: Any) -> None:
    rope = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": 32768}
    config = {**REAL["Qwen/Qwen3-32B"]["config"], "rope_parameters": rope, "rope_scaling": rope}
    options = MemoryOptions(offload_gib=float("inf") if factor is None else 0.0)
    made = weights_on(ConfigJson(config), None, options, release("0.33.0"), 0).bytes
    assert made == (
        0 if factor is None else pytest.approx(of_rank("Qwen/Qwen3-32B").bytes, rel=0.01)
    )


@pytest.mark.parametrize("value", [None, -1, "4", 1 << 50, float("nan"), [], {}, True, 10**9])
@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "n_routed_experts"])
def test_no_value_of_a_configuration_breaks_it(key: str, value: Any) -> None:
    config = ConfigJson({**REAL["zai-org/GLM-4.7-Flash"]["config"], key: value})
    try:
        made = weights_on(config, None, MemoryOptions(), release("0.33.0"), 0)
    except NotKnown:
        return
    assert made.bytes > 0


def test_more_ranks_never_hold_more() -> None:
    for model in REAL:
        for version in ("0.22.0", "0.33.0"):
            sizes = []
            for ranks in (1, 2, 4, 8):
                try:
                    sizes.append(of_rank(model, Layout(tensor=ranks), version=version).bytes)
                except NotKnown:
                    break
            assert sizes == sorted(sizes, reverse=True)
            assert all(2 * two >= one * 0.99 for one, two in pairwise(sizes)), (model, sizes)


def test_no_headers_are_no_weights() -> None:
    assert tensors_of(()) == ()
    with pytest.raises(NotKnown, match="no tensors"):
        of_rank("Qwen/Qwen3-32B", None, ())
