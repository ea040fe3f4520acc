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
from doctor.fit.weights import weights_on
from doctor.frozen import dataclass
from doctor.logs.started import StartedMemory
from doctor.model import Text
from doctor.profile import Profile

_PRINTED = GIB // 200
"""A printed GiB has two decimals: so much less or more may it be."""
_MOST_RANKS = 512
_LONGEST = 1 << 32


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
        made = _pool(config, options, rules)
        tokens = _tokens(real, made)
        concurrency = made.concurrency(round(real.available * GIB), min(real.length, _LONGEST))
    except NotKnown as error:
        why = error.why
    try:
        weights = _weights(config, options, rules)
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


def _pool(config: ConfigJson, options: MemoryOptions, rules: Release) -> Pool:
    layers = kv_layers(config, options, rules, None)
    return pool(layers, config, options, rules, settled(config, options, rules, None))


def _tokens(real: StartedMemory, made: Pool) -> Band:
    available, length = round(real.available * GIB), min(real.length, _LONGEST)
    near = (available - _PRINTED, available, available + _PRINTED)
    low, likely, high = (made.tokens(max(0, one), length) for one in near)
    return Band(low, likely, high)


def _weights(config: ConfigJson, options: MemoryOptions, rules: Release) -> Band:
    stages = range(options.layout.pipeline)
    most = max(
        (weights_on(config, None, options, rules, stage) for stage in stages),
        key=lambda one: one.bytes,
    )
    return Band(most.bytes, most.bytes, most.high)
