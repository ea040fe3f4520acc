"""The tensors that a checkpoint of a config.json has, by the names that it gives them.

The layers are those of vllm/model_executor/models (0.22.0 and 0.33.0); the experts of a layer
stand in one tensor, whose first number they are. A kind of model or of quantisation that is not
here is not known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from doctor.consumers.model_config import ConfigJson, Quantization
from doctor.fit.options import MemoryOptions
from doctor.fit.sizes import NotKnown
from doctor.fit.verdict import Tensor
from doctor.frozen import dataclass
from doctor.model import Text

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
_VISION = frozenset(("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen3_5_text"))
# Whose heads each have a norm for queries and one for keys.
_HEAD_NORMS = frozenset(("qwen3", "qwen3_moe", "qwen3_vl_text", "qwen3_vl_moe_text", "gemma3_text"))
_FOUR_NORMS = frozenset(("gemma2", "gemma3_text", "glm4"))

_MOST_LAYERS = 4096

_Row = tuple[str, tuple[int, ...], bool]
"""A tensor's name without `.weight`, its shape, and whether quantisation makes it smaller."""


@dataclass(frozen=True)
class Loading:
    """How weights become those of a rank. `width`: bytes of one that is not quantised; `kind`: how
    the checkpoint's are quantised; `online`: vLLM makes float weights fp8 as it loads them."""

    width: int
    kind: Quantization | None = None
    online: bool = False


def loading_of(config: ConfigJson, options: MemoryOptions, headers: bool) -> Loading:
    """What the configuration and the options come to. Raises NotKnown where it cannot be told,
    without `headers` more often."""
    asked, kind = options.quantization, config.quantization
    # float32 becomes one of two bytes (_find_dtype)
    width = 4 if options.dtype in ("float", "float32") else 2
    if kind is None:
        if asked in (None, "none", config.dtype):
            return Loading(width)
        if asked != "fp8":
            why = Text(
                "how large weights are with --quantization {asked} is not known", asked=asked
            )
            raise NotKnown(why)
        return Loading(width, online=True)
    if kind.method == "bitsandbytes":
        raise NotKnown(Text("how large weights of bitsandbytes become is not known"))
    if not headers:
        _check(kind)
    return Loading(width, kind)


def _check(kind: Quantization) -> None:
    """Raises NotKnown for what config.json alone does not say."""
    if not _only_experts(kind) and not all(
        re.fullmatch(_REST, name.removeprefix("re:")) for name in kind.ignored
    ):
        raise NotKnown(
            Text(
                "this quantised checkpoint leaves layers as they are: their size needs the "
                "checkpoint's headers (its *.safetensors files)"
            )
        )
    if _packing(kind) is None:
        raise NotKnown(
            Text(
                "how {method} packs weights is not known: their size needs the checkpoint's "
                "headers (its *.safetensors files)",
                method=kind.method or "this quantisation",
            )
        )


# Modules that no method quantises, whether a checkpoint lists them or not.
_REST = (
    r"(?:.*\.)?(?:lm_head|embed_tokens|\w*norm\w*|gate|router|shared_expert_gate|weights_proj"
    r"|e_score_correction_bias|conv1d|in_proj_(?:ba|a|b)|eh_proj|shared_head\w*)(?:\.\w+)*"
    r"|(?:model\.)?(?:visual|vision_tower|multi_modal_projector|mtp|lm_head)(?:\..*|\*)?"
)


def _only_experts(kind: Quantization) -> bool:
    """mxfp4 of gpt-oss, and whoever says so, leaves the attention as it is."""
    return kind.method == "mxfp4"


@dataclass(frozen=True)
class _Packing:
    """How a matrix is written: `bits` of each weight, and what each `group` of a row shares, in
    bits; `square`: what a square of weights shares (fp8 in blocks)."""

    weight: str
    bits: int
    group: int = 0
    shared: int = 0
    square: int = 0


