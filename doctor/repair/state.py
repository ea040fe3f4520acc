"""What the doctor keeps for a target, in `<prefix>/share/vllm-doctor`: its lock and its journal.

lock                    held by the doctor at work, names its pid
environment.json        what fixes have set (doctor.probes.environment)
cuda-<version>/         the CUDA home of links (doctor.fixes.cuda_home)
runs/<run>/journal.json state and actions of one run; written before, between and after them
runs/<run>/<n>/         one change: manifest.json, written before the first rename; new/, aside/
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from doctor.codec import decode, encode, parse_json
from doctor.model import reason
from doctor.patience import AT_ONCE, Patience, busy_with
from doctor.probes.environment import HOME
from doctor.probes.repairs import JOURNAL, LOCK, RUNS, UNFINISHED
from doctor.repair import swap
from doctor.repair.swap import Swap

MAKING = "making"
"""The file that says: this environment was begun by us, and all that is in it is ours."""
_MANIFEST = "manifest.json"
KEEP_DAYS = 14
"""How long what was set aside is kept before the next fix removes it."""


class StateError(Exception):
    """The doctor's own folder cannot be used; one sentence."""


@dataclass(frozen=True)
class Done:
    """One action of a run. `changes`: the numbers of its changes."""

    action: str
    ids: tuple[str, ...]
    summary: tuple[str, ...] = ()
    changes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Journal:
    """The state of one run. `began` and `ended` in seconds since 1970; `made`: the folders of our
    own that the run had to make, relative to the prefix, outermost first; `prefix`: what it was
    called then, since an environment may be copied."""

    run: str
    state: Literal["applying", "applied", "undoing", "kept"]
    tool: str = ""
    began: float = 0.0
    ended: float | None = None
    actions: tuple[Done, ...] = ()
    made: tuple[str, ...] = ()
    prefix: str = ""
    schema_version: int = 1


class Run:
    """One run on disk."""

    def __init__(self, folder: Path, journal: Journal) -> None:
        self.folder = folder
        self.journal = journal
        self._prefix = folder.parents[len(HOME.parts) + 1]

    @property
    def id(self) -> str:
        return self.journal.run

    @property
    def unfinished(self) -> bool:
        """It was cut off, or is being made or taken back now."""
        return self.journal.state in UNFINISHED

    def note(self, **changes: object) -> None:
        """Writes the journal anew, whole or not at all, and to disk before this returns."""
        self.journal = dataclasses.replace(self.journal, **changes)  # type: ignore[arg-type]
        _write(self.folder / JOURNAL, json.dumps(encode(self.journal), indent=1) + "\n")

    def begin_change(self) -> Path:
        """A fresh numbered folder with an empty `new` in it, to stage a change."""
        folder = self.folder / str(len(self._numbers()) + 1)
        (folder / "new").mkdir(parents=True)
        return folder

    def commit(self, change: Path, made: Swap, then: Callable[[], None] | None = None) -> None:
        """Writes the manifest, then makes the change, and has `then` look at it; takes it back if
        either fails, and raises what it failed with."""
        try:
            self.adopt(change, made)
            swap.forward(made)
            if then:
                then()
        except BaseException:
            if not swap.back(made):
                self.drop(change)  # else what is aside is all that there is of it
            raise
        # What it left of the staging is only empty folders.
        shutil.rmtree(change / "new", ignore_errors=True)

    def adopt(self, change: Path, made: Swap) -> None:
        """Notes a change that is made already."""
        _write(change / _MANIFEST, json.dumps(swap.encode(made, self._prefix)))

    def drop(self, change: Path) -> None:
        """Forgets a change that was never made or is taken back."""
        shutil.rmtree(change, ignore_errors=True)

    def changes(self) -> list[tuple[Path, Swap]]:
        """The changes whose manifests are on disk, in the order in which they were made."""
        found = []
        for number in self._numbers():
            folder = self.folder / str(number)
            with contextlib.suppress(FileNotFoundError):
                data = parse_json((folder / _MANIFEST).read_bytes())
                made = _swap(data, folder, self._prefix)
                # In a copy of an environment, a cache outside of it is the original's affair.
                ours = self.journal.prefix in ("", str(self._prefix))
                if ours or made.root.is_relative_to(self._prefix):
                    found.append((folder, made))
        return found

    def _numbers(self) -> list[int]:
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit())

    def take_back(self) -> list[Path]:
        """Takes every change back, the last one first, and removes the run where nothing is left of
        it. Returns the paths that were left alone; then the run stays, with what was set aside for
        them. Can be killed and called again. Raises StateError, with nothing moved, where what
        was set aside is gone."""
        if self.journal.state == "applied":
            for _, made in self.changes():
                if gone := swap.lost(made):
                    raise StateError(
                        f"what the run {self.id} set aside of {gone[0]} is gone; "
                        "`vllm-doctor undo --purge` forgets the run"
                    )
        with contextlib.suppress(OSError):  # a full disk must not keep anything from going back
            self.note(state="undoing")
        refused: list[Path] = []
        for folder, made in reversed(self.changes()):
            left = swap.back(made)
            if left:
                refused += left
            else:
                # What someone changed since, and nothing is aside for any more, is theirs.
                refused += swap.missing_or_changed(made)
                _leave_aside(made)
                self.drop(folder)
        if self.changes():
            self.note(state="kept", ended=time.time())
        else:
            # The journal goes last: until then, a kill leaves a run that says "undoing".
            for number in self._numbers():
                self.drop(self.folder / str(number))
            shutil.rmtree(self.folder)
        return refused

    def size(self) -> int:
        """Bytes of what is set aside."""
        return sum(item.was.size for _, made in self.changes() for item in made.items if item.was)


