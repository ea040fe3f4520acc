"""The one way in which anything is changed: files are renamed away, others renamed into place.

What is to come lies ready in a staging folder, what was there goes to a folder aside, both laid out
like `root`, and a manifest of it all is on disk before the first rename. So a swap that was killed
at any instant can be taken back by looking at what is where: no installer ever works on the target
itself.
"""

# A vLLM environment has seventy thousand files: the loops over them work on text, not on Path.
# ruff: noqa: PTH105, PTH108, PTH114, PTH115, PTH123

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

_CHUNK = 1 << 20


class SwapError(Exception):
    """A change that cannot be made; one sentence. Nothing was moved."""


class Print(NamedTuple):
    """What one file or link was, to know it again. `digest`: sha256 of a file's bytes in
    hexadecimal, or where a link leads; mtime in nanoseconds. A file whose size, mtime and inode are
    the same is the same; another one is compared by its digest."""

    kind: Literal["file", "link"]
    mode: int
    size: int
    mtime: int
    inode: int
    digest: str

    def of(self, path: str) -> bool:
        """`path` is still what this was taken of."""
        try:
            now = os.lstat(path)
        except OSError:
            return False
        if self.kind == "link":
            return stat.S_ISLNK(now.st_mode) and os.readlink(path) == self.digest
        if not stat.S_ISREG(now.st_mode) or now.st_size != self.size:
            return False
        if (now.st_mtime_ns, now.st_ino) == (self.mtime, self.inode):
            return True
        return sha256(path) == self.digest


def fingerprint(path: str, known_digest: str | None = None) -> Print:
    """The Print of what lies at `path`, a link itself; `known_digest` saves reading the file.
    Raises SwapError for what is neither a file nor a link."""
    at = os.lstat(path)
    kind: Literal["file", "link"]
    if stat.S_ISLNK(at.st_mode):
        kind, digest = "link", os.readlink(path)
    elif stat.S_ISREG(at.st_mode):
        kind, digest = "file", known_digest or sha256(path)
    else:
        raise SwapError(f"{path} is neither a file nor a link")
    return Print(kind, stat.S_IMODE(at.st_mode), at.st_size, at.st_mtime_ns, at.st_ino, digest)


def sha256(path: str) -> str:
    made = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            made.update(chunk)
    return made.hexdigest()


class Item(NamedTuple):
    """One path below the root: what it was and what it becomes; None is nothing."""

    path: str
    was: Print | None
    now: Print | None


@dataclass(frozen=True)
class Swap:
    """One change. `new` holds what is put below `root`, `aside` takes what was there; `made` are
    the folders, relative to `root` and outermost first, that the change creates, `kept` those that
    it may empty and remove, with the permissions to make them with again."""

    root: Path
    new: Path
    aside: Path
    items: tuple[Item, ...] = ()
    made: tuple[str, ...] = ()
    kept: tuple[tuple[str, int], ...] = ()


def plan(
    root: Path,
    new: Path,
    aside: Path,
    away: Iterable[str],
    digests: Mapping[str, str] | None = None,
) -> Swap:
    """The swap that puts everything below `new` into `root` and takes the paths `away` out of it.

    `digests`: sha256 of staged files that is known already, by path. Raises SwapError where a path
    leads out of `root`, or something other than files and links is in the way.
    """
    known = digests or {}
    guard = _Guard(root)
    staged = {p: guard.real(p) for p in _below(new)}
    for path, real in staged.items():
        if path != real:  # lib64 of Fedora is a link to lib
            (new / real).parent.mkdir(parents=True, exist_ok=True)
            (new / path).rename(new / real)
    coming = {real: fingerprint(f"{new}/{real}", known.get(p)) for p, real in staged.items()}
    there = []
    for path in dict.fromkeys([*map(guard.real, away), *coming]):
        if os.path.lexists(f"{root}/{path}"):
            there.append(path)
    with ThreadPoolExecutor() as pool:  # hashing is most of the work, and runs beside itself
        going = dict(zip(there, pool.map(fingerprint, (f"{root}/{p}" for p in there)), strict=True))
    items = tuple(
        Item(path, going.get(path), coming.get(path)) for path in sorted({*going, *coming})
    )
    made = sorted(f for f in _folders(coming) if not (root / f).is_dir())
    emptied = sorted(_folders(i.path for i in items if i.was and not i.now))
    kept = tuple((f, stat.S_IMODE((root / f).lstat().st_mode)) for f in emptied)
    return Swap(root, new, aside, items, tuple(made), kept)


