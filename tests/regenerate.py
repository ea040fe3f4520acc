"""Makes everything anew that is made from the code: golden reports, transcripts, counts, pages.

    python -m tests.regenerate [--check]

With --check nothing is written; the files that would change are named, and the exit code is 1.
What is made by hand from wheels or other machines (rules/tables, fixtures/tapes/*.json,
fixtures/runs, the tables of benchmarks) is in CONTRIBUTING.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tests import documents, pages
from tests.test_tapes import golden_reports

ROOT = Path(__file__).parent.parent


def generated() -> dict[Path, str]:
    """What each file that is made has to hold."""
    return {**golden_reports(), **documents.generated(), **pages.generated()}


def stale() -> list[Path]:
    """Pages of ailments that there are no longer."""
    return sorted(set(pages.FOLDER.glob("*.md")) - set(pages.generated()))


def main(words: Sequence[str]) -> int:
    """Writes what differs; the exit code."""
    made, gone = generated(), stale()
    differs = [
        path
        for path, text in made.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    check = "--check" in words
    for path in (*differs, *gone):
        print(
            f"{'differs' if check else 'written' if path in made else 'removed'}: "
            f"{path.relative_to(ROOT)}"
        )
    if check:
        return 1 if differs or gone else 0
    for path in differs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made[path], encoding="utf-8")
    for path in gone:
        path.unlink()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
