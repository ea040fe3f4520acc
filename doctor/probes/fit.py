"""Whether the model that is served fits into the memory of the GPUs here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from doctor.consumers import names
from doctor.consumers.model_config import UNSCALED, ConfigJson
from doctor.consumers.options import GivenOptions
from doctor.consumers.shares import layout_of
from doctor.engine import probe
from doctor.fit.verdict import Answer, Cause, Fit, FitQuestion, GpuMemory, Tensor
from doctor.frozen import dataclass
from doctor.model import NO_MODEL, Fact, NotApplicable, Text
from doctor.numbers import number_of
from doctor.probes.arguments import ServerArguments
from doctor.probes.checkpoint import CheckpointHeaders
from doctor.probes.configuration import ModelConfiguration
from doctor.probes.driver import BUS_ORDER, DEVICE_ORDER, Device, Gpus
from doctor.probes.environment import LaunchEnv
from doctor.probes.memory import MainMemory
from doctor.probes.models import ExpertBlocks
from doctor.probes.served import Profile
from doctor.probes.wheels import Vllm

if TYPE_CHECKING:
    from doctor.fit.releases import Release

# What the driver keeps of a GPU's memory and torch does not see, where NVML does not tell it: 0.3
# to 0.8 GiB of 15 to 80 GiB.
_KEPT, _KEPT_PART = 200 << 20, 0.006
# From 0.30 on (_get_and_verify_max_len).
_LATER_UNSCALED = (*UNSCALED, "yarn", "deepseek_yarn", "deepseek_llama_scaling")


@dataclass(frozen=True)
class ServedFit(Fact):
    """What `fit` says of it, free memory apart, which is another rule's matter. `ways`: settings
    that make it fit, the least change first; `notes`: where its estimates come from."""

    since: ClassVar[str] = "0.7.0"
    dispensable: ClassVar[bool] = True  # how ranks share a model is judged all the same
    answer: Answer
    why: Text
    cause: Cause | None = None
    ways: tuple[tuple[str, ...], ...] = ()
    notes: tuple[Text, ...] = ()


@probe
def served_fit(
    profile: Profile,
    gpus: Gpus,
    vllm: Vllm,
    configuration: ModelConfiguration | None,
    arguments: ServerArguments | None,
    blocks: ExpertBlocks | None,
    headers: CheckpointHeaders | None,
    memory: MainMemory | None,
    env: LaunchEnv,
) -> ServedFit:
    """Reckoned once, for all rules of memory."""
    if profile.model is None:
        raise NotApplicable(NO_MODEL)
    if configuration is None or not configuration.values:
        raise NotApplicable(Text("the config.json of {model} is not known", model=profile.model))
    if elsewhere := layout_of(profile).elsewhere:
        raise NotApplicable(elsewhere)
    if GivenOptions(profile.options).says("offload_group_size"):
        raise NotApplicable(Text("--offload-group-size is not reckoned with"))
    from doctor.fit.releases import release

    question = fit_question(
        profile,
        configuration,
        said_values(profile, arguments),
        release(str(vllm.version)),
        gpu_memories(gpus.visible, memory),
        tensors_in(headers),
    )
    if headers is not None and question.tensors is None:
        question = dataclasses.replace(question, damage=damage_in(headers))
    if blocks is not None:
        question = dataclasses.replace(question, finest=blocks.finest)
    fit = _judged(question)
    if order_is_open(gpus, env, layout_of(profile).ranks) and any(
        _judged(other).answer is not fit.answer for other in in_other_orders(question)
    ):
        raise NotApplicable(ORDER_IS_OPEN)
    return _summed_up(fit)


ORDER_IS_OPEN = Text(
    "the GPUs differ, and which of them CUDA gives the server is not known without "
    "CUDA_DEVICE_ORDER=PCI_BUS_ID"
)


def order_is_open(gpus: Gpus, env: LaunchEnv, ranks: int) -> bool:
    """Whether the server's ranks may be on others of unlike GPUs than the first of the bus."""
    unlike = len({device.name for device in gpus.visible}) > 1
    return unlike and ranks < len(gpus.visible) and env.get(DEVICE_ORDER) != BUS_ORDER


def in_other_orders(question: FitQuestion) -> tuple[FitQuestion, ...]:
    """The smallest GPUs first, and the largest."""
    rising = sorted(question.gpus, key=lambda gpu: gpu.total)
    orders = (rising, rising[::-1])
    return tuple(dataclasses.replace(question, gpus=tuple(order)) for order in orders)