def _folders(paths: Iterable[str]) -> set[str]:
    """All folders, relative like the paths, on the way to them."""
    found: set[str] = set()
    for folder in {path.rpartition("/")[0] for path in paths}:
        at = folder
        while at and at not in found:
            found.add(at)
            at = at.rpartition("/")[0]
    return found


def encode(swap: Swap, base: Path) -> dict[str, Any]:
    """The manifest as JSON data: rows, since a whole environment has seventy thousand. Folders
    below `base` relative to it, so that an environment may be moved or copied."""
    rows = [[i.path, i.was and list(i.was), i.now and list(i.now)] for i in swap.items]
    named = {"root": swap.root, "new": swap.new, "aside": swap.aside}
    folders = {
        name: str(path.relative_to(base) if path.is_relative_to(base) else path)
        for name, path in named.items()
    }
    kept = [list(row) for row in swap.kept]
    return {**folders, "made": list(swap.made), "kept": kept, "items": rows}


def decode(data: Any, base: Path) -> Swap:
    """The manifest again. Raises ValueError where it is none."""
    try:
        items = tuple(
            Item(path, was and Print(*was), now and Print(*now)) for path, was, now in data["items"]
        )
        root, new, aside = (base / data[name] for name in ("root", "new", "aside"))
        kept = tuple((str(folder), int(mode)) for folder, mode in data["kept"])
        return Swap(root, new, aside, items, tuple(data["made"]), kept)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no manifest of a change: {error!r}") from None


def adopted(root: Path, change: Path, but: Path) -> Swap:
    """The swap that would have made all there is below `root`, `but` one folder."""
    files, made = [], []
    for at, folders, names in os.walk(root):
        folders[:] = [n for n in folders if Path(at, n) != but]
        links = [n for n in folders if Path(at, n).is_symlink()]
        files += [os.path.relpath(Path(at, n), root) for n in [*names, *links]]
        made += [os.path.relpath(Path(at, n), root) for n in folders if n not in links]
    items = tuple(Item(p, None, fingerprint(f"{root}/{p}")) for p in sorted(files))
    return Swap(root, change / "new", change / "aside", items, tuple(sorted(made)))


def _below(folder: Path) -> Iterator[str]:
    """All files and links below a folder, relative to it; links are not followed."""
    top = len(str(folder)) + 1
    for at, names, files in os.walk(folder):
        links = [n for n in names if os.path.islink(f"{at}/{n}")]
        for name in [*files, *links]:
            yield f"{at}/{name}"[top:]


class _Guard:
    """Keeps every path below the root, also where a folder on the way is a link out of it."""

    def __init__(self, root: Path) -> None:
        self._root = Path(os.path.realpath(root))
        self._folders: dict[str, str | None] = {}

    def real(self, path: str) -> str:
        """The path without links on the way to it, so that every file has one name."""
        folder, _, name = path.rpartition("/")
        if folder not in self._folders:
            real = Path(os.path.realpath(self._root / folder))
            inside = real.is_relative_to(self._root)
            self._folders[folder] = str(real.relative_to(self._root)) if inside else None
        real_folder = self._folders[folder]
        if path.startswith("/") or ".." in path.split("/") or real_folder is None:
            raise SwapError(f"{path} leads out of {self._root}")
        return name if real_folder == "." else f"{real_folder}/{name}"


def forward(swap: Swap) -> None:
    """Makes the change. Raises OSError half-way; `back` then takes back what was done."""
    going = [i.path for i in swap.items if i.was]
    swap.aside.mkdir(parents=True, exist_ok=True)
    for folder in sorted(_folders(going)):
        (swap.aside / folder).mkdir(exist_ok=True)
    for path in going:
        _move(f"{swap.root}/{path}", f"{swap.aside}/{path}")
    for folder in swap.made:
        (swap.root / folder).mkdir(exist_ok=True)
    for item in swap.items:
        if item.now:
            _move(f"{swap.new}/{item.path}", f"{swap.root}/{item.path}")
    for folder, _ in reversed(swap.kept):
        _remove_if_empty(swap.root / folder)


