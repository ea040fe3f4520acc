"""The one way in which anything is changed: files are renamed away, others renamed into place.

What is to come lies ready in a staging folder, what was there goes to a folder aside, both laid out
like `root`, and a manifest of it all is on disk before the first rename. So a swap that was killed
at any instant can be undone by looking at what is where: no installer ever works on the target
itself. Nothing is reached through a link (doctor.repair.tree). What a power cut could reorder is on
disk in time: the staged files and the manifest before the first rename, what went aside before
anything takes its place, the whole change before anything else is done.
"""

# A vLLM environment has seventy thousand files: the loops over them work on text, not on Path.

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from doctor.errors import DoctorError
from doctor.exits import FAILED
from doctor.model import Text
from doctor.repair.manifest import Fingerprint, PathChange, Swap, folders_of, may_change
from doctor.repair.tree import Tree, name_of_copy

_CHUNK = 1 << 20


class SwapError(DoctorError):
    """A change that cannot be made; one sentence. Nothing was moved."""

    def __init__(self, text: Text) -> None:
        super().__init__(text, FAILED)


def same(known: Fingerprint, tree: Tree, path: str) -> bool:
    """What lies at `path` is still what the fingerprint was taken of."""
    try:
        now = tree.lstat(path)
        if now is None:
            return False
        if known.kind == "link":
            return stat.S_ISLNK(now.st_mode) and tree.readlink(path) == known.digest
        if not stat.S_ISREG(now.st_mode) or now.st_size != known.size:
            return False
        if (now.st_mtime_ns, now.st_ino) == (known.mtime, known.inode):
            return True
        return sha256(tree, path) == known.digest
    except OSError:
        return False


def fingerprint(tree: Tree, path: str, known_digest: str | None = None) -> Fingerprint:
    """The fingerprint of what lies at `path`, a link itself; `known_digest` saves reading the file.
    Raises SwapError for what is neither a file nor a link."""
    at = tree.lstat(path)
    kind: Literal["file", "link"]
    if at is not None and stat.S_ISLNK(at.st_mode):
        kind, digest = "link", tree.readlink(path)
    elif at is not None and stat.S_ISREG(at.st_mode):
        kind, digest = "file", known_digest or sha256(tree, path)
    else:
        raise SwapError(Text("{top}/{path} is neither a file nor a link", top=tree.top, path=path))
    return Fingerprint(
        kind, stat.S_IMODE(at.st_mode), at.st_size, at.st_mtime_ns, at.st_ino, digest
    )


def sha256(tree: Tree, path: str) -> str:
    made = hashlib.sha256()
    with os.fdopen(tree.open(path), "rb") as file:
        while chunk := file.read(_CHUNK):
            made.update(chunk)
    return made.hexdigest()


def plan(
    root: Path,
    new: Path,
    aside: Path,
    away: Iterable[str],
    digests: Mapping[str, str] | None = None,
    groups: Mapping[str, str] | None = None,
) -> Swap:
    """The swap that puts everything below `new` into `root` and takes the paths `away` out of it.

    `digests`: sha256 of staged files that is known already, by path; `groups`: the distribution
    that a path belongs to. Raises SwapError where a path leads out of `root` or into the doctor's
    own folder, or something other than files and links is in the way.
    """
    known = digests or {}
    guard = _Guard(root)
    staged = {p: guard.real(p) for p in _below(new)}
    for path, real in staged.items():
        if path != real:  # lib64 of Fedora is a link to lib
            (new / real).parent.mkdir(parents=True, exist_ok=True)
            (new / path).rename(new / real)
    with Tree(guard.root) as there, Tree(new) as ready:
        coming = {real: fingerprint(ready, real, known.get(p)) for p, real in staged.items()}
        named = {guard.real(p): p for p in away} | {real: p for p, real in staged.items()}
        old = [path for path in named if there.lstat(path) is not None]
        with ThreadPoolExecutor() as pool:  # hashing is most of the work, and runs beside itself
            prints = pool.map(lambda path: fingerprint(there, path), old)
            going = dict(zip(old, prints, strict=True))
        emptied = sorted(folders_of(p for p in going if p not in coming))
        kept = tuple((f, stat.S_IMODE(_folder(there, f).st_mode)) for f in emptied)
        made = tuple(f for f in sorted(folders_of(coming)) if not _is_folder(there, f))
    of = groups or {}
    items = tuple(
        PathChange(path, going.get(path), coming.get(path), of.get(named[path]))
        for path in sorted({*going, *coming})
    )
    return Swap(guard.root, new, aside, items, made, kept)


def _found(tree: Tree, path: str) -> os.stat_result | None:
    """What is at the path; None also where a file is on the way to it."""
    try:
        return tree.lstat(path)
    except NotADirectoryError:
        return None


