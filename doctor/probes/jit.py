"""Whether the server compiles kernels when it starts, for which GPUs, and what it did before."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from doctor.elf import cudart_major
from doctor.engine import probe
from doctor.model import Fact, Missing, Text
from doctor.numbers import number_of
from doctor.probes.driver import NO_GPU_NEEDED, Gpus
from doctor.probes.environment import LaunchEnv
from doctor.probes.wheels import ROCM, FlashInfer, Torch, Vllm
from doctor.profile import Profile
from doctor.target import Target

# What vLLM 0.22 has FlashInfer compile: the sampler (vllm/v1/sample/ops/topk_topp_sampler.py); from
# Hopper on the kernels of an unquantised mixture of experts (vllm/model_executor/layers/fused_moe/
# oracle/unquantized.py); from Blackwell on attention as well.
_HOPPER, _BLACKWELL = 9, 10
_ARCH = re.compile(r"([0-9]{1,3})([0-9][a-z]?)")
# FlashInferBackend.supports_compute_capability, vllm/v1/attention/backends/flashinfer.py.
_SAMPLER_FROM = (7, 5)


@dataclass(frozen=True)
class Jit(Fact):
    """FlashInfer will compile. `archs`: nvcc names of what for ("80", "90a"); () where no GPU can
    be asked. `asked_by`: who named them. `unreadable`: entries of FLASHINFER_CUDA_ARCH_LIST on
    which FlashInfer breaks. `libraries`: what it links with."""

    archs: tuple[str, ...] = ()
    asked_by: str = "the visible GPUs"
    unreadable: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ("cudart", "cuda")

    @property
    def cache(self) -> str | None:
        """The folder of the cache that holds the kernels for these GPUs (flashinfer/jit/env.py:143:
        sorted by major as a number, then by minor as text); None where the GPUs are not known."""
        rows = [match.groups() for match in map(_ARCH.fullmatch, self.archs) if match]
        ordered = sorted(set(rows), key=lambda r: (int(r[0]), r[1]))
        return "_".join("".join(row) for row in ordered) or None


@probe
def jit(
    env: LaunchEnv,
    profile: Profile,
    vllm: Vllm,
    torch: Torch,
    flashinfer: FlashInfer,
    gpus: Gpus | None,
) -> Jit:
    """Not applicable where nothing is compiled: another device, ready kernels installed, or the
    sampler switched off on a GPU whose attention needs none of FlashInfer's."""
    if profile.device == "cpu":
        raise Missing(Text(NO_GPU_NEEDED + " and compiles no CUDA kernel"), applies=False)
    if torch.hip:
        raise Missing(Text(ROCM), applies=False)
    if torch.cuda is None:
        raise Missing(Text("torch is built without CUDA"), ("torch-cpu-build",))
    cache = flashinfer.jit_cache
    if cache and Version(cache.public) == flashinfer.version:
        raise Missing(
            Text("flashinfer-jit-cache {version} brings the kernels ready-made", version=cache),
            applies=False,
        )
    capabilities = _capabilities(profile, gpus)
    experts = _experts(env, profile, capabilities)
    if not _sampler(env, vllm, capabilities) and not experts:
        if not capabilities:
            raise Missing(
                Text("without its sampler, what FlashInfer compiles depends on the GPUs: which?"),
                ("driver-lib-invisible", "tp-exceeds-visible-gpus"),
            )
        if all(c[0] < _BLACKWELL for c in capabilities):
            raise Missing(Text("FlashInfer's sampler is off, nothing is compiled"), applies=False)
    libraries = ("cudart", "cuda", "nvrtc") if experts else ("cudart", "cuda")
    listed = env.get("FLASHINFER_CUDA_ARCH_LIST")
    if listed is not None:
        # FlashInfer splits at every single space and takes each entry apart at its one dot.
        rows = {entry: _listed(entry) for entry in listed.split(" ")}
        return Jit(
            tuple(arch for arch in rows.values() if arch),
            "FLASHINFER_CUDA_ARCH_LIST",
            tuple(entry for entry, arch in rows.items() if arch is None),
            libraries,
        )
    archs = tuple(sorted({nvcc_arch(*c) for c in capabilities}))
    asked_by = "the profile" if profile.gpus == "later" else "the visible GPUs"
    return Jit(archs, asked_by, libraries=libraries)


def _experts(env: LaunchEnv, profile: Profile, capabilities: tuple[tuple[int, int], ...]) -> bool:
    """The model's mixture of experts is compiled by FlashInfer."""
    moe = "moe" in (profile.needs.architecture or "").lower()
    off = (env.get("VLLM_USE_FLASHINFER_MOE_FP16") or "").strip() == "0"
    return moe and not off and any(c[0] >= _HOPPER for c in capabilities)


def _capabilities(profile: Profile, gpus: Gpus | None) -> tuple[tuple[int, int], ...]:
    rows = profile.archs if profile.gpus == "later" else _visible(gpus)
    made = []
    for row in rows:
        major, minor = map(number_of, row.partition(".")[::2])
        if major is None or minor is None:
            raise Missing(Text("a GPU says that its compute capability is {row}", row=repr(row)))
        made.append((major, minor))
    return tuple(made)


def _visible(gpus: Gpus | None) -> tuple[str, ...]:
    return tuple(d.capability for d in gpus.visible) if gpus else ()


def _sampler(env: LaunchEnv, vllm: Vllm, capabilities: tuple[tuple[int, int], ...]) -> bool:
    if capabilities and all(c < _SAMPLER_FROM for c in capabilities):
        return False
    value = env.get("VLLM_USE_FLASHINFER_SAMPLER")
    if value is not None:
        return value.strip() != "0"
    if vllm.sampler is None:
        raise Missing(Text("{root}/envs.py does not say which sampler is used", root=vllm.root))
    return vllm.sampler


def nvcc_arch(major: int, minor: int) -> str:
    """FlashInfer's name for a compute capability (flashinfer/compilation_context.py)."""
    if (major, minor) == (12, 0):
        return "120f"
    return f"{major}{minor}{'a' if major >= 9 else ''}"


def _listed(entry: str) -> str | None:
    match = re.fullmatch(r"([0-9]{1,2})\.([0-9])([a-z]?)", entry)
    if match is None:
        return None
    if match[3]:
        return "".join(match.groups())
    return nvcc_arch(int(match[1]), int(match[2]))


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
    base = env.get("FLASHINFER_WORKSPACE_BASE") or env.get("HOME")
    if not base:
        raise Missing(Text("neither HOME nor FLASHINFER_WORKSPACE_BASE is set"), applies=False)
    folder = Path(base) / ".cache/flashinfer" / str(flashinfer.version)
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
