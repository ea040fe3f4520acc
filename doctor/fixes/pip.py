"""Changes of the target's distributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from doctor.model import Installer, Step


@dataclass(frozen=True)
class PipInstall(Step):
    """Installs requirements (PEP 508) into the target."""

    requirements: tuple[str, ...]
    kind: ClassVar[str] = "pip-install"

    def __str__(self) -> str:
        return "pip install " + " ".join(self.requirements)

    def commands(self, installer: Installer) -> tuple[str, ...]:
        return (installer.line("install", self.requirements),)


@dataclass(frozen=True)
class PipUninstall(Step):
    """Removes distributions from the target."""

    names: tuple[str, ...]
    kind: ClassVar[str] = "pip-uninstall"

    def __str__(self) -> str:
        return "pip uninstall " + " ".join(self.names)

    def commands(self, installer: Installer) -> tuple[str, ...]:
        return (installer.line("uninstall", self.names),)
