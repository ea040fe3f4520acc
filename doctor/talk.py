"""How a long piece of work talks to the person who waits for it. `doctor.cli.talking` is the
terminal; what runs without a person says nothing."""

from __future__ import annotations

from typing import Protocol

from doctor.model import Text

VERIFYING = Text(
    "verifying: compiling, linking and loading a test kernel, importing what vLLM imports ..."
)
"""The phase of a proof, whichever command makes it."""


class Talk(Protocol):
    def tell(self, text: Text) -> None:
        """A sentence that a person should read, whatever the form of the output."""
        ...

    def phase(self, text: Text) -> None:
        """What begins now, and may take long."""
        ...

    def progress(self, done: int, total: int | None) -> None:
        """How far the phase is, in bytes; `total` None where it is not known."""
        ...

    def confirm(self, question: Text) -> bool:
        """Whether the person says yes; False where there is nobody to ask."""
        ...
