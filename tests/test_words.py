"""What a person reads: every sentence is a literal template, none is compared, and the words are
the field's own."""

from __future__ import annotations

import ast
import functools
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest

import doctor
from doctor.cli import cli
from doctor.shipped import rules_folder

PACKAGE = Path(doctor.__file__).parent
FILES = sorted([*PACKAGE.rglob("*.py"), *rules_folder().glob("*.py")])


class Sentence(NamedTuple):
    """A template, and where it stands."""

    file: Path
    line: int
    template: str

    @property
    def at(self) -> str:
        return f"{self.file}:{self.line}"


@functools.cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def texts(file: Path) -> Iterator[ast.Call]:
    """Every `Text(...)` in a file; rich's class of that name goes by another one here."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Text":
            yield node


def template(call: ast.Call) -> str | None:
    """Its literal template; None where it is computed."""
    if len(call.args) != 1 or not isinstance(call.args[0], ast.Constant):
        return None
    value = call.args[0].value
    return value if isinstance(value, str) else None


def sentences() -> list[Sentence]:
    """All that can be translated."""
    return [
        Sentence(file, call.lineno, said)
        for file in FILES
        for call in texts(file)
        if (said := template(call)) is not None
    ]


def test_every_template_is_a_literal() -> None:
    computed = [
        f"{file}:{call.lineno}" for file in FILES for call in texts(file) if template(call) is None
    ]
    assert not computed
    assert len(sentences()) > 300


def test_every_template_has_exactly_the_values_that_it_names() -> None:
    wrong = []
    for file in FILES:
        for call in texts(file):
            parts = string.Formatter().parse(template(call) or "")
            named = {field for _, field, *_ in parts if field}
            if named != {keyword.arg for keyword in call.keywords}:
                wrong.append(f"{file}:{call.lineno}")
    assert not wrong


def is_prose(node: ast.expr) -> bool:
    """A literal of words, or a sentence made of a Text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return bool(re.search(r"[a-z]{2} [a-z]{2}", node.value))
    return isinstance(node, ast.Attribute) and node.attr == "template"


# What another program prints is recognised by its words.
OTHERS_WORDS = {
    "logs/packed.py": "what liblzma says of its limit",
    "probes/proof.py": "what ld says of a full disk",
}


@pytest.mark.parametrize("file", FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_no_sentence_is_compared(file: Path) -> None:
    compared = [
        node.lineno
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Compare) and any(map(is_prose, (node.left, *node.comparators)))
    ]
    assert bool(compared) == (f"{file.parent.name}/{file.name}" in OTHERS_WORDS), compared


# Words.

# A person reads the field's own terms instead.
ODD = re.compile(
    r"\b(?:repair\w*|mend\w*|heal(?:s|ed)?|cure\w*|remed\w+|tapes?|anew|by hand)\b"
    r"|\b(?:take|takes|taken|took) (?:it )?back\b|\bpassed over\b|\bwas cut off\b|\bdo without\b"
    r"|\bspeaks CUDA\b|\banswers \d|\bCUDA shows\b|\bdoes not hold\b|\bleast finding\b"
    r"|(?<!there )\bis no (?!longer\b|such\b)\w|\bwants a name\b|\bnot go together\b|^as for "
)


def helps() -> Iterator[tuple[str, str]]:
    """(command and option, what --help says of it)."""
    for name, command in cli.commands.items():
        inner = command.commands if isinstance(command, click.Group) else {}
        for path, one in {name: command, **{f"{name} {n}": c for n, c in inner.items()}}.items():
            yield path, one.help or ""
            for option in one.params:
                if isinstance(option, click.Option):
                    yield f"{path} {option.opts[-1]}", option.help or ""


def test_no_sentence_has_an_odd_word() -> None:
    odd = [
        f"{one.at}: {found[0]!r} in {one.template!r}"
        for one in sentences()
        if (found := ODD.search(re.sub(r"\{\w+\}", "{}", one.template)))
    ]
    assert not odd, "\n".join(odd)


def test_no_help_has_an_odd_word() -> None:
    odd = [f"{name}: {found[0]!r}" for name, said in helps() if (found := ODD.search(said))]
    assert not odd, "\n".join(odd)
