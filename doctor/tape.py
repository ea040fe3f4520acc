"""A recorded machine: a Target that answers from a recording, and one that makes it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, TypeVar

from packaging.version import Version

from doctor.codec import CodecError, decode, encode
from doctor.elf import Elf
from doctor.frozen import dataclass
from doctor.model import Fact, Missing, NotApplicable, Text
from doctor.numbers import YEAR_10000, version_of
from doctor.safetensors import Header
from doctor.target import READ_MOST, Ran, Stat, Target

A = TypeVar("A")
Searches = Mapping[str, Mapping[str, tuple[str, ...] | None]]


class NotRecorded(Missing):
    """A snapshot was asked what it does not contain, though it was asked for the fact."""

    absent = False

    def __init__(self, what: str, searches: Searches | None = None) -> None:
        super().__init__(Text("this snapshot does not contain {what}", what=what))
        self.searches: Searches = searches or {}
        """Where a search is lacking: all that it contains, by path and pattern."""


class NotAskedThen(NotApplicable):
    """A snapshot was asked for a fact that the doctor which recorded it did not ask for: that is no
    gap, and says nothing of the machine."""

    absent = False

    def __init__(self, tool: str) -> None:
        super().__init__(Text("recorded by {tool}, before this check existed", tool=tool))


class OfAnotherModel(NotRecorded, NotApplicable):
    """A snapshot was asked for what only one that was made for the same model can contain."""

    def __init__(self, model: str) -> None:
        why = Text("this snapshot was made for another model than {model}", model=model)
        Missing.__init__(self, why)
        self.searches = {}


TAPE_VERSION = 1


@dataclass(frozen=True)
class RunRecord:
    argv: tuple[str, ...]
    ran: Ran


@dataclass(frozen=True)
class Recording:
    """A recorded machine: every question that was asked of it, and its answer. `env` has the
    variables whose values are judged; `env_names` names all that were set of the families that
    change a server: judged is whether they are known. `recorded`: when, in seconds
    since 1970; `host`: its name, where whoever recorded it wanted it kept. `asked`: the facts that
    it was asked for; None of a doctor before 0.5, which asked for all that it knew."""

    schema_version: int
    tool: str
    python: str
    found_by: str
    env: dict[str, str]
    env_names: tuple[str, ...] = ()
    runs: tuple[RunRecord, ...] = ()
    read: dict[str, str | None] = field(default_factory=dict)
    search: dict[str, dict[str, tuple[str, ...] | None]] = field(default_factory=dict)
    listdir: dict[str, tuple[str, ...] | None] = field(default_factory=dict)
    stat: dict[str, Stat | None] = field(default_factory=dict)
    executable: dict[str, bool] = field(default_factory=dict)
    realpath: dict[str, str] = field(default_factory=dict)
    elf: dict[str, Elf | None] = field(default_factory=dict)
    tensors: dict[str, Header | None] = field(default_factory=dict)
    recorded: float | None = None
    host: str | None = None
    asked: tuple[str, ...] | None = None


class Tape:
    """Answers from a Recording; raises NotRecorded for what it was never asked."""

    def __init__(self, recording: Recording) -> None:
        self._tape = recording
        self._runs = {r.argv: r.ran for r in recording.runs}

    @property
    def env(self) -> Mapping[str, str]:
        return self._tape.env

    @property
    def hidden(self) -> tuple[str, ...]:
        return tuple(name for name in self._tape.env_names if name not in self._tape.env)

    def recorder_without(self, kind: type[Fact]) -> str | None:
        """The doctor that recorded this, where it did not know this fact. `asked` alone may not
        say so of a fact of ours: who leaves one out of it has no snapshot of a healthy machine."""
        asked, recorder = self._tape.asked, version_of(self._tape.tool.rpartition(" ")[2])
        if asked is not None and kind.__name__ in asked:
            return None
        of_a_site = asked is not None and not kind.__module__.startswith("doctor.")
        older = recorder is not None and recorder < Version(kind.since)
        return self._tape.tool if of_a_site or older else None

    def run(self, *argv: str, timeout: float = 10.0, env: Mapping[str, str] | None = None) -> Ran:
        try:
            return self._runs[argv]
        except KeyError:
            raise NotRecorded(f"a run of {argv[0]}") from None

    def distrust(self, path: Path, searched: bool = False) -> Text | None:
        return None  # nothing is run

    def read(self, path: Path, limit: int = READ_MOST) -> bytes | None:
        text = _answer(self._tape.read, path)
        return None if text is None else text.encode("utf-8", "surrogateescape")

    def search(self, path: Path, pattern: str) -> tuple[str, ...] | None:
        answers = self._tape.search.get(str(path), {})
        if pattern not in answers:
            raise NotRecorded(str(path), self._tape.search)
        return answers[pattern]

    def listdir(self, path: Path) -> tuple[str, ...] | None:
        return _answer(self._tape.listdir, path)

    def stat(self, path: Path) -> Stat | None:
        return _answer(self._tape.stat, path)

    def executable(self, path: Path) -> bool:
        return _answer(self._tape.executable, path)

    def realpath(self, path: Path) -> Path:
        return Path(_answer(self._tape.realpath, path))

    def elf(self, path: Path) -> Elf | None:
        return _answer(self._tape.elf, path)

    def tensors(self, path: Path) -> Header | None:
        return _answer(self._tape.tensors, path)


def _answer(answers: Mapping[str, A], key: Path | str) -> A:
    try:
        return answers[str(key)]
    except KeyError:
        raise NotRecorded(str(key)) from None


class Recorder:
    """A Target that notes every question and answer of another one."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._runs: dict[tuple[str, ...], Ran] = {}
        self._notes: dict[str, dict[str, Any]] = {}

    @property
    def env(self) -> Mapping[str, str]:
        return self._target.env

    @property
    def hidden(self) -> tuple[str, ...]:
        return self._target.hidden

    def run(self, *argv: str, timeout: float = 10.0, env: Mapping[str, str] | None = None) -> Ran:
        ran = self._runs[argv] = self._target.run(*argv, timeout=timeout, env=env)
        return ran

    def distrust(self, path: Path, searched: bool = False) -> Text | None:
        return self._target.distrust(path, searched)

    def read(self, path: Path, limit: int = READ_MOST) -> bytes | None:
        data = self._target.read(path, limit)
        text = None if data is None else data.decode("utf-8", "surrogateescape")
        self._note("read", path, text)
        return data

    def search(self, path: Path, pattern: str) -> tuple[str, ...] | None:
        found = self._target.search(path, pattern)
        self._notes.setdefault("search", {}).setdefault(str(path), {})[pattern] = found
        return found

    def listdir(self, path: Path) -> tuple[str, ...] | None:
        return self._note("listdir", path, self._target.listdir(path))

    def stat(self, path: Path) -> Stat | None:
        return self._note("stat", path, self._target.stat(path))

    def executable(self, path: Path) -> bool:
        return self._note("executable", path, self._target.executable(path))

    def realpath(self, path: Path) -> Path:
        real = self._target.realpath(path)
        self._note("realpath", path, str(real))
        return real

    def elf(self, path: Path) -> Elf | None:
        return self._note("elf", path, self._target.elf(path))

    def tensors(self, path: Path) -> Header | None:
        return self._note("tensors", path, self._target.tensors(path))

    def _note(self, method: str, path: Path, answer: A) -> A:
        self._notes.setdefault(method, {})[str(path)] = answer
        return answer

    def recording(
        self,
        tool: str,
        python: str,
        found_by: str,
        host: str | None = None,
        asked: Iterable[str] | None = None,
    ) -> dict[str, Any]:
        """The recording as JSON data, not yet to be shared (see `doctor.snapshot`). `asked`: the
        facts that were asked for."""
        return {
            "recorded": round(time.time()),
            "host": host,
            "asked": None if asked is None else list(asked),
            "schema_version": TAPE_VERSION,
            "tool": tool,
            "python": python,
            "found_by": found_by,
            "env": dict(self.env),
            "runs": [{"argv": list(a), "ran": encode(r)} for a, r in self._runs.items()],
            **encode(self._notes),
        }


def load_tape(data: Any) -> Recording:
    """A Recording from parsed JSON. Raises CodecError with one sentence for anything else."""
    if not isinstance(data, dict) or not isinstance(data.get("schema_version"), int):
        raise CodecError("", Text("not a snapshot of vllm-doctor (it has no schema_version)"))
    if data["schema_version"] > TAPE_VERSION:
        raise CodecError(
            "schema_version",
            Text(
                "the snapshot has version {version}, but this one reads up to {newest}; "
                "use a newer vllm-doctor",
                version=data["schema_version"],
                newest=TAPE_VERSION,
            ),
        )
    made: Recording = decode(Recording, data)
    if made.recorded is not None and not 0 <= made.recorded < YEAR_10000:
        said = Text("{time} is not a time in seconds since 1970", time=f"{made.recorded:g}")
        raise CodecError("recorded", said)
    return made
