"""Patterns of signatures: RE2's language, so that no line takes more than linear time.

Without google-re2 the same patterns run on `re`, slower, over lines that are kept short.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

try:
    import re2
except ImportError:  # no wheel for this machine
    re2 = None

__all__ = ["Patterns", "compile_pattern", "re2"]

PatternSearch = Callable[[str], "dict[str, str] | None"]
"""Looks for a pattern anywhere in a text: its named groups that took part, or None."""


@functools.cache
def compile_pattern(pattern: str) -> PatternSearch:
    """Compiles a pattern in which a space stands for any white space, also for none: a terminal
    may have broken the line there. Raises ValueError where it is no pattern of RE2's language."""
    tolerant = _tolerant(pattern)
    return _with_re2(tolerant) if re2 else _with_re(tolerant)


def _tolerant(pattern: str) -> str:
    return pattern.replace(" ", r"\s*")


_ANCHOR = re.compile(r"(\\.|\[\^?\]?(?:\\.|[^\]\\])*\])|[$^]", re.DOTALL)
_GROUPS, _MEMORY = 28, 1 << 19
"""Automata, and bytes of each: in one for all, a line with many beginnings has too many states."""


class Patterns:
    """Many patterns, for a text of many lines. Where one fits a line, it is also found here, for
    that it has to be at a line's begin or end is left out."""

    def __init__(self, patterns: Sequence[str]) -> None:
        loose = [_ANCHOR.sub(lambda found: found[1] or "", one) for one in patterns]
        self._each = [] if re2 else [compile_pattern(one) for one in loose]
        self._groups = [
            _set([_tolerant(p) for p in loose[i::_GROUPS]]) for i in range(_GROUPS) if re2
        ]

    def fitting(self, text: str) -> Iterator[int]:
        """The numbers of those that fit a line of the text."""
        data = text.encode(errors="replace")
        for first, group in enumerate(self._groups):
            yield from (first + _GROUPS * number for number in group.Match(data))
        for number, fits in enumerate(self._each):
            if fits(text) is not None:
                yield number


def _set(patterns: Sequence[str]) -> Any:
    options = re2.Options()
    options.never_capture = True
    options.never_nl = True
    options.max_mem = _MEMORY
    made = re2._re2.Set(re2._re2.RE2.Anchor.UNANCHORED, options)
    for one in patterns:
        made.Add(one.encode())
    made.Compile()
    return made


def _with_re2(pattern: str) -> PatternSearch:
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


def _with_re(pattern: str) -> PatternSearch:
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
