"""Files that two installed distributions own: of each only one is there, that of whoever was
installed last. Read from the RECORDs (PEP 376, 427); nothing is imported.

Two hundred RECORDs are 9 MB, and a healthy environment shares folders by the dozen (`nvidia`,
`opentelemetry`), so it goes by steps: distributions without a folder of their own name, which
alone come into another's; folders that two of them have; the modules of those.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import field
from itertools import combinations, islice
from pathlib import Path
from typing import ClassVar

from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact, Missing, Text
from doctor.numbers import number_of
from doctor.probes.wheels import Distribution, Packages, Specifiers, Vllm, pin
from doctor.target import Target

# The first two parts of each path, told once for all rows in a row that have the same.
_FOLDERS = r"(?:\A|\n)([^/,\n]+(?:/[^/,\n]+)?)[/,].*(?:\n\1[/,].*)*"
_LONG = 256 << 10  # bytes of a RECORD that is read only where its top_level.txt gives a reason
_READ = 64 << 10  # bytes of a RECORD whose modules are searched for imports


@dataclass(frozen=True)
class Owner:
    """A distribution, as `cuda-python 12.6.2.post1`."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class Overlap:
    """Modules that two distributions own with different content, relative to `folder`.

    `wanted`: the one whose files have to be there; `other`: the one that writes over them.
    `lost`: of the modules, those that are not as `wanted` has them; `foreign`: of these, what is
    not as `other` has it either. `extends`: `wanted` itself requires `other`, and means to write
    over it. `needed`: vLLM requires `wanted`, by way of others or not. `unmet`: requirements on
    `wanted` that the version of `other` does not meet, as "torch: cuda-bindings<14,>=13.0.3".
    `importers`: files of what requires either that import a lost module when they are imported
    themselves. `kept_by`: who requires `other`.
    """

    folder: Path
    wanted: Owner
    other: Owner
    modules: tuple[str, ...]
    lost: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    extends: bool = False
    needed: bool = False
    unmet: tuple[str, ...] = ()
    importers: tuple[str, ...] = ()
    kept_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Owners(Fact):
    """What is owned twice, but for what is as it is meant to be: a distribution that extends
    another one and has all of its own files."""

    since: ClassVar[str] = "0.4.0"
    overlaps: tuple[Overlap, ...] = field(default=())


@probe
def owners(target: Target, packages: Packages, vllm: Vllm) -> Owners:
    found = []
    for first, second, rows in _pairs(target, packages):
        one, other = packages.installed[first], packages.installed[second]
        if _live(target, one) and _live(target, other):
            overlap = _judged(target, packages, vllm, (first, second), rows)
            if overlap.lost or (overlap.modules and not overlap.extends):
                found.append(overlap)
    return Owners(tuple(found))


def _live(target: Target, one: Distribution) -> bool:
    """Not half removed."""
    return target.stat(one.folder / f"{one.info}/METADATA") is not None


# A path and, of each of two owners, its hash and size in bytes.
_Row = tuple[str, int]
_Rows = dict[str, tuple[_Row, _Row]]


def _pairs(target: Target, packages: Packages) -> Iterator[tuple[str, str, _Rows]]:
    """Two names, and the modules that both list with different hashes."""
    shared: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for name, keys in _folders(target, packages).items():
        site = str(packages.installed[name].folder)
        for key in dict.fromkeys(keys):
            shared[site, key].append(name)
    found: defaultdict[tuple[str, str], _Rows] = defaultdict(dict)
    for (_, key), names in shared.items():
        if len(names) < 2 or key.startswith(".."):
            continue
        listed = {n: _modules(target, packages.installed[n], key) for n in names}
        for one, two in combinations(names, 2):
            for path in listed[one].keys() & listed[two].keys():
                rows = listed[one][path], listed[two][path]
                if rows[0][0] != rows[1][0]:
                    found[one, two][path] = rows
    for (one, two), differing in found.items():
        yield one, two, differing


