"""What attention of ordinary heads keeps of each token."""

from __future__ import annotations

from doctor.fit.asked import AskedModel, needed
from doctor.fit.cache_type import cache_type
from doctor.fit.kv import Keeps, KvLayer

ATTENTION_BLOCK = 16  # the least block of its backends


def token_bytes(
    asked: AskedModel, heads: int | None = None, key: int | None = None, value: int | None = None
) -> int:
    """What a rank keeps of a token in one layer: of so many KV heads of the model, else of as many
    as config.json says. `key`, `value`: the numbers of each head."""
    heads = heads or needed(asked.config.key_value_heads, "num_key_value_heads")
    key = key or needed(asked.config.head_size, "head_dim")
    return asked.shared(heads) * cache_type(asked).pair(key, value or key)


def attention_layer(
    number: int, token: int, window: int | None = None, draft: bool = False
) -> KvLayer:
    keeps = Keeps.FULL if window is None else Keeps.SLIDING
    name = f"layers.{number}.self_attn.attn"
    return KvLayer(
        number, keeps, token, window=window, align=ATTENTION_BLOCK, draft=draft, name=name
    )
