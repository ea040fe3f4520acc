"""What a run wrote down of itself, and how it is read again: as if a stranger had written it.

A journal and its manifests lie below the environment that they are about, and an environment can
be unpacked, copied or handed over. So nothing in them is believed: `decode` accepts no path but
normal relative ones below one root, and says itself where a change has its folders. No file is
looked at here.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from doctor import codec
from doctor.errors import DoctorError
from doctor.exits import FAILED
from doctor.model import Text
from doctor.numbers import YEAR_10000
from doctor.probes.environment import HOME, SAVED
from doctor.probes.repairs import EFFECT, JOURNAL, MANIFEST, RUNS

MANIFEST_VERSION = 2
"""Of the journal. 1, of vllm-doctor 0.1.0, has no identity of its environment."""
EFFECTS_VERSION = 3
"""Of the journal of a run with an Effect, which an older doctor would not undo."""
ASIDE_BESIDE_A_CACHE = "vllm-doctor-set-aside"
FOLDERS = tuple(str(at) for at in (*reversed(RUNS.parents), RUNS) if at != Path())
"""Of our own below the prefix, outermost first."""
_MADE = frozenset((".", *FOLDERS))
_OURS = frozenset(FOLDERS[:-1])

_RUN = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}")
_NO_NAMES = frozenset(("", ".", ".."))
_HEX = re.compile(r"[0-9a-f]{64}")
_OWN_HOME = re.compile(r"cuda-\d[\d.]*(?:/.*)?", re.DOTALL)
# FlashInfer's kernels, wherever its workspace is (doctor.probes.jit).
_KERNELS = re.compile(r"(?:/[^/]+)*/\.cache/flashinfer/\d[\w.+!-]*/\w+/cached_ops(/tmp)?")
_PATH_MOST, _NAME_MOST = 4095, 255  # PATH_MAX without its NUL, NAME_MAX
_WHOLE_MOST = 1 << 63
_TOLD_MOST = 200


class Damaged(DoctorError):
    """What a run wrote down cannot be used; one sentence that names the file."""

    def __init__(self, text: Text) -> None:
        super().__init__(text, FAILED)


class Fingerprint(NamedTuple):
    """What one file or link was, to know it again. `digest`: sha256 of a file's bytes in
    hexadecimal, or where a link leads; mtime in nanoseconds. A file whose size, mtime and inode are
    the same is the same; another one is compared by its digest."""

    kind: Literal["file", "link"]
    mode: int
    size: int
    mtime: int
    inode: int
    digest: str


class PathChange(NamedTuple):
    """One path below the root: what it was and what it becomes; None is nothing. `group`: the
    distribution that it belongs to, which is undone whole or not at all."""

    path: str
    was: Fingerprint | None
    now: Fingerprint | None
    group: str | None = None


@dataclass(frozen=True)
class Swap:
    """One change. `new` holds what is put below `root`, `aside` takes what was there; `made` are
    the folders, relative to `root` and outermost first, that the change creates, `kept` those that
    it may empty and remove, with the permissions to make them with again."""

    root: Path
    new: Path
    aside: Path
    items: tuple[PathChange, ...] = ()
    made: tuple[str, ...] = ()
    kept: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Effect:
    """One change outside of every folder: a download, a signal to a process. `does`: what, and
    `undo`: what its undo does, one short line each for a person; None where it has none. `data`:
    what its kind needs for both. `kind` and `state` are the run's to fill in: "planned" until it is
    known to be done, so that a kill leaves none untold."""

    does: str
    undo: str | None = None
    data: Mapping[str, str] = field(default_factory=dict)
    kind: str = ""
    state: Literal["planned", "done"] = "planned"


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
    own that the run had to make, relative to the prefix, outermost first; `prefix` (without links)
    and `inode`: of the environment, which may be copied or moved; `spared`: the distributions that
    its undo leaves, decided before anything is moved."""

    run: str
    state: Literal["applying", "applied", "undoing", "kept"]
    tool: str = ""
    began: float = 0.0
    ended: float | None = None
    actions: tuple[Done, ...] = ()
    made: tuple[str, ...] = ()
    prefix: str = ""
    inode: int | None = None
    spared: tuple[str, ...] = ()
    schema_version: int = 1


