"""What multi-head latent attention (MLA) keeps of each token, and the indexer of a sparse one."""

from __future__ import annotations

from collections.abc import Iterator

from doctor.fit.asked import AskedModel, needed
from doctor.fit.cache_type import CacheType, cache_type
from doctor.fit.kv import Keeps, KvLayer
from doctor.fit.sizes import NotKnown
from doctor.frozen import dataclass
from doctor.model import Text

_PACKED = 656  # fp8_ds_mla: 512 bytes, four scales, 64 numbers of the rope in bfloat16
_DENSE = frozenset(("auto", "float16", "half", "bfloat16", "fp8", "fp8_e4m3"))
# Options that say which kernels and which caches there are.
_CHOICES = ("attention_backend", "attention_config")
_INDEX_GROUP = 128  # numbers of the indexer's key that share a scale of four bytes


@dataclass(frozen=True)
class LatentCache:
    """What one layer's latent takes of a token, and the blocks in which its kernels read."""

    token_bytes: int
    align: int
    index_bytes: int = 0

    def layers(self, number: int, indexed: bool, draft: bool = False) -> Iterator[KvLayer]:
        """The entries of one layer; each rank keeps them whole."""
        name = f"layers.{number}.self_attn"
        yield KvLayer(number, Keeps.MLA, self.token_bytes, align=self.align, draft=draft, name=name)
        if indexed and self.index_bytes:
            name = f"layers.{number}.self_attn.indexer.k_cache"
            yield KvLayer(
                number, Keeps.MLA, self.index_bytes, align=self.align, draft=draft, name=name
            )


def latent_layers(asked: AskedModel, count: int) -> Iterator[KvLayer]:
    """Of a decoder of so many layers."""
    cache = latent_cache(asked)
    for number in range(count):
        yield from cache.layers(number, indexed(asked, number))


def latent_cache(asked: AskedModel) -> LatentCache:
    size = needed(asked.config.head_size, "kv_lora_rank")
    kept = cache_type(asked)
    if asked.said("index_topk") is None:
        if kept.name not in _DENSE:
            raise NotKnown(Text("MLA has no KV cache of the type {name}", name=kept.name))
        return LatentCache(kept.bytes_of(size), _dense_block(asked, kept))
    if any(asked.options.given.get(option) for option in _CHOICES):
        raise NotKnown(Text("which kernels of sparse MLA are asked for is not reckoned with"))
    index = asked.count("index_head_dim")
    index_bytes = index + 4 * (index // _INDEX_GROUP)
    return LatentCache(_sparse_bytes(asked, kept, size), 64, index_bytes)


def _dense_block(asked: AskedModel, kept: CacheType) -> int:
    """The least block of the backend that vLLM takes (platforms/cuda.py): FlashAttention's and
    Triton's have 16, FlashMLA 64, FlashInfer's 32, CUTLASS 128."""
    capability = asked.capability or 90
    if capability // 10 == 9:
        return 64 if kept.quantized else 16
    if capability // 10 == 10:
        return 32 if asked.said("qk_nope_head_dim") in (64, 128, 192) else 128
    return 16


def _sparse_bytes(asked: AskedModel, kept: CacheType, size: int) -> int:
    """FlashMLA's sparse kernels keep fp8 in a layout of their own, as those for 12.0 keep all;
    FlashInfer's keep it as it is. Raises NotKnown where vLLM has no kernels."""
    family, name, since = (asked.capability or 0) // 10, kept.name, asked.release.since
    if not kept.quantized and family in (0, 9, 10):
        return kept.bytes_of(size)
    if family == 0:
        raise NotKnown(
            Text("how sparse MLA keeps {type} depends on the GPU, which is not known", type=name)
        )
    if name in ("fp8", "fp8_ds_mla") and family == 9:
        return _PACKED
    if family == 9 and name == "fp8_e4m3" and since("0.30"):
        return kept.bytes_of(size)
    if family == 10 and name in ("fp8", "fp8_e4m3"):
        return kept.bytes_of(size)
    if name == "fp8_ds_mla" and family == 10:
        return _PACKED
    if family == 12 and name in ("auto", "fp8", "fp8_e4m3", "fp8_ds_mla") and since("0.24"):
        return _PACKED
    raise NotKnown(
        Text("this vLLM has no sparse MLA with a cache of the type {type} for this GPU", type=name)
    )


def indexed(asked: AskedModel, number: int) -> bool:
    """Whether a layer of the decoder has an indexer: to 0.23 every one, since then those that do
    not take over what another one chose (deepseek_v2.py)."""
    if not asked.release.skips_indexers:
        return True
    pattern = asked.said("index_topk_pattern")
    if pattern is not None:
        if not isinstance(pattern, (str, list)):
            raise NotKnown(Text("index_topk_pattern of config.json is not understood"))
        return number >= len(pattern) or bool(pattern[number] != "S")
    every = asked.count("index_topk_freq", default=1)
    offset = asked.said("index_skip_topk_offset")
    offset = 2 if offset is None else offset
    if not isinstance(offset, int) or isinstance(offset, bool):
        raise NotKnown(Text("index_skip_topk_offset of config.json is not understood"))
    return max(number - offset + 1, 0) % every == 0
