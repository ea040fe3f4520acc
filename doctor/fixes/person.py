"""What only a person may do: drivers, system packages, containers, another command of ours."""

from __future__ import annotations

import shlex
from typing import ClassVar

from doctor.frozen import dataclass
from doctor.model import Installer, Step, plainly


@dataclass(frozen=True)
class Command(Step):
    """A command line that is printed and never run by the doctor."""

    line: str
    kind: ClassVar[str] = "command"

    def __str__(self) -> str:
        return self.line

    def commands(self, installer: Installer) -> tuple[str, ...]:
        return (self.line,)


@dataclass(frozen=True)
class Doctor(Step):
    """A command of the doctor's own. It is printed for the target and with the settings that are
    judged, `words` beside them; a rule knows neither."""

    verb: str
    words: tuple[str, ...] = ()
    kind: ClassVar[str] = "command"

    def __str__(self) -> str:
        return plainly(self.verb, *self.words)

    def commands(self, installer: Installer) -> tuple[str, ...]:
        return (installer.again(self.verb, *self.words),)


@dataclass(frozen=True)
class LoadVariables(Step):
    """Has a shell set what fixes have saved for the target."""

    kind: ClassVar[str] = "command"

    def __str__(self) -> str:
        return 'eval "$(vllm-doctor env)"'

    def commands(self, installer: Installer) -> tuple[str, ...]:
        return (f'eval "$({installer.again("env")})"',)


def typed(line: str) -> Step:
    """A command line as a row of data has it: one of the doctor's own, or any other."""
    name, _, rest = line.partition(" ")
    if name != "vllm-doctor":
        return Command(line)
    verb, *words = shlex.split(rest)
    return Doctor(verb, tuple(words))
