"""Repairs that more than one rule offers."""

from __future__ import annotations

from dataclasses import dataclass

from packaging.version import Version

from doctor.fixes.cuda_home import CudaHome
from doctor.fixes.environment import PrependPath, SetVariable
from doctor.fixes.person import Command, Doctor
from doctor.fixes.pip import PipInstall
from doctor.model import Fix, Installer, Needs, Step, Text
from doctor.numbers import version_of
from doctor.probes.toolkit import WheelToolkit
from doctor.profile import ModelNeeds

# Together they make a compiler; named without crt and nvvm, those two float to the newest release.
EXTRAS = "cccl,crt,cudart,curand,nvcc,nvvm"
# The first vLLM whose torch is of CUDA 13 and itself names a release of cuda-toolkit.
_FIRST_CUDA_13 = Version("0.20")
# CUDA 12 minors for which FlashInfer publishes ready kernels (docs.flashinfer.ai, installation).
_READY_KERNELS = ("12.8", "12.9")


@dataclass(frozen=True)
class FromIndex(PipInstall):
    """Installs from an index that is not the one the target's distributions come from."""

    index: str = ""

    def __str__(self) -> str:
        return f"pip install --index-url {self.index} " + " ".join(self.requirements)

    def commands(self, installer: Installer) -> tuple[str, ...]:
        return (installer.line("install", ("--index-url", self.index, *self.requirements)),)


def install_vllm(name: str, needs: ModelNeeds) -> PipInstall:
    """All that a server needs, in one transaction, so that it goes together: vLLM, a transformers
    that knows the model (the resolver's own choice may not), and a compiler of the release that
    torch pins (vLLM's other requirements bring nvcc without a version)."""
    roots = [f"{name}=={needs.vllm}" if needs.vllm else name]
    if needs.transformers:
        roots.append(f"transformers{needs.transformers}")
    if name == "vllm" and _of_cuda_13(needs.vllm):
        roots.append(f"cuda-toolkit[{EXTRAS}]")
    return PipInstall(tuple(roots))


def _of_cuda_13(release: str | None) -> bool:
    version = version_of(release)
    return release is None or (version is not None and version >= _FIRST_CUDA_13)


def use_wheels(kit: WheelToolkit, install: bool = True) -> tuple[Fix, ...]:
    """The toolkit of torch's own release from wheels, behind a CUDA home of links; where wheels
    cannot give one (CUDA 12), or may not (a newer glibc), what can."""
    if kit.release is None:
        return (*_without_wheels(kit), without_compiler())
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


def _without_wheels(kit: WheelToolkit) -> tuple[Fix, ...]:
    """For torch on CUDA 12, whose compiler wheel holds ptxas and no nvcc: a whole toolkit of the
    same minor, or no need of one."""
    if kit.cuda is None:
        return ()
    cuda = f"{kit.cuda.major}.{kit.cuda.minor}"
    fixes = []
    if not kit.too_old_for_glibc:
        fixes += [_system_toolkit(cuda), _conda_toolkit(cuda)]
    if kit.flashinfer and cuda in _READY_KERNELS:
        index = f"https://flashinfer.ai/whl/cu{cuda.replace('.', '')}"
        ready = FromIndex((f"flashinfer-jit-cache=={kit.flashinfer}",), index)
        title = "install FlashInfer's ready kernels, from its own index: nothing is compiled then"
        fixes.append(Fix(Text(title), (ready,), Needs.PERSON))
    return tuple(fixes)


def _system_toolkit(cuda: str) -> Fix:
    return Fix(
        Text("install the CUDA {cuda} toolkit from NVIDIA's repository", cuda=cuda),
        (
            Command(f"apt-get install cuda-toolkit-{cuda.replace('.', '-')}"),
            SetVariable("CUDA_HOME", f"/usr/local/cuda-{cuda}"),
        ),
        Needs.PERSON,
    )


def _conda_toolkit(cuda: str) -> Fix:
    """conda-forge's packages lay headers and libraries out below targets/, where its nvcc finds
    them; FlashInfer's linker looks into lib64, and its C++ compiler has to be told. The link
    and CPATH were tried with a toolkit laid out like that. (conda's own lib holds a libstdc++,
    which must not be linked with.)"""
    folder = f'"$HOME"/cuda-{cuda}'
    return Fix(
        Text("install the CUDA {cuda} toolkit with conda, into a folder of its own", cuda=cuda),
        (
            Command(f"conda create -y -p {folder} -c conda-forge cuda-toolkit={cuda}"),
            Command(f"ln -s {folder}/targets/*-linux/lib {folder}/lib64"),
            Command(f"export CUDA_HOME={folder}"),
            Command(f'export CPATH="$(echo {folder}/targets/*-linux/include)"'),
        ),
        Needs.PERSON,
    )


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


def prove_it() -> Fix:
    """The test build says what no table does."""
    return Fix(
        Text("see whether it works: compile, link and load a small kernel"),
        (Doctor("diagnose", ("--deep",)),),
        Needs.PERSON,
    )
