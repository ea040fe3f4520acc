"""Whether a model fits: what is asked, and what it comes to."""

from __future__ import annotations

from dataclasses import field
from enum import Enum
from typing import Any

from doctor.consumers.model_config import ConfigJson
from doctor.fit.options import MemoryOptions
from doctor.fit.releases import Release
from doctor.fit.sizes import Band
from doctor.frozen import dataclass
from doctor.model import Text


@dataclass(frozen=True)
class GpuMemory:
    """One GPU. `total`: bytes as torch sees them; `free`: bytes that nobody else holds, None where
    nobody looked; `capability`: 90 is 9.0, None where it is not known; `unified`: its memory is the
    machine's."""

    name: str
    total: int
    free: int | None = None
    capability: int | None = None
    unified: bool = False


@dataclass(frozen=True)
class Tensor:
    """One row of a safetensors header. `dtype`: as it is written there, such as BF16."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class FitQuestion:
    """`model`: a label; `config_from`: where its config.json was read, as a person is told;
    `tensors`: of the checkpoint's headers, None where there are none; `length`: the model's own,
    which vLLM takes without --max-model-len; `gpus`: all that the server sees, in CUDA's order, of
    which each rank takes one; `available`: bytes for the KV cache on each rank as a log printed
    them, and then nothing is estimated; `damage`: why the headers cannot be read that are there, so
    that the weights are not told; `finest`: as SharedModel has
    it, None for what is known of the release."""

    model: str
    config: ConfigJson
    config_from: str
    options: MemoryOptions
    release: Release
    gpus: tuple[GpuMemory, ...]
    length: int | None = None
    tensors: tuple[Tensor, ...] | None = None
    damage: Text | None = None
    available: int | None = None
    finest: int | None = None


class Answer(str, Enum):
    FITS = "fits"
    TOO_CLOSE = "too-close"
    DOES_NOT_FIT = "does-not-fit"
    UNKNOWN = "unknown"


class Cause(str, Enum):
    """What it fails for, or comes close to."""

    GPUS = "gpus"  # fewer than ranks
    SHARES = "shares"  # the ranks cannot share the model evenly
    FREE = "free"  # others hold what vLLM would ask for
    WEIGHTS = "weights"  # they alone exceed what may be used
    NOTHING_LEFT = "nothing-left"  # for the KV cache, beside weights and reserve
    REQUEST = "request"  # of the full length: its KV cache is larger than what is left


@dataclass(frozen=True)
class RankMemory:
    """Of one rank of this node, in bytes; None where it cannot be told. `requested`: what vLLM may
    use of the GPU (total x utilization); `reserve`: what is neither weights nor KV cache;
    `available`: for the KV cache, and may be negative; `others`: what other processes hold."""

    rank: int
    weights: int | None = None
    kv_bytes_per_token: int | None = None
    requested: int | None = None
    reserve: Band | None = None
    available: Band | None = None
    others: int | None = None


@dataclass(frozen=True)
class KvFit:
    """`needed`: bytes for one request of `max_model_len` on one GPU; `tokens`: what that vLLM
    prints as "GPU KV cache size"; `longest`: the longest --max-model-len that fits; `concurrency`:
    requests of full length at once, at the likely end."""

    block_size: int | None = None
    needed: int | None = None
    tokens: Band | None = None
    max_model_len: int | None = None
    longest: Band | None = None
    concurrency: float | None = None


@dataclass(frozen=True)
class Fit:
    """What `fit` says. `cause`: of an answer that is neither fits nor unknown; `weights_from`:
    "headers", "config", or None; `flags`: to be added to the server's command, so that it fits;
    `sources`: where each estimate comes from; `smallest_tp`: the smallest tensor parallel size that
    divides the model, fits, and is there; `utilization`: what the server would take of each GPU;
    `most_utilization`: the most that free memory allows; `loaded`: what the weights were reckoned
    to, so that a question about the same ones need not begin anew."""

    question: FitQuestion
    answer: Answer
    why: Text
    ranks: tuple[RankMemory, ...]
    kv: KvFit = KvFit()
    cause: Cause | None = None
    weights_from: str | None = None
    smallest_tp: int | None = None
    flags: tuple[str, ...] = ()
    utilization: float | None = None
    most_utilization: float | None = None
    loaded: Any = field(default=None, compare=False, repr=False)
    sources: tuple[Text, ...] = field(default_factory=tuple)