def _folders(target: Target, packages: Packages) -> dict[str, tuple[str, ...]]:
    """By name, the folders (or files) of the first two levels that a distribution has in
    site-packages; of those alone that may share one."""
    guests = dict(_guests(target, packages))
    sizes = {n: found.size for n, one in guests.items() if (found := target.stat(_record(one)))}
    made = {n: _searched(target, guests[n], _FOLDERS) for n, size in sizes.items() if size <= _LONG}
    tops = {_top(key) for keys in made.values() for key in keys}
    asked = {n: one for n, one in packages.installed.items() if n.replace("-", "_") in tops}
    for name in sizes.keys() - made.keys():
        top_level = guests[name].folder / guests[name].info / "top_level.txt"
        if tops & {_top(row) for row in target.search(top_level, r"[^\s/]+") or ()}:
            asked[name] = guests[name]
    for name in sorted(asked.keys() - made.keys()):
        if target.stat(_record(asked[name])):
            made[name] = _searched(target, asked[name], _FOLDERS)
    return made


def _guests(target: Target, packages: Packages) -> Iterator[tuple[str, Distribution]]:
    """Those without a folder or module of their own name."""
    tops: dict[Path, set[str]] = {}
    for name, one in packages.installed.items():
        if one.folder not in tops:
            names = target.listdir(one.folder) or ()
            # Not `name.libs`, where auditwheel puts the libraries of a wheel.
            modules = (n for n in names if "." not in n or n.endswith((".py", ".so")))
            tops[one.folder] = {_top(n) for n in modules}
        if name.replace("-", "_") not in tops[one.folder]:
            yield name, one


def _top(path: str) -> str:
    return path.partition("/")[0].partition(".")[0].lower()


def _record(one: Distribution) -> Path:
    """Of what was not installed from a wheel there is none."""
    return one.folder / f"{one.info}/RECORD"


def _searched(target: Target, one: Distribution, pattern: str) -> tuple[str, ...]:
    rows = target.search(_record(one), pattern)
    if rows is None:
        raise Missing(Text("{path} cannot be read", path=_record(one)))
    return rows


# The end of a path: what a package begins with, or a compiled module or library.
_BEGINS = r"(?:(?<=/__init__\.py,)|(?<=\.so,)|(?<=\.so\.\d,)|(?<=\.so\.\d\d,))"
_REST = r"\w+=[^,\n]+,\d+)"


def _modules(target: Target, one: Distribution, key: str) -> Mapping[str, _Row]:
    """What a package begins with below the folder `key`: `__init__.py` and compiled modules; or
    `key` itself. A healthy environment has hundreds of others, which a snapshot would hold too."""
    begin = re.escape(key)
    # The look-behinds stand where they cost least: a row that is none is passed over in one go.
    of_key = "(," if key.endswith((".py", ".so")) else rf"(/[^,\n]*,{_BEGINS}"
    made = {}
    for row in _searched(target, one, rf"{begin}(?<![^\n]{begin}){of_key}{_REST}"):
        rest, hashed, size = (*row.split(","), "", "")[:3]
        length = number_of(size)
        if length is None:  # of a snapshot that was changed
            raise Missing(Text("{path} cannot be read", path=_record(one)))
        made[key + rest] = (hashed, length)
    return made


