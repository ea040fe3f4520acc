"""The GPU by which vLLM chooses types and kernels."""

from __future__ import annotations

from typing import ClassVar

from doctor.codec import shown_value
from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact, Missing, NotApplicable, Text
from doctor.numbers import number_of
from doctor.probes.driver import NO_GPU_NEEDED, Gpus
from doctor.probes.served import Profile


@dataclass(frozen=True)
class JudgedGpu(Fact):
    """The first GPU that the server sees, which vLLM asks for all (platforms/cuda.py); of GPUs that
    come later, the oldest that the profile names. `capability`: 75 is 7.5."""

    since: ClassVar[str] = "0.6.0"
    name: str
    capability: int


@probe
def judged_gpu(profile: Profile, gpus: Gpus | None) -> JudgedGpu:
    """Raises NotApplicable where no GPU is known: other rules say why."""
    if profile.device == "cpu":
        raise NotApplicable(NO_GPU_NEEDED)
    if profile.gpus == "later":
        known = [(_number(arch), arch) for arch in profile.archs]
        if not known:
            raise NotApplicable(Text("the profile does not say which GPUs will come"))
        number, oldest = min(known)
        return JudgedGpu(f"a GPU of compute capability {oldest}", number)
    if gpus is None or not gpus.visible:
        raise NotApplicable(Text("no GPU is visible"))
    first = gpus.visible[0]
    number = _number(first.capability)
    return JudgedGpu(f"{first.name} (compute capability {first.capability})", number)


def _number(capability: str) -> int:
    major, _, minor = capability.partition(".")
    first, second = number_of(major), number_of(minor or "0")
    if first is None or second is None:
        said = Text(
            "{value} is not a compute capability such as 9.0", value=shown_value(capability)
        )
        raise Missing(said)
    return first * 10 + second
