"""Profiles of strangers, and values on the command line."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest

from doctor.exits import FINDINGS, HEALTHY, UNKNOWN, USAGE
from doctor.profile import ModelNeeds, Profile
from tests.conftest import run_inside
from tests.fuzz.conftest import Fuzz
from tests.fuzz.mutate import (
    ROOT,
    TAPES,
    changed_bytes,
    changed_text,
    has_no_crash,
    is_sound,
    words,
)

pytestmark = pytest.mark.hardening

REAL = (ROOT / "doctor/profiles/glm-4.7-flash.toml").read_text()
KEYS = [f.name for f in dataclasses.fields(Profile)]
KEYS += [f"needs.{f.name}" for f in dataclasses.fields(ModelNeeds)]
KEYS += ["env.HF_ENDPOINT", "env.", "env.A=B", "", ".", "needs", "model.x", "nonsense"]
PLAIN = ("1", "2", "8", "cpu", "cuda", "later", "here", "9.0", "9.0,10.0", "0.9", "true", "m/n")


def judged(fuzz_options: list[str], r: random.Random) -> None:
    said = run_inside(*("diagnose", "--format", "json", "--from", r.choice(TAPES)), *fuzz_options)
    is_sound(said, HEALTHY, FINDINGS, UNKNOWN, USAGE)
    if said.out:
        has_no_crash(said.report)


def test_a_profile_of_a_stranger(fuzz: Fuzz, tmp_path: Path) -> None:
    path = tmp_path / "profile.toml"

    def one(r: random.Random) -> None:
        if r.random() < 0.3:
            data = changed_bytes(r, REAL.encode())
        elif r.random() < 0.5:
            data = changed_text(r, REAL).encode("utf-8", "surrogateescape")
        else:
            rows = REAL.splitlines()
            at = r.randrange(len(rows))
            key = rows[at].partition("=")[0]
            value = r.choice((words(r), f'"{words(r, 1)}"', "[]", "{}", "-1", "inf", '[["x"]]'))
            rows[at] = f"{key}= {value}"
            data = "\n".join(rows).encode("utf-8", "surrogateescape")
        path.write_bytes(data)
        judged(["--profile", str(path)], r)

    fuzz.each(one)


def test_any_value_on_the_command_line(fuzz: Fuzz) -> None:
    def one(r: random.Random) -> None:
        sets = []
        for _ in range(r.randint(1, 3)):
            key = r.choice(KEYS) if r.random() < 0.9 else words(r, 1)
            value = r.choice(PLAIN) if r.random() < 0.5 else words(r, 2)
            sets += ["--set", f"{key}={value}"]
        judged(sets, r)

    fuzz.each(one)
