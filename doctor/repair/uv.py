"""Resolving and staging distributions with uv, which also serves a target without pip.

uv never writes into the target: it resolves against what is installed there, and installs what
changes, by hash, below a prefix of ours, from where it is swapped in.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import Version

from doctor import toml
from doctor.repair.index import Index, without_credentials

ANSWER_IN = 3
"""Seconds within which a mirror has to answer while there is another one to ask."""
_LAST_ANSWER_IN = 15


class UvError(Exception):
    """uv could not do it. `tail`: the last lines it printed, without credentials."""

    def __init__(self, message: str, tail: str = "") -> None:
        super().__init__(message)
        self.tail = tail


@dataclass(frozen=True)
class Move:
    """One distribution that changes. `old` None: it is new; `new` None: it goes. `size`: bytes of
    its wheel, None where the index does not say; `cached`: it need not be downloaded."""

    name: str
    old: str | None
    new: str | None
    size: int | None = None
    cached: bool = False


@dataclass(frozen=True)
class Resolution:
    """What one transaction comes to. `requirements`: a requirements file of exactly what is
    installed, with hashes, "" where nothing is; `passed_over`: the mirrors that were asked before,
    each with the reason."""

    index: Index
    moves: tuple[Move, ...]
    requirements: str = ""
    passed_over: tuple[str, ...] = ()

    @property
    def download_bytes(self) -> int | None:
        """What has to be fetched; None where the index does not say how large it is."""
        sizes = [m.size for m in self.moves if m.new and not m.cached]
        return None if None in sizes else sum(s for s in sizes if s is not None)


def find() -> Path | None:
    """The uv that came with the doctor, else the one on PATH."""
    try:
        from uv import find_uv_bin

        return Path(find_uv_bin())
    except (ImportError, FileNotFoundError):
        found = shutil.which("uv")
        return Path(found) if found and Path(found).is_absolute() else None


def resolve(
    uv: Path,
    python: Path,
    version: Version,
    indexes: Sequence[Index],
    shell: Mapping[str, str],
    roots: Sequence[str],
    held: Sequence[str] = (),
    anew: Iterable[str] = (),
) -> Resolution:
    """What `roots` change in the target, asked of one index after the other until one has all.

    `version`: of the target's Python; `held`: requirements that must stay as they are; `anew`:
    names that are installed again even where they satisfy. Raises UvError, which names every index
    that was asked and why it could not serve.
    """
    passed_over: list[str] = []
    tail = ""
    for number, index in enumerate(indexes, 1):
        seconds = ANSWER_IN if number < len(indexes) else _LAST_ANSWER_IN
        env = {**index.variables(shell), "UV_HTTP_TIMEOUT": str(seconds), "UV_HTTP_RETRIES": "1"}
        try:
            moves = _moves(uv, python, env, roots, held, anew)
            packages = _lock(uv, python, env, moves)
            moves = _sized(moves, packages, version)
            return Resolution(index, moves, _requirements(packages), tuple(passed_over))
        except UvError as error:
            passed_over.append(f"{index.name} {error}")
            tail = error.tail
    raise UvError("; ".join(passed_over), tail)


def _moves(
    uv: Path,
    python: Path,
    env: Mapping[str, str],
    roots: Sequence[str],
    held: Sequence[str],
    anew: Iterable[str],
) -> tuple[Move, ...]:
    with tempfile.TemporaryDirectory(prefix="vllm-doctor-") as scratch:
        constraints = Path(scratch) / "held.txt"
        constraints.write_text("".join(f"{row}\n" for row in held), encoding="utf-8")
        again = [word for name in anew for word in ("--reinstall-package", name)]
        out = _run(
            [
                *(str(uv), "pip", "install", "--dry-run", "-v", "--no-build", "--color", "never"),
                *("--python", str(python), "--constraints", str(constraints)),
                *again,
                "--",
                *roots,
            ],
            env,
        )
    uncached = set(re.findall(r"Identified uncached distribution: ([\w.-]+?)==", out))
    rows = re.findall(r"(?m)^ ([-+~]) ([\w.-]+?)==(\S+)", out)
    old = {name: v for sign, name, v in rows if sign in "-~"}
    new = {name: v for sign, name, v in rows if sign in "+~"}
    return tuple(
        Move(name, old.get(name), new.get(name), cached=name not in uncached)
        for name in sorted({*old, *new})
    )


def _lock(
    uv: Path, python: Path, env: Mapping[str, str], moves: Iterable[Move]
) -> list[dict[str, Any]]:
    """The packages of a pylock.toml (PEP 751) of exactly these versions: the files that the index
    has, with their hashes and sizes."""
    wanted = [f"{m.name}=={m.new}\n" for m in moves if m.new]
    if not wanted:
        return []
    with tempfile.TemporaryDirectory(prefix="vllm-doctor-") as scratch:
        asked, lock = Path(scratch) / "wanted.in", Path(scratch) / "pylock.toml"
        asked.write_text("".join(wanted), encoding="utf-8")
        _run(
            [
                *(str(uv), "pip", "compile", "--quiet", "--no-deps", "--no-header", "--no-build"),
                *("--color", "never", "--python", str(python)),
                *("--format", "pylock.toml", "--output-file", str(lock), str(asked)),
            ],
            env,
        )
        packages: list[dict[str, Any]] = toml.load(lock).get("packages", [])
        return packages


def _requirements(packages: Iterable[dict[str, Any]]) -> str:
    """A requirements file and not the pylock.toml itself: of that, uv 0.13 fetches every file anew
    though its cache holds it."""
    rows = []
    for package in packages:
        wheels = package.get("wheels", [])
        hashes = [w["hashes"]["sha256"] for w in wheels if "sha256" in w.get("hashes", {})]
        if not hashes:
            raise UvError(f"has no wheel of {package['name']} {package['version']} with a hash")
        lines = [f"{package['name']}=={package['version']}"]
        rows.append(" \\\n".join([*lines, *(f"    --hash=sha256:{h}" for h in hashes)]))
    return "".join(f"{row}\n" for row in rows)


def _sized(
    moves: tuple[Move, ...], packages: Iterable[dict[str, Any]], version: Version
) -> tuple[Move, ...]:
    """The moves with the size of the wheel that fits this machine."""
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
    return tuple(Move(m.name, m.old, m.new, sizes.get(m.name), m.cached) for m in moves)


def stage(
    uv: Path,
    python: Path,
    resolution: Resolution,
    shell: Mapping[str, str],
    into: Path,
    tell: Callable[[str], None],
) -> None:
    """Installs what was resolved, by hash, below `into`, laid out and with scripts as for the
    target. `tell` is called with each line that uv prints. Raises UvError."""
    wanted = into.with_name("requirements.txt")
    wanted.write_text(resolution.requirements, encoding="utf-8")
    _run(
        [
            *(str(uv), "pip", "install", "--no-deps", "--no-build", "--require-hashes"),
            *("--color", "never", "--python", str(python), "--prefix", str(into)),
            *("-r", str(wanted)),
        ],
        resolution.index.variables(shell),
        tell,
    )
    (into / ".lock").unlink(missing_ok=True)


def check(uv: Path, python: Path, shell: Mapping[str, str]) -> frozenset[str]:
    """What is inconsistent in the installed metadata: uv's sentences, none where all is well."""
    env = {**shell, "UV_NO_CONFIG": "1"}
    try:
        _run([str(uv), "pip", "check", "--color", "never", "--python", str(python)], env)
    except UvError as error:
        return frozenset(re.findall(r"(?m)^(The package .+)$", error.tail))
    return frozenset()


