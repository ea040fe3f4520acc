"""What the layers keep that only speculative decoding loads.

Multi-token prediction (MTP) is part of the checkpoint: hf_config_override of vllm/config/
speculative.py makes its configuration, the classes *_mtp.py of vllm/model_executor/models its
layers. What a drafter of a checkpoint of its own keeps is not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from doctor.fit.asked import MOST_LAYERS, AskedModel, missing
from doctor.fit.attention import attention_layer, token_bytes
from doctor.fit.kv import Keeps, KvLayer
from doctor.fit.latent import latent_cache
from doctor.fit.sizes import NotKnown
from doctor.model import Text

# They guess from the text: no layers.
_WITHOUT_LAYERS = frozenset(("ngram", "ngram_gpu", "suffix"))
_MTP_LATENT = frozenset(("deepseek_v3", "deepseek_v32", "glm_moe_dsa", "glm4_moe_lite"))
_MTP_FULL = {
    "glm4_moe": "num_nextn_predict_layers",
    "mimo": "num_nextn_predict_layers",
    "qwen3_next": "num_nextn_predict_layers",
    "qwen3_5_text": "mtp_num_hidden_layers",
    "qwen3_5_moe_text": "mtp_num_hidden_layers",
}
_ONE = frozenset(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"))  # where none is said


def draft_layers(asked: AskedModel, first: int) -> Iterable[KvLayer]:
    """Those of the drafter that --speculative-config asks for; `first`: the number of the first
    one. Raises NotKnown."""
    said = asked.options.speculative
    method = said.get("method")
    if not said or (isinstance(method, str) and method in _WITHOUT_LAYERS):
        return ()
    mtp = isinstance(method, str) and (method == "mtp" or method.endswith("_mtp"))
    if not mtp or said.get("model") is not None:
        raise NotKnown(Text("what a drafter with a checkpoint of its own keeps is not known"))
    if not asked.options.drafted:
        raise NotKnown(Text("--speculative-config says no num_speculative_tokens"))
    return _mtp(asked, first)


def _mtp(asked: AskedModel, first: int) -> Iterator[KvLayer]:
    kind = asked.config.text_model_type or ""
    if kind == "nemotron_h":
        yield from _nemotron_h(asked, first)
        return
    if asked.config.model_type in _MTP_LATENT and asked.config.mla:
        cache = latent_cache(asked)
        for number in range(_count(asked, "num_nextn_predict_layers")):
            yield from cache.layers(first + number, indexed=True, draft=True)
        return
    if kind not in _MTP_FULL:
        raise NotKnown(Text("what the MTP layers of {kind} keep is not known", kind=kind))
    token = token_bytes(asked)
    for number in range(_count(asked, _MTP_FULL[kind])):
        yield attention_layer(first + number, token, draft=True)


def _count(asked: AskedModel, name: str) -> int:
    one = 1 if asked.config.text_model_type in _ONE else None
    count = asked.count(name, default=one)
    if count > MOST_LAYERS:
        raise missing(name)
    return count


def _nemotron_h(asked: AskedModel, first: int) -> Iterator[KvLayer]:
    """* attention, E experts"""
    pattern = asked.said("mtp_hybrid_override_pattern")
    if not isinstance(pattern, str) or set(pattern) - set("*E") or len(pattern) > MOST_LAYERS:
        raise missing("mtp_hybrid_override_pattern")
    token = token_bytes(asked)
    for number, letter in enumerate(pattern, first):
        if letter == "*":
            yield attention_layer(number, token, draft=True)
        else:
            yield KvLayer(number, Keeps.NOTHING, draft=True, name=f"layers.{number}")
