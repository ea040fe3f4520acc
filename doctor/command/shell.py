"""A command in one text, as a shell is given it: into words, where no shell is needed for that."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from doctor.errors import UsageError
from doctor.model import Text, printable
from doctor.redact import beginning

ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
"""NAME=VALUE in front of a command."""

_WORDS_MOST = 4096
"""More than any server's command has; the time to read one grows with their square."""
_WORD_MOST = 131_072
"""Bytes that Linux passes in one word (MAX_ARG_STRLEN, linux/binfmts.h)."""
_SHOWN = 60  # characters of a word in a sentence

# What a shell acts upon, outside all quotes; in double quotes only the first of it.
_EXPANDS = "$`"
_SPECIAL = "|&;<>()*?[]{}~#!\n"


def must_be_words(words: Sequence[str]) -> None:
    """Raises UsageError for words that no program can be given, or that only a slip makes."""
    if len(words) > _WORDS_MOST:
        said = Text("the command has more than {most} words", most=_WORDS_MOST)
        raise UsageError(said)
    for word in words:
        if "\0" in word:
            raise UsageError(Text("{word}: a NUL is in this word of the command", word=brief(word)))
        if len(word.encode("utf-8", "surrogateescape")) > _WORD_MOST:
            raise UsageError(
                Text(
                    "{word}: a word of the command is longer than the {most} bytes that Linux "
                    "passes to a program",
                    word=brief(word),
                    most=_WORD_MOST,
                )
            )
        if word and word.isspace():
            said = Text(
                "a word of the command is nothing but blanks: is there a blank behind the \\ at "
                "the end of a line?"
            )
            raise UsageError(said)


def brief(word: str) -> str:
    """As much of a word as a sentence needs, without secrets."""
    shown = printable(beginning(word, _SHOWN))
    return shown if len(word) <= _SHOWN else f"{shown}..."


def words_of(text: str) -> tuple[str, ...]:
    """The words of a simple command. Raises UsageError for quotes that do not match, and for all
    that a shell would have to act upon."""
    if len(text) > _WORD_MOST:
        must_be_words((text,))
    joined = text.replace("\\\r\n", " ").replace("\\\n", " ").strip()
    if sign := _acted_upon(joined):
        raise UsageError(
            Text(
                "{text}: {sign} is for a shell, which the doctor does not run; give the command "
                "of the server alone, and its environment by --python",
                text=brief(joined),
                sign=repr(sign),
            )
        )
    try:
        words = tuple(shlex.split(joined))
    except ValueError as error:
        why = str(error).lower()
        raise UsageError(Text("{text}: {why}", text=brief(joined), why=why)) from None
    must_be_words(words)
    return words


def _acted_upon(text: str) -> str | None:
    """The first character that a shell would act upon."""
    quote, escaped = "", False
    for sign in text:
        if escaped:
            escaped = False
        elif sign == "\\" and quote != "'":
            escaped = True
        elif sign == quote:
            quote = ""
        elif sign in "\"'" and not quote:
            quote = sign
        elif quote != "'" and (sign in _EXPANDS or (not quote and sign in _SPECIAL)):
            return sign
    return None


def as_text(words: Sequence[str]) -> str:
    """The words as one text for a shell; variables in front stay variables."""
    made: list[str] = []
    for i, word in enumerate(words):
        variable = ASSIGNMENT.fullmatch(word)
        if variable and all(ASSIGNMENT.fullmatch(one) for one in words[:i]):
            made.append(f"{variable[1]}={shlex.quote(variable[2])}")
        else:
            made.append(shlex.quote(word))
    return " ".join(made)
