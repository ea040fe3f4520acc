"""TOML files, read with the standard library's parser, or tomli before Python 3.11."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from doctor.target import must_read

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


_MOST = 1 << 20  # bytes; all signatures of one area are a thirtieth of it


def load_toml(path: Path, at_most: int = _MOST) -> dict[str, Any]:
    """The file's table. Raises OSError, or ValueError saying where it is no TOML, or is larger than
    `at_most` bytes."""
    try:
        return tomllib.loads(must_read(path, at_most).decode())
    except RecursionError:
        raise ValueError("nested too deep") from None


def load_section(path: Path, name: str, at_most: int = _MOST) -> dict[str, Any] | None:
    """The table ["name"] of a file whose tables stand one after the other, each before those below
    it; None where there is none. Nothing else of the file is parsed. Raises as `load_toml` does."""
    text = "\n" + must_read(path, at_most).decode()
    start = text.find(f'\n["{name}"]\n')
    if start < 0:
        return None
    ends = start + 1
    while (ends := text.find("\n[", ends)) >= 0 and text.startswith(f'["{name}".', ends + 1):
        ends += 1
    try:
        return dict(tomllib.loads(text[start : ends if ends >= 0 else None])[name])
    except RecursionError:
        raise ValueError("nested too deep") from None


def load_rows(path: Path, name: str, words: Collection[str], at_most: int = _MOST) -> Iterator[Any]:
    """Each table [[name]] of a file of nothing else that has one of these texts, in order; the
    others are not parsed. Raises as `load_toml` does."""
    text = must_read(path, at_most).decode()
    for row in text.split(f"[[{name}]]\n")[1:]:
        if any(f'"{word}"' in row for word in words):
            yield tomllib.loads(row)
