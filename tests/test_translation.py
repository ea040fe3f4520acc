"""What `fit` says is there in Chinese: every sentence, with the same values in it."""

from __future__ import annotations

import string
from pathlib import Path

import pytest

import doctor
from doctor.model import Text
from doctor.report.lines import columns
from doctor.report.translation import Translation, chinese, translation
from doctor.toml import load_toml
from tests.test_words import template, texts

PACKAGE = Path(doctor.__file__).parent
ROWS = load_toml(PACKAGE / "locale/zh_CN.toml")["texts"]
# What is refused is said on stderr, as by all commands, in English.
REFUSE = ("fit/amounts.py", "fit/gpus.py")
SAY = ["report/fit_text.py"] + [
    name
    for file in sorted((PACKAGE / "fit").rglob("*.py"))
    if (name := str(file.relative_to(PACKAGE))) not in REFUSE
]
ALSO = ("cli/fit.py", "fitting.py", "probes/fit.py", "profile.py", "consumers/shares.py")
"""Files of which `fit` says some sentences."""


def said_in(*names: str) -> set[str]:
    found = (template(call) for name in names for call in texts(PACKAGE / name))
    return {one for one in found if one is not None}


def test_every_sentence_of_fit_has_its_chinese() -> None:
    assert not sorted(said_in(*SAY) - ROWS.keys())


def test_no_row_is_of_a_sentence_that_nobody_says() -> None:
    assert not sorted(ROWS.keys() - said_in(*SAY, *ALSO))


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("english", ROWS)
def test_both_have_the_same_values(english: str) -> None:
    assert fields(english) == fields(ROWS[english])


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({}, "it fits"),
        ({"LANG": "zh_CN.UTF-8"}, "放得下"),
        ({"LANG": "zh_TW"}, "放得下"),
        ({"LC_MESSAGES": "zh_CN.UTF-8", "LANG": "en_US.UTF-8"}, "放得下"),
        ({"LC_ALL": "C.UTF-8", "LANG": "zh_CN.UTF-8"}, "it fits"),
        ({"LC_ALL": "", "LANG": "zh_CN.UTF-8"}, "放得下"),
        ({"LC_ALL": "C", "LC_MESSAGES": "zh_CN.UTF-8"}, "it fits"),
    ],
)
def test_the_first_variable_that_is_set_names_the_language(env: dict[str, str], said: str) -> None:
    assert translation(env).of(Text("it fits")) == said


def test_sentences_in_a_sentence_are_translated_too() -> None:
    inner = Text("the {size} attention heads", size=20)
    outer = Text("tensor_parallel_size={ranks} does not divide {what}", ranks=3, what=[inner])
    assert chinese().of(outer) == "tensor_parallel_size=3 不能整除 20 个注意力头"


def test_what_has_no_row_stays_as_it_is() -> None:
    text = Text("{bold} words", bold="\x1b[1m")
    assert chinese().of(text) == Translation({}).of(text) == str(text)


def test_a_wide_sign_takes_two_columns() -> None:
    assert columns("权重 28") == 7
