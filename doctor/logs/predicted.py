"""What a started server's memory should be by the arithmetic of `doctor/fit`, beside what its log
says that it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from doctor.consumers.known_models import known_model
from doctor.consumers.model_config import ConfigJson
from doctor.fit.defaults import settled
from doctor.fit.layers import kv_layers
from doctor.fit.options import MemoryOptions, memory_options
from doctor.fit.pool import Pool, pool
from doctor.fit.releases import Release, release
from doctor.fit.sizes import GIB, Band, NotKnown
from doctor.fit.verdict import GpuMemory
from doctor.fit.weights import weights_on
from doctor.frozen import dataclass
from doctor.logs.started import StartedMemory
from doctor.model import Text
from doctor.profile import Profile

_PRINTED = GIB // 200
"""A printed GiB has two decimals: so much less or more may it be."""
_MOST_RANKS = 512
# Of each kind whose blocks or batches are others; the smallest that can have held it is first.
_GPUS = (
    GpuMemory("24 GB", 24 * GIB, capability=89),
    GpuMemory("H100 80GB", 80 * GIB, capability=90),
    GpuMemory("A100 80GB", 80 * GIB, capability=80),
    GpuMemory("96 GB", 96 * GIB, capability=120),
    GpuMemory("B200", 180 * GIB, capability=100),
)


@dataclass(frozen=True)
class PredictedMemory:
    """`weights`: bytes on the GPU that has most of them; `tokens`: of the memory that was really
    available, as far as it is printed; `concurrency`: requests of the length that was printed; None
    where it cannot be told, and `why` says why."""

    real: StartedMemory
    weights: Band | None = None
    tokens: Band | None = None
    concurrency: float | None = None
    why: Text | None = None

    @property
    def tensor_parallel(self) -> int:
        return _size(self.real.options, "tensor_parallel_size")


def predicted(real: StartedMemory) -> PredictedMemory:
    """Of a model that the doctor's table has; `why` says what is missing where nothing is told."""
    row = known_model(real.model)
    if row is None:
        return PredictedMemory(
            real,
            why=Text("{model} is not in the table of models that are known", model=real.model),
        )
    if real.drafts and "speculative_config" not in real.options:
        return PredictedMemory(real, why=Text("what its drafter is, this log does not say"))
    if _too_many(real.options):
        return PredictedMemory(real, why=Text("so many ranks no server has"))
    try:
        rules, options = release(real.version), _memory_options(real)
    except ValueError:
        return PredictedMemory(
            real, why=Text("{version} is not a version", version=repr(real.version))
        )
    return _of(real, ConfigJson(row.values), options, rules)


def _of(
    real: StartedMemory, config: ConfigJson, options: MemoryOptions, rules: Release
) -> PredictedMemory:
    weights = tokens = concurrency = why = None
    try:
        weights = _weights(config, options, rules)
    except NotKnown as error:
        why = error.why
    try:
        made = _pools(real, config, options, rules)
        tokens = _tokens(real, made)
        concurrency = made[0].concurrency(round(real.available * GIB), real.length)
    except NotKnown as error:
        why = error.why
    return PredictedMemory(real, weights, tokens, concurrency, why)


def _too_many(options: Mapping[str, Any]) -> bool:
    """Whether a count is beyond what any server has."""
    counts = (options.get(name) for name in options if name.endswith("parallel_size"))
    return any(isinstance(one, (int, float)) and one > _MOST_RANKS for one in counts)


def _memory_options(real: StartedMemory) -> MemoryOptions:
    ranks = _size(real.options, "tensor_parallel_size")
    profile = Profile(tensor_parallel_size=ranks, options=dict(real.options))
    return memory_options(profile, real.options)


def _size(options: Mapping[str, Any], name: str) -> int:
    said = options.get(name)
    whole = isinstance(said, int) and not isinstance(said, bool)
    return max(1, said) if whole and said is not None else 1


def _pools(
    real: StartedMemory, config: ConfigJson, options: MemoryOptions, rules: Release
) -> list[Pool]:
    """Those of the GPUs that may have been there, the likeliest first: the log names none. Raises
    NotKnown where that of none can be told."""
    made: list[Pool] = []
    why = Text("no GPU has so much memory")
    for gpu in _GPUS:
        if gpu.total < (real.loaded + real.available) * GIB:
            continue
        try:
            layers = kv_layers(config, options, rules, gpu.capability)
            made.append(pool(layers, config, options, rules, settled(config, options, rules, gpu)))
        except NotKnown as error:
            why = error.why
    if not made:
        raise NotKnown(why)
    return made


def _tokens(real: StartedMemory, pools: list[Pool]) -> Band:
    available, off = round(real.available * GIB), _PRINTED
    return Band(
        min(one.tokens(max(0, available - off), real.length) for one in pools),
        pools[0].tokens(available, real.length),
        max(one.tokens(available + off, real.length) for one in pools),
    )


def _weights(config: ConfigJson, options: MemoryOptions, rules: Release) -> Band:
    stages = range(options.layout.pipeline)
    most = max(
        (weights_on(config, None, options, rules, stage) for stage in stages),
        key=lambda one: one.bytes,
    )
    return Band(most.bytes, most.bytes, most.high)
