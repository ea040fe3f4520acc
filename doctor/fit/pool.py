"""How vLLM plans its pool of KV cache: which layers share blocks, and what blocks hold.

Read in vllm/v1/core/kv_cache_utils.py (kv_cache_planning.py from 0.33), v1/kv_cache_interface.py
and platforms/interface.py of 0.11.2, 0.20.2, 0.22.0, 0.24.0, 0.25.1, 0.26.0, 0.28.0, 0.29.0 and
0.33.0. Every group of layers has block tables of its own, and all draw from one pool: a block holds
a page of each layer of the largest group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from doctor.consumers.model_config import ConfigJson
from doctor.fit.defaults import Settled
from doctor.fit.kv import Keeps, KvLayer, stage_sizes
from doctor.fit.options import MemoryOptions
from doctor.fit.releases import Release
from doctor.fit.sizes import NotKnown
from doctor.frozen import dataclass
from doctor.model import Text

_EVERY_TOKEN = (Keeps.FULL, Keeps.MLA)


@dataclass(frozen=True)
class _Paged:
    """A layer's cache in pages. `block`: tokens of each; `page`: bytes, padding in them."""

    layer: KvLayer
    block: int
    page: int


_Group = tuple[_Paged, ...]


@dataclass(frozen=True)
class _Request:
    """What of a server decides the pages of one request. `in_flight`: the most tokens that are
    scheduled and not yet done, None where it is not known; `states`: pages of each recurrent
    layer; `ranks`: over how many the positions are cut."""

    in_flight: int | None
    states: int
    ranks: int
    encoder_tokens: int | None

    def pages(self, paged: _Paged, length: int) -> int:
        """max_memory_usage_bytes, in pages."""
        match paged.layer.keeps:
            case Keeps.FULL | Keeps.MLA:
                return _up(_up(length, self.ranks), paged.block)
            case Keeps.SLIDING | Keeps.SLIDING_MLA:
                kept = (paged.layer.window or 1) - 1 + self._scheduled()
                return _up(min(kept, length), paged.block) + 1
            case Keeps.CHUNKED:
                kept = (paged.layer.window or 0) + self._scheduled()
                return _up(min(kept, length), paged.block)
            case Keeps.STATE:
                return self.states
            case Keeps.CROSS if self.encoder_tokens is not None:
                return _up(self.encoder_tokens, paged.block)
        raise NotKnown(Text("the length of the encoder's output is not known"))

    def _scheduled(self) -> int:
        if self.in_flight is None:
            raise NotKnown(Text("--max-num-batched-tokens depends on the GPU, which is not known"))
        return self.in_flight