def _is_folder(tree: Tree, path: str) -> bool:
    found = _found(tree, path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def _folder(tree: Tree, path: str) -> os.stat_result:
    found = tree.lstat(path)
    if found is None:
        raise SwapError(Text("{top}/{path} went away meanwhile", top=tree.top, path=path))
    return found


def adopted(root: Path, change: Path, but: Path) -> Swap:
    """The swap that would have made all there is below `root`, `but` one folder."""
    files, made = [], []
    for at, folders, names in os.walk(root):
        folders[:] = [n for n in folders if Path(at, n) != but]
        links = [n for n in folders if Path(at, n).is_symlink()]
        files += [os.path.relpath(Path(at, n), root) for n in [*names, *links]]
        made += [os.path.relpath(Path(at, n), root) for n in folders if n not in links]
    with Tree(root) as tree:
        items = tuple(PathChange(p, None, fingerprint(tree, p)) for p in sorted(files))
    return Swap(root, change / "new", change / "aside", items, tuple(sorted(made)))


def _below(folder: Path) -> Iterator[str]:
    """All files and links below a folder, relative to it; links are not followed."""
    top = len(str(folder)) + 1
    for at, names, files in os.walk(folder):
        links = [n for n in names if os.path.islink(f"{at}/{n}")]  # noqa: PTH114
        for name in [*files, *links]:
            yield f"{at}/{name}"[top:]


class _Guard:
    """Keeps every path below the root, also where a folder on the way is a link out of it, and out
    of the doctor's own folder."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        self._folders: dict[str, str | None] = {}

    def real(self, path: str) -> str:
        """The path without links on the way to it, so that every file has one name."""
        folder, _, name = path.rpartition("/")
        if folder not in self._folders:
            real = Path(os.path.realpath(self.root / folder))
            inside = real.is_relative_to(self.root)
            self._folders[folder] = str(real.relative_to(self.root)) if inside else None
        real_folder = self._folders[folder]
        if path.startswith("/") or ".." in path.split("/") or real_folder is None:
            raise SwapError(Text("{path} leads out of {root}", path=path, root=self.root))
        made = name if real_folder == "." else f"{real_folder}/{name}"
        if not may_change(made):
            raise SwapError(Text("{path} is the doctor's own, and no change of it", path=path))
        return made


def forward(swap: Swap) -> None:
    """Makes the change; it is on disk when this returns. Raises OSError half-way; `back` then takes
    back what was done."""
    with Tree(swap.root) as root, Tree(swap.new) as new, Tree(swap.aside) as aside:
        going = [i.path for i in swap.items if i.was]
        if any(i.now for i in swap.items):
            root.sync()  # what was staged
        aside.make()
        for folder in sorted(folders_of(going)):
            aside.mkdir(folder)
        for path in going:
            root.move(path, aside)
        if any(i.was and i.now for i in swap.items):
            # Lost from one folder and not yet in the other, a file would be nowhere once another
            # one has its place.
            root.sync()
        for folder in swap.made:
            root.mkdir(folder)
        for item in swap.items:
            if item.now:
                new.move(item.path, root)
        for folder, _ in reversed(swap.kept):
            root.rmdir(folder)
        root.sync()


def back(swap: Swap, spared: Collection[str] = ()) -> list[Text]:
    """Takes the change back but for the distributions `spared`, from wherever it stands, and may
    itself be killed and called again; what it did is on disk when it returns.

    Returns what was left alone, in sentences: what is no longer what the change made of it, and
    what was set aside and is no longer what it was. What was set aside for those stays aside.
    """
    items = [i for i in swap.items if i.group not in spared]
    left: list[Text] = []
    with Tree(swap.root) as root, Tree(swap.new) as new, Tree(swap.aside) as aside:
        _remove_compiled(root, new, items)
        _remove_copies(root, [i.path for i in items if i.now])
        _remove_copies(aside, [i.path for i in items if i.was])
        needed = folders_of(i.path for i in items if i.was)
        for folder, mode in swap.kept:
            if folder in needed:
                with contextlib.suppress(NotADirectoryError):  # a file of ours is there, and goes
                    if root.lstat(folder) is None:
                        root.mkdir(folder, mode)
        for old in (False, True):  # a folder that was made may stand where a file was
            for item in reversed(items):
                if bool(item.was) is old and (why := _back(root, new, aside, item)):
                    left.append(why)
            for folder in sorted(swap.made, reverse=True):
                root.rmdir(f"{folder}/__pycache__")
                root.rmdir(folder)
        root.sync()
    return sorted(left, key=str)


def _back(root: Tree, new: Tree, aside: Tree, item: PathChange) -> Text | None:
    """Why one path was left alone, None where it is as it was before the change."""
    path = item.path
    try:
        unplaced = new.lstat(path) is not None
        if item.was and aside.lstat(path) is None:
            return None  # never went aside, or is back already
        here = root.lstat(path) is not None
        ours = item.now is not None and same(item.now, root, path)
        placed = item.now is not None and not unplaced
        if here and item.was and not (placed and ours) and same(item.was, root, path):
            aside.unlink(path)  # a copy that was interrupted, or the same bytes put back by someone
            return None
        if here and not ours:
            if item.was is None and unplaced:
                return None
            if not derived(path):
                return _modified(root.top, path)
        if item.was and not same(item.was, aside, path):
            return Text(
                "what was set aside of {root}/{path} is damaged; left in {aside}/{path}",
                root=root.top,
                aside=aside.top,
                path=path,
            )
        _restore(root, aside, item)
    except (IsADirectoryError, NotADirectoryError, FileExistsError):
        # A folder is there now, or something else where a folder was on the way.
        return _modified(root.top, path)
    return None


def _modified(top: Path, path: str) -> Text:
    return Text("{path} was modified since; left untouched", path=f"{top}/{path}")


def _restore(root: Tree, aside: Tree, item: PathChange) -> None:
    if item.was is None:
        root.unlink(item.path)
        return
    try:
        aside.move(item.path, root)
    except FileNotFoundError:  # the folder went with what was in it
        root.mkdir(item.path.rpartition("/")[0])
        aside.move(item.path, root)
    # Of two names of one file (uv links what it installs from its cache) rename(2) leaves both, and
    # only then is there one to remove: what lies aside may be all there is of the file.
    if aside.lstat(item.path) is not None:
        aside.unlink(item.path)


def lost(swap: Swap) -> list[str]:
    """What cannot be put back: it is neither aside nor where it was."""
    with Tree(swap.root) as root, Tree(swap.aside) as aside:
        return [
            f"{swap.root}/{i.path}"
            for i in swap.items
            if i.was and not _there(aside, i.path) and not same(i.was, root, i.path)
        ]


def modified(swaps: Iterable[Swap]) -> set[str]:
    """The distributions of which something is no longer what these changes, one after the other,
    made of it; bytecode does not count."""
    last = {(s.root, i.path): (s, i) for s in swaps for i in s.items if i.group is not None}
    found: set[str] = set()
    by_swap: dict[int, tuple[Swap, list[PathChange]]] = {}
    for one, item in last.values():
        by_swap.setdefault(id(one), (one, []))[1].append(item)
    for one, items in by_swap.values():
        with Tree(one.root) as root, Tree(one.aside) as aside:
            for item in items:
                counts = item.group not in found and not derived(item.path)
                if item.group and counts and not _stands(root, aside, item):
                    found.add(item.group)
    return found


def _stands(root: Tree, aside: Tree, item: PathChange) -> bool:
    """The path is what the change made of it, or what it was before again."""
    here = _there(root, item.path)
    if (here and item.now and same(item.now, root, item.path)) or not (here or item.now):
        return True
    if item.was is None:
        return not here
    return not _there(aside, item.path) and same(item.was, root, item.path)


def _there(tree: Tree, path: str) -> bool:
    return _found(tree, path) is not None


def still_different(swap: Swap, spared: Collection[str] = ()) -> list[Text]:
    """Of a change that was undone: what is not as it was, in sentences."""
    with Tree(swap.root) as root:
        return [
            _modified(swap.root, i.path)
            for i in swap.items
            if i.group not in spared
            and ((i.was and not same(i.was, root, i.path)) or (not i.was and _there(root, i.path)))
        ]


def derived(path: str) -> bool:
    """Bytecode: whoever imports the module writes it anew."""
    return path.endswith(".pyc")


def bytecode_of(root: Path, paths: Iterable[str]) -> Iterator[str]:
    """The bytecode files, relative to `root`, that belong to the Python files among `paths`."""
    with Tree(Path(os.path.realpath(root))) as tree:
        yield from _compiled(tree, paths)


def _compiled(tree: Tree, paths: Iterable[str]) -> Iterator[str]:
    wanted: dict[str, set[str]] = {}
    for path in paths:
        if path.endswith(".py"):
            parent, _, name = path.rpartition("/")
            wanted.setdefault(parent, set()).add(name[:-3])
    for parent, stems in wanted.items():
        cache = f"{parent}/__pycache__" if parent else "__pycache__"
        with contextlib.suppress(OSError):
            for name in tree.names(cache):
                if name.endswith(".pyc") and name.partition(".")[0] in stems:
                    yield f"{cache}/{name}"


def module_of(path: str) -> str:
    """The Python file that a bytecode file was made of."""
    parent, _, name = path.rpartition("/")
    folder = parent.rpartition("/")[0]
    module = f"{name.partition('.')[0]}.py"
    return f"{folder}/{module}" if folder else module


def _remove_compiled(root: Tree, new: Tree, items: Iterable[PathChange]) -> None:
    """Bytecode that was written of files which we placed goes with them."""
    kept = {i.path for i in items if i.was}
    placed = [i.path for i in items if i.now and new.lstat(i.path) is None]
    for path in list(_compiled(root, placed)):
        if path not in kept:
            with contextlib.suppress(OSError):
                root.unlink(path)


def _remove_copies(tree: Tree, paths: Iterable[str]) -> None:
    """What an interrupted copy across filesystems has left beside the place of its file."""
    wanted: dict[str, set[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        wanted.setdefault(folder, set()).add(name_of_copy(name))
    for folder, copies in wanted.items():
        with contextlib.suppress(NotADirectoryError):
            for name in copies.intersection(tree.names(folder)):
                tree.unlink(f"{folder}/{name}" if folder else name)
