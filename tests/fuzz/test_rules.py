"""Folders of further rules, as their authors get them wrong: `--rules`."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from doctor.exits import FINDINGS, HEALTHY, UNKNOWN, USAGE
from tests.conftest import run_inside
from tests.fuzz.conftest import Fuzz
from tests.fuzz.mutate import TAPES, changed_bytes, is_sound, words

pytestmark = pytest.mark.hardening

HEAD = "from doctor import Fact, Finding, Fix, Missing, Needs, Severity, Stage, Text, rule\n"
HEAD += "from doctor.probes.wheels import Packages\nfrom doctor.target import Target\n"
PARAMETERS = (
    *("", "packages: Packages", "packages: Packages | None", "target: Target", "x", "x: int"),
    *("x: str | int", "x: 'Nowhere'", "*, packages: Packages", "*all: Packages", "x: Fact = 3"),
)
BODIES = (
    *("return ()", "return None", "return 1", "yield 1", "return Finding('x')", "return [None]"),
    *("return Finding(Text('{x}'))", "return Finding(Text('{x.y}', x=1))", "raise SystemExit(3)"),
    *("return Finding(Text('\\x1b]0;owned\\x07'))", "print('\\x1b[2J'); return ()", "1 / 0"),
    *("raise Missing(Text('{'))", "raise Missing('x')", "raise KeyboardInterrupt.__base__"),
    *("return Finding(Text('ok'), fixes=(1,))", "def f():\n        return f()\n    return f()"),
    *("raise RecursionError('\\udce9')", "return Finding(Text('{x}', x='\\0\\udce9'))", "pass"),
)


def rule(r: random.Random) -> str:
    id = repr(r.choice(("a-rule", "nvcc-missing", words(r, 1))))
    severity = r.choice(("Severity.ERROR", "Severity.INFO", "'error'", "'loud'", "None"))
    stage = r.choice(("Stage.SHELL", "Stage.COMPILE", "3", "'x'"))
    text = r.choice(("'''Title.\n\n    More.'''", "'''\x07'''", "pass", repr(words(r))))
    name = r.choice(("f", "g", "_", "é"))
    head = f"@rule({id}, {severity}, {stage})\ndef {name}({r.choice(PARAMETERS)}):"
    return f"{head}\n    {text}\n    {r.choice(BODIES)}\n"


def test_a_folder_of_rules_gone_wrong(fuzz: Fuzz, tmp_path: Path) -> None:
    folder = tmp_path / "more"

    def one(r: random.Random) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for number in range(r.randint(1, 2)):
            data = (HEAD + "".join(rule(r) for _ in range(r.randint(1, 3)))).encode(
                "utf-8", "surrogatepass"
            )
            # What is changed byte by byte is no program any more, and does not get to run.
            broken = b"\n(\0" + changed_bytes(r, data) if r.random() < 0.2 else data
            (folder / f"{'' if number else 'é '}{number}.py").write_bytes(broken)
        command = r.choice((["rules"], ["diagnose", "--from", str(r.choice(TAPES))]))
        is_sound(run_inside(*command, "--rules", folder), HEALTHY, FINDINGS, UNKNOWN, USAGE)

    fuzz.each(one)
