"""The NVIDIA driver, and the CUDA runtimes beside it."""

from __future__ import annotations

from collections.abc import Iterator

from doctor import Finding, Fix, Missing, Needs, NotApplicable, Severity, Stage, Text, rule
from doctor.fixes import Command, Doctor, SetVariable, UnsetVariable
from doctor.probes.driver import CuInit, Driver
from doctor.probes.environment import LaunchEnv
from doctor.probes.libraries import Runtimes
from doctor.probes.served import Profile
from doctor.probes.wheels import ROCM, Torch

# cuda.h, CUresult.
_CUINIT = {
    100: Text("no GPU is visible"),
    802: Text("the system is not ready: NVSwitch needs nvidia-fabricmanager"),
    803: Text("libcuda is older than the kernel driver (a compatibility package found first?)"),
    804: Text("the compatibility libcuda does not support this GPU"),
    999: Text("unknown error: nvidia-uvm is not loaded, or not in the container"),
}


def _visible_driver(driver: Driver) -> Fix:
    """What to do where the driver's libraries cannot be loaded."""
    if driver.container and driver.nvml.error is None:
        line = "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility ..."
        title = Text("start the container with the driver's compute capability")
    elif driver.container:
        line = "docker run --gpus all ...   # with nvidia-container-toolkit on the host"
        title = Text("start the container with its GPUs")
    elif driver.device_node:
        line = "find / -name libcuda.so.1 2>/dev/null   # its folder belongs on LD_LIBRARY_PATH"
        title = Text("add the folder of the driver's libraries to LD_LIBRARY_PATH")
    else:
        line = "apt-get install nvidia-driver   # then reboot; or start this where the GPUs are"
        title = Text("install the driver")
    return Fix(title, (Command(line),), Needs.PERSON)


@rule("driver-lib-invisible", Severity.ERROR, Stage.DEVICE)
def driver_lib_invisible(
    driver: Driver, init: CuInit | None, torch: Torch | None
) -> Iterator[Finding]:
    """The server cannot load or initialise the NVIDIA driver.

    vLLM stops with `RuntimeError: Failed to infer device type` or
    `libcuda.so.1: cannot open shared object file`. Causes: no driver on this machine, a container
    started without `--gpus`, an empty placeholder file instead of the library, a library folder
    that the loader does not search, or cuInit returning an error (cuda.h, CUresult: 100 no GPU is
    visible, 802 fabric manager not ready, 803 an older libcuda is found first, 804 the
    compatibility libcuda does not support this GPU, 999 nvidia-uvm is not loaded or not in the
    container).

    Manual: In a container, start it with the GPUs (`docker run --gpus all ...`;
    nvidia-container-toolkit on the host; NVIDIA_DRIVER_CAPABILITIES must include compute). If
    /dev/nvidiactl exists, find libcuda.so.1 and put its folder on LD_LIBRARY_PATH. Otherwise
    install the driver and reboot. On a build machine without GPUs, judge for the GPUs to come:
    `vllm-doctor diagnose --set gpus=later --set archs=9.0`.

    Sources: cuda.h (CUresult), vllm#12847, vllm#8885, vllm#13946

    See also: no-gpu-in-container, cuda-compat-shadow-803, forward-compat-unsupported-804,
    fabric-manager-not-running, cuda-unknown-error
    """
    if torch and torch.hip:
        raise NotApplicable(ROCM)
    nvml = None if driver.tegra else driver.nvml.error
    errors = [e for e in (driver.libcuda.error, nvml) if e]
    if not errors and init and (code := init.code):
        yield Finding(
            Text(
                "the NVIDIA driver loads but cannot be initialised: cuInit returned {code}",
                code=code,
            ),
            (
                Text("{path}", path=driver.libcuda.path),
                _CUINIT.get(code, Text("see CUresult in cuda.h")),
            ),
        )
    if not errors:
        return
    message = Text("the NVIDIA driver cannot be loaded")
    if driver.libcuda.error is None:
        message = Text("the NVIDIA driver offers CUDA but not NVML, by which vLLM detects GPUs")
    evidence = [Text("{error}", error=e) for e in errors]
    if driver.device_node:
        evidence.append(Text("/dev/nvidiactl exists: the kernel driver is loaded"))
    else:
        evidence.append(Text("/dev/nvidiactl does not exist"))
    without = Fix(
        Text("diagnose without GPUs, for a machine that gets them later"),
        (Doctor("diagnose", ("--set", "gpus=later", "--set", "archs=9.0")),),
        Needs.PERSON,
    )
    yield Finding(message, tuple(evidence), (_visible_driver(driver), without))


