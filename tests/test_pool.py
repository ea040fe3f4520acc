"""The pool of KV cache against what real servers printed, and what a server takes by default."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from doctor.consumers.model_config import ConfigJson
from doctor.consumers.shares import Layout
from doctor.fit.defaults import Settled, settled
from doctor.fit.kv import Keeps, KvLayer
from doctor.fit.options import MemoryOptions
from doctor.fit.pool import Pool, pool
from doctor.fit.releases import release
from doctor.fit.sizes import GIB, NotKnown
from doctor.fit.verdict import GpuMemory

RTX_4090 = GpuMemory("NVIDIA GeForce RTX 4090", int(23.51 * GIB), capability=89)
A100 = GpuMemory("NVIDIA A100-SXM4-80GB", int(79.15 * GIB), capability=80)
H100 = GpuMemory("NVIDIA H100 80GB HBM3", int(79.18 * GIB), capability=90)
B200 = GpuMemory("NVIDIA B200", int(178.35 * GIB), capability=100)
THOR = GpuMemory("NVIDIA Thor", int(122.8 * GIB), capability=110, unified=True)
GB10 = GpuMemory("NVIDIA GB10", int(119.6 * GIB), capability=121, unified=True)


def full(token_bytes: float) -> KvLayer:
    return KvLayer(0, Keeps.FULL, token_bytes)


def mla(token_bytes: float = 1152) -> KvLayer:
    return KvLayer(0, Keeps.MLA, token_bytes)


def sliding(token_bytes: float, window: int) -> KvLayer:
    return KvLayer(0, Keeps.SLIDING, token_bytes, window=window)


def state(size: int) -> KvLayer:
    return KvLayer(0, Keeps.STATE, state_bytes=size)


def mixed(many: KvLayer, one: KvLayer, count: int, step: int) -> list[KvLayer]:
    """Every `step`th layer is another one."""
    return [one if number % step == step - 1 else many for number in range(count)]


def pooled(
    layers: Sequence[KvLayer],
    version: str = "0.22.0",
    gpu: GpuMemory | None = H100,
    model: str | None = None,
    **options: Any,
) -> Pool:
    """The pool of such layers in their order; a drafter's are not of the decoder."""
    numbered = [
        KvLayer(
            number,
            one.keeps,
            one.token_bytes,
            one.window,
            one.state_bytes,
            one.align,
            one.block,
            one.draft,
        )
        for number, one in enumerate(layers)
    ]
    config = config_of(sum(not one.draft for one in layers), model)
    asked, rules = MemoryOptions(**options), release(version)
    return pool(numbered, config, asked, rules, settled(config, asked, rules, gpu))


def config_of(layers: int, model: str | None = None, **more: Any) -> ConfigJson:
    return ConfigJson({"num_hidden_layers": layers, "model_type": model or "qwen3", **more})


QWEN3_06B = [full(2 * 8 * 128 * 2)] * 28
QWEN25_7B = [full(2 * 4 * 128 * 2)] * 28
QWEN3_32B = [full(2 * 8 * 128 * 2)] * 64
LLAMA31_8B = [full(2 * 8 * 128 * 2)] * 32
GLM_47_FLASH = [mla()] * 47
R1 = [mla()] * 61
GEMMA_4_31B = mixed(sliding(2 * 16 * 256 * 2, 1024), full(2 * 4 * 512 * 2), 60, 6)


@pytest.mark.parametrize(
    ("layers", "available", "length", "version", "block", "printed"),
    [
        (GLM_47_FLASH, 15.03, 40960, "0.19.0", 16, 298_096),
        (R1, 41.6, 8192, "0.11.2", 64, 635_648),
        (LLAMA31_8B, 3.81, 20000, "0.11.0", 16, 31_232),
        (LLAMA31_8B, 2.89, 29000, "0.11.0", 16, 23_648),
        (QWEN3_06B, 37.42, 16000, "0.12", 16, 350_304),
        (QWEN25_7B, 0.2, 8192, "0.11.0", 16, 3_696),
        (QWEN25_7B, 0.98, 2048, "0.11.0", 16, 18_400),
    ],
)
def test_the_tokens_that_servers_printed(
    layers: list[KvLayer], available: float, length: int, version: str, block: int, printed: int
) -> None:
    made = pooled(layers, version, block_size=block)
    half = 0.005 * GIB  # of the last decimal that was printed
    least = made.tokens(int(available * GIB - half), length)
    most = made.tokens(int(available * GIB + half), length)
    assert least <= printed <= most


