"""The committed snapshots, and how a new check is asked of them without the machines they are of.

Laid under every one of them is fixtures/answers.json: a new probe's questions, with the answers
that such a machine gives, and the names of the facts that are asked for. It is JSON of the form of
a snapshot, of which only `asked` and the sections of answers are needed.

    python -m tests.tapes

writes into the snapshots what lies under them, and what the wheels of the versions that each names
say (of vLLM, transformers and FlashInfer): so far as every probe of today is answered by that, the
snapshot was asked for its fact.
"""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from doctor.engine import Crashed, Facts
from doctor.model import Missing
from doctor.probes.driver import DeepAsked
from doctor.probes.interpreter import FoundBy, Interpreter, Where, recorded_where
from doctor.probes.wheels import Packages
from doctor.profile import DEFAULT_PROFILE, ServeRequest, load_profile
from doctor.snapshot import ask_everything
from doctor.tape import NotAskedThen, NotRecorded, Recorder, Tape, load_tape
from doctor.target import READ_MOST, Stat
from tests.assumptions.wheels import Wheels

FIXTURES = Path(__file__).parent.parent / "fixtures"
TAPES = sorted((FIXTURES / "tapes").glob("*.json"))
ANSWERS = FIXTURES / "answers.json"
_SECTIONS = ("read", "listdir", "stat", "executable", "realpath", "elf", "tensors")
_WHEELS = ("vllm", "transformers", "flashinfer-python")

A = TypeVar("A")


def answers() -> dict[str, Any]:
    """What is laid under every snapshot."""
    made: dict[str, Any] = json.loads(ANSWERS.read_text(encoding="utf-8"))
    return made


def laid_over(recording: Mapping[str, Any], under: Mapping[str, Any]) -> dict[str, Any]:
    """A snapshot that answers from `under` where it has no answer of its own, and was asked for
    what that was asked for too."""
    made = dict(recording)
    for name in _SECTIONS:
        made[name] = {**under.get(name, {}), **recording.get(name, {})}
    made["search"] = dict(recording.get("search", {}))
    for path, answers in under.get("search", {}).items():
        made["search"][path] = {**answers, **made["search"].get(path, {})}
    known = [run["argv"] for run in recording.get("runs", ())]
    more = [run for run in under.get("runs", ()) if run["argv"] not in known]
    made["runs"] = [*recording.get("runs", ()), *more]
    if recording.get("asked") is not None:
        made["asked"] = sorted({*recording["asked"], *under.get("asked", ())})
    return made


def with_answers(tape: Path, folder: Path) -> Path:
    """The snapshot over what is laid under all of them, in `folder`."""
    made = folder / tape.name
    data = laid_over(json.loads(tape.read_text(encoding="utf-8")), answers())
    made.write_text(json.dumps(data), encoding="utf-8")
    return made


class Completed(Tape):
    """A snapshot that answers out of wheels what it does not contain of their packages."""

    def __init__(self, recording: Mapping[str, Any], wheels: Wheels, local: Path) -> None:
        super().__init__(load_tape(dict(recording)))
        self._wheels, self._local = wheels, local
        where = Where(Path(recording["python"]), FoundBy.OPTION)
        facts = Facts(self, (where, ServeRequest(load_profile(DEFAULT_PROFILE))))
        self.site = next(p for p in facts.get(Interpreter).site_packages if self.listdir(p))
        for name in _WHEELS:
            one = facts.get(Packages).installed[name]
            wheels.add(name, str(one.version))

    def _else(self, ask: Callable[[], A], path: Path, wheels: Callable[[Path], A]) -> A:
        try:
            return ask()
        except NotRecorded:
            inside = path.is_relative_to(self.site) and path.relative_to(self.site).parts
            if not inside or inside[0] not in ("vllm", "transformers", "flashinfer"):
                raise
            return wheels(self._local / path.relative_to(self.site))

    def read(self, path: Path, limit: int = READ_MOST) -> bytes | None:
        return self._else(lambda: Tape.read(self, path, limit), path, self._wheels.read)

    def search(self, path: Path, pattern: str) -> tuple[str, ...] | None:
        ask = functools.partial(super().search, path, pattern)
        return self._else(ask, path, lambda p: self._wheels.search(p, pattern))

    def listdir(self, path: Path) -> tuple[str, ...] | None:
        return self._else(lambda: Tape.listdir(self, path), path, self._wheels.listdir)

    def stat(self, path: Path) -> Stat | None:
        return self._else(lambda: Tape.stat(self, path), path, self._wheels.stat)


def complete(recording: dict[str, Any]) -> dict[str, Any]:
    """The snapshot with all that it can be asked for now. Raises as `online.wheel` does."""
    with contextlib.ExitStack() as closing:
        local = Path(closing.enter_context(tempfile.TemporaryDirectory()))
        target = Recorder(Completed(recording, Wheels(local, closing), local))
        where = recorded_where(recording["python"], recording["found_by"])
        facts = Facts(target, (where, ServeRequest(load_profile(DEFAULT_PROFILE)), DeepAsked()))
        asked = [name for name in ask_everything(facts) if _is_answered(facts, name)]
        made = target.recording(recording["tool"], recording["python"], recording["found_by"])
    fresh = {name: made[name] for name in (*_SECTIONS, "search", "runs")}
    return {**laid_over(recording, fresh), "asked": asked}


def _is_answered(facts: Facts, name: str) -> bool:
    (kind,) = (kind for kind in facts.registry.kinds() if kind.__name__ == name)
    try:
        facts.get(kind)
    except (NotRecorded, NotAskedThen):
        return False
    except (Missing, Crashed):
        return True
    return True


def main() -> None:
    for path in TAPES:
        recording = laid_over(json.loads(path.read_text(encoding="utf-8")), answers())
        made = complete(recording)
        path.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(f"{path.name}: asked for {len(made['asked'])} facts")


if __name__ == "__main__":
    main()
