"""Number and memory of the GPUs."""

from __future__ import annotations

from collections.abc import Iterator

from doctor import Finding, Fix, Needs, NotApplicable, Severity, Stage, Text, rule
from doctor.consumers.model_config import ConfigJson
from doctor.consumers.options import GivenOptions
from doctor.consumers.shares import SharedModel, context_groups, layout_of, shared_model
from doctor.fit.sizes import GIB
from doctor.fit.verdict import Cause
from doctor.fixes import Command, Doctor, SetVariable, UnsetVariable
from doctor.probes.driver import BUS_ORDER, DEVICE_ORDER, Gpus
from doctor.probes.environment import LaunchEnv
from doctor.probes.fit import ServedFit
from doctor.probes.models import ExpertBlocks, ServedModel
from doctor.probes.served import Profile


def _roomy(profile: Profile, gpus: Gpus, ranks: int, share: int | None = None) -> bool:
    """Whether the smallest GPU of so many tensor parallel ranks has room for what the profile says
    of the model, where nothing better is known: one of `share` parts of the weights (as many as
    there are ranks), and one request. What is not known is taken for small."""
    layout, needs, given = layout_of(profile), profile.needs, GivenOptions(profile.options)
    totals = [device.total for device in gpus.visible[: ranks * layout.beside]]
    known = [total for total in totals if total is not None]
    if needs.weights_gib is None or not known or len(known) < len(totals):
        return True
    parts = (share or ranks) * layout.pipeline
    if needs.moe_intermediate_size:
        parts *= layout.data * layout.context  # experts are cut by these as well
    weights = needs.weights_gib / parts - given.amount("cpu_offload_gb")
    eight_bits = (given.word("kv_cache_dtype") or "").startswith("fp8")
    token = (needs.kv_bytes_per_token or 0) / layout.pipeline / (2 if eight_bits else 1)
    cache = (profile.max_model_len or 0) * token / GIB
    return weights + cache <= min(known) * profile.gpu_memory_utilization / GIB


def _other_size(
    profile: Profile, model: SharedModel, gpus: Gpus | None, judged: ServedFit | None
) -> tuple[Fix, ...]:
    """What every rule here says of another tensor parallel size: the one nearest to what was asked
    for (rather fewer GPUs than more) that the model can be shared by, that there are GPUs for, and
    into whose memory it fits; where there is none, what it would take, in words. `judged`: what of
    that was reckoned; without it the profile's own word for the weights counts."""
    if judged is not None and judged.cause in (Cause.GPUS, Cause.SHARES) and gpus is not None:
        return tuple(_reckoned(profile, model, gpus, judged))
    asked = profile.tensor_parallel_size
    there = asked if gpus is None else len(gpus.visible) // (model.layout.beside or 1)
    sizes = [n for n in model.sizes(there) if n != asked]
    if gpus is not None:
        sizes = [n for n in sizes if _roomy(profile, gpus, n)]
    if sizes:
        near = min(sizes, key=lambda n: (n > asked, abs(n - asked)))
        line = Doctor("diagnose", ("--set", f"tensor_parallel_size={near}"))
        return (Fix(_on(near * model.layout.beside, profile.device), (line,), Needs.PERSON),)
    if gpus is None or not gpus.visible:
        return ()
    return (Fix(_in_words(profile, model, gpus), (), Needs.PERSON),)


def _reckoned(profile: Profile, model: SharedModel, gpus: Gpus, judged: ServedFit) -> Iterator[Fix]:
    for way in judged.ways[:1]:
        said = dict(one.split("=", 1) for one in way)
        size = int(said.get("tensor_parallel_size", profile.tensor_parallel_size))
        title = _on(size * model.layout.beside, profile.device)
        if tokens := said.get("max_model_len"):
            title = Text("{where}, with at most {tokens} tokens", where=title, tokens=tokens)
        words = tuple(word for one in way for word in ("--set", one))
        yield Fix(title, (Doctor("diagnose", words),), Needs.PERSON)
    if not judged.ways and gpus.visible:
        yield Fix(_in_words(profile, model, gpus), (), Needs.PERSON)


def _on(count: int, device: str) -> Text:
    if device == "cpu":
        return Text("run with {count} ranks", count=count)
    return Text("run on one GPU") if count == 1 else Text("run on {count} GPUs", count=count)


