"""Repairs that more than one rule offers."""

from __future__ import annotations

from doctor.fixes.cuda_home import CudaHome
from doctor.fixes.environment import PrependPath, SetVariable
from doctor.fixes.person import Command
from doctor.fixes.pip import PipInstall
from doctor.model import Fix, Needs, Step, Text
from doctor.probes.toolkit import WheelToolkit

# Together they make a compiler; named without crt and nvvm, those two float to the newest release.
EXTRAS = "cccl,crt,cudart,curand,nvcc,nvvm"


def use_wheels(kit: WheelToolkit, install: bool = True) -> tuple[Fix, ...]:
    """The toolkit of torch's own release from wheels, behind a CUDA home of links; where wheels
    cannot give one (CUDA 12), or may not (a newer glibc), what can."""
    if kit.release is None:
        major = kit.cuda.major if kit.cuda else 12
        return (
            Fix(
                Text("install a CUDA {major} toolkit (its pip wheels hold no nvcc)", major=major),
                (Command(f"apt-get install cuda-toolkit-{major}"),),
                Needs.PERSON,
            ),
            without_compiler(),
        )
    steps: list[Step] = []
    if install:
        steps.append(PipInstall((f"cuda-toolkit[{EXTRAS}]=={kit.release}",)))
    steps += [
        CudaHome(kit.home, kit.root, kit.libcuda),
        SetVariable("CUDA_HOME", str(kit.home)),
        PrependPath("PATH", kit.home / "bin"),
    ]
    if kit.too_old_for_glibc:
        title = (
            "compile with the CUDA {release} wheels (may not fit this glibc: prove it with --deep)"
        )
        return (without_compiler(), Fix(Text(title, release=kit.release), tuple(steps)))
    title = "compile with the CUDA {release} wheels, as torch does"
    return (Fix(Text(title, release=kit.release), tuple(steps)), without_compiler())


def without_compiler() -> Fix:
    """vLLM's own sampler and expert kernels instead of FlashInfer's: slower, and below Blackwell
    nothing is left for FlashInfer to compile."""
    return Fix(
        Text("do without: use vLLM's own kernels (slower; on Blackwell some are still compiled)"),
        (
            SetVariable("VLLM_USE_FLASHINFER_SAMPLER", "0"),
            SetVariable("VLLM_USE_FLASHINFER_MOE_FP16", "0"),
        ),
    )