def tensors_in(headers: CheckpointHeaders | None) -> tuple[Tensor, ...] | None:
    """Those of the checkpoint's headers; None where they are not there, or are no good."""
    if headers is None:
        return None
    from doctor.fit.headers import tensors_of
    from doctor.fit.sizes import NotKnown

    try:
        return None if headers.damage else tensors_of(headers.rows)
    except NotKnown:
        return None


def damage_in(headers: CheckpointHeaders) -> Text | None:
    """Why what the headers say cannot be used; None where it can."""
    from doctor.fit.headers import tensors_of
    from doctor.fit.sizes import NotKnown

    if headers.damage:
        return headers.damage
    try:
        tensors_of(headers.rows)
    except NotKnown as odd:
        return odd.why
    return None


def _judged(question: FitQuestion) -> Fit:
    from doctor.fit.reckoning import reckon

    fit = reckon(question)
    # --kv-cache-memory-bytes has no share of the whole: what is free is what may be used.
    of_free = fit.cause is not None and question.options.kv_cache_bytes is not None
    if fit.cause is not Cause.FREE and not of_free:
        return fit
    unheld = tuple(dataclasses.replace(gpu, free=None) for gpu in question.gpus)
    return reckon(dataclasses.replace(question, gpus=unheld))


def _summed_up(fit: Fit) -> ServedFit:
    if fit.answer in (Answer.FITS, Answer.UNKNOWN):
        return ServedFit(fit.answer, fit.why)
    from doctor.fit.advice import smallest_tp, ways

    found = (way.settings for way in ways(fit, smallest_tp(fit)))
    settings = tuple(tuple(f"{name}={value}" for name, value in way) for way in found)
    return ServedFit(fit.answer, fit.why, fit.cause, settings, fit.sources)


def gpu_memories(
    devices: Iterable[Device], memory: MainMemory | None = None
) -> tuple[GpuMemory, ...]:
    """The GPUs as torch sees them. `memory`: the machine's, of which those have a part that have
    none of their own. Raises NotApplicable where it is needed and not known, and where MIG is on:
    what NVML lists is then no instance, of which a server sees one."""
    return tuple(_memory(device, memory) for device in devices)


def _memory(device: Device, memory: MainMemory | None) -> GpuMemory:
    kind = _capability(device.capability)
    if device.mig:
        raise NotApplicable(Text("MIG is on: how much memory an instance has is not asked"))
    if device.total is None:
        if memory is None:
            raise NotApplicable(Text("a GPU with unified memory does not report its size"))
        return GpuMemory(device.name, memory.total, memory.available, kind, unified=True)
    kept = device.reserved
    if kept is None:
        kept = _KEPT + int(device.total * _KEPT_PART)
    total = max(device.total - kept, device.free or 0)
    return GpuMemory(device.name, total, device.free, kind)


def _capability(said: str) -> int | None:
    major, _, minor = said.partition(".")
    first, second = number_of(major), number_of(minor or "0")
    return None if first is None or second is None else first * 10 + second


def said_values(profile: Profile, arguments: ServerArguments | None) -> dict[str, Any]:
    """What is really said to vLLM, by the options' names, and the installed version's own
    utilization where nothing is."""
    if arguments is None:
        settings = {setting: value for setting, _, value in names.passed(profile)}
        return {**settings, **profile.options}
    share = arguments.defaults.get("gpu_memory_utilization")
    own = {} if share is None else {"gpu_memory_utilization": share}
    return {**own, **arguments.values}


def fit_question(
    profile: Profile,
    configuration: ModelConfiguration,
    values: Mapping[str, Any],
    release: Release,
    gpus: tuple[GpuMemory, ...],
    tensors: tuple[Tensor, ...] | None = None,
    available: int | None = None,
) -> FitQuestion:
    """Of this profile in force and this configuration of its model, as this vLLM reads them.
    `values`: what is really said to vLLM (`said_values`)."""
    from doctor.fit.options import memory_options

    config = ConfigJson(configuration.values)
    length = config.length(_LATER_UNSCALED if release.since("0.30") else UNSCALED)
    return FitQuestion(
        model=profile.model or "",
        config=config,
        config_from=str(configuration.place or ""),
        options=memory_options(profile, values),
        release=release,
        gpus=gpus,
        length=length.tokens if length else None,
        tensors=tensors,
        available=available,
    )
