"""What ends a command: one sentence for a person, and the exit code that goes with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from doctor.exits import USAGE
from doctor.model import Text, os_reason


class DoctorError(Exception):
    """The base of every refusal that a person is told. The command line prints it in one place.

    `exit_code`: one of `doctor.exits`. `tail`: what a tool printed, shown before the sentence.
    """

    def __init__(self, text: Text, exit_code: int, tail: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.exit_code = exit_code
        self.tail = tail

    def __str__(self) -> str:
        return str(self.text)


class UsageError(DoctorError):
    """What was asked for cannot be; one sentence with the wrong value."""

    def __init__(self, text: Text) -> None:
        super().__init__(text, USAGE)


@contextlib.contextmanager
def naming(option: str, value: object = None) -> Iterator[None]:
    """Whatever is wrong with what an option names is a UsageError, which begins with the option,
    and its value where that is given."""
    try:
        yield
    except (DoctorError, OSError, ValueError) as error:
        why = os_reason(error) if isinstance(error, OSError) else error
        if value is None:
            raise UsageError(Text("{option} {why}", option=option, why=why)) from None
        said = Text("{option} {value}: {why}", option=option, value=value, why=why)
        raise UsageError(said) from None
