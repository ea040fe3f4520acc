"""What the doctor kept below a prefix, as a stranger or a power cut leaves it."""

from __future__ import annotations

import json
import random

import pytest

from doctor.exits import FAILED, FINDINGS, HEALTHY, UNKNOWN, USAGE
from doctor.probes.environment import HOME, SAVED
from doctor.repair.state import State
from doctor.serve.proofs import is_proven
from doctor.target import Live
from tests.conftest import Environment, run_inside
from tests.fuzz.conftest import Fuzz
from tests.fuzz.mutate import changed_json, is_sound
from tests.test_state import applied

pytestmark = pytest.mark.hardening

SAVED_TEXT = json.dumps(
    {
        "schema_version": 1,
        "variables": {
            "CUDA_HOME": {"value": "/opt/cuda", "instead_of": ["/bad"]},
            "LD_LIBRARY_PATH": {"value": "/a:/b", "prepend": True},
            "CUDA_PATH": {"value": None, "instead_of": ["/bad"]},
        },
    }
)
PROOFS = json.dumps({"schema_version": 1, "proven": {"a" * 64: 1764000000.5, "b" * 64: 1}})


def test_saved_variables(fuzz: Fuzz, cpu_server: Environment) -> None:
    path = cpu_server.prefix / SAVED
    path.parent.mkdir(parents=True)

    def one(r: random.Random) -> None:
        path.write_bytes(changed_json(r, SAVED_TEXT))
        form = r.choice(("sh", "fish", "systemd", "dotenv", "json"))
        said = run_inside("env", "-v", "--shell", form, "--python", cpu_server.prefix)
        is_sound(said, HEALTHY, UNKNOWN)
        if r.random() < 0.1:
            said = run_inside("diagnose", "--python", cpu_server.prefix, "--set", "device=cpu")
            is_sound(said, HEALTHY, FINDINGS, UNKNOWN)

    fuzz.each(one)


def test_proofs_of_earlier_starts(fuzz: Fuzz, bare: Environment) -> None:
    path = bare.prefix / HOME / "proofs.json"
    path.parent.mkdir(parents=True)

    def one(r: random.Random) -> None:
        path.write_bytes(changed_json(r, PROOFS))
        assert not is_proven(Live({}), bare.prefix, "c" * 64)

    fuzz.each(one)


def test_journals_and_manifests(fuzz: Fuzz, bare: Environment) -> None:
    """Listed only: what undoes and repairs has tests of properties of its own."""
    run = applied(State(bare.prefix), {"lib/a.py": b"new"})
    files = list(run.folder.rglob("*.json"))
    texts = {path: path.read_text() for path in files}
    assert len(files) == 2

    def one(r: random.Random) -> None:
        for path, text in texts.items():
            path.write_text(text)
        path = r.choice(files)
        path.write_bytes(changed_json(r, texts[path]))
        said = run_inside("undo", "--list", "--python", bare.prefix)
        is_sound(said, HEALTHY, UNKNOWN, FAILED, USAGE)

    fuzz.each(one)
