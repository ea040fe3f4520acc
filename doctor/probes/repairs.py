"""Repairs of this target that were begun and not ended."""

from __future__ import annotations

import contextlib
from pathlib import Path

from doctor.codec import parse_json
from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact, Missing, Text
from doctor.numbers import number_of
from doctor.probes.environment import HOME
from doctor.probes.interpreter import Interpreter
from doctor.target import Target

RUNS = HOME / "runs"
LOCK = HOME / "lock"
JOURNAL = "journal.json"
MANIFEST = "manifest.json"
UNFINISHED = ("applying", "undoing")
FINISHED = ("applied", "kept")


@dataclass(frozen=True)
class Repairs(Fact):
    """`unfinished`: runs that say they are not at their end, oldest first; `at_work`: the process
    of another doctor that is repairing this target now."""

    unfinished: tuple[str, ...] = ()
    at_work: int | None = None


@probe
def repairs(target: Target, interpreter: Interpreter) -> Repairs:
    """From the journals that `vllm-doctor fix` keeps below the prefix. A folder without a journal
    is no run: nothing is changed before there is one. Raises Missing where one is lost or damaged:
    what was changed is then not known."""
    folder = interpreter.prefix / RUNS
    unfinished = []
    for run in target.listdir(folder) or ():
        path = folder / run / JOURNAL
        if target.stat(path):
            if _state(target, path) in UNFINISHED:
                unfinished.append(run)
        elif any(
            target.stat(folder / run / number / MANIFEST)
            for number in target.listdir(folder / run) or ()
        ):
            raise Missing(Text("{path} is gone, and changes were made", path=path))
    if not unfinished:
        return Repairs()
    words = (target.read(interpreter.prefix / LOCK) or b"").decode("ascii", "replace").split()
    process_id = number_of(words[0]) if words else None
    if process_id is None:
        return Repairs(tuple(unfinished))
    process = Path("/proc") / str(process_id)
    if target.realpath(Path("/proc/self")) == process:
        return Repairs()  # our own, which judges what it has done so far
    # The lock of a doctor that was killed is still there, and another process may have the number.
    started = target.read(process / "cmdline") or b""
    return Repairs(tuple(unfinished), process_id if b"doctor" in started else None)


def _state(target: Target, path: Path) -> str:
    with contextlib.suppress(ValueError, TypeError, KeyError):
        state = parse_json(target.read(path) or b"")["state"]
        if state in (*UNFINISHED, *FINISHED):
            return str(state)
    raise Missing(Text("{path} cannot be read", path=path))
