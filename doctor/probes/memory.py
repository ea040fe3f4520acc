"""The machine's main memory, and how much of it a server that is started here may take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact, Missing, Text
from doctor.numbers import number_of
from doctor.target import Target

_MEMINFO = Path("/proc/meminfo")
_ROWS = r"(?m)^(?:MemTotal|MemAvailable|SwapTotal): +[0-9]+ kB$"
_MEMORY_GROUP = r"(?m)^(?:0:|[0-9]+:[\w,=]*memory[\w,=]*):.*$"
_UNLIMITED = 1 << 60  # version 1 writes nearly 2^63 for no limit
_DEEPEST = 32  # groups in each other that are looked at


@dataclass(frozen=True)
class ControlGroup:
    """Of the tightest memory limit that holds here: `path` of the group, its `limit`, and what is
    `free` below it, in bytes; page cache is free, since the kernel takes it back."""

    path: Path
    limit: int
    free: int


@dataclass(frozen=True)
class MainMemory(Fact):
    """In bytes; `available`: without swapping, as the kernel reckons it; `swap`: all that there is.
    `group`: None where no limit is below `total`; `oom_kills`: how many processes of this control
    group the kernel has killed for want of memory, None where it does not say."""

    since: ClassVar[str] = "0.7.0"
    dispensable: ClassVar[bool] = True  # most GPUs have memory of their own
    total: int
    available: int
    swap: int = 0
    group: ControlGroup | None = None
    oom_kills: int | None = None


@probe
def main_memory(target: Target) -> MainMemory:
    """From /proc/meminfo, and from the control groups of this process (cgroups(7)), which a server
    that is started here inherits. Raises Missing."""
    rows = (row.split() for row in target.search(_MEMINFO, _ROWS) or ())
    sizes = {name: number_of(kib) for name, kib, _ in rows}
    total, available = sizes.get("MemTotal:"), sizes.get("MemAvailable:")
    if total is None or available is None:
        raise Missing(Text("{path} cannot be read", path=_MEMINFO))
    groups = tuple(_groups(target))
    limits = [made for folder, names in groups if (made := _limit(target, folder, names))]
    tightest = min(limits, key=lambda one: one.free, default=None)
    if tightest and tightest.limit >= total << 10 and tightest.free >= available << 10:
        tightest = None
    kills = _oom_kills(target, *groups[0]) if groups else None
    swap = sizes.get("SwapTotal:") or 0
    return MainMemory(total << 10, available << 10, swap << 10, tightest, kills)


@dataclass(frozen=True)
class _Names:
    """What the files of a control group are called, by version."""

    root: Path
    limit: str
    used: str
    events: str


_SECOND = _Names(Path("/sys/fs/cgroup"), "memory.max", "memory.current", "memory.events")
_FIRST = _Names(
    Path("/sys/fs/cgroup/memory"),
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "memory.oom_control",
)


def _groups(target: Target) -> Iterator[tuple[Path, _Names]]:
    """This process's own group for memory and those around it, innermost first. A container that
    shows the path of its host has its own group at the root."""
    for row in target.search(Path("/proc/self/cgroup"), _MEMORY_GROUP) or ():
        names = _SECOND if row.startswith("0:") else _FIRST
        if target.stat(names.root) is None:
            continue
        path = Path(row.partition("/")[2])
        if ".." in path.parts:
            path = Path()
        inside = (path, *path.parents) if path.parts else (path,)
        yield from ((names.root / one, names) for one in inside[:_DEEPEST])


def _limit(target: Target, folder: Path, names: _Names) -> ControlGroup | None:
    limit, used = (_number(target, folder / name) for name in (names.limit, names.used))
    if limit is None or used is None or limit >= _UNLIMITED:
        return None
    stat = target.search(folder / "memory.stat", r"(?m)^(?:total_)?(?:in)?active_file [0-9]+$")
    rows = dict(row.split() for row in stat or ())
    whole = "total_" if any(name.startswith("total_") for name in rows) else ""
    cache = sum(number_of(rows.get(f"{whole}{one}_file")) or 0 for one in ("active", "inactive"))
    return ControlGroup(folder, limit, max(0, limit - max(0, used - cache)))


def _number(target: Target, path: Path) -> int | None:
    found = target.search(path, r"\A([0-9]+)\n\Z")
    return number_of(found[0]) if found else None


def _oom_kills(target: Target, folder: Path, names: _Names) -> int | None:
    found = target.search(folder / names.events, r"(?m)^oom_kill ([0-9]+)$")
    return number_of(found[0]) if found else None
