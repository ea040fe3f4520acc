"""A server's command line as a person has it, taken apart: `vllm serve`, the module, a unit's, a
process's, a container's. Nothing of it is run, and nothing is looked up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Literal

from doctor.errors import UsageError
from doctor.frozen import dataclass
from doctor.model import Text

MODULE = "vllm.entrypoints.openai.api_server"


@dataclass(frozen=True)
class ServerCommand:
    """`words`: the whole command, as it was typed or found; `arguments`: those of them that vLLM's
    own parser gets, without `serve`. `by`: whether that is the parser of `vllm serve`, which takes
    the model first, or of the module. `env`: the variables that the command itself sets; `python`:
    the interpreter that it names by an absolute path, None where it names none; `script`: `vllm`
    so named. `found`: where it was found, such as "pid 4711", None where it was typed."""

    words: tuple[str, ...]
    arguments: tuple[str, ...]
    by: Literal["serve", "module"] = "serve"
    env: dict[str, str] = field(default_factory=dict)
    python: Path | None = None
    script: Path | None = None
    found: str | None = None

    def with_arguments(self, arguments: Sequence[str]) -> tuple[str, ...]:
        """The whole command again, with these in the place of its own."""
        at = len(self.words) - len(self.arguments)
        return (*self.words[:at], *arguments)


def read_command(words: Sequence[str]) -> ServerCommand:
    """The command in these words. Raises UsageError where they start no server of vLLM's."""
    first, *rest = words or ("",)
    path = Path(first)
    absolute = path if path.is_absolute() else None
    if path.name == "vllm" and rest[:1] == ["serve"]:
        return ServerCommand(tuple(words), tuple(rest[1:]), script=absolute)
    if path.name.startswith("python") and rest[:2] == ["-m", MODULE]:
        return ServerCommand(tuple(words), tuple(rest[2:]), "module", python=absolute)
    raise UsageError(
        Text("{word}: not the command of a vLLM server, such as `vllm serve MODEL`", word=first)
    )
