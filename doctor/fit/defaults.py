"""What a server of vLLM takes where its options say nothing, as far as memory depends on it.

Read in engine/arg_utils.py (get_batch_defaults, _set_default_max_num_seqs_and_batched_tokens_args),
config/vllm.py (async scheduling) and the attention backends of 0.11.2, 0.20.2, 0.22.0, 0.24.0,
0.25.1, 0.26.0, 0.28.0, 0.29.0 and 0.33.0.
"""

from __future__ import annotations

from doctor.consumers.model_config import ConfigJson
from doctor.consumers.options import GivenOptions
from doctor.fit.options import MemoryOptions
from doctor.fit.releases import Release
from doctor.fit.sizes import GIB
from doctor.fit.verdict import GpuMemory
from doctor.frozen import dataclass

_LARGE = 70 * GIB
_LARGEST = 160 * GIB
_GB10 = 121


@dataclass(frozen=True)
class Settled:
    """`max_num_seqs`, `max_num_batched_tokens`: None where they depend on a GPU that is not known;
    `utilization`: of each GPU's memory; `prefix_caching`: as it was said, None where the kind of
    the model decides; `concurrent_batches`: that the engine has scheduled at once; `block_size`:
    tokens, before a hybrid's is aligned, None where it depends on a GPU that is not known;
    `graphs`: whether CUDA graphs are captured; `encoder_tokens`: of an encoder whose output each
    request keeps, None where it is not known."""

    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    utilization: float
    prefix_caching: bool | None
    concurrent_batches: int
    block_size: int | None
    graphs: bool
    encoder_tokens: int | None = None


def settled(
    config: ConfigJson, options: MemoryOptions, release: Release, gpu: GpuMemory | None
) -> Settled:
    """As this vLLM starts such a server on such a GPU."""
    given = GivenOptions(options.given)
    seqs, tokens = _batch(config, options, release, gpu)
    return Settled(
        max_num_seqs=seqs,
        max_num_batched_tokens=tokens,
        utilization=options.utilization or (0.92 if release.since("0.20") else 0.9),
        prefix_caching=_said(given, "enable_prefix_caching"),
        concurrent_batches=_concurrent_batches(options, release),
        block_size=options.block_size or _block_size(config, options, release, gpu),
        graphs=not options.eager,
        encoder_tokens=config.count("max_source_positions"),
    )


def _said(given: GivenOptions, name: str) -> bool | None:
    """A switch, None where nothing is said; `no_...` is the other one."""
    if given.says(f"no_{name}"):
        return not given.switch(f"no_{name}")
    return given.switch(name) if given.says(name) else None


def _batch(
    config: ConfigJson, options: MemoryOptions, release: Release, gpu: GpuMemory | None
) -> tuple[int | None, int | None]:
    """max_num_seqs and max_num_batched_tokens of a server."""
    seqs, tokens = options.max_num_seqs, options.max_num_batched_tokens
    if gpu is None and (seqs is None or tokens is None):
        return seqs, tokens
    usual_seqs, usual_tokens = _tier(gpu, release) if gpu else (0, 0)
    if GivenOptions(options.given).word("performance_mode") == "throughput":
        usual_seqs, usual_tokens = 2 * usual_seqs, 2 * usual_tokens
    most_seqs = usual_seqs if seqs is None else seqs
    if tokens is None:
        tokens = _fitted(usual_tokens, most_seqs, config, options)
    return min(most_seqs, tokens) if seqs is None else seqs, tokens


def _fitted(tokens: int, seqs: int, config: ConfigJson, options: MemoryOptions) -> int:
    """A default of max_num_batched_tokens as the model's length changes it."""
    found = config.length()
    length = options.max_model_len or (found.tokens if found else None)
    if length is None:
        return tokens
    if config.values.get("is_encoder_decoder") is True:  # whose prefill is not chunked
        tokens = max(tokens, length)
    return min(seqs * length, tokens)


def _tier(gpu: GpuMemory, release: Release) -> tuple[int, int]:
    """get_batch_defaults of a server."""
    small = gpu.capability == _GB10 if release.since("0.33") else False
    if release.since("0.28") and gpu.total >= _LARGEST:
        return 1024, 16384
    if gpu.total >= _LARGE and "a100" not in gpu.name.lower() and not small:
        return 1024, 8192
    return 256, 2048


def _concurrent_batches(options: MemoryOptions, release: Release) -> int:
    return 2


def _block_size(
    config: ConfigJson, options: MemoryOptions, release: Release, gpu: GpuMemory | None
) -> int | None:
    return 16
