"""What was found in one start of a server, as far as its log was read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from doctor.model import Severity
from doctor.signatures import CAUSES, Signature


@dataclass
class Found:
    """Where a row was found in an attempt, first and last (bytes into the log), and how often.

    `soft`: only at a level at which it is no failure. `went_on`: the process worked on after it.
    `served`: it answered requests after it. `warned`: its line says that it is no error.
    `time`: what its line, or one before it, says of when.
    """

    row: Signature
    line: int
    offset: int
    excerpt: str = ""
    values: Mapping[str, str] = field(default_factory=dict)
    count: int = 1
    last: int = 0
    soft: bool = False
    went_on: bool = False
    served: bool = False
    warned: bool = False
    time: str | None = None

    @property
    def outlived(self) -> bool:
        """Whether it did not stop the server, as far as it was seen; the next time it may."""
        return self.soft or self.went_on or self.served

    @property
    def is_bad(self) -> bool:
        """Whether it tells of what stops a server."""
        return is_bad(self.row) and not self.went_on


@dataclass(frozen=True)
class Unknown:
    """A failure that no signature knows. `line`: of `said`. `raised_in`, `called_from`: the frame
    at the bottom of it and the one above, where it has any; `logged_at`: what its logger says."""

    line: int
    said: str
    raised_in: str | None
    called_from: str | None
    logged_at: str | None
    offset: int
    """Where all of it begins in the log, in bytes."""
    end: int
    bottom: tuple[int, int]
    """Where its innermost exception begins and ends."""
    process: str | None
    went_on: bool
    refused: str = ""
    """Where what came next is that a request was refused, the first digit of its status."""
    logged: bool = False
    """Only the level of its line says that it is a failure."""
    time: str | None = None
    log: str = ""
    """The name of the log that `line` is in, where that was told."""


@dataclass
class Attempt:
    """One start of a server, as far as it was read."""

    found: dict[int, Found] = field(default_factory=dict)
    survived: dict[int, Found] = field(default_factory=dict)
    unknown: list[Unknown] = field(default_factory=list)
    failures: int = 0
    ready: bool = False
    started_by: str | None = None
    """The process that the line of its start names."""
    elsewhere: bool = False
    """It runs on something other than CUDA."""
    stopped: float = math.inf
    """From which byte on it was told to end."""

    @property
    def last_bad(self) -> int:
        """Where it last told of what stops a server; -1: nowhere."""
        bad = [f.last for f in self.found.values() if not f.soft and f.is_bad]
        return max([*bad, *(u.offset for u in self.unknown if not u.went_on)], default=-1)


def is_bad(row: Signature) -> bool:
    """Whether the row is about what stops a server, or tells that something did."""
    return row.severity is Severity.ERROR and row.role in (*CAUSES, "symptom")
