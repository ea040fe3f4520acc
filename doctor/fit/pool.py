"""How vLLM plans its pool of KV cache: which layers share blocks, and what blocks hold.

Read in vllm/v1/core/kv_cache_utils.py (kv_cache_planning.py in 0.33), v1/kv_cache_interface.py and
platforms/interface.py of 0.11.2, 0.19.0, 0.20.2, 0.22.0, 0.24.0, 0.25.1, 0.26.0, 0.27.1, 0.28.0,
0.29.0 and 0.33.0. Every group of layers has block tables of its own, and all draw from one pool: a
block holds a page of each layer of the largest group.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace

from doctor.consumers.model_config import ConfigJson
from doctor.consumers.options import GivenOptions
from doctor.fit.defaults import Settled
from doctor.fit.kv import Keeps, KvLayer, stage_sizes
from doctor.fit.options import MemoryOptions
from doctor.fit.releases import Release
from doctor.fit.sizes import NotKnown
from doctor.frozen import dataclass
from doctor.model import Text

_WHOLE = (Keeps.FULL, Keeps.MLA)  # of every token
_WINDOWS = (Keeps.SLIDING, Keeps.SLIDING_MLA, Keeps.CHUNKED)
_LIKE_EAGLE = ("eagle", "mtp", "dflash", "dspark")  # use_eagle
_MLA_ALIGNMENT = 128  # tokens of a hybrid's blocks, for the kernels of MLA
_NOT_MUCH_MORE = 1.5  # layers of the largest kind by those of the smallest


@dataclass(frozen=True)
class _Paged:
    """A layer's cache in pages. `block`: tokens of each; `page`: bytes, padding among them."""

    layer: KvLayer
    block: int
    page: int

    @property
    def kind(self) -> tuple[object, ...]:
        """What layers of one specification have in common."""
        layer = self.layer
        held = (layer.token_bytes, layer.window, layer.state_bytes)
        return (layer.keeps, *held, self.block, self.page)


_Group = tuple[_Paged, ...]


@dataclass(frozen=True)
class _Request:
    """What of a server decides the pages of one request. `in_flight`: the most tokens that are
    scheduled and not yet done, None where it is not known; `states`: pages of each recurrent
    layer; `ranks`: over how many the positions are cut; `encoder_tokens`: as Settled has it."""

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
                kept = self._window(paged) - 1 + self._scheduled()
                return _up(min(kept, length), paged.block) + 1
            case Keeps.CHUNKED:
                kept = self._window(paged) + self._scheduled()
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

    def _window(self, paged: _Paged) -> int:
        if not paged.layer.window:
            raise NotKnown(Text("the size of its sliding window is not known"))
        return paged.layer.window


