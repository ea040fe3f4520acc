"""Lines of a log as they were printed, freed of what containers, terminals and loggers put around
them, with what the prefixes say: the level, the place in the source, the process."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from doctor.codec import parse_json
from doctor.logs.budget import Budget
from doctor.logs.scan import AROUND, Hit
from doctor.signatures import Level

_FULL, _NEAR, _NARROW = 3, 10, 40
"""A terminal broke a log where so many lines are of the same length, none of so many lines around
each is longer, and they are at least so long."""
_LINES = 120
"""Lines on either side of a hit that are looked at."""
_NEIGHBOURS = 30
_BORDERS = ("│", "┃")
_WORDS = 4
"""Lines that a message broken between its words goes on for."""
_JOINED_MOST = 24
"""Physical lines that a terminal can have made of one."""


@dataclass(frozen=True)
class Line:
    """`text` keeps its indentation. `level` None: the line does not say. `place` like
    "core.py:1136"; `process` like "EngineCore_DP0 pid=312"."""

    text: str
    level: Level | None = None
    place: str | None = None
    process: str | None = None


_CONTROLS = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\)?|[@-Z\\^_])"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
_CONTROL_BYTES = bytes([*range(9), *range(11, 32), 127])
_LEVEL = r"(?:TRACE|DEBUG|INFO|WARN(?:ING)?|ERROR|CRITICAL|FATAL)"
_PREFIX = re.compile(
    rf"""\s*(?:
      [│┃]
    | \[?\d{{4}}-\d\d-\d\d[T\ ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|\ ?[+-]\d\d:?\d\d)?\]?:?(?=[\s(\[]|$)
    | std(?:out|err)\ [FP]\b
    | [A-Z][a-z]{{2}}\ [ \d]\d\ \d\d:\d\d:\d\d\ \S+\ [\w./@-]+(?:\[\d+\])?:
    | \[pod/[^\]]+\]
    | [\w.-]+-\d+\ +\|(?=\ )
    | \((?P<process>(?:[\w:.-]+\ (?:\w+\ |rank=\d+\ )*)?pid=\d+(?:,\ ip=[\w.:]+)?)\)
    | \[(?P<rank>(?:rank|default)\d+)\]:
    | (?P<vllm>{_LEVEL})\ +\d\d-\d\d\ \d\d:\d\d:\d\d(?:\.\d+)?\ \[?(?P<place>[\w./-]+:\d+)\]
    | (?P<named>{_LEVEL})(?::(?:[\w.]+:)?(?=\s|$)|\ +(?=[\w./-]+\.py:\d+)|\ +\|)
    | -\ [\w.]+\ -\ (?P<python>{_LEVEL})\ -
    | \[(?P<glog>[IWEF])\d{{4}}\ [^\]]*\]
    | (?P<klog>[IWEF])\d{{4}}\ \d\d:\d\d:\d\d\.\d+\ +\d+\ (?P<source>[\w./-]+:\d+)\]
    | \[\d+,\d+\]<std(?:out|err)>:?
    )\ ?""",
    re.VERBOSE,
)
_LEVELS: dict[str, Level] = {
    **dict.fromkeys(("TRACE", "DEBUG"), "debug"),
    **dict.fromkeys(("INFO", "I"), "info"),
    **dict.fromkeys(("WARN", "WARNING", "W"), "warning"),
    **dict.fromkeys(("ERROR", "CRITICAL", "FATAL", "E", "F"), "error"),
}
_MESSAGE_KEYS = ("log", "message", "msg", "MESSAGE", "textPayload", "text", "event", "line")
_TRACEBACK_KEYS = ("exc_info", "exception", "exc_text", "stack_trace", "traceback")
_LEVEL_KEYS = ("level", "levelname", "severity", "lvl")


def decoded(raw: bytes) -> str:
    """Text without colours, cursor movements and other control characters but line ends."""
    if b"\x1b" not in raw:
        return raw.translate(None, _CONTROL_BYTES).decode("utf-8", "replace")
    return _CONTROLS.sub("", raw.replace(b"\0", b"").decode("utf-8", "replace"))


def clean(raw: bytes) -> Line:
    """One printed line. Of a line of JSON, its message; where that has several lines, they stay
    in `text`."""
    return enveloped(decoded(raw))


def enveloped(text: str) -> Line:
    """The same of a line that is free of control characters."""
    if text.lstrip().startswith("{") and (inside := _enveloped(text)):
        text, level = inside
        first, *more = (_clean(one, level) for one in text.split("\n"))
        whole = "\n".join(line.text for line in (first, *more))
        return dataclasses.replace(first, text=whole)
    return _clean(text)


def _clean(text: str, level: Level | None = None) -> Line:
    place = process = None
    at = 0
    for found in _prefixes(text):
        groups = found.groupdict()
        name = next(
            (groups[k] for k in ("vllm", "named", "python", "glog", "klog") if groups[k]), ""
        )
        # What a logger around the server calls information may be the server's last words.
        if not (groups["python"] and _LEVELS.get(name) in ("debug", "info")):
            level = _LEVELS.get(name, level)
        place = groups["place"] or groups["source"] or place
        process = groups["process"] or groups["rank"] or process
        at = found.end()
    return Line(text[at:].rstrip().rstrip("│┃").rstrip(), level, place, process)


def unprefixed(text: str) -> str:
    """The text behind all prefixes that are known."""
    at = 0
    for found in _prefixes(text):
        at = found.end()
    return text[at:]


def _prefixes(text: str) -> Iterator[re.Match[str]]:
    """The known prefixes that a line begins with, one after the other."""
    at = 0
    while found := _PREFIX.match(text, at):
        yield found
        at = found.end()


def _enveloped(text: str) -> tuple[str, Level | None] | None:
    """The message in a line of JSON and its level; None where it is no such line."""
    try:
        data = parse_json(text.strip())
    except ValueError:
        if '":"' not in text and '": "' not in text:
            return None
        # A piece of a long line: it is no JSON by itself, but its text is escaped all the same.
        return _unescaped(text), None
    if not isinstance(data, dict):
        return None
    message = next((data[k] for k in _MESSAGE_KEYS if isinstance(data.get(k), str)), None)
    if message is None:
        return None
    name = next((str(data[k]).upper() for k in _LEVEL_KEYS if data.get(k)), "")
    said = [message, *(data[k] for k in _TRACEBACK_KEYS if isinstance(data.get(k), str))]
    text = "\n".join(said).encode(errors="replace").decode()  # JSON may hold half a character
    return _CONTROLS.sub("", text).rstrip("\n"), _LEVELS.get(name)


def _unescaped(text: str) -> str:
    def character(found: re.Match[str]) -> str:
        made = json.loads(f'"{found.group()}"')
        return made if isinstance(made, str) else ""

    text = re.sub(r'\\(?:[nrt"\\/]|u00[0-9a-fA-F]{2})', character, text)
    text = text.encode(errors="replace").decode()
    return re.sub(r"[^\S\n]*\r?\n", "\n", _CONTROLS.sub("", text))


_LINE_END = re.compile(rb"\r\n|\n|\r")


def split(data: bytes) -> list[bytes]:
    """Physical lines; those of a progress bar are some as well."""
    return _LINE_END.split(data) if b"\r" in data else data.split(b"\n")


def placed(data: bytes) -> list[int]:
    """Where each physical line begins."""
    return [0, *(found.end() for found in _LINE_END.finditer(data))]


def unwrapped(physical: Sequence[bytes]) -> list[tuple[int, str]]:
    """Physical lines as they were before a terminal broke them, with the number of the first piece
    of each. They were where three or more are of the same length and none around is longer."""
    data = b"\n".join(physical)
    text = decoded(data)
    lines = text.split("\n")
    if any(border in text for border in _BORDERS):
        lines = [_bare(one) for one in lines]
    full = _full(lines)
    if b"\x1b" in data:  # it may have been broken by what counts a colour as characters
        full = max(full, _full(data.decode("utf-8", "replace").split("\n")), key=sum)
    if not any(full):
        return list(enumerate(lines))
    made: list[tuple[int, str]] = []
    for number, text in enumerate(lines):
        if number and full[number - 1] and _goes_on(text) and not text.startswith("    "):
            first, before = made[-1]
            made[-1] = (first, before + text)
        else:
            made.append((number, text))
    return made


def _full(lines: Sequence[str]) -> list[bool]:
    """Which lines fill the terminal's width, as far as that is to be seen."""
    lengths = [len(one) for one in lines]
    widths = {n for n, many in Counter(lengths).items() if n >= _NARROW and many >= _FULL}
    if not widths:
        return [False] * len(lengths)
    full = [
        n in widths and n >= max(lengths[max(0, i - _NEAR) : i + _NEAR + 1])
        for i, n in enumerate(lengths)
    ]
    many = Counter(n for n, is_full in zip(lengths, full, strict=True) if is_full)
    # Lines that are only alike are followed by others with a prefix of their own.
    going = Counter(lengths[i] for i, f in enumerate(full[:-1]) if f and _goes_on(lines[i + 1]))
    return [
        f and many[n] >= _FULL and 2 * going[n] >= many[n]
        for n, f in zip(lengths, full, strict=True)
    ]


