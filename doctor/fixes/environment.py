"""Changes of the environment that the server is started with."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from doctor.model import Installer, Step


@dataclass(frozen=True)
class SetVariable(Step):
    name: str
    value: str
    kind: ClassVar[str] = "set-variable"

    def __str__(self) -> str:
        return f"export {self.name}={self.value}"

    def commands(self, installer: Installer) -> tuple[str, ...]:
        return (f"export {self.name}={shlex.quote(self.value)}",)


@dataclass(frozen=True)
class UnsetVariable(Step):
    name: str
    kind: ClassVar[str] = "unset-variable"

    def __str__(self) -> str:
        return f"unset {self.name}"

    def commands(self, installer: Installer) -> tuple[str, ...]:
        return (f"unset {self.name}",)


@dataclass(frozen=True)
class PrependPath(Step):
    """Puts a folder before the others of a path-like variable."""

    name: str
    folder: Path
    kind: ClassVar[str] = "prepend-path"

    def __str__(self) -> str:
        return f"export {self.name}={self.folder}:${self.name}"

    def commands(self, installer: Installer) -> tuple[str, ...]:
        rest = f'"${{{self.name}:+:${self.name}}}"'
        return (f"export {self.name}={shlex.quote(str(self.folder))}{rest}",)
