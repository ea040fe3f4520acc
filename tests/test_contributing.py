"""CONTRIBUTING.md is true: each worked example, carried out in a copy of the tree, touches as many
files as its table says, works, and leaves nothing else to be edited by hand."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import HANG, SYSTEM

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"<!-- (\w+): (append to|in|run) ?(\S*?)(?:, (after|instead of) (.*?))? -->\n```\w+\n(.*?)```",
    re.S,
)
EXAMPLES = dict.fromkeys(row[0] for row in BLOCK.findall(TEXT))
TITLES = {
    "rule": "a rule",
    "signature": "a log signature",
    "fact": "a fact",
    "kind": "a kind of step",
    "form": "an output form",
}
# What `python -m tests.regenerate` writes.
GENERATED = re.compile(r"docs/|README|fixtures/(tapes|commands)/[^/]+\.txt$")
TREE = ("doctor", "rules", "tests", "fixtures", "docs")
# How examples are tried that do not show it themselves.
TRIED = {
    "fact": """
python -c 'from doctor.engine import Facts; from doctor.target import Live
from doctor.probes.host_memory import HostMemory; print(Facts(Live()).get(HostMemory))'
python -c 'import json; from doctor.engine import Facts; from doctor.tape import Tape, load_tape
from doctor.probes.host_memory import HostMemory; from tests.tapes import TAPES, answers, laid_over
snapshot = load_tape(laid_over(json.loads(TAPES[0].read_text()), answers()))
assert Facts(Tape(snapshot)).get(HostMemory).total == 263842636'
""",
    "kind": """
at=$(mktemp -d) && python -m venv --without-pip "$at/env" && mkdir "$at/rules"
cat > "$at/rules/site.py" <<'RULE'
from doctor import Finding, Fix, Severity, Stage, Text, rule
from doctor.fixes.pip_conf import PipIndex
from doctor.probes.interpreter import Interpreter

@rule("own-index-missing", Severity.WARNING, Stage.INSTALL)
def own_index_missing(interpreter: Interpreter) -> Finding | None:
    '''pip asks the public index.'''
    if (interpreter.prefix / "pip.conf").exists():
        return None
    fix = Fix(Text("ask ours"), (PipIndex("https://pypi.example/simple"),))
    return Finding(Text("there is no pip.conf"), fixes=(fix,))
RULE
fix="python -m doctor fix --python $at/env --rules $at/rules --set model= --only own-index-missing"
$fix | grep 'index-url = https://pypi.example/simple'
$fix --apply || test $? = 1  # vLLM is missing all the same
grep index-url "$at/env/pip.conf"
python -m doctor undo --python "$at/env" && test ! -e "$at/env/pip.conf" && rm -r "$at"
""",
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout, as far as the examples and their checks need it."""
    copy = tmp_path_factory.mktemp("contributing") / "tree"
    no_bytecode = shutil.ignore_patterns("__pycache__", ".*")
    for name in TREE:
        shutil.copytree(ROOT / name, copy / name, ignore=no_bytecode, symlinks=True)
    for path in ROOT.glob("*.*"):
        if path.is_file():
            shutil.copy(path, copy)
    return copy


def test_the_examples_are_those_of_the_table() -> None:
    assert list(EXAMPLES) == list(TITLES)


def test_every_place_that_is_named_is_there() -> None:
    prose = BLOCK.sub("", TEXT)
    named = set(re.findall(r"`((?:doctor|rules|fixtures|tests|docs)/[\w./-]*)`", prose))
    assert {place for place in named if not (ROOT / place).exists()} == set()
    assert "doctor/variables.py" in named


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_touches_what_the_table_says_and_works(
    example: str, tree: Path, tmp_path: Path
) -> None:
    shutil.copytree(tree, tmp_path / "tree", symlinks=True)
    copy = tmp_path / "tree"
    touched = set()
    for name, how, file, where, line, text in BLOCK.findall(TEXT):
        if name != example:
            continue
        if how == "run":
            carried_out(text, copy)
            continue
        place = copy / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(put(place, where, line, text), encoding="utf-8")
        touched.add(file)
    carried_out(TRIED.get(example, ""), copy)
    assert len(touched) == promised(TITLES[example])
    linted(touched, copy)
    by_hand = {file for file in changed(tree, copy) if not GENERATED.match(file)}
    assert by_hand == touched


def promised(title: str) -> int:
    """The number in the table's row."""
    (count,) = re.findall(rf"(?m)^\| \[?{title}\b.*\| (\d) \|$", TEXT)
    return int(count)


def put(place: Path, where: str, mark: str, text: str) -> str:
    """The file with the block at its end, or after, or instead of, the one line with the mark."""
    was = place.read_text(encoding="utf-8") if place.exists() else ""
    if not where:
        return f"{was}\n{text}" if was else text
    (line,) = (line for line in was.splitlines(keepends=True) if mark in line)
    return was.replace(line, line + text if where == "after" else text)


def carried_out(text: str, copy: Path) -> str:
    """The lines of a shell; each has to end well."""
    bin = Path(sys.executable).parent
    env = {**os.environ, **SYSTEM, "PATH": f"{bin}:{SYSTEM['PATH']}"}
    ran = subprocess.run(
        ["sh", "-eu", "-c", text],
        cwd=copy,
        env=env,
        capture_output=True,
        text=True,
        timeout=5 * HANG,  # a suite of its own, beside this one
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    return ran.stdout


def changed(one: Path, other: Path) -> set[str]:
    """The files that are not the same in both, but for bytecode and what tools remember."""
    found = set()
    for path in {p.relative_to(at) for at in (one, other) for p in at.rglob("*")}:
        if not any(part.startswith((".", "__pycache__")) for part in path.parts):
            first, second = one / path, other / path
            if first.is_dir() and second.is_dir():
                continue
            if not (first.exists() and second.exists() and filecmp.cmp(first, second, False)):
                found.add(path.as_posix())
    return {file for file in found if not (other / file).is_dir()}


def linted(touched: set[str], copy: Path) -> None:
    """An example is as well made as what it stands among."""
    python = sorted(file for file in touched if file.endswith(".py"))
    if python:
        names = " ".join(python)
        carried_out(f"ruff check {names} && ruff format --check {names}", copy)
