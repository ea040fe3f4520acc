"""The journal: one doctor at a time, what was cut off is taken back, nothing of ours is left."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from doctor.fixes.files import away_from
from doctor.patience import Busy
from doctor.probes.environment import HOME
from doctor.repair import state as states
from doctor.repair import swap
from doctor.repair.errors import StageError
from doctor.repair.manifest import Done
from doctor.repair.state import Run, State, StateError
from tests.stand_ins.killer import tree
from tests.test_swap import grow, seen


@pytest.fixture
def tmp_path(in_memory: Path) -> Path:
    return in_memory


@pytest.fixture
def state(tmp_path: Path) -> State:
    grow(tmp_path / "env", {"lib/a.py": b"old", "lib/b.py": b"stays"})
    return State(tmp_path / "env")


def change(state: State, run: Run, files: dict[str, bytes]) -> Path:
    """One committed change of these files."""
    folder = run.begin_change()
    grow(folder / "new", files)
    run.commit(folder, swap.plan(state.prefix, folder / "new", folder / "aside", []))
    return folder


def applied(state: State, files: dict[str, bytes]) -> Run:
    with state.locked():
        run = state.begin("test")
        change(state, run, files)
        run.note(
            state="applied", ended=time.time(), actions=(Done("install", ("x",), ("y",), (1,)),)
        )
    return run


CACHE = ".cache/flashinfer/0.6.11/90a"


def set_aside(state: State, kernel: Path) -> Run:
    """A run that set one kernel of FlashInfer's aside."""
    with state.locked():
        run = state.begin("test")
        folder = run.begin_change()
        run.commit(folder, away_from(kernel, state.prefix, folder))
        run.note(state="applied", ended=0.0)
    return run


def test_a_run_is_undone_and_nothing_of_ours_is_left(state: State) -> None:
    was = seen(state.prefix)
    run = applied(state, {"lib/a.py": b"new", "lib/more/c.py": b"c"})
    assert (state.prefix / "lib/a.py").read_bytes() == b"new"
    with state.locked():
        (found,) = state.runs()
        assert found.journal == run.journal
        assert state.undo(found) == []
    assert seen(state.prefix) == was
    assert not (state.prefix / "share").exists()


def test_a_share_folder_that_was_there_stays(state: State) -> None:
    grow(state.prefix / "share", {"man/page": b""})
    with state.locked():
        pass
    assert (state.prefix / "share/man/page").is_file()
    assert not (state.prefix / HOME).exists()


def test_looking_leaves_nothing(state: State) -> None:
    was = seen(state.prefix)
    assert state.runs() == []
    with state.locked():
        assert state.runs() == []
    assert seen(state.prefix) == was


@pytest.mark.parametrize("word", ["applying", "undoing"])
def test_a_run_that_was_cut_off_is_taken_back_by_the_next_doctor(state: State, word: str) -> None:
    was = seen(state.prefix)
    with state.locked():
        run = state.begin("test")
        change(state, run, {"lib/a.py": b"new"})
        run.note(state=word)
    with state.locked():
        ((mended, left),) = state.recover()
        assert mended.id == run.id
        assert left == []
    assert seen(state.prefix) == was


def test_what_was_staged_and_never_made_is_removed(state: State) -> None:
    was = seen(state.prefix)
    with state.locked():
        run = state.begin("test")
        folder = run.begin_change()
        grow(folder / "new", {"lib/a.py": b"half an installation"})
    with state.locked():
        assert len(state.recover()) == 1
    assert seen(state.prefix) == was


def test_a_run_folder_without_a_journal_is_removed(state: State) -> None:
    with state.locked():
        (state.folder / "runs/20260101-000000/1/new").mkdir(parents=True)
        assert state.recover() == []
        assert list((state.folder / "runs").iterdir()) == []


def test_a_change_that_fails_is_taken_back_at_once(state: State) -> None:
    was = seen(state.prefix)
    with state.locked():
        run = state.begin("test")
        folder = run.begin_change()
        grow(folder / "new", {"lib/a.py": b"new"})
        made = swap.plan(state.prefix, folder / "new", folder / "aside", [])

        def look() -> None:
            assert (state.prefix / "lib/a.py").read_bytes() == b"new"
            raise RuntimeError("it does not go together")

        with pytest.raises(RuntimeError):
            run.commit(folder, made, look)
        assert run.changes() == []
        state.undo(run)
    assert seen(state.prefix) == was


