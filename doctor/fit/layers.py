"""What each layer of a model keeps of each token, as this vLLM's get_kv_cache_spec says it.

Read in vLLM 0.22.0 and 0.33.0 (model_executor/layers/attention, model_executor/models, models) and
in the configurations of transformers 4.57 and 5.20; compared with what vLLM itself says of real
models (tests/real_stack/test_kv_judge.py). A kind of model that is not here is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from doctor.consumers.model_config import ConfigJson
from doctor.fit.asked import MOST_LAYERS, AskedModel, missing, needed
from doctor.fit.attention import ATTENTION_BLOCK, attention_layer, token_bytes
from doctor.fit.drafters import draft_layers
from doctor.fit.kv import Keeps, KvLayer
from doctor.fit.latent import latent_cache, latent_layers
from doctor.fit.options import MemoryOptions
from doctor.fit.releases import Release
from doctor.fit.sizes import NotKnown
from doctor.fit.states import state_bytes
from doctor.fit.windows import windows
from doctor.model import Text

_INDEX_BLOCK = 128
_INDEX_WIDTH = 2  # bytes of a number of MiniMax-M3's index key


def kv_layers(
    config: ConfigJson, options: MemoryOptions, release: Release, capability: int | None
) -> tuple[KvLayer, ...]:
    """Of one rank, all layers of the decoder, a drafter's behind. `capability`: of the GPU, 90 is
    9.0. Raises NotKnown for a model that is not known, and where config.json leaves out a value."""
    asked = AskedModel(config, options, release, capability)
    return (*_decoder(asked), *draft_layers(asked, decoder_layers(config)))


def decoder_layers(config: ConfigJson) -> int:
    """How many layers the decoder has; raises NotKnown."""
    kinds = config.text.get("hybrid_override_pattern")
    count = len(kinds) if isinstance(kinds, str) and kinds else config.layers
    if config.model_type == "whisper":
        count = config.count("decoder_layers")
    count = needed(count, "num_hidden_layers")
    if count > MOST_LAYERS:
        raise missing("num_hidden_layers")
    return count


def _decoder(asked: AskedModel) -> Iterable[KvLayer]:
    kind = asked.config.text_model_type or asked.config.model_type
    family = _FAMILIES.get(kind or "")
    if family is None and asked.config.mla and kind not in _OTHER_LATENT:
        return latent_layers(asked, decoder_layers(asked.config))
    if family is None:
        raise NotKnown(Text("what the layers of a {kind} keep is not known", kind=kind))
    return family(asked)


# Attention of which each layer keeps all, or a window.


def _attention(asked: AskedModel) -> Iterator[KvLayer]:
    if asked.said("is_causal") is False or asked.said("use_bidirectional_attention") is True:
        raise NotKnown(Text("what a decoder that looks both ways keeps is not known"))
    token = token_bytes(asked)
    for number, window in enumerate(windows(asked, decoder_layers(asked.config))):
        yield attention_layer(number, token, window)


def _llama4(asked: AskedModel) -> Iterator[KvLayer]:
    """Where a layer has a rope, it keeps the chunk that it is in."""
    token, count = token_bytes(asked), decoder_layers(asked.config)
    chunk = asked.count("attention_chunk_size", default=8192)
    roped = asked.listed("no_rope_layers")
    if not roped:
        every = asked.count("no_rope_layer_interval", default=4)
        roped = [int((number + 1) % every != 0) for number in range(count)]
    if len(roped) < count:
        raise missing("no_rope_layers")
    for number in range(count):
        if roped[number] == 0:
            yield attention_layer(number, token)
        else:
            name = f"layers.{number}.self_attn.attn"
            yield KvLayer(
                number, Keeps.CHUNKED, token, window=chunk, align=ATTENTION_BLOCK, name=name
            )


def _gemma4(asked: AskedModel) -> Iterator[KvLayer]:
    """Layers with all of the context have heads of their own; the last ones may share others'."""
    count = decoder_layers(asked.config)
    sliding = token_bytes(asked, key=asked.count("head_dim", default=256))
    heads = None
    if asked.said("attention_k_eq_v") is True and asked.said("num_global_key_value_heads"):
        heads = asked.count("num_global_key_value_heads")
    full = token_bytes(asked, heads, asked.count("global_head_dim", default=512))
    kept = windows(asked, count)
    for number in range(_own_layers(asked, count)):
        window = None if number == count - 1 else kept[number]
        yield attention_layer(number, full if window is None else sliding, window)
    yield from _sharing(asked, count)


