"""The NVIDIA driver, and the CUDA runtimes beside it."""

from __future__ import annotations

from collections.abc import Iterator

from doctor import Finding, Fix, Missing, Needs, NotApplicable, Severity, Stage, Text, rule
from doctor.fixes import Command, Doctor, SetVariable, UnsetVariable
from doctor.probes.driver import CuInit, Driver
from doctor.probes.environment import LaunchEnv
from doctor.probes.libraries import Runtimes
from doctor.probes.wheels import ROCM, Torch
from doctor.profile import Profile

# cuda.h, CUresult.
_CUINIT = {
    100: "no GPU is visible",
    802: "the system is not ready: NVSwitch needs its fabric manager",
    803: "an older libcuda than the kernel's driver is found first (a compatibility package?)",
    804: "the compatibility libcuda does not support this GPU",
    999: "unknown: nvidia-uvm is not loaded, or not in the container",
}


def _driver_repair(driver: Driver) -> tuple[str, str]:
    """(what to do, the command) where the driver's libraries cannot be loaded."""
    if driver.container and driver.nvml.error is None:
        line = "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility ..."
        return "give the container CUDA, not only the tools", line
    if driver.container:
        line = "docker run --gpus all ...   # with nvidia-container-toolkit on the host"
        return "give the container its GPUs", line
    if driver.device_node:
        line = "find / -name libcuda.so.1 2>/dev/null   # its folder belongs on LD_LIBRARY_PATH"
        return "show the loader where the driver's libraries are", line
    line = "apt-get install nvidia-driver   # then reboot; or start this where the GPUs are"
    return "install the driver", line


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
                "the NVIDIA driver loads and cannot be initialised: cuInit answers {code}",
                code=code,
            ),
            (Text("{path}", path=driver.libcuda.path), Text(_CUINIT.get(code, "see cuda.h"))),
        )
    if not errors:
        return
    message = Text("the NVIDIA driver cannot be loaded")
    if driver.libcuda.error is None:
        message = Text(
            "the NVIDIA driver answers CUDA but not NVML, by which vLLM finds its device"
        )
    evidence = [Text("{error}", error=e) for e in errors]
    if driver.device_node:
        evidence.append(Text("/dev/nvidiactl is there: the kernel's half of the driver is loaded"))
    else:
        evidence.append(Text("there is no /dev/nvidiactl"))
    fixes = [
        Fix(
            Text("build for GPUs that come later: judge without them"),
            (Doctor("diagnose", ("--set", "gpus=later", "--set", "archs=9.0")),),
            Needs.PERSON,
        )
    ]
    title, line = _driver_repair(driver)
    fixes.insert(0, Fix(Text(title), (Command(line),), Needs.PERSON))
    yield Finding(message, tuple(evidence), tuple(fixes))


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
        raise Missing(Text("there is no driver to ask"), ("driver-lib-invisible",))
    speaks = driver.libcuda.cuda
    if torch.cuda is None:
        return None
    if speaks is None:
        raise Missing(Text("{path} does not say its version", path=driver.libcuda.path))
    if speaks.major >= torch.cuda.major:
        return None
    least = _LEAST_DRIVER.get(torch.cuda.major, "a newer branch")
    return Finding(
        Text(
            "the NVIDIA driver speaks CUDA {driver}, torch needs CUDA {cuda}",
            driver=speaks,
            cuda=torch.cuda,
        ),
        (
            Text("driver {version}, {path}", version=driver.nvml.driver, path=driver.libcuda.path),
            Text("CUDA {major} needs driver {least} or newer", major=torch.cuda.major, least=least),
        ),
        (
            Fix(
                Text("update the driver, then reboot"),
                (Command(f"apt-get install nvidia-driver-{least}"),),
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
                "LD_LIBRARY_PATH brings the CUDA {other} runtime, torch is for CUDA {cuda}",
                other=one.version or one.major,
                cuda=torch.cuda,
            ),
            (Text("{path}", path=one.path),),
            (Fix(Text("take that folder out of LD_LIBRARY_PATH"), (step,)),),
            Severity.WARNING if other else None,
        )