@pytest.mark.parametrize(
    ("layers", "length", "printed"),
    [(LLAMA31_8B, 131072, 16.0), (QWEN25_7B, 8192, 0.44), (GLM_47_FLASH, 32768, 1.65)],
)
def test_the_memory_that_refusals_asked_for(
    layers: list[KvLayer], length: int, printed: float
) -> None:
    assert abs(pooled(layers).needed(length) / GIB - printed) <= 0.005


def test_the_length_that_a_refusal_estimated() -> None:
    assert pooled(GLM_47_FLASH, block_size=16).longest(GIB, 32768) == 19824
    assert pooled(LLAMA31_8B).longest(34432 * 32 * 4096, 131072) == 34432


def test_windows_keep_every_batch_that_is_scheduled_at_once() -> None:
    before = pooled(GEMMA_4_31B, "0.25.1", max_num_batched_tokens=32768).needed(262144)
    after = pooled(GEMMA_4_31B, "0.26.0", max_num_batched_tokens=32768).needed(262144)
    assert (round(before / GIB, 2), round(after / GIB, 2)) == (45.79, 70.79)


def test_smaller_layers_get_larger_blocks() -> None:
    made = pooled(GEMMA_4_31B)
    assert made.block_size == 16
    assert {one.block for group in made.groups for one in group} == {16, 32}


def test_layers_that_cannot_have_pages_of_one_size() -> None:
    odd = mixed(sliding(2 * 8 * 128 * 2, 512), full(2 * 3 * 128 * 2), 30, 3)
    with pytest.raises(NotKnown):
        pooled(odd, "0.23.0")
    assert pooled(odd, "0.24.0").block_bytes == (10 * 16 * 4096,)


def test_windows_beside_mla_fall_back_to_every_token() -> None:
    layers = [mla()] * 20 + [sliding(4096, 2048)] * 3
    with pytest.raises(NotKnown):
        pooled(layers, "0.26.0")
    assert len(pooled(layers, "0.27.1").groups) == 1


QWEN3_NEXT = mixed(state(1_097_728), full(2 * 2 * 256 * 2), 48, 4)


@pytest.mark.parametrize(("version", "block"), [("0.22.0", 544), ("0.32.0", 544), ("0.33.0", 576)])
def test_the_block_of_a_hybrid(version: str, block: int) -> None:
    made = pooled(QWEN3_NEXT, version, model="qwen3_next", max_model_len=262144)
    assert made.block_size == block
    assert made.block_bytes == (12 * block * 2048,)
    assert made.bytes_per_token == 12 * 2048


@pytest.mark.parametrize(
    ("version", "given", "states"),
    [
        ("0.11.0", {}, 1),
        ("0.27.1", {}, 1),
        ("0.27.1", {"enable_prefix_caching": True}, 2),
        ("0.28.0", {}, 2),
        ("0.28.0", {"no_enable_prefix_caching": True}, 1),
        ("0.28.0", {"enable_prefix_caching": False}, 1),
        ("0.33.0", {}, 3),
    ],
)
def test_the_states_of_a_request(version: str, given: dict[str, Any], states: int) -> None:
    assert pooled(QWEN3_NEXT, version, model="qwen3_next", given=given).request.states == states


def test_drafted_tokens_have_states_of_their_own() -> None:
    drafts = {"method": "mtp", "num_speculative_tokens": 2}
    made = pooled(QWEN3_NEXT, "0.28.0", model="qwen3_next", speculative=drafts)
    assert made.request.states == 4


def test_states_of_a_delta_net_depend_on_the_gpu() -> None:
    assert pooled(QWEN3_NEXT, "0.33.0", A100, "qwen3_next").request.states == 2
    with pytest.raises(NotKnown):
        pooled(QWEN3_NEXT, "0.33.0", None, "qwen3_next")


