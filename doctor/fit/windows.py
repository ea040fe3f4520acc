"""Which layers of a model keep a window of the context only, and how long it is."""

from __future__ import annotations

from doctor.fit.asked import AskedModel, missing
from doctor.fit.sizes import NotKnown
from doctor.model import Text

_SLIDING, _FULL = "sliding_attention", "full_attention"
# Whose classes have a window, and every which layer has none, where config.json does not say it.
_OWN = {
    "cohere2": (4096, 4),
    "exaone4": (4096, 4),
    "gemma2": (4096, 2),
    "gemma3_text": (4096, 6),
    "gemma3n_text": (512, 5),
    "gemma4_text": (512, 6),
    "gpt_oss": (128, 2),
    "olmo3": (4096, 4),
}
_QWEN = frozenset(
    (
        *("qwen2", "qwen2_moe", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text"),
        *("qwen3", "qwen3_moe", "qwen3_vl_text", "qwen3_vl_moe_text"),
    )
)
# Mistral Small 3.1 and later, whose params.json, which vLLM reads first, has no window.
_SMALL_3 = "Mistral3ForConditionalGeneration"
# vLLM's class gives each layer a window by the list of types, where there is one.
_LISTED = frozenset(("llama", "mistral", "ministral", "olmo2", *_OWN))


def windows(asked: AskedModel, count: int) -> list[int | None]:
    """Of each of so many layers, None where it keeps everything."""
    kind = asked.config.text_model_type or ""
    if asked.options.given.get("disable_sliding_window") in (True, "true", "True"):
        return [None] * count
    if kind in _QWEN or kind == "smollm3":
        return _where_it_is_used(asked, count)
    window = asked.said("sliding_window")
    if window is None and kind in _OWN and "sliding_window" not in asked.config.text:
        window = _OWN[kind][0]
    if kind in ("mistral", "ministral") and "sliding_window" not in asked.config.text:
        if _SMALL_3 in asked.config.architectures:
            return [None] * count
        raise missing("sliding_window")  # 4096 of its class, or a null that a table left out
    if window is None or window == 0:
        return [None] * count
    window = asked.count("sliding_window", default=window)
    if kind == "cohere2" and asked.release.since("0.29"):  # it sees the token before them too
        window += 1
    kinds = _kinds(asked, kind, count)
    if _SLIDING not in kinds and not asked.release.since("0.27"):  # CacheConfig.sliding_window
        return [window] * count
    return [window if one == _SLIDING else None for one in kinds]


def _where_it_is_used(asked: AskedModel, count: int) -> list[int | None]:
    """These have none unless they say so."""
    if asked.said("use_sliding_window") is True and asked.said("sliding_window"):
        raise NotKnown(Text("which layers keep a window with use_sliding_window is not known"))
    return [None] * count


def _kinds(asked: AskedModel, kind: str, count: int) -> list[str]:
    """The type of each layer: all have the window where neither the file nor the class says it."""
    listed = asked.listed("layer_types")
    if kind == "gpt_oss":  # whatever the list says
        listed = None
    if listed is None:
        if kind not in _OWN:
            return [_SLIDING] * count
        every = asked.count("sliding_window_pattern", default=_OWN[kind][1])
        return [_SLIDING if (number + 1) % every else _FULL for number in range(count)]
    if len(listed) < count or any(one not in (_SLIDING, _FULL) for one in listed):
        raise missing("layer_types")
    if kind not in _LISTED:
        raise NotKnown(Text("which layers of a {kind} keep a window is not known", kind=kind))
    return listed[:count]
