"""Makes everything anew that is made from the code: golden reports, transcripts, counts, pages.

    python -m tests.regenerate [--check]

With --check nothing is written; the files that would change are named, and the exit code is 1.
What is made by hand from wheels or other machines (rules/tables, fixtures/tapes/*.json,
fixtures/runs, the tables of benchmarks) is in CONTRIBUTING.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tests import documents, pages, test_command_reports, test_tapes

ROOT = Path(__file__).parent.parent


def generated() -> dict[Path, str]:
    """What each file that is made has to hold."""
    reports = {**test_tapes.golden_reports(), **test_command_reports.golden_reports()}
    return {**reports, **documents.generated(), **pages.generated()}


def main(words: Sequence[str]) -> int:
    """Writes what differs, and removes the pages of ailments that there are no longer; the exit
    code."""
    parser = argparse.ArgumentParser(description="Makes everything anew that is made.")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where it would")
    check = parser.parse_args(words).check
    made = generated()
    gone = sorted(set(pages.FOLDER.glob("*.md")) - set(made))
    differs = [path for path, text in made.items() if _holds_other(path, text)]
    for path in (*differs, *gone):
        word = "differs" if check else "removed" if path in gone else "written"
        print(f"{word}: {path.relative_to(ROOT)}")
    if check:
        return 1 if differs or gone else 0
    for path in differs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made[path], encoding="utf-8")
    for path in gone:
        path.unlink()
    return 0


def _holds_other(path: Path, text: str) -> bool:
    return not path.exists() or path.read_text(encoding="utf-8") != text


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
