"""Repairs where the index, a signal or a kill gets in the way: healed, or exactly as before."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import quote

import psutil
import pytest

from tests.conftest import DOCTOR, HANG, Environment, Said, run_doctor
from tests.stand_ins import index as indexes
from tests.stand_ins.fixtures import FOR_H100, Bench, copied
from tests.stand_ins.index import Asked, Faults, Index
from tests.stand_ins.killer import BOUNDARIES, Call, Entry, Killed, run_killed, tree

OURS = "share/vllm-doctor"
Tree = dict[str, Entry]


def differing(was: Tree, now: Tree) -> dict[str, tuple[Entry | None, Entry | None]]:
    """The paths that are not the same: nothing, where all is as it was."""
    paths = sorted({*was, *now})
    return {p: (was.get(p), now.get(p)) for p in paths if was.get(p) != now.get(p)}


@dataclass
class Place:
    """One environment that every test gets anew, always at the same path: what `broken` and
    `healed` hold."""

    bench: Bench
    environment: Environment
    broken: Path
    was: Tree
    healed: Path

    @property
    def prefix(self) -> Path:
        return self.environment.prefix

    def lay_out(self, snapshot: Path) -> None:
        """In the very folder: a run of another one, a copy's original, would not be obeyed."""
        self.prefix.mkdir(exist_ok=True)
        for one in self.prefix.iterdir():
            if one.is_dir() and not one.is_symlink():
                shutil.rmtree(one)
            else:
                one.unlink()
        shutil.copytree(snapshot, self.prefix, symlinks=True, dirs_exist_ok=True)

    def run(self, command: str, *words: str, index: str, **variables: str) -> Said:
        about = FOR_H100 if command == "fix" else ()
        said = self.bench.doctor(
            command, *about, *words, index=index, environment=self.environment, **variables
        )
        assert "Traceback" not in said.err
        return said

    def apply(self, *words: str, index: str, **variables: str) -> Said:
        return self.run("fix", "--apply", "--format", "json", *words, index=index, **variables)

    def undo(self) -> Said:
        return self.run("undo", index="http://127.0.0.1:9/simple")

    def changed(self) -> dict[str, tuple[Entry | None, Entry | None]]:
        return differing(self.was, tree(self.prefix))

    def kill(self, command: str, at: int, when: Literal["before", "after"], index: str) -> Killed:
        about = ("--apply", "--format", "json", *FOR_H100) if command == "fix" else ()
        return run_killed(
            *(command, "--python", self.prefix, *about),
            at=at,
            when=when,
            functions=BOUNDARIES,
            below=self.prefix,
            env=self.bench.shell(index, self.environment),
        )


@pytest.fixture(scope="module")
def served(world: Path) -> Iterator[str]:
    """An index that always works."""
    with indexes.serve(world) as one:
        yield one.url


@pytest.fixture(scope="module")
def made(
    reference: Environment, bench: Bench, served: str, tmp_path_factory: pytest.TempPathFactory
) -> Place:
    at = tmp_path_factory.mktemp("faults")
    broken = copied(reference, at / "broken").prefix
    (broken / ".lock").unlink(missing_ok=True)  # uv's: nobody else's environment has to have one
    one = Place(bench, Environment(at / "venv"), broken, tree(broken), at / "healed")
    one.lay_out(broken)
    said = one.apply(index=served)
    assert said.code == 0, said.err
    assert {r["outcome"] for r in said.report["results"]} == {"healed"}
    shutil.copytree(one.prefix, one.healed, symlinks=True)
    return one


@pytest.fixture
def place(made: Place) -> Place:
    """The broken environment."""
    made.lay_out(made.broken)
    return made


@pytest.fixture
def healed(made: Place) -> Place:
    """The same after `fix --apply`."""
    made.lay_out(made.healed)
    return made


@pytest.fixture
def cold(tmp_path: Path) -> dict[str, str]:
    """A cache of uv's that holds nothing: every wheel has to be fetched."""
    return {"UV_CACHE_DIR": str(tmp_path / "uv")}


# Mirrors.

NOT_USABLE: dict[str, Faults] = {
    "404": Faults(status=404),
    "old": Faults(without=("transformers==5.23.0", "transformers==5.3.0")),
}


