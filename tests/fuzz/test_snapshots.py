"""Snapshots of strangers: `diagnose --from`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from doctor.exits import FINDINGS, HEALTHY, UNKNOWN, USAGE
from tests.conftest import run_inside
from tests.fuzz.conftest import Fuzz
from tests.fuzz.mutate import TAPES, changed_json, has_no_crash, is_sound

pytestmark = pytest.mark.hardening

TEXTS = [path.read_text() for path in TAPES]
SETS = (
    (),
    ("--set", "gpus=later", "--set", "archs=9.0"),
    ("--set", "device=cpu"),
    ("-v",),
    ("-q",),
)


def test_a_snapshot_of_a_stranger(fuzz: Fuzz, tmp_path: Path) -> None:
    path = tmp_path / "tape.json"

    def one(r: random.Random) -> None:
        path.write_bytes(changed_json(r, r.choice(TEXTS)))
        form = r.choice(("text", "json", "json"))
        said = run_inside("diagnose", "--from", path, "--format", form, *r.choice(SETS))
        is_sound(said, HEALTHY, FINDINGS, UNKNOWN, USAGE)
        if form == "json" and said.out:
            has_no_crash(said.report)

    fuzz.each(one)