def _gemma3n(asked: AskedModel) -> Iterator[KvLayer]:
    count = decoder_layers(asked.config)
    token = token_bytes(asked, key=asked.count("head_dim", default=256))
    kept = windows(asked, count)
    for number in range(_own_layers(asked, count)):
        yield attention_layer(number, token, kept[number])
    yield from _sharing(asked, count)


def _own_layers(asked: AskedModel, count: int) -> int:
    """The first layers, which share nobody's cache."""
    said = asked.said("num_kv_shared_layers")
    if said is None and asked.config.text_model_type == "gemma3n_text":
        said = 15
    whole = isinstance(said, int) and not isinstance(said, bool)
    if said is not None and (not whole or not 0 <= said < count):
        raise missing("num_kv_shared_layers")
    return count - (said or 0)


def _sharing(asked: AskedModel, count: int) -> Iterator[KvLayer]:
    for number in range(_own_layers(asked, count), count):
        yield KvLayer(number, Keeps.NOTHING, name=f"layers.{number}.self_attn.attn")


def _mimo_v2(asked: AskedModel) -> Iterator[KvLayer]:
    """hybrid_layer_pattern says which layers have a window, and with it heads of their own."""
    count = decoder_layers(asked.config)
    pattern = asked.listed("hybrid_layer_pattern")
    if pattern is None or len(pattern) < count:
        raise missing("hybrid_layer_pattern")
    heads, key = asked.count("num_key_value_heads"), asked.count("head_dim")
    full = token_bytes(asked, heads, key, asked.count("v_head_dim", default=key))
    heads, key = asked.count("swa_num_key_value_heads"), asked.count("swa_head_dim")
    sliding = token_bytes(asked, heads, key, asked.count("swa_v_head_dim", default=key))
    window = asked.count("sliding_window_size")
    for number in range(count):
        slides = pattern[number] == 1
        yield attention_layer(number, sliding if slides else full, window if slides else None)


def _nemotron_nas(asked: AskedModel) -> Iterator[KvLayer]:
    """Each block says how many heads share a key, or that it has no attention."""
    heads, size = asked.count("num_attention_heads"), needed(asked.config.head_size, "head_dim")
    blocks = asked.listed("block_configs")
    if blocks is None or len(blocks) < decoder_layers(asked.config):
        raise missing("block_configs")
    for number in range(decoder_layers(asked.config)):
        attention = _table(_table(blocks[number]).get("attention"))
        if attention.get("no_op"):
            yield KvLayer(number, Keeps.NOTHING, name=f"layers.{number}")
            continue
        group = ConfigJson(attention).count("n_heads_in_group")
        shared = heads // needed(group, "n_heads_in_group")
        yield attention_layer(number, token_bytes(asked, needed(shared, "block_configs"), size))


def _minimax_m3(asked: AskedModel) -> Iterator[KvLayer]:
    """Sparse layers keep an index key of each token beside, and have blocks of 128."""
    token, sparse = token_bytes(asked), _table(asked.said("sparse_attention_config"))
    count = decoder_layers(asked.config)
    every = sparse.get("sparse_attention_freq")
    if not isinstance(every, list) or len(every) < count:
        raise missing("sparse_attention_freq")
    wide = needed(ConfigJson(sparse).count("sparse_index_dim"), "sparse_index_dim")
    for number in range(count):
        if every[number] == 0:
            yield attention_layer(number, token)
            continue
        name = f"layers.{number}.self_attn.attn"
        yield KvLayer(number, Keeps.FULL, token, align=_INDEX_BLOCK, name=name)
        name = f"layers.{number}.self_attn.attn.index_cache"
        yield KvLayer(number, Keeps.MLA, wide * _INDEX_WIDTH, align=_INDEX_BLOCK, name=name)


