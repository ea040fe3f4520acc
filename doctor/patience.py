"""Another doctor at work on the same environment: to be told, or to be waited for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from doctor.errors import DoctorError
from doctor.exits import BUSY
from doctor.frozen import dataclass
from doctor.model import Text

T = TypeVar("T")

_EVERY = 0.1
"""Seconds between two looks at the lock."""


class Busy(DoctorError):
    """Another doctor is at work on this environment; one sentence that names it."""

    def __init__(self, prefix: Path, who: Text) -> None:
        said = Text(
            "another vllm-doctor ({who}) is changing {prefix}; use --wait to wait for it",
            who=who,
            prefix=prefix,
        )
        super().__init__(said, BUSY)
        self.waiting = Text(
            "another vllm-doctor ({who}) is changing {prefix}; waiting for it",
            who=who,
            prefix=prefix,
        )


def busy_with(prefix: Path, lock: int) -> Busy:
    """Of the doctor that holds the open lock of this prefix, and has written its pid into it."""
    pid = os.pread(lock, 20, 0).decode("ascii", "replace").strip()
    known = pid.isascii() and pid.isdecimal()
    return Busy(prefix, Text("pid {pid}", pid=pid) if known else Text("pid unknown"))


@dataclass(frozen=True)
class Patience:
    """How long a command waits for another doctor. `seconds` None: not at all; 0: for ever.
    `tell` is told once that it waits, and for whom."""

    seconds: float | None = None
    tell: Callable[[Text], None] = lambda _: None

    def get(self, attempt: Callable[[], T]) -> T:
        """What `attempt` returns once it no longer raises Busy; raises that when the time is over.

        It looks again and again, which a signal can end, and does not hang on one lock's file: the
        other doctor removes that when it ends.
        """
        until = None if not self.seconds else time.monotonic() + self.seconds
        waiting = False
        while True:
            try:
                return attempt()
            except Busy as busy:
                left = _EVERY if until is None else until - time.monotonic()
                if self.seconds is None or left <= 0:
                    raise
                if not waiting:
                    self.tell(busy.waiting)
                waiting = True
            time.sleep(min(_EVERY, left))


AT_ONCE = Patience()
