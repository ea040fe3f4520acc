"""What a command came to, case by case: the one shape that a form for another program is made of.

Every text in it is redacted and drives no terminal; none holds a line break.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from doctor.model import Finding, Fix, Installer, Needs, Severity, printable
from doctor.redact import redact


class CaseVerdict(str, Enum):
    """What a case came to. PENDING: it would be done, and was not asked for."""

    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    NOT_CHECKED = "not checked"
    PENDING = "pending"


@dataclass(frozen=True)
class Case:
    """One rule, one finding of a log, or one action of a fix. `decides`: the exit code is not 0 for
    it; `accepted`: a person said to go on all the same. `commands`: POSIX shell lines of its best
    fix. `file`, `line`: where a log says it."""

    id: str
    area: str
    verdict: CaseVerdict
    message: str = ""
    severity: Severity = Severity.ERROR
    decides: bool = False
    accepted: bool = False
    evidence: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    file: str | None = None
    line: int | None = None

    @property
    def details(self) -> list[str]:
        """Evidence and commands, a line each."""
        return [*(f"- {line}" for line in self.evidence), *self.commands]


@dataclass(frozen=True)
class Cases:
    """All cases of one command. `summary`: its verdict in one line; `host` and `time` (ISO 8601) of
    what was judged, `properties`: what else is known of it; `seconds` of wall time."""

    command: str
    summary: str
    cases: tuple[Case, ...]
    host: str | None = None
    time: str | None = None
    seconds: float = 0.0
    properties: dict[str, str] = field(default_factory=dict)


def safe_line(value: object) -> str:
    """One line without secrets that drives no terminal."""
    return printable(redact(str(value)))


def commands(findings: Iterable[Finding], installer: Installer) -> Iterator[str]:
    """The best fix of each finding: what it is, as a comment, and its shell lines."""
    for fix in dict.fromkeys(finding.fixes[0] for finding in findings if finding.fixes):
        yield from fix_commands(fix, installer)


def fix_commands(fix: Fix, installer: Installer) -> Iterator[str]:
    """What a fix is, as a comment, and its shell lines."""
    yield safe_line(f"# {fix.title}{' (manual)' if fix.needs is Needs.PERSON else ''}")
    yield from map(safe_line, fix.commands(installer))
