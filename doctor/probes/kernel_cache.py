"""Kernels that FlashInfer built earlier, and the locks on them."""

from __future__ import annotations

import re
from pathlib import Path

from doctor.consumers.flashinfer import caches
from doctor.elf import cudart_major
from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact
from doctor.numbers import number_of
from doctor.probes.environment import LaunchEnv
from doctor.probes.wheels import FlashInfer
from doctor.target import Target


@dataclass(frozen=True)
class CachedOp:
    """One kernel that FlashInfer built earlier. `cuda_home`: of the toolkit that built it;
    `home_gone`: no nvcc is there any more; `library`: its .so is there; `whole`: as a library that
    the loader can read; `kept`: ninja takes the .so for done, asked only where it is not whole;
    `cudart`: the major of the CUDA runtime that the .so needs; `built`: when, in nanoseconds;
    `builder`: the FlashInfer that built it, where that is not the target's."""

    name: str
    folder: Path
    cuda_home: str | None = None
    home_gone: bool = False
    library: bool = False
    whole: bool = True
    kept: bool = True
    cudart: int | None = None
    built: int = 0
    builder: Path | None = None


@dataclass(frozen=True)
class CachedLock:
    """A lock that says who holds it: FlashInfer's filelock writes that only where the filesystem
    has no flock; the kernel's own locks are empty files and free themselves. `running`: a process
    of that number runs here; `here`: `host` is this machine, this namespace of processes."""

    op: str
    path: Path
    pid: int
    host: str
    running: bool = False
    here: bool = False


@dataclass(frozen=True)
class KernelCache(Fact):
    """FlashInfer's kernels of its own version, for every set of GPUs."""

    folder: Path
    ops: tuple[CachedOp, ...] = ()
    locks: tuple[CachedLock, ...] = ()


@probe
def kernel_cache(target: Target, env: LaunchEnv, flashinfer: FlashInfer) -> KernelCache:
    """`<base>/.cache/flashinfer/<version>/<archs>/cached_ops/<op>/` (flashinfer/jit/env.py)."""
    folder = caches(env) / str(flashinfer.version)
    ops: list[CachedOp] = []
    locks: list[CachedLock] = []
    for archs in target.listdir(folder) or ():
        cached = folder / archs / "cached_ops"
        for name in target.listdir(cached) or ():
            if name == "tmp":  # the locks, which stay behind after every good build
                locks += _locks(target, cached / name)
            else:
                ops.append(_op(target, cached / name, flashinfer))
    return KernelCache(folder, tuple(ops), tuple(locks))


def _op(target: Target, folder: Path, flashinfer: FlashInfer) -> CachedOp:
    library, ninja = folder / f"{folder.name}.so", folder / "build.ninja"
    homes = target.search(ninja, r"(?m)^cuda_home = (.*)$")
    home = homes[0] if homes else None
    stat = target.stat(library)
    elf = target.elf(library) if stat else None
    # What this user may not read is not known to be broken.
    whole = stat is None or elf is not None or target.read(library, 1) is None
    return CachedOp(
        name=folder.name,
        folder=folder,
        cuda_home=home,
        home_gone=bool(home and target.stat(Path(home) / "bin/nvcc") is None),
        library=stat is not None,
        whole=whole,
        kept=whole or _kept(target, folder),
        cudart=cudart_major(elf.needed) if elf else None,
        built=stat.mtime if stat else 0,
        builder=_builder(target, ninja, flashinfer) if homes else None,
    )


def _builder(target: Target, ninja: Path, flashinfer: FlashInfer) -> Path | None:
    """The FlashInfer whose headers the commands name (flashinfer/jit/cpp_ext.py:140), if it is
    another one: every command then changes, and ninja builds all of it again."""
    roots = target.search(ninja, r"-isystem (\S+)/data/include(?=\s)")
    if not roots or Path(roots[0]) == target.realpath(flashinfer.root):
        return None
    return Path(roots[0])


def _kept(target: Target, folder: Path) -> bool:
    """ninja's log has the .so, and no object is newer than what it notes there. That is what its
    verdict hangs on where no command changed (tried with ninja 1.11 and 1.13): a .so that is not in
    the log was never finished, and one older than an object has to be linked again."""
    pattern = rf"(?m)^\d+\t\d+\t(\d+)\t[^\t\n]*/{re.escape(folder.name)}\.so\t"
    noted = target.search(folder / ".ninja_log", pattern)
    objects = [n for n in target.listdir(folder) or () if n.endswith(".o")]
    stats = [target.stat(folder / name) for name in objects]
    latest = number_of(noted[-1]) if noted else None
    if latest is None or not stats:
        return False
    return all(s is not None and s.mtime <= latest for s in stats)


def _locks(target: Target, folder: Path) -> list[CachedLock]:
    made = []
    for name in target.listdir(folder) or ():
        stat = target.stat(folder / name) if name.endswith(".lock") else None
        if stat is None or stat.size == 0:
            continue
        rows = (target.read(folder / name) or b"").decode("utf-8", "replace").split("\n")
        holder = number_of(rows[0])
        if holder is not None and len(rows) > 1 and rows[1]:
            running = target.stat(Path("/proc") / str(holder)) is not None
            here = rows[1] == _host(target)
            op = name.removesuffix(".lock")
            made.append(CachedLock(op, folder / name, holder, rows[1], running, here))
    return made


_FIRST_NAMESPACE = 4026531836  # PID_NS_INIT_INO, linux/nsfs.h


def _host(target: Target) -> str:
    """This machine as filelock names it (filelock/_identity.py): its name, and the namespace of
    processes where that is not the machine's own."""
    name = (target.read(Path("/proc/sys/kernel/hostname")) or b"").decode("utf-8", "replace")
    digits = re.search(r"[0-9]+", target.realpath(Path("/proc/self/ns/pid")).name)
    namespace = number_of(digits[0]) if digits else None
    if namespace in (None, _FIRST_NAMESPACE):
        return name.strip()
    return f"{name.strip()}?pidns-{namespace:x}"
