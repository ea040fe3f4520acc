"""Signatures made ready to be searched for."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from doctor.logs.lines import decoded
from doctor.logs.regex import Patterns
from doctor.logs.scan import Scanner
from doctor.signatures import FAILURE_ROLES, Signature, shipped_catalogue, squeezed

_LINE_MOST = 16 << 10
"""Bytes of a line that are looked at."""

_LONG, _OVERLAP = 1 << 9, 1 << 7
"""Characters of a line that are skimmed at once, and those of them that are once more."""


class SignatureIndex:
    """For one log after the other."""

    def __init__(self, rows: Iterable[Signature]) -> None:
        self.rows = tuple(rows)
        literals = [squeezed(row.literal).encode() for row in self.rows]
        numbers = {one: i for i, one in enumerate(dict.fromkeys(literals))}
        self._rows_of: list[list[int]] = [[] for _ in numbers]
        self.literal_of = [numbers[literal] for literal in literals]
        for row, literal in enumerate(self.literal_of):
            self._rows_of[literal].append(row)
        self.scanner = Scanner(list(numbers))
        self.rows_of = functools.lru_cache(1 << 12)(self._rows)

    def _rows(self, literals: tuple[int, ...]) -> tuple[tuple[int, Signature], ...]:
        """The rows that have these literals, and their numbers; those of failures first, so that
        the others can explain them."""
        numbers = [number for literal in literals for number in self._rows_of[literal]]
        numbers.sort(key=lambda number: self.rows[number].role not in FAILURE_ROLES)
        return tuple((number, self.rows[number]) for number in numbers)

    def in_line(self, raw: bytes) -> Iterator[Signature]:
        """The rows whose literal is in a physical line."""
        yield from (row for _, row in self.rows_of(self.scanner.all(raw[:_LINE_MOST])))

    def skim(self, left_out: Collection[int] = ()) -> Skim:
        """What finds the rows, but for some, that may fit a line of a text of many."""
        return Skim({n: row for n, row in enumerate(self.rows) if n not in left_out})


@functools.cache
def shipped_index() -> SignatureIndex:
    """Of the signatures that come with the doctor. Raises CodecError, ValueError."""
    return SignatureIndex(shipped_catalogue().signatures)


class Skim:
    """Finds rows in a text of many lines, all at once."""

    def __init__(self, rows: Mapping[int, Signature]) -> None:
        self._numbers = list(rows)
        self._patterns = Patterns([row.pattern or _escaped(row.literal) for row in rows.values()])

    def may_fit(self, text: bytes) -> set[int]:
        """The numbers of the rows that may fit a line. Where a terminal broke one, some are left
        out."""
        cleaned = decoded(text)
        if "\\" in cleaned:  # as JSON has it
            cleaned = cleaned.replace('\\"', '"').replace("\\n", " ")
        lines = cleaned.split("\n")
        if max(map(len, lines)) > _LONG:
            pieces = (x[i : i + _LONG] for x in lines for i in range(0, len(x), _LONG - _OVERLAP))
            cleaned = "\n".join(pieces)
        return {self._numbers[i] for i in self._patterns.fitting(cleaned)}


def _escaped(literal: str) -> str:
    return " ".join(map(re.escape, literal.split(" ")))