def _in_words(profile: Profile, model: SharedModel, gpus: Gpus) -> Text:
    if profile.needs.attention_heads is None:
        return Text("use more or larger GPUs, or a quantised checkpoint")
    there, beside = len(gpus.visible), model.layout.beside
    for more in model.sizes(profile.needs.attention_heads):
        if more * beside > there and _roomy(profile, gpus, there, share=more):
            return Text(
                "use {more} GPUs of this size, larger GPUs, or a quantised checkpoint",
                more=more * beside,
            )
    return Text("use larger GPUs, or a quantised checkpoint")


@rule("tp-exceeds-visible-gpus", Severity.ERROR, Stage.GPUS)
def tp_exceeds_visible_gpus(
    gpus: Gpus,
    profile: Profile,
    served: ServedModel | None,
    blocks: ExpertBlocks | None,
    judged: ServedFit | None,
) -> Finding | None:
    """The server has more ranks than there are GPUs that CUDA sees.

    vLLM stops with `World size (2) is larger than the number of available GPUs (1) in this node`,
    or, for data parallel replicas, with `DP adjusted local rank ... is out of bounds`. Each of
    tensor_parallel_size x pipeline_parallel_size x prefill_context_parallel_size ranks takes a GPU,
    and so does each replica of them on this machine (data_parallel_size, or
    data_parallel_size_local). GPUs are counted as CUDA counts them: it stops at the first entry of
    CUDA_VISIBLE_DEVICES that it does not know, and an empty value means no GPU. Where others place
    the ranks (`--nnodes`, Ray, an external launcher), this machine's share is not known, and
    nothing is judged.

    Manual: If CUDA_VISIBLE_DEVICES hides installed GPUs, unset it (they may be in use by someone
    else), or serve with fewer GPUs: `--set tensor_parallel_size=N`. The report names an N that the
    model can be divided by and fits into.

    Sources: vllm/config/parallel.py, vllm/v1/worker/gpu_worker.py, vllm#8908, vllm#29447

    See also: tp-not-dividing-heads, invalid-device-ordinal, cuda-visible-devices-uuid, mig-enabled
    """
    layout, have = layout_of(profile), len(gpus.visible)
    if layout.elsewhere:
        raise NotApplicable(layout.elsewhere)
    if have >= layout.ranks:
        return None
    evidence = [Text("GPUs installed: {installed}", installed=gpus.installed)]
    fixes: tuple[Fix, ...] = ()
    if gpus.choice is not None:
        evidence.append(Text("CUDA_VISIBLE_DEVICES={choice}", choice=repr(gpus.choice)))
        if gpus.installed >= layout.ranks:
            # The others may be somebody else's.
            show = (UnsetVariable("CUDA_VISIBLE_DEVICES"),)
            fixes = (Fix(Text("make all GPUs visible to the server"), show, Needs.PERSON),)
    return Finding(
        Text(
            "{what} {verb} {wanted} GPUs; CUDA sees {have}",
            what=" x ".join(_cut(profile)),
            verb="needs" if layout.beside == 1 else "need",
            wanted=layout.ranks,
            have=have,
        ),
        tuple(evidence),
        (*fixes, *_other_size(profile, _shared(profile, served, blocks), gpus, judged)),
    )


def _cut(profile: Profile) -> Iterator[str]:
    """The settings that make ranks on this machine."""
    layout = layout_of(profile)
    yield f"tensor_parallel_size={layout.tensor}"
    sizes = {
        "pipeline_parallel_size": layout.pipeline,
        "prefill_context_parallel_size": layout.context,
        "data_parallel_size" if layout.here == layout.data else "data_parallel_size_local": (
            layout.here
        ),
    }
    yield from (f"{name}={size}" for name, size in sizes.items() if size != 1)


def _shared(
    profile: Profile, served: ServedModel | None, blocks: ExpertBlocks | None
) -> SharedModel:
    config = served.config if served else ConfigJson({})
    return shared_model(profile, config, blocks.finest if blocks else None)


