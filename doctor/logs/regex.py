"""Patterns of signatures: RE2's language, so that no line takes more than linear time.

Without google-re2 the same patterns run on `re`, slower, over lines that are kept short.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

try:
    import re2
except ImportError:  # no wheel for this machine
    re2 = None

__all__ = ["compiled", "re2"]

Search = Callable[[str], "dict[str, str] | None"]
"""Looks for a pattern anywhere in a text: its named groups that took part, or None."""


@functools.cache
def compiled(pattern: str) -> Search:
    """Compiles a pattern in which a space stands for any white space, also for none: a terminal
    may have broken the line there. Raises ValueError where it is no pattern of RE2's language."""
    tolerant = pattern.replace(" ", r"\s*")
    return _with_re2(tolerant) if re2 else _with_re(tolerant)


def _with_re2(pattern: str) -> Search:
    options = re2.Options()
    options.log_errors = False
    try:
        made = re2._re2.RE2(pattern.encode(), options)
        if not made.ok():
            raise ValueError(made.error())
    except re2.error as error:
        raise ValueError(str(error)) from None
    names = [(name.decode(), index) for name, index in made.NamedCapturingGroups()]
    unanchored = re2._re2.RE2.Anchor.UNANCHORED

    def search(text: str) -> dict[str, str] | None:
        data = text.encode(errors="replace")
        spans = made.Match(unanchored, data, 0, len(data))
        if spans[0][0] < 0:
            return None
        taken = ((name, spans[index]) for name, index in names)
        return {name: data[a:b].decode() for name, (a, b) in taken if a >= 0}

    return search


def _with_re(pattern: str) -> Search:
    try:
        made = re.compile(pattern, re.ASCII)
    except re.error as error:
        raise ValueError(str(error)) from None

    def search(text: str) -> dict[str, str] | None:
        found = made.search(text)
        if found is None:
            return None
        return {name: value for name, value in found.groupdict().items() if value is not None}

    return search
