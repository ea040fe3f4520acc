"""What a server's log says of its memory: the model and the options it started with, and what vLLM
measured ("Model loading took", "Available KV cache memory", "GPU KV cache size" and "Maximum
concurrency").

The lines are those of vllm/v1/engine/core.py, entrypoints, v1/worker/gpu_worker.py,
gpu_model_runner.py and v1/core/kv_cache_utils.py of 0.11 to 0.33.0, where the last two share one
line. Only what stands near the last "KV cache size" is read, so that a long log takes no longer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from doctor.frozen import dataclass
from doctor.numbers import number_of

_SIZE = b"GPU KV cache size: "
_BEFORE, _AFTER = 512 << 10, 16 << 10
"""Bytes around the last "KV cache size" that are read."""
_MOST_OPTIONS = 200
_LONGEST = 1 << 32
_ENGINE = re.compile(r"LLM engine \(v([0-9][0-9a-z.+]{0,63})\) with config: ([^\n]{0,16384})")
_ARGUMENTS = re.compile(r"non-default args: \{([^\n]{0,16384})")
_LOADED = re.compile(r"Model loading took ([0-9]{1,6}(?:\.[0-9]{1,6})?) GiB")
_AVAILABLE = re.compile(r"Available KV cache memory: ([0-9]{1,6}(?:\.[0-9]{1,6})?) GiB")
_TOKENS = re.compile(r"GPU KV cache size: ([0-9,]{1,24}) tokens")
_CONCURRENCY = re.compile(
    r"Maximum concurrency for ([0-9,]{1,24}) tokens per request: ([0-9]{1,9}\.[0-9]{1,4})x"
)
_BATCH = re.compile(r"Chunked prefill is enabled with max_num_batched_tokens=([0-9]{1,9})\b")
_VALUE = r"('[^'\n]{0,400}'|[0-9]{1,12}(?:\.[0-9]{1,6})?(?![\w.])|True|False)"
_ARGUMENT = re.compile(r"'([a-z][a-z_]{1,60})': " + _VALUE)
_SETTING = re.compile(r"\b([a-z][a-z_]{1,60})=" + _VALUE)
_WORD = re.compile(r"\b(dtype|kv_cache_dtype|quantization)=(?:torch\.)?([a-z0-9_]{1,40})\b(?!\()")
_TABLE = re.compile(r"\{[^{}]{0,4096}\}")
_SPECULATIVE = re.compile(r"'speculative_config': \{([^{}]{0,4096})\}")
_DRAFT = re.compile(r"speculative_config=SpeculativeConfig\(")
# What of the engine's own line is an option of the server's.
_SETTINGS = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "decode_context_parallel_size",
    "enforce_eager",
)
_HUB = re.compile(r"/models--([^/]{1,96}?)--([^/]{1,96})/")


@dataclass(frozen=True)
class StartedMemory:
    """Of the last start that got as far. `model`: as the server names it, a folder of the hub's
    cache by its repository; `options`: by name with underscores; `drafts`: it decodes
    speculatively. `loaded`, `available`: GiB as printed, of the ranks the most and the least;
    `length`: tokens of a request, for which `concurrency` was printed."""

    model: str
    version: str
    options: Mapping[str, Any]
    drafts: bool
    loaded: float
    available: float
    tokens: int
    length: int
    concurrency: float


class MemoryWatch:
    """Sees the blocks of a log go by."""

    def __init__(self) -> None:
        self._near = b""
        self._lacking = 0

    def watching(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """The same blocks; what stands around the last line about the cache's size is kept."""
        before = b""
        for block in blocks:
            self._near += block[: self._lacking]
            self._lacking = max(0, self._lacking - len(block))
            if (at := _last_size(before, block)) is not None:
                first = at - _BEFORE
                earlier = before[first:] if first < 0 else b""
                self._near = earlier + block[max(0, first) : at + _AFTER]
                self._lacking = max(0, at + _AFTER - len(block))
            yield block
            before = block if len(block) >= _BEFORE else (before + block)[-_BEFORE:]

    def started(self) -> StartedMemory | None:
        """What was seen; None where one of the lines is not there."""
        return _started(self._near.decode(errors="replace")) if self._near else None


def _last_size(before: bytes, block: bytes) -> int | None:
    """Where the last line about the cache's size begins, from the block's begin on; below 0 where
    it begins in the one before."""
    if (at := block.rfind(_SIZE)) >= 0:
        return at
    edge = before[-len(_SIZE) + 1 :]
    cut = (edge + block[: len(_SIZE) - 1]).rfind(_SIZE)
    return cut - len(edge) if cut >= 0 else None


def _started(text: str) -> StartedMemory | None:
    sizes = list(_TOKENS.finditer(text))
    engines = [one for one in _ENGINE.finditer(text) if sizes and one.end() < sizes[-1].start()]
    if not engines:
        return None
    engine = engines[-1]
    own = text[engine.end() :]
    loaded, available = _LOADED.findall(own), _AVAILABLE.findall(own)
    told = _CONCURRENCY.search(own)
    tokens = number_of(sizes[-1][1].replace(",", ""))
    length = number_of(told[1].replace(",", "")) if told else None
    if length is not None and length > _LONGEST:
        return None
    options = _options(text[: engine.start()], engine[2])
    model = _model(options, engine[2])
    if told is None or not (loaded and available and tokens and length and model):
        return None
    return StartedMemory(
        model=model,
        version=engine[1],
        options={**options, "max_model_len": length},
        drafts=_DRAFT.search(engine[2]) is not None,
        loaded=max(map(float, loaded)),
        available=min(map(float, available)),
        tokens=tokens,
        length=length,
        concurrency=float(told[2]),
    )


def _options(before: str, engine: str) -> dict[str, Any]:
    """What was said on the command line, and what the engine's own line says of it."""
    said = list(_ARGUMENTS.finditer(before))
    line = said[-1][1] if said else ""
    made = _arguments(_TABLE.sub("", line))
    if batches := _BATCH.findall(before):
        made["max_num_batched_tokens"] = int(batches[-1])
    if drafting := _SPECULATIVE.search(line):
        made["speculative_config"] = _arguments(drafting[1])
    own = {name: _value(value) for name, value in _SETTING.findall(engine)}
    made.update({name: own[name] for name in _SETTINGS if name in own})
    return {**made, **dict(_WORD.findall(engine))}


def _arguments(line: str) -> dict[str, Any]:
    return {name: _value(value) for name, value in _ARGUMENT.findall(line)[:_MOST_OPTIONS]}


def _value(text: str) -> Any:
    if text.startswith("'"):
        return text[1:-1]
    if text in ("True", "False"):
        return text == "True"
    return float(text) if "." in text else int(text)


def _model(options: Mapping[str, Any], engine: str) -> str | None:
    named = re.match(r"model='([^'\n]{1,400})'", engine)
    model = named[1] if named else options.get("model")
    if not isinstance(model, str):
        return None
    cached = _HUB.search(model)
    return f"{cached[1]}/{cached[2]}" if cached else model
