"""Exceptions in a log that no signature knows: the innermost one, and where it was raised."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from doctor.logs.lines import Line

_HEADER = "Traceback (most recent call last)"
_FRAME = re.compile(r'\s*File "(?P<file>[^"]+)", line (?P<line>\d+)(?:, in (?P<function>.+))?$')
_BOXED_FRAME = re.compile(r"\s*(?P<file>/\S+\.py):(?P<line>\d+) in (?P<function>\S+)$")
_EXCEPTION = re.compile(
    r"(?P<kind>(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt|Warning|Failure|Failed|Timeout|"
    r"Iteration|NotFound|Mismatch|Disconnect\w*|Abort\w*|Overflow|Exceeded|Unavailable|Denied|Dead)|"
    r"(?:[a-z_]\w*\.)+[A-Z]\w*)(?:: (?P<said>.*))?$"
)
_CHAIN = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)


@dataclass(frozen=True)
class Failure:
    """What was found of a failure. `line`: that of `said`, counted from the first one given.
    `raised_in` and `called_from`: "file:line in function", the innermost frame and the one above.
    `span`: the lines of the innermost exception, from its first frame; `length`: of all of it."""

    said: str
    line: int
    raised_in: str | None
    called_from: str | None
    span: tuple[int, int]
    length: int


def innermost(lines: Sequence[Line]) -> Failure:
    """Of the lines from a failure on, the exception at the bottom of it: of a chain the first,
    which caused the others. Where there is no exception, the first line is what failed."""
    process, level = lines[0].process, lines[0].level
    frames: list[str] = []
    first: Failure | None = None
    begin, end = 0, 1
    for number, line in enumerate(lines):
        if process is not None and line.process != process:
            continue  # another rank's, in between
        if level is not None and line.level not in (level, None):
            break  # another record
        if level is None and line.level is not None:
            break
        text = line.text
        if frame := _FRAME.match(text) or _BOXED_FRAME.match(text):
            frames.append(_told(frame))
            end = number + 1
        elif _HEADER in text:
            if frames and first is None:
                break  # a second traceback, of somebody else
            frames, end = [], number + 1
            begin = begin if first else number
        elif text.strip() in _CHAIN:
            frames, end = [], number + 1
        elif _EXCEPTION.match(text) and (frames or number == 0):
            if first is None:
                where = frames[-1] if frames else line.place
                above = frames[-2] if len(frames) > 1 else None
                first = Failure(
                    _with_rest(text, lines[number + 1 :]),
                    number,
                    where,
                    above,
                    (begin, number + 1),
                    number + 1,
                )
            frames, end = [], number + 1
        elif first is not None and text.strip() and not frames and number > end + 40:
            break
    if first is None:
        return Failure(lines[0].text.strip(), 0, lines[0].place, None, (0, 1), end)
    return Failure(first.said, first.line, first.raised_in, first.called_from, first.span, end)


def _with_rest(text: str, after: Sequence[Line]) -> str:
    """The exception's line with the next ones of its message, which are indented."""
    said = [text.strip()]
    for line in after[:3]:
        if not line.text[:1].isspace() or _FRAME.match(line.text):
            break
        said.append(line.text.strip())
    return " ".join(said)


def _told(frame: re.Match[str]) -> str:
    function = frame["function"]
    return f"{frame['file']}:{frame['line']}" + (f" in {function.strip()}" if function else "")