def test_runs_are_undone_one_after_the_other(state: State) -> None:
    was = seen(state.prefix)
    applied(state, {"lib/a.py": b"first"})
    between = (state.prefix / "lib/a.py").read_bytes()
    applied(state, {"lib/a.py": b"second"})
    with state.locked():
        first, second = state.runs()
        state.undo(second)
        assert (state.prefix / "lib/a.py").read_bytes() == between
        state.undo(first)
    assert seen(state.prefix) == was


def test_what_a_person_changed_keeps_its_set_aside_and_the_run_is_kept(state: State) -> None:
    applied(state, {"lib/a.py": b"new"})
    (state.prefix / "lib/a.py").write_bytes(b"mine")
    with state.locked():
        (run,) = state.runs()
        (left,) = state.undo(run)
        assert str(left) == f"{state.prefix}/lib/a.py was modified since; left untouched"
    (kept,) = state.runs()
    assert kept.journal.state == "kept"
    assert kept.size() == len(b"old")
    (state.prefix / "lib/a.py").unlink()
    with state.locked():
        assert state.undo(kept) == []
    assert (state.prefix / "lib/a.py").read_bytes() == b"old"


def test_what_was_and_what_comes_may_be_one_file(state: State) -> None:
    """As where uv links the same file out of its cache that was there already."""
    with state.locked():
        run = state.begin("test")
        folder = run.begin_change()
        (folder / "new/lib").mkdir()
        (folder / "new/lib/a.py").hardlink_to(state.prefix / "lib/a.py")
        made = swap.plan(state.prefix, folder / "new", folder / "aside", [])
        run.commit(folder, made)
        run.note(state="applied", ended=time.time())
        (found,) = state.runs()
        assert state.undo(found) == []
    assert seen(state.prefix) == {"lib/a.py": b"old", "lib/b.py": b"stays"}


def test_a_purge_keeps_what_was_made_and_forgets_what_was_there(state: State) -> None:
    applied(state, {"lib/a.py": b"new"})
    with state.locked():
        assert state.purge(older_than=3600) == []
        assert len(state.purge()) == 1
    assert state.runs() == []
    assert (state.prefix / "lib/a.py").read_bytes() == b"new"
    assert not (state.prefix / "share").exists()


def test_a_purge_removes_what_lies_beside_a_cache_and_nothing_else(
    state: State, tmp_path: Path
) -> None:
    cache = grow(tmp_path / CACHE / "cached_ops", {"op/op.so": b"1", "fine/fine.so": b"2"})
    run = set_aside(state, cache / "op")
    aside = f"vllm-doctor-set-aside/{run.id}-1"
    assert seen(cache.parent) == {
        "cached_ops/fine/fine.so": b"2",
        f"{aside}/op/op.so": b"1",
    }
    (cache.parent / aside / "mine").write_bytes(b"3")
    with state.locked():
        state.purge()
    assert seen(cache.parent) == {"cached_ops/fine/fine.so": b"2", f"{aside}/mine": b"3"}


