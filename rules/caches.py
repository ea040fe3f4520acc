"""Kernels that FlashInfer built earlier."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from doctor import Finding, Fix, Needs, Severity, Stage, Text, rule
from doctor.fixes import SetAside
from doctor.probes.jit import Jit
from doctor.probes.kernel_cache import CachedOp, KernelCache
from doctor.probes.toolkit import Toolkit, Toolkits, WheelToolkit
from doctor.probes.wheels import Torch


@rule("flashinfer-stale-cache", Severity.ERROR, Stage.LOAD)
def flashinfer_stale_cache(
    cache: KernelCache, torch: Torch, toolkits: Toolkits, kit: WheelToolkit, jit: Jit
) -> Iterator[Finding]:
    """A cached FlashInfer kernel is broken, unfinished or built for another CUDA major.

    The server stops with `libcudart.so.12: cannot open shared object file` or `file too short` and
    a path in cached_ops, or with a bus error and no message. FlashInfer names its cache by its own
    version and the GPU architectures only. At every load it writes the op's ninja file and runs
    ninja (flashinfer/jit/core.py:307-318), which rebuilds when the commands, its log or the file
    times say so, and never looks into the .so. An op built with the same CUDA_HOME is therefore
    loaded as it is, whatever toolkit is installed there now, and so is a .so that was damaged after
    ninja finished it (full disk, power loss, partial copy).

    What FlashInfer rebuilds by itself is reported as info: an op built with another CUDA_HOME (its
    commands contain cuda_home) that no other toolkit on this machine can still use, and an op whose
    builder was killed (no entry in ninja's log; the kernel has released the lock). An op built by
    the FlashInfer of another environment belongs to that one, and is rebuilt here.

    Fix: Renames the folder of this op, so that FlashInfer rebuilds it at the next start. The rest
    of the cache, which took minutes to build, stays. Needs no consent.

    Manual: With no server running, rename the op's folder below cached_ops.

    Sources: flashinfer/jit/core.py, flashinfer/jit/env.py, flashinfer#3229, flashinfer#5145

    See also: toolkit-major-mismatch, jit-lock-hang
    """
    for op in cache.ops:
        if op.builder is None and (finding := _useless(op, torch, toolkits, kit, jit)):
            yield finding


def _useless(
    op: CachedOp, torch: Torch, toolkits: Toolkits, kit: WheelToolkit, jit: Jit
) -> Finding | None:
    if not op.library:
        if op.cuda_home is None:
            return None  # nothing was begun
        message = Text("the cached kernel {op} is unfinished", op=op.name)
        why = Text("build.ninja exists but no .so: its build failed, was killed or is running")
        return _aside(op, message, why, Severity.INFO)
    found = toolkits.found
    same_home = op.cuda_home is None or found is None or Path(op.cuda_home) == found.root
    if not op.whole:
        message = Text("the cached kernel {op} is corrupt: its .so cannot be loaded", op=op.name)
        if not same_home:
            return _aside(op, message, _built_by(op), Severity.INFO)
        if not op.kept:
            why = Text("ninja did not finish it and will rebuild it")
            return _aside(op, message, why, Severity.INFO)
        why = Text("ninja's log marks it as finished, so it is not rebuilt")
        return _aside(op, message, why, None if _for_these_gpus(op, jit) else Severity.INFO)
    if op.cudart is not None and _of_another_major(op.cudart, torch, found):
        message = Text(
            "the cached kernel {op} was built for CUDA {major}, torch for CUDA {cuda}",
            op=op.name,
            major=op.cudart,
            cuda=torch.cuda,
        )
        if not same_home:
            return _aside(op, message, _built_by(op), Severity.INFO)
        why = Text("CUDA_HOME is unchanged, so it is not rebuilt")
        return _aside(op, message, why, None if _for_these_gpus(op, jit) else Severity.INFO)
    # Someone may start a server with another CUDA_HOME that is still there. Ours is what every
    # start from now on has.
    if not same_home and (op.home_gone or (found is not None and found.root == kit.home)):
        message = Text(
            "the cached kernel {op} was built with another toolkit ({home})",
            op=op.name,
            home=op.cuda_home,
        )
        why = Text("CUDA_HOME has changed: FlashInfer rebuilds it")
        return _aside(op, message, why, Severity.INFO)
    return None


def _of_another_major(major: int, torch: Torch, found: Toolkit | None) -> bool:
    """torch does not bring the runtime that the kernel needs, and today's toolkit would not build
    the same: another major than torch's alone is no fault."""
    if torch.cuda is None or major == torch.cuda.major:
        return False
    return found is None or found.nvcc is None or found.nvcc.major != major


def _for_these_gpus(op: CachedOp, jit: Jit) -> bool:
    """It lies in the folder that a server on these GPUs looks into."""
    return jit.cache is None or op.folder.parent.parent.name == jit.cache


def _built_by(op: CachedOp) -> Text:
    return Text("it was built with {home}: FlashInfer rebuilds it", home=op.cuda_home)


def _aside(op: CachedOp, message: Text, why: Text, severity: Severity | None) -> Finding:
    evidence = [Text("{folder}", folder=op.folder), why]
    if op.cudart is not None:
        evidence.insert(1, Text("its .so needs libcudart.so.{major}", major=op.cudart))
    fix = Fix(Text("set this kernel aside"), (SetAside(op.folder),))
    return Finding(message, tuple(evidence), (fix,), severity)


@rule("jit-lock-hang", Severity.WARNING, Stage.COMPILE)
def jit_lock_hang(cache: KernelCache, jit: Jit) -> Iterator[Finding]:
    """A lock in FlashInfer's cache is held by a process that does not run here.

    The server then waits forever and logs nothing (py-spy shows `acquire` of filelock under
    flashinfer/jit/core.py). An empty lock file is harmless: the kernel releases the lock of a
    process that dies, and the file stays. Only where the filesystem has no flock (Lustre, some
    FUSE) does filelock write the holder's name into the file. It takes over the lock of a dead
    process of this machine, but waits for one of another machine or container, whose death it
    cannot see.

    Fix: Renames the lock file if its holder ran on this machine and is gone. Needs no consent.

    Manual: If the holder is on another machine or in another container, check there that no nvcc,
    cicc, ptxas or ninja still runs, then rename the lock file.

    Workaround: `FLASHINFER_WORKSPACE_BASE=/a/local/folder` moves the cache to a local disk.

    Sources: flashinfer/jit/core.py, flashinfer#972, vllm#41865

    See also: flashinfer-stale-cache, shm-broadcast-wait
    """
    for lock in cache.locks:
        if lock.running and lock.here:
            continue  # a build, and waiting for it is right
        message = Text(
            "the lock of the cached kernel {op} is held by process {pid} on {host}",
            op=lock.op,
            pid=lock.pid,
            host=lock.host,
        )
        evidence = [Text("{path}", path=lock.path)]
        if lock.here:
            evidence.append(Text("that process has ended: the next server takes over the lock"))
            fix = Fix(Text("set the lock aside"), (SetAside(lock.path),))
            yield Finding(message, tuple(evidence), (fix,), Severity.INFO)
        else:
            evidence.append(
                Text("the holder is in another container or on another machine: is it building?")
            )
            title = Text("if nothing is building, set the lock aside")
            fix = Fix(title, (SetAside(lock.path),), Needs.PERSON)
            yield Finding(message, tuple(evidence), (fix,))
