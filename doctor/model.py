"""What a diagnosis is made of: frozen data that imports nothing of ours but how it
is frozen."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import ClassVar, Protocol

from doctor.frozen import dataclass


class Text:
    """A sentence for a person: a literal template and its values, put together only when shown.

    Programs read `values`, tests compare `str(text)`, a translation replaces `template`.
    Equal where what they show is equal.
    """

    __slots__ = ("template", "values")

    def __init__(self, template: str, /, **values: object) -> None:
        self.template = template
        self.values: Mapping[str, object] = values

    def __str__(self) -> str:
        return self.template.format(**{k: printable(v) for k, v in self.values.items()})

    def __repr__(self) -> str:
        return f"Text({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Text) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))


def printable(value: object) -> str:
    """`value` as text that cannot drive a terminal: control characters and lone surrogates
    (bytes of a path that are not UTF-8) become `\\x..` escapes; lists are joined by commas."""
    if isinstance(value, (tuple, list, frozenset, set)):
        return ", ".join(printable(v) for v in value)
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"\\x{_code(c):02x}" for c in text)


def shortened(text: str, most: int) -> str:
    """The text, its middle left out where it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"


def os_reason(error: OSError) -> str:
    """Why the system refused, in its own few words."""
    return (error.strerror or str(error)).lower()


def os_refusal(error: OSError) -> str:
    """What it refused, and why; of a full disk it names no file."""
    return f"{error.filename or 'the disk'}: {os_reason(error)}"


def _code(character: str) -> int:
    """The byte that a lone surrogate stands for (PEP 383); otherwise the code point."""
    code = ord(character)
    return code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code


class Severity(str, Enum):
    """How much a finding matters. Ordered: `rank` grows with it."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def rank(self) -> int:
        return _RANKS[self]


_RANKS = {Severity.INFO: 0, Severity.WARNING: 1, Severity.ERROR: 2}


class Stage(int, Enum):
    """The moment of the server's start at which an ailment stops it.

    The earliest one is the primary cause: until it is fixed, the others cannot be seen.
    The order is that of vLLM 0.22's start and of FlashInfer's build.
    """

    INSTALL = 0  # vLLM is not there
    IMPORT = 1  # torch and vLLM's extensions load
    DEVICE = 2  # the driver is found
    MODEL = 3  # the model's configuration is read
    GPUS = 4  # ranks are placed on GPUs, weights are loaded
    HOST_COMPILER = 5  # Triton builds its launcher with the C compiler
    TOOLKIT = 6  # FlashInfer looks for nvcc and ninja
    COMPILE = 7  # nvcc compiles a kernel
    LINK = 8  # c++ links it
    LOAD = 9  # the kernel is loaded, or an old one from the cache
    SHELL = 10  # nothing stops; a person should know


class Verdict(str, Enum):
    """What a rule came to."""

    OK = "ok"
    FOUND = "found"
    UNKNOWN = "unknown"
    CRASHED = "crashed"


class Role(str, Enum):
    PRIMARY = "primary"
    CONTRIBUTING = "contributing"


class Needs(str, Enum):
    """Whose consent a fix needs: none but `--apply`, an explicit yes, or a person's own hands."""

    SAFE = "safe"
    ASK = "ask"
    PERSON = "person"


NO_MODEL = Text("no model was named")


class Fact:
    """Base of what a probe finds out: a frozen dataclass of versions, paths, tuples, Facts.

    `since`: the doctor that first asked for it. A snapshot of an older one has no answer, and the
    rules that want it are not checked there. A fact may have a `doubt`, a Text: an error that rests
    on it is inconclusive. `dispensable`: who can do without it gets None also where nobody looked.
    """

    __slots__ = ()
    since: ClassVar[str] = "0.1.0"
    dispensable: ClassVar[bool] = False


class Again(Protocol):
    """Says a command of the doctor's own as one line: of the same target and settings as the one
    that runs, with `words` beside them."""

    def __call__(self, verb: str, *words: str) -> str: ...


