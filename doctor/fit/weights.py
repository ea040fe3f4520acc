"""How large a model's weights are on one rank once vLLM has loaded them.

The tensors are those of the checkpoint's headers, or those that a checkpoint of this config.json
would have (doctor.fit.checkpoints). vLLM merges and splits them as vllm/model_executor/layers and
models do (0.22.0 and 0.33.0), and torch's allocator counts each merged one.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from enum import Enum

from doctor.consumers.model_config import ConfigJson
from doctor.fit.checkpoints import checkpoint_of, drafter_of, loading_of
from doctor.fit.options import MemoryOptions
from doctor.fit.releases import NEWEST, Release
from doctor.fit.sharding import WeightShare, drafts
from doctor.fit.sizes import GIB, NotKnown
from doctor.fit.verdict import Tensor
from doctor.frozen import dataclass


class WeightsFrom(str, Enum):
    """What was counted: the tensors of the checkpoint, or those that config.json describes."""

    HEADERS = "headers"
    CONFIG = "config"


@dataclass(frozen=True)
class Weights:
    """`bytes`: as torch counts them on the rank; `high`: the most that "Model loading took" says
    of them, since from 0.22 on it counts more than the tensors."""

    bytes: int
    high: int
    source: WeightsFrom


def weights_on(
    config: ConfigJson,
    tensors: Iterable[Tensor] | None,
    options: MemoryOptions,
    release: Release,
    stage: int,
    capability: int | None = None,
) -> Weights:
    """Of a rank of this pipeline stage, from 0 on. `tensors`: of the checkpoint's headers, None
    where there are none; `capability`: of the GPU, such as 90, whose kernels pad some weights.
    Raises NotKnown."""
    loading = loading_of(config, options, headers=tensors is not None)
    source = WeightsFrom.CONFIG if tensors is None else WeightsFrom.HEADERS
    if tensors is None:
        drafter = drafter_of(config, loading) if drafts(options) else ()
        tensors = itertools.chain(checkpoint_of(config, loading), drafter)
    counted = tuple(tensors)
    share = WeightShare(config, options, loading, release, stage, capability)
    size = share.bytes_of(counted)
    most = size
    if capability is None and loading.padded:
        most = max(dataclasses.replace(share, capability=c).bytes_of(counted) for c in (80, 100))
    more = max(3 * GIB // 20, size // 100) if release.since("0.22") else 0
    return Weights(size, max(size, most) + more, source)


def loaded_bytes(config: ConfigJson, asked: str | None = None, dtype: str = "auto") -> int | None:
    """Bytes of all weights as one rank that holds the whole model loads them, without the layers
    that only speculative decoding loads; None for a model that is not understood. `asked`: what
    --quantization says, `dtype`: what --dtype does."""
    options = MemoryOptions(quantization=asked, dtype=dtype)
    release = Release(str(NEWEST), NEWEST)
    try:
        return weights_on(config, None, options, release, 0).bytes
    except NotKnown:
        return None
