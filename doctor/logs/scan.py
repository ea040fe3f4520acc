"""Finds the literals of all signatures in a log of any size: one pass, one window of memory.

White space, colours, box drawing and NULs between the characters of a literal do not matter, so
that a line which a terminal broke in the middle of a word is found as well.
"""

from __future__ import annotations

import functools
import re
from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

from doctor.logs.budget import Budget
from doctor.logs.regex import re2

BEHIND = 96 << 10
"""Bytes before a hit that can still be looked at."""
AHEAD = 32 << 10
"""Bytes after a hit that can be looked at already, where the log does not end."""
AROUND = 16 << 10
"""Bytes before and after a hit that are looked at for its sake."""
_STRETCH = 16 << 10
"""Bytes that are skimmed at once."""
_ALIKE = 8
"""So many lines that have a literal are compared where they are skimmed."""
_PIECES = 3
"""So many further pieces of a broken line are looked at."""
_PIECE = 4 << 10
"""Bytes on either side of a place; a line counts as no longer than that."""
_BEGINNING = 16
"""Characters of a literal by which its line is found."""
_MEMORY = 64 << 20
"""Bytes that the automaton may take; all the literals of a log take a few MiB of it."""

_COLOUR = r"\x1b\[[0-9;?]*[A-Za-z]"
_SKIPPED = rf"(?:[\s\x00\x80-\xff]|{_COLOUR})"
_COLOURS = re.compile(_COLOUR.encode())
_GAPS = re.compile(_SKIPPED.encode() + b"+")
_BLANKS = bytes([*b" \t\n\r\f\v\0", *range(0x80, 0x100)])


class Hit(NamedTuple):
    """A line, or a piece of a long one, that holds literals; two or more where one of them was
    broken. `literals`: their numbers. `line`: its number, from 1. It is `window[start:end]`; the
    first literal begins at `window[at]`. `base`: where the window begins in the log, in bytes.
    """

    literals: tuple[int, ...]
    line: int
    window: bytes
    start: int
    end: int
    at: int
    base: int

    @property
    def offset(self) -> int:
        return self.base + self.at

    @property
    def text(self) -> bytes:
        return self.window[self.start : self.end]

    def apart(self) -> Hit:
        """The same, which keeps no more of the log in memory than is looked at for its sake."""
        cut = max(0, self.start - AROUND)
        return self._replace(
            window=self.window[cut : self.end + AROUND],
            start=self.start - cut,
            end=self.end - cut,
            at=self.at - cut,
            base=self.base + cut,
        )


class Interest(Protocol):
    """What whoever reads the hits still wants to see, when it is too much to look at each."""

    def wanted(self, stretch: Hit) -> Iterable[int]:
        """Of the literals in a piece of the log with many lines, those that a line is looked at
        for. All the rest of it is passed over."""

    def fits(self, line: bytes, literal: int) -> bool:
        """Whether a line with the literal may be what it is looked at for."""


class _Engine(Protocol):
    def first(self, window: bytes, place: int) -> tuple[int, int]:
        """Begin and end of the first text that begins at `place` or after; (-1, -1): none."""

    def all(self, text: bytes) -> Iterable[int]:
        """The numbers of the texts in a short one."""