def make_environment(uv: Path, python: str, prefix: Path, shell: Mapping[str, str]) -> None:
    """A virtual environment of an interpreter that is here already. Raises UvError."""
    env = {**shell, "UV_NO_CONFIG": "1", "UV_PYTHON_DOWNLOADS": "never"}
    words = ["venv", "--quiet", "--color", "never", "--allow-existing", "--python", python]
    _run([str(uv), *words, str(prefix)], env)


def _run(
    command: list[str], env: Mapping[str, str], tell: Callable[[str], None] | None = None
) -> str:
    """What it printed. Raises UvError with the cause in one sentence."""
    lines = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(env),
        cwd="/",  # nothing of the current directory is read
        text=True,
        errors="backslashreplace",
        preexec_fn=_end_with_us,  # noqa: PLW1509 - one system call; nothing here has a thread
    ) as child:
        try:
            for line in child.stdout or ():
                lines.append(without_credentials(line.rstrip("\n")))
                if tell:
                    tell(lines[-1])
        except BaseException:
            child.kill()
            raise
    if child.returncode != 0:
        said = [line for line in lines if not line.startswith(("DEBUG", "TRACE", "INFO"))]
        raise UvError(_cause(said, child.returncode), "\n".join(said[-20:]))
    return "\n".join(lines)


_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)  # now: between fork and exec nothing may be loaded


def _end_with_us() -> None:
    """A doctor that is killed takes its installer along (prctl(2))."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


_SILENT = re.compile(r"timed? ?out|timeout", re.IGNORECASE)
_UNREACHABLE = re.compile(
    r"dns error|client error \(Connect\)|connection (refused|reset)|failed to fetch", re.IGNORECASE
)


def _cause(said: list[str], code: int) -> str:
    """uv's own words for what went wrong, shortened to a sentence."""
    text = "\n".join(said)
    words = [
        re.sub(r"^(error|cause|[×├╰─▶ ]+):?", "", line.strip()).strip(" ×├╰─▶:") for line in said
    ]
    words = [w for w in words if w and not w.startswith(("Using Python", "hint:"))]
    last = words[-1] if words else f"uv ended with {code}"
    if "No solution found" in text or "not found in the package registry" in text:
        because = next((w for w in words if w.startswith("Because")), last)
        return f"cannot give it: {because}"
    if _SILENT.search(text):
        return f"does not answer ({last})"
    if _UNREACHABLE.search(text):
        return f"cannot be reached ({last})"
    return f"failed: {last}"


def cache_folder(shell: Mapping[str, str]) -> Path:
    """Where uv unpacks what it downloads."""
    if chosen := shell.get("UV_CACHE_DIR"):
        return Path(chosen)
    base = shell.get("XDG_CACHE_HOME") or f"{shell.get('HOME', '/root')}/.cache"
    return Path(os.path.expanduser(base)) / "uv"  # noqa: PTH111
