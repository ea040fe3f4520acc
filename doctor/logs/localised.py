"""What programs of a Chinese system print, put into English, so that every signature finds it."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping

from doctor import toml
from doctor.logs.lines import clean
from doctor.redact import beginning
from doctor.shipped import rules_folder

_TABLE = rules_folder() / "tables" / "zh_CN.toml"
_NO_HAN = bytes(i for i in range(256) if not 0xE4 <= i <= 0xE9)
"""All bytes with which no Chinese character begins in UTF-8."""
_LINE_MOST = 64 << 10
"""Bytes that are kept back until the line ends."""
_KEPT, _QUOTED = 1000, 400
"""So many lines are known as they were printed, and so many characters of each."""
_LOOKED_AT = 4 << 10
"""Bytes of a line that are looked at for that."""


class InEnglish:
    """Puts what `texts` knows of a log's lines into English. `printed`: those lines as they were,
    by number, from 1, without secrets."""

    def __init__(self, texts: Mapping[str, str] | None = None) -> None:
        self._given = texts
        self.printed: dict[int, str] = {}
        self._line = 1

    @functools.cached_property
    def _english(self) -> Mapping[bytes, bytes]:
        known = shipped_texts() if self._given is None else self._given  # few logs ask for it
        return {chinese.encode(): text.encode() for chinese, text in known.items()}

    def read(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """The blocks; a line that goes over the end of one comes whole."""
        rest = b""
        for block in blocks:
            data = rest + block
            rest = b""
            if not data.isascii() and data.translate(None, _NO_HAN):
                whole, end, rest = data.rpartition(b"\n")
                if len(rest) > _LINE_MOST:
                    whole, end, rest = data, b"", b""
                data = self._translated(whole + end)
            self._line += data.count(b"\n")
            yield data
        if rest:
            yield self._translated(rest)

    def _translated(self, data: bytes) -> bytes:
        at, line = 0, self._line
        pattern = _pattern(tuple(self._english))
        for found in pattern.finditer(data):
            if len(self.printed) >= _KEPT:
                break
            line, at = line + data.count(b"\n", at, found.start(2)), found.start(2)
            if line not in self.printed:  # a line may hold thousands of them
                begin = data.rfind(b"\n", 0, at) + 1
                whole = data[begin : begin + _LOOKED_AT].partition(b"\n")[0]
                self.printed[line] = beginning(clean(whole).text.strip(), _QUOTED)
        return pattern.sub(self._of, data)

    def _of(self, found: re.Match[bytes]) -> bytes:
        before, text, after = found.groups()
        colons = (_COLON.sub(b": ", one or b"") for one in (before, after))
        return self._english[text].join(colons)


_COLON = re.compile(r" ?： ?".encode())


@functools.cache
def _pattern(texts: tuple[bytes, ...]) -> re.Pattern[bytes]:
    """Finds a text where a program's message has it, not amid a sentence: words of it stand
    between colons, quotation marks and blanks."""
    longest = sorted(texts, key=len, reverse=True)
    anyone = b"|".join(map(re.escape, longest))
    begin = r"""(^|(?<=：)|(?<=： )|(?:[\s'")(\]]|’|”|（)|： ?|: ?)""".encode()
    end = r"""( ?： ?|(?=[\s:,()'"]|，|（|）|‘|“|$))""".encode()
    return re.compile(rb"(?m)" + begin + b"(" + anyone + b")" + end)


@functools.cache
def shipped_texts() -> Mapping[str, str]:
    """English texts by Chinese ones, of the table that comes with the doctor."""
    texts: dict[str, str] = toml.load_toml(_TABLE)["texts"]
    return texts
