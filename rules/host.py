"""The host's compilers and headers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from packaging.version import Version

from doctor import Finding, Fix, Needs, Severity, Stage, Text, rule
from doctor.fixes import Command, CudaHome, PipInstall, PrependPath, SetVariable, UnsetVariable
from doctor.fixes.recipes import prove_it, use_wheels, without_compiler
from doctor.model import Step
from doctor.probes.driver import Driver
from doctor.probes.host import HostCompilers, Ninja, PythonHeaders
from doctor.probes.interpreter import Interpreter
from doctor.probes.jit import Jit
from doctor.probes.libraries import TritonLibcuda
from doctor.probes.proof import Proof
from doctor.probes.toolkit import RSQRT_GLIBC, Toolkits, WheelToolkit, minor
from doctor.profile import Profile

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

    `RuntimeError: Failed to find C compiler`. Triton takes CC, else gcc, else clang, to build its
    launcher, also with --enforce-eager; FlashInfer links with CXX, else c++; a CPU server's
    Inductor compiles C++.
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
    """The host compiler that nvcc is told to use does not work.

    NVCC_CCBIN, CC, or a -ccbin in nvcc's own variables names a compiler that is gone:
    `nvcc fatal : Failed to preprocess host compiler properties`.
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
    """Python.h of the target's interpreter is not installed.

    `cuda_utils.c:6:10: fatal error: Python.h: No such file or directory`: Triton compiles a Python
    extension. Headers of another minor, or in the venv, do not help: the interpreter says where it
    looks.
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
    triton: TritonLibcuda, driver: Driver, kit: WheelToolkit | None
) -> Iterator[Finding]:
    """The driver's libcuda is there, and the linker cannot find it.

    `libcuda.so cannot found!`, or `/usr/bin/ld: cannot find -lcuda` while cuda_utils.c is built
    (FlashInfer's own -lcuda is told by pip-toolkit-lib-layout). Triton searches
    TRITON_LIBCUDA_PATH, else `ldconfig -p`, else LD_LIBRARY_PATH. Releases from 3.6 on link
    libcuda.so.1 itself and need no libcuda.so; a 32-bit library is none.
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
    """FlashInfer starts `ninja` by name, and PATH has none.

    `FileNotFoundError: [Errno 2] No such file or directory: 'ninja'`. The wheel being installed is
    not enough: the environment's bin folder has to be on the PATH that the server is started with,
    which it is not where python or vllm is called by its absolute path (systemd, Ray, slurm).
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
    """nvcc refuses the host compiler: it is newer than the toolkit knows.

    `#error -- unsupported GNU version! gcc versions later than 12 are not supported!`. The limit
    stands in the toolkit's own crt/host_config.h.
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
    """The C library's headers declare functions otherwise than CUDA's headers do.

    `exception specification is incompatible with that of previous function "rsqrt"`: glibc 2.42
    declares rsqrt noexcept, and CUDA's headers before 13.2 do not (2.41: sinpi, CUDA 12). Judged by
    the declarations in the toolkit's crt/math_functions.h, since patched headers work. A warning
    only: FlashInfer names the toolkit's headers with -isystem, and an imitation of glibc 2.42 then
    compiled with 13.0 all the same. `--deep` decides.
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