class Scanner:
    """Searches for literals (without white space), all at once. `lines`, `tail`, the end of the
    log, and `base`, where that begins in it, are whole once `hits` has ended; `skimmed` says how
    many lines with literals were passed over."""

    def __init__(self, literals: Sequence[bytes]) -> None:
        engine: type[_Automaton] | type[_Plain] = _Automaton if re2 else _Plain
        # The beginnings are searched for, because an automaton of them is made much faster.
        beginnings = list(dict.fromkeys(one[:_BEGINNING] for one in literals))
        self._engine: _Engine = engine(beginnings, [*literals, *beginnings])
        self._literals = literals
        numbers = {one: len(literals) + i for i, one in enumerate(beginnings)}
        self._beginning = [numbers[one[:_BEGINNING]] for one in literals]
        self._begin(Budget(), None)

    def _begin(self, budget: Budget, interest: Interest | None) -> None:
        self._budget, self._interest = budget, interest
        self.lines = self.skimmed = 0
        self.tail = b""
        self.base = 0
        self._line, self._counted = 1, 0

    def all(self, text: bytes) -> tuple[int, ...]:
        """The numbers of the literals in a short text."""
        most = len(self._literals)
        return tuple(sorted(number for number in self._engine.all(text) if number < most))

    def _all(self, text: bytes) -> tuple[tuple[int, ...], bool]:
        """The same, and whether one begins there that does not end there."""
        found = sorted(self._engine.all(text))
        first = bisect_left(found, len(self._literals))
        whole = tuple(found[:first])
        begun = len(found) - first
        return whole, begun > 0 and begun > len({self._beginning[i] for i in whole})

    def hits(
        self,
        blocks: Iterable[bytes],
        budget: Budget | None = None,
        interest: Interest | None = None,
    ) -> Iterator[Hit]:
        """The hits in the order of the log, each as soon as what follows it is known. Where the
        budget is used up, only those of interest; but all of them at the end of the log."""
        self._begin(budget or Budget(), interest)
        window, done, told = b"", 0, 0
        for block, more in _and_whether_more(blocks):
            window += block
            self._budget.grow(len(block))
            limit = len(window) - AHEAD if more else len(window)
            skimmed = limit if more else limit - AHEAD
            told = yield from self._found(window, done, told, limit, skimmed)
            done = max(told, limit)
            cut = max(0, done - BEHIND) if more else 0
            self._line_at(window, cut)
            window, self.base = window[cut:], self.base + cut
            done, told, self._counted = done - cut, max(0, told - cut), self._counted - cut
        self.tail = window
        self.lines = self._line_at(window, len(window))
        if not window or window.endswith(b"\n"):
            self.lines -= 1

    def _line_at(self, window: bytes, place: int) -> int:
        """The number of the line at a place, which is not before the one asked for last."""
        if place > self._counted:
            self._line += window.count(b"\n", self._counted, place)
            self._counted = place
        return self._line

    def _found(
        self, window: bytes, place: int, told: int, limit: int, skimmed: int
    ) -> Generator[Hit, None, int]:
        """The hits that begin between `place` and `limit` in lines that begin behind `told`, up to
        `skimmed` as the budget allows. Returns where the last line ends."""
        at, until = self._engine.first(window, place)
        while 0 <= at < limit:
            if self._interest and at < skimmed and not self._budget.is_left:
                told = yield from self._skim(window, at, told, self._interest)
                at, until = self._engine.first(window, told)
                continue
            start, end = piece(window, at, until)
            further, until = self._engine.first(window, until)
            many = 1
            while 0 <= further < end:
                if until > end:  # it is broken, and goes on in the next line
                    end = piece(window, until, until)[1]
                further, until = self._engine.first(window, until)
                many += 1
            self._budget.spend(1 + (many >> 3))
            start = max(start, told)
            found, end = self._with_pieces(window, start, end)
            if 0 <= further < end:
                further, until = self._engine.first(window, end)
            if found:
                yield Hit(found, self._line_at(window, at), window, start, end, at, self.base)
            at, told = further, end
        return told

    def _with_pieces(self, window: bytes, start: int, end: int) -> tuple[tuple[int, ...], int]:
        """The literals of a line, and where it ends with those pieces that a terminal broke off it
        and in which a literal goes on."""
        found, begun = self._all(window[start:end])
        last = start
        for _ in range(_PIECES):
            after = piece(window, end + 1, end + 1)[1] if end < len(window) else end
            before = window.rfind(b"\n", max(0, last - _PIECE), max(0, last - 1)) + 1
            # A terminal breaks a line where no other one is longer.
            if not (begun or end - last >= max(after - end, last - before) - 1):
                break
            broken = self._broken(found, window[start:end], window[end:after])
            if not broken:
                break
            last, end, found = end + 1, after, broken
            begun = self._all(window[start:end])[1]
        return found, end

    def _skim(
        self, window: bytes, at: int, told: int, interest: Interest
    ) -> Generator[Hit, None, int]:
        """Of the lines from a hit on, those of interest. Returns where they end."""
        start = max(piece(window, at, at)[0], told)
        end = window.rfind(b"\n", at, start + _STRETCH) + 1 or min(start + _STRETCH, len(window))
        line = self._line_at(window, start)
        stretch = Hit((), line, window, start, end, start, self.base)
        lines = _Lines(stretch)
        hits: dict[int, Hit] = {}
        for literal in interest.wanted(stretch):
            if hit := self._likeliest(lines, literal, interest):
                known = hits.setdefault(hit.start, hit)
                hits[hit.start] = known._replace(literals=(*known.literals, literal))
        yield from (hits[place] for place in sorted(hits))
        self.skimmed += max(0, window.count(b"\n", start, end) - len(hits))
        return end

    def _likeliest(self, lines: _Lines, literal: int, interest: Interest) -> Hit | None:
        """The first line with the literal that may be it, else the first: one that only begins
        alike may stand before."""
        found = list(islice(lines.each_with(self._literals[literal]), _ALIKE))
        fitting = (hit for hit in found[1:] if interest.fits(hit.text, literal))
        if len(found) > 1 and not interest.fits(found[0].text, literal):
            return next(fitting, found[0])
        return found[0] if found else None

    def last(self, stretch: Hit, literal: int) -> Hit | None:
        """The last line in a piece of the log that has the literal."""
        found = _Lines(stretch).last_with(self._literals[literal])
        return found and found._replace(literals=(literal,))

    def _broken(self, found: tuple[int, ...], line: bytes, after: bytes) -> tuple[int, ...]:
        """The literals of a line and the one after, where one ends only there; else none."""
        both = self.all(line + after)
        if len(both) == len(found) or set(both) <= {*found, *self.all(after)}:
            return ()
        return both


def piece(window: bytes, at: int, until: int) -> tuple[int, int]:
    """Where the line around `window[at:until]` begins and ends, without its line ends."""
    low, high = max(0, at - _PIECE), until + _PIECE
    start = window.rfind(b"\n", low, at)
    start = max(window.rfind(b"\r", max(low, start), at), start, low - 1) + 1
    end = window.find(b"\n", until, high)
    end = min(high, len(window)) if end < 0 else end
    inside = window.find(b"\r", until, end)
    return start, end if inside < 0 else inside