@rule("tp-not-dividing-heads", Severity.ERROR, Stage.MODEL)
def tp_not_dividing_heads(
    profile: Profile,
    gpus: Gpus | None,
    served: ServedModel | None,
    blocks: ExpertBlocks | None,
    judged: ServedFit | None,
) -> Iterator[Finding]:
    """The model cannot be divided evenly by tensor_parallel_size.

    vLLM stops with `Total number of attention heads (20) must be divisible by tensor parallel size
    (8)`, or, for the rows of a layer or an expert, with a bare AssertionError after the ranks have
    started. Each rank gets an equal part of the attention heads, of each dense layer
    (intermediate_size) and of each expert (moe_intermediate_size): a number that divides the heads
    need not divide the experts. Key and value heads may also be fewer than the ranks, if they
    divide them. So are the heads of linear attention and of Mamba layers divided, and those of a
    vision tower, unless `--mm-encoder-tp-mode data` gives each rank all of it. With
    --enable-expert-parallel experts stay whole; without it data parallel ranks cut them too. The
    vocabulary is padded to a multiple of 64, which the ranks then share.

    --decode-context-parallel-size makes groups of the same ranks: it must divide them, and, without
    MLA, be no more than the ranks that hold the same key/value head.

    Manual: Choose one of the sizes that the report lists: `--set tensor_parallel_size=N`.

    Workaround: `--pipeline-parallel-size` splits the layers instead of the heads;
    `--enable-expert-parallel` leaves experts whole.

    Sources: the model's config.json, vllm/config/model.py (0.22.0 and 0.33.0), vllm#2652, vllm#4232

    See also: tp-exceeds-visible-gpus, quantized-shape-not-divisible, gpu-memory-too-small
    """
    needs, ranks = profile.needs, profile.tensor_parallel_size
    if needs.attention_heads is None:
        raise NotApplicable(Text("the profile does not give the number of attention heads"))
    model, read = _shared(profile, served, blocks), served.needs_read if served else ()
    if wrong := model.uneven(ranks):
        fits = model.sizes(needs.attention_heads)
        yield Finding(
            Text(
                "tensor_parallel_size={ranks} does not divide {what} of {model}",
                ranks=ranks,
                what=wrong,
                model=profile.model,
            ),
            (Text("valid values: {fits}", fits=fits), *read),
            _other_size(profile, model, gpus, judged),
        )
    size = GivenOptions(profile.options).size("decode_context_parallel_size")
    if size > 1 and model.layout.context == 1 and (why := context_groups(model, size)):
        most = min(size - 1, ranks)
        right = next(n for n in range(most, 0, -1) if n == 1 or not context_groups(model, n))
        line = Doctor("diagnose", ("--set", f"decode_context_parallel_size={right}"))
        yield Finding(
            Text("decode_context_parallel_size={size} does not fit: {why}", size=size, why=why),
            read,
            (Fix(Text("take a size that fits"), (line,), Needs.PERSON),),
        )


@rule("quantized-shape-not-divisible", Severity.ERROR, Stage.MODEL)
def quantized_shape_not_divisible(
    served: ServedModel,
    profile: Profile,
    gpus: Gpus | None,
    blocks: ExpertBlocks | None,
    judged: ServedFit | None,
) -> Finding | None:
    """tensor_parallel_size cuts through the blocks of a quantised checkpoint.

    Quantised weights share a scale: in blocks of 128 x 128 in most fp8 checkpoints, in groups of 32
    to 128 along the inputs with AWQ, GPTQ and compressed-tensors. Each rank's part must be whole
    blocks, or vLLM ends while it builds the model: `is not divisible by weight quantization
    block_n = 128`, `The input size is not aligned with the quantized weight shape`, `Failed to find
    a kernel that can implement the`. What the same model shares well without quantisation may so
    not be shared with it: 29568 inputs are 231 groups of 128, which two ranks cannot halve.

    Later releases divide the blocks of an fp8 checkpoint's experts down to 32. A GPTQ checkpoint
    with desc_act is not judged, and neither are layers that its list leaves out.

    Manual: One of the sizes that the report lists: `--set tensor_parallel_size=N`.

    Workaround: `--enable-expert-parallel` leaves experts whole, `--pipeline-parallel-size` all
    layers; or the checkpoint in another quantisation.

    Sources: vllm/model_executor/layers/quantization (0.22.0 and 0.33.0)

    See also: tp-not-dividing-heads
    """
    if served.config.quantization is None:
        raise NotApplicable(Text("the model is not quantised"))
    model, ranks = _shared(profile, served, blocks), profile.tensor_parallel_size
    if not (wrong := model.unblocked(ranks)):
        return None
    return Finding(
        Text(
            "tensor_parallel_size={ranks} does not divide {what} of {model}",
            ranks=ranks,
            what=wrong,
            model=profile.model,
        ),
        (Text("valid values: {fits}", fits=model.sizes(64)), *served.read),
        _other_size(profile, model, gpus, judged),
    )


