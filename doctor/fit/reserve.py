"""What a start of vLLM needs of a GPU beside weights and KV cache, as a band.

vLLM runs the model once with as many tokens as a step may have and as many requests as it serves at
once, and takes the peak of torch's memory, what NCCL and CUDA hold outside torch, and from 0.20 an
estimate of the CUDA graphs (determine_available_memory of v1/worker/gpu_worker.py). The factors are
those of public starts of 0.11 to 0.31; for 0.22 and later there are few of them.
"""

from __future__ import annotations

import dataclasses

from packaging.version import Version

from doctor.consumers.model_config import ConfigJson
from doctor.consumers.options import GivenOptions
from doctor.fit.options import MemoryOptions
from doctor.fit.releases import Release
from doctor.fit.sizes import GIB, Band, NotKnown
from doctor.fit.verdict import GpuMemory
from doctor.frozen import dataclass
from doctor.model import Text
from doctor.numbers import version_of

_LARGE = 70 * GIB  # get_batch_defaults: 1,024 requests at once
_HUGE = 160 * GIB


@dataclass(frozen=True)
class Reserve:
    """`band`: bytes of one rank; `sources`: where its ends come from."""

    band: Band
    sources: tuple[Text, ...]


@dataclass(frozen=True)
class _Part:
    """Bytes at the low end, likely, and at the high end."""

    low: float = 0
    likely: float = 0
    high: float = 0

    def __add__(self, other: _Part) -> _Part:
        return _Part(self.low + other.low, self.likely + other.likely, self.high + other.high)

    def times(self, size: float) -> _Part:
        return _Part(self.low * size, self.likely * size, self.high * size)

    def or_more(self, other: _Part) -> _Part:
        """Of two peaks, the one that is higher."""
        return _Part(
            max(self.low, other.low), max(self.likely, other.likely), max(self.high, other.high)
        )


def reserve(
    config: ConfigJson,
    options: MemoryOptions,
    release: Release,
    gpu: GpuMemory,
    seqs: int,
    batched: int,
) -> Reserve:
    """`seqs`, `batched`: max_num_seqs and max_num_batched_tokens as this vLLM takes them. Raises
    NotKnown for a model whose sizes are not known."""
    made = version_of(release.version)
    version = made if made is not None else release.rules
    peak = _sampler(config, options, version, seqs).or_more(_forward(config, options, batched))
    peak = peak.or_more(_encoder(config, options))
    ranks = options.layout.tensor * options.layout.pipeline
    total = peak + _outside(ranks) + _graphs(options, release, gpu) + _more(options, version, gpu)
    apart = set_apart(options, release)
    band = Band(round(total.low * GIB), round(total.likely * GIB), round(total.high * GIB))
    return Reserve(band.each(lambda size: size + apart), (_source(version),))


def set_apart(options: MemoryOptions, release: Release) -> int:
    """Bytes that are taken off what is available for the KV cache, of --kv-cache-memory-bytes too
    (reserve_mm_ipc_gpu_memory, multimodal/gpu_ipc_memory.py, from 0.25)."""
    if not release.reserves_for_media:
        return 0
    return round(GivenOptions(options.given).amount("mm_ipc_gpu_memory_gb") * GIB)


def _source(version: Version) -> Text:
    if version >= Version("0.22"):
        return Text(
            "the reserve is an estimate from the source of vLLM {version} and from few starts that "
            "were measured",
            version=version,
        )
    return Text(
        "the reserve is the band of public starts of vLLM 0.11 to 0.21, for {version}",
        version=version,
    )


def _sampler(config: ConfigJson, options: MemoryOptions, version: Version, seqs: int) -> _Part:
    """Logits of all requests in 32 bit, so many times over; of a pipeline the last stage alone."""
    if config.pooling:
        return _Part()
    if config.vocabulary is None:
        raise NotKnown(Text("config.json does not say how large the vocabulary is"))
    made = _copies(version).times(seqs * config.vocabulary * 4 / GIB)
    return made if options.layout.pipeline == 1 else dataclasses.replace(made, low=0)


def _copies(version: Version) -> _Part:
    if version < Version("0.13"):
        return _Part(9.0, 9.7, 10.2)
    if version < Version("0.16"):
        return _Part(5.0, 9.0, 10.2)
    if version < Version("0.22"):
        return _Part(5.0, 6.2, 10.2)
    if version < Version("0.26"):  # the older runner keeps 3.5, the newer one less
        return _Part(0.9, 3.5, 6.5)
    return _Part(0.7, 1.7, 3.5)


def _forward(config: ConfigJson, options: MemoryOptions, batched: int) -> _Part:
    """Of one layer at a time: the hidden states and what the feed-forward part makes of them."""
    hidden = config.hidden_size
    if hidden is None:
        raise NotKnown(Text("config.json does not say how large the hidden states are"))
    tensor = options.layout.tensor
    dense = 3 * (config.dense_size or 0) / tensor
    chosen = config.count("num_experts_per_tok", "top_k_experts", "moe_topk") or 1
    rows = (config.expert_size or 0) / (1 if options.layout.experts_whole else tensor)
    sparse = chosen * (3 * rows + 2 * hidden) if config.experts else 0
    return _Part(0.3, 1.0, 1.6).times(batched * 2 * (4 * hidden + max(dense, sparse)) / GIB)


def _encoder(config: ConfigJson, options: MemoryOptions) -> _Part:
    """The tower's run over the largest images that a step may have."""
    towers = ("vision_config", "audio_config", "thinker_config", "vision_tower", "vit_config")
    if options.language_model_only or not any(config.values.get(name) for name in towers):
        return _Part()
    return _Part(0.2, 2.4, 3.5)


def _outside(ranks: int) -> _Part:
    """CUDA's context grows, and NCCL has its buffers."""
    return _Part(0.05, 0.15, 0.6) if ranks == 1 else _Part(0.2, 0.6, 1.2)


def _graphs(options: MemoryOptions, release: Release, gpu: GpuMemory) -> _Part:
    """Before 0.20 they are captured beside what was asked for; later an estimate is taken off."""
    if options.eager:
        return _Part()
    compiled = _Part(high=0.9)  # where the cache of torch.compile is cold
    if not release.estimates_graphs:
        return compiled
    return compiled + (_Part(0, 0.5, 2.4) if gpu.total >= _LARGE else _Part(0, 0.2, 1.0))


def _more(options: MemoryOptions, version: Version, gpu: GpuMemory) -> _Part:
    """What only some starts have."""
    made = _Part()
    if version < Version("0.9"):
        made += _Part(high=1.8)  # its older engine runs a whole prompt at once
    if options.speculative:
        made += _Part(0, 0.5, 2.5)
    if options.layout.experts_whole:
        made += _Part(high=1.5)
    if gpu.unified:
        made += _Part(0, 1.5, 6.0)  # the page cache counts
    if gpu.total >= _HUGE:
        made += _Part(high=5.0)
    return made
