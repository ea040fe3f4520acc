"""Whether the server is started: the judgement, proven where no earlier start has proven it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from doctor.diagnose import Question, Report, diagnose
from doctor.engine import Facts
from doctor.exits import HEALTHY
from doctor.model import Rule, Severity, Text, Verdict
from doctor.patience import AT_ONCE, Patience, busy_with
from doctor.probes.environment import LaunchEnv
from doctor.probes.interpreter import distrusted
from doctor.probes.repairs import LOCK
from doctor.serve.proofs import is_proven, proof_key, remember, toolchain
from doctor.target import Target


@dataclass(frozen=True)
class JudgedStart:
    """What a start is decided by. `refused`: why there is none, in a few words; `unproven`: the
    test build has still to be made (only where it was not to be made now)."""

    report: Report
    refused: Text | None = None
    unproven: bool = False


def judge_start(
    facts: Facts,
    rules: Sequence[Rule],
    question: Question,
    *,
    prove: bool,
    tell: Callable[[Text], None],
) -> JudgedStart:
    """Judges as `diagnose --deep` does, but builds only what no earlier start has proven, and
    nothing where `prove` is False. Raises Missing or Crashed where the interpreter does not answer.
    """
    target = facts.target
    report = diagnose(facts, rules, question)
    if report.exit_code != HEALTHY:
        return JudgedStart(report, _why(report))
    if foreign := distrusted(target, report.interpreter, report.facts.get(LaunchEnv).vars):
        return JudgedStart(report, foreign)
    prefix = report.interpreter.prefix
    key = proof_key(target, report.facts)
    if key is None or is_proven(target, prefix, key):
        return JudgedStart(report)
    if not prove:
        return JudgedStart(report, unproven=True)
    tell(Text("verifying: a test build and vLLM's imports; once, for up to a minute"))
    report = diagnose(report.facts, rules, dataclasses.replace(question, deep=True))
    if report.exit_code != HEALTHY:
        return JudgedStart(report, _why(report))
    builds = toolchain(target, report.facts) is not None
    if builds and report.proof is None and _UNPROVEN not in question.accept:
        why = Text(
            "the toolchain could not be verified: {why}; --accept {id} starts without that",
            why=report.proof_missing,
            id=_UNPROVEN,
        )
        return JudgedStart(report, why)
    keep(target, report)
    return JudgedStart(report)


def keep(target: Target, report: Report) -> None:
    """Remembers what a deep report proved, by the facts that it was made with. What failed and was
    accepted, or could not be tried, proves nothing."""
    imports, facts = report.imports, report.facts
    if imports is None or imports.failure or any(row.always for row in imports.died):
        return
    built = report.proof.ok if report.proof else toolchain(target, facts) is None
    if built and (key := proof_key(target, facts)):
        remember(target, report.interpreter.prefix, key)


_UNPROVEN = "deep-check-failed"


def _why(report: Report) -> Text:
    errors = (o for o in report.deciding(Verdict.FOUND) if o.severity is Severity.ERROR)
    found = [o.rule.id for o in errors]
    unknown = [o.rule.id for o in report.deciding(Verdict.UNKNOWN, Verdict.CRASHED)]
    if found and unknown:
        return Text("{found}; inconclusive: {unknown}", found=found, unknown=unknown)
    if unknown:
        return Text("inconclusive: {unknown}", unknown=unknown)
    return Text("{found}", found=found)


@contextlib.contextmanager
def undisturbed(prefix: Path, patience: Patience = AT_ONCE) -> Iterator[None]:
    """Keeps other doctors from changing the environment meanwhile (the lock of
    doctor.repair.state, which is there as long as one works). Raises Busy where one does, unless
    there is patience to wait for it.
    """
    handle = patience.get(lambda: _shared(prefix))
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _shared(prefix: Path) -> int | None:
    """The lock, held with others; None where no doctor is at work here, or one of a user whose lock
    we may not read. Raises Busy where a doctor holds it alone."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        handle = os.open(prefix / LOCK, flags)
    except OSError:
        return None
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise busy_with(prefix, handle) from None
    except BaseException:
        os.close(handle)
        raise
    return handle
