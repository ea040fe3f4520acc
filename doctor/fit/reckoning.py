"""What a server's memory comes to on each rank, and whether one request of the full length fits.

The order of vLLM's own checks: it asks for ceil(total x utilization) and refuses where less is free
(v1/worker/utils.py, request_memory); what weights, profile run and CUDA graphs leave of that is for
the KV cache (v1/worker/gpu_worker.py), and one request must fit into it (v1/core).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from doctor.consumers.model_config import needs_of
from doctor.consumers.shares import SharedModel, context_groups
from doctor.fit.defaults import USUAL_BLOCK, Settled, settled
from doctor.fit.layers import kv_layers
from doctor.fit.pool import Pool, pool
from doctor.fit.reserve import Reserve, reserve
from doctor.fit.sizes import GIB, Band, NotKnown
from doctor.fit.verdict import Answer, Cause, Fit, FitQuestion, GpuMemory, KvFit, RankMemory
from doctor.fit.weights import Weights, WeightsFrom, weights_on
from doctor.frozen import dataclass
from doctor.model import Text

_MOST_RANKS = 1024
_LARGE = 70 * GIB
_FINEST = 32  # refine_fp8_moe_block_shape, from 0.29 on
_OFF = 0.02  # how far weights that are reckoned from config.json alone were off
# What NCCL, cuBLAS and CUDA's context take before vLLM reads what is free: 0.6 GiB on one GPU and
# 1.5 GiB with two ranks were seen.
_AT_START = Band(0, int(0.6 * GIB), int(0.8 * GIB))
_AT_START_OF_SEVERAL = Band(0, int(1.2 * GIB), int(1.6 * GIB))


@dataclass(frozen=True)
class _Found:
    """An answer, why, and what it fails for."""

    answer: Answer
    why: Text
    cause: Cause | None = None


@dataclass(frozen=True)
class _Values:
    values: Mapping[str, Any]
    weights: int | None = None


LoadedWeights = Mapping[int, "Weights | NotKnown"]
"""By pipeline stage."""


def reckon(question: FitQuestion) -> Fit:
    """The answer without advice. What cannot be told makes it unknown; nothing is raised."""
    return _Reckoning(question).fit


def reckon_like(fit: Fit, question: FitQuestion) -> Fit:
    """The same of a question whose weights are those of an earlier one."""
    return _Reckoning(question, fit.loaded).fit


def model_of(question: FitQuestion) -> SharedModel:
    """How the ranks of any size would share the model."""
    options = question.options
    whole = options.whole_tower or options.language_model_only
    needs = needs_of(_Values(question.config.values))
    finest = question.finest
    if finest is None and question.release.since("0.29"):
        finest = _FINEST
    return SharedModel(needs, question.config, options.layout, whole, finest)


def _lacking(question: FitQuestion) -> int | None:
    """A layer that the headers name no tensor of: they are of a part of a checkpoint."""
    if question.tensors is None:
        return None
    named = {part for one in question.tensors for part in one.name.split(".") if part.isdigit()}
    return next((n for n in range(question.config.layers or 0) if str(n) not in named), None)


def most_utilization(question: FitQuestion) -> float | None:
    """The highest --gpu-memory-utilization that the free memory of all its GPUs allows, in
    hundredths; None where nobody looked, or nothing is free."""
    used = question.gpus[: question.options.layout.ranks]
    taken = _taken(question).high
    parts = [(gpu.free - taken) / gpu.total for gpu in used if gpu.free is not None and gpu.total]
    if not parts or len(parts) < len(used):
        return None
    return max(0, math.floor(min(parts) * 100)) / 100 or None


def _taken(question: FitQuestion) -> Band:
    return _AT_START if question.options.layout.ranks == 1 else _AT_START_OF_SEVERAL


class _Reckoning:
    """Each part is reckoned once; of one that cannot be told, `NotKnown` says why."""

    def __init__(self, question: FitQuestion, loaded: LoadedWeights | None = None) -> None:
        self.question = question
        self.loaded = loaded
        self.options = question.options
        self.layout = question.options.layout

    @property
    def fit(self) -> Fit:
        question, kv = self.question, self.kv
        found = self._judged(kv)
        weights = [one for one in self.weights.values() if isinstance(one, Weights)]
        return Fit(
            question=question,
            answer=found.answer,
            why=found.why,
            ranks=self.ranks[: max(1, len(question.gpus))],
            kv=kv,
            cause=found.cause,
            weights_from=weights[0].source.value if len(weights) == len(self.weights) else None,
            utilization=self.utilization,
            most_utilization=most_utilization(question),
            loaded=self.weights,
            sources=tuple(self._sources()),
        )

    # What the model and the options come to.

    @functools.cached_property
    def settled(self) -> Settled | NotKnown:
        question = self.question
        try:
            made = settled(question.config, self.options, question.release, self.first)
        except NotKnown as unknown:
            return unknown
        if self.first is None and made.block_size is None:
            return dataclasses.replace(made, block_size=USUAL_BLOCK)
        return made

    @functools.cached_property
    def first(self) -> GpuMemory | None:
        """The GPU that vLLM asks for all. One whose kind is not said is taken for a usual one of
        its size."""
        for gpu in self.question.gpus[:1]:
            usual = 90 if gpu.total >= _LARGE else 89
            return dataclasses.replace(gpu, capability=gpu.capability or usual)
        return None

    @property
    def utilization(self) -> float | None:
        return self.settled.utilization if isinstance(self.settled, Settled) else None

    @functools.cached_property
    def pool(self) -> Pool | NotKnown:
        question, chosen = self.question, self.settled
        if isinstance(chosen, NotKnown):
            return chosen
        capability = self.first.capability if self.first else None
        if self._too_many_stages:
            count = self.layout.pipeline
            return NotKnown(Text("{count} pipeline stages are too many to reckon", count=count))
        try:
            layers = kv_layers(question.config, self.options, question.release, capability)
            return pool(layers, question.config, self.options, question.release, chosen)
        except NotKnown as unknown:
            return unknown

    @property
    def _too_many_stages(self) -> bool:
        """Also more than layers, of which no stage may be without one."""
        return self.layout.pipeline > min(_MOST_RANKS, self.question.config.layers or _MOST_RANKS)

    @functools.cached_property
    def weights(self) -> LoadedWeights:
        if self.loaded is not None:
            return self.loaded
        return {stage: self._weights_of(stage) for stage in {self._stage(r) for r in self._counted}}

    def _weights_of(self, stage: int) -> Weights | NotKnown:
        question = self.question
        if isinstance(self.pool, NotKnown) and self._too_many_stages:
            return self.pool
        if question.damage is not None:
            return NotKnown(question.damage)
        if (lacking := _lacking(question)) is not None:
            why = Text("the checkpoint's headers have no tensors of layer {number}", number=lacking)
            return NotKnown(why)
        capability = self.first.capability if self.first else None
        model = question.config, question.tensors
        try:
            return weights_on(*model, self.options, question.release, stage, capability)
        except NotKnown as unknown:
            return unknown

    @property
    def _counted(self) -> range:
        """The ranks that are looked at: where GPUs lack, those that would have one."""
        ranks, gpus = self.layout.ranks, len(self.question.gpus)
        exact = self.question.available is not None
        lack = 0 < gpus < ranks and self.layout.elsewhere is None and not exact
        return range(min(gpus if lack else ranks, _MOST_RANKS))

    def _stage(self, rank: int) -> int:
        return rank // (self.layout.tensor * self.layout.context) % self.layout.pipeline

    @functools.cached_property
    def length(self) -> int | None:
        """The tokens of one request; None where vLLM is to find the longest that fits."""
        return None if self.options.longest else self.options.max_model_len or self.question.length

    @property
    def most(self) -> int | None:
        """The longest that is looked for."""
        known = (self.length, self.question.length)
        return max((one for one in known if one is not None), default=None)

    # What each GPU has of it.

    def _gpu(self, rank: int) -> GpuMemory | None:
        """Ranks that other machines hold are taken to be on GPUs like the smallest here."""
        gpus = self.question.gpus
        return gpus[rank] if rank < len(gpus) else min(gpus, key=lambda g: g.total, default=None)

    @functools.cached_property
    def ranks(self) -> tuple[RankMemory, ...]:
        return tuple(self._rank(rank, self._gpu(rank)) for rank in self._counted)

    def _rank(self, rank: int, gpu: GpuMemory | None) -> RankMemory:
        weights = self.weights[self._stage(rank)]
        kept = self.reserve_on(gpu)
        budget = self._budget(gpu)
        band = kept.band if kept else None
        left = None
        if self.question.available is not None:
            left = Band.of(self.question.available)
        elif self.options.kv_cache_bytes is not None:
            left = Band.of(self.options.kv_cache_bytes)
        elif budget is not None and band is not None and isinstance(weights, Weights):
            left = _left(budget, weights, band)
        return RankMemory(
            rank=rank,
            weights=weights.bytes if isinstance(weights, Weights) else None,
            kv_bytes_per_token=self.pool.bytes_per_token if isinstance(self.pool, Pool) else None,
            requested=budget,
            reserve=band,
            available=left,
            others=_others(gpu),
        )

    def _budget(self, gpu: GpuMemory | None) -> int | None:
        """What vLLM may use of it: with --kv-cache-memory-bytes, all that is there."""
        if gpu is None or self.utilization is None:
            return None
        if self.options.kv_cache_bytes is not None:
            return gpu.total if gpu.free is None else gpu.free
        return math.ceil(gpu.total * self.utilization)

    @functools.cached_property
    def _reserves(self) -> dict[GpuMemory | None, Reserve | None]:
        return {}

    def reserve_on(self, gpu: GpuMemory | None) -> Reserve | None:
        if gpu not in self._reserves:
            self._reserves[gpu] = self._reserve(gpu)
        return self._reserves[gpu]

    def _reserve(self, gpu: GpuMemory | None) -> Reserve | None:
        chosen, question = self.settled, self.question
        if gpu is None or isinstance(chosen, NotKnown):
            return None
        seqs, batched = chosen.max_num_seqs, chosen.max_num_batched_tokens
        if seqs is None or batched is None:
            return None
        try:
            return reserve(question.config, self.options, question.release, gpu, seqs, batched)
        except NotKnown:
            return None

    # The KV cache.

    @functools.cached_property
    def left(self) -> Mapping[int, Band] | None:
        """By pipeline stage, what its tightest rank has for the KV cache; None where that of one is
        not known."""
        made: dict[int, Band] = {}
        for memory in self.ranks:
            if memory.available is None:
                return None
            stage = self._stage(memory.rank)
            made[stage] = _smaller(made.get(stage, memory.available), memory.available)
        return made

    @functools.cached_property
    def kv(self) -> KvFit:
        found = self.pool
        if isinstance(found, NotKnown):
            return KvFit(max_model_len=self.length)
        most = self.most
        longest = self._band(found, lambda p, left: p.longest(left, most)) if most else None
        length = self.length or (longest.likely if longest and self.options.longest else None)
        if not length:
            return KvFit(found.block_size, longest=longest)
        try:
            return KvFit(
                block_size=found.block_size,
                needed=found.needed(length),
                tokens=self._band(found, lambda p, left: p.tokens(left, length)),
                max_model_len=length,
                longest=longest,
                concurrency=self._concurrency(found, length),
            )
        except NotKnown:
            return KvFit(found.block_size, max_model_len=length, longest=longest)

    def _band(self, found: Pool, each: Callable[[Pool, int], int]) -> Band | None:
        """Of the tightest stage at each end."""
        if self.left is None:
            return None
        try:
            made = [
                band.each(functools.partial(_positive, each, self._of_stage(found, stage)))
                for stage, band in self.left.items()
            ]
        except NotKnown:
            return None
        return functools.reduce(_smaller, made)

    def _of_stage(self, found: Pool, stage: int) -> Pool:
        return found.stage(stage) if self.layout.pipeline > 1 else found

    def _concurrency(self, found: Pool, length: int) -> float | None:
        if self.left is None:
            return None
        rows = ((self._of_stage(found, s), band.likely) for s, band in self.left.items())
        return min(stage.concurrency(max(0, left), length) for stage, left in rows)

    # The answer.

    def _judged(self, kv: KvFit) -> _Found:
        if self.question.available is not None:
            return self._compared(kv)
        return self._refused() or self._overfull() or self._not_told(kv) or self._request(kv)

    def _compared(self, kv: KvFit) -> _Found:
        """With what a log printed: nothing is estimated."""
        return self._not_told(kv) or self._request(kv)

    def _refused(self) -> _Found | None:
        """What it ends for before it loads anything."""
        question, layout = self.question, self.layout
        count = len(question.gpus)
        if not count:
            return _Found(Answer.UNKNOWN, Text("no GPU is known: name one with --gpu"))
        if layout.ranks > count and layout.elsewhere is None:
            why = Text(
                "the server has {ranks} ranks, one on each GPU, and there are {count} GPUs",
                ranks=layout.ranks,
                count=count,
            )
            return _Found(Answer.DOES_NOT_FIT, why, Cause.GPUS)
        model, grouped = model_of(question), self.options.decode_context
        if wrong := model.undivided(layout.tensor):
            why = Text(
                "tensor_parallel_size={ranks} does not divide {what}",
                ranks=layout.tensor,
                what=wrong,
            )
            return _Found(Answer.DOES_NOT_FIT, why, Cause.SHARES)
        if grouped > 1 and layout.context == 1 and (odd := context_groups(model, grouped)):
            why = Text("decode_context_parallel_size={size}: {why}", size=grouped, why=odd)
            return _Found(Answer.DOES_NOT_FIT, why, Cause.SHARES)
        return self._not_free(Answer.DOES_NOT_FIT, _taken(question).low)

    def _not_free(self, answer: Answer, taken: int) -> _Found | None:
        if self.options.kv_cache_bytes is not None:
            return None
        for memory in self.ranks:
            gpu, asked = self._gpu(memory.rank), memory.requested
            if gpu is None or gpu.free is None or asked is None or asked <= gpu.free - taken:
                continue
            why = Text(
                "vLLM asks for {asked} GiB of {name} ({part} of {total}), of which {free} GiB are "
                "free",
                asked=_gib(asked),
                name=gpu.name,
                part=f"{self.utilization or 0:.0%}",
                total=_gib(gpu.total),
                free=_gib(gpu.free),
            )
            return _Found(answer, why, Cause.FREE)
        return None

    def _overfull(self) -> _Found | None:
        """The weights alone, or with the least that a start takes beside them."""
        asked = self.options.kv_cache_bytes or 0
        for memory in self.ranks:
            weights, budget = self.weights[self._stage(memory.rank)], memory.requested
            if not isinstance(weights, Weights) or budget is None:
                continue
            if _least(weights) > budget:
                why = Text(
                    "each GPU must hold {weights} GiB of weights, and {budget} GiB may be used",
                    weights=_gib(weights.bytes),
                    budget=_gib(budget),
                )
                return _Found(Answer.DOES_NOT_FIT, why, Cause.WEIGHTS)
            band = memory.reserve
            if band is not None and (left := _left(budget, weights, band).high) < max(asked, 1):
                why = Text(
                    "{weights} GiB of weights and at least {reserve} GiB for the start leave "
                    "{left} GiB of {budget} for the KV cache",
                    weights=_gib(weights.bytes),
                    reserve=_gib(band.low),
                    left=_gib(max(0, left)),
                    budget=_gib(budget),
                )
                return _Found(Answer.DOES_NOT_FIT, why, Cause.NOTHING_LEFT)
        return None

    def _not_told(self, kv: KvFit) -> _Found | None:
        if isinstance(self.pool, NotKnown):
            return _Found(Answer.UNKNOWN, self.pool.why)
        if kv.max_model_len is None and not self.options.longest:
            why = Text("how long a request may be is not known: say it with --max-model-len")
            return _Found(Answer.UNKNOWN, why)
        searched = self.options.longest and (kv.longest is not None or self.left is None)
        if kv.needed is None and not searched:
            return _Found(Answer.UNKNOWN, self._why_no_cache(self.pool, kv))
        if self.left is not None:
            return None
        budgets = [one.requested for one in self.ranks if one.requested is not None]
        if kv.needed is not None and budgets and kv.needed > min(budgets):
            return None  # whatever the weights are
        unknown = [one.why for one in self.weights.values() if isinstance(one, NotKnown)]
        why = Text("what a start takes beside weights and KV cache is not known for this model")
        return _Found(Answer.UNKNOWN, unknown[0] if unknown else why)

    def _why_no_cache(self, found: Pool, kv: KvFit) -> Text:
        try:
            found.needed(kv.max_model_len or 1)
        except NotKnown as unknown:
            return unknown.why
        return Text("the KV cache of this model is not known")

    def _request(self, kv: KvFit) -> _Found:
        """Whether one request of the full length fits into what is left at either end."""
        low, high = self._fits(kv, lowest=True), self._fits(kv, lowest=False)
        answer = Answer.FITS if low else Answer.TOO_CLOSE if high else Answer.DOES_NOT_FIT
        close = self._not_free(Answer.TOO_CLOSE, _taken(self.question).high)
        if answer is Answer.FITS and close and self.question.available is None:
            return close
        return _Found(answer, self._why(kv), None if answer is Answer.FITS else Cause.REQUEST)

    def _fits(self, kv: KvFit, *, lowest: bool) -> bool:
        if self.left is None or isinstance(self.pool, NotKnown):
            return False
        for stage, band in self.left.items():
            have, found = band.low if lowest else band.high, self._of_stage(self.pool, stage)
            if have <= 0:
                return False
            if kv.max_model_len is None or self.options.longest:
                if not found.longest(have, self.most or 1):
                    return False
            elif not found.fits(have, kv.max_model_len):
                return False
        judged = self.options.kv_cache_bytes and self.question.available is None
        return not judged or self._holds(lowest=lowest)

    def _holds(self, *, lowest: bool) -> bool:
        """Whether each GPU holds the KV cache that --kv-cache-memory-bytes says."""
        for memory in self.ranks:
            weights = self.weights[self._stage(memory.rank)]
            if memory.requested is None or memory.reserve is None:
                return not lowest
            if isinstance(weights, NotKnown):
                return not lowest
            left = _left(memory.requested, weights, memory.reserve)
            if (left.low if lowest else left.high) < (self.options.kv_cache_bytes or 0):
                return False
        return True

    def _why(self, kv: KvFit) -> Text:
        if self.left is None:
            return Text(
                "one request of {tokens} tokens needs {needed} GiB of KV cache, more than may be "
                "used of the GPU",
                tokens=kv.max_model_len,
                needed=_gib(kv.needed or 0),
            )
        left = functools.reduce(_smaller, self.left.values())
        low, high = _gib(max(0, left.low)), _gib(max(0, left.high))
        if self.options.longest and kv.longest is not None and kv.longest.high:
            return Text(
                "vLLM takes the longest --max-model-len that fits: {low} to {high} tokens",
                low=kv.longest.low,
                high=kv.longest.high,
            )
        if kv.needed is None or kv.max_model_len is None:
            return Text("{low} to {high} GiB are left for the KV cache", low=low, high=high)
        if left.exact:
            return Text(
                "one request of {tokens} tokens needs {needed} GiB of KV cache; {left} GiB are "
                "left",
                tokens=kv.max_model_len,
                needed=_gib(kv.needed),
                left=low,
            )
        return Text(
            "one request of {tokens} tokens needs {needed} GiB of KV cache; {low} to {high} GiB "
            "are left",
            tokens=kv.max_model_len,
            needed=_gib(kv.needed),
            low=low,
            high=high,
        )

    def _sources(self) -> Iterator[Text]:
        yield from (said for said in (self.question.release.said,) if said)
        if self.question.gpus and self.question.gpus[0].capability is None and self.first:
            yield Text(
                "the kind of GPU is not said: reckoned as for compute capability {kind}",
                kind=f"{(self.first.capability or 0) / 10:.1f}",
            )
        kinds = {one.source for one in self.weights.values() if isinstance(one, Weights)}
        if WeightsFrom.HEADERS in kinds:
            yield Text("weights: from the headers of the checkpoint")
        elif kinds:
            yield Text("weights: an estimate from config.json, without the checkpoint's headers")
        kept = self.reserve_on(self._gpu(0)) if self.question.available is None else None
        yield from kept.sources if kept else ()


def _gib(number: int) -> str:
    return f"{number / GIB:.2f}"


def _positive(each: Callable[[Pool, int], int], of: Pool, left: int) -> int:
    return each(of, left) if left > 0 else 0


def _smaller(one: Band, other: Band) -> Band:
    return Band(min(one.low, other.low), min(one.likely, other.likely), min(one.high, other.high))


def _least(weights: Weights) -> int:
    return (
        weights.bytes if weights.source is WeightsFrom.HEADERS else int(weights.bytes * (1 - _OFF))
    )


def _left(budget: int, weights: Weights, kept: Band) -> Band:
    """For the KV cache."""
    most = weights.high
    if weights.source is WeightsFrom.CONFIG:
        most = max(most, int(weights.bytes * (1 + _OFF)))
    return Band(
        budget - most - kept.high,
        budget - weights.bytes - kept.likely,
        budget - _least(weights) - kept.low,
    )


def _others(gpu: GpuMemory | None) -> int | None:
    """What others hold; the driver keeps some for itself of a GPU that nobody uses."""
    if gpu is None or gpu.free is None:
        return None
    held = max(0, gpu.total - gpu.free)
    return held if held > max(_OWN, gpu.total // 100) else 0


_OWN = int(0.75 * GIB)
