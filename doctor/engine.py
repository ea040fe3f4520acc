"""Loads rules, reads their annotations, resolves facts (lazily, once), and checks.

An annotation is the only statement of a need: a probe is found by what it returns, a rule gets
what its parameters name, and `X | None` means "run me without it too".
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import re
import sys
import threading
import traceback
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from doctor.errors import DoctorError
from doctor.exits import UNKNOWN
from doctor.model import (
    Fact,
    Finding,
    Missing,
    NotApplicable,
    NotChecked,
    Outcome,
    Rule,
    Severity,
    Stage,
    Text,
    Verdict,
)
from doctor.tape import NotAskedThen, NotRecorded, Tape
from doctor.target import Target, must_read

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T", bound=Fact)

_ID = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_RULES_MOST = 4 << 20  # bytes of a file of rules; our longest is 23 KiB


class Registry:
    """What finds out each fact. `base`: the one that is asked for what this one has not."""

    def __init__(self, base: Registry | None = None) -> None:
        self._probes: dict[type[Fact], Callable[..., Any]] = {}
        self._base = base

    def probe(self, function: F) -> F:
        """Registers `function` as what finds out the Fact of its return annotation. Raises
        TypeError where another file has one for it."""
        kind = _returned(function)
        first = self.find(kind) or function
        if first.__code__.co_filename != function.__code__.co_filename:
            where = " and ".join(one.__code__.co_filename for one in (first, function))
            raise TypeError(f"{where} both have a probe of {kind.__name__}")
        self._probes[kind] = function
        return function

    def find(self, kind: type) -> Callable[..., Any] | None:
        """The probe of a fact, None where there is none."""
        return self._probes.get(kind) or (self._base.find(kind) if self._base else None)

    def kinds(self) -> tuple[type[Fact], ...]:
        """The facts that can be found out, in the order in which they were registered."""
        base = self._base.kinds() if self._base else ()
        return tuple(dict.fromkeys((*base, *self._probes)))

    def needs(self, kind: type) -> Iterator[tuple[str, Any, bool]]:
        """(parameter, fact class, optional) of what the probe of `kind` asks for. Raises TypeError
        for a parameter that names no fact."""
        function = self.find(kind)
        return iter(_parameters(function) if function else ())


class Sealed(Registry):
    """A registry with the probes of these facts alone; who asks for another one is told `why`."""

    def __init__(self, base: Registry, kinds: Collection[type[Fact]], why: NotApplicable) -> None:
        super().__init__(base)

        def refuse() -> NoReturn:
            raise why

        self._kinds, self._refuse = kinds, refuse

    def find(self, kind: type) -> Callable[..., Any] | None:
        return super().find(kind) if kind in self._kinds else self._refuse


def _returned(function: Callable[..., Any]) -> Any:
    """The class of its return annotation; the other annotations are for who asks for the fact."""
    name = function.__annotations__.get("return")
    kind = function.__globals__.get(name) if isinstance(name, str) else name
    return _hints(function)["return"] if kind is None else kind


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(function)


REGISTRY = Registry()
"""The doctor's own."""
probe = REGISTRY.probe


def rule(id: str, severity: Severity, stage: Stage) -> Callable[[F], F]:
    """Marks a function as the rule of the ailment `id`; returns the function itself.

    It returns (or yields) Findings; none means fine. Its docstring explains the ailment.
    """

    def mark(function: F) -> F:
        # Called, so that a value that is none is refused here and not in a report.
        function.__rule__ = (id, Severity(severity), Stage(stage))  # type: ignore[attr-defined]
        return function

    return mark


class Crashed(DoctorError):
    """A probe raised what it should not; the message names it and the place."""

    def __init__(self, text: Text) -> None:
        super().__init__(text, UNKNOWN)


