"""The files of distributions that come and go: staged, as a swap that is ready to be made.

Nothing here touches the target.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from doctor.model import Text
from doctor.probes.environment import HOME
from doctor.repair import swap
from doctor.repair.context import RepairContext
from doctor.repair.errors import StageError
from doctor.repair.installer import name_of
from doctor.repair.manifest import Swap
from doctor.repair.transaction import Transaction
from doctor.target import TooLarge, read_regular


def stage_distributions(context: RepairContext, change: Path, made: Transaction) -> Swap:
    """The files of what is removed or replaced go, those of what an installer brings come. Raises
    StageError, ToolError, SwapError or OSError."""
    new = change / "new"
    request, resolution = made.request, made.resolution
    if resolution.requirements:
        if context.tool is None:
            raise StageError(Text("there is neither uv nor pip to install with"))
        wanted = change / "requirements.txt"
        wanted.write_text(resolution.requirements, encoding="utf-8")
        total, talk = resolution.download_bytes, context.talk

        def progress(done: int) -> None:
            talk.progress(done if total is None else min(done, total), total)

        shell = context.shell
        context.tool.stage(context.python, wanted, resolution.index, shell, new, progress)
    leaving = [m.name for m in resolution.moves if m.old]
    leaving += [name for name in request.remove if name not in leaving]
    away = _leaving(context.prefix, context.site_packages, leaving, request.broken)
    coming, digests = _recorded(new)
    groups = _together(away, coming)
    swapped = swap.plan(context.prefix, new, change / "aside", away, digests, groups)
    if ours := next((i.path for i in swapped.items if f"{i.path}/".startswith(f"{HOME}/")), None):
        why = Text("a distribution would change {path}, which is the doctor's own", path=ours)
        raise StageError(why)
    return swapped


def _together(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """The distribution of each path; those that hand a file on to one another have one name, since
    they can only be undone together."""
    of: dict[str, frozenset[str]] = {}
    for name in {*old.values(), *new.values()}:
        of.setdefault(name, frozenset((name,)))
    for path in old.keys() & new.keys():
        merged = of[old[path]] | of[new[path]]
        of.update(dict.fromkeys(merged, merged))
    return {path: ", ".join(sorted(of[name])) for path, name in {**old, **new}.items()}


def _leaving(
    prefix: Path, site_packages: Iterable[Path], names: Collection[str], half: tuple[Path, ...]
) -> dict[str, str]:
    """Every file of these distributions, relative to the prefix, and whose it is; what another
    distribution also lists stays."""
    going: dict[str, str] = {}
    top = f"{prefix}/"
    sites = tuple(site_packages)
    folders = {*half, *_metadata(prefix, sites, names)}
    for info in sorted(folders):
        rows = _record(info)
        if rows is None:
            if info not in half:
                raise StageError(
                    Text(
                        "{folder} has no RECORD of its files (not installed from a wheel): "
                        "remove {name} with the tool that installed it",
                        folder=info.name,
                        name=_distribution(info),
                    )
                )
            rows = []
        site = info.parent
        rows += [
            str((Path(at) / f).relative_to(site)) for at, _, files in os.walk(info) for f in files
        ]
        for row in rows:
            path = os.path.normpath(f"{site}/{row}")
            if path.startswith(top) and _can_go(path):
                going[path[len(top) :]] = _distribution(info)
    for site in sites:
        # As a RECORD of this folder writes them: seventy thousand rows are compared as they are.
        here = f"{site}/"
        rows_here = {
            full[len(here) :] if full.startswith(here) else os.path.relpath(full, site): path
            for path in going
            for full in (top + path,)
        }
        for info in sorted(site.glob("*.dist-info")):
            if info not in folders:
                for row in rows_here.keys() & set(_record(info) or ()):
                    going.pop(rows_here[row], None)
    for path in list(swap.bytecode_of(prefix, list(going))):
        going[path] = going[swap.module_of(path)]
    return going


def _distribution(info: Path) -> str:
    return name_of(info.name.partition("-")[0])


def _can_go(path: str) -> bool:
    """Whether it is no folder, and a name that the system takes: a RECORD may list anything."""
    try:
        return not stat.S_ISDIR(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False


def _metadata(prefix: Path, sites: Iterable[Path], names: Collection[str]) -> Iterator[Path]:
    """The metadata folders below the prefix that have one of these names: not by what is imported,
    for PYTHONPATH may put another copy before the one that goes."""
    for site in sites:
        if site.is_relative_to(prefix):
            for info in (*site.glob("*.dist-info"), *site.glob("*.egg-info")):
                if _distribution(info) in names:
                    yield info


def _record(info: Path) -> list[str] | None:
    """The paths that a RECORD lists, relative to site-packages (PEP 376); None where it is gone."""
    rows = _rows(info / "RECORD")
    return None if rows is None else [row[0] for row in rows]


_RECORD_MOST = 8 << 20  # bytes; the longest that is known, of 12,000 files, is 1 MiB


def _rows(record: Path) -> list[list[str]] | None:
    """The rows of a RECORD; None where it is gone or no table. Raises StageError where it is larger
    than any: what it lists is not known then."""
    try:
        data = read_regular(record, _RECORD_MOST)
        if data is None:
            return None
        text = io.StringIO(data.decode("utf-8", "surrogateescape"), newline="")
        return [row for row in csv.reader(text) if row]
    except csv.Error:
        return None
    except TooLarge as error:
        raise StageError(Text("{why}", why=error)) from None


def _recorded(new: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Of the staged files, by path below `new`, as their RECORDs have it: the distribution, and the
    sha256 in hexadecimal."""
    import base64

    owners: dict[str, str] = {}
    digests: dict[str, str] = {}
    for record in new.glob("lib*/python*/*-packages/*.dist-info/RECORD"):
        site = record.parent.parent.relative_to(new)
        for row in _rows(record) or ():
            path = os.path.normpath(site / row[0])
            twice = path in owners
            owners[path] = _distribution(record.parent)
            if twice:  # whose is there only the file itself says
                digests.pop(path, None)
            elif len(row) > 1 and row[1].startswith("sha256="):
                padded = row[1][len("sha256=") :] + "=="
                with contextlib.suppress(ValueError):  # else the file itself is read
                    digests[path] = base64.urlsafe_b64decode(padded).hex()
    return owners, digests
