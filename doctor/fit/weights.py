"""How large a model's weights are once vLLM has loaded them, from its config.json alone.

The layers are those of vllm/model_executor/models (0.22.0 and 0.33.0). Within 1 % of what vLLM
printed for bfloat16, float16, fp8 and 4 bit checkpoints; gpt-oss is up to 6 % more, since the
kernel in use pads mxfp4. A kind of model or of quantisation that is not here is not known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from doctor.consumers.model_config import ConfigJson, Quantization
from doctor.frozen import dataclass

_DENSE = frozenset(
    [
        "gemma2",
        "gemma3_text",
        "glm4",
        "granite",
        "llama",
        "mimo",
        "mistral",
        "olmo2",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_5_text",
        "qwen3_vl_text",
        "seed_oss",
        "smollm3",
    ]
)
_MOE = frozenset(
    [
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v32",
        "glm4_moe",
        "glm4_moe_lite",
        "glm_moe_dsa",
        "gpt_oss",
        "kimi_k2",
        "minimax_m2",
        "mixtral",
        "qwen2_moe",
        "qwen3_5_moe_text",
        "qwen3_moe",
        "qwen3_next",
        "qwen3_vl_moe_text",
    ]
)
_ENCODERS = frozenset(("bert", "roberta", "xlm-roberta"))
# Every fourth layer of these has attention, the others a gated delta net.
_HYBRID = frozenset(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"))
_VISION = frozenset(("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"))
_TWO_BYTES = frozenset(("auto", "half", "float16", "bfloat16"))


class _NotSaid(Exception):
    """A value that is needed is not there."""


@dataclass(frozen=True)
class _Parts:
    """How many weights: of the experts and of the other linear layers, which quantisation makes
    smaller, and of the rest."""

    experts: int = 0
    linear: int = 0
    rest: int = 0

    def __add__(self, other: _Parts) -> _Parts:
        return _Parts(
            self.experts + other.experts, self.linear + other.linear, self.rest + other.rest
        )

    def __mul__(self, times: int) -> _Parts:
        return _Parts(self.experts * times, self.linear * times, self.rest * times)


def loaded_bytes(config: ConfigJson, asked: str | None = None, dtype: str = "auto") -> int | None:
    """Bytes of all weights as one rank that holds the whole model loads them, without the layers
    that only speculative decoding loads; None for a model that is not understood. `asked`: what
    --quantization says, `dtype`: what --dtype does."""
    try:
        parts = _parts(config)
    except _NotSaid:
        return None
    width = _width(config, dtype)
    if parts is None or width is None:
        return None
    kind = config.quantization
    if kind is None:
        if asked in (None, "none", config.dtype):
            return (parts.experts + parts.linear + parts.rest) * width
        # vLLM makes it as it loads; what others make of it is not known.
        kind = Quantization("fp8", bits=8) if asked == "fp8" else None
    each = _bytes_each(config, kind) if kind else None
    if each is None or kind is None:
        return None
    # mxfp4 of gpt-oss, and whoever says so, leaves the attention as it is.
    linear = width if _only_experts(kind) else each
    copies = _latent(config).linear * width * (config.layers or 0) if linear != width else 0
    return round(parts.experts * each + parts.linear * linear + parts.rest * width) + copies


def _width(config: ConfigJson, dtype: str) -> int | None:
    """Bytes of a weight that is not quantised: float32 becomes one of two bytes (_find_dtype)."""
    if dtype in ("float", "float32"):
        return 4
    return 2 if (dtype in _TWO_BYTES and config.dtype is not None) or config.quantization else None


def _bytes_each(config: ConfigJson, kind: Quantization) -> float | None:
    """Of a quantised weight with its part of the scales and zero points."""
    if not _spares_only_the_rest(kind) and not _only_experts(kind):
        return None
    bits, group = kind.bits, kind.group
    if bits == 8 and kind.method in ("fp8", "modelopt", "fbgemm_fp8", "compressed-tensors"):
        return 1.0
    if kind.method == "mxfp4":
        return (4 + 8 / 32) / 8
    if bits != 4:
        return None
    if kind.method in ("awq", "gptq") and group:
        return (bits + (16 + bits) / group) / 8
    if kind.method == "compressed-tensors" and kind.algorithm == "pack-quantized" and group:
        return (bits + 16 / group) / 8
    if (kind.algorithm or "").upper().startswith("NVFP4"):
        return (4 + 8 / 16) / 8
    return None


# Modules that no method quantises, whether a checkpoint lists them or not.
_REST = (
    r"(?:.*\.)?(?:lm_head|embed_tokens|\w*norm\w*|gate|router|shared_expert_gate|weights_proj"
    r"|e_score_correction_bias|conv1d|in_proj_(?:ba|a|b)|eh_proj|shared_head\w*)(?:\.\w+)*"
    r"|(?:model\.)?(?:visual|vision_tower|multi_modal_projector|mtp|lm_head)(?:\..*|\*)?"
)


def _spares_only_the_rest(kind: Quantization) -> bool:
    return all(re.fullmatch(_REST, name.removeprefix("re:")) for name in kind.ignored)


def _only_experts(kind: Quantization) -> bool:
    return kind.method == "mxfp4"


def _parts(config: ConfigJson) -> _Parts | None:
    kind = config.text_model_type
    if kind in _ENCODERS:
        return _encoder(config)
    vision = _vision(config)
    if (kind not in _DENSE and kind not in _MOE) or vision is None:
        return None
    hidden, vocabulary = _need(config.hidden_size), _need(config.vocabulary)
    tied = config.text.get("tie_word_embeddings", config.values.get("tie_word_embeddings"))
    if not isinstance(tied, bool):
        return None
    layers, dense = _need(config.layers), _dense_layers(config)
    made = _attention(config) + vision
    made += _dense(config) * dense if dense else _Parts()
    made += _sparse(config) * (layers - dense) if layers > dense else _Parts()
    tables = 1 if tied else 2
    return made + _Parts(rest=tables * vocabulary * hidden + (2 * layers + 1) * hidden)


def _need(value: int | None) -> int:
    if value is None:
        raise _NotSaid
    return value


def _dense_layers(config: ConfigJson) -> int:
    layers = _need(config.layers)
    if config.text_model_type in _DENSE:
        return layers
    if not config.experts or config.count("decoder_sparse_step") not in (None, 1):
        raise _NotSaid
    alone = config.text.get("mlp_only_layers")
    first = config.count("first_k_dense_replace") or 0
    return min(layers, first + (len(alone) if isinstance(alone, list) else 0))


def _attention(config: ConfigJson) -> _Parts:
    """Of all layers."""
    layers = _need(config.layers)
    if config.mla:
        return _mla(config) * layers
    whole = _gqa(config)
    if config.text_model_type not in _HYBRID:
        return whole * layers
    every = _need(config.count("full_attention_interval"))
    full = layers // every
    return whole * full + _delta_net(config) * (layers - full)


def _gqa(config: ConfigJson) -> _Parts:
    text = config.text
    hidden, heads = _need(config.hidden_size), _need(config.attention_heads)
    size, pairs = _need(config.head_size), _need(config.key_value_heads)
    gated = heads if config.text_model_type in _HYBRID else 0
    biased = config.text_model_type == "qwen2" or text.get("attention_bias") is True
    return _Parts(
        linear=hidden * size * (2 * heads + gated + 2 * pairs),
        rest=size * (heads + 2 * pairs) if biased else 0,
    )


def _mla(config: ConfigJson) -> _Parts:
    hidden, heads = _need(config.hidden_size), _need(config.attention_heads)
    head = _need(config.count("qk_nope_head_dim")) + (config.count("qk_rope_head_dim") or 0)
    query, latent = config.count("q_lora_rank"), _need(config.head_size)
    linear = hidden * query + query * heads * head if query else hidden * heads * head
    linear += hidden * latent + heads * _need(config.count("v_head_dim")) * hidden
    if (wide := config.count("index_head_dim")) and query:  # of sparse attention
        linear += wide * (query * _need(config.count("index_n_heads")) + hidden)
    return _Parts(linear=linear) + _latent(config)


def _latent(config: ConfigJson) -> _Parts:
    """kv_b_proj of one layer, of which quantised MLA keeps a copy that is not."""
    if not config.mla:
        return _Parts()
    head = _need(config.count("qk_nope_head_dim")) + _need(config.count("v_head_dim"))
    rank = _need(config.count("kv_lora_rank"))
    return _Parts(linear=rank * _need(config.attention_heads) * head)


def _delta_net(config: ConfigJson) -> _Parts:
    """GatedDeltaNet: queries, keys, values and a gate; two numbers for each value head."""
    hidden, values = _need(config.hidden_size), _need(config.count("linear_num_value_heads"))
    wide = values * _need(config.count("linear_value_head_dim"))
    keys = _need(config.count("linear_num_key_heads")) * _need(config.count("linear_key_head_dim"))
    kernel = _need(config.count("linear_conv_kernel_dim"))
    return _Parts(
        linear=hidden * (2 * keys + 3 * wide),
        rest=2 * hidden * values + (2 * keys + wide) * kernel,
    )


def _dense(config: ConfigJson) -> _Parts:
    return _Parts(linear=3 * _need(config.hidden_size) * _need(config.count("intermediate_size")))


def _sparse(config: ConfigJson) -> _Parts:
    hidden, experts = _need(config.hidden_size), _need(config.experts)
    rows = _need(config.expert_size)
    shared = config.count("shared_expert_intermediate_size")
    if shared is None:
        shared = rows * (config.count("n_shared_experts") or 0)
    biases = experts * (2 * rows + hidden) if config.text_model_type == "gpt_oss" else 0
    return _Parts(3 * hidden * experts * rows, 3 * hidden * shared, experts * hidden + biases)


def _encoder(config: ConfigJson) -> _Parts:
    hidden, rows = _need(config.hidden_size), _need(config.count("intermediate_size"))
    places = _need(config.count("max_position_embeddings"))
    kinds = config.count("type_vocab_size") or 0
    each = _Parts(linear=4 * hidden * hidden + 2 * hidden * rows, rest=9 * hidden + rows)
    tables = (_need(config.vocabulary) + places + kinds) * hidden
    return each * _need(config.layers) + _Parts(rest=tables)


def _vision(config: ConfigJson) -> _Parts | None:
    """Of the vision tower, nothing where it has none; None of one that is not understood."""
    said = config.values.get("vision_config")
    if not said:
        other = ("audio_config", "vision_tower", "mm_vision_tower", "vit_config", "thinker_config")
        return None if any(config.values.get(name) for name in other) else _Parts()
    if not isinstance(said, dict) or config.model_type not in _VISION:
        return None
    part = ConfigJson(said)  # it has no parts of its own
    hidden, rows = _need(part.count("hidden_size")), _need(part.count("intermediate_size"))
    merged = hidden * _need(part.count("spatial_merge_size")) ** 2
    merger = merged * (merged + _need(part.count("out_hidden_size")))
    patch = _need(part.count("patch_size")) ** 2 * _need(part.count("temporal_patch_size"))
    places = _need(part.count("num_position_embeddings"))
    blocks = _need(part.count("depth")) * (4 * hidden * hidden + 2 * hidden * rows)
    mergers = 1 + _listed(said, "deepstack_visual_indexes")
    channels = part.count("in_channels", "in_chans") or 3
    return _Parts(rest=blocks + merger * mergers + hidden * (patch * channels + places))


def _listed(said: Mapping[str, Any], name: str) -> int:
    value = said.get(name)
    return len(value) if isinstance(value, list) else 0
