"""Logs out of pieces of real and of hostile ones: no exception leaves the reader, each ends in one
of the documented codes, and the work stays within what the budget and the size allow."""

from __future__ import annotations

import contextlib
import random
import time
from pathlib import Path

import pytest

from doctor.logs.budget import Budget
from doctor.logs.explain import EXITS, explain_log
from doctor.logs.index import shipped_index
from doctor.logs.source import Log, LogError
from tests.corpus import logs
from tests.hostile import KINDS, PACKED

pytestmark = pytest.mark.hardening

PIECES = [*(one.data for one in logs()), *(make(20_000) for make in KINDS.values())]


def mutated(rng: random.Random) -> bytes:
    """Pieces of some logs, cut anywhere, with bytes of any value between and in them."""
    made = bytearray()
    for _ in range(rng.randrange(1, 8)):
        data = rng.choice(PIECES)
        at = rng.randrange(len(data) + 1)
        made += data[at : at + rng.randrange(1, 30_000)] * rng.choice((1, 1, 1, 20))
        made += rng.randbytes(rng.randrange(3))
    for _ in range(rng.randrange(20)):
        made[rng.randrange(len(made) or 1) : 0] = rng.randbytes(1)
    return bytes(made)


def test_any_log_is_explained(seconds: float) -> None:
    rng = random.Random(11)
    until = time.process_time() + seconds
    while time.process_time() < until:
        data, block, budget = mutated(rng), rng.choice((997, 1 << 16, 1 << 21)), Budget()
        pieces = [data[i : i + block] for i in range(0, len(data), block)]
        told = explain_log(pieces, shipped_index(), budget)
        assert told.exit_code == EXITS[told.verdict]
        assert told.lines == data.count(b"\n") + (data[-1:] not in (b"", b"\n"))
        assert budget.spent < 1_000_000


def test_any_packed_log_is_read_or_refused(seconds: float, tmp_path: Path) -> None:
    rng = random.Random(12)
    known = [make(5_000) for make in PACKED.values()]
    path = tmp_path / "server.log"
    until = time.process_time() + seconds
    while time.process_time() < until:
        data = bytearray(rng.choice(known))
        for _ in range(rng.randrange(4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.choice((len(data), rng.randrange(len(data))))])
        log = Log(str(path))
        with contextlib.suppress(LogError):
            assert sum(map(len, log.blocks())) == log.size
        assert log.damaged <= bool(log.notes)
