"""Whether weights and KV cache fit into the memory of the GPUs."""

from __future__ import annotations

from collections.abc import Iterator

from doctor import Finding, Fix, Missing, Needs, NotApplicable, Severity, Stage, Text, rule
from doctor.fit.verdict import Answer, Cause
from doctor.fixes import Doctor
from doctor.probes.fit import ServedFit


@rule("gpu-memory-too-small", Severity.ERROR, Stage.GPUS)
def gpu_memory_too_small(fit: ServedFit) -> Finding | None:
    """The weights alone exceed what may be used of a GPU.

    The server ends while it loads them (`CUDA out of memory`), or right behind it (`No available
    memory for the cache blocks`). vLLM uses `gpu_memory_utilization` of each GPU's memory, and each
    rank loads its own share of the weights: what tensor parallel ranks do not divide (norms,
    routers, key/value heads that are fewer than the ranks) is whole on each of them.

    Manual: Serve on more GPUs (`--set tensor_parallel_size=N`; the report names a size that
    divides the model, fits and is there), on larger ones, or a quantised checkpoint.
    `vllm-doctor fit` shows the whole reckoning.

    Sources: vllm/v1/worker/gpu_worker.py (0.22.0 and 0.33.0)

    See also: no-kv-cache-memory, kv-cache-too-small, gpu-memory-below-utilization, cuda-oom-startup
    """
    return _finding(fit, Cause.WEIGHTS)


@rule("no-kv-cache-memory", Severity.ERROR, Stage.GPUS)
def no_kv_cache_memory(fit: ServedFit) -> Finding | None:
    """Weights and activations leave no memory for the KV cache.

    The weights of one rank, the activations of the profile run and, since vLLM 0.20, the estimated
    CUDA graphs use all of gpu_memory_utilization or more: `No available memory for the cache
    blocks`.

    What a start needs beside the weights is a band, by release and GPU. Before the start only what
    does not fit at its low end is said to end it.

    A higher utilization closes only a small gap; otherwise the model needs more or larger GPUs, or
    a quantised checkpoint. A setup that worked before an upgrade to 0.21 may fail because the
    graphs are counted now.

    Manual: What the report names; with a small gap also `--set max_num_seqs=64` or
    `--set enforce_eager=true`.

    Sources: vllm/v1/worker/gpu_worker.py (0.22.0 and 0.33.0), vllm#2248, vllm#30515

    See also: kv-cache-too-small, gpu-memory-too-small, gpu-memory-below-utilization
    """
    return _finding(fit, Cause.NOTHING_LEFT)


@rule("kv-cache-too-small", Severity.ERROR, Stage.GPUS)
def kv_cache_too_small(fit: ServedFit) -> Finding | None:
    """The KV cache cannot hold one request of the full length.

    What weights, activations and CUDA graphs leave of gpu_memory_utilization is the KV cache, and
    one request of max_model_len tokens does not fit into it: `To serve at least one request with
    the model's max seq len`. Without --max-model-len the length is the one in the model's
    config.json, often far more than needed.

    An error only where it does not fit even if the start takes the least that was seen; a warning
    where that decides.

    With MLA every rank holds the whole KV cache, so more tensor parallel ranks help only by their
    smaller share of the weights. A higher utilization helps only as far as the memory is really
    free.

    Manual: `--set max_model_len=N` with the length that the report names, or
    `--set max_model_len=auto`: vLLM then takes the longest that fits.

    Workaround: `--kv-cache-dtype fp8` halves the cache, at some loss of accuracy.

    Sources: vllm/v1/core (0.22.0 and 0.33.0), vllm#2418, vllm#16118, vllm#39734

    See also: no-kv-cache-memory, gpu-memory-too-small, max-model-len-too-big
    """
    return _finding(fit, Cause.REQUEST)


def _finding(fit: ServedFit, cause: Cause) -> Finding | None:
    """What one of the rules says where the model fails, or comes close to it, for its cause."""
    if fit.answer is Answer.UNKNOWN:
        raise NotApplicable(fit.why)
    if fit.cause is Cause.GPUS:
        raise Missing(Text("too few GPUs are visible"), ("tp-exceeds-visible-gpus",))
    if fit.cause is Cause.SHARES:
        why = Text("the ranks cannot share the model evenly")
        raise Missing(why, ("tp-not-dividing-heads", "quantized-shape-not-divisible"))
    if fit.cause is not cause:
        return None
    close = fit.answer is Answer.TOO_CLOSE
    message = Text("too close to tell: {why}", why=fit.why) if close else fit.why
    severity = Severity.WARNING if close else None
    return Finding(message, fit.notes, tuple(_fixes(fit)), severity)


def _fixes(fit: ServedFit) -> Iterator[Fix]:
    for way in fit.ways:
        words = tuple(word for setting in way for word in ("--set", setting))
        title = Text("{changes}", changes=[_change(*one.split("=", 1)) for one in way])
        yield Fix(title, (Doctor("diagnose", words),), Needs.PERSON)
    if not fit.ways and fit.answer is Answer.DOES_NOT_FIT:
        yield Fix(Text("use more or larger GPUs, or a quantised checkpoint"), (), Needs.PERSON)


def _change(name: str, value: str) -> Text:
    match name:
        case "max_model_len":
            return Text("serve requests of at most {tokens} tokens", tokens=value)
        case "tensor_parallel_size":
            return Text("share the model by {ranks} ranks", ranks=value)
        case "gpu_memory_utilization":
            return Text("let vLLM use {part} of each GPU", part=f"{float(value):.0%}")
        case "kv_cache_dtype":
            return Text("keep the KV cache in 8 bits, at some loss of accuracy")
    return Text("set {name} to {value}", name=name, value=value)
