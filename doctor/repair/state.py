"""What the doctor keeps for a target, in `<prefix>/share/vllm-doctor`: its lock and its journal.

lock                    held by the doctor at work, names its pid
environment.json        what fixes have set (doctor.probes.environment)
cuda-<version>/         the CUDA home of links (doctor.fixes.cuda_home)
runs/<run>/journal.json state and actions of one run; written before, between and after them
runs/<run>/<n>/         one change: manifest.json, written before the first rename; new/, aside/

All of it lies in the environment, so that undo goes where the environment goes; and so whoever made
the environment may have written it. It is obeyed only as far as `doctor.repair.manifest` lets it,
and only where nobody but root and this user can have written it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from doctor.codec import encode
from doctor.engine import place
from doctor.errors import DoctorError
from doctor.exits import FAILED
from doctor.fixes import Kind, kind_named
from doctor.model import Text, os_reason, os_refusal
from doctor.patience import AT_ONCE, Patience, busy_with
from doctor.probes.environment import HOME
from doctor.probes.repairs import EFFECT, JOURNAL, LOCK, MANIFEST, RUNS, UNFINISHED
from doctor.repair import manifest, swap
from doctor.repair.manifest import FOLDERS, Damaged, Effect, Journal, Swap
from doctor.repair.tree import Tree, why_not_ours, why_not_private
from doctor.target import TooLarge, must_read

MAKING = "making"
"""The file that says: this environment was begun by us, and all that is in it is ours."""
KEEP_DAYS = 14
"""How long what was set aside is kept before the next fix removes it."""
_JOURNAL_MOST, _MANIFEST_MOST = 1 << 20, 64 << 20
"""Bytes; a manifest of seventy thousand files is a fifth of that."""
_REMOVED = ".removed"
"""What was a run and is on its way out; the next doctor removes the rest."""
_NUMBER = re.compile(r"[1-9][0-9]{0,5}")


class StateError(DoctorError):
    """The doctor's own folder cannot be used; one sentence. `run`: giving this one up is a way
    out."""

    def __init__(self, text: Text, run: str | None = None) -> None:
        super().__init__(text, FAILED)
        self.run = run


@dataclass(frozen=True)
class Unusable:
    """A run that cannot be undone: `why`, one sentence. What it set aside is left alone until
    someone gives it up (`State.forget`)."""

    id: str
    why: Text

    @property
    def error(self) -> StateError:
        return StateError(self.why, self.id)


class Run:
    """One run on disk. `elsewhere`: where it was made, if that is not this environment; `notes`:
    what its undo did that nobody would expect, in sentences."""

    def __init__(
        self,
        folder: Path,
        journal: Journal,
        changes: dict[int, Swap],
        effects: dict[int, Effect] | None = None,
        elsewhere: str | None = None,
    ) -> None:
        self.folder = folder
        self.journal = journal
        self.elsewhere = elsewhere
        self.notes: list[Text] = []
        self._changes = changes
        self._effects = effects or {}
        self._prefix = folder.parents[len(RUNS.parts)]

    @property
    def id(self) -> str:
        return self.journal.run

    @property
    def unfinished(self) -> bool:
        """It was interrupted, or is being made or undone now."""
        return self.journal.state in UNFINISHED

    def note(self, **changes: object) -> None:
        """Writes the journal anew, whole or not at all, and to disk before this returns."""
        self.journal = dataclasses.replace(self.journal, **changes)  # type: ignore[arg-type]
        text = json.dumps(encode(self.journal), indent=1) + "\n"
        with Tree(self.folder) as tree:
            tree.write(JOURNAL, text.encode("utf-8", "surrogateescape"))

    def begin_change(self) -> Path:
        """A fresh numbered folder with an empty `new` in it, to stage a change."""
        with Tree(self.folder) as tree:
            number = max((0, *_numbers(tree, ""))) + 1
            tree.mkdir(f"{number}/new")
            tree.sync_folder("")
        return self.folder / str(number)

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
                _leave_aside(made)
                self.drop(change)  # else what is aside is all that there is of it
            raise
        # What it left of the staging is only empty folders.
        with contextlib.suppress(OSError), Tree(change) as tree:
            tree.remove("new")

    def perform(
        self, change: Path, effect: Effect, kind: Kind, carry_out: Callable[[Effect], None]
    ) -> None:
        """Notes an effect of this kind, has it carried out, and notes that it is done; where it
        fails, undoes it, if it can be, and raises what it failed with."""
        effect = dataclasses.replace(effect, kind=kind.name, state="planned")
        if self.journal.schema_version < manifest.EFFECTS_VERSION:
            self.note(schema_version=manifest.EFFECTS_VERSION)
        self._write_effect(change, effect)
        try:
            carry_out(effect)
        except BaseException:
            if effect.undo is not None:
                if left := _left_by_undo(kind, effect):  # no word hides why it failed
                    self.notes.append(left)
                else:
                    self.drop(change)
            else:  # it stays in the run, whose undo tells it again
                self.notes.append(
                    Text("{does} failed: what it did until then stays", does=effect.does)
                )
            raise
        self._write_effect(change, dataclasses.replace(effect, state="done"))

    def _write_effect(self, change: Path, effect: Effect) -> None:
        with Tree(change) as tree:
            text = manifest.encode_effect(effect)
            tree.write(EFFECT, text.encode("utf-8", "surrogateescape"))
        self._effects[int(change.name)] = effect

    def adopt(self, change: Path, made: Swap) -> None:
        """Notes a change that is made already."""
        text = manifest.encode_manifest(made, self._prefix)
        with Tree(change) as tree:
            tree.write(MANIFEST, text.encode("utf-8", "surrogateescape"))
        self._changes[int(change.name)] = made

    def drop(self, change: Path) -> None:
        """Forgets a change that was never made or is undone: that it is none any more is on
        disk before anything else is done."""
        self._changes.pop(int(change.name), None)
        self._effects.pop(int(change.name), None)
        with contextlib.suppress(OSError), Tree(self.folder) as tree:
            tree.unlink(f"{change.name}/{MANIFEST}")
            tree.unlink(f"{change.name}/{EFFECT}")
            tree.sync_folder(change.name)
            tree.remove(change.name)

    def changes(self) -> list[tuple[Path, Swap]]:
        """The changes whose manifests are on disk, in the order in which they were made."""
        return [(self.folder / str(number), made) for number, made in sorted(self._changes.items())]

    def undo(self) -> list[Text]:
        """Undoes every change, the last one first, and removes the run where nothing is left of
        it. Returns what was left alone, in sentences; then the run stays, with what was set aside
        for it. Can be killed and called again. Raises StateError, with nothing moved, where what
        was set aside is gone or could be another's."""
        self._must_be_possible()
        spared = self.journal.spared
        if not self.unfinished:
            # Decided for all changes before anything is moved: a killed undo goes on with it.
            changed = swap.modified(made for _, made in self.changes())
            first = self.journal.state == "applied"
            spared = tuple(sorted(changed if first else changed.intersection(spared)))
        with contextlib.suppress(OSError):  # a full disk must not keep anything from going back
            self.note(state="undoing", spared=spared)
        left = [Text("{name} was modified since; left untouched", name=name) for name in spared]
        for number in sorted({*self._changes, *self._effects}, reverse=True):
            folder = self.folder / str(number)
            if number in self._effects:
                left += self._undo_effect(folder, self._effects[number])
                continue
            made = self._changes[number]
            alone = swap.back(made, spared)
            # What someone changed since, and nothing is aside for any more, is theirs.
            left += alone or swap.still_different(made, spared)
            _leave_aside(made)
            if not _size_of(made.aside)[0]:
                self.drop(folder)
            elif not alone and not spared:
                left.append(
                    Text("{path} still holds what no manifest names; left there", path=made.aside)
                )
        if self._changes or self._effects:
            self.note(state="kept", ended=time.time())
        else:
            _discard(self.folder)
        return left

    def _undo_effect(self, folder: Path, effect: Effect) -> list[Text]:
        """What is left of an effect, in sentences. It stays in the run where a later undo could
        still do it."""
        what = _named(effect)
        if effect.undo is None:
            self.drop(folder)
            return [Text("{what}: cannot be undone", what=what)]
        kind = kind_named(effect.kind)
        if kind is None or type(kind).undo is Kind.undo:
            return [
                Text(
                    "{what}: unknown kind of step '{kind}'; name its rules with --rules",
                    what=what,
                    kind=effect.kind,
                )
            ]
        if left := _left_by_undo(kind, effect):
            return [left]
        if effect.state != "done":
            self.notes.append(Text("{what}: undone: {undo}", what=what, undo=effect.undo))
        self.drop(folder)
        return []

    def _must_be_possible(self) -> None:
        if self.elsewhere is not None:
            raise StateError(_made_elsewhere(self), self.id)
        for _, made in self.changes():
            if made.root != self._prefix and (why := why_not_private(made.aside)):
                raise StateError(Text("{why}; nothing of {run} was undone", why=why, run=self.id))
            if self.journal.state == "applied" and (gone := swap.lost(made)):
                raise StateError(
                    Text("what run {run} set aside of {path} is gone", run=self.id, path=gone[0]),
                    self.id,
                )

    def forget(self) -> None:
        """Removes the run with what it has set aside; of what lies beside a cache only what is
        still the very same, and nothing where the run was made elsewhere."""
        for _, made in self.changes() if self.elsewhere is None else ():
            if made.root != self._prefix and why_not_private(made.aside) is None:
                with Tree(made.aside) as aside:
                    for item in made.items:
                        if item.was and swap.same(item.was, aside, item.path):
                            aside.unlink(item.path)
                _leave_aside(made)
        _discard(self.folder)

    def size(self) -> int:
        """Bytes of what is set aside."""
        return sum(_size_of(made.aside)[1] for _, made in self.changes())


