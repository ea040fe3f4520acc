"""Logs that are made to take time or memory: the work that they make is bounded, a real cause in
them is still found, and where not everything was looked at, that is said."""

from __future__ import annotations

import gzip
import itertools
import lzma
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from doctor.logs.budget import Budget
from doctor.logs.explain import explain_log
from doctor.logs.index import shipped_index
from doctor.logs.source import BLOCK, Log
from tests.hostile import KINDS, PACKED, READY, ROWS, START, filled
from tests.test_explain_cli import NOTHING, UNKNOWN, log, told
from tests.test_explain_cli import explain as said_of

pytestmark = pytest.mark.hardening

CAUSE = (
    b"(EngineCore pid=2) ERROR 11-25 10:09:00 [core.py:1] ValueError: To serve at least one "
    b"request with the models's max seq len (131072), (7.0 GiB KV cache is needed, which is "
    b"larger than the available KV cache memory (3.5 GiB).\n"
)
MEMORY = (
    b"(EngineCore pid=2) ERROR 11-25 10:09:00 [core.py:1] torch.OutOfMemoryError: CUDA out of "
    b"memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.19 GiB of which 1.21 "
    b"GiB is free.\n"
)
REPETITIONS = (
    "one exception",
    "exceptions, each another",
    "near-misses",
    "eight ranks at once",
)


def blocks(data: bytes) -> list[bytes]:
    return [data[i : i + BLOCK] for i in range(0, len(data), BLOCK)]


def calls(data: bytes) -> tuple[int, int]:
    """How many functions are called while a log is explained, and what of the budget is spent."""
    count = itertools.count()
    budget = Budget()
    pieces = blocks(data)
    sys.setprofile(lambda frame, event, argument: next(count) if "call" in event else None)
    try:
        explain_log(pieces, shipped_index(), budget)
    finally:
        sys.setprofile(None)
    return next(count), budget.spent


HARD = (
    "near-misses",
    "matches",
    "one exception",
    "literals with colours",
    "all literals in one line",
    "starts and failures",
    "prefixes",
    "one line of Chinese errors",
)


@pytest.mark.parametrize("kind", HARD)
def test_the_work_for_a_hostile_log_is_bounded(kind: str) -> None:
    """Without a budget it is several times as much. Of all kinds, and in seconds and MiB, it is
    measured by tests/benchmarks/explain_hostile."""
    made, spent = calls(KINDS[kind](600_000))
    assert made < 4_000_000
    assert spent < 200_000


@pytest.mark.parametrize("kind", REPETITIONS)
@pytest.mark.parametrize("place", [0.0, 0.35, 0.5, 1.0])
def test_a_real_cause_is_found_wherever_it_stands_among_repetitions(
    kind: str, place: float
) -> None:
    data = KINDS[kind](1_000_000)
    at = data.rfind(b"\n", 0, int(place * len(data))) + 1
    made = explain_log(
        blocks(START.encode() + b"\n" + data[:at] + CAUSE + data[at:]), shipped_index()
    )
    assert made.primary == "kv-cache-too-small"


def test_a_cause_is_found_among_near_matches_of_itself() -> None:
    near = b"ERROR: To serve at least one request with the models's max seq len it was\n" * 20_000
    made = explain_log(blocks(near + CAUSE + near), shipped_index())
    assert made.primary == "kv-cache-too-small"
    assert made.skimmed


def test_what_is_survived_again_and_again_is_fatal_where_it_stands_last() -> None:
    answered = b'(APIServer pid=1) INFO:     10.0.0.5:1 - "POST /v1/completions HTTP/1.1" 200 OK\n'
    served = f"{START}\n{READY}\n".encode() + (MEMORY + answered * 5) * 3000
    ended = MEMORY + b"what else is printed by whoever dies\n" * 3000
    assert explain_log(blocks(served + ended), shipped_index()).primary == "cuda-oom-startup"


def test_a_log_that_is_not_looked_at_line_by_line_says_so(tmp_path: Path) -> None:
    path = log(tmp_path, KINDS["one exception"](2_000_000))
    report = told(path)
    assert ["too repetitive" in note for note in report["notes"]] == [True]
    said = said_of(path)
    assert said.code == UNKNOWN
    assert "too repetitive" in " ".join(said.out.split())


def test_what_was_not_looked_at_is_not_called_healthy(tmp_path: Path) -> None:
    """Each line could be the cause, and those that were looked at are none."""
    row = next(r for r in ROWS if r.role == "cause" and r.pattern is None and r.near)
    path = log(tmp_path, filled(itertools.repeat(f"{row.literal} of something"), 3_000_000))
    report = told(path)
    assert report["verdict"] == "too-repetitive"
    said = said_of(path)
    assert said.code == UNKNOWN
    assert "Could not tell" in said.out


def test_a_healthy_server_that_says_much_is_still_healthy(tmp_path: Path) -> None:
    lines = filled((f"x INFO: step {n} of it" for n in itertools.count()), 2_000_000)
    said = said_of(log(tmp_path, f"{START}\n{READY}\n".encode() + lines))
    assert said.code == NOTHING
    assert "repeats itself" not in said.out


class TestPacked:
    @pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
    def test_members_are_searched_in_full_blocks(
        self, tmp_path: Path, pack: Callable[[bytes], bytes]
    ) -> None:
        lines = [
            b"line %d of a log that is flushed with every line of it\n" % n for n in range(999)
        ]
        packed = b"".join(pack(line) for line in lines) + bytes(512)
        path = log(tmp_path, packed, "server.log.packed")
        assert list(Log(str(path)).blocks()) == [b"".join(lines)]

    def test_members_of_one_byte_are_read_no_further(self, tmp_path: Path) -> None:
        path = log(tmp_path, PACKED["gzip, members of one byte"](50_000), "a.gz")
        said = said_of(path)
        assert (said.code, said.out) == (UNKNOWN, "")
        assert "members of less than 32 bytes" in said.err

    def test_a_dictionary_that_takes_too_much_memory_is_refused(self, tmp_path: Path) -> None:
        said = said_of(log(tmp_path, PACKED["xz, a dictionary of 1 GiB"](1), "a.xz"))
        assert (said.code, said.out) == (UNKNOWN, "")
        assert "unpack it first: xz -dc" in said.err

    def test_what_is_packed_as_well_as_xz_can_is_read(self, tmp_path: Path) -> None:
        report = told(log(tmp_path, lzma.compress(CAUSE, preset=9), "a.xz"))
        assert (report["primary"], report["notes"]) == ("kv-cache-too-small", [])


@pytest.mark.parametrize("end", ["; touch it #", "$(touch it)", "`touch it`", " && touch it"])
def test_what_a_log_says_is_one_word_of_a_command_that_can_be_copied(
    tmp_path: Path, end: str
) -> None:
    lock = f"/x/cached_ops{end}"
    said = f"ERROR filelock.Timeout: The file lock '{lock}' could not be acquired.\n"
    path = log(tmp_path, said.encode())
    commands = [c for f in told(path)["findings"][0]["fixes"] for c in f["commands"]]
    assert ["mv", lock, f"{lock}.aside"] in [shlex.split(c, comments=True) for c in commands]
