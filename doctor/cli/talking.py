"""Long work as the person at the terminal sees it: phases, and how far a download is. Where stderr
is no terminal, a line a phase, and one for each tenth of what takes long."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

from doctor.cli.output import confirm, say, tell
from doctor.model import Text
from doctor.numbers import shown_size

if TYPE_CHECKING:
    from rich.progress import Progress


class Talking:
    """`doctor.talk.Talk` on stderr. `form`: of the output; of what is for a program, a person sees
    the phases only at a terminal."""

    def __init__(self, form: str) -> None:
        self._text = form == "text"
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._bar: Progress | None = None
        self._log = _Log()
        self._lock = threading.Lock()

    def __enter__(self) -> Talking:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._clear()

    def tell(self, text: Text) -> None:
        self._clear()
        tell(str(text))

    def phase(self, text: Text) -> None:
        self._clear()
        if self._text or self._terminal:
            with contextlib.suppress(OSError):  # nobody reads any more: no reason to stop half-way
                say(f"  {text}", err=True)

    def progress(self, done: int, total: int | None) -> None:
        if not total:
            return
        if not self._terminal:
            if self._text and (line := self._log.line(done, total)):
                self.phase(line)
            return
        with self._lock:
            if self._bar is None:
                self._bar = _bar(total)
            self._bar.update(self._bar.task_ids[0], completed=done)

    def confirm(self, question: Text) -> bool:
        self._clear()
        person = self._text and sys.stdin is not None and sys.stdin.isatty()
        return person and confirm(str(question))

    def _clear(self) -> None:
        with self._lock:
            if self._bar is not None:
                self._bar.stop()
                self._bar = None


class _Log:
    """How far a download is, for a log: one line for each tenth of a gigabyte or more."""

    def __init__(self) -> None:
        self._total = self._tenth = self._first = 0
        self._began = 0.0

    def line(self, done: int, total: int) -> Text | None:
        now = time.monotonic()
        if total != self._total or done < self._first:
            self._total, self._tenth = total, 10 * done // total
            self._first, self._began = done, now
        tenth = 10 * done // total
        if total < _LONG or tenth <= self._tenth:
            return None
        self._tenth = tenth
        rate = max(1, int((done - self._first) / max(now - self._began, 0.001)))
        return Text(
            "{done} of {total}, {rate} a second, {minutes} minutes left",
            done=shown_size(done),
            total=shown_size(total),
            rate=shown_size(rate),
            minutes=-(-(total - done) // (60 * rate)),
        )


_LONG = 1_000_000_000


def _bar(total: int) -> Progress:
    """Bytes of bytes, rate and time left; gone from the screen when it ends."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    made = Progress(
        "  ", *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True
    )
    made.add_task("", total=total)
    made.start()
    return made