@pytest.mark.parametrize(
    ("version", "bound", "step"), [("0.28.0", -5.0, 0), ("0.29.0", -5.0, None), ("0.29.0", None, 0)]
)
def test_states_of_kimi_depend_on_its_gate(
    version: str, bound: float | None, step: int | None
) -> None:
    config = config_of(27, "kimi_linear", linear_attn_config={"gate_lower_bound": bound})
    assert settled_as(config, version).checkpoint_step == step


def test_states_that_are_kept_for_every_block_are_not_known() -> None:
    asked = {"enable_prefix_caching": True}
    with pytest.raises(NotKnown):
        pooled(QWEN3_NEXT, "0.22.0", model="nemotron_h", given=asked)


LLAMA_4 = mixed(KvLayer(0, Keeps.CHUNKED, 4096, window=8192), full(4096), 48, 4)


def test_chunked_attention_keeps_every_token_where_it_must() -> None:
    assert len(pooled(LLAMA_4, "0.22.0").groups) == 4
    assert len(pooled(LLAMA_4, "0.11.0").groups) == 1
    drafts = {"method": "eagle3", "num_speculative_tokens": 2}
    assert len(pooled(LLAMA_4, speculative=drafts).groups) == 1
    whole = {"disable_hybrid_kv_cache_manager": True}
    assert len(pooled(LLAMA_4, given=whole).groups) == 1


def test_the_tightest_stage_decides() -> None:
    made = pooled(QWEN3_32B + QWEN3_06B[:3], layout=Layout(pipeline=4))
    assert made.block_bytes == tuple(layers * 16 * 4096 for layers in (17, 17, 17, 16))
    assert made.needed(16) == 17 * 16 * 4096
    assert made.stage(3).needed(16) == 16 * 16 * 4096


def test_decode_context_parallelism_cuts_the_positions() -> None:
    alone, cut = pooled(R1, gpu=A100), pooled(R1, gpu=A100, decode_context=8)
    assert alone.needed(131072) == 8 * cut.needed(131072)
    assert cut.bytes_per_token == 61 * 1152 // 8
    with pytest.raises(NotKnown):
        pooled(GEMMA_4_31B, decode_context=2)


def test_one_block_is_never_a_requests() -> None:
    block = 64 * 16 * 4096
    before, after = pooled(QWEN3_32B, "0.28.0"), pooled(QWEN3_32B, "0.29.0")
    assert before.fits(block, 16)
    assert not after.fits(block, 16)
    assert after.fits(2 * block, 16)
    assert after.blocks(2 * block) == before.blocks(2 * block) == 2


def test_blocks_that_are_asked_for() -> None:
    made = pooled(QWEN3_32B, "0.29.0", given={"num_gpu_blocks_override": 100})
    assert made.blocks(1) == made.blocks(1 << 40) == 100
    assert made.longest(1, 40960) == 99 * 16


def test_a_connector_may_keep_windows_whole() -> None:
    asked = {"kv_transfer_config": {"kv_connector": "NixlConnector"}}
    assert len(pooled(QWEN3_32B, given=asked).groups) == 1
    with pytest.raises(NotKnown):
        pooled(GEMMA_4_31B, given=asked)


def test_more_stages_than_layers() -> None:
    with pytest.raises(NotKnown):
        pooled(QWEN3_06B, layout=Layout(pipeline=1 << 40))


@pytest.mark.parametrize(
    "layers",
    [
        [state(1_000_000), KvLayer(0, Keeps.FULL, math.nan)],
        [state(1_000_000), KvLayer(0, Keeps.FULL, math.inf)],
        [sliding(4096, 512), KvLayer(0, Keeps.FULL, math.nan)],
    ],
)
def test_mixes_of_which_nothing_is_known(layers: list[KvLayer]) -> None:
    with pytest.raises(NotKnown):
        pooled(layers)


def test_an_encoder_keeps_nothing() -> None:
    made = pooled([KvLayer(0, Keeps.NOTHING)] * 12)
    assert made.empty
    assert made.needed(512) == 0
    assert made.fits(0, 512)
    assert made.longest(0, 512) == 512
    with pytest.raises(NotKnown):
        made.tokens(GIB, 512)


