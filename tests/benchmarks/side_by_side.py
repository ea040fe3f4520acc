"""How long the commands take now, side by side with an earlier commit.

    python -m tests.benchmarks.side_by_side COMMIT

Installs both as pip does, each in an environment of its own, and runs them by turns, so that what
else the machine does falls on both: diagnose in the lab's environments of vLLM 0.22.0 and of the
newest (tests/real_stack/lab.py), in the first also explain, env and the plan of fix (which asks an
index). Prints milliseconds of wall time (median, least) and the difference of the medians.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.benchmarks.diagnose_speed import timed
from tests.real_stack import lab

HERE = Path(__file__).parents[2]
RUNS = 25
LATER = ("--set", "gpus=later", "--set", "archs=8.9")
LOG = sorted((HERE / "fixtures/logs/nvcc-missing").glob("*.log"))[0]
COMMANDS: dict[str, tuple[str, ...]] = {
    "diagnose": ("diagnose", "--format", "json", *LATER),
    "explain": ("explain", "--format", "json", str(LOG), *LATER),
    "env": ("env",),
    "fix": ("fix", "--format", "json", *LATER),
}


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


@contextlib.contextmanager
def both_installed(commit: str) -> Iterator[tuple[str, str]]:
    """The commands of the doctor as it was at a commit, and as it is in the last one."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        programs = []
        for name, source in (("before", commit), ("now", "HEAD")):
            with checkout(source, place / "source") as files:
                programs.append(installed(files, place / name))
        yield programs[0], programs[1]


def compared(programs: Sequence[str], words: Sequence[str]) -> list[list[float]]:
    """Wall milliseconds of each run of each program, by turns."""
    took: list[list[float]] = [[] for _ in programs]
    for _ in range(RUNS):
        for program, milliseconds in zip(programs, took, strict=True):
            milliseconds += [1000 * s for s in timed([program, *words], 1).seconds]
    return took


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("commit", metavar="COMMIT")
    options = parser.parse_args()
    with both_installed(options.commit) as programs:
        print(f"| command | environment | {options.commit[:8]} | now | difference |")
        print("| --- | --- | --- | --- | --- |")
        rows = [(name, lab.REFERENCE) for name in COMMANDS]
        for name, recipe in (*rows, ("diagnose", lab.NEWEST)):
            python = str(lab.environment(recipe).python)
            took = compared(programs, (*COMMANDS[name], "--python", python))
            first, second = (statistics.median(one) for one in took)
            cells = [f"{statistics.median(one):.0f} ({min(one):.0f})" for one in took]
            row = f"| {name} | {recipe.name} | {' | '.join(cells)} | {second - first:+.0f} ms |"
            print(row, flush=True)


if __name__ == "__main__":
    main()
