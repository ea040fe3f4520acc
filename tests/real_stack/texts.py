"""Whether the text of a signature is in the software that is said to print it."""

from __future__ import annotations

import functools
import mmap
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from doctor.signatures import Signature, shipped_catalogue
from tests.real_stack.lab import Environment


@functools.cache
def _versions(folder: Path) -> dict[str, str]:
    parts = (info.name.removesuffix(".dist-info") for info in folder.glob("*.dist-info"))
    return {canonicalize_name(n): v for n, _, v in (part.partition("-") for part in parts)}


@functools.cache
def _recorded(folder: Path) -> list[str]:
    records = (path.read_text(encoding="utf-8") for path in folder.glob("*.dist-info/RECORD"))
    return [line.partition(",")[0] for text in records for line in text.splitlines()]


def version(folder: Path, distribution: str) -> str | None:
    """That of a distribution in a site-packages folder; None where it is not installed there."""
    return _versions(folder).get(canonicalize_name(distribution))


def in_files(row: Signature, folder: Path) -> bool | None:
    """Whether the literal is in one of the files below a site-packages folder that `printed_by`
    names. None where the wheel has such a file and the folder has not: it may hold the sources
    alone."""
    patterns = row.printed_by.partition(":")[2].split(" or ")
    files = [path for one in patterns for path in folder.glob(one) if path.is_file()]
    if not files and any(fnmatch(name, one) for one in patterns for name in _recorded(folder)):
        return None
    return any(_holds(path, row.literal.encode()) for path in files)


def _holds(path: Path, text: bytes) -> bool:
    """Mapped, not read: a library of torch's has a gigabyte, and many rows are about it."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return mapped.find(text) >= 0


def is_there(row: Signature, environments: Iterable[Environment]) -> bool | None:
    """Whether the literal is in the files that `printed_by` names, in one of the environments; None
    where none of them has a version that the row is about. One is enough: a build for the CPU lacks
    half of the kernels."""
    distribution, colon, _ = row.printed_by.partition(":")
    wanted = SpecifierSet(row.versions or "")
    meant = [
        one.site_packages
        for one in environments
        if colon
        and (number := version(one.site_packages, distribution))
        and wanted.contains(number, True)
    ]
    return any(in_files(row, folder) for folder in meant) if meant else None


def rotten(environments: Sequence[Environment]) -> list[tuple[str, str, str]]:
    """(id, literal, printed_by) of the rows whose text is in none of the environments, though it is
    said to be in the version that is there."""
    rows = shipped_catalogue().signatures
    return [(r.id, r.literal, r.printed_by) for r in rows if is_there(r, environments) is False]
