"""What a plan consists of: actions, and what they need a yes for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from doctor.model import Fix, Needs, Step, Text

if TYPE_CHECKING:
    from doctor.fixes.base import Kind

Consent = Literal["core", "running", "processes", "download"]
CONSENTS: tuple[Consent, ...] = ("core", "running", "processes", "download")


class Changed(NamedTuple):
    """One thing that an action changes: a distribution, a variable, a path. None is nothing."""

    what: str
    old: str | None = None
    new: str | None = None


@dataclass(frozen=True)
class SelectedFix:
    """The fix of a finding that the plan carries out."""

    id: str
    fix: Fix


@dataclass(frozen=True)
class ConsentRequest:
    """What an action may not do without an explicit yes, and why it would; `consent` None: nobody
    can give it. `ids`: the findings that hang on it, the others are fixed without."""

    consent: Consent | None
    why: Text
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Action:
    """Steps of one kind for all the fixes that want them; done, or rolled back, as one. `settled`:
    what its kind found out when it was planned."""

    kind: Kind
    fixes: tuple[SelectedFix, ...]
    steps: tuple[Step, ...]
    asks: tuple[ConsentRequest, ...] = ()
    settled: Any = None

    @property
    def ids(self) -> tuple[str, ...]:
        """The findings that it serves."""
        return tuple(dict.fromkeys(one.id for one in self.fixes))

    @property
    def needs(self) -> Needs:
        return Needs.ASK if self.asks else Needs.SAFE

    @property
    def asking(self) -> tuple[SelectedFix, ...]:
        """Of its fixes those that ask for a yes themselves."""
        return tuple(one for one in self.fixes if one.fix.needs is Needs.ASK)


def requests_of(action: Action) -> Iterator[ConsentRequest]:
    """The yes that its fixes ask for themselves."""
    if asking := action.asking:
        titles = [str(one.fix.title) for one in asking]
        ids = tuple(one.id for one in asking)
        yield ConsentRequest("core", Text("would {what}", what=titles), ids)