@contextlib.contextmanager
def faulty(kind: str, world: Path) -> Iterator[str]:
    """A mirror that cannot serve."""
    if kind == "refused":
        with indexes.refusing() as url:
            yield url
    else:
        faults = Faults(silent=True) if kind == "silent" else NOT_USABLE[kind]
        with indexes.serve(world, faults=faults) as one:
            yield one.url


@pytest.mark.parametrize("kind", ["silent", "refused", *NOT_USABLE])
def test_a_mirror_that_cannot_serve_is_named_and_the_next_one_used(
    kind: str, place: Place, world: Path, served: str
) -> None:
    with faulty(kind, world) as first:
        said = place.apply("--mirror", first, "--mirror", served, index=first)
    assert said.code == 0, said.err
    (passed_over,) = said.report["passed_over"]
    assert passed_over.startswith(first)
    assert said.report["index"] == served
    assert {r["outcome"] for r in said.report["results"]} == {"healed"}


@pytest.mark.parametrize("kind", ["refused", *NOT_USABLE])
def test_where_the_only_mirror_cannot_serve_one_sentence_names_it(
    kind: str, place: Place, world: Path
) -> None:
    with faulty(kind, world) as url:
        plan = place.run("fix", "--format", "json", "--mirror", url, index=url)
        assert (plan.code, plan.out) == (3, "")
        assert url in plan.err.splitlines()[-1]
        assert place.changed() == {}
        applied = place.apply("--mirror", url, index=url)
    assert (applied.code, applied.out) == (4, "")
    assert url in applied.err.splitlines()[-1]
    assert place.changed() == {}


def test_a_slow_mirror_works(place: Place, world: Path, cold: dict[str, str]) -> None:
    with indexes.serve(world, faults=Faults(delay=0.1)) as slow:
        said = place.apply("--mirror", slow.url, index=slow.url, **cold)
    assert said.code == 0, said.err
    assert said.report["passed_over"] == []


# Downloads.

BROKEN_OFF: dict[str, Faults] = {
    "truncated": Faults(body="short"),
    "cut": Faults(body="cut"),
    "reset": Faults(body="reset"),
    "wrong hash": Faults(wrong_hash=True),
}


def failed_and_took_all_back(place: Place, said: Said) -> None:
    assert said.code == 4, said.err
    if said.out:
        (failure,) = said.report["results"]
        assert (failure["action"], failure["outcome"]) == ("install", "failed")
        assert failure["output_tail"]
        assert said.report["run"] is None
    else:
        assert said.err.strip()
    assert place.changed() == {}
    assert not (place.prefix / OURS).exists()
    nothing = place.undo()
    assert (nothing.code, nothing.out) == (0, f"nothing to undo in {place.prefix}\n")
    assert place.changed() == {}


@pytest.mark.parametrize("kind", BROKEN_OFF)
def test_a_download_that_is_not_what_was_announced_changes_nothing(
    kind: str, place: Place, world: Path, cold: dict[str, str]
) -> None:
    # uv tries a connection that broke off again and waits longer every time.
    quick = {"UV_HTTP_RETRIES": "0"}
    with indexes.serve(world, faults=BROKEN_OFF[kind]) as one:
        said = place.apply("--mirror", one.url, index=one.url, **cold, **quick)
    failed_and_took_all_back(place, said)


def test_no_wheel_is_fetched_over_plain_http_from_elsewhere(
    place: Place, world: Path, cold: dict[str, str]
) -> None:
    outside = indexes.outside_address()
    with contextlib.ExitStack() as stack:
        there = stack.enter_context(indexes.serve(world, host=outside)) if outside else None
        where = f"http://{there.host}:{there.port}" if there else "http://192.0.2.1"
        one = stack.enter_context(indexes.serve(world, faults=Faults(redirect=where)))
        quick = {"UV_HTTP_RETRIES": "0"}
        said = place.apply("--mirror", one.url, index=one.url, **cold, **quick)
        assert one.fetched  # or nothing was redirected
        assert there is None or there.asked == []
    failed_and_took_all_back(place, said)


# Credentials.

PASSWORD = "s3cret/p@ss:word"  # noqa: S105 - of a server that lives as long as the test
HIDDEN = (PASSWORD, quote(PASSWORD, safe=""), "s3cret")