@pytest.mark.parametrize(
    ("gpu", "version", "seqs", "tokens"),
    [
        (RTX_4090, "0.22.0", 256, 2048),
        (A100, "0.22.0", 256, 2048),
        (H100, "0.22.0", 1024, 8192),
        (B200, "0.27.1", 1024, 8192),
        (B200, "0.28.0", 1024, 16384),
        (GB10, "0.22.0", 256, 2048),
        (GB10, "0.33.0", 256, 2048),
        (THOR, "0.32.0", 256, 2048),
        (THOR, "0.33.0", 1024, 8192),
    ],
)
def test_the_defaults_of_a_batch(gpu: GpuMemory, version: str, seqs: int, tokens: int) -> None:
    made = settled_as(gpu=gpu, version=version)
    assert (made.max_num_seqs, made.max_num_batched_tokens) == (seqs, tokens)


def settled_as(
    config: ConfigJson | None = None,
    version: str = "0.22.0",
    gpu: GpuMemory | None = H100,
    **options: Any,
) -> Settled:
    config = config or config_of(64, max_position_embeddings=40960)
    return settled(config, MemoryOptions(**options), release(version), gpu)


def test_what_is_said_is_taken() -> None:
    made = settled_as(max_num_seqs=4, max_num_batched_tokens=512, utilization=0.5, block_size=32)
    assert (made.max_num_seqs, made.max_num_batched_tokens) == (4, 512)
    assert (made.utilization, made.block_size) == (0.5, 32)


def test_short_models_batch_less() -> None:
    assert settled_as(max_num_seqs=2, max_model_len=100).max_num_batched_tokens == 200


def test_a_video_of_gemma_4_fits_into_a_batch() -> None:
    gemma = config_of(60, "gemma4", max_position_embeddings=262144)
    assert settled_as(gemma, gpu=RTX_4090).max_num_batched_tokens == 2496
    assert settled_as(gemma, gpu=H100).max_num_batched_tokens == 8192


def test_an_encoder_decoder_takes_its_whole_prompt_at_once() -> None:
    whisper = config_of(32, "whisper", is_encoder_decoder=True, max_source_positions=1500)
    made = settled_as(whisper, gpu=RTX_4090, max_model_len=448, max_num_seqs=8)
    assert made.max_num_batched_tokens == 2048
    assert made.encoder_tokens == 1500


def test_without_a_gpu_its_batch_is_not_known() -> None:
    made = settled_as(gpu=None)
    assert (made.max_num_seqs, made.max_num_batched_tokens) == (None, None)
    with pytest.raises(NotKnown):
        pooled(GEMMA_4_31B, gpu=None).needed(1000)
    assert pooled(QWEN3_32B, gpu=None).needed(16) == 64 * 16 * 4096


FP8_CACHE = {"quant_method": "modelopt", "kv_cache_quant_algo": "FP8"}
MLA = {"kv_lora_rank": 512, "qk_rope_head_dim": 64}


@pytest.mark.parametrize(
    ("gpu", "version", "more", "block"),
    [
        (H100, "0.22.0", {}, 16),
        (H100, "0.11.2", {}, 64),
        (B200, "0.11.2", {}, 128),
        (B200, "0.22.0", {"qk_nope_head_dim": 128}, 32),
        (B200, "0.22.0", {"qk_nope_head_dim": 96}, 128),
        (RTX_4090, "0.22.0", {}, 16),
        (H100, "0.22.0", {"index_topk": 2048}, 64),
        (H100, "0.22.0", {"quantization_config": FP8_CACHE}, 64),
        (None, "0.22.0", {}, None),
        (H100, "0.33.0", {"model_type": "minimax_m3"}, 128),
        (H100, "0.33.0", {"model_type": "minimax_m3_vl", "text_config": {"n": 1}}, 128),
    ],
)
def test_the_block_of_latent_attention(
    gpu: GpuMemory | None, version: str, more: dict[str, Any], block: int | None
) -> None:
    config = ConfigJson({"num_hidden_layers": 61, "model_type": "deepseek_v3", **MLA, **more})
    assert settled_as(config, version, gpu).block_size == block


def test_the_block_of_a_backend_that_is_asked_for() -> None:
    config = config_of(61, "deepseek_v3", **MLA)
    assert settled_as(config, given={"attention_backend": "FLASHMLA"}).block_size == 64
    assert settled_as(config, given={"attention_backend": "FLASH_ATTN_MLA"}).block_size == 16


