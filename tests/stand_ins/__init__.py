"""Stand-ins of the driver's libraries, `libcuda.so.1` and `libnvidia-ml.so.1`, really compiled.

A program finds them by the ordinary loader path (`LD_LIBRARY_PATH`), as it would find a driver's,
and need not know. What they report comes from variables of the program's environment:

    STAND_IN_GPUS            how many GPUs, all alike (1)
    STAND_IN_NAME            their name (NVIDIA H100 80GB HBM3)
    STAND_IN_CC              their compute capability (9.0)
    STAND_IN_MEMORY_MIB      memory of each, MiB (81559)
    STAND_IN_FREE_MIB        of that free, MiB (all)
    STAND_IN_RESERVED_MIB    of the memory what the driver keeps for itself, MiB (0)
    STAND_IN_MIG             1 where MIG mode is on (0)
    STAND_IN_MODE            the compute mode, such as 3 for EXCLUSIVE_PROCESS (0)
    STAND_IN_DRIVER_VERSION  the driver (580.95.05)
    STAND_IN_CUDA            the newest CUDA it knows, major * 1000 + minor * 10 (13000)
    STAND_IN_NVML_INIT       the code with which nvmlInit refuses, such as 18 (0)
    STAND_IN_CUINIT          the code with which cuInit refuses, such as 803 (0)
    STAND_IN_SCENARIO        a file that says it of one GPU, or of all (*), for NVML alone

A scenario has lines of a GPU's index, a key and a value:

    0 name NVIDIA RTX A6000     and so memory_mib, free_mib, reserved_mib, cc, mig and mode
    0 process 4711 2048         who holds how many MiB, as long as it lives; "graphics" or "mps"
                                behind that puts it into another list
    * fail nvmlDeviceGetComputeMode 3
    1 hang nvmlDeviceGetMemoryInfo
"""

from __future__ import annotations

import subprocess
from pathlib import Path

_SOURCES = Path(__file__).parent
_NAMES = ("libcuda", "libnvidia-ml")


def build(folder: Path) -> Path:
    """Compiles both libraries into `folder` with the system's `cc`; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _NAMES:
        soname = f"{name}.so.1"
        flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", f"-Wl,-soname,{soname}"]
        source = _SOURCES / f"{name}.c"
        subprocess.run(["cc", *flags, "-o", str(folder / soname), str(source)], check=True)
    return folder


def environment(folder: Path, **settings: object) -> dict[str, str]:
    """The variables that show a program the stand-ins of `folder`, such as gpus=2, cc="9.0"."""
    described = {f"STAND_IN_{name.upper()}": str(value) for name, value in settings.items()}
    return {"LD_LIBRARY_PATH": str(folder), **described}