@pytest.mark.parametrize("given", ["mirror", "configuration"])
def test_a_password_works_and_is_written_nowhere(
    given: str, place: Place, world: Path, cold: dict[str, str]
) -> None:
    with indexes.serve(world, faults=Faults(credentials=("somebody", PASSWORD))) as one:
        url = one.url_with("somebody", PASSWORD)
        words = ("--mirror", url) if given == "mirror" else ()
        index = one.url if given == "mirror" else url
        said = [
            place.run("fix", *words, index=index, **cold),
            place.run("fix", "--script", "-", *words, index=index, **cold),
            place.apply(*words, index=index, **cold),
        ]
    assert [s.code for s in said] == [1, 1, 0], said[-1].err
    assert said[-1].report["run"]
    for hidden in HIDDEN:
        assert not [s for s in said if hidden in s.out + s.err]
        files = [p for p in place.prefix.rglob("*") if p.is_file() and not p.is_symlink()]
        assert not [p for p in files if hidden.encode() in p.read_bytes()]


def test_a_wrong_password_is_not_shown_either(place: Place, world: Path) -> None:
    with indexes.serve(world, faults=Faults(credentials=("somebody", "other"))) as one:
        url = one.url_with("somebody", PASSWORD)
        said = place.apply("--mirror", url, index=one.url)
    assert said.code == 4
    assert "authentication required or rejected (401" in said.err.splitlines()[-1]
    assert not [hidden for hidden in HIDDEN if hidden in said.out + said.err]
    assert place.changed() == {}


# Undo.


def test_undo_needs_no_network(place: Place, index: Index) -> None:
    assert place.apply(index=index.url).code == 0
    asked = len(index.asked)
    undone = place.run("undo", index=index.url)
    assert undone.code == 0, undone.err
    assert len(index.asked) == asked
    assert place.changed() == {}


def test_undo_in_a_copy_of_an_environment_leaves_the_original_alone(
    healed: Place, tmp_path: Path
) -> None:
    other = copied(healed.environment, tmp_path / "other")
    was = tree(healed.prefix)
    env = healed.bench.shell("http://127.0.0.1:9/simple", other)
    said = run_doctor("undo", "--python", other.prefix, env=env)
    assert "Traceback" not in said.err
    assert differing(was, tree(healed.prefix)) == {}


def test_undo_gives_a_folder_its_permissions_back(place: Place, served: str) -> None:
    (folder,) = place.environment.site.glob("transformers-*.dist-info")
    folder.chmod(0o750)
    was = tree(place.prefix)
    assert place.apply(index=served).code == 0
    assert place.undo().code == 0
    assert differing(was, tree(place.prefix)) == {}


# Kills.


class Boundary(NamedTuple):
    """One call of a run: the first of it is 1."""

    at: int
    when: Literal["before", "after"]


Calls = tuple[Call, ...]
Choice = Callable[[Calls], Boundary]


def replaced(calls: Calls, word: str, number: int) -> list[int]:
    """The calls that rename, with `word` in their source (0) or their place (1)."""
    return [
        at
        for at, call in enumerate(calls, 1)
        if call.function == "os.replace" and word in call.paths[number]
    ]


