"""What vLLM and transformers read in a model's config.json.

Read in vLLM 0.22.0 and 0.33.0 (transformers_utils/model_arch_config_convertor.py and config.py,
config/model.py), transformers 4.57 and 5.20. Their own classes fill in what a config.json leaves
out; here that is not known. So is a value of another type than theirs: "32" is no number.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol

from doctor.frozen import dataclass
from doctor.profile import ModelNeeds

_MOST = 1 << 40  # of a count: more than any model has of anything
_LONGEST_NAME = 200

# PretrainedConfig.get_text_config has the first four; vLLM takes llm_config for the first of them
# (_CONFIG_ATTRS_MAPPING), and the classes of DeepSeek-VL2 and of Qwen-Omni the last two.
_TEXT_PARTS = (
    "text_config",
    "text_encoder",
    "decoder",
    "generator",
    "llm_config",
    "language_config",
    "thinker_config",
)
# The names that attribute_map of transformers' classes gives: GPT-2, Bloom, MPT, Falcon's RW.
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers")
_HIDDEN = ("hidden_size", "n_embd", "d_model")
# CONFIG_FIELD_ALIASES (0.33), get_total_num_kv_heads and get_num_experts (0.22), in their order.
_KEY_VALUE_HEADS = (
    "n_head_kv",
    "num_kv_heads",
    "num_key_value_heads",
    "multi_query_group_num",
    "num_attention_groups",
)
_EXPERTS = ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")
_VISION_HEADS = ("num_heads", "num_attention_heads", "vt_num_attention_heads")
# Whose class takes as many as attention heads where none are said; others have a number of their
# own there (8 in Mistral's), which is not known from here.
_AS_MANY_AS_HEADS = frozenset(
    [
        "bert",
        "bloom",
        "cohere",
        "gpt2",
        "gpt_neox",
        "gptj",
        "granite",
        "llama",
        "olmo2",
        "opt",
        "phi",
        "phi3",
        "roberta",
        "stablelm_epoch",
        "xlm-roberta",
    ]
)
_MAMBA = frozenset(("mamba", "falcon_mamba"))
# is_deepseek_mla, of both versions.
_MLA = frozenset(
    [
        "AXK1",
        "axk1",
        "bailing_hybrid",
        "bailing_hybrid_mtp",
        "bailing_hybrid_v3_mtp",
        "deepseek_mtp",
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v32",
        "deepseek_v4",
        "deepseek_v41",
        "dots3_note",
        "glm4_moe_lite",
        "glm4_moe_lite_mtp",
        "glm5_next",
        "glm5_next_text",
        "glm_moe_dsa",
        "hy_v4",
        "hy_v4_mtp",
        "k3_dspark",
        "kimi_k2",
        "kimi_linear",
        "longcat_flash",
        "pangu_ultra_moe",
        "pangu_ultra_moe_mtp",
    ]
)
# Whose params.json vLLM reads, as a deepseek_v3 (transformers_utils/configs/mistral.py).
_READ_AS_MLA = frozenset(("mistral4",))
# derive_max_model_len_and_key
_LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
# _SUFFIX_TO_DEFAULTS of config/model.py, in its order; what it runs as.
_RUNNERS = (
    ("ForCausalLM", "generate"),
    ("ForConditionalGeneration", "generate"),
    ("ChatModel", "generate"),
    ("LMHeadModel", "generate"),
    ("ForTextEncoding", "pooling"),
    ("EmbeddingModel", "pooling"),
    ("Classification", "pooling"),
    ("ClassificationModel", "pooling"),
    ("ForRewardModeling", "pooling"),
    ("RewardModel", "pooling"),
    ("Model", "pooling"),
)

UNSCALED = ("su", "longrope", "llama3")
"""The kinds of rope whose factor does not lengthen the model, in _get_and_verify_max_len of 0.22;
0.33 has yarn, deepseek_yarn and deepseek_llama_scaling besides."""


class Configuration(Protocol):
    """`values`: of a config.json, {} where none was found; `weights`: bytes of all weights as one
    rank that holds the whole model loads them."""

    @property
    def values(self) -> Mapping[str, Any]: ...

    @property
    def weights(self) -> int | None: ...


@dataclass(frozen=True)
class DerivedLength:
    """The most tokens that a model was made for, and the name of the value that says so."""

    tokens: int
    key: str


@dataclass(frozen=True)
class Quantization:
    """How a checkpoint is quantised. `method`: quant_method as vLLM spells it, "" where none is
    said; `algorithm`: modelopt's quant_algo or compressed-tensors' format; `bits`: of each weight,
    None where they differ or are not said; `group`: how many weights share a scale; `ignored`:
    the modules that are not, as the checkpoint names them."""

    method: str
    algorithm: str | None = None
    bits: int | None = None
    group: int | None = None
    ignored: tuple[str, ...] = ()


class ConfigJson:
    """The values of a config.json as vLLM reads them; None for what is not known."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def count(self, *names: str) -> int | None:
        """The first of these that the text part has, where that is a whole number above 0."""
        return _first(self.text, names)

    @functools.cached_property
    def text(self) -> Mapping[str, Any]:
        """The part about the language model (get_hf_text_config): all of it where it has no parts;
        {} where several claim to be it, for which transformers ends."""
        return _text_of(self.values)

    @functools.cached_property
    def architectures(self) -> tuple[str, ...]:
        """The classes of the model, in the order in which vLLM looks for them."""
        given = self.values.get("architectures")
        named = (_name(one) for one in given) if isinstance(given, list) else ()
        return tuple(name for name in named if name is not None)

    @functools.cached_property
    def model_type(self) -> str | None:
        return _name(self.values.get("model_type"))

    @functools.cached_property
    def text_model_type(self) -> str | None:
        return _name(self.text.get("model_type"))

    @functools.cached_property
    def attention_heads(self) -> int | None:
        """get_total_num_attention_heads"""
        return self.count(*_HEADS)

    @functools.cached_property
    def key_value_heads(self) -> int | None:
        """get_total_num_kv_heads, with the exceptions that convertors of 0.22 and 0.33 make."""
        kind, text = self.model_type, self.text
        if kind in _MAMBA:
            return None
        if kind == "nemotron-nas":
            return self._heads_of_blocks()
        if kind in ("mpt", "dbrx"):
            own = _table(text.get("attn_config"))
            return _first(own, ("kv_n_heads",)) or (self.attention_heads if own else None)
        falcon = kind in ("falcon", "RefinedWeb", "RefinedWebModel")
        if falcon and text.get("multi_query") and not text.get("new_decoder_architecture"):
            return 1
        for name in _KEY_VALUE_HEADS:
            if name in text:
                same = text[name] is None  # transformers' classes then take as many
                return self.attention_heads if same else _count(text[name])
        as_many = self.text_model_type in _AS_MANY_AS_HEADS or falcon
        return self.attention_heads if as_many else None

    def _heads_of_blocks(self) -> int | None:
        """Of the first layer that has any (NemotronNasModelArchConfigConvertor)."""
        blocks = self.text.get("block_configs")
        for block in blocks if isinstance(blocks, list) else ():
            attention = _table(_table(block).get("attention"))
            if not attention.get("no_op"):
                group = _first(attention, ("n_heads_in_group",))
                return self.attention_heads // group if self.attention_heads and group else None
        return None

    @functools.cached_property
    def mla(self) -> bool:
        """Whether vLLM keeps one latent key/value for all heads (is_deepseek_mla)."""
        if self.text_model_type not in _MLA | _READ_AS_MLA:
            return False
        if self.text.get("compress_ratios") is not None:
            return self.text.get("head_dim") is not None
        return self.text.get("kv_lora_rank") is not None

    @functools.cached_property
    def head_size(self) -> int | None:
        """get_head_size, MLA not disabled: of MLA the latent with its rope. Without a head_dim,
        only where transformers' class has no number of its own."""
        text = self.text
        if self.mla:
            if text.get("compress_ratios") is not None:
                return self.count("head_dim")
            rank, rope = self.count("kv_lora_rank"), _whole(text.get("qk_rope_head_dim", 0))
            return None if rank is None or rope is None else rank + rope
        if self.text_model_type in ("gemma4_text", "gemma4_unified_text", "diffusion_gemma_text"):
            sizes = [self.count("head_dim"), self.count("global_head_dim")]
            return max((size for size in sizes if size is not None), default=None)
        if (said := self.count("head_dim", "hidden_size_per_head")) is not None:
            return said
        hidden, heads = self.hidden_size, self.attention_heads
        if text.get("head_dim") is not None or not hidden or not heads:
            return None
        return None if self.text_model_type in _OWN_HEAD_DIM else hidden // heads

    @functools.cached_property
    def layers(self) -> int | None:
        """get_num_hidden_layers"""
        if self.text_model_type == "longcat_flash":  # two attentions in each
            return self.count("num_layers")
        kinds = self.text.get("layers_block_type")  # Nemotron-H's class counts them
        counted = len(kinds) if isinstance(kinds, list) else None
        return self.count(*_LAYERS) or _count(counted)

    @functools.cached_property
    def hidden_size(self) -> int | None:
        return self.count(*_HIDDEN)

    @functools.cached_property
    def vocabulary(self) -> int | None:
        return self.count("vocab_size")

    @functools.cached_property
    def experts(self) -> int | None:
        """get_num_experts: 0 where none are said."""
        for name in _EXPERTS:
            if name in self.text:
                said = self.text[name]
                if isinstance(said, list) and said:  # Ernie VL's
                    said = said[0]
                return 0 if said is None else _whole(said)
        blocks = self.text.get("block_configs")
        listed = map(_table, blocks) if isinstance(blocks, list) else ()
        counts = (_first(b, ("n_routed_experts",)) for b in listed if b.get("block_type") == "moe")
        return max((count or 0 for count in counts), default=0)

    @functools.cached_property
    def expert_size(self) -> int | None:
        """The rows of each expert (moe_intermediate_size of CONFIG_FIELD_ALIASES); None where it
        has no experts."""
        return self.count("moe_intermediate_size", "intermediate_size") if self.experts else None

    @functools.cached_property
    def dense_size(self) -> int | None:
        """The rows of the layers without experts, where it is sure that there are some."""
        if not self.experts:
            return self.count("intermediate_size", "ffn_dim", "n_inner") if self.text else None
        if self.count("first_k_dense_replace") is None:
            return None
        return self.count("dense_intermediate_size", "intermediate_size")

    @functools.cached_property
    def vision_heads(self) -> int | None:
        """Attention heads of its vision tower."""
        whole = _table(self.values.get("thinker_config")) or self.values
        return _first(_table(whole.get("vision_config")), _VISION_HEADS)

    @property
    def sliding_window(self) -> int | None:
        if self.text.get("use_sliding_window") is False:  # Qwen2's class then has none
            return None
        return self.count("sliding_window")

    @property
    def pooling(self) -> bool | None:
        """Whether vLLM runs its class as a pooling model (embedding, scoring) of itself; None where
        the name of the class does not say."""
        for name in self.architectures:
            for ending, runner in _RUNNERS:
                if name.endswith(ending):
                    return runner == "pooling"
        return None

    @property
    def auto_map(self) -> Mapping[str, Any]:
        """Which classes of the model the repository's own code makes: AutoConfig, AutoModel..."""
        return _table(self.values.get("auto_map"))

    @functools.cached_property
    def dtype(self) -> str | None:
        """The type of the weights, such as bfloat16 (get_torch_dtype). Without it vLLM asks the
        weights themselves."""
        vision, encoder = (self.values.get(name) for name in ("vision_config", "encoder_config"))
        for part in (self.values, self.text, _table(vision), _table(encoder)):
            for key in ("dtype", "torch_dtype"):
                if (name := _name(part.get(key))) is not None:
                    return name.removeprefix("torch.")
        return None

    @functools.cached_property
    def quantization(self) -> Quantization | None:
        """get_quantization_config: None where it has none. What stands in hf_quant_config.json is
        `quantization_config` here as well, as get_config makes it."""
        for part in (self.values, _table(self.values.get("text_config"))):
            for key in ("quantization_config", "compression_config"):
                if said := _table(part.get(key)):
                    return _quantization(said)
        return None

    @property
    def model_max_length(self) -> int | None:
        """A length beyond the derived one that may be asked for all the same."""
        return _count(self.values.get("model_max_length"))

    def length(self, unscaled: Collection[str] = UNSCALED) -> DerivedLength | None:
        """The longest --max-model-len that vLLM takes from config.json (_get_and_verify_max_len),
        whose tokenizer may say less; None where it is not known. `unscaled`: the kinds of rope
        whose factor is not applied, as the installed vLLM has them."""
        found = self._said_length()
        if found is None or "gemma3" in (self.model_type or ""):
            return found
        tokens: float = found.tokens
        factor: float = 1.0
        for rope in self.ropes:
            kind = rope.get("rope_type", rope.get("type"))
            if kind in unscaled:
                continue
            said = rope.get("factor", factor)
            if said is None:
                said = 1.0
            if isinstance(said, bool) or not isinstance(said, (int, float)) or not 0 < said < 1e6:
                return None
            factor = said
            if kind == "yarn":
                base = rope.get("original_max_position_embeddings")
                if (original := _count(base)) is None:
                    return None
                tokens = original
        return DerivedLength(math.floor(tokens * factor), found.key)

    def _said_length(self) -> DerivedLength | None:
        said = [(_whole(self.text[n]), n) for n in _LENGTHS if self.text.get(n) is not None]
        counts = [(tokens, name) for tokens, name in said if tokens]
        if not counts or len(counts) < len(said):
            return None
        least = min(tokens for tokens, _ in counts)
        by_name = {name: tokens for tokens, name in reversed(counts)}
        if "model_max_length" in by_name:
            return DerivedLength(by_name["model_max_length"], "model_max_length")
        return DerivedLength(least, next(n for tokens, n in counts if tokens == least))

    @functools.cached_property
    def ropes(self) -> tuple[Mapping[str, Any], ...]:
        """The rope parameters at the top of the file, one table for each kind of layers; {} of none
        (iter_rope_parameters, patch_rope_parameters: rope_scaling is the old name)."""
        said = _table(self.values.get("rope_parameters")) or _table(self.values.get("rope_scaling"))
        nested = [_table(one) for one in said.values() if isinstance(one, dict)]
        if nested and "rope_type" not in said and "type" not in said:
            return tuple(one for one in nested if one)
        return (said,) if said else ()


