"""What kinds of steps work on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from doctor.diagnose import Report
from doctor.engine import Crashed
from doctor.model import Missing
from doctor.probes.host import HostCompilers
from doctor.probes.wheels import Distribution, Packages
from doctor.repair.index import PackageIndex
from doctor.repair.installer import Tool
from doctor.repair.newest import Bounds
from doctor.talk import Talk
from doctor.target import Target


@dataclass(frozen=True)
class RepairContext:
    """The report as it stands, the target, and the means: `tool` None where neither uv nor pip is
    there; `indexes` in the order in which they are asked."""

    report: Report
    target: Target
    tool: Tool | None
    indexes: tuple[PackageIndex, ...]
    bounds: Bounds
    talk: Talk

    @property
    def python(self) -> Path:
        return self.report.interpreter.python

    @property
    def prefix(self) -> Path:
        return self.report.interpreter.prefix

    @property
    def site_packages(self) -> tuple[Path, ...]:
        return self.report.interpreter.site_packages

    @property
    def shell(self) -> Mapping[str, str]:
        """The variables that the server would be started with."""
        return self.target.env

    @property
    def installed(self) -> Mapping[str, Distribution]:
        """What the report found installed, by name; nothing where it could not tell."""
        try:
            return self.report.facts.get(Packages).installed
        except (Missing, Crashed):
            return {}

    @property
    def compiler(self) -> tuple[str, ...] | None:
        """The C++ compiler's command; None where none works."""
        try:
            host = self.report.facts.get(HostCompilers).cxx.compiler
        except (Missing, Crashed):
            return None
        return (str(host.path), *host.arguments) if host else None
