"""A command line of vLLM's server against a table of options: what its parser makes of it."""

from __future__ import annotations

from enum import Enum

from doctor.frozen import dataclass
from doctor.model import Text


class Wrong(str, Enum):
    """What vLLM's parser ends for."""

    UNKNOWN = "unknown"
    AMBIGUOUS = "ambiguous"
    CHOICE = "choice"
    TYPE = "type"
    LACKS_VALUE = "lacks value"
    TAKES_NO_VALUE = "takes no value"
    EXCLUSIVE = "exclusive"
    UNEXPECTED = "unexpected"
    CONFIG_FILE = "config file"


@dataclass(frozen=True)
class ArgumentProblem:
    """One word of it that is wrong. `option`: as it was typed; `value`: of it, where that is wrong;
    `meant`: the options or choices that there are, the nearest first; `why` in vLLM's own terms,
    where it says more."""

    kind: Wrong
    option: str
    value: str | None = None
    meant: tuple[str, ...] = ()
    why: Text | None = None
