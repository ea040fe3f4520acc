"""What refuses a start."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from doctor.engine import Crashed
from doctor.errors import DoctorError
from doctor.exits import REFUSED, USAGE
from doctor.model import Missing, Text
from doctor.probes.interpreter import NotPython


class LaunchError(DoctorError):
    """The server is not started; one sentence."""

    def __init__(self, text: Text, exit_code: int = REFUSED) -> None:
        super().__init__(text, exit_code)


class WrongArguments(LaunchError):
    """What was asked for is no server's command line; one sentence."""

    def __init__(self, text: Text) -> None:
        super().__init__(text, USAGE)


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """What cannot be told of the target refuses the start; not so a target that is no Python, which
    it was a mistake to name."""
    try:
        yield
    except (Missing, Crashed) as error:
        if isinstance(error, NotPython) and error.wrong:
            raise
        raise LaunchError(error.text if isinstance(error, Crashed) else error.reason) from None
