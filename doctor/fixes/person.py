"""What only a person may do: drivers, system packages, containers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from doctor.model import Installer, Step


@dataclass(frozen=True)
class Command(Step):
    """A command line that is printed and never run by the doctor."""

    line: str
    kind: ClassVar[str] = "command"

    def __str__(self) -> str:
        return self.line

    def commands(self, installer: Installer) -> tuple[str, ...]:
        return (self.line,)