class State:
    """The doctor's folder below a prefix."""

    def __init__(self, prefix: Path) -> None:
        self.prefix = Path(os.path.realpath(prefix))
        self.folder = self.prefix / HOME
        self._runs = self.prefix / RUNS
        self._locked = self.prefix / LOCK
        self._made: tuple[str, ...] = ()
        self._decoded: dict[str, tuple[object, tuple[Journal, dict[int, Swap]]]] = {}

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
        made: list[str] = []
        with Tree(self.prefix) as tree:
            for at in FOLDERS:
                there = tree.lstat(at) is not None
                try:
                    tree.mkdir(at)
                except OSError as error:
                    for folder in reversed(made):
                        tree.rmdir(folder)
                    path, why = self.prefix / at, os_reason(error)
                    raise StateError(
                        Text("{path} cannot be made: {why}", path=path, why=why)
                    ) from None
                made += [] if there else [at]
        self._made = tuple(dict.fromkeys((*self._made, *made)))

    def _must_be_ours(self) -> None:
        """What is kept here says which files are put back and removed: it has to be root's or the
        user's own, and behind no link, or another user could have root move files."""
        with Tree(self.prefix) as tree:
            for at in FOLDERS:
                found = tree.lstat(at)
                if found is None:
                    return
                if not stat.S_ISLNK(found.st_mode) and at == FOLDERS[0]:
                    continue  # which others share
                if why := why_not_ours(self.prefix / at, found):
                    raise StateError(why)

    def _lock(self) -> int:
        path = self._locked
        while True:
            self._make()
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            try:
                # Never by its path: whoever may write into `share` could put a link on the way.
                with Tree(self.prefix) as tree:
                    handle = tree.open_or_make(str(LOCK), flags)
            except FileNotFoundError:
                continue  # another doctor has ended just now, and its folder went with it
            except OSError as error:
                why = os_reason(error)
                raise StateError(
                    Text("{path} cannot be written: {why}", path=path, why=why)
                ) from None
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                os.close(handle)  # what is written into it would be written into another file
                raise StateError(Text("{path} is not a lock of vllm-doctor: remove it", path=path))
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                busy = busy_with(self.prefix, handle)
                os.close(handle)
                raise busy from None
            with contextlib.suppress(OSError), Tree(self.prefix) as tree:
                there = tree.lstat(str(LOCK))
                if there is not None and os.fstat(handle).st_ino == there.st_ino:
                    break
            os.close(handle)  # its owner has removed it meanwhile
        with contextlib.suppress(OSError):  # a full disk must not keep anything from going back
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        return handle

    def _leave(self) -> None:
        """Removes the lock, which names a doctor that is done, and what is left of our folder if
        nothing in it is worth keeping."""
        with contextlib.suppress(OSError), Tree(self.prefix) as tree:
            tree.unlink(str(LOCK))
            worth = set(tree.names(str(HOME))) - {RUNS.name, "proofs.json", MAKING}
            if worth or tree.names(str(RUNS)):
                return
            for name in ("proofs.json", MAKING):
                tree.unlink(f"{HOME}/{name}")
            # Also where a doctor was killed before it could note that it had made them.
            for folder in reversed(FOLDERS):
                tree.rmdir(folder)
            if "." in self._made:
                self.prefix.rmdir()

    def begin(self, tool: str) -> Run:
        """A new run, its journal on disk."""
        stem = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        number = 1
        while os.path.lexists(self._runs / (id := stem if number == 1 else f"{stem}-{number}")):
            number += 1
        journal = Journal(
            id,
            "applying",
            tool,
            time.time(),
            made=self._made,
            prefix=str(self.prefix),
            inode=self.prefix.stat().st_ino,
            schema_version=manifest.MANIFEST_VERSION,
        )
        run = Run(self._runs / id, journal, {})
        with Tree(self.prefix) as tree:
            tree.mkdir(f"{RUNS}/{id}")
            try:
                for folder in (*reversed(FOLDERS), ""):
                    tree.sync_folder(folder)
                run.note()
            except BaseException:
                with contextlib.suppress(OSError):
                    tree.remove(f"{RUNS}/{id}")
                raise
        return run

    def survey(self) -> list[Run | Unusable]:
        """Every run, oldest first, with its changes, and why one cannot be used. A folder that
        holds neither a journal nor a manifest nor anything set aside is none: nothing was changed
        before there was one."""
        self._must_be_ours()
        found: list[Run | Unusable] = []
        with Tree(self.prefix) as tree:
            for name in tree.names(str(RUNS)):
                at = tree.lstat(f"{RUNS}/{name}")
                if at is None or stat.S_ISREG(at.st_mode) or name == _REMOVED:
                    continue
                try:
                    run = self._read(tree, name)
                except Damaged as error:
                    found.append(Unusable(name, error.text))
                except OSError as error:
                    found.append(Unusable(name, Text("{why}", why=os_refusal(error))))
                else:
                    found += [run] if run else []
        return found

    def runs(self) -> list[Run]:
        """Every run, oldest first. Raises StateError where one cannot be used."""
        made: list[Run] = []
        for run in self.survey():
            if isinstance(run, Unusable):
                raise run.error
            made.append(run)
        return made

    def _read(self, tree: Tree, name: str) -> Run | None:
        """A run as its folder holds it; None where nothing but staging can be in it. Raises Damaged
        where something set aside is in it that nothing written down accounts for."""
        at = f"{RUNS}/{name}"
        folder = self._runs / name
        self._owned(tree, at)
        journal = self._file(tree, f"{at}/{JOURNAL}", _JOURNAL_MOST)
        manifests, noted = {}, {}
        for number in _numbers(tree, at):
            self._owned(tree, f"{at}/{number}")
            data = self._file(tree, f"{at}/{number}/{MANIFEST}", _MANIFEST_MOST)
            effect = self._file(tree, f"{at}/{number}/{EFFECT}", _JOURNAL_MOST)
            if data is not None:
                manifests[number] = data
            elif effect is not None:
                noted[number] = effect
            elif files := _size_of(folder / str(number) / "aside")[0]:
                raise Damaged(
                    Text(
                        "{path} is gone, and {files} files are set aside in {aside}",
                        path=folder / str(number) / MANIFEST,
                        files=files,
                        aside=folder / str(number) / "aside",
                    )
                )
        if journal is None:
            if manifests or noted:
                path = folder / JOURNAL
                raise Damaged(Text("{path} is gone, and changes were made", path=path))
            return None
        made, changes = self._decode(name, journal, manifests)
        if noted and made.schema_version < manifest.EFFECTS_VERSION:
            # It would have no identity: what a copy of an environment is not to undo.
            path, version = folder / JOURNAL, made.schema_version
            raise Damaged(
                Text("{path} of version {version} has no effects", path=path, version=version)
            )
        effects = manifest.decode_effects(name, noted, self.prefix)
        manifest.must_be_complete(made, {*manifests, *effects}, folder)
        here = (str(self.prefix), self.prefix.stat().st_ino)
        moved = made.schema_version > 1 and (made.prefix, made.inode) != here
        return Run(folder, made, dict(changes), effects, made.prefix if moved else None)

    def _decode(
        self, name: str, journal: bytes, manifests: dict[int, bytes]
    ) -> tuple[Journal, dict[int, Swap]]:
        """`manifest.decode`, once for the same bytes: a command surveys the runs several times,
        and a manifest may have seventy thousand rows. Raises Damaged."""
        written = (journal, manifests)
        known = self._decoded.get(name)
        if known is None or known[0] != written:
            decoded = manifest.decode_manifest(name, journal, manifests, self.prefix)
            known = self._decoded[name] = (written, decoded)
        return known[1]

    def _ours(self, tree: Tree, path: str) -> os.stat_result | None:
        """What is at `path`. Raises Damaged where others may have written it."""
        found = tree.lstat(path)
        if found is not None and (why := why_not_ours(self.prefix / path, found)):
            raise Damaged(why)
        return found

    def _owned(self, tree: Tree, path: str) -> None:
        """Raises Damaged where others may have written what is at `path`, and for what is no
        folder."""
        found = self._ours(tree, path)
        if found is not None and not stat.S_ISDIR(found.st_mode):
            raise Damaged(Text("{path} is not a folder", path=self.prefix / path))

    def _file(self, tree: Tree, path: str, at_most: int) -> bytes | None:
        """A file of ours; None where there is none. Raises Damaged where others may have written
        it, and where it cannot be read."""
        if self._ours(tree, path) is None:
            return None
        try:
            return must_read(self.prefix / path, at_most)
        except TooLarge as error:
            raise Damaged(Text("{why}", why=error)) from None
        except OSError as error:
            at, why = self.prefix / path, os_reason(error)
            raise Damaged(Text("{path} cannot be read: {why}", path=at, why=why)) from None

    def recover(self, ours: Run | None = None) -> list[tuple[Run, list[Text]]]:
        """Rolls back every run but `ours` that was interrupted, the last one first: (run, what was
        left alone). Raises StateError, before anything is moved, where a run cannot be used, and
        where one that was made elsewhere was interrupted: half of it lies here."""
        runs = self.runs()
        for run in runs:
            if run.unfinished and run.elsewhere is not None:
                raise StateError(_made_elsewhere(run), run.id)
        recovered = []
        for run in reversed(runs):
            if run.unfinished and (ours is None or run.id != ours.id):
                recovered.append((run, self.undo(run)))
        known = {run.id for run in runs}
        with Tree(self._runs) as tree:
            for name in tree.names(""):
                # Nothing was changed before there was a journal: only staging can be in there, or
                # what was on its way out.
                at = tree.lstat(name)
                if name not in known and at and stat.S_ISDIR(at.st_mode):
                    with contextlib.suppress(PermissionError):  # it is in nobody's way
                        tree.remove(name)
        return recovered

    def undo(self, run: Run) -> list[Text]:
        """Takes a run back; what was left alone, in sentences."""
        # The folders that it made for us are the last of ours to go.
        self._made = tuple(dict.fromkeys((*run.journal.made, *self._made)))
        return run.undo()

    def purge(self, older_than: float = 0.0) -> list[Run]:
        """Removes what finished runs set aside, so that they can no longer be undone; only of runs
        that ended before `older_than` seconds ago. Returns them. Of one that was made elsewhere
        its folder alone goes; one that cannot be used stays."""
        removed = []
        for run in self.survey():
            if isinstance(run, Unusable):
                continue
            ended = run.journal.ended
            if not run.unfinished and ended is not None and time.time() - ended >= older_than:
                self._made = tuple(dict.fromkeys((*run.journal.made, *self._made)))
                run.forget()
                removed.append(run)
        return removed

    def held(self, name: str) -> tuple[int, int] | None:
        """Of a run, whatever state it is in: (files, bytes) that it has set aside in its folder.
        None where there is no such run."""
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            return None
        with Tree(self._runs) as tree:
            if tree.lstat(name) is None:
                return None
            sizes = [_size_of(self._runs / name / str(n) / "aside") for n in _numbers(tree, name)]
        return sum(files for files, _ in sizes), sum(size for _, size in sizes)

    def forget(self, name: str) -> None:
        """Removes the folder of a run, and nothing else, whatever state it is in: what is in place
        stays, what was set aside goes."""
        self._must_be_ours()
        _discard(self._runs / name)