@rule("expert-parallel-without-experts", Severity.ERROR, Stage.MODEL)
def expert_parallel_without_experts(served: ServedModel, profile: Profile) -> Finding | None:
    """--enable-expert-parallel is given, and the model has no experts.

    vLLM stops with `Number of experts in the model must be greater than 0 when expert parallelism
    is enabled`. Expert parallelism gives each rank whole experts of a mixture; a dense model has
    none.

    Manual: Leave it out: `--set enable_expert_parallel=false`.

    Sources: vllm/config/model.py (_verify_with_expert_parallelism)

    See also: tp-not-dividing-heads
    """
    if not layout_of(profile).experts_whole:
        raise NotApplicable(Text("no expert parallelism is asked for"))
    config = served.config
    kinds = f"{config.model_type} {config.text_model_type} {config.architectures}".lower()
    if not config.architectures or config.experts != 0 or "moe" in kinds:
        return None
    line = Doctor("diagnose", ("--set", "enable_expert_parallel=false"))
    return Finding(
        Text("--enable-expert-parallel: {model} has no experts", model=profile.model),
        served.read,
        (Fix(Text("leave it out"), (line,), Needs.PERSON),),
    )


@rule("mig-enabled", Severity.ERROR, Stage.GPUS)
def mig_enabled(gpus: Gpus, profile: Profile) -> Finding | None:
    """The ranks run on MIG instances of one card.

    A card with MIG enabled is split into instances. A process sees one of them, and NCCL cannot
    communicate between instances of the same card (`Duplicate GPU detected`): tensor parallelism
    across them cannot work. A single rank can serve on one instance, which is only mentioned: it
    has a part of the card's memory.

    Manual: Serve on one instance with tensor_parallel_size=1, or have an administrator disable MIG
    (`nvidia-smi -i INDEX -mig 0`, as root; it ends everything that runs on the card).

    Sources: vllm#17047, vllm#6582, vllm#41848

    See also: cuda-visible-devices-uuid, tp-exceeds-visible-gpus
    """
    layout = layout_of(profile)
    if layout.elsewhere:
        raise NotApplicable(layout.elsewhere)
    if gpus.visible and all(device.mig is None for device in gpus.visible):
        raise NotApplicable(Text("the driver does not say whether MIG is on"))
    split = [device.index for device in gpus.visible if device.mig]
    whole = len(gpus.visible) - len(split)
    if not split or whole >= layout.ranks:
        return None
    off = tuple(Command(f"nvidia-smi -i {index} -mig 0") for index in split)
    return Finding(
        Text("MIG is on: GPU {gpus}", gpus=split),
        (Text("the server has {ranks} ranks; a process sees one instance", ranks=layout.ranks),),
        (
            Fix(
                Text("disable MIG, as root; ends everything that runs on the card"),
                off,
                Needs.PERSON,
            ),
        ),
        None if layout.ranks > 1 else Severity.INFO,
    )


@rule("mixed-gpus-order", Severity.WARNING, Stage.GPUS)
def mixed_gpus_order(gpus: Gpus, profile: Profile, env: LaunchEnv) -> Finding | None:
    """The GPUs differ, and CUDA numbers them differently from nvidia-smi.

    CUDA puts the fastest card first; nvidia-smi and vLLM's own checks use the PCI bus order. With
    different cards, an index in CUDA_VISIBLE_DEVICES may select another card than intended, smaller
    or older: `Detected different devices in the system`. Not a failure in itself, and harmless
    where the server uses all of them. Tensor parallelism over different cards is limited by the
    smallest.

    Fix: Saves CUDA_DEVICE_ORDER=PCI_BUS_ID for the next start. Needs no consent.

    Sources: vllm/platforms/cuda.py, vllm#16740, vllm#34076

    See also: invalid-device-ordinal, no-kernel-image
    """
    kinds = tuple(dict.fromkeys(device.name for device in gpus.visible))
    if len(kinds) < 2 or env.get(DEVICE_ORDER) == BUS_ORDER:
        return None
    order = SetVariable(DEVICE_ORDER, BUS_ORDER)
    layout = layout_of(profile)
    all_used = layout.elsewhere is None and layout.ranks >= gpus.installed
    return Finding(
        Text("the GPUs differ ({kinds}), and CUDA_DEVICE_ORDER is not PCI_BUS_ID", kinds=kinds),
        (),
        (Fix(Text("number them in bus order"), (order,)),),
        Severity.INFO if all_used else None,
    )
