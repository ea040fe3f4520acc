"""Changes of the target's distributions."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from doctor.fixes.base import Kind
from doctor.fixes.files import SetAside, paths_of
from doctor.frozen import dataclass
from doctor.model import Installer, Step, Text, printable

if TYPE_CHECKING:
    from doctor.repair.action import Action, Changed, ConsentRequest
    from doctor.repair.context import RepairContext
    from doctor.repair.index import PackageIndex
    from doctor.repair.installer import Move
    from doctor.repair.manifest import Swap
    from doctor.repair.resolver import Resolution
    from doctor.repair.transaction import Desired, Transaction


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


_FRESH = 20
"""Distributions that are only added are named up to this many: an empty environment gets 194."""


class Install(Kind):
    """Distributions come and go in one transaction, whatever number of fixes wants it."""

    name = "install"
    title = Text("install distributions, in one transaction")
    order = 10

    def takes(self, step: Step) -> bool:
        # A broken installation makes way for the whole one. Of another index (a subclass) the
        # transaction knows nothing.
        return type(step) in (PipInstall, PipUninstall) or _is_metadata(step)

    def plan(self, context: RepairContext, action: Action) -> Action:
        from doctor.repair.transaction import settle

        context.talk.phase(Text("resolving what goes together with what is installed ..."))
        made = settle(desired(action), not action.asking, context)
        return dataclasses.replace(action, settled=made)

    def consent(self, context: RepairContext, action: Action) -> Iterable[ConsentRequest]:
        from doctor.repair import running
        from doctor.repair.transaction import consents

        moves = _settled(action).resolution.moves
        return consents(action, moves, running.users(context.prefix))

    def changes(self, action: Action) -> Iterable[Changed]:
        from doctor.repair.action import Changed

        return (Changed(m.name, m.old, m.new) for m in _settled(action).resolution.moves)

    def summary(self, action: Action) -> tuple[str, ...]:
        moves = _settled(action).resolution.moves
        return tuple(f"{m.name} {m.old or 'not installed'} → {m.new or 'removed'}" for m in moves)

    def lines(self, action: Action) -> Iterable[tuple[str, str]]:
        from doctor.repair.resolver import fetched

        resolution = _settled(action).resolution
        moves = resolution.moves
        fresh = [m for m in moves if m.old is None and not _named(m, _settled(action))]
        shown = moves if len(fresh) <= _FRESH else [m for m in moves if m not in fresh]
        width = max((len(m.name) for m in shown), default=0)
        for move in shown:
            yield "", f"{move.name:<{width}}  {_move(move)}"
        if len(shown) < len(moves):
            yield "", f"and {len(fresh)} more that they need and that are not installed"
        if resolution.why:
            yield "", str(resolution.why)
        for skipped in resolution.passed_over:
            yield "yellow", f"skipped mirror {skipped}"
        yield "", f"from {resolution.index.name}, {fetched(resolution.download_bytes)}"
        for note in resolution.index.notes:
            yield "dim", str(note)

    def commands(self, action: Action, installer: Installer) -> Iterable[str]:
        """What is set aside goes before what is installed in its place."""
        for step in action.steps:
            if isinstance(step, SetAside):
                yield from step.commands(installer)
        request = _settled(action).request
        if request.uninstalled:
            yield installer.line("uninstall", request.uninstalled)
        if request.roots:
            yield installer.line("install", request.roots)

    def shell(self, action: Action, context: RepairContext) -> Iterable[str]:
        """Exactly what was resolved, by hash: what the index has tomorrow makes no difference."""
        installer = context.report.installer
        request, resolution = _settled(action).request, _settled(action).resolution
        if request.uninstalled:
            yield installer.line("uninstall", request.uninstalled)
        for info in request.broken:
            yield shlex.join(["mv", str(info), f"{info}.set-aside"])
        yield from install_lines(resolution, installer, context.shell, context.prefix)

    def problems(self, context: RepairContext) -> frozenset[str]:
        """What does not go together among the installed distributions."""
        if context.tool is None:
            return frozenset()
        return context.tool.check(context.python, context.shell)

    def prepare(self, context: RepairContext, action: Action, folder: Path) -> Swap:
        from doctor.repair.stage import stage_distributions

        return stage_distributions(context, folder, _settled(action))


def desired(action: Action) -> Desired:
    """What the steps of an install action want."""
    from doctor.repair.transaction import Desired

    return Desired(
        tuple(r for s in action.steps if isinstance(s, PipInstall) for r in s.requirements),
        tuple(n for s in action.steps if isinstance(s, PipUninstall) for n in s.names),
        paths_of(action.steps),
    )


def _is_metadata(step: Step) -> bool:
    return isinstance(step, SetAside) and step.path.name.endswith((".dist-info", ".egg-info"))


def _settled(action: Action) -> Transaction:
    """What `Install.plan` has found out."""
    settled: Transaction = action.settled
    return settled


def _named(move: Move, made: Transaction) -> bool:
    from doctor.repair.installer import name_of
    from doctor.repair.transaction import is_core

    return is_core(move.name) or move.name in {name_of(r) for r in made.request.roots}


def _move(move: Move) -> str:
    from doctor.repair.transaction import is_core

    mark = "  (downgrade)" if move.is_downgrade and is_core(move.name) else ""
    return f"{move.old or '-'} → {move.new or 'removed'}{mark}"


def install_lines(
    resolution: Resolution, installer: Installer, shell: Mapping[str, str], prefix: Path
) -> Iterator[str]:
    """The lines of a script that installs exactly what was resolved. `shell`: the variables that
    the person has; `prefix`: of the target."""
    from doctor.redact import redact
    from doctor.repair.index import source_of

    if not resolution.requirements:
        return
    yield "requirements=$(mktemp)"
    yield "trap 'rm -f \"$requirements\"' EXIT"
    yield "cat > \"$requirements\" <<'EOF'"
    yield from resolution.requirements.splitlines()
    yield "EOF"
    options, secrets = ["--no-deps", "--require-hashes"], []
    if resolution.index.no_index:
        options += ["--no-index"]
    for number, (option, url) in enumerate(_sources(resolution.index), 1):
        if redact(url) == url:
            options += [option, url]
            continue
        # What the script executes has to be the URL itself; what it says is where that is.
        source = source_of(url, shell, prefix)
        name = source if source and shell.get(source, "").strip() == url else None
        if name is None and source and installer.own_pip and not source.startswith("UV_"):
            yield f"# Of {option}, pip's own configuration has a secret: {printable(source)}."
            continue
        name = name or f"INDEX_{number}"
        yield f"# {printable(redact(url))}"
        yield f': "${{{name}:?has to be set to the URL above, with its secret}}"'
        secrets.append(f'{option} "${name}"')
    line = installer.line("install", tuple(options))
    yield " ".join([line, *secrets, '-r "$requirements"'])


def _sources(index: PackageIndex) -> Iterator[tuple[str, str]]:
    """What pip and uv call the places of an index, and their URLs."""
    if index.url and not index.no_index:
        yield "--index-url", index.url
    for url in () if index.no_index else index.extra:
        yield "--extra-index-url", url
    for url in index.find_links:
        yield "--find-links", url
