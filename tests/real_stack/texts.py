"""Whether the text of a signature is in the software that is said to print it."""

from __future__ import annotations

from collections.abc import Iterable

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from doctor.signatures import Signature
from tests.real_stack.lab import Environment


def version(environment: Environment, distribution: str) -> str | None:
    """That of a distribution in an environment; None where it is not installed there."""
    for folder in environment.site_packages.glob("*.dist-info"):
        name, _, number = folder.name.removesuffix(".dist-info").partition("-")
        if canonicalize_name(name) == canonicalize_name(distribution):
            return number
    return None


def is_there(row: Signature, environments: Iterable[Environment]) -> bool | None:
    """Whether the literal is in the file that `printed_by` names (or files, by *), in one of the
    environments; None where none of them has a version that the row is about. One is enough: a
    build for the CPU lacks half of the kernels."""
    distribution, colon, file = row.printed_by.partition(":")
    wanted = SpecifierSet(row.versions or "")
    meant = [
        one
        for one in environments
        if colon and (number := version(one, distribution)) and wanted.contains(number, True)
    ]
    if not meant:
        return None
    literal = row.literal.encode()
    return any(literal in p.read_bytes() for one in meant for p in one.site_packages.glob(file))
