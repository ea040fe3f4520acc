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
        "gemma4_text",
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
        "llama4_text",
        "mimo_v2_flash",
        "minimax_m2",
        "mixtral",
        "qwen2_moe",
        "qwen3_5_moe_text",
        "qwen3_moe",
        "qwen3_next",
        "qwen3_vl_moe_text",
    ]
)
_NEMOTRON = "nemotron_h"
_ENCODERS = frozenset(("bert", "roberta", "xlm-roberta"))
_DRAFTING = frozenset(
    ("deepseek_v3", "deepseek_v32", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "kimi_k2")
)
# Every fourth layer of these has attention, the others a gated delta net.
_HYBRID = frozenset(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"))
_QWEN_TOWERS = frozenset(("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen3_5_text"))
_TOWERS = frozenset(("gemma3", "gemma3_text", "gemma4", "llama4", "mistral", "mistral3"))
_GATED_TOWERS = frozenset(("gemma4", "mistral", "mistral3"))
# Whose heads each have a norm for queries and one for keys.
_HEAD_NORMS = frozenset(
    ("qwen3", "qwen3_moe", "qwen3_vl_text", "qwen3_vl_moe_text", "gemma3_text", "gemma4_text")
)
_FOUR_NORMS = frozenset(("gemma2", "gemma3_text", "gemma4_text", "glm4"))
_UNTIED = frozenset(("llama4_text",))  # of its class, where a config.json does not say so

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

    @property
    def padded(self) -> bool:
        """Whether the kernels of the GPU pad experts."""
        return self.kind is not None and self.kind.method == "mxfp4"


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


def drafter_of(config: ConfigJson, loading: Loading) -> Iterator[Tensor]:
    """The tensors of the layers that draft tokens (MTP), which only speculative decoding loads; the
    tables of embeddings are the model's own. Raises NotKnown."""
    kind, hidden = config.text_model_type, _need(config.hidden_size, "hidden_size")
    first = _need(config.layers, "num_hidden_layers")
    if kind not in _DRAFTING and kind not in _HYBRID:
        raise NotKnown(Text("the layers with which a {kind} model drafts are not known", kind=kind))
    more = config.count("num_nextn_predict_layers", "mtp_num_hidden_layers") or 1
    packing = _packing(loading.kind) if loading.kind else None
    for layer in range(first, first + _layers(more, "num_nextn_predict_layers")):
        yield Tensor(f"model.layers.{layer}.eh_proj.weight", "BF16", (hidden, 2 * hidden))
        for name, shape, quantised in _layer(config, layer, drafts=True):
            full = f"model.layers.{layer}.{name}"
            if packing and quantised:
                yield from _packed(full, shape, packing)
            else:
                yield Tensor(full if full.endswith("bias") else f"{full}.weight", "BF16", shape)


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
    if kind not in _DENSE and kind not in _MOE and kind != _NEMOTRON:
        raise _not_understood(config)
    yield from _vision(config)
    hidden = _need(config.hidden_size, "hidden_size")
    vocabulary = _need(config.vocabulary, "vocab_size")
    yield "model.embed_tokens", (vocabulary, hidden), False
    if not tied(config):
        yield "lm_head", (vocabulary, hidden), False
    yield "model.norm", (hidden,), False
    for layer in range(_layers(config.layers, "num_hidden_layers")):
        rows = _mixer(config, layer) if kind == _NEMOTRON else _layer(config, layer)
        for name, shape, quantised in rows:
            yield f"model.layers.{layer}.{name}", shape, quantised


def tied(config: ConfigJson) -> bool:
    """Whether the head is the table of embeddings. Raises NotKnown."""
    for part in (config.text, config.values):
        if isinstance(said := part.get("tie_word_embeddings"), bool):
            return said
    if config.text_model_type in _UNTIED:
        return False
    raise NotKnown(Text("config.json does not say {name}", name="tie_word_embeddings"))


def _layer(config: ConfigJson, layer: int, drafts: bool = False) -> Iterator[_Row]:
    hidden = _need(config.hidden_size, "hidden_size")
    yield "input_layernorm", (hidden,), False
    yield "post_attention_layernorm", (hidden,), False
    if config.text_model_type in _FOUR_NORMS:
        yield "pre_feedforward_layernorm", (hidden,), False
        yield "post_feedforward_layernorm", (hidden,), False
    if config.mla:
        yield from _mla(config)
    elif config.text_model_type in _HYBRID and not drafts and _linear(config, layer):
        yield from _delta_net(config)
    else:
        yield from _gqa(config, layer)
    experts = _has_experts(config, layer)
    if experts:
        yield from _sparse(config)
    if not experts or config.text_model_type == "gemma4_text":  # which has both
        rows = _count(config, "intermediate_size_mlp", "intermediate_size")
        yield from _feed_forward("mlp", hidden, rows)


def _linear(config: ConfigJson, layer: int) -> bool:
    kinds = config.text.get("layer_types")
    if isinstance(kinds, list) and layer < len(kinds):
        return bool(kinds[layer] == "linear_attention")
    return (layer + 1) % _count(config, "full_attention_interval") != 0


def _has_experts(config: ConfigJson, layer: int) -> bool:
    text, kind = config.text, config.text_model_type
    if kind == "gemma4_text":
        if config.experts and "enable_moe_block" not in text:
            raise NotKnown(Text("config.json does not say {name}", name="enable_moe_block"))
        return text.get("enable_moe_block") is True
    if kind in _DENSE:
        return False
    if not config.experts:
        raise NotKnown(Text("config.json does not say {name}", name="num_experts"))
    if config.count("decoder_sparse_step") not in (None, 1):
        raise _not_understood(config)
    if isinstance(which := text.get("moe_layer_freq"), list) and layer < len(which):
        return bool(which[layer])
    if step := config.count("interleave_moe_layer_step"):
        return (layer + 1) % step == 0
    alone = text.get("mlp_only_layers")
    if isinstance(alone, list) and layer in alone:
        return False
    every = config.count("moe_layer_freq") or 1
    return layer >= (config.count("first_k_dense_replace") or 0) and layer % every == 0


@dataclass(frozen=True)
class Heads:
    """Of one layer's attention: how many, and of which size those of keys and those of values are.
    `shared`: values are the keys, and the checkpoint has them once."""

    queries: int
    pairs: int
    keys: int
    values: int
    shared: bool = False


def heads_of(config: ConfigJson, layer: int) -> Heads:
    """Raises NotKnown."""
    text, kind = config.text, config.text_model_type
    queries = _need(config.attention_heads, "num_attention_heads")
    pairs = _need(config.key_value_heads, "num_key_value_heads")
    if kind == "gemma4_text":
        if config.count("hidden_size_per_layer_input", "num_kv_shared_layers"):
            raise _not_understood(config)
        if not _is_full(config, layer):
            size = _count(config, "head_dim")
            return Heads(queries, pairs, size, size)
        size, shared = _count(config, "global_head_dim"), text.get("attention_k_eq_v") is True
        pairs = (config.count("num_global_key_value_heads") if shared else None) or pairs
        return Heads(queries, pairs, size, size, shared)
    size = _need(config.head_size, "head_dim")
    if kind == "mimo_v2_flash":
        sliding = text.get("hybrid_layer_pattern")
        if isinstance(sliding, list) and layer < len(sliding) and sliding[layer] == 1:
            more = _count(config, "swa_num_attention_heads"), _count(config, "swa_head_dim")
            pairs = _count(config, "swa_num_key_value_heads")
            return Heads(more[0], pairs, more[1], _count(config, "swa_v_head_dim"))
        return Heads(queries, pairs, size, _count(config, "v_head_dim"))
    return Heads(queries, pairs, size, size)


def _is_full(config: ConfigJson, layer: int) -> bool:
    kinds = config.text.get("layer_types")
    if not isinstance(kinds, list) or layer >= len(kinds):
        raise NotKnown(Text("config.json does not say {name}", name="layer_types"))
    return bool(kinds[layer] == "full_attention")


def _gqa(config: ConfigJson, layer: int, name: str = "self_attn") -> Iterator[_Row]:
    kind, hidden = config.text_model_type, _need(config.hidden_size, "hidden_size")
    heads = heads_of(config, layer)
    queries = heads.queries * heads.keys * (2 if kind in _HYBRID else 1)  # with a gate
    parts = [("q_proj", queries), ("k_proj", heads.pairs * heads.keys)]
    if not heads.shared:
        parts.append(("v_proj", heads.pairs * heads.values))
    biased = kind == "qwen2" or config.text.get("attention_bias") is True
    for part, rows in parts:
        yield f"{name}.{part}", (rows, hidden), True
        if biased:
            yield f"{name}.{part}.bias", (rows,), False
    yield f"{name}.o_proj", (hidden, heads.queries * heads.values), True
    if kind in _HEAD_NORMS or kind in _HYBRID:
        yield f"{name}.q_norm", (heads.keys,), False
        yield f"{name}.k_norm", (heads.keys,), False


def _mixer(config: ConfigJson, layer: int) -> Iterator[_Row]:
    """A layer of Nemotron-H, which is one thing alone: a Mamba, attention, experts or a dense
    part."""
    hidden = _need(config.hidden_size, "hidden_size")
    said = config.text.get("hybrid_override_pattern")
    if not isinstance(said, str) or layer >= len(said):
        raise NotKnown(Text("config.json does not say {name}", name="hybrid_override_pattern"))
    yield "norm", (hidden,), False
    if said[layer] == "M":
        yield from _mamba(config)
    elif said[layer] == "*":
        yield from _gqa(config, layer, "mixer")
    elif said[layer] == "E":
        yield from _nemotron_experts(config)
    else:
        rows = _count(config, "intermediate_size")
        yield "mixer.up_proj", (rows, hidden), True
        yield "mixer.down_proj", (hidden, rows), True


def _mamba(config: ConfigJson) -> Iterator[_Row]:
    hidden, heads = _need(config.hidden_size, "hidden_size"), _count(config, "mamba_num_heads")
    wide = heads * _count(config, "mamba_head_dim")
    states = 2 * _count(config, "n_groups") * _count(config, "ssm_state_size")
    yield "mixer.in_proj", (2 * wide + states + heads, hidden), True
    yield "mixer.conv1d", (wide + states, _count(config, "conv_kernel")), False
    yield "mixer.out_proj", (hidden, wide), True
    yield "mixer.norm", (wide,), False


def _nemotron_experts(config: ConfigJson) -> Iterator[_Row]:
    hidden, experts = _need(config.hidden_size, "hidden_size"), _need(config.experts, "experts")
    rows, latent = _count(config, "moe_intermediate_size"), config.count("moe_latent_size")
    yield "mixer.gate", (experts, hidden), False
    yield "mixer.experts.up_proj", (experts, rows, latent or hidden), True
    yield "mixer.experts.down_proj", (experts, latent or hidden, rows), True
    if latent:
        yield "mixer.fc1_latent_proj", (latent, hidden), False
        yield "mixer.fc2_latent_proj", (hidden, latent), False
    shared = _count(config, "moe_shared_expert_intermediate_size")
    shared *= config.count("n_shared_experts") or 0
    if shared:
        yield "mixer.shared_experts.up_proj", (shared, hidden), True
        yield "mixer.shared_experts.down_proj", (hidden, shared), True


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
    if config.text_model_type == "llama4_text":
        yield from _feed_forward("mlp.shared_expert", hidden, rows)
        return
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
    if not isinstance(said, dict):
        raise _not_understood(config)
    if config.model_type in _QWEN_TOWERS and "depth" in said:
        yield from _qwen_tower(said)
    elif config.model_type in _QWEN_TOWERS or config.model_type in _TOWERS:
        yield from _tower(config, ConfigJson(said))
    else:
        raise _not_understood(config)


def _tower(config: ConfigJson, part: ConfigJson) -> Iterator[_Row]:
    """A transformer of the usual form and what leads from it into the language model; the table of
    places is not known."""
    wide, rows = _count(part, "hidden_size"), _count(part, "intermediate_size")
    hidden = _need(config.hidden_size, "hidden_size")
    merged = 4 * wide if config.model_type in _QWEN_TOWERS else wide
    yield "multi_modal_projector.linear_1", (merged, merged), False
    yield "multi_modal_projector.linear_2", (hidden, merged), False
    gates = 2 if config.model_type in _GATED_TOWERS else 1
    for layer in range(_layers(part.layers, "num_hidden_layers")):
        name = f"vision_tower.layers.{layer}"
        yield f"{name}.self_attn.qkv_proj", (3 * wide, wide), False
        yield f"{name}.self_attn.o_proj", (wide, wide), False
        yield f"{name}.mlp.fc1", (gates * rows, wide), False
        yield f"{name}.mlp.fc2", (wide, rows), False


def _qwen_tower(said: Mapping[str, Any]) -> Iterator[_Row]:
    part = ConfigJson(said)  # it has no parts of its own
    hidden, rows = _count(part, "hidden_size"), _count(part, "intermediate_size")
    merged = hidden * _count(part, "spatial_merge_size") ** 2
    patch = _count(part, "patch_size") ** 2 * _count(part, "temporal_patch_size")
    channels = part.count("in_channels", "in_chans") or 3
    yield "visual.patch_embed.proj", (hidden, channels * patch), False
    yield "visual.pos_embed", (_count(part, "num_position_embeddings"), hidden), False
    deep = said.get("deepstack_visual_indexes")
    mergers = 1 + (len(deep) if isinstance(deep, list) else 0)
    for number in range(_layers(mergers, "deepstack_visual_indexes")):
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