class Surroundings:
    """The lines around a hit, as they were before a terminal broke them; made when asked for."""

    def __init__(self, hit: Hit, budget: Budget) -> None:
        self._hit = hit
        self._budget = budget

    @functools.cached_property
    def _parts(self) -> tuple[list[bytes], list[bytes], list[bytes]]:
        hit = self._hit
        before = split(hit.window[max(0, hit.start - AROUND) : hit.start])[:-1]
        own = split(hit.text)
        after = split(hit.window[hit.end : hit.end + AROUND])[1:]
        parts = before[-_LINES:], own, after[:_LINES]
        for part in parts:
            self._budget.spend_on(b"\n".join(part))
        return parts

    @functools.cached_property
    def _texts(self) -> list[str]:
        before, own, after = self._parts
        return decoded(b"\n".join([*before, *own, *after])).split("\n")

    @functools.cached_property
    def _whole(self) -> tuple[list[str], int, str]:
        """The lines, which of them is the hit's, and what of it begins at the hit."""
        before, own, after = self._parts
        whole = unwrapped([*before, *own, *after])
        at = len(self._parts[0])
        index = max(i for i, (number, _) in enumerate(whole) if number <= at)
        first, text = whole[index]
        return [one for _, one in whole], index, text[sum(map(len, self._texts[first:at])) :]

    @functools.cached_property
    def alone(self) -> Line:
        """The line as it is printed."""
        self._budget.spend_on(self._hit.text)
        return clean(self._hit.text)

    @functools.cached_property
    def own(self) -> tuple[Line, ...]:
        """What the line can be, the likelier first: all that a terminal broke, what begins in it,
        it alone, or with the lines that seem to be a part of it."""
        lines, index, rest = self._whole
        made = [enveloped(one) for one in (lines[index], rest, self._joined())]
        return tuple(dict.fromkeys([*made[:2], self.alone, *made[2:]]))

    @functools.cached_property
    def before(self) -> list[Line]:
        lines, index, _ = self._whole
        return [enveloped(one) for one in lines[:index]]

    @functools.cached_property
    def after(self) -> list[Line]:
        lines, index, _ = self._whole
        return [enveloped(one) for one in lines[index + 1 :]]

    def text(self, before: int = 60, after: int = 20) -> str:
        """The cleaned lines around, this one included."""
        lines = [*self.before[-before:], *self.own[:1], *self.after[:after]]
        return "\n".join(line.text for line in lines)

    @property
    def is_code(self) -> bool:
        """Whether it is a line of source in a traceback: that says what could be printed."""
        indent = _indent(self.alone.text)
        hit = self._hit
        near = hit.window[max(0, hit.start - AROUND) : hit.start]
        if indent < 4 or (b'File "' not in near and b"\x1b" not in near):
            return False
        frames = [_indent(line.text) for line in self.before[-3:] if FRAME.match(line.text)]
        return bool(frames) and indent > frames[-1]

    def _joined(self) -> str:
        """The line with what may have been broken off it where no width is to be seen: up to the
        longest line around, or, where a literal goes over a line's end, between any words."""
        at, own = len(self._parts[0]), len(self._parts[1])
        low = max(0, at - _NEIGHBOURS)
        lines = [_bare(one).rstrip() for one in self._texts[low : at + own + _NEIGHBOURS]]
        width = max(map(len, lines))
        full = [len(one) >= max(width - 2, _NEIGHBOURS) for one in lines]
        first, last = at - low, at - low + own - 1
        while first and full[first - 1] and last - first < _JOINED_MOST and _goes_on(lines[first]):
            first -= 1
        more = _WORDS if own > 1 and not full[last] else 0
        while last + 1 < len(lines) and last - first < _JOINED_MOST and _goes_on(lines[last + 1]):
            if not full[last]:
                if not more:
                    break
                more -= 1
            last += 1
        pieces = zip(lines[first : last + 1], full[first : last + 1], strict=True)
        return "".join(one + ("" if is_full else " ") for one, is_full in pieces).rstrip()


