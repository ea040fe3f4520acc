"""The NVIDIA driver as the server would find it, and the GPUs it would be given."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import TypeVar

from packaging.version import Version

from doctor.codec import decode, parse_json
from doctor.command import Container
from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact, Missing, NotApplicable, Text
from doctor.numbers import cuda_version, number_of
from doctor.probes.environment import LaunchEnv, child_env
from doctor.probes.served import Profile
from doctor.profile import ServeRequest
from doctor.redact import redact
from doctor.target import OWN, OWN_PYTHON, Target
from doctor.trust import NotTrusted

F = TypeVar("F", bound=Fact)


class ComputeMode(int, Enum):
    """Who may compute on a GPU (nvml.h, nvmlComputeMode_t)."""

    DEFAULT = 0
    EXCLUSIVE_THREAD = 1
    PROHIBITED = 2
    EXCLUSIVE_PROCESS = 3


@dataclass(frozen=True)
class ProcessOnGpu:
    """One that NVML lists on a GPU, by its number on the host. `held`: bytes, None where NVML does
    not say; `computes`: it does not only draw."""

    pid: int
    held: int | None = None
    computes: bool = True


@dataclass(frozen=True)
class Device:
    """One GPU as NVML lists it (bus order); memory in bytes, None where it has none of its own.

    `reserved`: what of `total` the driver keeps for itself, so that CUDA shows that much less;
    `mode`: a ComputeMode; `mig`: MIG is on; `processes`: who has something on it. None where the
    driver does not say, or the doctor that recorded it did not ask."""

    index: int
    name: str
    uuid: str
    capability: str
    total: int | None = None
    free: int | None = None
    reserved: int | None = None
    mode: int | None = None
    mig: bool | None = None
    processes: tuple[ProcessOnGpu, ...] | None = None


@dataclass(frozen=True)
class LibCuda:
    """libcuda.so.1 as dlopen finds it. `version`: the CUDA that it supports, 1000 x major + 10 x
    minor."""

    path: Path | None = None
    version: int | None = None
    error: str | None = None

    @property
    def cuda(self) -> Version | None:
        return cuda_version(self.version)


@dataclass(frozen=True)
class Nvml:
    driver: str | None = None
    devices: tuple[Device, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class InstalledDriver(Fact):
    """What both driver libraries answered. `device_node`: /dev/nvidiactl is there; `tegra`: a
    Jetson, which vLLM takes for CUDA without NVML (vllm/platforms/__init__.py)."""

    libcuda: LibCuda = LibCuda()
    nvml: Nvml = Nvml()
    device_node: bool = False
    container: bool = False
    tegra: bool = False


@dataclass(frozen=True)
class Driver(InstalledDriver):
    """The same, for a server that runs on the GPUs here."""


@dataclass(frozen=True)
class GpusWanted(Fact):
    """The server runs on GPUs, and they are here."""


@dataclass(frozen=True)
class DeepAsked(Fact):
    """Whether the verdict is to be proven: a test build, and the driver really initialised."""

    asked: bool = False


@dataclass(frozen=True)
class CuInit(Fact):
    """What cuInit returned (cuda.h, CUresult; 0: no error); None where libcuda has none."""

    code: int | None = None


DEVICE_ORDER, BUS_ORDER = "CUDA_DEVICE_ORDER", "PCI_BUS_ID"
"""With it CUDA counts GPUs as NVML does; else the fastest is the first."""
NO_GPU_NEEDED = Text("this server runs on the CPU")
GPUS_LATER = Text("the profile says that the GPUs come later")
_NO_MIG = Text("MIG instances are not judged")


@probe
def gpus_wanted(profile: Profile) -> GpusWanted:
    if profile.device == "cpu":
        raise NotApplicable(NO_GPU_NEEDED)
    if profile.gpus == "later":
        raise NotApplicable(GPUS_LATER)
    return GpusWanted()


@probe
def driver(wanted: GpusWanted, installed: InstalledDriver) -> Driver:
    """Not applicable, and then not asked, where no GPU here is to be used."""
    return Driver(**vars(installed))


@probe
def installed_driver(target: Target, env: LaunchEnv) -> InstalledDriver:
    """One child opens both libraries in the server's environment."""
    made = _answer(target, env, InstalledDriver)
    return InstalledDriver(
        made.libcuda,
        made.nvml,
        device_node=target.stat(Path("/dev/nvidiactl")) is not None,
        tegra=target.stat(Path("/etc/nv_tegra_release")) is not None,
        container=any(target.stat(Path(p)) for p in ("/.dockerenv", "/run/.containerenv")),
    )


