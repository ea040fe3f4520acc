"""How long a diagnosis takes now, side by side with an earlier commit.

    python -m tests.benchmarks.side_by_side COMMIT

Installs both as pip does, each in an environment of its own, and lets them judge the lab's
environments of vLLM 0.22.0 and of the newest (tests/real_stack/lab.py) by turns, so that what else
the machine does falls on both. Prints milliseconds of wall time (median, least) and the difference
of the medians.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.diagnose_speed import timed
from tests.real_stack import lab

HERE = Path(__file__).parents[2]
RUNS = 25
LATER = ("--set", "gpus=later", "--set", "archs=8.9")


@contextlib.contextmanager
def checkout(commit: str, folder: Path) -> Iterator[Path]:
    """The files of a commit, in `folder`."""
    git = ("git", "-C", str(HERE), "worktree")
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def installed(source: Path, environment: Path) -> str:
    """The command of the doctor that pip makes of a source tree."""
    lab.run([lab.base_python(), "-m", "venv", str(environment)])
    lab.run([str(environment / "bin/pip"), "install", "--quiet", str(source)])
    return str(environment / "bin/vllm-doctor")


def compared(before: str, now: str, target: lab.Environment) -> tuple[list[float], list[float]]:
    """Wall milliseconds of each run of both, by turns."""
    took: tuple[list[float], list[float]] = ([], [])
    for _ in range(RUNS):
        for command, seconds in zip((before, now), took, strict=True):
            judge = (command, "diagnose", "--python", str(target.python), "--format", "json")
            seconds += [1000 * s for s in timed([*judge, *LATER], 1).seconds]
    return took


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("commit", metavar="COMMIT")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        with checkout(options.commit, place / "source") as source:
            before = installed(source, place / "before")
        with checkout("HEAD", place / "source") as source:
            now = installed(source, place / "now")
        print(
            f"| environment | {options.commit[:8]} | now | difference |\n| --- | --- | --- | --- |"
        )
        for recipe in (lab.REFERENCE, lab.NEWEST):
            took = compared(before, now, lab.environment(recipe))
            first, second = (statistics.median(one) for one in took)
            cells = [f"{statistics.median(one):.0f} ({min(one):.0f})" for one in took]
            print(f"| {recipe.name} | {' | '.join(cells)} | {second - first:+.0f} ms |", flush=True)


if __name__ == "__main__":
    main()
