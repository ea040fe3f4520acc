"""Exceptions in a log that no signature knows: the innermost one, and where it was raised."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from doctor.logs.lines import FRAME, HEADER, Line, enveloped, placed, split, unwrapped
from doctor.logs.scan import AHEAD, Hit

_BOXED_FRAME = re.compile(r"\s*(?P<file>/\S+\.py):(?P<line>\d+) in (?P<function>\S+)$")
_EXCEPTION = re.compile(
    r"(?:(?:[A-Za-z_]\w*\.)*(?:[A-Z]\w*)?(?:Error|Exception|Exit|Interrupt|Warning|Failure|Failed|"
    r"Timeout|Iteration|NotFound|Mismatch|Overflow|Exceeded|Unavailable|Denied|Dead)|"
    r"(?:[a-z_]\w*\.)+[A-Z]\w*)(?::\s.*)?$"
)
_CHAIN = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)


_BEFORE = 4 << 10
"""Bytes before the line within which its beginning lies, where a terminal broke it."""
_MESSAGE_MOST = 30
"""Lines of one exception's message."""
_APART = 60
"""Lines of others between two lines of one traceback."""


@dataclass(frozen=True)
class Failure:
    """What was found of a failure. `line`: that of `said`, counted from the first one given.
    `raised_in` and `called_from`: "file:line in function", the innermost frame and the one above.
    `bottom`: the lines of the innermost exception, its frames and its message. `length`: of all."""

    said: str
    line: int
    raised_in: str | None
    called_from: str | None
    bottom: tuple[int, int]
    length: int


class Block:
    """The lines from a failure on, as they were before a terminal broke them."""

    def __init__(self, line: int, offset: int, above: int, data: bytes) -> None:
        """`data` begins at the byte `offset` of the log, `above` lines over the number `line`."""
        self._first = line - above
        self._offset = offset
        self.data = data
        self._above = above

    @classmethod
    def at(cls, hit: Hit, broken: bool = True) -> Block:
        """`broken`: the hit may be the rest of a line that begins before it."""
        low = max(0, hit.start - _BEFORE) if broken else hit.start
        above = len(split(hit.window[low : hit.start])) - 1
        return cls(hit.line, hit.base + low, above, hit.window[low : hit.start + AHEAD])

    @functools.cached_property
    def _whole(self) -> list[tuple[int, str]]:
        whole = unwrapped(split(self.data))
        begin = max(i for i, (number, _) in enumerate(whole) if number <= self._above)
        return whole[begin:]

    @functools.cached_property
    def _places(self) -> list[int]:
        return placed(self.data)

    @functools.cached_property
    def lines(self) -> Sequence[Line]:
        return _Lines([text for _, text in self._whole])

    @functools.cached_property
    def failure(self) -> Failure:
        return innermost(self.lines)

    def line(self, number: int) -> int:
        """The number in the log of one of the lines."""
        return self._first + self._whole[number][0]

    def place(self, number: int) -> int:
        """Where one of the lines begins in the log, in bytes."""
        if number == len(self._whole):
            return self._offset + len(self.data)
        return self._offset + self._places[self._whole[number][0]]


class _Lines(Sequence[Line]):
    """Lines that are cleaned when they are looked at: most failures end long before the block."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts
        self._cleaned: dict[int, Line] = {}

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, at: int) -> Line: ...
    @overload
    def __getitem__(self, at: slice) -> list[Line]: ...
    def __getitem__(self, at: int | slice) -> Line | list[Line]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self._texts)))]
        if at not in self._cleaned:
            self._cleaned[at] = enveloped(self._texts[at])
        return self._cleaned[at]


def innermost(lines: Sequence[Line]) -> Failure:
    """Of the lines from a failure on, the exception at the bottom of it: of a chain the first,
    which caused the others. Where there is no exception, the first line is what failed."""
    read = _Reading(lines)
    level, place = lines[0].level, lines[0].place
    if HEADER in lines[0].text and len(lines) > 1 and lines[1].level is None:
        level = place = None  # uvicorn puts its own before the header alone
    for number, line in enumerate(lines):
        if number > read.end + _APART:
            break
        # Those of another rank, or of another record, stand in between.
        record = (line.process, line.level, line.place)
        # What has no prefix right below a line of it was broken off by a terminal.
        broken = record == (None, None, None) and number == read.end
        if record == (lines[0].process, level, place) or broken or not number:
            if read.is_over(number, line.text):
                break
            read.take(number, line)
    if read.first is None:
        return Failure(lines[0].text.strip(), 0, lines[0].place, None, (0, 1), read.end)
    return dataclasses.replace(read.first, length=read.end)


class _Reading:
    """A chain of tracebacks, as far as it was read. `end`: behind its last line."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self._lines = lines
        self._frames: list[str] = []
        self._begin = 0
        self._message = 0
        self._chained = False
        self._open = False
        self.first: Failure | None = None
        self.end = 1

    def is_over(self, number: int, text: str) -> bool:
        """Whether another traceback begins here, which is not of this chain."""
        unchained = self.first is not None and not self._chained
        return HEADER in text and number > 0 and (bool(self._frames) or unchained)

    def take(self, number: int, line: Line) -> None:
        text = line.text
        if HEADER in text or text.strip() in _CHAIN:
            self._open = HEADER in text
            self._chained = not self._open
            self._begin = self._begin if self.first else number
            self._frames, self._message = [], 0
        elif frame := FRAME.match(text) or _BOXED_FRAME.match(text):
            self._frames.append(_told(frame))
        elif _EXCEPTION.match(text) and (self._frames or self._open or not number):
            self._raise(number, line)
        elif self._message and text.strip():
            self._message -= 1
            if self.first and not self._chained:
                self.first = dataclasses.replace(self.first, bottom=(self._begin, number + 1))
        elif not self._frames:
            self._message = 0
            return
        self.end = number + 1

    def _raise(self, number: int, line: Line) -> None:
        if self.first is None:
            where = self._frames[-1] if self._frames else line.place
            above = self._frames[-2] if len(self._frames) > 1 else None
            said = _with_rest(line, self._lines[number + 1 : number + 4])
            self.first = Failure(said, number, where, above, (self._begin, number + 1), number + 1)
        self._frames, self._open, self._message = [], False, _MESSAGE_MOST


def _with_rest(line: Line, after: Sequence[Line]) -> str:
    """The exception's line with the next ones of its message, which are indented."""
    said = [line.text.strip()]
    for one in after:
        same = (one.process, one.level) == (line.process, line.level)
        if not same or not one.text[:1].isspace() or FRAME.match(one.text):
            break
        said.append(one.text.strip())
    return " ".join(said)


def _told(frame: re.Match[str]) -> str:
    function = frame["function"]
    return f"{frame['file']}:{frame['line']}" + (f" in {function.strip()}" if function else "")
