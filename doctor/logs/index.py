"""Signatures made ready to be searched for."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

from doctor.logs.scan import Scanner
from doctor.signatures import Signature, squeezed

_LINE_MOST = 16 << 10
"""Bytes of a line that are looked at."""


class Index:
    """For one log after the other."""

    def __init__(self, rows: Iterable[Signature]) -> None:
        self.rows = tuple(rows)
        literals = [squeezed(row.literal).encode() for row in self.rows]
        numbers = {one: i for i, one in enumerate(dict.fromkeys(literals))}
        self._rows_of: list[list[int]] = [[] for _ in numbers]
        for row, literal in enumerate(literals):
            self._rows_of[numbers[literal]].append(row)
        self.scanner = Scanner(list(numbers))
        self.rows_of = functools.lru_cache(1 << 12)(self._rows)

    def _rows(self, literals: tuple[int, ...]) -> tuple[tuple[int, Signature], ...]:
        """The rows that have these literals, and their numbers; those of failures first, so that
        the others can explain them."""
        numbers = [number for literal in literals for number in self._rows_of[literal]]
        numbers.sort(key=lambda number: self.rows[number].role != "failure")
        return tuple((number, self.rows[number]) for number in numbers)

    def in_line(self, raw: bytes) -> Iterator[Signature]:
        """The rows whose literal is in a physical line."""
        yield from (row for _, row in self.rows_of(self.scanner.all(raw[:_LINE_MOST])))
