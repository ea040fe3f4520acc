"""Changes of the environment that the server is started with."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from doctor.fixes.base import Kind
from doctor.frozen import dataclass
from doctor.model import Installer, Step, Text
from doctor.variables import PATH_LIKE, SETTABLE

if TYPE_CHECKING:
    from doctor.probes.environment import Saved, SavedValue
    from doctor.repair.action import Action, Changed
    from doctor.repair.context import RepairContext
    from doctor.repair.manifest import Swap


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


class Environment(Kind):
    """Saves variables in the file that `vllm-doctor env` and `launch` read."""

    name = "environment"
    title = Text("save variables for the server and for `vllm-doctor env`")
    order = 30

    def takes(self, step: Step) -> bool:
        """Only what the next start heeds; any other variable is a person's to change."""
        if isinstance(step, PrependPath):
            return step.name in PATH_LIKE
        return isinstance(step, (SetVariable, UnsetVariable)) and step.name in SETTABLE

    def claim(self, step: Step) -> str | None:
        return step.name if isinstance(step, (SetVariable, UnsetVariable)) else None

    def changes(self, action: Action) -> Iterable[Changed]:
        from doctor.repair.action import Changed

        for step in action.steps:
            if isinstance(step, SetVariable):
                yield Changed(step.name, None, step.value)
            elif isinstance(step, PrependPath):
                yield Changed(step.name, None, str(step.folder))
            elif isinstance(step, UnsetVariable):
                yield Changed(step.name)

    def commands(self, action: Action, installer: Installer) -> Iterable[str]:
        return ()  # the lines of the plan are what a person would type

    def shell(self, action: Action, context: RepairContext) -> Iterable[str]:
        from doctor.probes.environment import SAVED

        path = context.prefix / SAVED
        yield shlex.join(["mkdir", "-p", str(path.parent)])
        yield shlex.join(["rm", "-f", str(path)])  # a link would be written through
        yield f"cat > {shlex.quote(str(path))} <<'EOF'"
        yield as_file(merged(path, action.steps, context.shell)).rstrip("\n")
        yield "EOF"
        for step in action.steps:
            yield from (f"#   manual: {line}" for line in step.commands(context.report.installer))

    def prepare(self, context: RepairContext, action: Action, folder: Path) -> Swap:
        from doctor.probes.environment import SAVED
        from doctor.repair import swap
        from doctor.repair.errors import StageError

        path = context.prefix / SAVED
        try:
            kept = merged(path, action.steps, context.shell)
        except (OSError, ValueError) as error:
            raise StageError(Text("{path} cannot be read: {why}", path=path, why=error)) from None
        fresh = folder / "new" / SAVED
        fresh.parent.mkdir(parents=True)
        fresh.write_text(as_file(kept), encoding="utf-8")
        return swap.plan(context.prefix, folder / "new", folder / "aside", [str(SAVED)])


def merged(path: Path, steps: Iterable[Step], shell: Mapping[str, str]) -> Saved:
    """What the file at `path` holds, with these steps put in. Raises OSError, ValueError."""
    from doctor.codec import decode, parse_json
    from doctor.probes.environment import Saved
    from doctor.target import READ_MOST, must_read

    variables: dict[str, SavedValue] = {}
    with contextlib.suppress(FileNotFoundError):
        variables = dict(decode(Saved, parse_json(must_read(path, READ_MOST))).variables)
    for step in steps:
        if isinstance(step, (SetVariable, UnsetVariable, PrependPath)):
            variables[step.name] = saved_value(step, variables.get(step.name), shell)
    return Saved(variables=variables)


def as_file(kept: Saved) -> str:
    """The text of environment.json."""
    from doctor.codec import encode

    return json.dumps(encode(kept), indent=1, sort_keys=True) + "\n"


def saved_value(
    step: SetVariable | UnsetVariable | PrependPath,
    before: SavedValue | None,
    shell: Mapping[str, str],
) -> SavedValue:
    """How a step is kept. The shell's value of today was judged bad: ours stands instead of it,
    and of no other value that someone may set later."""
    from doctor.probes.environment import SavedValue

    if isinstance(step, PrependPath):
        rest = before.value.split(os.pathsep) if before and before.prepend and before.value else []
        folders = [str(step.folder), *(f for f in rest if f != str(step.folder))]
        return SavedValue(os.pathsep.join(folders), prepend=True)
    value = step.value if isinstance(step, SetVariable) else None
    bad = list(before.instead_of) if before and not before.prepend else []
    today = shell.get(step.name)
    if today is not None and today != value and today not in bad:
        bad.append(today)
    return SavedValue(value, instead_of=tuple(bad))