class _Lines:
    """The lines in a piece of a log, in which literals are found without an automaton."""

    def __init__(self, stretch: Hit) -> None:
        self._stretch = stretch
        self._bare = _without_colours(stretch.text).translate(None, _BLANKS.replace(b"\n", b""))

    @functools.cached_property
    def _begins(self) -> list[int]:
        stretch = self._stretch
        return [stretch.start, *(stretch.start + m.end() for m in _ENDS.finditer(stretch.text))]

    def each_with(self, text: bytes) -> Iterator[Hit]:
        """The lines that have a literal, but where a terminal broke it."""
        found = self._bare.find(text)
        while found >= 0:
            yield self._line(text, found)
            end = self._bare.find(b"\n", found)
            found = self._bare.find(text, end) if end >= 0 else -1

    def last_with(self, text: bytes) -> Hit | None:
        """The last of them."""
        found = self._bare.rfind(text)
        return None if found < 0 else self._line(text, found)

    def _line(self, text: bytes, found: int) -> Hit:
        """The line at this place of the bare text, which is a literal's."""
        window, number = self._stretch.window, self._bare.count(b"\n", 0, found)
        low, end = [*self._begins, self._stretch.end][number : number + 2]
        for start, high in _pieces(window, low, end):
            if text in _bare(window[start:high]):
                low, end = start, high
                break
        line = self._stretch.line + number
        return self._stretch._replace(literals=(), line=line, start=low, end=end, at=low)


_ENDS = re.compile(rb"\n")


def _pieces(window: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """What a line consists of for whoever looks at it: of what carriage returns part, and of no
    more than some kilobytes."""
    while start < end:
        high = min(end, start + 2 * _PIECE)
        cut = window.find(b"\r", start, high)
        yield start, high if cut < 0 else cut
        start = cut + 1 if cut >= 0 else high if high == end else high - _PIECE


def _and_whether_more(blocks: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    last = b""
    for block in blocks:
        if last:
            yield last, True
        last = block
    yield last, False


def _bare(text: bytes) -> bytes:
    """Without what may stand between the characters of a literal."""
    return _without_colours(text).translate(None, _BLANKS)


def _without_colours(text: bytes) -> bytes:
    return _COLOURS.sub(b"", text) if b"\x1b" in text else text


class _Automaton:
    """RE2's: as fast for a thousand literals as for one, and linear in the log."""

    def __init__(self, searched: Sequence[bytes], listed: Sequence[bytes]) -> None:
        options = re2.Options()
        options.encoding = re2.Options.Encoding.LATIN1
        options.never_capture = True
        options.longest_match = True
        options.max_mem = _MEMORY
        tolerant = (
            f"{_SKIPPED}*".join(re.escape(c) for c in one.decode("ascii")) for one in searched
        )
        self._anchor = re2._re2.RE2.Anchor.UNANCHORED
        self._any = re2._re2.RE2("|".join(tolerant).encode(), options)
        self._set = re2._re2.Set(self._anchor, options)
        for one in listed:
            self._set.Add(re.escape(one))
        self._set.Compile()

    def first(self, window: bytes, place: int) -> tuple[int, int]:
        begin, end = self._any.Match(self._anchor, window, place, len(window))[0]
        return begin, end

    def all(self, text: bytes) -> Iterable[int]:
        found: list[int] = self._set.Match(_bare(text))
        return found


class _Plain:
    """The same by Python's own search, literal after literal."""

    def __init__(self, searched: Sequence[bytes], listed: Sequence[bytes]) -> None:
        self._searched = searched
        self._listed = listed
        self._window: bytes | None = None
        self._found: list[tuple[int, int]] = []

    def first(self, window: bytes, place: int) -> tuple[int, int]:
        if window is not self._window:
            self._window, self._found = window, self._search(window)
        index = bisect_left(self._found, (place, 0))
        return self._found[index] if index < len(self._found) else (-1, -1)

    def all(self, text: bytes) -> Iterable[int]:
        bare = _bare(text)
        return [number for number, one in enumerate(self._listed) if one in bare]

    def _search(self, window: bytes) -> list[tuple[int, int]]:
        bare = _bare(window)
        begins = [(at, len(one)) for one in self._searched for at in _occurrences(one, bare)]
        if not begins:
            return []
        kept, places, length, place = [0], [0], 0, 0
        for gap in _GAPS.finditer(window):
            length += gap.start() - place
            place = gap.end()
            kept.append(length)
            places.append(place)

        def origin(at: int) -> int:
            index = bisect_right(kept, at) - 1
            return places[index] + at - kept[index]

        longest: dict[int, int] = {}
        for at, size in sorted(begins):
            longest[origin(at)] = max(origin(at + size - 1) + 1, longest.get(origin(at), 0))
        return list(longest.items())


def _occurrences(one: bytes, text: bytes) -> Iterator[int]:
    at = text.find(one)
    while at >= 0:
        yield at
        at = text.find(one, at + 1)
