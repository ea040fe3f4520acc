"""What ends a command: one sentence for a person, and the exit code that goes with it."""

from __future__ import annotations

from doctor.model import Text


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
