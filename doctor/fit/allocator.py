"""How much of a GPU's memory torch counts for a tensor (c10/cuda/CUDACachingAllocator.cpp)."""

from __future__ import annotations

_ROUND = 512  # kMinBlockSize
_LARGE = 10 << 20  # kMinLargeAlloc: from here on a tensor has a segment of its own
_SEGMENT = 2 << 20  # kRoundLarge
_SMALL = 1 << 20  # kSmallSize: what is left of a segment is a block of its own if it is more


def allocated(size: int) -> int:
    """Bytes that torch.cuda.memory_allocated grows by for a tensor of this size."""
    block = -(-size // _ROUND) * _ROUND
    if block < _LARGE:
        return block
    segment = -(-block // _SEGMENT) * _SEGMENT
    return block if segment - block > _SMALL else segment