def _packing(kind: Quantization) -> _Packing | None:
    bits, group = kind.bits, kind.group
    if bits == 8 and kind.method in ("fp8", "modelopt", "fbgemm_fp8", "compressed-tensors"):
        return _Packing("weight", 8, square=128 if kind.method == "fp8" else 0)
    if kind.method == "mxfp4":
        return _Packing("weight", 4, 32, 8)
    if bits != 4:
        return None
    if kind.method in ("awq", "gptq") and group:
        return _Packing("qweight", bits, group, 16 + bits)
    if kind.method == "compressed-tensors" and kind.algorithm == "pack-quantized" and group:
        return _Packing("weight_packed", bits, group, 16)
    if (kind.algorithm or "").upper().startswith("NVFP4"):
        return _Packing("weight", 4, 16, 8)
    return None


def checkpoint_of(config: ConfigJson, loading: Loading) -> Iterator[Tensor]:
    """The tensors of such a checkpoint. Raises NotKnown for a model that is not understood."""
    packing = _packing(loading.kind) if loading.kind else None
    experts = loading.kind is not None and _only_experts(loading.kind)
    for name, shape, quantised in _rows(config):
        if packing and quantised and (not experts or ".experts." in name):
            yield from _packed(name, shape, packing)
        else:
            named = name if name.endswith("bias") else f"{name}.weight"
            yield Tensor(named, "BF16", shape)


