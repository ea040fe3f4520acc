"""What a fix can do: one file per kind of step, with its steps and the `Kind` that does them.

`KINDS` has them all; a site's folder of rules adds its own with `KINDS.add`.
"""

from doctor.fixes.base import Kind, Kinds
from doctor.fixes.cuda_home import CudaHome, CudaHomes
from doctor.fixes.download import DownloadModel, ModelsDownloaded
from doctor.fixes.environment import Environment, PrependPath, SetVariable, UnsetVariable
from doctor.fixes.files import FilesSetAside, SetAside
from doctor.fixes.person import Command, Doctor, LoadVariables
from doctor.fixes.pip import Install, PipInstall, PipUninstall
from doctor.fixes.processes import EndProcess, ProcessesEnded

KINDS = Kinds(
    ProcessesEnded(), Install(), CudaHomes(), Environment(), FilesSetAside(), ModelsDownloaded()
)


def kind_named(name: str) -> Kind | None:
    """The kind of that name, also of a file here that no rule has asked for: an undo loads none."""
    if KINDS.named(name) is None:
        from importlib import import_module
        from pkgutil import iter_modules

        for module in iter_modules(__path__):
            import_module(f"{__name__}.{module.name}")
    return KINDS.named(name)


__all__ = [
    "KINDS",
    "Command",
    "CudaHome",
    "Doctor",
    "DownloadModel",
    "EndProcess",
    "Kind",
    "LoadVariables",
    "PipInstall",
    "PipUninstall",
    "PrependPath",
    "SetAside",
    "SetVariable",
    "UnsetVariable",
    "kind_named",
]