@probe
def cu_init(deep: DeepAsked, target: Target, env: LaunchEnv, driver: Driver) -> CuInit:
    """In a child of its own, and for a deep check only: it can take seconds."""
    if not deep.asked:
        raise NotApplicable(Text("the driver is not initialised without --deep"))
    if driver.libcuda.error:
        raise Missing(Text("there is no driver to initialise"), ("driver-lib-invisible",))
    return _answer(target, env, CuInit, "init")


def _answer(target: Target, env: LaunchEnv, kind: type[F], *words: str) -> F:
    """What the child says, as this fact. Raises Missing."""
    _must_be_roots(target, env)
    script = OWN + "probes/_driver.py"
    ran = target.run(OWN_PYTHON, "-I", "-B", script, *words, timeout=60, env=child_env(env))
    if not ran.ok:
        why = ran.failure or f"it ended with code {ran.code}: {redact(ran.err.strip())[-200:]}"
        raise Missing(Text("asking the NVIDIA driver failed: {why}", why=why))
    try:
        made: F = decode(kind, parse_json(ran.out))
    except ValueError as error:
        raise Missing(Text("the answer of the driver cannot be read: {e}", e=error)) from None
    return made


# Where the loader looks by itself (ld.so(8)); what its cache names is root's choice.
_LIBRARIES = ("/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/lib64", "/usr/lib64", "/usr/lib")


def _must_be_roots(target: Target, env: LaunchEnv) -> None:
    """Raises NotTrusted where another user could decide which driver root loads."""
    for folder in (*env.folders("LD_LIBRARY_PATH"), *map(Path, _LIBRARIES)):
        for name in ("libcuda.so.1", "libnvidia-ml.so.1"):
            if why := target.distrust(folder / name):
                raise NotTrusted(why)


@dataclass(frozen=True)
class Gpus(Fact):
    """The GPUs that CUDA would show the server, CUDA_VISIBLE_DEVICES applied, in its order.

    `installed` counts what NVML lists; `choice` is the value of CUDA_VISIBLE_DEVICES.
    """

    visible: tuple[Device, ...] = ()
    installed: int = 0
    choice: str | None = None


@probe
def gpus(driver: Driver, env: LaunchEnv, request: ServeRequest | None = None) -> Gpus:
    """CUDA reads its list up to the first entry that it does not know, and shows what came before
    (CUDA C++ Programming Guide, "CUDA Environment Variables"). A container has only those that it
    is given, and counts them anew."""
    if driver.tegra and driver.nvml.error:
        raise NotApplicable(Text("a Jetson's driver does not list its GPU"))
    if driver.libcuda.error or driver.nvml.error:
        raise Missing(
            Text("the NVIDIA driver cannot be asked for its GPUs"), ("driver-lib-invisible",)
        )
    devices = driver.nvml.devices
    command = request.command if request else None
    if command and command.container:
        devices = _given_to(command.container, devices)
    choice = env.get("CUDA_VISIBLE_DEVICES")
    if choice is None:
        return Gpus(devices, len(devices))
    if "MIG-" in choice:
        raise NotApplicable(_NO_MIG)
    shown: list[Device] = []
    for entry in choice.split(","):
        one = _chosen(entry.strip(), devices)
        if one is None:
            break
        if one in shown:
            shown = []  # a GPU named twice: CUDA then shows none
            break
        shown.append(one)
    return Gpus(tuple(shown), len(devices), choice)


def _given_to(container: Container, devices: tuple[Device, ...]) -> tuple[Device, ...]:
    """By index or UUID, in the order of the bus (nvidia-container-toolkit)."""
    names = container.gpu_names
    if names is None:
        return devices[: container.gpu_count]
    if any(name.startswith("MIG-") or ":" in name for name in names):
        raise NotApplicable(_NO_MIG)
    uuids = tuple(name for name in names if name.startswith("GPU-"))
    return tuple(d for d in devices if str(d.index) in names or d.uuid.startswith(uuids))


def _chosen(entry: str, devices: tuple[Device, ...]) -> Device | None:
    number = re.match(r"\+?([0-9]+)", entry)  # as strtol reads it: "0gpu" is 0
    if number:
        index = number_of(number[1])
        return devices[index] if index is not None and index < len(devices) else None
    named = [d for d in devices if entry.startswith("GPU-") and d.uuid.startswith(entry)]
    return named[0] if len(named) == 1 else None
