"""What a fix can do: one dataclass of `Step` per kind of change."""

from doctor.fixes.cuda_home import CudaHome
from doctor.fixes.environment import PrependPath, SetVariable, UnsetVariable
from doctor.fixes.files import SetAside
from doctor.fixes.person import Command, Doctor, LoadVariables
from doctor.fixes.pip import PipInstall, PipUninstall

__all__ = [
    "Command",
    "CudaHome",
    "Doctor",
    "LoadVariables",
    "PipInstall",
    "PipUninstall",
    "PrependPath",
    "SetAside",
    "SetVariable",
    "UnsetVariable",
]
