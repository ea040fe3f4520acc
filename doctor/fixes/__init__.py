"""What a fix can do: one file per kind of step, with its steps and the `Kind` that does them.

`KINDS` has them all; a site's folder of rules adds its own with `KINDS.add`.
"""

from doctor.fixes.base import Kind, Kinds
from doctor.fixes.cuda_home import CudaHome, CudaHomes
from doctor.fixes.environment import Environment, PrependPath, SetVariable, UnsetVariable
from doctor.fixes.files import FilesSetAside, SetAside
from doctor.fixes.person import Command, Doctor, LoadVariables
from doctor.fixes.pip import Install, PipInstall, PipUninstall

KINDS = Kinds(Install(), CudaHomes(), Environment(), FilesSetAside())

__all__ = [
    "KINDS",
    "Command",
    "CudaHome",
    "Doctor",
    "Kind",
    "LoadVariables",
    "PipInstall",
    "PipUninstall",
    "PrependPath",
    "SetAside",
    "SetVariable",
    "UnsetVariable",
]