def place(error: BaseException, function: Callable[..., Any] | None = None) -> str:
    """An exception in one line: its kind, its words, and where it was raised; of a function, the
    last line of its own file that it came through, or where the function begins."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [(frame.filename, frame.lineno) for frame in frames]
    if function:
        code = function.__code__
        begins = (code.co_filename, code.co_firstlineno)
        places = [begins, *(row for row in places if row[0] == code.co_filename)]
    file, line = places[-1]
    return f"{type(error).__name__}: {error} ({Path(file).name}:{line})"


def _parameters(function: Callable[..., Any]) -> Iterable[tuple[str, Any, bool]]:
    """(name, fact class, optional) of each parameter. Raises TypeError for one that names none."""
    hints, code = _hints(function), inspect.unwrap(function).__code__
    for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
        hint = hints.get(name)
        optional = typing.get_origin(hint) in (typing.Union, types.UnionType)
        kinds = [k for k in typing.get_args(hint) if k is not type(None)] if optional else [hint]
        if len(kinds) != 1 or not (kinds[0] is Target or _is_fact(kinds[0])):
            raise TypeError(f"the parameter {name} is annotated with no fact, and no fact | None")
        yield name, kinds[0], optional


def _is_fact(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Fact)


class Facts:
    """The facts about one target: each found out at most once, when first asked for."""

    def __init__(
        self, target: Target, given: Iterable[Fact] = (), registry: Registry = REGISTRY
    ) -> None:
        self.target = target
        self.registry = registry
        self._known: dict[type, Fact | Missing | Crashed] = {type(f): f for f in given}
        self._locks: dict[type, threading.RLock] = {}
        self._ahead: set[type[Fact]] = set()
        self._thread = threading.local()

    def given(self, fact: Fact) -> Facts:
        """The same, with this one given: what rests on another one of its type is found out anew,
        all else that is known stays known."""
        kind = type(fact)
        if self._known.get(kind) == fact:
            return self
        for one in self._ahead:
            self._try(one)
        made = Facts(self.target, (), self.registry)
        rest = self._resting_on({kind}, self._known)
        made._known = {k: v for k, v in self._known.items() if k not in rest} | {kind: fact}
        return made

    def get(self, kind: type[T]) -> T:
        """The fact. Raises Missing with the reason where the probe cannot tell, Crashed where
        it (or one that it needs) broke."""
        with self._locks.setdefault(kind, threading.RLock()):  # one lock, whoever comes first
            if kind not in self._known:
                self._known[kind] = self._ask(kind)
        known = self._known[kind]
        if isinstance(known, (Missing, Crashed)):
            raise known
        return typing.cast("T", known)

    def ask_ahead(self, *kinds: type[Fact]) -> None:
        """Begins to find these out in the background, so that children which only wait for a
        driver or a compiler run side by side; `get` then waits for them."""
        self._ahead.update(kinds)
        for kind in kinds:
            threading.Thread(target=self._try, args=(kind,), daemon=True).start()

    def _try(self, kind: type[Fact]) -> None:
        with contextlib.suppress(Missing, Crashed):
            self.get(kind)

    def awaited(self, kinds: Iterable[type]) -> frozenset[type]:
        """Those of the kinds that rest on what is still being found out in the background."""
        awaited = {kind for kind in self._ahead if kind not in self._known}
        return self._resting_on(awaited, kinds, self._known)

    def _resting_on(
        self, roots: Collection[type], kinds: Iterable[type], ends: Collection[type] = ()
    ) -> frozenset[type]:
        """Those of the kinds that are one of the roots or ask for one, directly or not; what is one
        of `ends` asks for nothing."""
        rests: dict[type, bool] = {}

        def look(kind: type) -> bool:
            if kind not in rests:
                rests[kind] = kind in roots  # and so a circle ends
                needed = () if kind in ends else self.registry.needs(kind)
                rests[kind] = kind in roots or any(look(need) for _, need, _ in needed)
            return rests[kind]

        return frozenset(kind for kind in kinds if look(kind))

    def _ask(self, kind: type[Fact]) -> Fact | Missing | Crashed:
        asking: list[type] = self._thread.__dict__.setdefault("asking", [])
        if kind in asking:
            names = " -> ".join(k.__name__ for k in [*asking, kind])
            return Crashed(Text("probes ask each other in a circle: {names}", names=names))
        function = self.registry.find(kind)
        if function is None:
            return Crashed(Text("no probe returns {kind}", kind=kind.__name__))
        asking.append(kind)
        try:
            arguments = self.arguments(_parameters(function))
            try:
                return typing.cast("Fact", function(**arguments))
            except NotRecorded as gap:
                return self._too_old_for(kind) or gap
            except Missing as missing:
                _must_show(missing.reason)
                raise
        except (Missing, Crashed) as answer:
            return answer
        except (Exception, SystemExit) as error:
            why = place(error, function)
            return Crashed(Text("the probe of {kind} crashed: {why}", kind=kind.__name__, why=why))
        finally:
            asking.pop()

    def _too_old_for(self, kind: type[Fact]) -> NotAskedThen | None:
        """Why a snapshot has no answer to what this fact's own probe asks: it was not asked for."""
        tape = self.target if isinstance(self.target, Tape) else None
        recorder = tape.recorder_without(kind) if tape else None
        return NotAskedThen(recorder) if recorder else None

    def arguments(self, parameters: Iterable[tuple[str, Any, bool]]) -> dict[str, Any]:
        """Keyword arguments for a probe or a rule. Raises as `get` does."""
        made: dict[str, Any] = {}
        for name, kind, optional in parameters:
            if kind is Target:
                made[name] = self.target
                continue
            try:
                made[name] = self.get(kind)
            except Missing as missing:
                if not optional or not (missing.absent or kind.dispensable):
                    raise
                made[name] = None
        return made


def load_rules(folder: Path) -> tuple[Rule, ...]:
    """The rules of every `*.py` in `folder`, files by name, rules as written.

    Raises RuleError where the folder holds none, a file cannot be loaded, or an id is there twice.
    """
    rules: dict[str, Rule] = {}
    for path in sorted(folder.glob("*.py")):
        for made in _rules_of(path):
            if made.id in rules:
                line = made.function.__code__.co_firstlineno
                said = Text("{path}:{line}: duplicate rule {id}", path=path, line=line, id=made.id)
                raise RuleError(said)
            rules[made.id] = made
    if not rules:
        raise RuleError(Text("{folder} contains no rules", folder=folder))
    return tuple(rules.values())


