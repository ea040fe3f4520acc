"""Which release of vLLM reckons how: the changes that matter to memory, and the first release that
has each."""

from __future__ import annotations

from packaging.version import InvalidVersion, Version

from doctor.frozen import dataclass
from doctor.model import Text

_OLD = Version("0.11")
_FIRST_KNOWN = Version("0.19")  # below it the rules of 0.11 apply
NEWEST = Version("0.33.0")


@dataclass(frozen=True)
class Release:
    """`version`: as vLLM says it; `said`: what of it is taken from another release, where that is
    so. Questions about the changes are asked by `since`."""

    version: str
    rules: Version
    said: Text | None = None

    def since(self, first: str) -> bool:
        """Whether it has what this release brought."""
        return self.rules >= Version(first)


def release(version: str) -> Release:
    """The rules of this version of vLLM. Raises ValueError for what is no version."""
    try:
        made = Version(version)
    except InvalidVersion:
        raise ValueError(version) from None
    plain = Version(made.base_version)
    if plain < _FIRST_KNOWN:
        said = Text("the rules of vLLM 0.11 apply to {version}", version=version)
        return Release(version, _OLD, said)
    if plain > NEWEST:
        said = Text("the rules of vLLM {newest}, the newest known, apply", newest=NEWEST)
        return Release(version, plain, said)
    return Release(version, plain)
