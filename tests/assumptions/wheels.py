"""An environment of a vLLM whose files are fetched out of the wheels when they are asked for."""

from __future__ import annotations

import contextlib
import zipfile
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from doctor.elf import Elf
from doctor.probes.wheels import Distribution, Packages, pin, requirements
from doctor.target import READ_MOST, Live, Stat
from tests import online


class Wheels(Live):
    """Its `site` folder looks like one in which the wheels were installed; a file comes over when
    it is read. Nothing is said of libraries, which are larger than all the rest."""

    def __init__(self, site: Path, closing: contextlib.ExitStack) -> None:
        super().__init__({})
        self._site, self._closing = site, closing
        self._archives: dict[str, zipfile.ZipFile] = {}
        self.packages = Packages(folders=(site,))

    def add(self, name: str, version: str) -> Distribution:
        """Raises as `online.wheel` does."""
        archive = self._closing.enter_context(online.wheel(name, version))
        self._archives |= dict.fromkeys(archive.namelist(), archive)
        (info,) = {n.split("/")[0] for n in archive.namelist() if n.endswith(".dist-info/METADATA")}
        made = Distribution(Version(version), self._site, info)
        self.packages.installed[name] = made
        return made

    def read(self, path: Path, limit: int = READ_MOST) -> bytes | None:
        archive = self._archives.get(self._name(path))
        if archive and not path.exists():
            archive.extract(self._name(path), self._site)
        return super().read(path, limit)

    def stat(self, path: Path) -> Stat | None:
        name = self._name(path)
        if name in self._archives:
            return Stat("file", self._archives[name].getinfo(name).file_size, 0, 0, 0o644)
        return Stat("dir", 0, 0, 0, 0o755) if self.listdir(path) else None

    def listdir(self, path: Path) -> tuple[str, ...] | None:
        inside = self._name(path) + "/"
        names = {
            n.removeprefix(inside).split("/")[0] for n in self._archives if n.startswith(inside)
        }
        return tuple(sorted(names)) or None

    def elf(self, path: Path) -> Elf | None:
        return None

    def _name(self, path: Path) -> str:
        return path.relative_to(self._site).as_posix()


def environment(version: str, site: Path, closing: contextlib.ExitStack) -> Wheels:
    """vLLM, and the torch, FlashInfer and transformers that it asks for: of those that it accepts,
    the newest. Raises as `online.wheel` does."""
    made = Wheels(site, closing)
    requires = requirements(made, made.add("vllm", version))
    for name in ("torch", "flashinfer-python", "transformers"):
        wanted = pin(requires, name)
        if wanted is None:
            raise LookupError(f"vLLM {version} does not require {name}")
        made.add(name, str(wanted.exact or _newest(name, str(wanted))))
    return made


def _newest(name: str, specifiers: str) -> Version:
    accepted = SpecifierSet(specifiers)
    return max(v for v in online.versions(name) if v in accepted)