def _named(effect: Effect) -> Text:
    """What it does, and whether it is known to be done."""
    if effect.state == "done":
        return Text("{does}", does=effect.does)
    return Text("{does} (interrupted; may have been done)", does=effect.does)


def _left_by_undo(kind: Kind, effect: Effect) -> Text | None:
    """Undoes an effect; a sentence where it stays."""
    try:
        kind.undo(effect)
    except (DoctorError, OSError) as error:
        return Text("{what}: {why}; left", what=_named(effect), why=error)
    except Exception as error:  # of a site's own kind, or of data that others have written
        what, why = _named(effect), place(error)
        return Text("{what}: its undo crashed: {why}; left", what=what, why=why)
    return None


def _discard(run: Path) -> None:
    """Removes the folder of a run. From one instant to the next it is none any more: a kill leaves
    no half of one."""
    with Tree(run.parent) as tree:
        tree.remove(_REMOVED)
        tree.rename(run.name, _REMOVED)
        tree.sync_folder("")
        tree.remove(_REMOVED)


def _made_elsewhere(run: Run) -> Text:
    return Text(
        "run {run} was made in {place}, and this environment is a copy of that or was moved: undo "
        "it there",
        run=run.id,
        place=run.elsewhere,
    )


def _numbers(tree: Tree, path: str) -> list[int]:
    """Of the changes in the folder of a run."""
    try:
        return sorted(int(name) for name in tree.names(path) if _NUMBER.fullmatch(name))
    except NotADirectoryError:
        return []


def _size_of(folder: Path) -> tuple[int, int]:
    """(files, bytes) below a folder; links and whatever else is no folder count as files."""
    try:
        with Tree(folder) as tree:
            sizes = [found.st_size for _, found in tree.files("")]
    except NotADirectoryError:  # a link or a file in its place
        return 1, 0
    return len(sizes), sum(sizes)


def _leave_aside(made: Swap) -> None:
    """Removes the folders aside in which no file is left; beside a cache also the one around them,
    which holds those of all runs."""
    folders = sorted(manifest.folders_of(i.path for i in made.items if i.was), reverse=True)
    with Tree(made.aside) as tree:
        for folder in folders:
            tree.rmdir(folder)
    for at in (made.aside, made.aside.parent):
        with Tree(at.parent) as tree:
            tree.rmdir(at.name)