def places(prefix: Path, run: str, number: int, root: Path) -> tuple[Path, Path]:
    """Where a change of a run has what is to come, and what it sets aside: in the folder of the
    change; of FlashInfer's kernels in a folder beside `cached_ops`, on their own filesystem and
    where FlashInfer, which looks an op up by its name alone, does not look for it."""
    folder = prefix / RUNS / run / str(number)
    if root == prefix:
        return folder / "new", folder / "aside"
    return folder / "new", root.parent / ASIDE_BESIDE_A_CACHE / f"{run}-{number}"


def is_kernel_cache(folder: Path) -> bool:
    """`folder` is one of FlashInfer's, outside of an environment, of which kernels (or, in its
    `tmp`, their locks) may be set aside."""
    return ".." not in folder.parts and bool(_KERNELS.fullmatch(str(folder)))


def folders_of(paths: Iterable[str]) -> set[str]:
    """All folders, relative like the paths, on the way to them."""
    found: set[str] = set()
    for folder in {path.rpartition("/")[0] for path in paths}:
        at = folder
        while at and at not in found:
            found.add(at)
            at = at.rpartition("/")[0]
    return found


def may_change(path: str) -> bool:
    """No change reaches into the doctor's own folder, but for what fixes put there."""
    first = len(HOME.parts[0])
    if path[:first].casefold() != HOME.parts[0]:
        return True  # what seventy thousand rows are asked
    if not f"{path}/".casefold().startswith(f"{HOME}/"):
        return True
    return path == str(SAVED) or bool(_OWN_HOME.fullmatch(path[len(f"{HOME}/") :]))


def encode_manifest(change: Swap, prefix: Path) -> str:
    """The manifest of a change as JSON: rows, since a whole environment has seventy thousand."""
    groups = sorted({item.group for item in change.items if item.group is not None})
    numbers = {name: number for number, name in enumerate(groups)}
    rows = [
        [i.path, i.was and list(i.was), i.now and list(i.now), i.group and numbers[i.group]]
        for i in change.items
    ]
    root = "." if change.root == prefix else str(change.root)
    kept = [list(row) for row in change.kept]
    made = list(change.made)
    return json.dumps({"root": root, "groups": groups, "made": made, "kept": kept, "items": rows})


def encode_effect(effect: Effect) -> str:
    """The effect as JSON."""
    return json.dumps(codec.encode(effect), indent=1) + "\n"


def decode_effects(run: str, effects: Mapping[int, bytes], prefix: Path) -> dict[int, Effect]:
    """The effects of the run in the folder `run` by their numbers. Raises Damaged, and nothing
    else, for whatever is none."""
    made = {}
    for number, data in effects.items():
        try:
            made[number] = codec.decode(Effect, codec.parse_json(data))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise _damaged(prefix / RUNS / run / str(number) / EFFECT, error) from None
    return made


def decode_manifest(
    run: str, journal: bytes, manifests: Mapping[int, bytes], prefix: Path
) -> tuple[Journal, dict[int, Swap]]:
    """The journal of the run in the folder `run`, and its changes by their numbers; without those
    that a copy of an environment is not to undo, since they lie outside of it. Raises Damaged,
    and nothing else, for whatever is none."""
    folder = prefix / RUNS / run
    at = folder / JOURNAL
    try:
        made = _journal(run, journal)
        changes = {}
        for number, data in sorted(manifests.items()):
            at = folder / str(number) / MANIFEST
            change = _change(codec.parse_json(data), made, number, prefix)
            if change.root == prefix or made.prefix == str(prefix):
                changes[number] = change
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise _damaged(at, error) from None
    return made, changes


def _damaged(at: Path, error: Exception) -> Damaged:
    return Damaged(Text("{path} cannot be used: {why}", path=at, why=_short(error)))


def run_name(name: str) -> bool:
    """`name` can be the name of a run, and of the folder that it has."""
    return bool(_RUN.fullmatch(name))


def _short(error: Exception) -> str:
    told = f"there is no {error}" if isinstance(error, KeyError) else str(error)
    return told if len(told) <= _TOLD_MOST else f"{told[:_TOLD_MOST]}..."


