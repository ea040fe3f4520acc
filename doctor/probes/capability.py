"""The GPU by which vLLM chooses types and kernels."""

from __future__ import annotations

from typing import ClassVar

from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact, NotApplicable, Text
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
        known = {arch: _number(arch) for arch in profile.archs}
        if not known:
            raise NotApplicable(Text("the profile does not say which GPUs will come"))
        oldest = min(known, key=known.__getitem__)
        return JudgedGpu(f"a GPU of compute capability {oldest}", known[oldest])
    if gpus is None or not gpus.visible:
        raise NotApplicable(Text("no GPU is visible"))
    first = gpus.visible[0]
    return JudgedGpu(
        f"{first.name} (compute capability {first.capability})", _number(first.capability)
    )


def _number(capability: str) -> int:
    major, _, minor = capability.partition(".")
    return int(major) * 10 + int(minor or 0)
