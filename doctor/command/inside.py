"""This machine as a container sees it, as far as its `docker run` tells: what is mounted there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from doctor.elf import Elf
from doctor.model import Text
from doctor.safetensors import Header
from doctor.target import READ_MOST, Ran, Stat, Target

# Where the driver is looked for: it is the host's.
_HOSTS = tuple(map(Path, ("/dev", "/proc", "/sys", "/etc", "/run", "/usr", "/.dockerenv")))
_NOWHERE = Path("/proc/self/fd/-1")


class Inside:
    """A Target that looks for a path of the container where the host has it: below one of `mounts`
    (folders of the container, and those of the host). What lies in the image is not there."""

    def __init__(self, target: Target, mounts: Mapping[str, str]) -> None:
        self._target = target
        longest = sorted(mounts.items(), key=lambda row: -len(row[0]))
        self._mounts = [(PurePosixPath(there), Path(here)) for there, here in longest]

    def _at(self, path: Path) -> Path:
        for there, here in self._mounts:
            if path == here or here in path.parents:
                return path  # what a link led to
            if path == Path(there) or Path(there) in path.parents:
                return here / path.relative_to(there)
        if not path.is_absolute() or any(one == path or one in path.parents for one in _HOSTS):
            return path
        return _NOWHERE

    @property
    def env(self) -> Mapping[str, str]:
        return self._target.env

    @property
    def hidden(self) -> tuple[str, ...]:
        return self._target.hidden

    def run(self, *argv: str, timeout: float = 10.0, env: Mapping[str, str] | None = None) -> Ran:
        return self._target.run(*argv, timeout=timeout, env=env)

    def distrust(self, path: Path, searched: bool = False) -> Text | None:
        return self._target.distrust(path, searched)

    def read(self, path: Path, limit: int = READ_MOST) -> bytes | None:
        return self._target.read(self._at(path), limit)

    def search(self, path: Path, pattern: str) -> tuple[str, ...] | None:
        return self._target.search(self._at(path), pattern)

    def listdir(self, path: Path) -> tuple[str, ...] | None:
        return self._target.listdir(self._at(path))

    def stat(self, path: Path) -> Stat | None:
        return self._target.stat(self._at(path))

    def executable(self, path: Path) -> bool:
        return self._target.executable(self._at(path))

    def realpath(self, path: Path) -> Path:
        return self._target.realpath(self._at(path))

    def elf(self, path: Path) -> Elf | None:
        return self._target.elf(self._at(path))

    def tensors(self, path: Path) -> Header | None:
        return self._target.tensors(self._at(path))