def test_fp8_has_another_kernel_on_hopper() -> None:
    config = config_of(61, "deepseek_v3", **MLA)
    assert settled_as(config, kv_cache_dtype="fp8").block_size == 64


@pytest.mark.parametrize(
    ("version", "gpu", "kind", "block"),
    [
        ("0.30.0", H100, "fp8", 16),
        ("0.31.0", H100, "fp8", 64),
        ("0.31.0", H100, "auto", 16),
        ("0.31.0", B200, "fp8", 16),
        ("0.31.0", H100, "a_type_of_tomorrow", None),
    ],
)
def test_wide_heads_in_fp8_on_hopper(
    version: str, gpu: GpuMemory, kind: str, block: int | None
) -> None:
    gemma = config_of(60, "gemma4_text", head_dim=256, global_head_dim=512)
    assert settled_as(gemma, version, gpu, kv_cache_dtype=kind).block_size == block


@pytest.mark.parametrize(
    ("version", "options", "more", "batches"),
    [
        ("0.28.0", {}, {}, 2),
        ("0.28.0", {"given": {"no_async_scheduling": True}}, {}, 1),
        ("0.28.0", {"layout": Layout(pipeline=2)}, {}, 3),
        ("0.28.0", {"layout": Layout(pipeline=2)}, {"num_experts": 128}, 2),
        ("0.29.0", {"layout": Layout(pipeline=2)}, {"num_experts": 128}, 3),
        ("0.28.0", {"speculative": {"method": "suffix"}}, {}, 1),
        ("0.29.0", {"speculative": {"method": "ngram"}}, {}, 1),
        ("0.31.0", {"speculative": {"method": "ngram"}}, {}, 2),
        ("0.29.0", {"speculative": {"method": "eagle3"}}, {}, 2),
        ("0.29.0", {}, {"architectures": ["Qwen3EmbeddingModel"]}, 1),
    ],
)
def test_batches_that_are_scheduled_at_once(
    version: str, options: dict[str, Any], more: dict[str, Any], batches: int
) -> None:
    config = config_of(60, **more)
    assert settled_as(config, version, **options).concurrent_batches == batches


def test_replicas_with_experts_batch_little() -> None:
    layout = Layout(tensor=1, data=8, experts_whole=True)
    made = settled_as(layout=layout, given={"all2all_backend": "deepep_low_latency"})
    assert made.max_num_batched_tokens == 256


@pytest.mark.parametrize(
    "layer",
    [
        KvLayer(0, Keeps.FULL, 0),
        KvLayer(0, Keeps.FULL, math.nan),
        KvLayer(0, Keeps.FULL, math.inf),
        KvLayer(0, Keeps.FULL, 0.03),
        KvLayer(0, Keeps.FULL, -4096),
        KvLayer(0, Keeps.SLIDING, 4096),
        KvLayer(0, Keeps.CROSS, 4096),
        KvLayer(0, Keeps.STATE, state_bytes=0),
    ],
)
def test_layers_of_which_nothing_is_known(layer: KvLayer) -> None:
    with pytest.raises(NotKnown):
        pooled([layer, layer]).needed(1000)


@pytest.mark.parametrize("available", [-(1 << 60), -1, 0, 1, 1 << 60])
@pytest.mark.parametrize("length", [1, 1 << 40])
def test_any_memory_and_any_length(available: int, length: int) -> None:
    for version in ("0.11.0", "0.22.0", "0.33.0"):
        made = pooled(QWEN3_NEXT, version, model="qwen3_next", max_model_len=262144)
        longest = made.longest(available, length)
        assert 0 <= longest <= length
        assert made.fits(available, longest) if longest else not made.fits(available, 1)
        assert made.tokens(available, length) >= 0


def test_more_memory_never_keeps_less() -> None:
    for layers in (QWEN3_32B, GEMMA_4_31B, QWEN3_NEXT):
        for version in ("0.11.0", "0.22.0", "0.29.0"):
            try:
                made = pooled(layers, version, model="qwen3_next", max_num_batched_tokens=2048)
            except NotKnown:
                continue
            amounts = [made.tokens(part * GIB // 4, 32768) for part in range(100)]
            lengths = [made.longest(part * GIB // 4, 262144) for part in range(100)]
            assert amounts == sorted(amounts)
            assert lengths == sorted(lengths)
