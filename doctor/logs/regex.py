"""Patterns of signatures: RE2's language, so that no line takes more than linear time.

Without google-re2 the same patterns run on `re`, slower, over lines that are kept short.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence

try:
    import re2
except ImportError:  # no wheel for this machine
    re2 = None

__all__ = ["Patterns", "compiled", "re2"]

Search = Callable[[str], "dict[str, str] | None"]
"""Looks for a pattern anywhere in a text: its named groups that took part, or None."""


@functools.cache
def compiled(pattern: str) -> Search:
    """Compiles a pattern in which a space stands for any white space, also for none: a terminal
    may have broken the line there. Raises ValueError where it is no pattern of RE2's language."""
    tolerant = _tolerant(pattern)
    return _with_re2(tolerant) if re2 else _with_re(tolerant)


def _tolerant(pattern: str) -> str:
    return pattern.replace(" ", r"\s*")


_ANCHOR = re.compile(r"(\\.|\[\^?\]?(?:\\.|[^\]\\])*\])|[$^]", re.DOTALL)
_MEMORY = 16 << 20


class Patterns:
    """Many patterns in one automaton, for a text of many lines: where one fits a line, it is also
    found here, for that it has to be at a line's begin or end is left out."""

    def __init__(self, patterns: Sequence[str]) -> None:
        loose = [_ANCHOR.sub(lambda found: found[1] or "", one) for one in patterns]
        self._each = [] if re2 else [compiled(one) for one in loose]
        if re2:
            options = re2.Options()
            options.never_capture = True
            options.max_mem = _MEMORY
            self._set = re2._re2.Set(re2._re2.RE2.Anchor.UNANCHORED, options)
            for one in loose:
                self._set.Add(_tolerant(one).encode())
            self._set.Compile()

    def fitting(self, text: str) -> list[int]:
        """The numbers of those that fit somewhere in the text."""
        if re2:
            found: list[int] = self._set.Match(text.encode(errors="replace"))
            return found
        return [number for number, fits in enumerate(self._each) if fits(text) is not None]


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