@dataclass(frozen=True)
class Pool:
    """The pool of one rank; where the model is cut into pipeline stages, of the tightest one.

    `block_size`: tokens that --block-size comes to, the smallest of its groups; `bytes_per_token`:
    of all layers that keep tokens, None where it is no whole number; `block_bytes`: of each stage,
    what one block takes; `reserved`: blocks that no request can have.
    """

    block_size: int | None
    bytes_per_token: int | None
    block_bytes: tuple[int, ...]
    reserved: int
    groups: tuple[_Group, ...]
    request: _Request
    release: Release

    def stage(self, number: int) -> Pool:
        """That of one pipeline stage alone."""
        return Pool(
            self.block_size,
            self.bytes_per_token,
            (self.block_bytes[number],),
            self.reserved,
            self.groups,
            self.request,
            self.release,
        )

    @property
    def empty(self) -> bool:
        """Whether the model keeps nothing: an encoder."""
        return not self.groups

    def needed(self, length: int) -> int:
        """Bytes for one request of so many tokens."""
        return max(self.block_bytes, default=0) * self._blocks_of(length)

    def blocks(self, available: int) -> int:
        """How many these bytes make, the null block among them."""
        return max(0, min((available // each for each in self.block_bytes if each), default=1))

    def fits(self, available: int, length: int) -> bool:
        """Whether vLLM starts with so many bytes for its cache."""
        if self.empty:
            return True
        usable = available - self.reserved * max(self.block_bytes)
        return usable > 0 and self.needed(length) <= usable

    def longest(self, available: int, most: int) -> int:
        """The longest length of at most `most` tokens that fits, 0 where none does
        (_estimate_max_model_len_from_groups)."""
        low, high, found = 1, most, 0
        while low <= high:
            middle = (low + high) // 2
            if self.fits(available, middle):
                found, low = middle, middle + 1
            elif middle == 1:
                return 0
            else:
                high = middle - 1
        return found

    def concurrency(self, available: int, length: int) -> float:
        """Requests of this length at once ("Maximum concurrency")."""
        return self.blocks(available) / self._filled(length)

    def tokens(self, available: int, length: int) -> int:
        """What vLLM prints as "GPU KV cache size"."""
        if self.release.since("0.20.2"):
            return int(self.concurrency(available, length) * length)
        self._filled(length)
        size = min(paged.block for group in self.groups for paged in group)
        return self.blocks(available) // len(self.groups) * size * self.request.ranks

    def _filled(self, length: int) -> int:
        if self.empty:
            raise NotKnown(Text("this model keeps no KV cache"))
        return self._blocks_of(length)

    def _blocks_of(self, length: int) -> int:
        """Of one request, in all groups."""
        return sum(
            max(self.request.pages(paged, length) for paged in group) for group in self.groups
        )


def pool(
    layers: Sequence[KvLayer],
    config: ConfigJson,
    options: MemoryOptions,
    release: Release,
    settled: Settled,
) -> Pool:
    """The pool that vLLM makes of these layers of one rank. Raises NotKnown."""
    kept = [layer for layer in layers if layer.keeps is not Keeps.NOTHING]
    request = _request(kept, options, release, settled)
    paged = _paged(kept, settled)
    groups = _groups(paged, release)
    decoder = config.layers or max((one.layer for one in kept if not one.draft), default=0) + 1
    return Pool(
        min((one.block for one in paged), default=None),
        _bytes_per_token(kept, request.ranks),
        _block_bytes(groups, stage_sizes(decoder, options.layout.pipeline)) if groups else (),
        1 if release.since("0.29") else 0,
        groups,
        request,
        release,
    )


def _up(number: int, by: int) -> int:
    return -(-number // by)


def _request(
    layers: Sequence[KvLayer], options: MemoryOptions, release: Release, settled: Settled
) -> _Request:
    batches = settled.concurrent_batches if release.since("0.26") else 1
    batch = settled.max_num_batched_tokens
    return _Request(
        in_flight=None if batch is None else batch * batches,
        states=1 + options.drafted,
        ranks=options.decode_context,
        encoder_tokens=settled.encoder_tokens,
    )


def _bytes_per_token(layers: Sequence[KvLayer], ranks: int) -> int | None:
    every = math.fsum(layer.token_bytes for layer in layers if layer.keeps is not Keeps.CROSS)
    whole = every / ranks
    return int(whole) if whole.is_integer() and whole else None


def _paged(layers: Sequence[KvLayer], settled: Settled) -> tuple[_Paged, ...]:
    size = settled.block_size
    if size is None:
        raise NotKnown(Text("the block size depends on the GPU, which is not known"))
    return tuple(
        _Paged(one, one.block or size, round((one.block or size) * one.token_bytes))
        for one in layers
    )


def _groups(paged: tuple[_Paged, ...], release: Release) -> tuple[_Group, ...]:
    """get_kv_cache_groups"""
    if not paged:
        return ()
    if all(one.layer.keeps in _EVERY_TOKEN for one in paged):
        return (paged,)
    raise NotKnown(Text("its kinds of layers are not known"))


def _block_bytes(groups: tuple[_Group, ...], stages: tuple[int, ...]) -> tuple[int, ...]:
    """What one block takes on each pipeline stage."""
    made, first = [], 0
    for number, size in enumerate(stages):
        last = number == len(stages) - 1
        made.append(
            max(
                sum(
                    one.page
                    for one in group
                    if (first <= one.layer.layer < first + size and not one.layer.draft)
                    or (last and one.layer.draft)
                )
                for group in groups
            )
        )
        first += size
    return tuple(made)