def _indent(text: str) -> int:
    return len(text) - len(text.lstrip())


def _bare(text: str) -> str:
    """Without the border of a box, and what it is filled up with."""
    return text.strip("│┃").rstrip() if text.strip()[:1] in _BORDERS else text


def _goes_on(text: str) -> bool:
    """Whether the line can be the rest of the one before it."""
    return not (not text.strip() or _PREFIX.match(text) or HEADER in text or FRAME.match(text))


HEADER = "Traceback (most recent call last)"
FRAME = re.compile(r'\s*File "(?P<file>[^"]+)", line (?P<line>\d+)(?:, in (?P<function>.+))?$')
"""A frame of a Python traceback."""
_SOFT = re.compile(
    r"(?i)fail|fall(?:ing)?[ -]?back|disabl|error|unable|could not|cannot|skip|"
    r"not (?:be )?available"
)
_ENDING = re.compile(
    r"(?i)shut|clean|terminat|exit|kill|stopp|finished|abort|waiting for|leaked|broadcast block|"
    r"please|retry|fail|error"
)


def tells_of_work(line: Line) -> bool:
    """Whether whoever printed it goes about its business."""
    return (
        line.level in ("debug", "info")
        and bool(line.text.strip())
        and not _ENDING.search(line.text)
    )


def owner(before: Sequence[Line]) -> Level | None:
    """The level of the record that a line without one belongs to: of the warning that tells of a
    failure and whose further lines reach to it. None where there is no such record."""
    traceback_at = None
    for distance, line in enumerate(reversed(before)):
        if line.level is None:
            if line.text.startswith(HEADER):
                traceback_at = distance
            continue
        if line.level == "error" or not _SOFT.search(line.text):
            return None
        # A traceback right under the record is its own; any other was printed by a dying process.
        return None if traceback_at not in (None, distance - 1) else line.level
    return None
