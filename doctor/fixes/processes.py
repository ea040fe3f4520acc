"""Ends processes that nobody needs any more: engines whose server is gone."""

from __future__ import annotations

import dataclasses
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from doctor.fixes.base import Kind
from doctor.frozen import dataclass
from doctor.model import Installer, Step, Text
from doctor.numbers import number_of

if TYPE_CHECKING:
    from doctor.probes.processes import ProcessTable, Seen
    from doctor.repair.action import Action, ConsentRequest
    from doctor.repair.context import RepairContext
    from doctor.repair.manifest import Effect

_PATIENCE = 15.0
"""Seconds that each signal is given: an engine frees tens of gigabytes."""


@dataclass(frozen=True)
class EndProcess(Step):
    """Ends an orphaned engine and what it has started: SIGTERM, and SIGKILL for what is still there
    after a while. `started`: in ticks since the boot, as /proc/PID/stat has it; the number may be
    another process's by then."""

    pid: int
    started: int
    title: str
    kind: ClassVar[str] = "end-process"

    def __str__(self) -> str:
        return f"end {self.title} (pid {self.pid}) and what it has started"

    def commands(self, installer: Installer) -> tuple[str, ...]:
        same = f"test \"$(awk '{{print $22}}' /proc/{self.pid}/stat)\" = {self.started}"
        return (f"{same} && kill -TERM {self.pid}",)


class ProcessesEnded(Kind):
    """Each is an Effect of its own, without an undo: what has ended cannot be brought back."""

    name = "end-process"
    title = Text("end processes (cannot be undone)")
    order = 5  # what follows may need the GPU

    def takes(self, step: Step) -> bool:
        return isinstance(step, EndProcess)

    def consent(self, context: RepairContext, action: Action) -> Iterable[ConsentRequest]:
        from doctor.repair.action import ConsentRequest

        why = Text("would {what}; that cannot be undone", what=[*map(str, action.steps)])
        yield ConsentRequest("processes", why, action.ids)

    def split(self, action: Action) -> Iterable[Action]:
        return (dataclasses.replace(action, steps=(step,)) for step in action.steps)

    def prepare(self, context: RepairContext, action: Action, folder: Path) -> Effect:
        from doctor.repair.manifest import Effect

        (step,) = action.steps
        if not isinstance(step, EndProcess):
            raise TypeError(step)
        data = {"pid": str(step.pid), "started": str(step.started), "title": step.title}
        return Effect(str(step), None, data)

    def carry_out(self, effect: Effect, context: RepairContext) -> None:
        """Raises StageError where it is no orphan any more, or does not end."""
        from doctor.repair.errors import StageError

        pid, started = (number_of(effect.data[name]) for name in ("pid", "started"))
        root = _seen(pid) if pid else None
        if root is None or root.started != started:
            return  # it has ended by itself
        proof = _table().orphan(_table().line(root))
        if proof is None or (proof.pid, proof.started) != (pid, started) or not proof.reachable:
            raise StageError(
                Text("pid {pid} is not proven to be an orphan any more: not ended", pid=pid)
            )
        if left := _end((root, *_started_by(root))):
            raise StageError(
                Text("pid {left} did not end, not even by SIGKILL", left=[one.pid for one in left])
            )


def _table() -> ProcessTable:
    """As /proc is now."""
    from doctor.probes.processes import ProcessTable
    from doctor.target import Live

    return ProcessTable(Live({}))


def _seen(pid: int) -> Seen | None:
    return _table().seen(pid)


def _started_by(root: Seen) -> Iterator[Seen]:
    """All that the process has started, and so on, of the same user."""
    from doctor.target import Live

    table = _table()
    pids = (number_of(name) for name in Live({}).listdir(Path("/proc")) or ())
    for one in [one for pid in pids if pid and (one := table.seen(pid))]:
        line = [(above.pid, above.started) for above in table.line(one)]
        if one.pid != root.pid and one.uid == root.uid and (root.pid, root.started) in line:
            yield one


def _end(those: Iterable[Seen]) -> list[Seen]:
    """Ends them, and returns those that do not end. Each is held by a descriptor from before it is
    looked at again: no signal goes to another process that has got its number."""
    with ExitStack() as closing:
        held: list[tuple[Seen, int | None]] = []
        for one in those:
            descriptor = _descriptor(one.pid)
            if descriptor is not None:
                closing.callback(os.close, descriptor)
            if _is_there(one):
                held.append((one, descriptor))
        for number in (signal.SIGTERM, signal.SIGKILL):
            for one, descriptor in held:
                _signal(one, descriptor, number)
            held = _not_ended(held, _PATIENCE)
        return [one for one, _ in held]


def _descriptor(pid: int) -> int | None:
    """None where it is gone, and on kernels before 5.3, which have none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _signal(one: Seen, descriptor: int | None, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        if descriptor is not None:
            signal.pidfd_send_signal(descriptor, number)
        elif _is_there(one):
            os.kill(one.pid, number)


def _is_there(one: Seen) -> bool:
    now = _seen(one.pid)
    return now is not None and now.started == one.started and now.state not in ("Z", "X")


def _not_ended(
    held: list[tuple[Seen, int | None]], seconds: float
) -> list[tuple[Seen, int | None]]:
    """Those that are still there when the time is over."""
    ends = time.monotonic() + seconds
    while (left := [row for row in held if _is_left(*row)]) and time.monotonic() < ends:
        # select() takes no descriptor from 1024 on.
        _polled((descriptor for _, descriptor in left if descriptor is not None), 200)
        held = left
    return left


def _is_left(one: Seen, descriptor: int | None) -> bool:
    """A descriptor tells it of all threads (pidfd_open(2)): one may hang in the driver whose first
    is a zombie by then."""
    return _is_there(one) if descriptor is None else not _polled([descriptor], 0)


def _polled(descriptors: Iterable[int], milliseconds: int) -> bool:
    """Waits until one of these processes has ended; whether one has."""
    waiting = select.poll()
    for descriptor in descriptors:
        waiting.register(descriptor, select.POLLIN)
    return bool(waiting.poll(milliseconds))