def _journal(run: str, data: bytes) -> Journal:
    made: Journal = codec.decode(Journal, codec.parse_json(data))
    numbers = [n for done in made.actions for n in done.changes]
    checks = {
        f"schema version {made.schema_version} is not known": made.schema_version
        in (1, MANIFEST_VERSION, EFFECTS_VERSION),
        f"it is of the run {made.run!r}": run_name(run) and made.run == run,
        "it has no possible time": all(
            math.isfinite(t) and 0 <= t < YEAR_10000 for t in (made.began, made.ended or 0.0)
        ),
        "it made folders that no run makes": set(made.made) <= _MADE,
        "a change has no possible number": all(0 < n < _WHOLE_MOST for n in numbers),
        "it has no identity": made.schema_version == 1 or None not in (made.prefix, made.inode),
    }
    if wrong := [why for why, holds in checks.items() if not holds]:
        raise ValueError(wrong[0])
    return made


def must_be_complete(journal: Journal, written: Collection[int], folder: Path) -> None:
    """Until a run is undone, every change that its journal names has been `written` down: that one
    is gone does not mean that there was no change. Raises Damaged."""
    if journal.state in ("applying", "applied"):
        for number in (n for done in journal.actions for n in done.changes):
            if number not in written:
                path = folder / str(number) / MANIFEST
                raise Damaged(Text("{path} is gone", path=path))


def _change(data: Any, journal: Journal, number: int, prefix: Path) -> Swap:
    named = data["root"]
    if not isinstance(named, str) or (named != "." and not is_kernel_cache(Path(named))):
        raise ValueError(f"{named!r} is neither the environment nor a cache of FlashInfer")
    root = prefix if named == "." else Path(named)
    groups = data.get("groups", [])
    rows = [_item(*row, groups=groups) for row in data["items"]]
    items = {item.path: item for item in rows}
    if len(items) != len(rows):
        raise ValueError("it names a path twice")
    made = [_folder(path) for path in data["made"]]
    kept = [(_folder(path), _whole(mode, 0o7777)) for path, mode in data["kept"]]
    if root != prefix:
        # Of a cache, files were set aside and can be put back; nothing else is done to it.
        emptied = folders_of(items)
        if made or any(i.now for i in rows) or not {folder for folder, _ in kept} <= emptied:
            raise ValueError("it makes or removes something outside of the environment")
    new, aside = places(prefix, journal.run, number, root)
    return Swap(root, new, aside, tuple(rows), tuple(made), tuple(kept))


def _item(path: Any, was: Any, now: Any, group: Any = None, *, groups: Any) -> PathChange:
    if not may_change(_normal(path)):
        raise ValueError(f"{path!r} is the doctor's own")
    if group is not None:
        group = groups[_whole(group)]
        if not isinstance(group, str):
            raise ValueError(f"{group!r} is no name of a distribution")
    return PathChange(path, _print(was), _print(now), group)


def _folder(path: Any) -> str:
    if path not in _OURS and not may_change(_normal(path)):
        raise ValueError(f"{path!r} is the doctor's own")
    return str(path)


def _normal(path: Any) -> str:
    """`path`, which has to be relative, without `.` and `..`, and to name a file that can be."""
    if not isinstance(path, str) or "\0" in path or not _NO_NAMES.isdisjoint(path.split("/")):
        raise ValueError(f"{path!r} is no path below the root")
    if not path.isascii() or len(path) > _NAME_MOST:
        raw = os.fsencode(path)
        if len(raw) > _PATH_MOST or max(map(len, raw.split(b"/"))) > _NAME_MOST:
            raise ValueError(f"{path!r} is longer than a path can be")
    return path


def _print(row: Any) -> Fingerprint | None:
    if row is None:
        return None
    kind, mode, size, mtime, inode, digest = row
    numbers = type(mode) is type(size) is type(mtime) is type(inode) is int
    if (
        not numbers
        or not (0 <= mode <= 0o7777 and 0 <= size < _WHOLE_MOST and 0 <= inode < _WHOLE_MOST)
        or not -_WHOLE_MOST < mtime < _WHOLE_MOST
        or not isinstance(digest, str)
        or not (kind == "link" or (kind == "file" and _HEX.fullmatch(digest)))
    ):
        raise ValueError(f"{row!r} is no fingerprint")
    return Fingerprint(kind, mode, size, mtime, inode, digest)


def _whole(value: Any, most: int = _WHOLE_MOST - 1) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{value!r} is no number from 0 to {most}")
    return value
