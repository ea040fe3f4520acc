"""What the commands that change the target share: fix, undo."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

from doctor.cli.again import RunningCommand
from doctor.model import Text

if TYPE_CHECKING:
    from doctor.repair.state import StateError


def do_not_die_of_a_pipe() -> None:
    """`vllm-doctor fix --apply | head` must not end between two renames."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


@contextlib.contextmanager
def with_way_out() -> Iterator[None]:
    """Puts the complete command that gives up a run behind the sentence of what it is in the way
    of."""
    from doctor.repair.state import StateError

    try:
        yield
    except StateError as error:
        raise said_with_way_out(error) from None


def said_with_way_out(error: StateError) -> StateError:
    """The same, with the command."""
    from doctor.repair.state import StateError

    if error.run is None:
        return error
    command = RunningCommand()("undo", "--forget", error.run)
    return StateError(
        Text("{why}; to give the run up: {command}", why=error.text, command=command), error.run
    )