def _packed(name: str, shape: tuple[int, ...], packing: _Packing) -> Iterator[Tensor]:
    """In bytes: what is written as whole numbers of another size has as many of them."""
    *outer, columns = shape
    yield Tensor(f"{name}.{packing.weight}", "U8", (*outer, columns * packing.bits // 8))
    if packing.group:
        groups = -(-columns // packing.group)
        yield Tensor(f"{name}.weight_scale", "U8", (*outer, groups * packing.shared // 8))
    if packing.square:
        *outer, rows, columns = shape
        blocks = -(-rows // packing.square), -(-columns // packing.square)
        yield Tensor(f"{name}.weight_scale_inv", "F32", (*outer, *blocks))


def _need(value: int | None, name: str) -> int:
    if value is None:
        raise NotKnown(Text("config.json does not say {name}", name=name))
    return value


def _layers(count: int | None, name: str) -> int:
    """A number of layers that a model can have."""
    if (made := _need(count, name)) > _MOST_LAYERS:
        raise NotKnown(Text("{count} layers ({name}) are too many", count=made, name=name))
    return made


def _count(config: ConfigJson, *names: str) -> int:
    return _need(config.count(*names), names[0])


def _not_understood(config: ConfigJson) -> NotKnown:
    kind = config.text_model_type or config.model_type or "?"
    return NotKnown(
        Text(
            "the layers of a {kind} model are not known: the size of its weights needs the "
            "checkpoint's headers (its *.safetensors files)",
            kind=kind,
        )
    )


def _rows(config: ConfigJson) -> Iterator[_Row]:
    kind = config.text_model_type
    if kind in _ENCODERS:
        yield from _encoder(config)
        return
    if kind not in _DENSE and kind not in _MOE:
        raise _not_understood(config)
    yield from _vision(config)
    hidden = _need(config.hidden_size, "hidden_size")
    vocabulary = _need(config.vocabulary, "vocab_size")
    yield "model.embed_tokens", (vocabulary, hidden), False
    if not tied(config):
        yield "lm_head", (vocabulary, hidden), False
    yield "model.norm", (hidden,), False
    for layer in range(_layers(config.layers, "num_hidden_layers")):
        for name, shape, quantised in _layer(config, layer):
            yield f"model.layers.{layer}.{name}", shape, quantised


def tied(config: ConfigJson) -> bool:
    """Whether the head is the table of embeddings. Raises NotKnown."""
    for part in (config.text, config.values):
        if isinstance(said := part.get("tie_word_embeddings"), bool):
            return said
    raise NotKnown(Text("config.json does not say {name}", name="tie_word_embeddings"))


def _layer(config: ConfigJson, layer: int) -> Iterator[_Row]:
    hidden = _need(config.hidden_size, "hidden_size")
    yield "input_layernorm", (hidden,), False
    yield "post_attention_layernorm", (hidden,), False
    if config.text_model_type in _FOUR_NORMS:
        yield "pre_feedforward_layernorm", (hidden,), False
        yield "post_feedforward_layernorm", (hidden,), False
    if config.mla:
        yield from _mla(config)
    elif config.text_model_type in _HYBRID and _linear(config, layer):
        yield from _delta_net(config)
    else:
        yield from _gqa(config)
    if _has_experts(config, layer):
        yield from _sparse(config)
    else:
        yield from _feed_forward("mlp", hidden, _count(config, "intermediate_size"))


def _linear(config: ConfigJson, layer: int) -> bool:
    kinds = config.text.get("layer_types")
    if isinstance(kinds, list) and layer < len(kinds):
        return bool(kinds[layer] == "linear_attention")
    return (layer + 1) % _count(config, "full_attention_interval") != 0


def _has_experts(config: ConfigJson, layer: int) -> bool:
    if config.text_model_type in _DENSE:
        return False
    if not config.experts:
        raise NotKnown(Text("config.json does not say {name}", name="num_experts"))
    if config.count("decoder_sparse_step") not in (None, 1):
        raise _not_understood(config)
    alone = config.text.get("mlp_only_layers")
    if isinstance(alone, list) and layer in alone:
        return False
    return layer >= (config.count("first_k_dense_replace") or 0)


def _gqa(config: ConfigJson) -> Iterator[_Row]:
    kind, hidden = config.text_model_type, _need(config.hidden_size, "hidden_size")
    heads, size = _need(config.attention_heads, "heads"), _need(config.head_size, "head_dim")
    pairs = _need(config.key_value_heads, "num_key_value_heads") * size
    queries = heads * size * (2 if kind in _HYBRID else 1)  # with a gate
    biased = kind == "qwen2" or config.text.get("attention_bias") is True
    for name, rows in (("q_proj", queries), ("k_proj", pairs), ("v_proj", pairs)):
        yield f"self_attn.{name}", (rows, hidden), True
        if biased:
            yield f"self_attn.{name}.bias", (rows,), False
    yield "self_attn.o_proj", (hidden, heads * size), True
    if kind in _HEAD_NORMS or kind in _HYBRID:
        yield "self_attn.q_norm", (size,), False
        yield "self_attn.k_norm", (size,), False


def _mla(config: ConfigJson) -> Iterator[_Row]:
    hidden, heads = _need(config.hidden_size, "hidden_size"), _need(config.attention_heads, "heads")
    nope, rope = _count(config, "qk_nope_head_dim"), config.count("qk_rope_head_dim") or 0
    value, rank = _count(config, "v_head_dim"), _count(config, "kv_lora_rank")
    query = config.count("q_lora_rank")
    if query:
        yield "self_attn.q_a_proj", (query, hidden), True
        yield "self_attn.q_a_layernorm", (query,), False
        yield "self_attn.q_b_proj", (heads * (nope + rope), query), True
    else:
        yield "self_attn.q_proj", (heads * (nope + rope), hidden), True
    yield "self_attn.kv_a_proj_with_mqa", (rank + rope, hidden), True
    yield "self_attn.kv_a_layernorm", (rank,), False
    yield "self_attn.kv_b_proj", (heads * (nope + value), rank), True
    yield "self_attn.o_proj", (hidden, heads * value), True
    if (wide := config.count("index_head_dim")) and query:  # of sparse attention
        several = _count(config, "index_n_heads")
        yield "self_attn.indexer.wq_b", (several * wide, query), True
        yield "self_attn.indexer.wk", (wide, hidden), True
        yield "self_attn.indexer.weights_proj", (several, hidden), False


def _delta_net(config: ConfigJson) -> Iterator[_Row]:
    """GatedDeltaNet: queries, keys, values and a gate; two numbers for each value head."""
    hidden = _need(config.hidden_size, "hidden_size")
    values = _count(config, "linear_num_value_heads")
    wide = values * _count(config, "linear_value_head_dim")
    keys = _count(config, "linear_num_key_heads") * _count(config, "linear_key_head_dim")
    yield "linear_attn.in_proj_qkvz", (2 * keys + 2 * wide, hidden), True
    yield "linear_attn.in_proj_ba", (2 * values, hidden), False
    yield "linear_attn.conv1d", (2 * keys + wide, _count(config, "linear_conv_kernel_dim")), False
    yield "linear_attn.out_proj", (hidden, wide), True


def _feed_forward(name: str, hidden: int, rows: int) -> Iterator[_Row]:
    yield f"{name}.gate_proj", (rows, hidden), True
    yield f"{name}.up_proj", (rows, hidden), True
    yield f"{name}.down_proj", (hidden, rows), True


def _sparse(config: ConfigJson) -> Iterator[_Row]:
    hidden = _need(config.hidden_size, "hidden_size")
    experts, rows = _need(config.experts, "experts"), _need(config.expert_size, "expert size")
    yield "mlp.experts.gate_up_proj", (experts, 2 * rows, hidden), True
    yield "mlp.experts.down_proj", (experts, hidden, rows), True
    yield "mlp.gate", (experts, hidden), False
    if config.text_model_type == "gpt_oss":
        yield "mlp.experts.gate_up_proj.bias", (experts, 2 * rows), False
        yield "mlp.experts.down_proj.bias", (experts, hidden), False
    shared = config.count("shared_expert_intermediate_size")
    if shared is not None:
        yield "mlp.shared_expert_gate", (1, hidden), False
    else:
        shared = rows * (config.count("n_shared_experts") or 0)
    if shared:
        yield from _feed_forward("mlp.shared_expert", hidden, shared)


def _encoder(config: ConfigJson) -> Iterator[_Row]:
    hidden, rows = _need(config.hidden_size, "hidden_size"), _count(config, "intermediate_size")
    places = _count(config, "max_position_embeddings")
    yield "embeddings.word_embeddings", (_need(config.vocabulary, "vocab_size"), hidden), False
    yield "embeddings.position_embeddings", (places, hidden), False
    yield (
        "embeddings.token_type_embeddings",
        (config.count("type_vocab_size") or 0, hidden),
        False,
    )
    for layer in range(_layers(config.layers, "num_hidden_layers")):
        name = f"encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            yield f"{name}.attention.self.{part}", (hidden, hidden), True
            yield f"{name}.attention.self.{part}.bias", (hidden,), False
        yield f"{name}.attention.output.dense", (hidden, hidden), True
        yield f"{name}.intermediate.dense", (rows, hidden), True
        yield f"{name}.intermediate.dense.bias", (rows,), False
        yield f"{name}.output.dense", (hidden, rows), True
        yield f"{name}.norms", (6, hidden), False


def _vision(config: ConfigJson) -> Iterator[_Row]:
    """Of the vision tower, nothing where it has none. Raises NotKnown for one that is not
    understood."""
    said = config.values.get("vision_config")
    if not said:
        other = ("audio_config", "vision_tower", "mm_vision_tower", "vit_config", "thinker_config")
        if any(config.values.get(name) for name in other):
            raise _not_understood(config)
        return
    if not isinstance(said, dict) or config.model_type not in _VISION:
        raise _not_understood(config)
    yield from _qwen_tower(said)


def _qwen_tower(said: Mapping[str, Any]) -> Iterator[_Row]:
    part = ConfigJson(said)  # it has no parts of its own
    hidden, rows = _count(part, "hidden_size"), _count(part, "intermediate_size")
    merged = hidden * _count(part, "spatial_merge_size") ** 2
    patch = _count(part, "patch_size") ** 2 * _count(part, "temporal_patch_size")
    channels = part.count("in_channels", "in_chans") or 3
    yield "visual.patch_embed.proj", (hidden, channels * patch), False
    yield "visual.pos_embed", (_count(part, "num_position_embeddings"), hidden), False
    deep = said.get("deepstack_visual_indexes")
    for number in range(1 + (len(deep) if isinstance(deep, list) else 0)):
        yield f"visual.merger_list.{number}.linear_fc1", (merged, merged), False
        out = _count(part, "out_hidden_size")
        yield f"visual.merger_list.{number}.linear_fc2", (out, merged), False
    for block in range(_layers(part.count("depth"), "depth")):
        name = f"visual.blocks.{block}"
        yield f"{name}.attn.qkv", (3 * hidden, hidden), False
        yield f"{name}.attn.proj", (hidden, hidden), False
        yield f"{name}.mlp.linear_fc1", (rows, hidden), False
        yield f"{name}.mlp.linear_fc2", (hidden, rows), False
        yield f"{name}.norms", (9 * hidden + rows,), False