# Whose class in transformers has a head_dim of its own where config.json has none.
_OWN_HEAD_DIM = frozenset(
    [
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3_text",
        "gemma3n_text",
        "glm",
        "glm4",
        "gpt_oss",
        "helium",
        "llama4_text",
        "minimax_m2",
        "qwen3",
        "qwen3_moe",
        "qwen3_next",
        "qwen3_5_text",
        "qwen3_5_moe_text",
        "qwen3_vl_text",
        "qwen3_vl_moe_text",
        "seed_oss",
    ]
)


def overridden(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The values with --hf-overrides put in: a part of the configuration (text_config) is changed
    key by key, any other value as a whole (_apply_dict_overrides)."""
    made = dict(values)
    for key, value in changes.items():
        part = key.endswith("_config") and key not in ("quantization_config", "compression_config")
        if part and isinstance(value, dict) and isinstance(made.get(key), dict):
            made[key] = overridden(made[key], value)
        else:
            made[key] = value
    return made


def needs_of(configuration: Configuration) -> ModelNeeds:
    """What the model asks of the software and of GPUs, as far as its configuration says."""
    config = ConfigJson(configuration.values)
    weights = configuration.weights
    return ModelNeeds(
        model_type=config.model_type,
        architecture=next(iter(config.architectures), None),
        attention_heads=_at_most(config.attention_heads, 65536),
        key_value_heads=None if config.mla else _at_most(config.key_value_heads, 65536),
        intermediate_size=_at_most(config.dense_size, 1 << 24),
        moe_intermediate_size=_at_most(config.expert_size, 1 << 24),
        weights_gib=weights / (1 << 30) if weights and 1 << 21 <= weights < 1 << 50 else None,
    )


def _text_of(values: Mapping[str, Any], deep: int = 0) -> Mapping[str, Any]:
    parts = [part for name in _TEXT_PARTS if (part := _table(values.get(name)))]
    if not parts or deep > 1:
        return values
    return _text_of(parts[0], deep + 1) if len(parts) == 1 else {}


def _quantization(said: Mapping[str, Any]) -> Quantization:
    """_normalize_quantization_config, and where each method writes the rest."""
    inner = _table(said.get("quantization"))  # of hf_quant_config.json
    algorithm = next(map(_name, _found(said, inner, names=("quant_algo", "format"))), None)
    method = (_name(said.get("quant_method")) or "").lower()
    method = method.replace("compressed_tensors", "compressed-tensors")
    modelopt = _table(said.get("producer")).get("name") == "modelopt"
    if (modelopt or "modelopt_quant_config" in inner) and inner.get("quant_algo") is not None:
        method = _MODELOPT.get((algorithm or "").upper(), "")
    groups = [_table(g) for g in _table(said.get("config_groups")).values()]
    weights = [_table(group.get("weights")) for group in groups]
    ignored = next(_found(said, inner, names=_IGNORED), None)
    return Quantization(
        method,
        algorithm,
        _bits(method, algorithm, said, weights),
        next(
            map(_count, _found(said, inner, *weights, names=("group_size", "q_group_size"))), None
        ),
        tuple(one for one in ignored if isinstance(one, str)) if isinstance(ignored, list) else (),
    )


_GROUP = ("group_size", "q_group_size")
_IGNORED = ("modules_to_not_convert", "ignore", "ignored_layers", "exclude_modules", "exclude")
_MODELOPT = {
    "FP8": "modelopt",
    "FP8_PER_CHANNEL_PER_TOKEN": "modelopt",
    "FP8_PB_WO": "modelopt",
    "NVFP4": "modelopt_fp4",
    "MIXED_PRECISION": "modelopt_mixed",  # from 0.33
}
_BITS = {"fp8": 8, "mxfp4": 4, "mxfp8": 8, "modelopt_fp4": 4, "fbgemm_fp8": 8}


def _bits(
    method: str,
    algorithm: str | None,
    said: Mapping[str, Any],
    weights: list[Mapping[str, Any]],
) -> int | None:
    if weights:
        widths = {_count(group.get("num_bits")) for group in weights}
        return widths.pop() if len(widths) == 1 else None
    if method in _BITS:
        return _BITS[method]
    if method.startswith("modelopt"):
        found = re.match(r"(?:NV|MX|W4A\d+_\w+)?FP(4|8)(?:_|$)", (algorithm or "").upper())
        return int(found[1]) if found else None
    if said.get("load_in_4bit") is True or said.get("load_in_8bit") is True:
        return 4 if said.get("load_in_4bit") is True else 8
    return _first(said, ("bits", "w_bit", "wbits"))


def _found(*parts: Mapping[str, Any], names: Collection[str]) -> Iterator[Any]:
    return (part[name] for part in parts for name in names if part.get(name) is not None)


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _first(part: Mapping[str, Any], names: Collection[str]) -> int | None:
    return next((_count(part[name]) for name in names if part.get(name) is not None), None)


def _whole(value: Any) -> int | None:
    sane = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST
    return value if sane else None


def _count(value: Any) -> int | None:
    return _whole(value) or None


def _at_most(value: int | None, most: int) -> int | None:
    return value if value is not None and 0 < value <= most else None


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= _LONGEST_NAME else None