def _judged(
    target: Target, packages: Packages, vllm: Vllm, names: tuple[str, str], rows: _Rows
) -> Overlap:
    """Which of the two is wanted: the one that extends the other; or of which a version is
    required that the other is not; or that is required at all; or the newer one."""
    other_of = dict(zip(names, reversed(names), strict=True))
    requires = _Requires(target, packages, names)
    extends = next((n for n in names if requires.on(n, other_of[n])), None)
    users = {n: () if extends else requires.users(n) for n in names}
    unmet = {n: requires.unmet(n, other_of[n], users[n]) for n in names}
    version = {n: packages.installed[n].version for n in names}
    wanted = extends or max(names, key=lambda n: (bool(unmet[n]), bool(users[n]), version[n]))
    other = other_of[wanted]
    place = names.index(wanted)
    folder = packages.installed[wanted].folder
    sizes = {path: found.size for path in rows if (found := target.stat(folder / path))}
    lost = [p for p, size in sorted(sizes.items()) if size != rows[p][place][1]]
    needed = extends is not None or _leads_to(target, packages, vllm, {wanted, *users[wanted]})
    either = dict.fromkeys((*users[wanted], *users[other]))
    return Overlap(
        folder=folder,
        wanted=Owner(wanted, str(version[wanted])),
        other=Owner(other, str(version[other])),
        modules=tuple(sorted(sizes)),
        lost=tuple(lost),
        foreign=tuple(p for p in lost if sizes[p] != rows[p][1 - place][1]),
        extends=extends is not None,
        needed=needed,
        unmet=unmet[wanted],
        importers=_importers(target, packages, either, lost) if lost and unmet[wanted] else (),
        kept_by=users[other],
    )


_REQUIRES = "(?m)^Requires-Dist: "
_EXTRA = re.compile(r";.*\bextra\b")


class _Requires:
    """Who requires any of `names`, but for extras. One whose metadata are gone is half removed, and
    requires nothing."""

    def __init__(self, target: Target, packages: Packages, names: Iterable[str]) -> None:
        self._target, self._packages = target, packages
        either = "|".join(re.escape(n).replace(r"\-", "[-_.]") for n in names)
        self._pattern = rf"{_REQUIRES}((?i:{either})(?![\w.-]).*)"
        self._known: dict[str, tuple[str, ...]] = {}

    def on(self, user: str, name: str) -> Specifiers | None:
        if user not in self._known:
            one = self._packages.installed[user]
            rows = self._target.search(one.folder / f"{one.info}/METADATA", self._pattern) or ()
            self._known[user] = tuple(r for r in rows if not _EXTRA.search(r))
        return pin(self._known[user], name)

    def users(self, name: str) -> tuple[str, ...]:
        return tuple(sorted(u for u in self._packages.installed if self.on(u, name) is not None))

    def unmet(self, name: str, other: str, users: Iterable[str]) -> tuple[str, ...]:
        """Requirements on `name` that the version of `other` does not meet."""
        version = self._packages.installed[other].version
        pins = ((u, self.on(u, name)) for u in users)
        return tuple(f"{u}: {name}{p}" for u, p in pins if p and p.text and not p.admits(version))


def _leads_to(target: Target, packages: Packages, vllm: Vllm, names: Collection[str]) -> bool:
    """vLLM requires one of these, by way of others and of extras too."""
    queue = [vllm.name]
    for user in queue:
        if user in names:
            return True
        one = packages.installed[user]
        for row in (
            target.search(one.folder / f"{one.info}/METADATA", f"{_REQUIRES}([\\w.-]+)") or ()
        ):
            required = re.sub(r"[-_.]+", "-", row).lower()
            if required in packages.installed and required not in queue:
                queue.append(required)
    return False


def _importers(
    target: Target, packages: Packages, users: Iterable[str], paths: Iterable[str]
) -> tuple[str, ...]:
    """A file of each of these distributions that imports one of the modules at `paths` as soon as
    it is imported itself: what stands in a function or after `try:` does not begin its line."""
    folders = {path.rpartition("/")[0] or path.partition(".")[0] for path in paths}
    names = "|".join(sorted(re.escape(folder.replace("/", ".")) for folder in folders))
    statement = rf"(?m)^((?:from|import) (?:{names})\b.*)"
    made = []
    for one in (packages.installed[user] for user in users):
        found = target.stat(_record(one))
        rows: tuple[str, ...] = ()
        if found and found.size <= _READ:
            rows = _searched(target, one, r"(?m)^([^,\n]+\.py),")
        made += list(islice((r for r in rows if target.search(one.folder / r, statement)), 1))
    return tuple(made)
