"""How much of a log is looked at closely: one budget, whatever asks for it."""

from __future__ import annotations

_UNITS, _MORE = 40_000, 2_000
"""Units of a log of any size, and what every MiB that is read adds: about 10 microseconds each."""


class Budget:
    """`spent` may pass what there is: what has to be looked at in any case is also counted."""

    def __init__(self) -> None:
        self.spent = 0
        self._all = _UNITS

    def grow(self, size: int) -> None:
        """So many bytes more were read."""
        self._all += size * _MORE >> 20

    def spend(self, units: int) -> None:
        self.spent += units

    def spend_on(self, text: bytes) -> None:
        """What it takes to clean a text, line by line, and to search in it."""
        self.spent += 1 + text.count(b"\n") + (len(text) >> 8)

    @property
    def is_left(self) -> bool:
        return self.spent < self._all
