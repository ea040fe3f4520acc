"""Number and memory of the GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from doctor import Finding, Fix, Missing, Needs, NotApplicable, Severity, Stage, Text, rule
from doctor.fixes import Doctor, UnsetVariable
from doctor.probes.driver import Gpus
from doctor.probes.served import Profile

_GIB = 1 << 30
# What a rank needs beside weights and KV cache: activations of the profile run, CUDA graphs and
# the context. 1 to 3 GiB were seen; the least is taken, so that a warning is never a false one.
_BESIDE_GIB = 1.0


@dataclass(frozen=True)
class _Fit:
    """What each of so many ranks has to hold, and may use, of the smallest GPU; GiB."""

    weights: float
    cache: float
    budget: float
    name: str
    total: float

    @property
    def roomy(self) -> bool:
        return self.weights + self.cache + _BESIDE_GIB <= self.budget


def _fit(profile: Profile, gpus: Gpus, ranks: int, share: int | None = None) -> _Fit | None:
    """How `ranks` GPUs fit the model, of which each then holds one of `share` parts (as many as
    there are ranks); None where the size of the weights or of a GPU is not known."""
    needs = profile.needs
    sizes = [(d.total, d.name) for d in gpus.visible[:ranks] if d.total is not None]
    if needs.weights_gib is None or not sizes or len(sizes) < len(gpus.visible[:ranks]):
        return None
    total, name = min(sizes)
    return _Fit(
        weights=needs.weights_gib / (share or ranks),
        cache=(profile.max_model_len or 0) * (needs.kv_bytes_per_token or 0) / _GIB,
        budget=total * profile.gpu_memory_utilization / _GIB,
        name=name,
        total=total / _GIB,
    )


def _other_size(profile: Profile, gpus: Gpus | None) -> tuple[Fix, ...]:
    """What every rule here says of another tensor parallel size: the one nearest to what was asked
    for (rather fewer GPUs than more) that the model can be shared by, that there are GPUs for, and
    into whose memory it fits; where there is none, what it would take, in words."""
    asked = profile.tensor_parallel_size
    there = asked if gpus is None else len(gpus.visible)
    sizes = [n for n in profile.needs.tensor_parallel_sizes(there) if n != asked]
    if gpus is not None:
        sizes = [n for n in sizes if (fit := _fit(profile, gpus, n)) is None or fit.roomy]
    if sizes:
        near = min(sizes, key=lambda n: (n > asked, abs(n - asked)))
        line = Doctor("diagnose", ("--set", f"tensor_parallel_size={near}"))
        return (Fix(_on(near, profile.device), (line,), Needs.PERSON),)
    if gpus is None or not gpus.visible:
        return ()
    return (Fix(_in_words(profile, gpus), (), Needs.PERSON),)


def _on(count: int, device: str) -> Text:
    if device == "cpu":
        return Text("run with {count} ranks", count=count)
    return Text("run on one GPU") if count == 1 else Text("run on {count} GPUs", count=count)


def _in_words(profile: Profile, gpus: Gpus) -> Text:
    if profile.needs.attention_heads is None:
        return Text("use more or larger GPUs, or a quantised checkpoint")
    there = len(gpus.visible)
    for more in profile.needs.tensor_parallel_sizes(profile.needs.attention_heads):
        fit = _fit(profile, gpus, there, share=more)
        if more > there and (fit is None or fit.roomy):
            return Text(
                "use {more} GPUs of this size, larger GPUs, or a quantised checkpoint", more=more
            )
    return Text("use larger GPUs, or a quantised checkpoint")


@rule("tp-exceeds-visible-gpus", Severity.ERROR, Stage.GPUS)
def tp_exceeds_visible_gpus(gpus: Gpus, profile: Profile) -> Finding | None:
    """tensor_parallel_size is larger than the number of GPUs that CUDA sees.

    vLLM stops with `World size (2) is larger than the number of available GPUs (1) in this node`.
    GPUs are counted as CUDA counts them: it stops at the first entry of CUDA_VISIBLE_DEVICES that
    it does not know, and an empty value means no GPU.

    Manual: If CUDA_VISIBLE_DEVICES hides installed GPUs, unset it (they may be in use by someone
    else), or serve with fewer GPUs: `--set tensor_parallel_size=N`. The report names an N that the
    model can be divided by and fits into.

    Sources: vllm#8908, vllm#29447

    See also: tp-not-dividing-heads, invalid-device-ordinal, cuda-visible-devices-uuid, mig-enabled
    """
    wanted, have = profile.tensor_parallel_size, len(gpus.visible)
    if have >= wanted:
        return None
    evidence = [Text("GPUs installed: {installed}", installed=gpus.installed)]
    fixes: tuple[Fix, ...] = ()
    if gpus.choice is not None:
        evidence.append(Text("CUDA_VISIBLE_DEVICES={choice}", choice=repr(gpus.choice)))
        if gpus.installed >= wanted:
            # The others may be somebody else's.
            show = (UnsetVariable("CUDA_VISIBLE_DEVICES"),)
            fixes = (Fix(Text("make all GPUs visible to the server"), show, Needs.PERSON),)
    return Finding(
        Text(
            "tensor_parallel_size={wanted} needs {wanted} GPUs; CUDA sees {have}",
            wanted=wanted,
            have=have,
        ),
        tuple(evidence),
        (*fixes, *_other_size(profile, gpus)),
    )


@rule("tp-not-dividing-heads", Severity.ERROR, Stage.MODEL)
def tp_not_dividing_heads(profile: Profile, gpus: Gpus | None) -> Finding | None:
    """The model cannot be divided evenly by tensor_parallel_size.

    vLLM stops with `Total number of attention heads (20) must be divisible by tensor parallel size
    (8)`, or, for the rows of a layer or an expert, with a bare AssertionError after the ranks have
    started. Each rank gets an equal part of the attention heads, of each dense layer
    (intermediate_size) and of each expert (moe_intermediate_size): a number that divides the heads
    need not divide the experts. Key and value heads may also be fewer than the ranks, if they
    divide them.

    Manual: Choose one of the sizes that the report lists: `--set tensor_parallel_size=N`.

    Workaround: `--pipeline-parallel-size` splits the layers instead of the heads.

    Sources: the model's config.json, vllm#2652, vllm#4232

    See also: tp-exceeds-visible-gpus, gpu-memory-too-small
    """
    needs, ranks = profile.needs, profile.tensor_parallel_size
    if needs.attention_heads is None:
        raise NotApplicable(Text("the profile does not give the number of attention heads"))
    wrong = needs.undivided(ranks)
    if not wrong:
        return None
    return Finding(
        Text(
            "tensor_parallel_size={ranks} does not divide {what} of {model}",
            ranks=ranks,
            what=wrong,
            model=profile.model,
        ),
        (Text("valid values: {fits}", fits=needs.tensor_parallel_sizes(needs.attention_heads)),),
        _other_size(profile, gpus),
    )


@rule("gpu-memory-too-small", Severity.ERROR, Stage.GPUS)
def gpu_memory_too_small(gpus: Gpus, profile: Profile) -> Finding | None:
    """The model does not fit into GPU memory.

    An error if the weights and one request of the full length do not fit into
    `gpu_memory_utilization` of a GPU (`No available memory for the cache blocks`); a warning if
    almost nothing is left beside them: 1 GiB is counted for activations, CUDA graphs and the
    context, of which 1 to 3 GiB were measured. With MLA every rank holds the whole KV cache: it is
    not divided by the ranks.

    Manual: Serve on more GPUs (`--set tensor_parallel_size=N`; the report names a size that fits),
    on larger ones, or a quantised checkpoint.

    Workaround: A smaller `max_model_len` needs a smaller KV cache.

    See also: no-kv-cache-memory, kv-cache-too-small, gpu-memory-below-utilization, cuda-oom-startup
    """
    ranks = profile.tensor_parallel_size
    if profile.needs.weights_gib is None:
        raise NotApplicable(Text("the profile does not give the size of the weights"))
    if len(gpus.visible) < ranks:
        raise Missing(Text("too few GPUs are visible"), ("tp-exceeds-visible-gpus",))
    fit = _fit(profile, gpus, ranks)
    if fit is None:
        raise NotApplicable(Text("a GPU with unified memory does not report its size"))
    if fit.roomy:
        return None
    error = fit.weights + fit.cache > fit.budget
    return Finding(
        _too_small(fit, profile.max_model_len or 0),
        (
            Text(
                "{name} has {total} GiB, of which vLLM may use {part}",
                name=fit.name,
                total=f"{fit.total:.1f}",
                part=f"{profile.gpu_memory_utilization:.0%}",
            ),
        ),
        _other_size(profile, gpus),
        None if error else Severity.WARNING,
    )


def _too_small(fit: _Fit, tokens: int) -> Text:
    weights, budget, cache = (f"{gib:.1f}" for gib in (fit.weights, fit.budget, fit.cache))
    if fit.weights > fit.budget:
        return Text(
            "each GPU must hold {weights} GiB of weights, but {budget} GiB may be used",
            weights=weights,
            budget=budget,
        )
    if fit.weights + fit.cache > fit.budget:
        return Text(
            "{weights} GiB of weights and {cache} GiB of KV cache (one request of {tokens} tokens) "
            "exceed the {budget} GiB that may be used on each GPU",
            weights=weights,
            cache=cache,
            tokens=tokens,
            budget=budget,
        )
    return Text(
        "{weights} GiB of weights and {cache} GiB of KV cache (one request of {tokens} tokens) "
        "leave less than {beside} of the {budget} GiB on each GPU for everything else",
        weights=weights,
        cache=cache,
        tokens=tokens,
        beside=f"{_BESIDE_GIB:g}",
        budget=budget,
    )
