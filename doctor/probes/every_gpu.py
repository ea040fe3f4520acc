"""What a snapshot has to know of GPUs that nobody has named yet."""

from __future__ import annotations

from dataclasses import field
from typing import ClassVar

from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact, Missing
from doctor.probes.cubins import cubins
from doctor.probes.environment import LaunchEnv
from doctor.probes.jit import Jit, jit
from doctor.probes.served import Profile
from doctor.probes.wheels import FlashInfer, Torch, Vllm
from doctor.profile import ModelNeeds
from doctor.tape import NotRecorded
from doctor.target import Target

CAPABILITIES = ("7.0", "7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1")
"""One GPU of each kind that vLLM's users have (and that vLLM and FlashInfer tell apart)."""
_MIXTURE = ModelNeeds(architecture="MoE")  # which asks all that another model asks, and more


@dataclass(frozen=True)
class EveryGpu(Fact):
    """What FlashInfer would compile for a GPU, by its compute capability; nothing where nothing is
    compiled. No rule wants it: a snapshot is asked for it, since it may be judged for GPUs to come
    and for any model, and Jit and Cubins ask the files only of the GPUs of one profile."""

    since: ClassVar[str] = "0.5.0"
    jit: dict[str, Jit] = field(default_factory=dict)


@probe
def every_gpu(
    target: Target, env: LaunchEnv, vllm: Vllm, torch: Torch, flashinfer: FlashInfer
) -> EveryGpu:
    """Asks what Jit and Cubins ask, once for each."""
    made = {}
    for capability in CAPABILITIES:
        profile = Profile("any", gpus="later", archs=(capability,), needs=_MIXTURE)
        for ask in (jit, cubins):
            try:
                answer = ask(target, env, profile, vllm, torch, flashinfer, None)
            except NotRecorded:
                raise
            except Missing:
                continue
            if isinstance(answer, Jit):
                made[capability] = answer
    return EveryGpu(made)