# CUDA's release notes, "CUDA Driver": the oldest branch for each major.
_LEAST_DRIVER = {12: "525", 13: "580"}


@rule("driver-too-old", Severity.ERROR, Stage.DEVICE)
def driver_too_old(driver: Driver, torch: Torch) -> Finding | None:
    """The NVIDIA driver supports an older CUDA major than torch requires.

    torch stops with `The NVIDIA driver on your system is too old`. Any driver of the same CUDA
    major is new enough, whatever the minor: CUDA 12.9 wheels run on a driver for CUDA 12.2. CUDA 12
    needs driver 525 or newer, CUDA 13 needs 580. The version that nvidia-smi prints may come from a
    compatibility package; this check asks libcuda itself.

    Manual: Update the driver and reboot (`apt-get install nvidia-driver-580` for CUDA 13).

    Workaround: Install vLLM and torch wheels of the CUDA major that the driver supports, both from
    the same index.

    Sources: CUDA release notes (CUDA Driver), vllm#1772, FunASR#2973

    See also: ptx-unsupported-toolchain, forward-compat-unsupported-804, libcudart-major-mismatch
    """
    if driver.libcuda.error:
        raise Missing(Text("there is no driver to query"), ("driver-lib-invisible",))
    speaks = driver.libcuda.cuda
    if torch.cuda is None:
        return None
    if speaks is None:
        raise Missing(Text("{path} does not report its version", path=driver.libcuda.path))
    wanted = torch.cuda.major
    if speaks.major >= wanted:
        return None
    least = _LEAST_DRIVER.get(wanted)
    evidence = [
        Text("driver {version}, {path}", version=driver.nvml.driver, path=driver.libcuda.path)
    ]
    if least:
        enough = Text("CUDA {major} needs driver {least} or newer", major=wanted, least=least)
        evidence.append(enough)
    return Finding(
        Text(
            "the NVIDIA driver supports CUDA up to {driver}; torch needs CUDA {cuda}",
            driver=speaks,
            cuda=torch.cuda,
        ),
        tuple(evidence),
        (
            Fix(
                Text("update the driver, then reboot"),
                (Command(f"apt-get install nvidia-driver{f'-{least}' if least else ''}"),),
                Needs.PERSON,
            ),
        ),
    )


@rule("ld-library-path-foreign-cudart", Severity.ERROR, Stage.IMPORT)
def ld_library_path_foreign_cudart(
    runtimes: Runtimes, torch: Torch, env: LaunchEnv, profile: Profile
) -> Iterator[Finding]:
    """LD_LIBRARY_PATH puts another CUDA runtime ahead of torch's.

    An older libcudart of torch's own major, loaded first, lacks symbols
    (`undefined symbol: cudaGetDriverEntryPointByVersion`). torch's wheels carry an RPATH, which the
    loader searches before LD_LIBRARY_PATH, so with them the older runtime is never loaded (tested
    with torch 2.11) and nothing is reported. A runtime of another major has another file name and
    is loaded beside torch's only where something asks for it
    (`Multiple libcudart libraries found`); that is a warning.

    Fix: Saves LD_LIBRARY_PATH without that folder for the next start. Needs no consent.

    Manual: Remove the folder from LD_LIBRARY_PATH in the shell or unit that starts the server.

    Sources: torch 2.11 (tested), flashinfer#928, cudnn-frontend#267

    See also: cudart-symbol-older-runtime, multiple-libcudart
    """
    if profile.device == "cpu" or torch.cuda is None:
        return
    wrong = []
    for one in dict.fromkeys(runtimes.foreign):
        other = one.major != torch.cuda.major
        older = not other and one.version is not None and one.version < torch.cuda
        if other or (older and not torch.rpath):
            wrong.append(one)
    bad = {one.path.parent for one in wrong}
    entries = [str(f) for f in env.folders("LD_LIBRARY_PATH") if f not in bad]
    step = (
        SetVariable("LD_LIBRARY_PATH", ":".join(entries))
        if entries
        else UnsetVariable("LD_LIBRARY_PATH")
    )
    for one in wrong:
        other = one.major != torch.cuda.major
        yield Finding(
            Text(
                "LD_LIBRARY_PATH provides the CUDA {other} runtime; torch is built for CUDA {cuda}",
                other=one.version or one.major,
                cuda=torch.cuda,
            ),
            (Text("{path}", path=one.path),),
            (Fix(Text("remove that folder from LD_LIBRARY_PATH"), (step,)),),
            Severity.WARNING if other else None,
        )
