"""The server's command line, as the installed vLLM reads it."""

from __future__ import annotations

from dataclasses import field
from typing import Any, ClassVar

from doctor.arguments import ArgumentProblem
from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact, Text
from doctor.profile import ServeRequest


@dataclass(frozen=True)
class ServerArguments(Fact):
    """The server's command line as the parser of the installed vLLM reads it: `values` of the
    options that are given, by their names with underscores, and `model` where one is; `problems`:
    what that parser would end for. `unread`: why it could not be read so; then `values` has what is
    plain in any release, and `problems` nothing."""

    since: ClassVar[str] = "0.6.0"
    values: dict[str, Any] = field(default_factory=dict)
    problems: tuple[ArgumentProblem, ...] = ()
    unread: Text | None = None


@probe
def server_arguments(request: ServeRequest) -> ServerArguments:
    return ServerArguments(dict(request.profile.options))
