"""What one layer keeps of each token: the unit of which vLLM makes its pool of KV cache."""

from __future__ import annotations

from enum import Enum

from doctor.frozen import dataclass


class Keeps(str, Enum):
    """What a layer keeps (vllm/v1/kv_cache_interface.py)."""

    FULL = "full"  # FullAttentionSpec
    MLA = "mla"  # MLAAttentionSpec
    SLIDING = "sliding"  # SlidingWindowSpec
    SLIDING_MLA = "sliding_mla"  # SlidingWindowMLASpec
    CHUNKED = "chunked"  # ChunkedLocalAttentionSpec
    STATE = "state"  # MambaSpec: linear attention, Mamba, short convolutions
    CROSS = "cross"  # CrossAttentionSpec
    NOTHING = "nothing"  # EncoderOnlyAttentionSpec, and layers that share another one's


@dataclass(frozen=True)
class KvLayer:
    """One entry of the table that a worker's get_kv_cache_spec gives, on one rank.

    `layer`: the decoder's layer that it is of, by which pipeline stages are cut; those of a drafter
    (`draft`) count on from the last one. `token_bytes`: of each token, with scales; a float where a
    block's bytes are not whole tokens. `window`: tokens, of SLIDING and CHUNKED. `state_bytes`: of
    STATE, one page as it is before it is padded, speculative rows in it. `align`: a multiple of
    tokens that the backend's blocks must have. `block`: the tokens of a block, where the layer
    fixes them itself.
    """

    layer: int
    keeps: Keeps
    token_bytes: float = 0
    window: int | None = None
    state_bytes: int = 0
    align: int = 1
    block: int | None = None
    draft: bool = False
    name: str = ""


def stage_sizes(layers: int, stages: int) -> tuple[int, ...]:
    """How many of the decoder's layers each pipeline stage has: a remainder goes to the stages
    before the last one (get_pp_indices, vllm/distributed/utils.py)."""
    each, more = divmod(layers, stages)
    sizes = [each] * stages
    for back in range(2, more + 2):
        sizes[-back] += 1
    return tuple(sizes)
