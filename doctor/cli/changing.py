"""What the commands that change the target share: fix, undo."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from typing import TYPE_CHECKING

from doctor.cli.again import RunningCommand
from doctor.cli.output import (
    tell,
)

if TYPE_CHECKING:
    from doctor.repair.state import StateError


def do_not_die_of_a_pipe() -> None:
    """`vllm-doctor fix --apply | head` must not end between two renames."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def tell_left(left: Iterable[str]) -> None:
    for line in left:
        tell(line)


def with_way_out(error: StateError) -> str:
    """The sentence, and the complete command that gives up the run which is in the way."""
    if error.run is None:
        return str(error)
    return f"{error}; to give the run up: {RunningCommand()('undo', '--forget', error.run)}"
