"""What `fit --format json` prints: one object, also where nothing can be told."""

from __future__ import annotations

from typing import Any

from doctor.fit.sizes import Band
from doctor.fit.verdict import Answer, Fit, RankMemory
from doctor.model import printable
from doctor.report.json import INT, MAYBE_TEXT, TEXT, list_of, object_of

_VERSION = 1


def fit_json(fit: Fit) -> dict[str, Any]:
    """Sizes are bytes; what cannot be told is None."""
    question = fit.question
    first = min(question.gpus, key=lambda gpu: gpu.total, default=None)
    return {
        "schema_version": _VERSION,
        "model": {
            "name": printable(question.model),
            "config_from": printable(question.config_from) or None,
            "weights_from": fit.weights_from,
        },
        "rules": f"vllm {question.release.version}" if question.release.version else None,
        "gpu": {
            "name": (printable(first.name) or None) if first else None,
            "total_bytes": first.total if first else None,
            "free_bytes": first.free if first else None,
            "count": len(question.gpus),
        },
        "per_gpu": [_rank(one) for one in fit.ranks or (RankMemory(0),)],
        "kv": {
            "block_size": fit.kv.block_size,
            "needed_bytes": fit.kv.needed,
            "tokens": _band(fit.kv.tokens),
            "max_model_len": fit.kv.max_model_len,
            "longest_max_model_len": _band(fit.kv.longest),
            "max_concurrency": fit.kv.concurrency,
        },
        "verdict": fit.answer.value,
        "why": str(fit.why),
        "smallest_tp": fit.smallest_tp,
        "flags": list(fit.flags),
        "sources": [str(one) for one in fit.sources],
    }


def _rank(rank: RankMemory) -> dict[str, Any]:
    return {
        "rank": rank.rank,
        "weights_bytes": rank.weights,
        "kv_bytes_per_token": rank.kv_bytes_per_token,
        "reserve_bytes": _band(rank.reserve),
        "available_kv_bytes": _band(rank.available),
        "others_bytes": rank.others,
    }


def _band(band: Band | None) -> dict[str, int | None]:
    """Its ends are None where none is known."""
    if band is None:
        return dict.fromkeys(("low", "likely", "high"))
    return {"low": band.low, "likely": band.likely, "high": band.high}


def fit_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of `fit_json`."""
    maybe = {"type": ["integer", "null"]}
    band = object_of(low=maybe, likely=maybe, high=maybe)
    schema = object_of(
        schema_version={"const": _VERSION},
        model=object_of(
            name=TEXT, config_from=MAYBE_TEXT, weights_from={"enum": ["headers", "config", None]}
        ),
        rules=MAYBE_TEXT,
        gpu=object_of(name=MAYBE_TEXT, total_bytes=maybe, free_bytes=maybe, count=INT),
        per_gpu={
            **list_of(
                object_of(
                    rank=INT,
                    weights_bytes=maybe,
                    kv_bytes_per_token=maybe,
                    reserve_bytes=band,
                    available_kv_bytes=band,
                    others_bytes=maybe,
                )
            ),
            "minItems": 1,
        },
        kv=object_of(
            block_size=maybe,
            needed_bytes=maybe,
            tokens=band,
            max_model_len=maybe,
            longest_max_model_len=band,
            max_concurrency={"type": ["number", "null"]},
        ),
        verdict={"enum": [one.value for one in Answer]},
        why=TEXT,
        smallest_tp=maybe,
        flags=list_of(TEXT),
        sources=list_of(TEXT),
    )
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
