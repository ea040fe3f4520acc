"""What each layer of a model keeps of each token, as this vLLM's get_kv_cache_spec says it.

Read in vLLM 0.22.0 and 0.33.0 (model_executor/layers/attention, model_executor/models, models), and
compared with what they say of real models (tests/real_stack/test_kv_judge.py). A kind of model that
is not here is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from doctor.consumers.model_config import ConfigJson
from doctor.fit.asked import MOST_LAYERS, AskedModel, missing, needed
from doctor.fit.cache_type import cache_type
from doctor.fit.kv import Keeps, KvLayer
from doctor.fit.latent import indexed, latent_cache
from doctor.fit.options import MemoryOptions
from doctor.fit.releases import Release
from doctor.fit.sizes import NotKnown
from doctor.model import Text

_BLOCK = 16  # the least block of the backends of full attention


def kv_layers(
    config: ConfigJson, options: MemoryOptions, release: Release, capability: int | None
) -> tuple[KvLayer, ...]:
    """Of one rank, all layers of the decoder, a drafter's behind. `capability`: of the GPU, 90 is
    9.0. Raises NotKnown for a model that is not known, and where config.json leaves out a value."""
    asked = AskedModel(config, options, release, capability)
    if options.speculative:
        raise NotKnown(Text("what a drafter keeps is not known"))
    return tuple(_decoder(asked))


def decoder_layers(config: ConfigJson) -> int:
    """How many layers the decoder has; raises NotKnown."""
    count = needed(config.layers, "num_hidden_layers")
    if count > MOST_LAYERS:
        raise missing("num_hidden_layers")
    return count


def _decoder(asked: AskedModel) -> Iterator[KvLayer]:
    if asked.config.mla:
        return _latent(asked)
    kind = asked.config.text_model_type
    family = _FAMILIES.get(kind or "")
    if family is None:
        raise NotKnown(Text("what the layers of {kind} keep is not known", kind=kind))
    return family(asked)


def _latent(asked: AskedModel) -> Iterator[KvLayer]:
    cache = latent_cache(asked)
    for number in range(decoder_layers(asked.config)):
        yield from cache.layers(number, indexed(asked, number))


def _uniform(asked: AskedModel) -> Iterator[KvLayer]:
    """All layers alike, with one window where the model has one."""
    window = asked.config.sliding_window
    token = _token_bytes(asked)
    for number in range(decoder_layers(asked.config)):
        yield _attention(number, token, window)


def _token_bytes(asked: AskedModel, heads: int | None = None, size: int | None = None) -> int:
    """What a rank keeps of a token in one layer of full attention."""
    heads = heads or needed(asked.config.key_value_heads, "num_key_value_heads")
    size = size or needed(asked.config.head_size, "head_dim")
    return asked.shared(heads) * cache_type(asked).pair(size, size)


def _attention(number: int, token_bytes: int, window: int | None = None) -> KvLayer:
    keeps = Keeps.FULL if window is None else Keeps.SLIDING
    name = f"layers.{number}.self_attn.attn"
    return KvLayer(number, keeps, token_bytes, window=window, align=_BLOCK, name=name)


_FAMILIES: dict[str, Callable[[AskedModel], Iterator[KvLayer]]] = {
    **dict.fromkeys(
        [
            "glm4_moe",
            "granite",
            "llama",
            "mixtral",
            "qwen2",
            "qwen2_moe",
            "qwen3",
            "qwen3_moe",
            "qwen3_vl_text",
            "qwen3_vl_moe_text",
        ],
        _uniform,
    ),
}
