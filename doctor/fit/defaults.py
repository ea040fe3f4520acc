"""What a server of vLLM takes where its options say nothing, as far as memory depends on it.

Read in engine/arg_utils.py (get_batch_defaults, _set_default_max_num_seqs_and_batched_tokens_args),
config/vllm.py (max_concurrent_batches, async scheduling, use_v2_model_runner), platforms/cuda.py
and the attention backends of 0.11.2, 0.19.0, 0.20.2, 0.22.0, 0.24.0, 0.25.1, 0.26.0, 0.28.0, 0.29.0
and 0.33.0.
"""

from __future__ import annotations

from doctor.consumers.model_config import ConfigJson
from doctor.consumers.options import GivenOptions
from doctor.fit.asked import AskedModel
from doctor.fit.cache_type import cache_type
from doctor.fit.options import MemoryOptions
from doctor.fit.releases import Release
from doctor.fit.sizes import GIB, NotKnown
from doctor.fit.verdict import GpuMemory
from doctor.frozen import dataclass

_LARGE = 70 * GIB
_LARGEST = 160 * GIB
_GB10 = 121
_HOPPER, _BLACKWELL = 9, 10  # generations by compute capability
_WIDE_HEAD = 512
USUAL_BLOCK = 16  # CacheConfig.DEFAULT_BLOCK_SIZE
# Of backends that are asked for and do not take the usual one.
_BLOCKS_OF = {
    "CUTLASS_MLA": 128,
    "FLASHINFER_MLA": 32,
    "FLASHMLA": 64,
    "TOKENSPEED_MLA": 32,
    "TRITON_MLA": USUAL_BLOCK,
}
_SPARSE_BLOCKS = {"minimax_m3": 128, "minimax_m3_vl": 128}
_BATCHED_DP_TOKENS = 256  # DEFAULT_MAX_NUM_BATCHED_TOKENS_FOR_BATCHED_DP
_BATCHED_DP = ("deepep_low_latency", "nixl_ep", "pplx")
# One video of Gemma 4 fits into a batch: 32 frames of 70 tokens with their timestamps.
_PREFIX_LM_TOKENS = {"gemma4": 2496}
_DELTA_NETS = frozenset(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"))
_KIMI = ("kimi_linear", "kimi_k3")
_DELTA_NET_STEP = 64  # FLASHINFER_GDN_CHECKPOINT_ALIGNMENT
_MAMBA2 = frozenset(
    [
        "bamba",
        "falcon_h1",
        "granitemoehybrid",
        "mamba2",
        "nemotron_h",
        "nemotron_h_puzzle",
        "plamo2",
        "zamba2",
    ]
)
# SupportsMambaPrefixCaching, of 0.22 to 0.27, by the model's type.
_ALL_STATES = _MAMBA2 | {"jamba", "mamba", "falcon_mamba"}
# Kinds of speculation for which batches are not scheduled ahead, where the V1 runner has them.
_SCHEDULED_AHEAD = frozenset(("draft_model", "dspark", "dflash", "ngram_gpu"))
_EAGLE = ("eagle", "mtp")
# DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES of 0.26 and 0.28, of models with experts.
_V2_EXPERTS = frozenset(
    [
        "DeepseekV2ForCausalLM",
        "GraniteMoeForCausalLM",
        "InklingForCausalLM",
        "InklingForConditionalGeneration",
        "LongcatFlashNgramForCausalLM",
        "Qwen2MoeForCausalLM",
    ]
)


@dataclass(frozen=True)
class Settled:
    """As one version of vLLM starts one server.

    `max_num_seqs`, `max_num_batched_tokens`: None where they depend on a GPU that is not known;
    `utilization`: of each GPU's memory; `prefix_caching`: as it was said, None where the kind of
    the model decides, `hybrid_prefix_caching` for a hybrid; `concurrent_batches`: that the engine
    has scheduled at once; `block_size`: tokens, before a hybrid's is aligned, None where it depends
    on a GPU that is not known; `encoder_tokens`: of an
    encoder whose output each request keeps, None where it is not known; `prefill_context`: ranks
    of prefill context parallelism; `retained_tokens`: that a window keeps beyond itself;
    `state_mode`: which states of recurrent layers are kept for prefixes, "align" or "all";
    `checkpoint_step`: of how many tokens is a multiple where they keep a state from within a
    prefill, 0 where they keep none, None where it depends on a GPU that is not known.
    """

    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    utilization: float
    prefix_caching: bool | None
    hybrid_prefix_caching: bool
    concurrent_batches: int
    block_size: int | None
    encoder_tokens: int | None = None
    prefill_context: int = 1
    retained_tokens: int = 0
    state_mode: str = "align"
    checkpoint_step: int | None = 0


def settled(
    config: ConfigJson, options: MemoryOptions, release: Release, gpu: GpuMemory | None
) -> Settled:
    """As this vLLM starts such a server on such a GPU."""
    given = GivenOptions(options.given)
    seqs, tokens = _batch(config, options, release, gpu)
    return Settled(
        max_num_seqs=seqs,
        max_num_batched_tokens=tokens,
        utilization=options.utilization or release.utilization,
        prefix_caching=_said(given, "enable_prefix_caching"),
        hybrid_prefix_caching=release.hybrid_prefix_caching,
        concurrent_batches=_concurrent_batches(config, options, release),
        block_size=options.block_size or _block_size(config, options, release, gpu),
        encoder_tokens=config.count("max_source_positions"),
        prefill_context=options.layout.context,
        retained_tokens=_retained_tokens(config, options, release),
        state_mode=_state_mode(config, given, release),
        checkpoint_step=_checkpoint_step(config, release, gpu),
    )


def _said(given: GivenOptions, name: str) -> bool | None:
    """A switch, None where nothing is said."""
    if given.says(f"no_{name}"):
        return not given.switch(f"no_{name}")
    return given.switch(name) if given.says(name) else None


def _batch(
    config: ConfigJson, options: MemoryOptions, release: Release, gpu: GpuMemory | None
) -> tuple[int | None, int | None]:
    """max_num_seqs and max_num_batched_tokens of a server."""
    seqs, tokens = options.max_num_seqs, options.max_num_batched_tokens
    if gpu is None or (seqs is not None and tokens is not None):
        return seqs, tokens
    given = GivenOptions(options.given)
    usual_seqs, usual_tokens = _tier(gpu, release)
    if _batches_across_replicas(options, given):
        usual_tokens = _BATCHED_DP_TOKENS
    if given.word("performance_mode") == "throughput":
        usual_seqs, usual_tokens = 2 * usual_seqs, 2 * usual_tokens
    most = usual_seqs if seqs is None else seqs
    if tokens is None:
        tokens = _fitted(usual_tokens, most, config, options, release)
    return min(most, tokens) if seqs is None else seqs, tokens


def _batches_across_replicas(options: MemoryOptions, given: GivenOptions) -> bool:
    """use_batched_dp_moe"""
    parallel = options.layout.experts_whole and options.layout.data > 1
    return parallel and given.word("all2all_backend") in _BATCHED_DP


def _fitted(
    tokens: int, seqs: int, config: ConfigJson, options: MemoryOptions, release: Release
) -> int:
    """A default of max_num_batched_tokens, as the model changes it."""
    found = config.length()
    length = options.max_model_len or (found.tokens if found else None)
    if config.values.get("is_encoder_decoder") is True and length:  # its prefill is not chunked
        tokens = max(tokens, length)
    if release.since("0.22") and not options.language_model_only:
        tokens = max(tokens, _PREFIX_LM_TOKENS.get(config.model_type or "", 0))
    return tokens if length is None else min(seqs * length, tokens)


def _tier(gpu: GpuMemory, release: Release) -> tuple[int, int]:
    """get_batch_defaults of a server."""
    unseen = gpu.unified and not release.names_gb10  # NVML does not say how much memory it has
    if unseen or gpu.total < _LARGE:
        return 256, 2048
    if release.largest_tier and gpu.total >= _LARGEST:
        return 1024, 16384
    small = "a100" in gpu.name.lower() or (release.names_gb10 and gpu.capability == _GB10)
    return (256, 2048) if small else (1024, 8192)


def _concurrent_batches(config: ConfigJson, options: MemoryOptions, release: Release) -> int:
    """max_concurrent_batches"""
    stages = options.layout.pipeline
    given = GivenOptions(options.given)
    said = _said(given, "async_scheduling")
    method = str(options.speculative.get("method") or "")
    second = _second_runner(config, method, release)
    ahead = not config.pooling if said is None else said
    if said is None and not second and options.speculative:
        ahead = ahead and (not method or method in _SCHEDULED_AHEAD or _like_eagle(method))
    if not ahead:
        return stages
    return stages + 1 if second else max(2, stages)


def _like_eagle(method: str) -> bool:
    return any(name in method for name in _EAGLE)


def _second_runner(config: ConfigJson, method: str, release: Release) -> bool:
    """use_v2_model_runner, where no variable of the environment says it."""
    if method in ("suffix", "custom_class") or config.pooling:
        return False
    if release.v2_runner:
        return release.since("0.31") or not method.startswith(("ngram", "medusa", "mlp_"))
    if not release.v2_dense or _has_states(config):
        return False
    known = any(name in _V2_EXPERTS for name in config.architectures)
    return known or config.experts == 0


def _has_states(config: ConfigJson) -> bool:
    """Whether it is known to have recurrent layers."""
    return config.text_model_type in (_DELTA_NETS | _ALL_STATES | {*_KIMI})


def _block_size(
    config: ConfigJson, options: MemoryOptions, release: Release, gpu: GpuMemory | None
) -> int | None:
    """What the backend prefers (get_preferred_block_size): those without latent attention take the
    usual one."""
    asked = GivenOptions(options.given).word("attention_backend")
    if (of_backend := _BLOCKS_OF.get((asked or "").upper())) is not None:
        return of_backend
    for kind in (config.text_model_type, config.model_type):
        if kind in _SPARSE_BLOCKS:
            return _SPARSE_BLOCKS[kind]
    wide = config.head_size == _WIDE_HEAD and release.wide_fp8_blocks
    if config.mla and config.count("index_topk"):  # whose indexer takes nothing else
        return 64
    if not config.mla and not wide:
        return USUAL_BLOCK
    if gpu is None or gpu.capability is None:
        return None
    try:
        small = cache_type(AskedModel(config, options, release, gpu.capability)).quantized
    except NotKnown:
        return None
    generation = gpu.capability // 10
    if generation == _HOPPER:  # FLASHMLA and FlashAttention 4, where there is fp8
        old = config.mla and not release.since("0.19")
        return 64 if small or old else USUAL_BLOCK
    if generation == _BLACKWELL and config.mla:
        return _blackwell_block(config, release)
    return USUAL_BLOCK


def _blackwell_block(config: ConfigJson, release: Release) -> int:
    """Of FLASHINFER_MLA, else of CUTLASS_MLA."""
    known = config.count("qk_nope_head_dim") in (64, 128, 192) and release.since("0.19")
    return 32 if known else 128


def _retained_tokens(config: ConfigJson, options: MemoryOptions, release: Release) -> int:
    """extra_retained_tokens: of drafters with several layers (use_multi_module_mtp)."""
    if not release.retains_for_drafters or options.speculative.get("method") != "mtp":
        return 0
    layers = config.count("num_nextn_predict_layers") or 1
    return options.drafted - 1 if min(layers, options.drafted) > 1 else 0


def _state_mode(config: ConfigJson, given: GivenOptions, release: Release) -> str:
    """mamba_cache_mode, where prefixes are cached."""
    said = given.word("mamba_cache_mode")
    if said in ("align", "all"):
        return said
    has_all = config.text_model_type in _ALL_STATES
    return "all" if has_all and not release.hybrid_prefix_caching else "align"


def _checkpoint_step(config: ConfigJson, release: Release, gpu: GpuMemory | None) -> int | None:
    """get_prefill_checkpoint_alignment: of delta nets only by FlashInfer's kernel, of Kimi's only
    where their gate is bounded, by a kernel that the wheel may have."""
    if config.text_model_type in _MAMBA2:
        return 1 if release.mamba2_checkpoints else 0
    if config.text_model_type in _KIMI and release.since("0.29"):
        said = config.text.get("linear_attn_config")
        return None if isinstance(said, dict) and said.get("gate_lower_bound") else 0
    if config.text_model_type not in _DELTA_NETS or not release.delta_net_checkpoints:
        return 0
    if gpu is None or gpu.capability is None:
        return None
    generation = gpu.capability // 10
    wide = config.count("linear_key_head_dim") == 128
    return _DELTA_NET_STEP if generation == 9 or (generation in (10, 12) and wide) else 0
