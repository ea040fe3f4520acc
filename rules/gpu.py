"""Number and memory of the GPUs."""

from __future__ import annotations

from doctor import Finding, Fix, Missing, Needs, Severity, Stage, Text, rule
from doctor.fixes import Doctor, UnsetVariable
from doctor.probes.driver import Gpus
from doctor.profile import Profile

_GIB = 1 << 30


@rule("tp-exceeds-visible-gpus", Severity.ERROR, Stage.GPUS)
def tp_exceeds_visible_gpus(gpus: Gpus, profile: Profile) -> Finding | None:
    """The server is to run on more GPUs than CUDA shows it.

    `World size (2) is larger than the number of available GPUs (1) in this node`. Counted as CUDA
    counts, which stops at the first entry of CUDA_VISIBLE_DEVICES that it does not know; an empty
    value means no GPU at all.
    """
    wanted, have = profile.tensor_parallel_size, len(gpus.visible)
    if have >= wanted:
        return None
    evidence = [Text("installed: {installed}", installed=gpus.installed)]
    fixes = []
    if gpus.choice is not None:
        evidence.append(Text("CUDA_VISIBLE_DEVICES={choice}", choice=repr(gpus.choice)))
        if gpus.installed >= wanted:
            # The others may be somebody else's.
            show = (UnsetVariable("CUDA_VISIBLE_DEVICES"),)
            fixes.append(Fix(Text("show the server all GPUs"), show, Needs.PERSON))
    heads = profile.needs.attention_heads or 1
    fewer = next((n for n in range(have, 0, -1) if heads % n == 0 or heads == 1), 0)
    if fewer:
        fixes.append(
            Fix(
                Text("run on {fewer}, if the model fits", fewer=fewer),
                (Doctor("diagnose", ("--set", f"tensor_parallel_size={fewer}")),),
                Needs.PERSON,
            )
        )
    return Finding(
        Text(
            "tensor parallel {wanted} needs {wanted} GPUs, and CUDA shows {have}",
            wanted=wanted,
            have=have,
        ),
        tuple(evidence),
        tuple(fixes),
    )


@rule("tp-not-dividing-heads", Severity.ERROR, Stage.MODEL)
def tp_not_dividing_heads(profile: Profile) -> Finding | None:
    """The attention heads cannot be divided by the number of GPUs.

    `Total number of attention heads (20) must be divisible by tensor parallel size (8)`.
    """
    heads, ranks = profile.needs.attention_heads, profile.tensor_parallel_size
    if heads is None:
        raise Missing(Text("the profile does not say how many heads there are"), applies=False)
    if heads % ranks == 0:
        return None
    fits = tuple(n for n in range(1, heads + 1) if heads % n == 0)
    near = max(n for n in fits if n < ranks)
    return Finding(
        Text(
            "tensor parallel {ranks} does not divide the {heads} attention heads of {model}",
            ranks=ranks,
            heads=heads,
            model=profile.model,
        ),
        (Text("these do: {fits}", fits=fits),),
        (
            Fix(
                Text("run on {near} GPUs", near=near),
                (Doctor("diagnose", ("--set", f"tensor_parallel_size={near}")),),
                Needs.PERSON,
            ),
        ),
    )


# What a rank needs beside weights and KV cache: activations of the profile run, CUDA graphs and
# the context. 1 to 3 GiB were seen; the least is taken, so that a warning is never a false one.
_BESIDE_GIB = 1.0


@rule("gpu-memory-too-small", Severity.ERROR, Stage.GPUS)
def gpu_memory_too_small(gpus: Gpus, profile: Profile) -> Finding | None:
    """The model does not fit into the GPUs' memory.

    An error where the weights and one request of the full length do not fit into
    `gpu_memory_utilization` of a GPU (`No available memory for the cache blocks`); a warning where
    next to nothing is left beside them. With MLA every rank holds the whole KV cache: it is not
    divided by the ranks.
    """
    needs, ranks = profile.needs, profile.tensor_parallel_size
    if needs.weights_gib is None:
        raise Missing(Text("the profile does not say how large the weights are"), applies=False)
    used = gpus.visible[:ranks]
    if len(used) < ranks:
        raise Missing(Text("there are too few GPUs"), ("tp-exceeds-visible-gpus",))
    sizes = [(d.total, d.name) for d in used if d.total is not None]
    if len(sizes) < len(used):
        raise Missing(Text("a GPU with unified memory does not say how much it has"), applies=False)
    total, name = min(sizes)
    budget = total * profile.gpu_memory_utilization / _GIB
    weights = needs.weights_gib / ranks
    tokens = profile.max_model_len or 0
    cache = tokens * (needs.kv_bytes_per_token or 0) / _GIB
    fits = weights + cache + _BESIDE_GIB <= budget
    if fits:
        return None
    error = weights + cache > budget
    if weights > budget:
        message = "each GPU has to hold {weights} GiB of weights, and has {budget} GiB for them"
    elif error:
        message = (
            "{budget} GiB on each GPU leave no room, beside {weights} GiB of weights, for one "
            "request of {tokens} tokens ({cache} GiB)"
        )
    else:
        message = (
            "{budget} GiB on each GPU hold {weights} GiB of weights and one request of {tokens} "
            "tokens ({cache} GiB), with less than {beside} GiB left for everything else"
        )
    heads = needs.attention_heads or 0
    more = next((n for n in range(ranks + 1, heads + 1) if heads % n == 0), ranks * 2)
    return Finding(
        Text(
            message,
            weights=f"{weights:.1f}",
            beside=f"{_BESIDE_GIB:g}",
            budget=f"{budget:.1f}",
            tokens=tokens,
            cache=f"{cache:.1f}",
        ),
        (
            Text(
                "{name} has {total} GiB, of which vLLM may use {part}",
                name=name,
                total=f"{total / _GIB:.1f}",
                part=f"{profile.gpu_memory_utilization:.0%}",
            ),
        ),
        (
            Fix(
                Text("use more or larger GPUs, or a quantised checkpoint"),
                (Doctor("diagnose", ("--set", f"tensor_parallel_size={more}")),),
                Needs.PERSON,
            ),
        ),
        None if error else Severity.WARNING,
    )
