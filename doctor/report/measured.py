"""What a server measured of its memory, beside what the doctor would have told: for a person and
for a program."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from doctor.fit.sizes import GIB
from doctor.model import Text, printable
from doctor.redact import redact
from doctor.report.json import INT, MAYBE_TEXT, TEXT, object_of
from doctor.report.lines import Line, Style, wrapped

if TYPE_CHECKING:
    from doctor.fit.sizes import Band
    from doctor.logs.predicted import PredictedMemory

_NUMBER = {"type": "number"}


def quoted(text: str) -> str:
    """A piece of the log that can drive no terminal and tells no secret."""
    return printable(redact(" ".join(text.split())))


def memory_json(one: PredictedMemory) -> dict[str, Any]:
    """The shape is `memory_schema()`."""
    real = one.real
    return {
        "model": quoted(real.model),
        "vllm": quoted(real.version),
        "tensor_parallel_size": one.tensor_parallel,
        "max_model_len": real.length,
        "weights_bytes": {
            "predicted": _band_json(one.weights),
            "real": round(real.loaded * GIB),
        },
        "available_kv_bytes": {"predicted": None, "real": round(real.available * GIB)},
        "kv_tokens": {"predicted": _band_json(one.tokens), "real": real.tokens},
        "max_concurrency": {"predicted": one.concurrency, "real": real.concurrency},
        "why": str(one.why) if one.why else None,
    }


def _band_json(band: Band | None) -> dict[str, int] | None:
    return {"low": band.low, "likely": band.likely, "high": band.high} if band else None


def memory_schema() -> dict[str, Any]:
    """JSON Schema of `memory_json`."""
    band = {"anyOf": [object_of(low=INT, likely=INT, high=INT), {"type": "null"}]}
    return object_of(
        model=TEXT,
        vllm=TEXT,
        tensor_parallel_size=INT,
        max_model_len=INT,
        weights_bytes=object_of(predicted=band, real=INT),
        available_kv_bytes=object_of(predicted=band, real=INT),
        kv_tokens=object_of(predicted=band, real=INT),
        max_concurrency=object_of(predicted={"type": ["number", "null"]}, real=_NUMBER),
        why=MAYBE_TEXT,
    )


def memory_lines(one: PredictedMemory, style: Style) -> Iterator[Line]:
    """The same for a person."""
    real = one.real
    title = Text(
        "memory, predicted and real ({model}, vLLM {version}, tensor parallel {ranks}):",
        model=quoted(real.model),
        version=quoted(real.version),
        ranks=one.tensor_parallel,
    )
    if one.weights is None and one.tokens is None:
        yield from wrapped(f"{title} {one.why}", "", style, "dim", "  ")
        yield ()
        return
    yield from wrapped(str(title), "", style, "bold", "  ")
    for line in _told(one):
        yield from wrapped(str(line), "  ", style, "", "  ")
    if one.why:
        yield from wrapped(str(one.why), "  ", style, "dim", "  ")
    yield ()


def _told(one: PredictedMemory) -> Iterator[Text]:
    real, weights, tokens = one.real, one.weights, one.tokens
    if weights:
        yield Text(
            "weights per GPU: {predicted} GiB predicted, {real} GiB real",
            predicted=_span(f"{weights.low / GIB:.2f}", f"{weights.high / GIB:.2f}"),
            real=f"{real.loaded:.2f}",
        )
    if tokens:
        yield Text(
            "KV cache: {predicted} tokens predicted of the {available} GiB available, "
            "{real} tokens real",
            predicted=_span(f"{tokens.low:,}", f"{tokens.high:,}"),
            available=f"{real.available:.2f}",
            real=f"{real.tokens:,}",
        )
    if one.concurrency is not None:
        yield Text(
            "requests of {length} tokens at once: {predicted} predicted, {real} real",
            length=f"{real.length:,}",
            predicted=f"{one.concurrency:.2f}",
            real=f"{real.concurrency:.2f}",
        )


def _span(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"
