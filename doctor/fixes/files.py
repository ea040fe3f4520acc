"""Changes of files that the doctor did not make: set aside, never deleted."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from doctor.model import Installer, Step


@dataclass(frozen=True)
class SetAside(Step):
    """Renames a file or folder, so that its owner makes it again."""

    path: Path
    kind: ClassVar[str] = "set-aside"

    def __str__(self) -> str:
        return f"set aside {self.path}"

    def commands(self, installer: Installer) -> tuple[str, ...]:
        path = str(self.path)
        return (shlex.join(["mv", path, f"{path}.set-aside"]),)
