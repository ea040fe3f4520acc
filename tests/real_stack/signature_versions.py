"""In which versions of the software the text of each signature is, against what its row says.

    python -m tests.real_stack.signature_versions FOLDER...

Each folder is an environment, or anything that holds distributions as site-packages does, such as
what `uv pip install --no-deps --target FOLDER vllm==0.33.0` makes. Of a row whose `versions` are
not those in which its text was found the script prints both, and then it exits 1.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from doctor.signatures import Signature, shipped_catalogue
from tests.real_stack.texts import in_files, version


def seen(row: Signature, folders: Iterable[Path]) -> Mapping[Version, bool]:
    """By version of the row's distribution, whether its text is in the files that print it; without
    the versions of which no folder has a file of that kind."""
    found: dict[Version, bool] = {}
    for folder in folders:
        number = version(folder, row.printed_by.partition(":")[0])
        there = in_files(row, folder) if number else None
        if number and there is not None:
            found[Version(number)] = found.get(Version(number), False) or there
    return found


def contradictions(row: Signature, folders: Iterable[Path]) -> list[Version]:
    """The versions that have the text though the row does not say so, or lack it though it does."""
    said = SpecifierSet(row.versions or "")
    return [v for v, there in seen(row, folders).items() if said.contains(v, True) != there]


def main(arguments: list[str]) -> int:
    folders = [next(Path(a).glob("lib/python3*/site-packages"), Path(a)) for a in arguments]
    wrong = 0
    for row in shipped_catalogue().signatures:
        if ":" not in row.printed_by or not contradictions(row, folders):
            continue
        wrong += 1
        found = seen(row, folders)
        print(f"{row.id}: {row.literal!r}\n  {row.printed_by} {row.versions or '(all)'}")
        for there, word in ((True, "in"), (False, "not in")):
            numbers = ", ".join(str(v) for v in sorted(found) if found[v] is there)
            print(f"  {word}: {numbers or '-'}")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
