"""Lines of a log as they were printed, freed of what containers, terminals and loggers put around
them, with what the prefixes say: the level, the place in the source, the process."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from doctor.codec import parse_json
from doctor.logs.scan import Hit
from doctor.signatures import Level

_AROUND = 24 << 10
"""Bytes before and after a hit within which its surroundings are looked for."""
_NEIGHBOURS = 30
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
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
_LEVEL = r"(?:TRACE|DEBUG|INFO|WARN(?:ING)?|ERROR|CRITICAL|FATAL)"
_PREFIX = re.compile(
    rf"""\s*(?:
      [│┃]
    | \[?\d{{4}}-\d\d-\d\d[T\ ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|\ ?[+-]\d\d:?\d\d)?\]?:?(?=[\s(\[]|$)
    | std(?:out|err)\ [FP]\b
    | [A-Z][a-z]{{2}}\ [ \d]\d\ \d\d:\d\d:\d\d\ \S+\ [\w./@-]+(?:\[\d+\])?:
    | \[pod/[^\]]+\]
    | [\w.-]+-\d+\ +\|(?=\ )
    | \((?P<process>(?:\w+\ (?:\w+\ |rank=\d+\ )*)?pid=\d+(?:,\ ip=[\w.:]+)?)\)
    | \[(?:rank|default)\d+\]:
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
_MESSAGE_KEYS = ("log", "message", "msg", "MESSAGE", "textPayload", "text", "event")
_LEVEL_KEYS = ("level", "levelname", "severity", "lvl")


def decoded(raw: bytes) -> str:
    """Text without colours, cursor movements and other control characters."""
    return _CONTROLS.sub("", raw.replace(b"\0", b"").decode("utf-8", "replace"))


def clean(raw: bytes) -> Line:
    """One printed line. Of a line of JSON, its message; where that has several lines, they stay
    in `text`."""
    text = decoded(raw)
    if text.lstrip().startswith("{") and (inside := _enveloped(text)):
        text, level = inside
        return _clean("\n".join(_clean(one).text for one in text.split("\n")), level)
    return _clean(text)


def _clean(text: str, level: Level | None = None) -> Line:
    place = process = None
    at = 0
    while found := _PREFIX.match(text, at):
        groups = found.groupdict()
        name = next(
            (groups[k] for k in ("vllm", "named", "python", "glog", "klog") if groups[k]), ""
        )
        level = _LEVELS.get(name, level)
        place = groups["place"] or groups["source"] or place
        process = groups["process"] or process
        at = found.end()
    return Line(text[at:].rstrip().rstrip("│┃").rstrip(), level, place, process)


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
    return _CONTROLS.sub("", message).rstrip("\n"), _LEVELS.get(name)


def _unescaped(text: str) -> str:
    def character(found: re.Match[str]) -> str:
        made = json.loads(f'"{found.group()}"')
        return made if isinstance(made, str) else ""

    text = re.sub(r'\\(?:[nrt"\\/]|u00[0-9a-fA-F]{2})', character, text)
    return re.sub(r"[^\S\n]*\r?\n", "\n", _CONTROLS.sub("", text))


def split(data: bytes) -> list[bytes]:
    """Physical lines; a progress bar's are as well."""
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")


class Surroundings:
    """The lines around a hit, cleaned when asked for."""

    def __init__(self, hit: Hit) -> None:
        low = max(0, hit.start - _AROUND)
        self._before = split(hit.window[low : hit.start])[:-1]
        self._own = split(hit.window[hit.start : hit.end])
        self._after = split(hit.window[hit.end : hit.end + _AROUND])[1:]

    @functools.cached_property
    def before(self) -> list[Line]:
        return [clean(raw) for raw in self._before]

    @functools.cached_property
    def after(self) -> list[Line]:
        return [clean(raw) for raw in self._after]

    @functools.cached_property
    def own(self) -> tuple[Line, ...]:
        """The line as it is, and with what a terminal broke off it; the likelier one first."""
        alone = clean(b"\n".join(self._own))
        joined, sure = self._joined()
        if joined == alone.text:
            return (alone,)
        whole = _clean(joined)
        if len(self._own) > 1:
            return (whole,)
        return (whole, alone) if sure else (alone, whole)

    def text(self, before: int = 60, after: int = 20) -> str:
        """The cleaned lines around, this one included."""
        lines = [*self.before[-before:], *self.own[:1], *self.after[:after]]
        return "\n".join(line.text for line in lines)

    def _joined(self) -> tuple[str, bool]:
        """The line with what was broken off before and after it, and whether that is sure.

        A terminal breaks at its width: a line that is as long as the longest one around goes on in
        the next one, unless that has a prefix of its own.
        """
        before = [_bare(raw) for raw in self._before[-_NEIGHBOURS:]]
        own = [_bare(raw) for raw in self._own]
        after = [_bare(raw) for raw in self._after[:_NEIGHBOURS]]
        lines = [*before, *own, *after]
        width = max(map(len, lines))
        full = [len(one) >= max(width - 2, _NEIGHBOURS) for one in lines]
        first, last = len(before), len(before) + len(own) - 1
        while first and full[first - 1] and last - first < _JOINED_MOST and _goes_on(lines[first]):
            first -= 1
        # Broken between words, lines are of any length.
        more = 4 if len(own) > 1 and not full[last] else 0
        while last + 1 < len(lines) and last - first < _JOINED_MOST and _goes_on(lines[last + 1]):
            if not full[last]:
                if not more:
                    break
                more -= 1
            last += 1
        parts = lines[first : last + 1]
        gaps = ["" if f else " " for f in full[first : last + 1]]
        joined = "".join(p + g for p, g in zip(parts, gaps, strict=True)).rstrip()
        return joined, sum(full) > 1


def _bare(raw: bytes) -> str:
    return decoded(raw).strip("│┃").rstrip()


def _goes_on(text: str) -> bool:
    return bool(text.strip()) and not _PREFIX.match(text) and not text.startswith("Traceback (")


_SOFT = re.compile(
    r"(?i)fail|fall(?:ing)?[ -]?back|disabl|error|unable|could not|cannot|skip|"
    r"not (?:be )?available"
)
_ENDING = re.compile(
    r"(?i)shut|clean|terminat|exit|kill|stopp|finished|abort|waiting for|leaked|broadcast block|"
    r"please|retry|fail|error"
)


def went_on(after: Sequence[Line], process: str | None) -> bool:
    """Whether the process (any, where it is not known) tells of further work in these lines."""
    return any(
        line.level in ("debug", "info")
        and (process is None or line.process == process)
        and line.text.strip()
        and not _ENDING.search(line.text)
        for line in after
    )


def owner(before: Sequence[Line]) -> Level | None:
    """The level of the record that a line without one belongs to: of the warning that tells of a
    failure and whose further lines reach to it. None where there is no such record."""
    traceback_at = None
    for distance, line in enumerate(_backwards(before)):
        if line.level is None:
            if line.text.startswith("Traceback (most recent call last)"):
                traceback_at = distance
            continue
        if line.level == "error" or not _SOFT.search(line.text):
            return None
        # A traceback right under the record is its own; any other was printed by a dying process.
        return None if traceback_at not in (None, distance - 1) else line.level
    return None


def _backwards(lines: Sequence[Line]) -> Iterator[Line]:
    yield from (lines[i] for i in range(len(lines) - 1, max(-1, len(lines) - 200), -1))