def plainly(verb: str, *words: str) -> str:
    """The command by itself: what is said where no command line is known."""
    return shlex.join(["vllm-doctor", verb, *words])


@dataclass(frozen=True)
class Installer:
    """How a person works on the target: with its own pip, or uv where it has none, and with
    commands of the doctor's, which `again` says."""

    python: Path
    own_pip: bool
    again: Again = plainly

    def line(self, verb: str, words: tuple[str, ...]) -> str:
        """A POSIX shell line, quoted; `verb` is install or uninstall."""
        python = str(self.python)
        if self.own_pip:
            # pip asks before it removes, and would take the next pasted line for the answer.
            yes = ["-y"] if verb == "uninstall" else []
            return shlex.join([python, "-m", "pip", verb, *yes, *words])
        return shlex.join(["uv", "pip", verb, "--python", python, *words])


class Step:
    """Base of one thing a fix does, a frozen dataclass; `str` gives its short form."""

    __slots__ = ()
    kind: ClassVar[str]

    def commands(self, installer: Installer) -> tuple[str, ...]:
        """The POSIX shell lines that do the same, quoted, for a person."""
        raise NotImplementedError


@dataclass(frozen=True)
class Fix:
    """One way to fix a finding: what it does, and its steps in order."""

    title: Text
    steps: tuple[Step, ...]
    needs: Needs = Needs.SAFE

    def commands(self, installer: Installer) -> tuple[str, ...]:
        """The POSIX shell lines that do all its steps."""
        return tuple(line for step in self.steps for line in step.commands(installer))


@dataclass(frozen=True)
class Finding:
    """What is wrong in one sentence, how we know, and what to do, best first.

    `severity` replaces the rule's own where one case of an ailment matters less than another.
    `subject`: what it is about, where a program has to tell the findings of one rule apart.
    """

    message: Text
    evidence: tuple[Text, ...] = ()
    fixes: tuple[Fix, ...] = ()
    severity: Severity | None = None
    subject: str | None = None


class Missing(Exception):
    """Raised by a probe that cannot tell, so that what rests on it is inconclusive. Never means
    "fine". Who asks for a fact and gets none, for whatever reason, catches this.

    `explained_by`: ids of ailments that, where found, already say why; the rules that wanted
    the fact are then not checked.
    """

    absent: ClassVar[bool] = True
    """False: nobody looked, so that it is not known to be absent, also where it is optional."""

    def __init__(self, reason: Text, explained_by: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.explained_by = explained_by


class NotApplicable(Missing):
    """Raised where the question does not arise (no GPU is needed, nothing is compiled): what rests
    on it is not checked, and nothing is left open by that."""

    def __init__(self, reason: Text) -> None:
        super().__init__(reason)


@dataclass(frozen=True)
class Rule:
    """A rule as loaded: its function's docstring is the explanation, the first line the title."""

    id: str
    severity: Severity
    stage: Stage
    title: str
    explanation: str
    area: str
    function: Callable[..., Finding | Iterable[Finding] | None]
    needs: tuple[tuple[str, type, bool], ...]  # parameter, fact class, optional


@dataclass(frozen=True)
class Outcome:
    """What one rule came to. `why` says what kept it from telling, or how it crashed; `accepted`:
    a person said to go on all the same."""

    rule: Rule
    verdict: Verdict
    findings: tuple[Finding, ...] = ()
    why: Text | None = None
    accepted: bool = False

    @property
    def severity(self) -> Severity:
        """The gravest of the findings; the rule's own where there is none."""
        found = [f.severity or self.rule.severity for f in self.findings]
        return max(found, key=lambda s: s.rank, default=self.rule.severity)


@dataclass(frozen=True)
class NotChecked:
    """A rule whose question did not arise, or is already answered by another finding."""

    rule: Rule
    why: Text
