"""uv as the tool: fast, and at home in a target without pip or with an old one."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from packaging.version import Version

from doctor import toml
from doctor.repair.index import NOWHERE, PackageIndex
from doctor.repair.installer import (
    UNPACKED,
    Move,
    ToolError,
    Wanted,
    requirements_file,
    run,
    show_installed,
)
from doctor.target import Target
from doctor.trust import NotTrusted

_LOCK_MOST = 64 << 20  # bytes; a hundred packages with every wheel of theirs are one MiB


@dataclass(frozen=True)
class Uv:
    """The uv at `path`, as a doctor.repair.installer.Tool."""

    path: Path

    def resolve(
        self, wanted: Wanted, index: PackageIndex, shell: Mapping[str, str], seconds: int
    ) -> tuple[tuple[Move, ...], str]:
        env = {
            **index.variables(shell),
            "UV_HTTP_TIMEOUT": str(seconds),
            "UV_HTTP_RETRIES": "1",
        }
        moves = self._moves(wanted, env)
        packages = self._lock(wanted.version, env, (f"{m.name}=={m.new}" for m in moves if m.new))
        rows = [(p["name"], p["version"], _hashes(p)) for p in packages]
        # A requirements file and not the pylock.toml itself: of that, uv 0.13 fetches every file
        # anew though its cache holds it.
        return _sized(moves, packages, wanted.version), requirements_file(rows)

    def _moves(self, wanted: Wanted, env: Mapping[str, str]) -> tuple[Move, ...]:
        with tempfile.TemporaryDirectory(prefix="vllm-doctor-") as scratch:
            held = Path(scratch) / "held.txt"
            held.write_text("".join(f"{row}\n" for row in wanted.pinned), encoding="utf-8")
            again = [word for name in wanted.reinstall for word in ("--reinstall-package", name)]
            site = Path(scratch) / "site-packages"
            show_installed(wanted.site_packages, site)
            out = self._pip(
                env,
                *("install", "--dry-run", "-v", "--no-build", *_as_for(wanted.version)),
                *("--target", str(site), "--constraints", str(held)),
                *again,
                "--",
                *wanted.roots,
            )
        uncached = set(re.findall(r"Identified uncached distribution: ([\w.-]+?)==", out))
        rows = re.findall(r"(?m)^ ([-+~]) ([\w.-]+?)==(\S+)", out)
        old = {name: v for sign, name, v in rows if sign in "-~"}
        new = {name: v for sign, name, v in rows if sign in "+~"}
        return tuple(
            Move(name, old.get(name), new.get(name), cached=name not in uncached)
            for name in sorted({*old, *new})
        )

    def newest(
        self,
        python: Path,
        version: Version,
        requirements: Sequence[str],
        index: PackageIndex,
        shell: Mapping[str, str],
    ) -> Version:
        (package,) = self._lock(version, index.variables(shell), requirements)
        return Version(package["version"])

    def _lock(
        self, version: Version, env: Mapping[str, str], requirements: Iterable[str]
    ) -> list[dict[str, Any]]:
        """The packages of a pylock.toml (PEP 751) of these requirements alone: the files that the
        index has, with their hashes and sizes."""
        names = [f"{row}\n" for row in requirements]
        if not names:
            return []
        with tempfile.TemporaryDirectory(prefix="vllm-doctor-") as scratch:
            asked, lock = Path(scratch) / "wanted.in", Path(scratch) / "pylock.toml"
            asked.write_text("".join(names), encoding="utf-8")
            self._pip(
                env,
                *("compile", "--quiet", "--no-deps", "--no-header", "--no-build"),
                *(*_as_for(version), "--format", "pylock.toml"),
                *("--output-file", str(lock), str(asked)),
            )
            packages: list[dict[str, Any]] = toml.load_toml(lock, _LOCK_MOST).get("packages", [])
            return packages

    def stage(
        self,
        python: Path,
        requirements: Path,
        index: PackageIndex,
        shell: Mapping[str, str],
        into: Path,
        progress: Callable[[int], None],
    ) -> None:
        self._pip(
            index.variables(shell),
            *("install", "--no-deps", "--no-build", "--require-hashes", "--python", str(python)),
            *("--prefix", str(into), "-r", str(requirements)),
            wrote=lambda size: progress(int(size / UNPACKED)),
        )
        (into / ".lock").unlink(missing_ok=True)

    def check(self, python: Path, shell: Mapping[str, str]) -> frozenset[str]:
        try:
            with _no_lock_left(python):
                self._pip(NOWHERE.variables(shell), "check", "--python", str(python))
        except ToolError as error:
            return frozenset(re.findall(r"(?m)^(The package .+)$", error.tail))
        return frozenset()

    def make_environment(self, base: str, prefix: Path, shell: Mapping[str, str]) -> None:
        """A virtual environment of an interpreter that is here already, or the rest of one whose
        making was interrupted. Raises ToolError."""
        env = {**NOWHERE.variables(shell), "UV_PYTHON_DOWNLOADS": "never"}
        options = ["--quiet", "--color", "never", "--allow-existing", "--python", base]
        run([str(self.path), "venv", *options, str(prefix)], env)

    def cache(self, shell: Mapping[str, str]) -> Path:
        """The folder in which it unpacks what it downloads."""
        if chosen := shell.get("UV_CACHE_DIR"):
            return Path(chosen).absolute()
        home = shell.get("HOME") or os.path.expanduser("~")  # noqa: PTH111 - an env of its own
        return Path(shell.get("XDG_CACHE_HOME") or f"{home}/.cache") / "uv"

    def _pip(
        self, env: Mapping[str, str], *words: str, wrote: Callable[[int], None] | None = None
    ) -> str:
        return run([str(self.path), "pip", "--color", "never", *words], env, wrote)


def find_uv(target: Target) -> Uv | None:
    """The uv that came with the doctor, else the one on PATH. Raises NotTrusted."""
    try:
        from uv import find_uv_bin

        return Uv(Path(find_uv_bin()))
    except (ImportError, FileNotFoundError):
        found = shutil.which("uv")
        if not found or not Path(found).is_absolute():
            return None
        if why := target.distrust(Path(found)):
            raise NotTrusted(why) from None
        return Uv(Path(found))


def _as_for(version: Version) -> tuple[str, ...]:
    """The options for a target of this Python on this machine. The interpreter that uv asks is the
    doctor's own, since asking one runs the `.pth` lines and the sitecustomize of its packages."""
    return ("--python", sys.executable, "--python-version", str(version))