def back(swap: Swap) -> list[Path]:
    """Takes the change back, from wherever it stands, and may itself be killed and called again.

    Returns the paths that were left alone because they are no longer what the change made of them.
    What was set aside for those stays aside.
    """
    refused = []
    _remove_compiled(swap)
    for folder, mode in swap.kept:
        if not os.path.lexists(swap.root / folder):
            (swap.root / folder).mkdir()
            (swap.root / folder).chmod(mode)
    for old in (False, True):  # a folder that was made may stand where a file was
        for item in reversed(swap.items):
            if bool(item.was) is old and not _back(swap, item):
                refused.append(swap.root / item.path)
        for folder in sorted(swap.made, reverse=True):
            _remove_if_empty(swap.root / folder / "__pycache__")
            _remove_if_empty(swap.root / folder)
    return sorted(refused)


def lost(swap: Swap) -> list[Path]:
    """What cannot be put back: it is neither aside nor where it was."""
    return [
        swap.root / i.path
        for i in swap.items
        if i.was
        and not os.path.lexists(swap.aside / i.path)
        and not i.was.of(f"{swap.root}/{i.path}")
    ]


def _back(swap: Swap, item: Item) -> bool:
    here, aside, new = (f"{at}/{item.path}" for at in (swap.root, swap.aside, swap.new))
    with contextlib.suppress(OSError):
        os.unlink(_copy(here))  # of a copy across filesystems that was cut off
    if item.was and not os.path.lexists(aside):
        return True  # never went aside, or is back already
    if os.path.lexists(here):
        placed = item.now is not None and not os.path.lexists(new)
        ours = item.now is not None and item.now.of(here)
        if item.was and not (placed and ours) and item.was.of(here):
            os.unlink(aside)  # a copy that was cut off, or someone has put the same bytes back
            return True
        if not ours and item.was is None and os.path.lexists(new):
            return True  # ours was never placed
        if not ours and not _derived(item.path):
            return False
        if item.was is None:
            os.unlink(here)
    if item.was:
        os.makedirs(os.path.dirname(here), exist_ok=True)  # noqa: PTH103, PTH120
        _move(aside, here)
    return True


def missing_or_changed(swap: Swap) -> list[Path]:
    """Of a change that was taken back: what is not as it was, by manifest."""
    return [
        swap.root / i.path
        for i in swap.items
        if (i.was and not i.was.of(f"{swap.root}/{i.path}"))
        or (i.was is None and os.path.lexists(f"{swap.root}/{i.path}"))
    ]


def _derived(path: str) -> bool:
    """Bytecode: whoever imports the module writes it anew."""
    return path.endswith(".pyc")


def compiled(root: Path, paths: Iterable[str]) -> Iterator[str]:
    """The bytecode files, relative to `root`, that belong to the Python files among `paths`."""
    wanted: dict[str, set[str]] = {}
    for path in paths:
        if path.endswith(".py"):
            parent, _, name = path.rpartition("/")
            wanted.setdefault(parent, set()).add(name[:-3])
    for parent, stems in wanted.items():
        cache = f"{parent}/__pycache__" if parent else "__pycache__"
        with contextlib.suppress(OSError):
            for name in os.listdir(root / cache):  # noqa: PTH208 - names, not paths
                if name.endswith(".pyc") and name.partition(".")[0] in stems:
                    yield f"{cache}/{name}"


def _remove_compiled(swap: Swap) -> None:
    """Bytecode that was written of files which we placed goes with them."""
    kept = {i.path for i in swap.items if i.was}
    placed = (i.path for i in swap.items if i.now and not os.path.lexists(swap.new / i.path))
    for path in list(compiled(swap.root, placed)):
        if path not in kept:
            with contextlib.suppress(OSError):
                (swap.root / path).unlink()


def _copy(place: str) -> str:
    """Where a file is copied to before it takes its place."""
    folder, _, name = place.rpartition("/")
    return f"{folder}/.{name}.vllm-doctor"


def _move(source: str, place: str) -> None:
    """A rename; across filesystems a copy that appears whole or not at all, then the removal."""
    try:
        os.replace(source, place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy = Path(_copy(place))
        copy.unlink(missing_ok=True)
        shutil.copy2(source, copy, follow_symlinks=False)
        copy.replace(place)
        Path(source).unlink()


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
