"""What was proven by a test build and by imports, so that it is proven once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from doctor import about
from doctor.codec import decode, encode, parse_json
from doctor.engine import Facts
from doctor.model import Missing, NotApplicable
from doctor.probes.environment import HOME, LaunchEnv, own_file
from doctor.probes.host import HostCompilers
from doctor.probes.interpreter import Interpreter
from doctor.probes.jit import Jit
from doctor.probes.libraries import Runtimes
from doctor.probes.served import Profile
from doctor.probes.toolkit import HEADERS, Toolkit, Toolkits
from doctor.probes.wheels import FlashInfer, Packages, Torch
from doctor.target import Target
from doctor.variables import Trait, names_with

_PROOFS = HOME / "proofs.json"
_KEPT = 32


@dataclass(frozen=True)
class Proofs:
    """What was proven by a test build and by imports: the key of each and when, in seconds
    since 1970."""

    schema_version: int = 1
    proven: dict[str, float] = field(default_factory=dict)


def proof_key(target: Target, facts: Facts) -> str | None:
    """The key of all that decides how the test build and the imports end, None where there is
    nothing to prove. Raises Missing or Crashed where it cannot be told."""
    profile, torch = facts.get(Profile), facts.get(Torch)
    if profile.device == "cpu" or torch.hip:
        return None
    parts = {"build": toolchain(target, facts), "imports": _imported(target, facts, profile)}
    text = json.dumps(encode(parts), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _imported(target: Target, facts: Facts, profile: Profile) -> dict[str, object]:
    env, packages = facts.get(LaunchEnv), facts.get(Packages)
    python = facts.get(Interpreter).python
    return {
        "doctor": about.VERSION,
        "python": _identity(target, python),
        # An installer writes the RECORD anew, also of the same version.
        "packages": {
            f"{one.folder}/{one.info}": _identity(target, one.folder / one.info / "RECORD")
            for one in packages.installed.values()
        },
        "profile": (profile.needs.architecture, profile.tensor_parallel_size, profile.archs),
        "variables": {name: env.get(name) for name in names_with(Trait.IMPORT)},
    }


def toolchain(target: Target, facts: Facts) -> dict[str, object] | None:
    """All that decides how the test build ends, None where there is nothing to build.

    Raises Missing or Crashed where it cannot be told.
    """
    try:
        jit, found = facts.get(Jit), facts.get(Toolkits).found
        hosts, flashinfer = facts.get(HostCompilers), facts.get(FlashInfer)
    except NotApplicable:
        return None
    env, runtimes = facts.get(LaunchEnv), facts.get(Runtimes)
    paths = [] if found is None else _parts(found, jit.libraries)
    if runtimes.own:
        paths.append(runtimes.own.path)
    compilers = [s.compiler for s in (hosts.cxx, hosts.nvcc_host) if s.compiler]
    return {
        "doctor": about.VERSION,
        "python": facts.get(Interpreter).version,
        "archs": jit.archs,
        "flashinfer": (flashinfer.version, flashinfer.root),
        "compilers": compilers,
        "files": {p: _identity(target, p) for p in (*paths, *(c.path for c in compilers))},
        "toolkit": None if found is None else (found.root, found.parts),
        "variables": {name: env.get(name) for name in names_with(Trait.BUILD)},
    }


def _parts(kit: Toolkit, libraries: Sequence[str]) -> list[Path]:
    tops = list(dict.fromkeys((kit.root, kit.top or kit.root)))
    folders = list(dict.fromkeys(f for f in (kit.include, *(t / "include" for t in tops)) if f))
    return [
        kit.compiler,
        *(t / name for t in tops for name in ("bin/ptxas", "nvvm/bin/cicc")),
        *(f / header for f in folders for header in HEADERS),
        *(kit.root / f / f"lib{n}.so" for f in ("lib64", "lib64/stubs") for n in libraries),
    ]


def _identity(target: Target, path: Path) -> tuple[str, int, int] | None:
    stat = target.stat(path)
    return (str(target.realpath(path)), stat.size, stat.mtime) if stat else None


def is_proven(target: Target, prefix: Path, key: str) -> bool:
    """Whether an earlier start proved exactly this toolchain. A file that is not ours or cannot be
    read proves nothing."""
    return key in _proofs(target, prefix).proven


def _proofs(target: Target, prefix: Path) -> Proofs:
    try:
        data = own_file(target, prefix, _PROOFS)
        made: Proofs = decode(Proofs, parse_json(data)) if data is not None else Proofs()
    except (Missing, ValueError):
        return Proofs()
    return made


def remember(target: Target, prefix: Path, key: str) -> None:
    """Keeps that this toolchain is proven, for the next start. Silently does not where it may not
    write there, or where what root writes would be in the way of the prefix's owner later."""
    owner = target.stat(prefix)
    if owner is None or owner.uid != os.geteuid():
        return
    known = {**_proofs(target, prefix).proven, key: time.time()}
    newest = dict(sorted(known.items(), key=lambda item: item[1])[-_KEPT:])
    text = json.dumps(encode(Proofs(proven=newest)), indent=1) + "\n"
    with contextlib.suppress(OSError):
        _write(prefix, text)


def _write(prefix: Path, text: str) -> None:
    """Whole or not at all, and through no link below the prefix."""
    with contextlib.ExitStack() as stack:
        at = os.open(prefix, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, at)
        for name in _PROOFS.parent.parts:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=at)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            at = os.open(name, flags, dir_fd=at)
            stack.callback(os.close, at)
        fresh = f".{_PROOFS.name}.{os.getpid()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(fresh, flags, 0o644, dir_fd=at)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.rename(fresh, _PROOFS.name, src_dir_fd=at, dst_dir_fd=at)
        except BaseException:
            os.unlink(fresh, dir_fd=at)
            raise
