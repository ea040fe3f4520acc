"""What `vllm-doctor explain` takes for logs that are made to be slow.

    python -m tests.benchmarks.explain_hostile [WORD...]

A log of 10 MB of each kind in tests/hostile.py (of those whose name holds a WORD), and a million
lines of one exception; the real command, as a whole process. Prints processor seconds (user and
system), the peak of memory in MiB, the exit code, and whether the promise is met: 3 seconds (2 for
the million lines) and 100 MiB.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.conftest import DOCTOR
from tests.hostile import KINDS, PACKED, Making

SIZE = 10_000_000
SECONDS, MEMORY = 3.0, 100
MOST = 60
"""Processor seconds after which a run is ended."""


def main() -> None:
    words = sys.argv[1:]
    million: dict[str, Making] = {
        "a million lines of one exception": lambda _: b"RuntimeError: x\n" * 1_000_000
    }
    print("| kind | seconds | MiB | exit code | met |\n| --- | --- | --- | --- | --- |")
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        for name, make in {**million, **KINDS, **PACKED}.items():
            if words and not any(word in name for word in words):
                continue
            _written(make, log)
            seconds, memory, code = _taken(log)
            met = seconds < (2 if name in million else SECONDS) and memory < MEMORY
            missed += not met
            print(
                f"| {name} | {seconds:.2f} | {memory:.0f} | {code} | {'yes' if met else 'NO'} |",
                flush=True,
            )
    print(f"\n{missed} missed")
    raise SystemExit(missed > 0)


def _written(make: Making, log: Path) -> None:
    """In a process of its own: a child would seem to take the memory of this one as well."""
    child = os.fork()
    if not child:
        log.write_bytes(make(SIZE))
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        raise SystemExit("a log could not be made")


def _taken(log: Path) -> tuple[float, float, int]:
    """(processor seconds, MiB at the peak, exit code)"""
    limited = ["sh", "-c", f'ulimit -t {MOST}; exec "$0" explain --no-live "$1"']
    child = subprocess.Popen(
        [*limited, str(DOCTOR), str(log)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)  # reaped above
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, child.returncode


if __name__ == "__main__":
    main()