def middle(found: list[int]) -> int:
    return found[len(found) // 2]


WHILE_FIXING: dict[str, Choice] = {
    "at the first mark": lambda c: Boundary(1, "after"),
    "before the first journal": lambda c: Boundary(replaced(c, "journal.json", 1)[0], "before"),
    "after the manifest": lambda c: Boundary(replaced(c, "1/manifest.json", 1)[0], "after"),
    "amid the moves aside": lambda c: Boundary(middle(replaced(c, "/1/aside/", 1)), "before"),
    "amid the moves in": lambda c: Boundary(middle(replaced(c, "/1/new/", 0)), "after"),
    "before environment.json": lambda c: Boundary(
        replaced(c, f"{OURS}/environment.json", 1)[-1], "before"
    ),
    "before the last journal": lambda c: Boundary(replaced(c, "journal.json", 1)[-1], "before"),
    "after the last journal": lambda c: Boundary(replaced(c, "journal.json", 1)[-1], "after"),
}


@pytest.fixture(scope="module")
def fixing(made: Place, served: str) -> Calls:
    """All calls of a whole `fix --apply`."""
    made.lay_out(made.broken)
    whole = made.kill("fix", 0, "before", served)
    assert whole.code == 0, whole.err
    return whole.calls


@pytest.fixture(scope="module")
def undoing(made: Place, served: str) -> Calls:
    """All calls of a whole `undo`."""
    made.lay_out(made.healed)
    whole = made.kill("undo", 0, "before", served)
    assert whole.code == 0, whole.err
    return whole.calls


def kill_at(place: Place, command: str, calls: Calls, boundary: Boundary, index: str) -> None:
    killed = place.kill(command, *boundary, index)
    assert killed.was_killed, killed
    assert killed.calls[-1].function == calls[boundary.at - 1].function


@pytest.mark.parametrize("name", WHILE_FIXING)
def test_a_killed_fix_is_taken_back_by_the_next_command(
    name: str, place: Place, fixing: Calls, served: str
) -> None:
    kill_at(place, "fix", fixing, WHILE_FIXING[name](fixing), served)
    if list(WHILE_FIXING).index(name) % 2:
        said = place.apply(index=served)
        assert said.code == 0, said.err
        assert said.report["verdict"] == "healthy"
    undone = place.undo()
    assert undone.code == 0, undone.err
    assert place.changed() == {}


def test_a_fix_killed_before_its_journal_leaves_no_folder(
    place: Place, served: str, fixing: Calls
) -> None:
    """In an environment that has no share of its own."""
    shutil.rmtree(place.prefix / "share")
    was = tree(place.prefix)
    kill_at(place, "fix", fixing, WHILE_FIXING["before the first journal"](fixing), served)
    assert place.undo().code == 0
    assert differing(was, tree(place.prefix)) == {}


WHILE_UNDOING: dict[str, Choice] = {
    "before the journal": lambda c: Boundary(replaced(c, "journal.json", 1)[0], "before"),
    "amid the moves back": lambda c: Boundary(middle(replaced(c, "/1/aside/", 0)), "after"),
    "before the end": lambda c: Boundary(len(c) - 2, "before"),
}


@pytest.mark.parametrize("name", WHILE_UNDOING)
def test_a_killed_undo_is_finished_by_the_next(
    name: str, healed: Place, undoing: Calls, served: str
) -> None:
    kill_at(healed, "undo", undoing, WHILE_UNDOING[name](undoing), served)
    assert healed.undo().code == 0
    assert healed.changed() == {}


# Signals, and a second doctor.


class Held(list[Asked]):
    """What an index was asked; from the first wheel on it says nothing any more."""

    def __init__(self, faults: Faults) -> None:
        super().__init__()
        self.faults, self.reached = faults, threading.Event()

    def append(self, one: Asked) -> None:
        super().append(one)
        if one.path.endswith(".whl"):
            self.faults.silent = True
            self.reached.set()


@contextlib.contextmanager
def installing(
    place: Place, world: Path, cold: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A `fix --apply` whose first wheel never comes."""
    with indexes.serve(world) as one:
        one.asked = held = Held(one.faults)
        words = ["fix", "--apply", "--format", "json", "--python", str(place.prefix), *FOR_H100]
        with subprocess.Popen(
            [DOCTOR, *words],
            env=place.bench.shell(one.url, place.environment, **cold),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as doctor:
            try:
                assert held.reached.wait(HANG)
                yield doctor
            finally:
                doctor.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_during_the_installation_takes_it_back(
    number: signal.Signals, code: int, place: Place, world: Path, cold: dict[str, str]
) -> None:
    with installing(place, world, cold) as doctor:
        children = psutil.Process(doctor.pid).children(recursive=True)
        assert children
        if number == signal.SIGINT:  # as a terminal sends it
            os.killpg(doctor.pid, number)
        else:
            doctor.send_signal(number)
        out, err = doctor.communicate(timeout=HANG)
    assert (doctor.returncode, out) == (code, b""), err
    if number == signal.SIGINT:
        assert err.decode().rstrip().endswith(" was rolled back; nothing is changed")
    assert b"Traceback" not in err
    assert not [child for child in children if child.is_running()]
    assert place.changed() == {}


@pytest.mark.parametrize("command", ["fix", "undo"])
def test_while_one_doctor_works_the_next_one_names_it_and_stops(
    command: str, place: Place, world: Path, cold: dict[str, str], served: str
) -> None:
    with installing(place, world, cold) as doctor:
        words = ("--apply",) if command == "fix" else ()
        second = place.run(command, *words, index=served)
        assert second.code == 75
        assert f"pid {doctor.pid}" in second.err.splitlines()[-1]
        doctor.kill()
        doctor.communicate(timeout=HANG)
    assert place.undo().code == 0
    assert place.changed() == {}
