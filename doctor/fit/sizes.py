"""The values in which the memory of a server is reckoned."""

from __future__ import annotations

from collections.abc import Callable

from doctor.frozen import dataclass
from doctor.model import Text

GIB = 1 << 30


class NotKnown(Exception):
    """Something that decides cannot be told; `why` says what, and what would help."""

    def __init__(self, why: Text) -> None:
        super().__init__(str(why))
        self.why = why


@dataclass(frozen=True)
class Band:
    """A number that is not known exactly: the lowest, the likeliest and the highest that it can be;
    all equal where it is."""

    low: int
    likely: int
    high: int

    @property
    def exact(self) -> bool:
        return self.low == self.high

    def each(self, made: Callable[[int], int]) -> Band:
        """The band of a number that grows with this one."""
        return Band(made(self.low), made(self.likely), made(self.high))

    @classmethod
    def of(cls, number: int) -> Band:
        return cls(number, number, number)
