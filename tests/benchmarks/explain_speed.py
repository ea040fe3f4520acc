"""How long `vllm-doctor explain` takes and how much memory, beside grep with the same literals.

    python -m tests.benchmarks.explain_speed [MIB]

A log of MIB (default 1024) of many kinds of lines, made in a temporary folder: what a busy server
prints (throughput, requests, progress bars, colours, container timestamps, JSON), harmless lines
of the catalogue (one in two hundred), tracebacks of single requests, and one real failure, at the
front, in the middle, or at the end. Then a log of 200 KB, and the same log from a pipe. Each on one
core, as a whole process; seconds are medians of 3 runs, memory the peak in MiB.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from doctor.logs.explain import explain_log
from doctor.logs.index import shipped_index
from doctor.logs.source import Log
from doctor.signatures import shipped_catalogue
from tests.benchmarks.diagnose_speed import Timed, timed
from tests.conftest import DOCTOR
from tests.corpus import FOLDER, HEALTHY, Logged, logs

RUNS = 3
BLOCK = 4 << 20
KINDS = (
    '(APIServer pid=%d) INFO:     10.0.0.%d:%d - "POST /v1/chat/completions HTTP/1.1" 200 OK',
    "(EngineCore_DP0 pid=%d) INFO 11-22 12:%02d:07 [loggers.py:248] Engine 000: Avg prompt "
    "throughput: %d.4 tokens/s, Avg generation throughput: 95.1 tokens/s, Running: 3 reqs",
    "\x1b[1;36m(Worker_TP1 pid=%d)\x1b[0;0m DEBUG 11-22 12:%02d:09 [shm_broadcast.py:466] %d ms",
    "2026-11-22T12:00:00.%09dZ stderr F INFO 11-22 12:%02d:10 [metrics.py:%d] nothing happened",
    '{"log":"(APIServer pid=%d) INFO 11-22 12:%02d:11 [x.py:%d] served\\n","stream":"stderr"}',
    "Capturing CUDA graphs (decode, FULL):  %d%%|████▌     | %d/35 [00:03<00:00, %d.02it/s]\r",
    "Nov 22 12:00:00 node%d vllm[%d]: (Worker_TP0 pid=%d) INFO 11-22 12:00:00 [a.py:1] alive",
)


def main() -> None:
    mib = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        literals = folder / "literals"
        # Where grep does not know better than a byte for a byte, it is fastest.
        texts = dict.fromkeys(s.literal for s in shipped_catalogue().signatures)
        literals.write_text("\n".join(texts) + "\n")
        failing = _failing()
        print(f"{mib} MiB of many kinds of lines; {len(texts)} literals; medians of {RUNS} runs\n")
        print("| what | seconds | least to most | MiB |\n| --- | --- | --- | --- |")
        for place in ("front", "middle", "end"):
            log = folder / "server.log"
            _alone(_write, log, mib << 20, failing.data, place)
            _alone(_must_find, log, failing)
            _row(f"explain, failure at the {place}", _explain(log))
        _row("grep -c -F -f literals (C)", _grep(log, literals, "C"))
        _row("grep -c -F -f literals (C.UTF-8)", _grep(log, literals, "C.UTF-8"))
        _row("explain, from a pipe", _piped(log))
        small = folder / "small.log"
        _alone(_write, small, 200_000, failing.data, "end")
        _row("explain, 200 KB", _explain(small, 20))
        _row("explain, 200 KB, and asks this machine", _explain(small, 20, live=True))


def _alone(function: Callable[..., None], *arguments: object) -> None:
    """In a process of its own: what this one has taken, its children would seem to take as well."""
    child = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    child.start()
    child.join()
    if child.exitcode:
        raise SystemExit(f"{function.__name__} failed")


def _failing() -> Logged:
    """A real log of a start that failed."""
    found = (one for one in logs() if one.folder == "kv-cache-too-small" and one.is_real)
    return next(found)


def _lines(rng: random.Random) -> Iterator[bytes]:
    harmless = [
        line
        for one in sorted((FOLDER / HEALTHY).glob("*.log"))
        for line in one.read_bytes().splitlines()
        if {row.role for row in shipped_index().in_line(line)} == {"harmless"}
    ]
    request = [
        b"ERROR 11-22 12:00:00 [serving_chat.py:200] Error in preprocessing prompt inputs",
        b"ERROR 11-22 12:00:00 [serving_chat.py:200] Traceback (most recent call last):",
        b'ERROR 11-22 12:00:00 [serving_chat.py:200]   File "a.py", line 3, in preprocess',
        b"ERROR 11-22 12:00:00 [serving_chat.py:200] ValueError: the prompt is empty",
    ]
    while True:
        draw = rng.random()
        if draw < 0.005:
            yield rng.choice(harmless)
        elif draw < 0.0051:
            yield from request
        else:
            numbers = (rng.randrange(99999), rng.randrange(60), rng.randrange(9999))
            yield (rng.choice(KINDS) % numbers).encode()


def _write(path: Path, size: int, failure: bytes, place: str) -> None:
    """Blocks of lines in any order, and the failure among them."""
    rng = random.Random(7)  # noqa: S311
    lines = _lines(rng)
    blocks = []
    for _ in range(min(8, size // BLOCK) or 1):
        block = bytearray()
        while len(block) < min(BLOCK, size):
            block += next(lines) + b"\n"
        blocks.append(bytes(block))
    many = max(1, size // BLOCK)
    at = {"front": 0, "middle": many // 2, "end": many}[place]
    with path.open("wb") as file:
        for number in range(many):
            if number == at:
                file.write(failure + b"\n")
            file.write(rng.choice(blocks))
        if at == many:
            file.write(failure)


def _must_find(log: Path, failing: Logged) -> None:
    told = explain_log(Log(str(log)).blocks(), shipped_index())
    assert told.primary == failing.primary, told


def _explain(log: Path, runs: int = RUNS, live: bool = False) -> Timed:
    return timed(
        [*_ONE_CORE, str(DOCTOR), "explain", *([] if live else ["--no-live"]), str(log)], runs
    )


def _piped(log: Path) -> Timed:
    script = f'cat "$0" | exec {DOCTOR} explain --no-live -'
    return timed([*_ONE_CORE, "sh", "-c", script, str(log)], RUNS)


def _grep(log: Path, literals: Path, locale: str) -> Timed:
    # Not to /dev/null, where it would end with the first line that it finds.
    script = 'grep -c -F -f "$1" "$2" >"$2.count"'
    command = ["sh", "-c", script, "sh", str(literals), str(log)]
    return timed([*_ONE_CORE, *command], RUNS, LC_ALL=locale)


_ONE_CORE = ("taskset", "-c", str(min(os.sched_getaffinity(0))))


def _row(name: str, made: Timed) -> None:
    least, most = min(made.seconds), max(made.seconds)
    print(
        f"| {name} | {made.median:.2f} | {least:.2f} to {most:.2f} | {made.memory:.0f} |",
        flush=True,
    )


if __name__ == "__main__":
    subprocess.run(["grep", "--version"], check=True, stdout=subprocess.DEVNULL)
    main()
