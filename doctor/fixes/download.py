"""Fetches the files of a model that are missing or wrong, and proves them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from doctor.fixes.base import Kind
from doctor.frozen import dataclass
from doctor.model import Installer, Step, Text, plainly

if TYPE_CHECKING:
    from doctor.download.hub import HubOrigin
    from doctor.repair.action import Action, Changed, ConsentRequest
    from doctor.repair.context import RepairContext
    from doctor.repair.manifest import Effect

_WITHOUT_ASKING = 1 << 30
"""Bytes that are fetched without a yes."""


@dataclass(frozen=True)
class DownloadModel(Step):
    """Completes a repository of the hub in the cache."""

    repository: str
    revision: str
    cache: Path
    kind: ClassVar[str] = "download"

    @property
    def _words(self) -> tuple[str, ...]:
        named = () if self.revision == "main" else ("--revision", self.revision)
        return ("download", self.repository, *named)

    def __str__(self) -> str:
        return plainly(*self._words)

    def commands(self, installer: Installer) -> tuple[str, ...]:
        return (installer.again(*self._words),)


@dataclass(frozen=True)
class _Missing:
    """What a plan found out: bytes and files that are not here, and bytes that are free there."""

    size: int
    files: int
    free: int
    endpoint: str
    token_sent: bool


class ModelsDownloaded(Kind):
    """Each is an Effect of its own, without an undo: what was fetched is the hub's cache's."""

    name = "download"
    title = Text("download the model (an undo leaves it)")
    order = 50  # by what the others have installed
    wanted_by = "download"

    def takes(self, step: Step) -> bool:
        return isinstance(step, DownloadModel)

    def plan(self, context: RepairContext, action: Action) -> Action:
        """Asks the hub. Where it does not say, or where there is no room, that is what is settled:
        the fixes of everything else do not hang on it."""
        import dataclasses

        from doctor.download.origin import DownloadError

        try:
            return dataclasses.replace(action, settled=_missing(_origin(context, action)))
        except DownloadError as error:
            return dataclasses.replace(action, settled=error.text)

    def consent(self, context: RepairContext, action: Action) -> Iterable[ConsentRequest]:
        from doctor.repair.action import ConsentRequest

        if isinstance(action.settled, Text):
            yield ConsentRequest(None, action.settled, action.ids)
        elif action.settled.size > _WITHOUT_ASKING:
            why = Text("would {what}", what=_told(action))
            yield ConsentRequest("download", why, action.ids)

    def changes(self, action: Action) -> Iterable[Changed]:
        from doctor.repair.action import Changed

        yield Changed(_step(action).repository, None, _told(action))

    def lines(self, action: Action) -> Iterable[tuple[str, str]]:
        yield "", _told(action)
        if not action.settled.token_sent:
            yield "dim", "without a Hugging Face token"

    def summary(self, action: Action) -> tuple[str, ...]:
        return (_told(action),)

    def prepare(self, context: RepairContext, action: Action, folder: Path) -> Effect:
        from doctor.repair.manifest import Effect

        step = _step(action)
        data = {"repository": step.repository, "revision": step.revision}
        return Effect(_told(action), None, {**data, "cache": str(step.cache)})

    def carry_out(self, effect: Effect, context: RepairContext) -> None:
        """Raises StageError where not all of it is here and right afterwards."""
        from doctor.download.fetch import STALL
        from doctor.download.origin import DownloadError
        from doctor.download.session import fetch_all
        from doctor.repair.errors import StageError

        data = effect.data
        step = DownloadModel(data["repository"], data["revision"], Path(data["cache"]))
        try:
            made = fetch_all(_origin_of(context, step), context.talk, STALL)
        except DownloadError as error:
            raise StageError(error.text) from None
        if made.failed:
            raise StageError(made.failed)


def _step(action: Action) -> DownloadModel:
    (step,) = action.steps
    if not isinstance(step, DownloadModel):
        raise TypeError(step)
    return step


def _origin(context: RepairContext, action: Action) -> HubOrigin:
    return _origin_of(context, _step(action))


def _origin_of(context: RepairContext, step: DownloadModel) -> HubOrigin:
    from doctor.download.hub import HubOrigin
    from doctor.probes.environment import LaunchEnv

    env = context.report.facts.get(LaunchEnv)
    where = (context.target, env, context.python)
    return HubOrigin(*where, step.repository, step.revision, step.cache)


def _missing(origin: HubOrigin) -> _Missing:
    """By the sizes of what lies here: the hashes are for the download itself."""
    from doctor.download.room import free_bytes, must_have_room

    listing = origin.listing()
    there = {f: origin.target.stat(origin.place(listing, f)) for f in listing.files}
    lacking = [f for f, stat in there.items() if stat is None or stat.size != f.size]
    size = sum(file.size for file in lacking)
    must_have_room(origin.folder, size, len(lacking))
    free = free_bytes(origin.folder)
    return _Missing(size, len(lacking), free, origin.endpoint, origin.token_sent)


def _told(action: Action) -> str:
    from doctor.numbers import shown_size

    found, step = action.settled, _step(action)
    return str(
        Text(
            "fetch {size} of {name} ({files} files) from {endpoint} into {cache}, which has {free} "
            "free",
            size=shown_size(found.size),
            name=step.repository,
            files=found.files,
            endpoint=found.endpoint,
            cache=step.cache,
            free=shown_size(found.free),
        )
    )
