"""The host's compilers and headers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from packaging.version import Version

from doctor import Finding, Fix, Needs, NotApplicable, Severity, Stage, Text, rule
from doctor.consumers.options import GivenOptions
from doctor.consumers.shares import layout_of
from doctor.fit.sizes import GIB
from doctor.fixes import Command, CudaHome, PipInstall, PrependPath, SetVariable, UnsetVariable
from doctor.fixes.recipes import prove_it, use_wheels, without_compiler
from doctor.model import Step
from doctor.probes.driver import Driver
from doctor.probes.host import HostCompilers, Ninja, PythonHeaders
from doctor.probes.interpreter import Interpreter
from doctor.probes.jit import Jit
from doctor.probes.libraries import TritonLibcuda
from doctor.probes.memory import MainMemory
from doctor.probes.proof import Proof
from doctor.probes.served import Profile
from doctor.probes.toolkit import RSQRT_GLIBC, Toolkits, WheelToolkit, minor
from doctor.profile import ServeRequest

_INSTALL_GCC = Fix(
    Text("install the system compilers"),
    (Command("apt-get install gcc g++"),),
    Needs.PERSON,
)


@rule("c-compiler-missing", Severity.ERROR, Stage.HOST_COMPILER)
def c_compiler_missing(
    hosts: HostCompilers, profile: Profile, jit: Jit | None
) -> Iterator[Finding]:
    """No working C or C++ compiler where Triton, Inductor or FlashInfer look for one.

    The server stops with `RuntimeError: Failed to find C compiler`. Triton uses CC, else gcc, else
    clang, to build its launcher, also with --enforce-eager; FlashInfer links with CXX, else c++; on
    a CPU server Inductor compiles C++.

    Fix: If CC or CXX names a compiler that does not exist, removes the variable for the next start.
    Needs no consent.

    Manual: Otherwise install the system's compilers: `apt-get install gcc g++`.

    Sources: triton/runtime/build.py, vllm#2997, vllm#14075

    See also: c-compiler-incomplete, nvcc-host-compiler-missing, python-headers-missing
    """
    gpu = profile.device == "cuda"
    named = hosts.c.name not in ("gcc", "clang")
    if gpu and hosts.c.compiler is None:
        yield Finding(
            Text(
                "Triton finds no working C compiler: {name}: {why}",
                name=hosts.c.name,
                why=hosts.c.error,
            ),
            (Text("Triton uses CC, else gcc, else clang on the server's PATH"),),
            (_unset("CC"),) if named else (_INSTALL_GCC,),
        )
    if hosts.cxx.compiler is None and (jit or not gpu):
        who = "FlashInfer" if gpu else "torch.compile"
        yield Finding(
            Text(
                "{who} finds no working C++ compiler: {name}: {why}",
                who=who,
                name=hosts.cxx.name,
                why=hosts.cxx.error,
            ),
            (),
            (_unset("CXX"),) if hosts.cxx.name != "c++" else (_INSTALL_GCC,),
        )


def _unset(name: str) -> Fix:
    return Fix(
        Text("unset {name}, so that the compiler on PATH is used", name=name),
        (UnsetVariable(name),),
    )


@rule("nvcc-host-compiler-missing", Severity.ERROR, Stage.COMPILE)
def nvcc_host_compiler_missing(hosts: HostCompilers, jit: Jit) -> Finding | None:
    """The host compiler that nvcc is configured to use does not work.

    NVCC_CCBIN, CC, or a -ccbin in NVCC_PREPEND_FLAGS or NVCC_APPEND_FLAGS names a compiler that
    does not exist, or there is no gcc on PATH:
    `nvcc fatal : Failed to preprocess host compiler properties`.

    Manual: Correct the variable that the report names, or install the compilers:
    `apt-get install gcc g++`.

    Sources: flashinfer/jit/cpp_ext.py

    See also: c-compiler-missing, host-gcc-too-new-for-nvcc
    """
    if hosts.nvcc_host.compiler or (hosts.nvcc_host == hosts.c and hosts.c.compiler is None):
        return None
    names = ("NVCC_APPEND_FLAGS", "CC", "NVCC_PREPEND_FLAGS", "NVCC_CCBIN")
    return Finding(
        Text(
            "nvcc finds no working host compiler: {name}: {why}",
            name=hosts.nvcc_host.name,
            why=hosts.nvcc_host.error,
        ),
        (Text("set by one of {names}, or gcc on PATH", names=names),),
        (_INSTALL_GCC,),
    )


@rule("python-headers-missing", Severity.ERROR, Stage.HOST_COMPILER)
def python_headers_missing(headers: PythonHeaders, interpreter: Interpreter) -> Finding | None:
    """Python.h for the server's interpreter is not installed.

    The server stops with `cuda_utils.c:6:10: fatal error: Python.h: No such file or directory`:
    Triton compiles a Python extension. Headers of another Python minor, or inside the virtual
    environment, do not help: the interpreter itself says where its headers are.

    Manual: Install the headers of exactly this Python (`apt-get install python3.12-dev`), or
    recreate the environment with a Python that includes them
    (`uv venv --managed-python --python 3.12`).

    Sources: sysconfig (the include path), vllm#27890, sglang#18644

    See also: triton-host-build-failed, c-compiler-missing
    """
    release = f"{interpreter.version.major}.{interpreter.version.minor}"
    if headers.found and headers.version in (None, interpreter.version):
        return None
    if headers.found and headers.version and minor(headers.version) == release:
        return None
    message = Text("no Python.h in {folder}", folder=headers.folder)
    if headers.found:
        message = Text(
            "{folder} contains the headers of Python {other}, not {release}",
            folder=headers.folder,
            other=headers.version,
            release=release,
        )
    system = Fix(
        Text("install the headers of this Python version"),
        (Command(f"apt-get install python{release}-dev"),),
        Needs.PERSON,
    )
    anew = Fix(
        Text("recreate the environment with a Python that includes its headers"),
        (Command(f"uv venv --managed-python --python {release}"),),
        Needs.PERSON,
    )
    return Finding(
        message,
        (Text("Python {version} looks for its headers there", version=interpreter.version),),
        (*((system,) if Path("/usr") in headers.folder.parents else ()), anew),
    )


@rule("triton-libcuda-unlinkable", Severity.ERROR, Stage.HOST_COMPILER)
def triton_libcuda_unlinkable(
    driver: Driver, triton: TritonLibcuda, kit: WheelToolkit | None
) -> Iterator[Finding]:
    """The linker cannot find the driver's libcuda, which Triton links against.

    The server stops with `libcuda.so cannot found!`, or with `/usr/bin/ld: cannot find -lcuda`
    while cuda_utils.c is built (the -lcuda of FlashInfer is reported as pip-toolkit-lib-layout).
    Triton searches TRITON_LIBCUDA_PATH, else `ldconfig -p`, else LD_LIBRARY_PATH. From release 3.6
    on it links libcuda.so.1 and needs no libcuda.so. A 32-bit library does not count.

    Fix: Saves TRITON_LIBCUDA_PATH for the next start; for Triton before 3.6 it points to a CUDA
    home with a libcuda.so link, which the fix creates. Needs no consent.

    Manual: Put a link libcuda.so to the driver's libcuda.so.1 into a folder and name that folder in
    TRITON_LIBCUDA_PATH. Never put stubs on LD_LIBRARY_PATH.

    Sources: triton/backends/nvidia/driver.py, vllm#16984, triton#8667, pytorch#103417

    See also: pip-toolkit-lib-layout, triton-host-build-failed
    """
    real = driver.libcuda.path
    if triton.found or real is None:
        return
    steps: tuple[Step, ...] = (SetVariable("TRITON_LIBCUDA_PATH", str(real.parent)),)
    if triton.library == "libcuda.so" and kit:
        stubs = kit.home / "lib64/stubs"
        steps = (
            CudaHome(kit.home, kit.root, real),
            SetVariable("TRITON_LIBCUDA_PATH", str(stubs)),
        )
    yield Finding(
        Text("Triton finds no {library} to link with", library=triton.library),
        (
            Text("the driver's library is {path}", path=real),
            Text("Triton searched {by}: {folders}", by=triton.searched, folders=triton.folders),
        ),
        (Fix(Text("set the folder where Triton looks for it"), steps),),
    )


@rule("ninja-missing", Severity.ERROR, Stage.TOOLKIT)
def ninja_missing(ninja: Ninja, jit: Jit) -> Finding | None:
    """FlashInfer runs `ninja` by name, and it is not on PATH.

    The server stops with `FileNotFoundError: [Errno 2] No such file or directory: 'ninja'`. An
    installed ninja wheel is not enough: the environment's bin folder must be on the PATH that the
    server is started with, which it is not where python or vllm is called by its absolute path
    (systemd, Ray, Slurm).

    Fix: Saves a PATH that begins with the environment's bin folder for the next start; if ninja is
    not installed at all, installs its wheel. Needs `--allow running` only for the install while a
    process uses the environment.

    Manual: `export PATH=/path/to/env/bin:$PATH` where the server is started.

    Sources: flashinfer/jit/cpp_ext.py, LMCache#1925, flashinfer#3386

    See also: nvcc-missing
    """
    if ninja.found:
        return None
    if ninja.beside:
        return Finding(
            Text("ninja is in {folder}, which is not on PATH", folder=ninja.beside.parent),
            (Text("a server started by its full path would not find it"),),
            (
                Fix(
                    Text("add the environment's bin folder to PATH"),
                    (PrependPath("PATH", ninja.beside.parent),),
                ),
            ),
        )
    return Finding(
        Text("no ninja on PATH or in the environment"),
        (),
        (Fix(Text("install it"), (PipInstall(("ninja",)),)),),
    )


@rule("host-gcc-too-new-for-nvcc", Severity.ERROR, Stage.COMPILE)
def host_gcc_too_new_for_nvcc(
    hosts: HostCompilers, toolkits: Toolkits, kit: WheelToolkit, proof: Proof | None
) -> Finding | None:
    """The host compiler is newer than nvcc supports.

    The build stops with `#error -- unsupported GNU version! gcc versions later than 12 are not
    supported!`. The limit is defined in the toolkit's own crt/host_config.h. A warning if the check
    is switched off in nvcc's flags.

    Fix: If the toolkit is not the one from the wheels, same fix as nvcc-missing.

    Manual: Install a compiler that this nvcc supports and pass it to nvcc:
    `apt-get install g++-12`, then `export NVCC_APPEND_FLAGS='-ccbin /usr/bin/g++-12'` (the last
    -ccbin wins, and FlashInfer's own, from CC, comes before it).

    Sources: crt/host_config.h of the CUDA toolkit, vllm#44985

    See also: nvcc-host-compiler-missing, glibc-headers-vs-cuda
    """
    found, host = toolkits.found, hosts.nvcc_host.compiler
    if found is None or found.nvcc is None or host is None or (proof and proof.ok):
        return None
    gcc = host.family == "gcc"
    limit = found.gcc_most if gcc else found.clang_below
    if limit is None or host.version.major <= (limit if gcc else limit - 1):
        return None
    most = limit if gcc else limit - 1
    evidence = Text("crt/host_config.h of {root}: at most {most}", root=found.root, most=most)
    newest = found.gcc_most or most
    older = Fix(
        Text("make nvcc use an older compiler"),
        (
            Command(f"apt-get install g++-{newest}"),
            # The last -ccbin wins, and FlashInfer's own (CC) stands before this one.
            SetVariable("NVCC_APPEND_FLAGS", f"-ccbin /usr/bin/g++-{newest}"),
        ),
        Needs.PERSON,
    )
    return Finding(
        Text(
            "nvcc {nvcc} does not support {family} {version} ({path})",
            nvcc=minor(found.nvcc),
            family=host.family,
            version=host.version,
            path=host.path,
        ),
        (evidence,),
        (older, *(() if found.from_wheels else use_wheels(kit))),
        Severity.WARNING if hosts.unsupported_allowed else None,
    )


@rule("glibc-headers-vs-cuda", Severity.ERROR, Stage.COMPILE)
def glibc_headers_vs_cuda(
    hosts: HostCompilers, toolkits: Toolkits, kit: WheelToolkit, proof: Proof | None
) -> Iterator[Finding]:
    """CUDA's headers conflict with the math declarations of this glibc.

    The build stops with `exception specification is incompatible with that of previous function
    "rsqrt"`: glibc 2.42 declares rsqrt noexcept, and CUDA's headers before 13.2 do not (glibc 2.41:
    sinpi, with CUDA 12). The declarations in the toolkit's crt/math_functions.h decide, since
    patched headers work. Only a warning: FlashInfer passes the toolkit's headers with -isystem, and
    a simulated glibc 2.42 compiled with CUDA 13.0 all the same. `--deep` decides.

    Fix: Only the workaround, where it is enough: saves VLLM_USE_FLASHINFER_SAMPLER=0 for the next
    start. Needs no consent.

    Manual: Use a CUDA toolkit 13.2 or newer with its own headers
    (`apt-get install cuda-toolkit-13-2`), and verify it with `vllm-doctor diagnose --deep`.

    Workaround: `VLLM_USE_FLASHINFER_SAMPLER=0`, and `--moe-backend triton` for a mixture of experts
    where FlashInfer would compile it: vLLM's own kernels, slower. Not enough where attention itself
    is compiled.

    Sources: crt/math_functions.h of the CUDA toolkit, llama.cpp#17615, opencv#27111

    See also: host-gcc-too-new-for-nvcc, nvcc-header-version-skew
    """
    host = hosts.nvcc_host.compiler
    found, wheels = toolkits.found, toolkits.wheels
    if host is None or host.glibc is None or (proof and proof.ok):
        return
    for one in (found, wheels):
        if one is None or one.nvcc is None:
            continue
        wrong = []
        if host.glibc >= RSQRT_GLIBC and one.rsqrt_guarded is False:
            wrong.append("rsqrt")
        if host.glibc >= SINPI_GLIBC and one.sinpi_guarded is False:
            wrong.append("sinpi")
        if not wrong:
            continue
        newer = Fix(
            Text("use a CUDA toolkit 13.2 or newer with its own headers"),
            (Command("apt-get install cuda-toolkit-13-2"),),
            Needs.PERSON,
        )
        candidate = one is wheels and found is not None and found.nvcc is not None
        yield Finding(
            Text(
                "the CUDA {cuda} headers in {root} may not compile with glibc {glibc}",
                cuda=minor(one.headers),
                root=one.root,
                glibc=host.glibc,
            ),
            (Text("crt/math_functions.h declares {names} without noexcept", names=wrong),),
            (newer, *without_compiler(kit), prove_it()),
            Severity.INFO if candidate else Severity.WARNING,
        )


SINPI_GLIBC = Version("2.41")


@rule("host-oom-killed", Severity.ERROR, Stage.GPUS)
def host_oom_killed(
    memory: MainMemory, profile: Profile, request: ServeRequest
) -> Iterator[Finding]:
    """The kernel killed a process because host memory ran out.

    Main memory ran out, or the container's limit was reached: most often while every rank reads its
    shards. There is no traceback, only SIGKILL (exit code -9, or 137 of a container). The kernel
    log ("Out of memory: Killed process") and oom_kill in the cgroup's memory.events prove it; a
    manual kill -9 looks the same in the server's log. Exit code -15, or "died unexpectedly" alone,
    is not this: it also follows the real error of another rank.

    Before a start only that is counted which was asked to stay in main memory: `--cpu-offload-gb`
    of each rank (no more than there are weights) and `--kv-offloading-size`. Shards are not: they
    are mapped, and the kernel takes those pages back. A warning if it is more than is available
    now; an error if it is more than the machine with its swap, or the control group's limit, has at
    all. That the kernel has killed processes of this control group before is only mentioned.

    Manual: Raise the container's limit (`docker run --memory=...`, `MemoryMax=` in systemd), keep
    less in main memory (`--set cpu_offload_gb=N`), or use a machine with more.

    Sources: vllm/config/offload.py and cache.py (0.33.0), cgroups(7), vllm#3895, vllm#1765,
    vllm#15800

    See also: jit-oom-parallelism, worker-failed, process-exited
    """
    if request.command and request.command.container:
        raise NotApplicable(Text("the container may have limits of its own"))
    needed = _kept(profile)
    if needed:
        yield from _too_little_memory(needed, memory)
    if memory.oom_kills:
        yield Finding(
            Text(
                "the kernel has killed {count} processes of this control group for want of memory",
                count=memory.oom_kills,
            ),
            (Text("since the group was made; it says nothing of this server"),),
            severity=Severity.INFO,
        )


def _kept(profile: Profile) -> float:
    """What the ranks here were told to keep in main memory, in GiB."""
    layout, given = layout_of(profile), GivenOptions(profile.options)
    if layout.elsewhere:
        raise NotApplicable(layout.elsewhere)
    each = given.amount("cpu_offload_gb")
    if (weights := profile.needs.weights_gib) is not None:
        each = min(each, weights / (layout.tensor * layout.pipeline))
    return each * layout.ranks + given.amount("kv_offloading_size")


def _too_little_memory(needed: float, memory: MainMemory) -> Iterator[Finding]:
    group = memory.group
    rows = [(memory.total, memory.available, Text("this machine"))]
    if group:
        rows.append((group.limit, group.free, Text("the control group {path}", path=group.path)))
    most, free, where = min(rows, key=lambda row: row[1])
    error = any(needed * GIB > limit + memory.swap for limit, _, _ in rows)
    if not error and needed * GIB <= free:
        return
    yield Finding(
        Text(
            "--cpu-offload-gb and --kv-offloading-size need {needed} GiB of main memory; "
            "{where} has {free} of {most} GiB available",
            needed=f"{needed:.1f}",
            where=where,
            free=f"{free / GIB:.1f}",
            most=f"{most / GIB:.1f}",
        ),
        (),
        (Fix(Text("raise the limit, or keep less in main memory"), (), Needs.PERSON),),
        None if error else Severity.WARNING,
    )
