"""The journal: one doctor at a time, what was cut off is taken back, nothing of ours is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from doctor.fixes import SetAside
from doctor.probes.environment import HOME
from doctor.repair import stage, swap
from doctor.repair import state as states
from doctor.repair.manifest import Done
from doctor.repair.state import Busy, Run, State, StateError
from tests.test_swap import grow, seen


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
        run.commit(folder, stage.set_aside(state.prefix, run.id, SetAside(kernel), folder))
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
        assert state.undo(run) == [f"{state.prefix}/lib/a.py was modified since; left untouched"]
    (kept,) = state.runs()
    assert kept.journal.state == "kept"
    assert kept.size() == len(b"old")
    (state.prefix / "lib/a.py").unlink()
    with state.locked():
        assert state.undo(kept) == []
    assert (state.prefix / "lib/a.py").read_bytes() == b"old"


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
        with pytest.raises(Busy, match=rf"pid {first.pid} "), state.locked():
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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("what", ["", "runs", "runs/1", "runs/1/journal.json"])
def test_root_follows_no_journal_that_another_user_could_write(state: State, what: str) -> None:
    """It says which files are put back and removed: any file, for root."""
    run = state.prefix / HOME / "runs/1"
    run.mkdir(parents=True)
    (run / "journal.json").write_text(json.dumps({"run": "1", "state": "applied"}))
    assert [r.id for r in state.runs()] == ["1"]
    os.chown(state.folder / what, 12345, 12345)
    with pytest.raises(StateError, match="belongs to the user 12345"):
        state.runs()


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
