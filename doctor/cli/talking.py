"""Long work as the person at the terminal sees it: phases, and how far a download is. Where stderr
is no terminal, a line a phase."""

from __future__ import annotations

import contextlib
import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING

from doctor.cli.output import confirm, say, tell
from doctor.model import Text

if TYPE_CHECKING:
    from rich.progress import Progress


class Talking:
    """`doctor.talk.Talk` on stderr. `form`: of the output; of what is for a program, a person sees
    the phases only at a terminal."""

    def __init__(self, form: str) -> None:
        self._text = form == "text"
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._bar: Progress | None = None
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
        if not (self._terminal and total):
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