class RuleError(DoctorError):
    """Rules that cannot be loaded; one sentence."""

    def __init__(self, text: Text) -> None:
        super().__init__(text, UNKNOWN)


class _Loader(SourceFileLoader):
    """Of a file of rules: a fifo or two gigabytes of that name are refused."""

    def get_data(self, path: str) -> bytes:
        return must_read(Path(path), _RULES_MOST)


def _rules_of(path: Path) -> Iterable[Rule]:
    name = f"_vllm_doctor_rules.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_Loader(name, str(path)))
    if spec is None or spec.loader is None:
        raise RuleError(Text("{path} is not a Python file", path=path))
    module = importlib.util.module_from_spec(spec)
    writes = sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # a diagnosis writes nothing, beside a site's rules least of all
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        for function in vars(module).values():
            mark = getattr(function, "__rule__", None)
            if mark is not None and function.__module__ == name:
                yield _rule(path, function, *mark)
    except RuleError:
        raise
    except (Exception, SystemExit) as error:
        said = Text("{path} cannot be loaded: {why}", path=path, why=place(error))
        raise RuleError(said) from error
    finally:
        sys.dont_write_bytecode = writes


def _rule(
    path: Path, function: Callable[..., Any], id: str, severity: Severity, stage: Stage
) -> Rule:
    at = Text("{path}:{line}: rule {id}", path=path, line=function.__code__.co_firstlineno, id=id)
    if not _ID.fullmatch(id):
        said = Text("{at}: an id is lower-case letters and digits, joined by dashes", at=at)
        raise RuleError(said)
    explanation = inspect.cleandoc(function.__doc__ or "")
    if not explanation:
        raise RuleError(Text("{at} has no docstring that explains it", at=at))
    title = explanation.partition("\n")[0].rstrip(".")
    try:
        needs = tuple(_parameters(function))
    except TypeError as error:
        raise RuleError(Text("{at}: {error}", at=at, error=error)) from None
    return Rule(id, severity, stage, title, explanation, path.stem, function, needs)


def check(rules: Iterable[Rule], facts: Facts) -> tuple[list[Outcome], list[NotChecked]]:
    """Runs every rule, those last that would only wait for what is found out in the background.
    What a finding already explains, or what does not arise here, is not checked; what could not be
    told for any other reason is an UNKNOWN outcome."""
    rules = tuple(rules)
    late = facts.awaited({kind for one in rules for _, kind, _ in one.needs})
    answers: dict[int, Outcome | Missing] = {}
    for i in sorted(range(len(rules)), key=lambda i: any(k in late for _, k, _ in rules[i].needs)):
        try:
            answers[i] = _judge(rules[i], facts)
        except Missing as missing:
            answers[i] = missing
    told = [answers[i] for i in range(len(rules))]
    outcomes = [answer for answer in told if isinstance(answer, Outcome)]
    waiting = [(r, a) for r, a in zip(rules, told, strict=True) if isinstance(a, Missing)]
    found = {o.rule.id for o in outcomes if o.verdict is Verdict.FOUND}
    not_checked = []
    for one, answer in waiting:
        if isinstance(answer, NotApplicable) or found.intersection(answer.explained_by):
            not_checked.append(NotChecked(one, answer.reason))
        else:
            outcomes.append(Outcome(one, Verdict.UNKNOWN, why=answer.reason))
    return outcomes, not_checked


def _judge(one: Rule, facts: Facts) -> Outcome:
    try:
        arguments = facts.arguments(one.needs)
        findings = _findings(one, arguments)
    except Missing:
        raise
    except Crashed as crash:
        return Outcome(one, Verdict.CRASHED, why=crash.text)
    except (Exception, SystemExit) as error:
        return Outcome(one, Verdict.CRASHED, why=Text("{place}", place=place(error, one.function)))
    made = Outcome(one, Verdict.FOUND if findings else Verdict.OK, findings)
    doubts = [doubt for fact in arguments.values() if (doubt := getattr(fact, "doubt", None))]
    if findings and doubts and made.severity is Severity.ERROR:
        return Outcome(one, Verdict.UNKNOWN, why=doubts[0])
    return made


def _findings(one: Rule, arguments: Mapping[str, Any]) -> tuple[Finding, ...]:
    """What the rule finds. Raises what it raises, and TypeError, here and not in a report, for what
    cannot be shown."""
    try:
        answer = one.function(**arguments)
        findings = (answer,) if isinstance(answer, Finding) else tuple(answer or ())
    except Missing as missing:
        _must_show(missing.reason)
        raise
    for finding in findings:
        if not isinstance(finding, Finding):
            raise TypeError(f"a rule returned {finding!r}, which is no Finding")
        _must_show(finding.message, *finding.evidence, *(fix.title for fix in finding.fixes))
    return findings


def _must_show(*texts: object) -> None:
    for text in texts:
        if not isinstance(text, Text):
            raise TypeError(f"{text!r} is no Text")
        try:
            str(text)
        except (LookupError, ValueError) as error:
            raise TypeError(f"the template {text.template!r} lacks a value: {error}") from None
