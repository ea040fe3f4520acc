"""What ends a fix, and what rolls one action back."""

from __future__ import annotations

from doctor.errors import DoctorError
from doctor.exits import FAILED
from doctor.model import Text


class RepairError(DoctorError):
    """A fix that cannot begin; one sentence. Nothing was changed."""

    def __init__(self, text: Text, tail: str = "", exit_code: int = FAILED) -> None:
        super().__init__(text, exit_code, tail)


class StageError(DoctorError):
    """An action that cannot be carried out; one sentence. `tail`: what a tool printed."""

    def __init__(self, text: Text, tail: str = "") -> None:
        super().__init__(text, FAILED, tail)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with a sentence that says what is and what is not changed."""

    def __init__(self, text: Text) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return str(self.text)
