"""The power goes: what was not yet told to be on disk is there or is not, in any order, and files
are lost, empty or zeroed. The next doctor puts all back, or says what is damaged and removes
nothing."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from doctor.repair import swap
from doctor.repair.state import Run, State, StateError, Unusable
from doctor.repair.tree import Tree
from tests.stand_ins.killer import tree
from tests.test_swap import grow, seen

pytestmark = pytest.mark.hardening

SEED, CUTS = 20261128, 150
BEFORE = {"lib/a.py": b"1", "lib/b.py": b"2", "lib/old/c.py": b"3", "lib/stays.py": b"4"}
FIRST = {"lib/a.py": b"11", "lib/new/d.py": b"5"}
SECOND = {"lib/a.py": b"111", "lib/new/e.py": b"6"}
STAGED = {*FIRST.values(), *SECOND.values()}


@pytest.fixture
def prefix(in_memory: Path) -> Path:
    return grow(in_memory / "env", BEFORE)


class Op(NamedTuple):
    """One change of the disk: a method of Tree, below which folder, and its arguments."""

    name: str
    top: Path
    given: tuple[Any, ...]

    def folders(self) -> set[Path]:
        """Those whose names it changes."""
        path = self.given[0] if self.given else ""
        tops = [self.top, *(one.top for one in self.given if isinstance(one, Tree))]
        return {(top / str(path)).parent for top in tops}

    def again(self) -> None:
        """Made anew; nothing where what it needs did not get to disk."""
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            given = [
                stack.enter_context(Tree(one.top)) if isinstance(one, Tree) else one
                for one in self.given
            ]
            getattr(stack.enter_context(Tree(self.top)), self.name)(*given)


@contextlib.contextmanager
def recorded() -> Iterator[list[Op]]:
    """All that the doctor changes on disk, and when it waits for the disk."""
    ops: list[Op] = []
    inside = False

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Tree, *given: Any) -> Any:
            nonlocal inside
            if inside:
                return real(self, *given)
            ops.append(Op(name, self.top, given))
            inside = True
            try:
                return real(self, *given)
            finally:
                inside = False

        return call

    with pytest.MonkeyPatch.context() as patched:
        for name in ("make", "mkdir", "rmdir", "move", "rename", "unlink", "remove", "write"):
            patched.setattr(Tree, name, wrapped(name, getattr(Tree, name)))
        for name in ("sync", "sync_folder"):
            patched.setattr(Tree, name, wrapped(name, getattr(Tree, name)))
        yield ops


def surviving(ops: list[Op], draw: random.Random) -> tuple[list[Op], bool]:
    """What of these is on disk, and whether the content of what was staged is."""
    kept: list[Op] = []
    open_ops: list[Op] = []  # nobody has waited for these
    synced = False
    for op in ops:
        if op.name == "sync":
            open_ops, synced = [], True
        elif op.name == "sync_folder":
            folder = op.top / op.given[0]
            open_ops = [one for one in open_ops if folder not in one.folders()]
        else:
            kept.append(op)
            if op.name != "write":  # which waits by itself
                open_ops.append(op)
    lost = {id(op) for op in open_ops if draw.random() < 0.5}
    return [op for op in kept if id(op) not in lost], synced


def replay(
    prefix: Path, start: Path, ops: list[Op], draw: random.Random, staged: set[bytes]
) -> None:
    """The environment as it comes up again after a cut somewhere amid `ops`; what was `staged`
    before anyone waited for the disk may not be there, or be empty, or zeros."""
    for one in prefix.iterdir():
        shutil.rmtree(one)
    shutil.copytree(start, prefix, symlinks=True, dirs_exist_ok=True)
    survived, synced = surviving(ops[: draw.randrange(len(ops) + 1)], draw)
    for op in survived:
        stage(op)
        op.again()
    if not synced:
        for path in list(prefix.rglob("*")):
            if path.is_file() and path.read_bytes() in staged and draw.random() < 0.7:
                damage(path, draw)


def stage(op: Op) -> None:
    """What an installer puts into a fresh staging folder, which no method of Tree does."""
    if op.name == "write" and str(op.given[0]) == "manifest.json":
        grow(op.top / "new", {"1": FIRST, "2": SECOND}[op.top.name])


def damage(path: Path, draw: random.Random) -> None:
    how = draw.randrange(3)
    if how == 0:
        path.unlink()
    else:
        path.write_bytes(bytes(path.stat().st_size) if how == 1 else b"")


def fix(state: State) -> Run:
    """Two changes, of which the second changes what the first did."""
    with state.locked():
        run = state.begin("test")
        for files, gone in ((FIRST, ["lib/old/c.py"]), (SECOND, ["lib/b.py"])):
            folder = run.begin_change()
            grow(folder / "new", files)
            made = swap.plan(state.prefix, folder / "new", folder / "aside", gone)
            run.commit(folder, made)
        run.note(state="applied", ended=time.time())
    return run


def undo(state: State) -> None:
    with state.locked():
        state.recover()
        for run in reversed(state.runs()):
            state.undo(run)


def test_whatever_of_a_fix_got_to_disk_goes_back(prefix: Path, tmp_path: Path) -> None:
    start = shutil.copytree(prefix, tmp_path / "start")
    was = seen(prefix)
    with recorded() as ops:
        fix(State(prefix))
    applied = {k: v for k, v in seen(prefix).items() if not k.startswith("share")}
    draw = random.Random(SEED)  # noqa: S311
    finished = 0
    for number in range(CUTS):
        replay(prefix, start, ops, draw, STAGED)
        state = State(prefix)
        with state.locked():
            left = [line for _, lines in state.recover() for line in lines]
        assert left == [], number
        if state.runs():  # it says that it came to its end, and so it did
            finished += 1
            now = {k: v for k, v in seen(prefix).items() if not k.startswith("share")}
            assert now == applied, number
            undo(state)
        assert seen(prefix) == was, number
    assert 0 < finished < CUTS


def test_whatever_of_an_undo_got_to_disk_the_next_one_ends(prefix: Path, tmp_path: Path) -> None:
    was = seen(prefix)
    fix(State(prefix))
    start = shutil.copytree(prefix, tmp_path / "start", symlinks=True)
    with recorded() as ops:
        undo(State(prefix))
    assert seen(prefix) == was
    draw = random.Random(SEED)  # noqa: S311
    for number in range(CUTS):
        replay(prefix, start, ops, draw, set())
        undo(State(prefix))
        assert seen(prefix) == was, number


def in_its_place(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def harm(path: Path) -> None:
        path.rename(path.with_name("was"))
        make(path)

    return harm


@pytest.mark.parametrize("way", ["purge", "forget"])
def test_a_run_that_is_removed_is_there_or_is_not(way: str, prefix: Path, tmp_path: Path) -> None:
    run = fix(State(prefix))
    start = shutil.copytree(prefix, tmp_path / "start", symlinks=True)
    with recorded() as ops, State(prefix).locked():
        State(prefix).purge() if way == "purge" else State(prefix).forget(run.id)
    now = seen(prefix)
    draw = random.Random(SEED)  # noqa: S311
    for number in range(CUTS):
        replay(prefix, start, ops, draw, set())
        state = State(prefix)
        with state.locked():
            assert state.recover() == []
            left = state.runs()
        assert len(left) == 1 or seen(prefix) == now, number


HARM: dict[str, Callable[[Path], object]] = {
    "lost": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "wrong type": lambda path: path.write_text('[{"run": 1}]'),
    "too large": lambda path: os.truncate(path, 65 << 20),
    "a fifo": in_its_place(os.mkfifo),
    "a folder": in_its_place(Path.mkdir),
    "a link": in_its_place(lambda path: path.symlink_to("was")),
    "anyone's": lambda path: path.chmod(0o666),
}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("file", ["journal.json", "1/manifest.json", "2/manifest.json"])
def test_a_damaged_file_of_ours_is_named_and_nothing_is_removed(
    file: str, harm: str, prefix: Path
) -> None:
    run = fix(State(prefix))
    HARM[harm](run.folder / file)
    was = tree(prefix)
    state = State(prefix)
    (found,) = state.survey()
    assert isinstance(found, Unusable)
    assert str(run.folder / file) in str(found.why)
    for work in (state.recover, state.runs):
        with pytest.raises(StateError) as refused, state.locked():
            work()
        assert refused.value.run == run.id
        assert tree(prefix) == was
    with state.locked():
        assert state.purge() == []
    assert tree(prefix) == was
    with state.locked():
        assert state.held(run.id) == (4, 5)
        state.forget(run.id)
    assert tree(prefix) == {k: v for k, v in was.items() if not k.startswith("share")}


@pytest.mark.parametrize("harm", ["empty", "zeroed"])
def test_what_was_set_aside_and_is_damaged_is_told_and_not_put_back(
    harm: str, prefix: Path
) -> None:
    run = fix(State(prefix))
    copy = run.folder / "2/aside/lib/b.py"
    HARM[harm](copy)
    spoilt = copy.read_bytes()
    state = State(prefix)
    with state.locked():
        left = state.undo(state.runs()[-1])
    assert list(map(str, left)) == [
        f"what was set aside of {prefix}/lib/b.py is damaged; left in {copy}"
    ]
    assert copy.read_bytes() == spoilt
    expected = {name: data for name, data in BEFORE.items() if name != "lib/b.py"}
    assert {k: v for k, v in seen(prefix).items() if not k.startswith("share")} == expected
    assert [r.journal.state for r in state.runs()] == ["kept"]


def test_what_is_aside_and_in_no_manifest_keeps_the_run(prefix: Path) -> None:
    run = fix(State(prefix))
    grow(run.folder / "1/aside", {"lib/unknown.py": b"the only copy"})
    state = State(prefix)
    with state.locked():
        left = state.undo(state.runs()[-1])
    assert list(map(str, left)) == [
        f"{run.folder}/1/aside still holds what no manifest names; left there"
    ]
    assert (run.folder / "1/aside/lib/unknown.py").read_bytes() == b"the only copy"
