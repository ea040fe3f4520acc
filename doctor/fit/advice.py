"""What would make a model fit: each piece of advice is judged like what was asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from doctor.fit.reckoning import model_of, most_utilization, reckon, reckon_like
from doctor.fit.verdict import Answer, Cause, Fit, FitQuestion
from doctor.frozen import dataclass

_HIGHEST = 0.95  # of a GPU that is advised: what is captured and compiled later needs some as well
_SHORTEST = 1024  # tokens: a shorter context is no advice
_EIGHT_BITS = frozenset((89, 90, 100, 103, 120, 121))
_LATENT_EIGHT_BITS = frozenset((90, 100, 103))  # FlashMLA, CUTLASS and FlashInfer MLA


@dataclass(frozen=True)
class Way:
    """Options that make it fit together: `settings` by their names with underscores."""

    settings: tuple[tuple[str, str], ...]

    @property
    def flags(self) -> tuple[str, ...]:
        """As they are added to the server's command."""
        return tuple(f"--{name.replace('_', '-')}={value}" for name, value in self.settings)


def smallest_tp(fit: Fit) -> int | None:
    """The smallest tensor parallel size that divides the model, fits, and is there; None where none
    does, or that cannot be told."""
    question = dataclasses.replace(fit.question, available=None)
    asked = question.options.layout.tensor
    for size in sizes(question):
        same = size == asked and fit.question.available is None
        tried = fit if same else _tried(fit, Way((_tensor(size),)))
        if tried.answer is Answer.FITS:
            return size
    return None


def sizes(question: FitQuestion) -> tuple[int, ...]:
    """The tensor parallel sizes that there are GPUs for, and that divide the model."""
    layout = question.options.layout
    if layout.elsewhere is not None:
        return ()
    return model_of(question).sizes(len(question.gpus) // max(1, layout.beside))


def ways(fit: Fit, smallest: int | None) -> Iterator[Way]:
    """What makes it fit, the least change first; none where it fits, or nothing can be told."""
    if fit.answer in (Answer.FITS, Answer.UNKNOWN):
        return
    if fit.question.available is not None:
        yield from _shorter(fit, ())
        return
    yield from _checked(fit, smallest)


def _checked(fit: Fit, smallest: int | None) -> Iterator[Way]:
    found = 0
    for way in _thought_of(fit, smallest):
        if _tried(fit, way).answer is Answer.FITS:
            yield way
            found += 1
        if found == _MOST_WAYS:
            return


_MOST_WAYS = 3


def _thought_of(fit: Fit, smallest: int | None) -> Iterator[Way]:
    question = fit.question
    base = _share(fit, question)
    if fit.cause is Cause.FREE and base:
        yield Way(base)
        yield from _shorter(fit, base)
        for size in sizes(question):
            alone = Way((_tensor(size),))
            yield Way((*_share(fit, _with(question, alone)), *alone.settings))
    unsaid = question.options.max_model_len is None
    if unsaid and fit.cause is not Cause.FREE:
        yield from _shorter(fit, ())
    if base and fit.cause is not Cause.FREE:
        yield Way(base)
    yield from _other_sizes(fit, smallest)
    if not unsaid and fit.cause is not Cause.FREE:
        yield from _shorter(fit, ())
    eight = _eight_bits(question)
    if eight:
        yield Way(eight)
    if smallest is None:
        for size in reversed(sizes(question)):
            if size > question.options.layout.tensor or fit.cause in (Cause.GPUS, Cause.SHARES):
                yield from _shorter(fit, (_tensor(size),))
                break
    if eight:
        yield from _shorter(fit, eight)


def _other_sizes(fit: Fit, smallest: int | None) -> Iterator[Way]:
    """Rather fewer ranks than more where those that were asked for cannot start."""
    asked = fit.question.options.layout.tensor
    if fit.cause in (Cause.GPUS, Cause.SHARES):
        near = sorted(sizes(fit.question), key=lambda size: (size > asked, abs(size - asked)))
        yield from (Way((_tensor(size),)) for size in near)
    elif smallest is not None and smallest != asked:
        yield Way((_tensor(smallest),))


def _tensor(size: int) -> tuple[str, str]:
    return ("tensor_parallel_size", str(size))


def _share(fit: Fit, question: FitQuestion) -> tuple[tuple[str, str], ...]:
    """Another utilization: lower where others hold the memory, else the highest that is free."""
    most = most_utilization(question)
    if most is None or fit.utilization is None or question.options.kv_cache_bytes is not None:
        return ()
    if fit.cause is not Cause.FREE:
        most = min(most, _HIGHEST)
        if most <= fit.utilization:
            return ()
    return (("gpu_memory_utilization", f"{most:.2f}"),)


def _shorter(fit: Fit, beside: tuple[tuple[str, str], ...]) -> Iterator[Way]:
    """The longest context that fits at the low end, with these settings beside it."""
    longest = (_tried(fit, Way(beside)) if beside else fit).kv.longest
    asked = fit.question.options.max_model_len or fit.question.length
    if longest is None or longest.low < _SHORTEST or (asked and longest.low >= asked):
        return
    yield Way((*beside, ("max_model_len", str(longest.low))))


def _eight_bits(question: FitQuestion) -> tuple[tuple[str, str], ...]:
    """A cache of half the size, where the GPU's attention has kernels for it."""
    kinds = {gpu.capability for gpu in question.gpus}
    known = _LATENT_EIGHT_BITS if question.config.mla else _EIGHT_BITS
    if question.options.kv_cache_dtype != "auto" or not kinds or not kinds <= known:
        return ()
    return (("kv_cache_dtype", "fp8"),)


def _tried(fit: Fit, way: Way) -> Fit:
    question = _with(dataclasses.replace(fit.question, available=None), way)
    same = question.options.layout == fit.question.options.layout
    return reckon_like(fit, question) if same else reckon(question)


def _with(question: FitQuestion, way: Way) -> FitQuestion:
    options, said = question.options, dict(way.settings)
    given = {**options.given, **said}
    layout = options.layout
    if "tensor_parallel_size" in said:
        layout = dataclasses.replace(layout, tensor=int(said["tensor_parallel_size"]))
    changed = dataclasses.replace(options, layout=layout, given=given)
    if "max_model_len" in said:
        length = int(said["max_model_len"])
        changed = dataclasses.replace(changed, max_model_len=length, longest=False)
    if "gpu_memory_utilization" in said:
        share = float(said["gpu_memory_utilization"])
        changed = dataclasses.replace(changed, utilization=share)
    if "kv_cache_dtype" in said:
        changed = dataclasses.replace(changed, kv_cache_dtype=said["kv_cache_dtype"])
    return dataclasses.replace(question, options=changed)
