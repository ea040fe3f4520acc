"""What the dynamic loader and the linker would find: CUDA runtimes, libcuda."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.version import Version

from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact, Missing, NotApplicable, Text
from doctor.numbers import cuda_version, number_of
from doctor.probes.driver import InstalledDriver
from doctor.probes.environment import LaunchEnv, child_env
from doctor.probes.host import HostCompilers
from doctor.probes.wheels import Packages, Torch
from doctor.target import OWN, OWN_PYTHON, Target


@dataclass(frozen=True)
class Cudart:
    """A libcudart.so.<major>; `version` as it reports itself, major.minor."""

    path: Path
    major: int
    version: Version | None = None


@dataclass(frozen=True)
class Runtimes(Fact):
    """The CUDA runtimes that LD_LIBRARY_PATH brings (in its order), and torch's own."""

    foreign: tuple[Cudart, ...] = ()
    own: Cudart | None = None


@probe
def runtimes(target: Target, env: LaunchEnv, torch: Torch) -> Runtimes:
    """A runtime is asked for its version in a child, and only where there is one to ask."""
    own = None
    if torch.cuda:
        major = torch.cuda.major
        folder = "nvidia/cuda_runtime/lib" if major < 13 else f"nvidia/cu{major}/lib"
        own = Cudart(torch.root.parent / folder / f"libcudart.so.{major}", major, torch.cuda)
    foreign = []
    for folder_path in env.folders("LD_LIBRARY_PATH"):
        for name in target.listdir(folder_path) or ():
            match = re.fullmatch(r"libcudart\.so\.([0-9]+)", name)
            number = number_of(match[1]) if match else None
            path = folder_path / name
            if number is None or (own and target.realpath(path) == target.realpath(own.path)):
                continue
            foreign.append(Cudart(path, number, _version(target, env, path)))
    return Runtimes(tuple(foreign), own)


def _version(target: Target, env: LaunchEnv, path: Path) -> Version | None:
    ran = target.run(
        OWN_PYTHON, "-I", "-S", "-B", OWN + "probes/_cudart.py", str(path), env=child_env(env)
    )
    return cuda_version(number_of(ran.out.strip())) if ran.ok else None


@dataclass(frozen=True)
class TritonLibcuda(Fact):
    """How Triton's launcher gets at libcuda: `library` is what it hands the linker, `searched`
    who named the folders, `found` the file that the linker takes."""

    library: str
    searched: str
    folders: tuple[Path, ...] = ()
    found: Path | None = None


@probe
def triton_libcuda(
    target: Target,
    env: LaunchEnv,
    packages: Packages,
    driver: InstalledDriver,
    hosts: HostCompilers,
) -> TritonLibcuda:
    """Triton's own search (triton/backends/nvidia/driver.py): TRITON_LIBCUDA_PATH, else what
    `ldconfig -p` lists, else LD_LIBRARY_PATH. Older releases link `-lcuda`, newer ones
    `-l:libcuda.so.1`; the installed file says which."""
    if driver.libcuda.error:
        raise Missing(Text("there is no driver to link with"), ("driver-lib-invisible",))
    one = packages.installed.get("triton")
    if one is None:
        raise NotApplicable(Text("Triton is not installed"))
    source = one.folder / "triton/backends/nvidia/driver.py"
    rows = target.search(source, r"(?m)^libraries = \['([\w.]+)'")
    if not rows:
        raise Missing(Text("{path} does not say how it links libcuda", path=source))
    library = "libcuda.so.1" if rows[0] == "libcuda.so.1" else "libcuda.so"
    searched, folders = _triton_folders(target, env)
    places = folders
    if library == "libcuda.so" and folders:
        # Triton only asks that libcuda.so.1 is there; the linker then looks in its own folders too.
        cxx = hosts.cxx.compiler
        places = (*folders, *env.folders("LIBRARY_PATH"), *(cxx.library_dirs if cxx else ()))
    found = (f / library for f in places)
    return TritonLibcuda(
        library, searched, folders, next((p for p in found if _is_64_bit(target, p)), None)
    )


def _triton_folders(target: Target, env: LaunchEnv) -> tuple[str, tuple[Path, ...]]:
    named = env.get("TRITON_LIBCUDA_PATH")
    if named:
        return "TRITON_LIBCUDA_PATH", (Path(named),)
    listing = target.run("/sbin/ldconfig", "-p", env=child_env(env)).out
    lines = [line.split()[-1] for line in listing.splitlines() if "libcuda.so.1" in line]
    if lines:
        return "ldconfig -p", tuple(dict.fromkeys(Path(line).parent for line in lines))
    folders = env.folders("LD_LIBRARY_PATH")
    return "LD_LIBRARY_PATH", tuple(f for f in folders if target.stat(f / "libcuda.so.1"))


def _is_64_bit(target: Target, path: Path) -> bool:
    elf = target.elf(path) if target.stat(path) else None
    return elf is not None and elf.bits == 64
