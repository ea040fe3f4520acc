"""Exceptions in a log that no signature knows: the innermost one, and where it was raised."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from doctor.logs.lines import FRAME, HEADER, Lines, LogLine, indent_of, placed, split, unwrapped
from doctor.logs.scan import AHEAD, Hit

_BOXED_FRAME = re.compile(r"\s*(?P<file>/\S+\.py):(?P<line>\d+) in (?P<function>\S+)$")
_NAME = r"(?:[A-Za-z_]\w*\.)*[A-Za-z_]?\w*(?:Error|Exception)"
_EXCEPTION = re.compile(
    rf"\s*(?:{_NAME}|(?:[A-Za-z_]\w*\.)*(?:[A-Z]\w*)?(?:Exit|Interrupt|Warning|Failure|Failed|"
    r"Timeout|Iteration|NotFound|Mismatch|Overflow|Exceeded|Unavailable|Denied|Dead)|"
    r"(?:[a-z_]\w*\.)+[A-Z]\w*)(?::\s.*)?$"
)
_BEHIND_WORDS = re.compile(rf"(?<![\w.]){_NAME}: .*")
_NAMED = re.compile(rf"\s*{_NAME}: \S")
"""What is an exception by its name, even where no traceback says so."""
_TOOL_FAILS = re.compile(
    r"(?:nvcc|ptxas|cicc|LLVM|\S+\(\d+\)|\S+:\d+|ld):? (?:fatal |LLVM )?(?:fatal|error|ERROR)\b"
    r"|(?:\S*/)?ld(?:\.\w+)?: cannot find -l|\S.*: undefined reference to "
)
"""What a compiler says among the words of whoever ran it."""
_CLOSED_BY = {"`": "`", "'": "'", '"': '"', "“": "”", "‘": "’", "「": "」", "*": "*", "|": "|"}
_PIP_ENDS = re.compile(r"\s*\[end of output\]$")
"""What pip prints under the output of whoever built a package, indented like that."""
_OPEN_END = (":", ",", "(", "[", "：", "，")
"""A message that ends so goes on in the next line."""
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
_HEADLESS = 40
"""Lines above an exception within which its frames stand."""
_REST = 3
"""Further lines of a message that are quoted."""


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
    is_exception: bool = True


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
    def lines(self) -> Sequence[LogLine]:
        return Lines([text for _, text in self._whole])

    def failure(self, above: Sequence[LogLine] = ()) -> Failure:
        """What failed; `above`: the lines before."""
        return innermost(self.lines, above)

    def line(self, number: int) -> int:
        """The number in the log of one of the lines."""
        return self._first + self._whole[number][0]

    def place(self, number: int) -> int:
        """Where one of the lines begins in the log, in bytes."""
        if number == len(self._whole):
            return self._offset + len(self.data)
        return self._offset + self._places[self._whole[number][0]]


def innermost(lines: Sequence[LogLine], above: Sequence[LogLine] = ()) -> Failure:
    """Of the lines from a failure on, the exception at the bottom of it: of a chain the first,
    which caused the others. Where there is no exception, the first line is what failed, and where
    that only opens a traceback, the record that it belongs to, or the last line there is of it.
    `above`: the lines before, with the frames of an exception whose traceback lost its head."""
    if "\n" in lines[0].text:  # a line of JSON that holds all of it
        texts = lines[0].text.split("\n")
        inside = innermost([dataclasses.replace(lines[0], text=text) for text in texts], above)
        return dataclasses.replace(inside, line=0, bottom=(0, 1), length=1)
    read = _Reading(lines)
    level, place = lines[0].level, lines[0].place
    rest = (lines[number] for number in range(1, len(lines)))
    under = next((one for one in rest if one.text.strip()), None)
    header = HEADER in lines[0].text or (under and HEADER in under.text)
    if header and under and under.level is None:
        level = place = None  # uvicorn puts its own before the first line alone
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
    first = read.first or _unsaid(lines, above, read.end)
    if first.raised_in is None and (frames := _frames_above(above, lines[0])):
        where, caller = (*frames, None)[:2]
        first = dataclasses.replace(first, raised_in=where, called_from=caller)
    return dataclasses.replace(first, length=read.end)


def _unsaid(lines: Sequence[LogLine], above: Sequence[LogLine], end: int) -> Failure:
    """What is told of a failure without an exception."""
    frames = [found for line in lines[:end] if (found := FRAME.match(line.text))]
    where = _told(frames[-1]) if frames else None
    caller = _told(frames[-2]) if len(frames) > 1 else None
    said, at = lines[0].text.strip(), 0
    if found := _BEHIND_WORDS.search(said):
        said = _enclosed(said, found.start())
    elif HEADER in said or FRAME.match(lines[0].text):
        last = max((i for i in range(end) if lines[i].text.strip()), default=0)
        logged = above[-1].text.strip() if above and HEADER in said else ""
        if above and logged and above[-1].level == "error":
            said = logged
        else:
            said, at = f"a traceback that is cut off at: {lines[last].text.strip()}", last
    named = bool(found or frames) or HEADER in lines[0].text
    return Failure(said, at, where, caller, (0, 1), end, named)


def _enclosed(text: str, at: int) -> str:
    """The text from there on, to what closes it where something opens it."""
    said, close = text[at:], _CLOSED_BY.get(text[at - 1 : at].strip() or text[at - 2 : at - 1])
    return said.partition(close)[0].rstrip() if close else said


def _frames_above(above: Sequence[LogLine], own: LogLine) -> list[str]:
    """The frames right above an exception whose traceback has no head, innermost first."""
    frames: list[str] = []
    for line in reversed(above[-_HEADLESS:]):
        if (line.process, line.level, line.place) != (own.process, own.level, own.place):
            if line.text.strip():
                break
        elif found := FRAME.match(line.text):
            frames.append(_told(found))
        elif line.text.strip() and not line.text[:1].isspace():
            break
    return frames[:2]


class _Reading:
    """A chain of tracebacks, as far as it was read. `end`: behind its last line."""

    def __init__(self, lines: Sequence[LogLine]) -> None:
        self._lines = lines
        self._frames: list[str] = []
        self._indent = 0
        self._source = ""
        self._begin = 0
        self._message = 0
        self._chained = False
        self._open = False
        self.first: Failure | None = None
        self.end = 1

    def is_over(self, number: int, text: str) -> bool:
        """Whether another failure begins here, which is not of this chain."""
        unchained = self.first is not None and not self._chained
        if HEADER in text:
            return number > 0 and (bool(self._frames) or unchained)
        if not unchained or self._frames:
            return False
        return bool(_TOOL_FAILS.match(text) or (_NAMED.match(text) and text[:1] > " "))

    def take(self, number: int, line: LogLine) -> None:
        text = line.text
        if HEADER in text or text.strip() in _CHAIN:
            self._open = HEADER in text
            self._chained = not self._open
            self._begin = self._begin if self.first else number
            self._frames, self._message = [], 0
        elif frame := FRAME.match(text) or _BOXED_FRAME.match(text):
            if not (self._frames or self._open or self.first):
                self._begin = number
            self._frames.append(_told(frame))
            self._indent, self._source = indent_of(text), ""
        elif self._raises(number, text):
            self._raise(number, line)
        elif not text.strip() and number == self.end:
            pass  # blank lines between those of a traceback
        elif self._message and text.strip():
            self._message -= 1
            if self.first and not self._chained:
                self.first = dataclasses.replace(self.first, bottom=(self._begin, number + 1))
        elif not self._frames:
            self._message = 0
            return
        else:
            self._source = self._source or text.strip()
        self.end = number + 1

    def _raises(self, number: int, text: str) -> bool:
        """Whether a line names the exception: no source line does, which stands further in."""
        if not number:
            return bool(_EXCEPTION.match(text))
        inside = bool(self._frames) and indent_of(text) > self._indent
        return (bool(self._frames) or self._open) and not inside and bool(_EXCEPTION.match(text))

    def _raise(self, number: int, line: LogLine) -> None:
        if self.first is None:
            where = self._frames[-1] if self._frames else None
            above = self._frames[-2] if len(self._frames) > 1 else None
            said = _with_rest(line, self._lines[number + 1 : number + 6])
            if self._source and said.rpartition(".")[2] == "AssertionError":
                said = f"{said}: {self._source}"
            self.first = Failure(said, number, where, above, (self._begin, number + 1), number + 1)
        self._frames, self._open, self._message = [], False, _MESSAGE_MOST


def _with_rest(line: LogLine, after: Sequence[LogLine]) -> str:
    """The exception's line with the next ones of its message: those of its record, those that are
    indented, and what an open end calls for."""
    said = [line.text.strip()]
    record = (line.process, line.level, line.place)
    for one in after:
        if not one.text.strip():
            continue
        same = (one.process, one.level, one.place) == record
        told = one.text.strip() in _CHAIN or HEADER in one.text or FRAME.match(one.text)
        if not same or told or _EXCEPTION.match(one.text) or len(said) > _REST:
            break
        if _PIP_ENDS.match(one.text):
            break
        if not (line.place or one.text[:1].isspace() or said[-1].endswith(_OPEN_END)):
            break
        said.append(one.text.strip())
    return " ".join(said)


def _told(frame: re.Match[str]) -> str:
    function = frame["function"]
    return f"{frame['file']}:{frame['line']}" + (f" in {function.strip()}" if function else "")