HOLD = """
import sys
from pathlib import Path
from doctor.repair.state import State
with State(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_doctor_is_told_the_pid_of_the_first(state: State) -> None:
    command = [sys.executable, "-c", HOLD, str(state.prefix)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with pytest.raises(Busy, match=rf"\(pid {first.pid}\) "), state.locked():
            pass
        first.kill()
    with state.locked():
        assert (state.folder / "lock").read_text() == f"{os.getpid()}\n"


def test_a_link_in_place_of_our_folder_is_refused(state: State, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (state.prefix / "share").mkdir()
    (state.prefix / HOME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateError, match="is a link"), state.locked():
        pass
    assert list((tmp_path / "elsewhere").iterdir()) == []


LEVELS = ["", "runs", "runs/RUN", "runs/RUN/journal.json", "runs/RUN/1", "runs/RUN/1/manifest.json"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("what", LEVELS)
def test_root_follows_no_journal_that_another_user_could_write(state: State, what: str) -> None:
    run = applied(state, {"lib/a.py": b"new"})
    os.chown(state.folder / what.replace("RUN", run.id), 12345, 12345)
    with pytest.raises(StateError, match="belongs to user 12345"):
        state.runs()


@pytest.mark.parametrize("mode", [0o020, 0o002], ids=["group", "others"])
@pytest.mark.parametrize("what", LEVELS)
def test_what_others_may_write_is_not_obeyed(state: State, what: str, mode: int) -> None:
    run = applied(state, {"lib/a.py": b"new"})
    path = state.folder / what.replace("RUN", run.id)
    path.chmod(path.stat().st_mode | mode)
    with pytest.raises(StateError, match=f"^{path} can be written by others: chmod go-w"):
        state.runs()
    path.chmod(path.stat().st_mode & ~mode)
    assert [r.id for r in state.runs()] == [run.id]


def test_what_is_made_may_be_written_by_no_other_whatever_the_umask(state: State) -> None:
    before = os.umask(0)
    try:
        run = applied(state, {"lib/a.py": b"new"})
    finally:
        os.umask(before)
    for what in LEVELS:
        assert not (state.folder / what.replace("RUN", run.id)).stat().st_mode & 0o022


@pytest.mark.parametrize("text", ["", "{", "[]", '{"run": "1"}', '{"run": "1", "state": "odd"}'])
def test_a_journal_that_cannot_be_read_is_named(state: State, text: str) -> None:
    run = state.prefix / HOME / "runs/1"
    run.mkdir(parents=True)
    (run / "journal.json").write_text(text)
    with pytest.raises(StateError, match=r"journal\.json"):
        state.runs()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_prefix_that_cannot_be_written_is_named(state: State) -> None:
    state.prefix.chmod(0o555)
    with pytest.raises(StateError, match="cannot be made: permission denied"), state.locked():
        pass


def test_the_time_that_set_asides_are_kept_is_two_weeks() -> None:
    assert states.KEEP_DAYS == 14


@pytest.mark.parametrize("how", ["fifo", "hard link", "folder", "link"])
def test_what_lies_in_the_place_of_the_lock_is_not_written(
    state: State, how: str, tmp_path: Path
) -> None:
    (tmp_path / "mine").write_text("mine")
    lock = state.folder / "lock"
    lock.parent.mkdir(parents=True)
    if how == "fifo":
        os.mkfifo(lock)
    elif how == "folder":
        lock.mkdir()
    elif how == "link":
        lock.symlink_to(tmp_path / "mine")
    else:
        lock.hardlink_to(tmp_path / "mine")
    with pytest.raises(StateError, match=str(lock)), state.locked():
        pass
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has another user")
def test_whoever_may_write_beside_our_folder_has_root_touch_nothing(
    state: State, tmp_path: Path
) -> None:
    """Another user swaps our folder for a link while root takes the lock, over and over."""
    share, victim = state.prefix / "share", tmp_path / "victim"
    grow(share, {"vllm-doctor/keep": b"", "vllm-doctor/runs/keep": b""})
    grow(victim, {"lock": b"precious", "runs/keep": b""})
    (share / "link").symlink_to(victim)
    for at in (share, tmp_path, *tmp_path.parents[:-2]):
        at.chmod(at.stat().st_mode | 0o055)
    os.chown(share, 65534, 65534)
    swapper = os.fork()
    if not swapper:
        try:
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            os.chdir(share)
            rename = ctypes.CDLL(None).renameat2
            while os.getppid() != 1:
                rename(-100, b"vllm-doctor", -100, b"link", 2)  # AT_FDCWD, RENAME_EXCHANGE
        finally:
            os._exit(0)
    try:
        for _ in range(2000):
            with contextlib.suppress(StateError, OSError), state.locked():
                pass
    finally:
        os.kill(swapper, signal.SIGKILL)
        os.waitpid(swapper, 0)
    assert (victim / "lock").read_text() == "precious"


# Elsewhere.


@contextlib.contextmanager
def giving_up(run: str, why: str) -> Iterator[None]:
    """It is refused because of `why`, and giving up the run `run` is the way out."""
    with pytest.raises(StateError, match=why) as refused:
        yield
    assert refused.value.run == run


def copied(state: State, at: Path) -> State:
    return State(shutil.copytree(state.prefix, at, symlinks=True))


def test_a_run_that_was_made_elsewhere_is_told_and_not_obeyed(state: State, tmp_path: Path) -> None:
    run = applied(state, {"lib/a.py": b"new"})
    copy = copied(state, tmp_path / "copy")
    was = tree(copy.prefix)
    with copy.locked():
        assert copy.recover() == []
        (found,) = copy.runs()
        with giving_up(run.id, f"was made in {state.prefix}"):
            copy.undo(found)
    assert tree(copy.prefix) == was
    with state.locked():
        assert state.undo(state.runs()[-1]) == []
    assert (state.prefix / "lib/a.py").read_bytes() == b"old"


def test_a_moved_environment_obeys_no_run_until_it_is_back(state: State, tmp_path: Path) -> None:
    applied(state, {"lib/a.py": b"new"})
    moved = State(state.prefix.rename(tmp_path / "moved"))
    assert [run.elsewhere for run in moved.runs()] == [str(state.prefix)]
    moved.prefix.rename(state.prefix)
    assert [run.elsewhere for run in state.runs()] == [None]


def test_a_copy_at_the_very_same_place_is_a_copy(state: State, tmp_path: Path) -> None:
    """A backup, or an image of a container."""
    applied(state, {"lib/a.py": b"new"})
    backup = shutil.copytree(state.prefix, tmp_path / "backup", symlinks=True)
    state.prefix.rename(tmp_path / "original")
    backup.rename(state.prefix)
    assert [run.elsewhere for run in state.runs()] == [str(state.prefix)]


def test_half_a_run_from_elsewhere_stops_every_change_until_it_is_forgotten(
    state: State, tmp_path: Path
) -> None:
    run = applied(state, {"lib/a.py": b"new"})
    run.note(state="applying")
    copy = copied(state, tmp_path / "copy")
    with giving_up(run.id, "was made in"), copy.locked():
        copy.recover()
    with copy.locked():
        assert copy.held(run.id) == (1, len(b"old"))
        copy.forget(run.id)
        assert copy.recover() == []
    assert (copy.prefix / "lib/a.py").read_bytes() == b"new"
    assert not copy.folder.exists()


def test_a_purge_of_a_run_from_elsewhere_leaves_the_caches_alone(
    state: State, tmp_path: Path
) -> None:
    cache = grow(tmp_path / CACHE / "cached_ops", {"op/op.so": b"1"})
    run = set_aside(state, cache / "op")
    copy = copied(state, tmp_path / "copy")
    with copy.locked():
        assert [one.id for one in copy.purge()] == [run.id]
    assert seen(cache.parent) == {
        "cached_ops": "empty",
        f"vllm-doctor-set-aside/{run.id}-1/op/op.so": b"1",
    }


# Kernels.


def test_a_kernel_is_put_back_where_it_was(state: State, tmp_path: Path) -> None:
    cache = grow(tmp_path / CACHE / "cached_ops", {"op/op.so": b"1", "tmp/op.lock": b"2"})
    was = tree(tmp_path / ".cache")
    for what in ("op", "tmp/op.lock"):
        set_aside(state, cache / what)
        assert not (cache / what).exists()
    with state.locked():
        for run in reversed(state.runs()):
            assert state.undo(run) == []
    assert tree(tmp_path / ".cache") == was


def test_nothing_but_a_kernel_is_set_aside_outside_of_the_environment(
    state: State, tmp_path: Path
) -> None:
    grow(tmp_path, {"home/precious": b""})
    with pytest.raises(StageError, match="home/precious is neither in the environment"):
        set_aside(state, tmp_path / "home/precious")
    assert (tmp_path / "home/precious").exists()


@pytest.mark.parametrize("planted", ["link", "anyone's", "anyone's cache"])
def test_no_kernel_is_set_aside_where_another_user_could_reach_it(
    state: State, tmp_path: Path, planted: str
) -> None:
    cache = grow(tmp_path / CACHE / "cached_ops", {"op/op.so": b"1"})
    victim = grow(tmp_path / "victim", {})
    aside = cache.parent / "vllm-doctor-set-aside"
    if planted == "link":
        aside.symlink_to(victim)
    elif planted == "anyone's":
        aside.mkdir()
        aside.chmod(0o777)
    else:
        cache.parent.chmod(0o777)
    with pytest.raises(StageError, match="op stays: "):
        set_aside(state, cache / "op")
    assert seen(victim) == {}
    assert (cache / "op/op.so").read_bytes() == b"1"


def test_a_run_whose_kernels_another_user_could_have_changed_is_not_taken_back(
    state: State, tmp_path: Path
) -> None:
    cache = grow(tmp_path / CACHE / "cached_ops", {"op/op.so": b"1"})
    set_aside(state, cache / "op")
    (cache.parent / "vllm-doctor-set-aside").chmod(0o777)
    with pytest.raises(StateError, match="can be written by others"), state.locked():
        state.undo(state.runs()[-1])
    assert not (cache / "op").exists()


# Distributions.

NUMPY = {"numpy/__init__.py": b"2", "numpy/new.py": b"2"}
TORCH = {"torch/__init__.py": b"2"}


def upgraded(state: State) -> Run:
    """A run that replaced two distributions."""
    grow(state.prefix, {"numpy/__init__.py": b"1", "numpy/old.py": b"1", "torch/__init__.py": b"1"})
    with state.locked():
        run = state.begin("test")
        folder = run.begin_change()
        grow(folder / "new", {**NUMPY, **TORCH})
        gone = ["numpy/old.py"]
        groups = {name: name.split("/")[0] for name in (*NUMPY, *TORCH, *gone)}
        new, aside = folder / "new", folder / "aside"
        run.commit(folder, swap.plan(state.prefix, new, aside, gone, groups=groups))
        run.note(state="applied", ended=time.time())
    return run


@pytest.mark.parametrize("touched", ["numpy/__init__.py", "numpy/old.py"])
def test_a_distribution_that_a_person_changed_is_left_whole_and_the_others_go_back(
    state: State, touched: str
) -> None:
    upgraded(state)
    grow(state.prefix, {touched: b"3"})
    mine = {k: v for k, v in seen(state.prefix).items() if k.startswith("numpy")}
    with state.locked():
        (left,) = state.undo(state.runs()[-1])
        assert str(left) == "numpy was modified since; left untouched"
    now = seen(state.prefix)
    assert {k: v for k, v in now.items() if k.startswith("numpy")} == mine
    assert now["torch/__init__.py"] == b"1"
    (kept,) = state.runs()
    assert kept.journal.state == "kept"
    with state.locked():  # as it was made again: there is nothing against it any more
        for name in ("numpy/__init__.py", "numpy/old.py"):
            (state.prefix / name).unlink(missing_ok=True)
        grow(state.prefix, {"numpy/__init__.py": b"2"})
        assert state.undo(kept) == []
    assert seen(state.prefix)["numpy/__init__.py"] == b"1"
    assert state.runs() == []


def test_bytecode_is_no_change_of_a_distribution(state: State) -> None:
    upgraded(state)
    grow(state.prefix, {"numpy/__pycache__/new.cpython-312.pyc": b""})
    with state.locked():
        assert state.undo(state.runs()[-1]) == []
    assert not list((state.prefix / "numpy/__pycache__").iterdir())


def test_what_an_undo_decided_holds_for_the_one_that_ends_it(state: State) -> None:
    """Killed half-way, it finds what it put back itself, and what the person has mended since."""
    run = upgraded(state)
    grow(state.prefix, {"numpy/__init__.py": b"3"})
    ((_, made),) = run.changes()
    with state.locked():
        run.note(state="undoing", spared=("numpy",))
        swap.back(made, ("numpy",))
    grow(state.prefix, {"numpy/__init__.py": b"2"})
    with state.locked():
        ((_, left),) = state.recover()
    assert list(map(str, left)) == ["numpy was modified since; left untouched"]
    now = seen(state.prefix)
    assert (now["numpy/__init__.py"], now["torch/__init__.py"]) == (b"2", b"1")


def test_the_last_of_several_changes_of_a_distribution_is_what_counts(state: State) -> None:
    grow(state.prefix, {"numpy/__init__.py": b"1"})
    with state.locked():
        run = state.begin("test")
        for text in (b"2", b"3"):
            folder = run.begin_change()
            grow(folder / "new", {"numpy/__init__.py": text})
            groups = {"numpy/__init__.py": "numpy"}
            new, aside = folder / "new", folder / "aside"
            run.commit(folder, swap.plan(state.prefix, new, aside, [], groups=groups))
        run.note(state="applied", ended=time.time())
        assert state.undo(run) == []
    assert (state.prefix / "numpy/__init__.py").read_bytes() == b"1"


# Absence.


def test_a_run_folder_without_a_journal_that_holds_something_is_not_removed(state: State) -> None:
    grow(state.folder / "runs/20260101-000000/1/aside", {"lib/a.py": b"the only copy"})
    was = tree(state.prefix)
    for work in (state.recover, state.runs):
        with pytest.raises(StateError, match="1 files are set aside"), state.locked():
            work()
    with state.locked():
        assert state.purge() == []
    assert tree(state.prefix) == was


def test_a_change_that_the_journal_names_and_no_manifest_does_is_missed(state: State) -> None:
    """It only added files: nothing is aside that could tell of it."""
    run = applied(state, {"lib/more.py": b"new"})
    (run.folder / "1/manifest.json").unlink()
    with pytest.raises(StateError, match=r"1/manifest\.json is gone"):
        state.runs()


@pytest.mark.parametrize("name", ["", ".", "..", "../..", "a/b", "/etc", "a\0b", "none"])
def test_only_a_run_can_be_forgotten(state: State, name: str) -> None:
    applied(state, {"lib/a.py": b"new"})
    assert state.held(name) is None


def test_forgetting_follows_no_link_and_knows_no_depth(state: State, tmp_path: Path) -> None:
    run = applied(state, {"lib/a.py": b"new"})
    grow(tmp_path / "elsewhere", {"mine": b"mine"})
    (run.folder / "1/aside/out").symlink_to(tmp_path / "elsewhere")
    here = os.open(run.folder / "1", os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    with state.locked():
        state.forget(run.id)
    assert not state.folder.exists()
    assert seen(tmp_path / "elsewhere") == {"mine": b"mine"}