class State:
    """The doctor's folder below a prefix."""

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.folder = prefix / HOME
        self._runs = prefix / RUNS
        self._locked = prefix / LOCK
        self._made: tuple[str, ...] = ()

    @contextlib.contextmanager
    def locked(self, patience: Patience = AT_ONCE) -> Iterator[None]:
        """One doctor at a time: raises Busy with the pid of the one at work, unless there is
        patience to wait for it, and StateError where the folder cannot be written. The kernel frees
        the lock of a doctor that died."""
        handle = patience.get(self._lock)
        try:
            yield
        finally:
            self._leave()
            os.close(handle)

    def _make(self) -> None:
        self._must_be_ours()
        made = []
        at = self.prefix
        for name in RUNS.parts:
            at = at / name
            try:
                at.mkdir()
                made.append(str(at.relative_to(self.prefix)))
            except FileExistsError:
                pass
            except OSError as error:
                for folder in reversed(made):
                    remove_if_empty(self.prefix / folder)
                raise StateError(f"{at} cannot be made: {reason(error)}") from None
        self._made = tuple(dict.fromkeys((*self._made, *made)))

    def _must_be_ours(self) -> None:
        """What is kept here says which files are put back and removed: it has to be root's or the
        user's own, and behind no link, or another user could have root move any file."""
        at = self.prefix
        for name in RUNS.parts:
            at = at / name
            if at.is_symlink():
                raise StateError(f"{at} is a link; the doctor keeps nothing behind a link")
            if at.name != HOME.parts[0] and at.exists():
                self._must_own(at)

    @staticmethod
    def _must_own(path: Path) -> None:
        owner = path.lstat().st_uid
        if owner not in (0, os.geteuid()):
            raise StateError(f"{path} belongs to the user {owner}: run the doctor as that user")

    def _lock(self) -> int:
        path = self._locked
        while True:
            self._make()
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            try:
                handle = os.open(path, flags, 0o644)
            except FileNotFoundError:
                continue  # another doctor has ended just now, and its folder went with it
            except OSError as error:
                raise StateError(f"{path} cannot be written: {reason(error)}") from None
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                busy = busy_with(self.prefix, handle)
                os.close(handle)
                raise busy from None
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(handle).st_ino == path.stat().st_ino:
                    break
            os.close(handle)  # its owner has removed it meanwhile
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        return handle

    def _leave(self) -> None:
        """Removes the lock, which names a doctor that is done, and what is left of our folder if
        nothing in it is worth keeping."""
        with contextlib.suppress(OSError):
            self._locked.unlink()
            if not any(self._runs.iterdir()):
                names = {p.name for p in self.folder.iterdir()} - {RUNS.name, "proofs.json", MAKING}
                if not names:
                    for name in ("proofs.json", MAKING):
                        (self.folder / name).unlink(missing_ok=True)
                    self._runs.rmdir()
                    self.folder.rmdir()
                    # Also where a doctor was killed before it could note that it had made it.
                    remove_if_empty(self.folder.parent)
                    for name in reversed(self._made):
                        remove_if_empty(self.prefix / name)

    def begin(self, tool: str) -> Run:
        """A new run, its journal on disk."""
        stem = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        number = 1
        while (self._runs / (id := stem if number == 1 else f"{stem}-{number}")).exists():
            number += 1
        (self._runs / id).mkdir()
        prefix = str(self.prefix)
        journal = Journal(id, "applying", tool, time.time(), made=self._made, prefix=prefix)
        run = Run(self._runs / id, journal)
        try:
            run.note()
        except BaseException:
            shutil.rmtree(run.folder, ignore_errors=True)
            raise
        return run

    def runs(self) -> list[Run]:
        """All runs, oldest first. A folder without a journal is none: nothing was changed before
        there was one. Raises StateError for a journal that cannot be read."""
        self._must_be_ours()
        found = []
        with contextlib.suppress(FileNotFoundError):
            for folder in sorted(self._runs.iterdir()):
                try:
                    self._must_own(folder)
                    self._must_own(folder / JOURNAL)
                    data = parse_json((folder / JOURNAL).read_bytes())
                    found.append(Run(folder, decode(Journal, data)))
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except ValueError as error:
                    raise StateError(f"{folder / JOURNAL}: {error}") from None
        return found

    def recover(self, ours: Run | None = None) -> list[tuple[Run, list[Path]]]:
        """Takes back every run but `ours` that was cut off, the last one first: (run, paths left
        alone)."""
        mended = []
        for run in reversed(self.runs()):
            if run.unfinished and (ours is None or run.id != ours.id):
                mended.append((run, self.undo(run)))
        with contextlib.suppress(FileNotFoundError):
            for folder in self._runs.iterdir():
                # Nothing was changed before there was a journal: only staging can be in there.
                begun = [*folder.glob(JOURNAL), *folder.glob(f"*/{_MANIFEST}")]
                if folder.is_dir() and not folder.is_symlink() and not begun:
                    shutil.rmtree(folder)
        return mended

    def undo(self, run: Run) -> list[Path]:
        """Takes a run back; the paths that were left alone."""
        # The folders that it made for us are the last of ours to go.
        self._made = tuple(dict.fromkeys((*run.journal.made, *self._made)))
        return run.take_back()

    def purge(self, older_than: float = 0.0) -> list[Run]:
        """Removes what finished runs set aside, so that they can no longer be undone; only of runs
        that ended before `older_than` seconds ago. Returns them."""
        removed = []
        for run in self.runs():
            ended = run.journal.ended
            finished = run.journal.state in ("applied", "kept") and ended is not None
            if finished and time.time() - (ended or 0) >= older_than:
                self._made = tuple(dict.fromkeys((*run.journal.made, *self._made)))
                for _, made in run.changes():
                    _forget_aside(made)
                shutil.rmtree(run.folder)
                removed.append(run)
        return removed


def _forget_aside(made: Swap) -> None:
    """Removes what a change has set aside; all of it lies in one folder of ours."""
    for item in made.items:
        if item.was:
            (made.aside / item.path).unlink(missing_ok=True)
    _leave_aside(made)


def _leave_aside(made: Swap) -> None:
    """Removes the folder aside once no file is left in it; beside a cache also the one around it,
    which holds those of all runs."""
    for at, _, _ in os.walk(made.aside, topdown=False):
        remove_if_empty(Path(at))
    remove_if_empty(made.aside.parent)


def remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _swap(data: object, folder: Path, base: Path) -> Swap:
    try:
        return swap.decode(data, base)
    except ValueError as error:
        raise StateError(f"{folder / _MANIFEST}: {error}") from None


def _write(path: Path, text: str) -> None:
    """Whole or not at all, and on disk before this returns."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        with fresh.open("w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