@dataclass(frozen=True)
class Pool:
    """The pool of one rank; where the model is cut into pipeline stages, of the tightest one.

    `block_size`: tokens that --block-size comes to, None where nothing keeps tokens;
    `bytes_per_token`: of all layers that keep tokens, None where it is no whole number;
    `block_bytes`: of each stage, what one block takes; `groups`: of the whole model; `fixed`: the
    blocks that --num-gpu-blocks-override asks for.
    """

    block_size: int | None
    bytes_per_token: int | None
    block_bytes: tuple[int, ...]
    groups: tuple[_Group, ...]
    request: _Request
    release: Release
    fixed: int | None = None

    def stage(self, number: int) -> Pool:
        """That of one pipeline stage alone."""
        return replace(self, block_bytes=(self.block_bytes[number],)) if self.groups else self

    @property
    def empty(self) -> bool:
        """Whether the model keeps nothing: an encoder."""
        return not self.groups

    def needed(self, length: int) -> int:
        """Bytes for one request of so many tokens ("GiB KV cache is needed")."""
        if self.empty:
            return 0
        if not self.release.groups_layers:
            return self._unpadded(length)
        return max(self.block_bytes) * self._blocks_of(length)

    def usable(self, available: int) -> int:
        """The bytes that requests can have."""
        if self.empty:
            return available
        block = max(self.block_bytes)
        held = available if self.fixed is None else self.fixed * block
        return held - block if self.release.null_block else held

    def blocks(self, available: int) -> int:
        """How many these bytes make, the null block among them."""
        if self.empty:
            return 1
        return max(0, available // max(self.block_bytes)) if self.fixed is None else self.fixed

    def fits(self, available: int, length: int) -> bool:
        """Whether vLLM starts with so many bytes for its cache."""
        usable = self.usable(available)
        return self.empty or (usable > 0 and self.needed(length) <= usable)

    def longest(self, available: int, most: int) -> int:
        """The longest length of at most `most` tokens that fits, 0 where none does: the search of
        --max-model-len auto, and of what a refusal estimates."""
        low, high, found = 1, most, 0
        if not self.fits(available, low):
            return 0
        while low <= high:
            middle = (low + high) // 2
            if self.fits(available, middle):
                found, low = middle, middle + 1
            else:
                high = middle - 1
        return found

    def concurrency(self, available: int, length: int) -> float:
        """Requests of this length at once ("Maximum concurrency"). Raises NotKnown."""
        if self.empty:
            raise NotKnown(Text("this model keeps no KV cache"))
        return self.blocks(available) / max(1, self._blocks_of(length))

    def tokens(self, available: int, length: int) -> int:
        """What this vLLM prints as "GPU KV cache size". Raises NotKnown."""
        concurrency = self.concurrency(available, length)
        if self.release.tokens_of_requests:
            return int(concurrency * length)
        size = min(_printed_block(group, length) for group in self.groups)
        return self.blocks(available) // len(self.groups) * size * self.request.ranks

    def _blocks_of(self, length: int) -> int:
        """Of one request, in all groups."""
        return sum(
            max(self.request.pages(paged, length) for paged in group) for group in self._unlike
        )

    @functools.cached_property
    def _unlike(self) -> tuple[_Group, ...]:
        """Of each group, one layer of each kind."""
        kinds = ({paged.kind: paged for paged in group} for group in self.groups)
        return tuple(tuple(group.values()) for group in kinds)

    def _unpadded(self, length: int) -> int:
        """Layer by layer, as releases before groups were counted had it; stages are not told
        apart."""
        layers = (paged for group in self.groups for paged in group)
        return sum(self.request.pages(paged, length) * paged.page for paged in layers)


def pool(
    layers: Sequence[KvLayer],
    config: ConfigJson,
    options: MemoryOptions,
    release: Release,
    settled: Settled,
) -> Pool:
    """The pool that vLLM makes of these layers of one rank. Raises NotKnown."""
    kept = tuple(layer for layer in layers if layer.keeps is not Keeps.NOTHING)
    request = _request(kept, options, release, settled)
    paged = _paged(kept, release, settled)
    if not _is_uniform(paged) and _hybrid_manager_is_off(kept, options, release):
        paged = _promoted(paged, release)
    groups = _groups(paged, release)
    if len(groups) > 1 and request.ranks > 1:
        raise NotKnown(Text("context parallelism does not go with layers of several kinds"))
    decoder = config.layers or 1 + max((one.layer for one in kept if not one.draft), default=0)
    if options.layout.pipeline > decoder:
        raise NotKnown(Text("there are more pipeline stages than layers"))
    sizes = stage_sizes(decoder, options.layout.pipeline)
    held = [one.block for one in paged if one.layer.keeps is not Keeps.STATE]
    return Pool(
        block_size=min(held, default=None),
        bytes_per_token=_bytes_per_token(kept, request.ranks),
        block_bytes=_block_bytes(groups, sizes) if groups else (),
        groups=groups,
        request=request,
        release=release,
        fixed=GivenOptions(options.given).count("num_gpu_blocks_override"),
    )


def _up(number: int, by: int) -> int:
    return -(-number // by)


def _request(
    layers: Sequence[KvLayer], options: MemoryOptions, release: Release, settled: Settled
) -> _Request:
    batches = settled.concurrent_batches if release.counts_concurrent_batches else 1
    in_flight = settled.max_num_batched_tokens
    if in_flight is not None:
        in_flight = in_flight * batches + settled.retained_tokens
    prefill = 1 if release.context_by_decode_only else settled.prefill_context
    return _Request(
        in_flight=in_flight,
        states=_states(layers, options, release, settled),
        ranks=options.decode_context * prefill,
        encoder_tokens=settled.encoder_tokens,
    )


def _states(
    layers: Sequence[KvLayer], options: MemoryOptions, release: Release, settled: Settled
) -> int:
    """Pages of one request in each recurrent layer (MambaSpec)."""
    if not any(layer.keeps is Keeps.STATE for layer in layers):
        return 0
    if not release.groups_layers:
        return 1  # of max_model_len tokens
    aligned = _is_aligned(layers, settled)
    if aligned and settled.state_mode == "all":
        raise NotKnown(Text("the states that --mamba-cache-mode all keeps are not reckoned"))
    if not aligned:
        return 1 + options.drafted
    if settled.checkpoint_step is None:
        raise NotKnown(Text("the kernel of its recurrent layers depends on the GPU"))
    return 2 + options.drafted + (1 if settled.checkpoint_step else 0)


def _is_aligned(layers: Sequence[KvLayer], settled: Settled) -> bool:
    """Whether states are kept for the prefixes of requests."""
    hybrid = any(layer.keeps is not Keeps.STATE for layer in layers)
    default = settled.hybrid_prefix_caching and hybrid
    return default if settled.prefix_caching is None else settled.prefix_caching


def _bytes_per_token(layers: Sequence[KvLayer], ranks: int) -> int | None:
    every = sum(layer.token_bytes for layer in layers if layer.keeps is not Keeps.CROSS)
    whole = every / ranks
    return int(whole) if 0 < whole < math.inf and whole.is_integer() else None


def _paged(layers: Sequence[KvLayer], release: Release, settled: Settled) -> tuple[_Paged, ...]:
    """get_kv_cache_spec of each layer, with the block size that it has by then."""
    if not layers:
        return ()
    if settled.block_size is None:
        raise NotKnown(Text("the block size depends on the GPU, which is not known"))
    size = settled.block_size
    states = [layer for layer in layers if layer.keeps is Keeps.STATE]
    tokens = [layer for layer in layers if layer.keeps is not Keeps.STATE]
    padded = 0
    if states and any(not layer.draft for layer in tokens):
        size = _hybrid_block(layers, size, release, settled)
        padded = round(size * _main(tokens).token_bytes)
    return tuple(_page(layer, size, padded) for layer in layers)


def _page(layer: KvLayer, size: int, padded: int) -> _Paged:
    if layer.keeps is Keeps.STATE:
        return _Paged(layer, 0, max(layer.state_bytes, padded))
    block = layer.block or size
    page = block * layer.token_bytes
    if page <= 0 or not float(page).is_integer():
        raise NotKnown(Text("the bytes that a layer keeps are not known"))
    return _Paged(layer, block, int(page))


def _main(tokens: Sequence[KvLayer]) -> KvLayer:
    """The kind of attention that vLLM asks of a hybrid's configuration."""
    own = [layer for layer in tokens if not layer.draft]
    whole = [layer for layer in own if layer.keeps in _WHOLE] or own
    return max(whole, key=lambda layer: layer.token_bytes)


def _hybrid_block(layers: Sequence[KvLayer], size: int, release: Release, settled: Settled) -> int:
    """_align_hybrid_block_size: attention's pages are at least as large as a state."""
    tokens = [layer for layer in layers if layer.keeps is not Keeps.STATE]
    state = max(layer.state_bytes for layer in layers if layer.keeps is Keeps.STATE)
    main = _main(tokens)
    if not 0 < main.token_bytes < math.inf:
        raise NotKnown(Text("the bytes that a layer keeps are not known"))
    step = max(main.align, size)
    if main.keeps is Keeps.MLA and release.mla_hybrids_aligned:
        step = max(step, _MLA_ALIGNMENT)
    if release.blocks_at_checkpoints and _is_aligned(layers, settled):
        step = math.lcm(step, settled.checkpoint_step or 1)
    return max(size, step * math.ceil(state / (step * main.token_bytes)))


def _hybrid_manager_is_off(
    layers: Sequence[KvLayer], options: MemoryOptions, release: Release
) -> bool:
    """disable_hybrid_kv_cache_manager: of itself with chunked attention and a drafter."""
    given = GivenOptions(options.given)
    if given.says("disable_hybrid_kv_cache_manager"):
        return given.switch("disable_hybrid_kv_cache_manager")
    if given.says("kv_transfer_config"):
        raise NotKnown(Text("which layers a KV connector keeps whole is not known"))
    chunked = any(layer.keeps is Keeps.CHUNKED for layer in layers)
    method = str(options.speculative.get("method") or "")
    drafted = any(name in method for name in _LIKE_EAGLE)
    return chunked and (drafted or not release.chunks_beside_others)


def _promoted(paged: tuple[_Paged, ...], release: Release) -> tuple[_Paged, ...]:
    """unify_hybrid_kv_cache_specs: windows keep every token where other layers do."""
    whole = [one for one in paged if one.layer.keeps in _WHOLE]
    made = tuple(
        replace(one, layer=replace(one.layer, keeps=Keeps.FULL, window=None))
        if whole and one.layer.keeps in _WINDOWS
        else one
        for one in paged
    )
    windows = {(one.layer.keeps, one.layer.window) for one in paged if one.layer.window}
    if not _is_uniform(made) or len(windows) > 1:
        raise NotKnown(Text("vLLM cannot serve it with --disable-hybrid-kv-cache-manager"))
    return made


def _is_uniform(paged: tuple[_Paged, ...]) -> bool:
    """UniformTypeKVCacheSpecs.is_uniform_type: all need the same number of slots."""
    kinds = {
        "whole" if one.layer.keeps in _WHOLE else (one.layer.keeps, one.layer.window)
        for one in paged
    }
    return len(kinds) <= 1 and len({one.block for one in paged}) <= 1


def _groups(paged: tuple[_Paged, ...], release: Release) -> tuple[_Group, ...]:
    """get_kv_cache_groups"""
    if not paged:
        return ()
    if _is_uniform(paged):
        return (paged,)
    if any(one.layer.keeps is Keeps.SLIDING_MLA for one in paged):
        raise NotKnown(Text("how vLLM lays out layers of this kind is not reckoned"))
    unified = _unified(paged, release)
    if unified is None:
        return (_all_whole(paged),)
    return _of_equal_size(unified, release)


def _unified(paged: tuple[_Paged, ...], release: Release) -> tuple[_Paged, ...] | None:
    """unify_kv_cache_spec_page_size: what has smaller pages gets larger blocks. None where every
    layer keeps every token instead. Raises NotKnown where vLLM refuses."""
    largest = max(one.page for one in paged)
    made = []
    for one in paged:
        if one.page == largest:
            made.append(one)
        elif one.layer.keeps is Keeps.STATE and release.pads_states:
            made.append(replace(one, page=largest))
        elif largest % one.page == 0 and release.unifies_pages and one.block:
            made.append(_Paged(one.layer, one.block * (largest // one.page), largest))
        elif release.pads_pages and one.layer.keeps not in (Keeps.MLA, Keeps.STATE):
            made.append(replace(one, page=largest))
        elif release.falls_back_to_whole and _falls_back(paged):
            return None
        else:
            raise NotKnown(Text("vLLM cannot give its layers pages of one size"))
    return tuple(made)


def _falls_back(paged: tuple[_Paged, ...]) -> bool:
    kinds = {one.layer.keeps for one in paged}
    return {Keeps.MLA, Keeps.SLIDING} <= kinds <= {Keeps.MLA, Keeps.SLIDING, Keeps.FULL}


def _all_whole(paged: tuple[_Paged, ...]) -> _Group:
    """_try_get_full_allocation_fallback_groups"""
    return tuple(
        replace(one, layer=replace(one.layer, keeps=Keeps.FULL, window=None)) for one in paged
    )


def _of_equal_size(paged: tuple[_Paged, ...], release: Release) -> tuple[_Group, ...]:
    """_get_kv_cache_groups_uniform_page_size"""
    kinds: dict[tuple[object, ...], list[_Paged]] = {}
    for one in paged:
        kinds.setdefault(one.kind, []).append(one)
    sizes = [len(layers) for layers in kinds.values()]
    size = min(sizes)
    if release.groups_layers and max(sizes) < size * _NOT_MUCH_MORE:
        size = max(sizes)
    made = []
    for layers in kinds.values():
        groups = _up(len(layers), size)
        made += [tuple(layers[number::groups]) for number in range(groups)]
    return tuple(made)


def _printed_block(group: _Group, length: int) -> int:
    """A recurrent layer's block is as long as the longest request."""
    return min(paged.block or length for paged in group)


def _block_bytes(groups: tuple[_Group, ...], stages: tuple[int, ...]) -> tuple[int, ...]:
    """What one block takes on each pipeline stage; a drafter is on the last one."""
    made, first = [], 0
    for number, size in enumerate(stages):
        last = number == len(stages) - 1
        held = (sum(_bytes_on(group, first, size, last)) for group in groups)
        made.append(max(held))
        first += size
    if not all(made):
        raise NotKnown(Text("a pipeline stage would have no layers that keep tokens"))
    return tuple(made)


def _bytes_on(group: _Group, first: int, size: int, last: bool) -> list[int]:
    return [
        one.page
        for one in group
        if (last if one.layer.draft else first <= one.layer.layer < first + size)
    ]
