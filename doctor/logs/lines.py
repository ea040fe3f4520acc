"""Lines of a log as they were printed, freed of what containers, terminals and loggers put around
them, with what the prefixes say: the level, the place in the source, the process."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import overload

from doctor.codec import parse_json
from doctor.logs.budget import Budget
from doctor.logs.scan import AROUND, Hit
from doctor.signatures import Level

_FULL, _NEAR, _NARROW = 3, 10, 40
"""A terminal broke a log where so many lines are of the same length, none of so many lines around
each is longer, and they are at least so long."""
_USUAL = 78
"""Characters of a terminal that few have less of."""
_CLOSE = 4 << 10
"""Bytes before a hit within which its record, or the frame that it belongs to, begins."""
_LINES = 120
"""Lines on either side of a hit that are looked at."""
_NEIGHBOURS = 30
_BORDERS = ("│", "┃")
_WORDS = 4
"""Lines that a message broken between its words goes on for."""
_JOINED_MOST = 24
"""Physical lines that a terminal can have made of one."""


@dataclass(frozen=True)
class LogLine:
    """`text` keeps its indentation. `level` None: the line does not say. `place` like
    "core.py:1136"; `process` like "EngineCore_DP0 pid=312"; `time` like "10-04 09:12:33", which
    sorts within a year."""

    text: str
    level: Level | None = None
    place: str | None = None
    process: str | None = None
    time: str | None = field(default=None, compare=False)


_CONTROLS = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\)?|[@-Z\\^_])"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
_CONTROL_BYTES = bytes([*range(9), *range(11, 32), 127])
_LEVEL = r"(?:TRACE|DEBUG|INFO|WARN(?:ING)?|ERROR|CRITICAL|FATAL)"
_STAMP = r"\d{4}-\d\d-\d\d[T\ ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|\ ?[+-]\d\d:?\d\d)?"
_PREFIX = re.compile(
    rf"""\s*(?:
      [│┃]
    | >(?:\ ?>)*
    | \|(?:\ *\|)*(?=\ )
    | \[?(?P<stamp>{_STAMP})\]?:?(?=[\s(\[]|$)
    | (?P<cloud>{_LEVEL})\ +{_STAMP}(?:\ +\[[^\]]*\])*
    | (?P<actions>\#\#\[error\]|::error(?:\ [^:]*)?::)
    | std(?:out|err)\ [FP]\b
    | [A-Z][a-z]{{2}}\ [ \d]\d\ \d\d:\d\d:\d\d\ \S+\ [\w./@-]+(?:\[\d+\])?:
    | \[pod/[^\]]+\]
    | [\w.-]+-\d+\ +\|(?=\ )
    | \((?P<process>(?:[\w:.-]+\ (?:\w+\ |rank=\d+\ )*)?pid=\d+(?:,\ ip=[\w.:]+)?)\)
    | \[(?P<rank>(?:rank|default)\d+)\]:
    | (?P<vllm>{_LEVEL})\ +(?P<time>\d\d-\d\d\ \d\d:\d\d:\d\d)(?:\.\d+)?
      \ \[?(?P<place>[\w./-]+:\d+)\]
    | (?P<bare>{_LEVEL})\ +\[(?P<file>[\w./-]+\.\w+:\d+)\]
    | (?P<named>{_LEVEL})(?::(?:[\w.]+:)?(?=\s|$)|\ +(?=[\w./-]+\.py:\d+)|\ +\|)
    | -\ [\w.]+\ -\ (?P<python>{_LEVEL})\ -
    | \[(?P<glog>[IWEF])\d{{4}}\ [^\]]*\]
    | (?P<klog>[IWEF])\d{{4}}\ \d\d:\d\d:\d\d\.\d+\ +\d+\ (?P<source>[\w./-]+:\d+)\]
    | \[\d+,\d+\]<std(?:out|err)>:?
    )\ ?""",
    re.VERBOSE,
)
_LEAD = re.compile(
    r"(?:\s*(?:[-*+•]|\d\d?[.)]) (?=\S)(?![\w.]+ - [A-Z]))?"
    r"(?:\s*\*\*[^*:：]{1,40}[:：]?\*\*[:：]? ?(?=\S))?"
    r"(?:\s*[\u4e00-\u9fff]{1,12}： ?)?"
)
"""What a person puts before a line: the dash of a list, bold words, Chinese words and a colon."""
_RECORD = re.compile(
    rf"""(?:\((?:[\w:.-]+\ (?:\w+\ |rank=\d+\ )*)?pid=\d+(?:,\ ip=[\w.:]+)?\)\ )?
    (?<!\w){_LEVEL}\ +\d\d-\d\d\ \d\d:\d\d:\d\d(?:\.\d+)?\ \[?[\w./-]+:\d+\]
    | \((?:APIServer|EngineCore|Worker|Vllm)[\w.:-]*\ (?:\w+\ |rank=\d+\ )*pid=\d+\)
    """,
    re.VERBOSE,
)
"""A record of vLLM's own: what stands before it is somebody else's, be it a prefix or words."""
_WORDS_BEFORE = 300
"""Characters of a line within which its record begins."""
_LEVELS: dict[str, Level] = {
    **dict.fromkeys(("TRACE", "DEBUG"), "debug"),
    **dict.fromkeys(("INFO", "I"), "info"),
    **dict.fromkeys(("WARN", "WARNING", "W"), "warning"),
    **dict.fromkeys(("ERROR", "CRITICAL", "FATAL", "E", "F"), "error"),
}
_LEVEL_GROUPS = ("cloud", "vllm", "bare", "named", "python", "glog", "klog")
_MESSAGE_KEYS = ("log", "message", "msg", "MESSAGE", "textPayload", "text", "event", "line")
_TRACEBACK_KEYS = ("exc_info", "exception", "exc_text", "stack_trace", "traceback")
_LEVEL_KEYS = ("level", "levelname", "severity", "lvl")


def decoded(raw: bytes) -> str:
    """Text without colours, cursor movements and other control characters but line ends."""
    if b"\x1b" not in raw:
        return raw.translate(None, _CONTROL_BYTES).decode("utf-8", "replace")
    return _CONTROLS.sub("", raw.replace(b"\0", b"").decode("utf-8", "replace"))


def clean(raw: bytes) -> LogLine:
    """One printed line. Of a line of JSON, its message; where that has several lines, they stay
    in `text`."""
    return enveloped(decoded(raw))


def enveloped(text: str) -> LogLine:
    """The same of a line that is free of control characters."""
    line = _clean(text)
    inside = _enveloped(line.text) if line.text.lstrip().startswith("{") else None
    if inside is None:
        return line
    text, level = inside
    first, *more = (_clean(one, level or line.level) for one in text.split("\n"))
    return dataclasses.replace(
        first,
        text="\n".join(one.text for one in (first, *more)),
        process=first.process or line.process,
        time=first.time or line.time,
    )


def _clean(text: str, level: Level | None = None) -> LogLine:
    place = process = time = None
    lead = _LEAD.match(text)
    at = lead.end() if lead else 0
    for found in _prefixes(text, at):
        groups = found.groupdict()
        name = next((groups[k] for k in _LEVEL_GROUPS if groups[k]), "")
        # What a logger around the server calls information may be the server's last words.
        around = groups["python"] or groups["cloud"]
        if not (around and _LEVELS.get(name) in ("debug", "info")):
            level = _LEVELS.get(name, level)
        if groups["actions"]:
            level = "error"
        place = groups["place"] or groups["file"] or groups["source"] or place
        process = groups["process"] or groups["rank"] or process
        stamp = groups["stamp"]
        time = groups["time"] or time or (stamp and f"{stamp[5:10]} {stamp[11:19]}")
        at = found.end()
    text = text[at:].rstrip().rstrip("│┃").removesuffix(" |").rstrip()
    return LogLine(text, level, place, process, time)


def begins_a_record(text: str) -> bool:
    """Whether a line begins with a prefix that says its level or its process."""
    telling = (*_LEVEL_GROUPS, "process", "rank")
    return any(found[name] for found in _in_a_row(text) for name in telling)


def unprefixed(text: str) -> str:
    """The text behind all prefixes that are known."""
    at = 0
    for found in _in_a_row(text):
        at = found.end()
    return text[at:]


def _in_a_row(text: str, at: int = 0) -> Iterator[re.Match[str]]:
    """The known prefixes from there on, one after the other."""
    while found := _PREFIX.match(text, at):
        yield found
        at = found.end()


def _prefixes(text: str, at: int) -> Iterator[re.Match[str]]:
    """The same, and those of a record that stands behind other words."""
    inside = False
    while True:
        for found in _in_a_row(text, at):
            inside = inside or bool(found["vllm"] or found["bare"])
            yield found
            at = found.end()
        # Of a line of JSON the record is in its message.
        if inside or text[at:].lstrip().startswith("{"):
            return
        record = _RECORD.search(text, at, at + _WORDS_BEFORE)
        if record is None:
            return
        at, inside = record.start(), True


def _enveloped(text: str) -> tuple[str, Level | None] | None:
    """The message in a line of JSON and its level; None where it is no such line."""
    try:
        data = parse_json(text.strip())
    except ValueError:
        if '":"' not in text and '": "' not in text:
            return None
        # A piece of a long line: it is no JSON by itself, but its text is escaped all the same.
        return _unescaped(text), None
    if not isinstance(data, dict) or {"type", "code"} <= data.keys():  # an answer, and no record
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


class Lines(Sequence[LogLine]):
    """Lines that are cleaned when they are looked at: of most, few are."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts
        self._cleaned: dict[int, LogLine] = {}

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, at: int) -> LogLine: ...
    @overload
    def __getitem__(self, at: slice) -> list[LogLine]: ...
    def __getitem__(self, at: int | slice) -> LogLine | list[LogLine]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self._texts)))]
        if at not in self._cleaned:
            self._cleaned[at] = enveloped(self._texts[at])
        return self._cleaned[at]


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
    def alone(self) -> LogLine:
        """The line as it is printed."""
        self._budget.spend_on(self._hit.text)
        return clean(self._hit.text)

    @functools.cached_property
    def whole(self) -> LogLine:
        """All of the line that a terminal broke."""
        lines, index, _ = self._whole
        return enveloped(lines[index])

    def readings(self) -> Iterator[LogLine]:
        """What the line can be, the likelier first: all that a terminal broke, what begins in it,
        it alone, with the lines that seem to be a part of it, or with further sentences."""
        told: set[LogLine] = set()
        for line in self._readings():
            if line not in told:
                told.add(line)
                yield line

    def _readings(self) -> Iterator[LogLine]:
        yield self.whole
        yield enveloped(self._whole[2])
        yield self.alone
        yield enveloped(self._joined())
        yield enveloped(self._sentences())

    @functools.cached_property
    def before(self) -> Sequence[LogLine]:
        lines, index, _ = self._whole
        return Lines(lines[:index])

    @functools.cached_property
    def after(self) -> Sequence[LogLine]:
        lines, index, _ = self._whole
        return Lines(lines[index + 1 :])

    @property
    def may_be_a_rest(self) -> bool:
        """Whether a terminal can have broken the line off the one before: none around is longer
        than that."""
        at = len(self._parts[0])
        near = self._texts[max(0, at - _NEIGHBOURS) : at + _NEIGHBOURS]
        return at > 0 and len(self._texts[at - 1]) >= max(_USUAL, *map(len, near))

    def _sentences(self) -> str:
        """The line with those after it, where a sentence ends and others of it follow."""
        lines, index, _ = self._whole
        said = lines[index].rstrip()
        for one in lines[index + 1 : index + 1 + _WORDS]:
            if not said.endswith(".") or not _goes_on(one):
                break
            said += f" {one.strip()}"
        return said

    def text(self, before: int = 60, after: int = 40) -> str:
        """The cleaned lines around, this one included, up to another start, and then the names of
        their processes."""
        following = itertools.takewhile(lambda x: not _NEXT.search(x.text), self.after[:after])
        lines = [*self.before[-before:], self.whole, *following]
        processes = dict.fromkeys(f"({line.process})" for line in lines if line.process)
        return "\n".join([*(line.text for line in lines), *processes])

    @property
    def is_quoted(self) -> bool:
        """Whether it is a line of source in a traceback, which says what could be printed, or what
        a client sent or got."""
        hit = self._hit
        near = hit.window[max(0, hit.start - _CLOSE) : hit.start]
        record = self.whole if any(word in near for word in _IN_REQUESTS) else self.alone
        if record.level in ("debug", "info") and _REQUEST.match(record.text):
            return True
        indent = indent_of(self.alone.text)
        if indent < 4 or (b'File "' not in near and b"\x1b" not in near):
            return False
        frames = [indent_of(line.text) for line in self.before[-3:] if FRAME.match(line.text)]
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


