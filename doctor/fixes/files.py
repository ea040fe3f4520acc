"""Changes of files that the doctor did not make: set aside, never deleted."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from doctor.fixes.base import Kind
from doctor.frozen import dataclass
from doctor.model import Installer, Step, Text

if TYPE_CHECKING:
    from doctor.repair.action import Action, Changed, ConsentRequest
    from doctor.repair.context import RepairContext
    from doctor.repair.manifest import Swap


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


class FilesSetAside(Kind):
    """Files and folders go, by renames on their own filesystem, to where their owner does not look
    for them; those below the prefix go to the run's own folder."""

    name = "set-aside"
    title = Text("set kernels aside that cannot be used")
    order = 40
    sweeps = True

    def takes(self, step: Step) -> bool:
        return isinstance(step, SetAside)

    def consent(self, context: RepairContext, action: Action) -> Iterable[ConsentRequest]:
        """Kernels that someone builds or has loaded are never set aside."""
        from doctor.repair import running
        from doctor.repair.action import ConsentRequest, requests_of

        yield from requests_of(action)
        folders = dict.fromkeys(path.parent for path in paths_of(action.steps))
        who = [*running.users(context.prefix), *(p for f in folders for p in running.builders(f))]
        if who:
            why = Text("these kernels may be in use by {who}", who=list(dict.fromkeys(who)))
            yield ConsentRequest(None, why, action.ids)

    def changes(self, action: Action) -> Iterable[Changed]:
        from doctor.repair.action import Changed

        return (Changed(str(path), str(path)) for path in paths_of(action.steps))

    def split(self, action: Action) -> Iterable[Action]:
        """Each by itself, since each may lie on another filesystem."""
        for step in action.steps:
            if isinstance(step, SetAside) and os.path.lexists(step.path):
                yield dataclasses.replace(action, steps=(step,))

    def prepare(self, context: RepairContext, action: Action, folder: Path) -> Swap:
        (named,) = paths_of(action.steps)
        return away_from(named, context.prefix, folder)


def away_from(named: Path, prefix: Path, folder: Path) -> Swap:
    """The change, with this folder, that sets a path aside. Raises StageError for what is neither
    below the prefix nor a kernel, and SwapError."""
    from doctor.repair import swap
    from doctor.repair.errors import StageError
    from doctor.repair.manifest import is_kernel_cache, places
    from doctor.repair.tree import why_not_private

    path = Path(os.path.realpath(named.parent)) / named.name
    prefix = Path(os.path.realpath(prefix))
    root = prefix if path.is_relative_to(prefix) else path.parent
    if root != prefix and not is_kernel_cache(root):
        raise StageError(
            Text(
                "{path} is neither in the environment nor a kernel of FlashInfer's: move it away "
                "yourself",
                path=path,
            )
        )
    _, aside = places(prefix, folder.parent.name, int(folder.name), root)
    if root != prefix and (why := why_not_private(aside)):
        raise StageError(Text("{path} stays: {why}", path=path, why=why))
    return swap.plan(root, folder / "new", aside, _below(path, root))


def paths_of(steps: Iterable[Step]) -> tuple[Path, ...]:
    """What is set aside by those of the steps that set something aside."""
    return tuple(step.path for step in steps if isinstance(step, SetAside))


def _below(path: Path, root: Path) -> list[str]:
    """The file, or all files and links of the folder, relative to `root`."""
    if not path.is_dir() or path.is_symlink():
        return [os.path.relpath(path, root)]
    return [
        os.path.relpath(Path(at) / name, root)
        for at, names, files in os.walk(path)
        for name in [*files, *(n for n in names if (Path(at) / n).is_symlink())]
    ]