@contextlib.contextmanager
def _no_lock_left(python: Path) -> Iterator[None]:
    """uv locks an environment with an empty file that it leaves behind, also where it only reads:
    one that was not there goes again."""
    lock = python.parent.parent / ".lock"
    there = os.path.lexists(lock)
    try:
        yield
    finally:
        if not there:
            with contextlib.suppress(OSError):
                if lock.lstat().st_size == 0:
                    lock.unlink()


def _hashes(package: Mapping[str, Any]) -> list[str]:
    files = [w.get("hashes", {}) for w in package.get("wheels", [])]
    return [hashes["sha256"] for hashes in files if "sha256" in hashes]


def _sized(
    moves: tuple[Move, ...], packages: Iterable[Mapping[str, Any]], version: Version
) -> tuple[Move, ...]:
    """The moves with the size of the wheel that fits this machine best."""
    from packaging.tags import compatible_tags, cpython_tags, platform_tags
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    python = (version.major, version.minor)
    platforms = list(platform_tags())
    tags = [*cpython_tags(python, platforms=platforms), *compatible_tags(python, None, platforms)]
    rank = {tag: place for place, tag in enumerate(tags)}
    sizes: dict[str, int | None] = {}
    for package in packages:
        best = len(rank)
        for wheel in package.get("wheels", []):
            name = wheel.get("name") or str(wheel.get("url", wheel.get("path"))).rpartition("/")[2]
            try:
                fits = parse_wheel_filename(name)[3]
            except InvalidWheelFilename:
                continue
            place = min((rank[t] for t in fits if t in rank), default=best)
            if place < best:
                best, sizes[package["name"]] = place, wheel.get("size")
    return tuple(replace(move, size=sizes.get(move.name)) for move in moves)