def indent_of(text: str) -> int:
    """How many characters of white space a line begins with."""
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
_NEXT = re.compile(r"vLLM API server version |non-default args: |█ +█ +█")
"""What a server prints when it begins to start."""
_REQUEST = re.compile(
    r"\s*(?:Received r|R)equest \S+(?: details: | JSON body: |: params: |: prompt: )"
    r"|\s*Generated response \S+"
)
"""A record that holds a prompt or an answer (vllm/entrypoints/logger.py)."""
_IN_REQUESTS = (b" details: ", b" JSON body: ", b": params: ", b": prompt: ", b"Generated resp")
_SOFT = re.compile(
    r"(?i)fail|fall(?:ing)?[ -]?back|disabl|error|unable|could not|cannot|skip|"
    r"not (?:be )?available"
)
_ENDING = re.compile(
    r"(?i)shut|clean|terminat|exit|kill|stopp|finished|abort|waiting for|leaked|broadcast block|"
    r"please|retry|fail|error"
)


def tells_of_work(line: LogLine) -> bool:
    """Whether whoever printed it goes about its business."""
    return (
        line.level in ("debug", "info")
        and bool(line.text.strip())
        and not _ENDING.search(line.text)
    )


def owner(before: Sequence[LogLine]) -> Level | None:
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