def _whisper(asked: AskedModel) -> Iterator[KvLayer]:
    """Of the decoder: of its own tokens, and of what the encoder made."""
    heads = asked.count("decoder_attention_heads")
    token = token_bytes(asked, heads, needed(asked.count("d_model") // heads, "d_model"))
    for number in range(decoder_layers(asked.config)):
        yield attention_layer(number, token)
        name = f"layers.{number}.encoder_attn.attn"
        yield KvLayer(number, Keeps.CROSS, token, align=ATTENTION_BLOCK, name=name)


# Layers of which some keep a state instead.


def _hybrid(kinds: Callable[[AskedModel, int], list[str]]) -> Callable[..., Iterator[KvLayer]]:
    """`kinds`: for each layer the letters of what it has: A attention, S a state."""

    def layers(asked: AskedModel) -> Iterator[KvLayer]:
        count = decoder_layers(asked.config)
        letters = kinds(asked, count)
        if len(letters) < count or asked.config.sliding_window is not None:
            raise missing("layer_types")
        token, state = token_bytes(asked), state_bytes(asked)
        for number in range(count):
            if "S" in letters[number]:
                yield KvLayer(number, Keeps.STATE, state_bytes=state, name=f"layers.{number}.mixer")
            if "A" in letters[number]:
                yield attention_layer(number, token)
            if not letters[number]:
                yield KvLayer(number, Keeps.NOTHING, name=f"layers.{number}")

    return layers


def _until_0_23(
    layers: Callable[[AskedModel], Iterable[KvLayer]],
) -> Callable[[AskedModel], Iterable[KvLayer]]:
    """vLLM has no class for it since."""

    def known(asked: AskedModel) -> Iterable[KvLayer]:
        if asked.release.since("0.24"):
            kind = asked.config.text_model_type
            raise NotKnown(Text("vLLM has no class of its own for a {kind} since 0.24", kind=kind))
        return layers(asked)

    return known


_LETTERS = {
    "attention": "A",
    "full_attention": "A",
    "linear_attention": "S",
    "mamba": "S",
    "mamba2": "S",
    "conv": "S",
    "hybrid": "AS",
    "mlp": "",
    "moe": "",
}


def _named(kinds: Iterable[Any], key: str) -> list[str]:
    names = [kind if isinstance(kind, str) else "" for kind in kinds]
    if any(name not in _LETTERS for name in names):
        raise missing(key)
    return [_LETTERS[name] for name in names]


def _every_fourth(asked: AskedModel, count: int) -> list[str]:
    """Qwen3-Next and Qwen3.5: the class takes full_attention_interval where no types are said."""
    if (kinds := asked.listed("layer_types")) is not None:
        return _named(kinds, "layer_types")
    every = asked.count("full_attention_interval", default=4)
    return ["S" if (number + 1) % every else "A" for number in range(count)]


def _by_types(asked: AskedModel, count: int) -> list[str]:
    for name in ("layer_types", "layers_block_type"):
        if (kinds := asked.listed(name)) is not None:
            return _named(kinds, name)
    raise missing("layer_types")


def _by_pattern(asked: AskedModel, count: int) -> list[str]:
    """Nemotron-H: M a Mamba layer, * attention, - and E a feed-forward part."""
    pattern = asked.said("hybrid_override_pattern")
    if pattern is None:
        return _by_types(asked, count)
    known = {"M": "S", "*": "A", "-": "", "E": ""}
    if not isinstance(pattern, str) or set(pattern) - set(known):
        raise missing("hybrid_override_pattern")
    return [known[letter] for letter in pattern]


def _by_period(asked: AskedModel, count: int) -> list[str]:
    """Jamba"""
    every = asked.count("attn_layer_period", default=8)
    offset = asked.said("attn_layer_offset")
    offset = 4 if offset is None else offset
    return ["A" if number % every == offset else "S" for number in range(count)]


def _by_indices(asked: AskedModel, count: int) -> list[str]:
    """Bamba"""
    chosen = asked.listed("attn_layer_indices") or []
    return ["A" if number in chosen else "S" for number in range(count)]


def _both(asked: AskedModel, count: int) -> list[str]:
    """Falcon-H1: each layer has attention and Mamba."""
    return ["AS"] * count


def _kimi_linear(asked: AskedModel) -> Iterator[KvLayer]:
    """MLA, and states in the layers that kda_layers counts from 1."""
    said = asked.said("linear_attn_config")
    listed = said.get("kda_layers") if isinstance(said, dict) else None
    if not isinstance(listed, list) or asked.said("kv_lora_rank") is None:
        raise missing("linear_attn_config")
    chosen = {one for one in listed if isinstance(one, int)}
    cache, state = latent_cache(asked), state_bytes(asked)
    for number in range(decoder_layers(asked.config)):
        if number + 1 in chosen:
            name = f"layers.{number}.self_attn"
            yield KvLayer(number, Keeps.STATE, state_bytes=state, name=name)
        else:
            yield from cache.layers(number, indexed=False)


def _states(asked: AskedModel) -> Iterator[KvLayer]:
    """Mamba, of nothing else."""
    state = state_bytes(asked)
    for number in range(decoder_layers(asked.config)):
        yield KvLayer(number, Keeps.STATE, state_bytes=state, name=f"layers.{number}.mixer")


def _encoder(asked: AskedModel) -> Iterator[KvLayer]:
    for number in range(decoder_layers(asked.config)):
        yield KvLayer(number, Keeps.NOTHING, name=f"encoder.layer.{number}.attention")


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


_OTHER_LATENT = frozenset(("deepseek_v4",))
_ATTENTION = (
    "cohere cohere2 exaone4 gemma gemma2 gemma3_text glm glm4 glm4_moe gpt2 gpt_neox gpt_oss "
    "granite granitemoe granitemoeshared llama mimo minimax_m2 ministral mistral mixtral olmo "
    "olmo2 olmo3 olmoe opt phi phi3 qwen2 qwen2_moe qwen2_vl qwen2_5_vl qwen2_vl_text "
    "qwen2_5_vl_text qwen3 qwen3_moe qwen3_vl_text qwen3_vl_moe_text seed_oss smollm3 stablelm "
    "starcoder2"
)
_FAMILIES: dict[str, Callable[[AskedModel], Iterable[KvLayer]]] = {
    **dict.fromkeys(_ATTENTION.split(), _attention),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "modernbert"), _encoder),
    **dict.fromkeys(("mamba", "falcon_mamba", "mamba2"), _states),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), _hybrid(_every_fourth)),
    **dict.fromkeys(("granitemoehybrid", "lfm2", "lfm2_moe"), _hybrid(_by_types)),
    "bamba": _until_0_23(_hybrid(_by_indices)),
    "falcon_h1": _hybrid(_both),
    "gemma3n_text": _gemma3n,
    "gemma4_text": _gemma4,
    "jamba": _hybrid(_by_period),
    "kimi_linear": _kimi_linear,
    "llama4_text": _llama4,
    "mimo_v2_flash": _mimo_v2,
    "minimax": _until_0_23(_hybrid(_by_types)),
    "minimax_m3": _minimax_m3,
    "minimax_m3_vl": _minimax_m3,
    "nemotron-nas": _nemotron_nas,
    "nemotron_h": _hybrid(_by_pattern),
    "whisper": _whisper,
}
