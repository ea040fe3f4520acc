"""The table of sines and cosines that rotary embeddings keep on the GPU with the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from doctor.consumers.model_config import ConfigJson
from doctor.fit.allocator import allocated
from doctor.fit.releases import Release

_PART = "partial_rotary_factor"
# What transformers' classes take where a config.json does not say it.
_PARTS = {
    "glm4": 0.5,
    "glm4_moe": 0.5,
    "qwen3_5_moe_text": 0.25,
    "qwen3_5_text": 0.25,
    "qwen3_next": 0.25,
}
_NONE = frozenset(("bert", "roberta", "xlm-roberta", "gpt2", "opt", "bloom", "nemotron_h"))
_TWO = frozenset(("gemma3_text", "mimo_v2_flash"))  # another base in layers with a window
_MOST = 1 << 27  # positions


def rotary_bytes(config: ConfigJson, width: int, release: Release) -> int:
    """Of the tables that all layers of a kind share, of `width` bytes a number
    (layers/rotary_embedding/base.py)."""
    places = _positions(config, release)
    width = 4 if config.text_model_type == "gpt_oss" else width  # as its class asks
    return sum(allocated(size * places * width) for size in _rotated(config))


def _rotated(config: ConfigJson) -> tuple[int, ...]:
    """How many numbers of a head are rotated, for each table."""
    kind = config.text_model_type
    if kind in _NONE:
        return ()
    if kind == "gemma4_text":  # its global layers rotate a whole head, most of it by nothing
        return config.count("head_dim") or 0, config.count("global_head_dim") or 0
    if config.mla:
        return (config.count("qk_rope_head_dim") or 0,)
    if (said := config.count("rotary_dim")) is not None:
        return (said,)
    tables = (*_ropes(config), config.text)
    part = next((table[_PART] for table in tables if table.get(_PART) is not None), None)
    if part is None:
        part = _PARTS.get(kind or "", 1.0)
    if not isinstance(part, (int, float)) or not 0 < part <= 1:
        return ()
    return (int((config.head_size or 0) * part),) * (2 if kind in _TWO else 1)


def _positions(config: ConfigJson, release: Release) -> int:
    places = config.count("max_position_embeddings") or 0
    for rope in _ropes(config):
        if rope.get("mrope_section") and not release.since("0.32"):
            places *= 4  # mrope.py; from 0.32 on the models say how many times
        original, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
        if (
            "yarn" in str(rope.get("rope_type", rope.get("type")))
            and isinstance(original, int)
            and isinstance(factor, (int, float))
            and 0 < original * factor < _MOST
        ):
            return int(original * factor)
    return min(places, _MOST)


def _ropes(config: ConfigJson) -> tuple[Mapping[str, Any], ...]:
    said = config.text.get("rope_parameters") or config.text.get("rope_scaling")
    return (said,) if isinstance(said, dict) else ()
