"""What a kind of step is, and which kinds there are.

A rule offers a fix as steps; a kind carries steps out. Everything that is done with a step
(planned, shown, scripted, applied, undone) is a method of its kind, so that a new kind is one file:
its steps, its `Kind`, and one line that registers it. A step that no kind takes is manual: a person
is told of it, and it is never lost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

from doctor.model import Fix, Installer, Needs, Step, Text

if TYPE_CHECKING:
    from pathlib import Path

    from doctor.repair.action import Action, Changed, Consent, ConsentRequest
    from doctor.repair.context import RepairContext
    from doctor.repair.manifest import Effect, Swap


class Kind:
    """How steps of one kind are carried out. A base class and not a protocol: most kinds leave most
    of it as it is here.

    `name`: as journals and JSON have it; `title`: what it does, for a person; `order`: kinds are
    carried out from the lowest to the highest; `sweeps`: it only tidies up caches and our own
    folder, and is done also for findings that do not count; so is what is `wanted_by` a consent
    that the person gave unasked.
    """

    name: ClassVar[str]
    title: ClassVar[Text]
    order: ClassVar[int]
    sweeps: ClassVar[bool] = False
    wanted_by: ClassVar[Consent | None] = None

    def takes(self, step: Step) -> bool:
        """Whether it carries this step out. The first kind, by order, that takes a step has it."""
        raise NotImplementedError

    def claim(self, step: Step) -> str | None:
        """What two different steps cannot both have, such as a variable; None where steps never
        exclude each other."""
        return None

    # What is planned: nothing is changed.

    def plan(self, context: RepairContext, action: Action) -> Action:
        """The action with what has to be found out before it can be shown (`Action.settled`).
        Raises RepairError where it cannot be done at all."""
        return action

    def consent(self, context: RepairContext, action: Action) -> Iterable[ConsentRequest]:
        """What needs a yes, of an action that is planned: by default what fixes ask for
        themselves."""
        from doctor.repair.action import requests_of

        return requests_of(action)

    def changes(self, action: Action) -> Iterable[Changed]:
        """What the action changes, one row for each thing."""
        from doctor.repair.action import Changed

        return (Changed(str(step)) for step in action.steps)

    def lines(self, action: Action) -> Iterable[tuple[str, str]]:
        """The same for a person who reads the plan: (rich style, one line) each."""
        return (("", str(step)) for step in action.steps)

    def summary(self, action: Action) -> tuple[str, ...]:
        """The same in short lines, for the journal."""
        return tuple(str(step) for step in action.steps)

    def commands(self, action: Action, installer: Installer) -> Iterable[str]:
        """The POSIX shell lines that do the same, as the plan shows them."""
        return (line for step in action.steps for line in step.commands(installer))

    def shell(self, action: Action, context: RepairContext) -> Iterable[str]:
        """The lines of a script that do the same, exactly."""
        return self.commands(action, context.report.installer)

    # What is carried out.

    def split(self, action: Action) -> Iterable[Action]:
        """The parts of the action that are each one change."""
        return (action,)

    def problems(self, context: RepairContext) -> frozenset[str]:
        """What is wrong with the target, as far as changes of this kind may make it worse, one
        sentence each. A change that brings a new one is rolled back."""
        return frozenset()

    def prepare(self, context: RepairContext, action: Action, folder: Path) -> Swap | Effect:
        """The change, ready to be made; nothing is changed yet. `folder` is the change's own, with
        an empty `new` in it to stage files. Raises StageError."""
        raise NotImplementedError

    def carry_out(self, effect: Effect, context: RepairContext) -> None:
        """Does what `prepare` gave as an Effect. Raises StageError or OSError."""
        raise NotImplementedError

    def undo(self, effect: Effect) -> None:
        """Undoes an Effect that has an undo: also one that never happened, or is undone already,
        since the doctor may have been killed in between. What `effect.data` holds was read from the
        environment, where others may have written it. Raises StageError or OSError."""
        raise NotImplementedError


class Kinds:
    """The kinds that are known, in the order in which they are carried out."""

    def __init__(self, *kinds: Kind) -> None:
        self._kinds: dict[str, Kind] = {}
        for kind in kinds:
            self.add(kind)

    def add(self, kind: Kind) -> None:
        """Registers a kind; in a site's folder of rules as well. Raises ValueError where its name
        is taken."""
        if kind.name in self._kinds:
            raise ValueError(f"there is a kind of step {kind.name!r} already")
        self._kinds[kind.name] = kind
        self._kinds = dict(sorted(self._kinds.items(), key=lambda row: row[1].order))

    def __iter__(self) -> Iterator[Kind]:
        return iter(self._kinds.values())

    def named(self, name: str) -> Kind | None:
        return self._kinds.get(name)

    def of(self, step: Step) -> Kind | None:
        """The kind that carries this step out; None where a person has to."""
        return next((kind for kind in self if kind.takes(step)), None)

    def automatic(self, fix: Fix) -> bool:
        """Whether the doctor can carry this fix out: its author says so, and every step of it has
        a kind that takes it."""
        return self.settled(fix).needs is not Needs.PERSON

    def settled(self, fix: Fix) -> Fix:
        """The fix, manual where a step of it has no kind, whatever its author says."""
        if fix.needs is Needs.PERSON or (fix.steps and all(map(self.of, fix.steps))):
            return fix
        return dataclasses.replace(fix, needs=Needs.PERSON)

    def claims(self, fix: Fix) -> Mapping[str, Step]:
        """What the fix's steps lay claim to, and which step does."""
        rows = ((kind.claim(step), step) for step in fix.steps if (kind := self.of(step)))
        return {claim: step for claim, step in rows if claim is not None}
