"""The CUDA toolkit that FlashInfer compiles with."""

from __future__ import annotations

import re
from collections.abc import Iterator

from packaging.version import Version

from doctor import Finding, Fix, Missing, Needs, Severity, Stage, Text, rule
from doctor.consumers.flashinfer import HomeFrom
from doctor.fixes import Command, CudaHome, SetVariable, UnsetVariable
from doctor.fixes.recipes import prove_it, use_wheels
from doctor.probes.cuda_home import HomeOfLinks
from doctor.probes.environment import LaunchEnv
from doctor.probes.host import nvcc_flags
from doctor.probes.interpreter import Interpreter
from doctor.probes.jit import Jit
from doctor.probes.kernel_cache import KernelCache
from doctor.probes.proof import Proof
from doctor.probes.toolkit import (
    MeasuredMixes,
    NvccOptions,
    Toolkit,
    Toolkits,
    WheelToolkit,
    minor,
)
from doctor.probes.wheels import FlashInfer, Torch

# What ninja and a shell take as it stands; a colon ends a path in ninja's rules.
SHELL_SAFE = re.compile(r"[\w@%+=,./~-]*")


def usable(kit: Toolkit | None, mixes: MeasuredMixes) -> bool:
    """FlashInfer can compile and link with it."""
    if kit is None or kit.nvcc is None or kit.nvvm_error:
        return False
    if kit.missing_headers or kit.missing_libraries:
        return False
    return minor(kit.headers) == minor(kit.nvcc) and (coherent(kit) or mixes.of(kit)[0] != "fails")


def coherent(kit: Toolkit) -> bool:
    """All parts are there and of one minor; a crt that no wheel owns came with its nvcc."""
    return kit.nvvm_error is None and len({minor(p) for p in kit.parts if p}) <= 1


def judged(
    toolkits: Toolkits, mixes: MeasuredMixes, proof: Proof | None
) -> Iterator[tuple[Toolkit, Severity | None]]:
    """Each toolkit that has an nvcc, and the severity of its faults where it is not the rule's: a
    fault of the candidate in the wheels matters where FlashInfer finds nothing better, and one of
    a toolkit that has just built, linked and loaded a kernel cannot be an error."""
    proven = proof is not None and proof.ok
    if toolkits.found and toolkits.found.nvcc:
        yield toolkits.found, Severity.INFO if proven else None
    if toolkits.wheels and toolkits.wheels.nvcc:
        good = proven or usable(toolkits.found, mixes)
        yield toolkits.wheels, Severity.INFO if good else None


def unless_unused(severity: Severity | None, fixes: tuple[Fix, ...]) -> tuple[Fix, ...]:
    """A fault that keeps nothing from working is reported, and not fixed."""
    return () if severity is Severity.INFO else fixes


@rule("cuda-home-bad-path", Severity.ERROR, Stage.TOOLKIT)
def cuda_home_bad_path(toolkits: Toolkits, kit: WheelToolkit) -> Iterator[Finding]:
    """CUDA_HOME (or CUDA_PATH) is not a usable folder with bin/nvcc.

    FlashInfer uses CUDA_HOME, else CUDA_PATH, unchecked: a list of folders, a trailing /bin or a
    folder that does not exist ends in `/bin/sh: .../bin/nvcc: not found`. It also writes the path
    unquoted into the shell commands that ninja runs, so a space breaks them.

    Fix: Same fix as nvcc-missing, or removes the variable for the next start so that FlashInfer
    searches PATH and /usr/local/cuda. Needs `--allow running` only for an install while a process
    uses the environment.

    Manual: Set CUDA_HOME to one existing folder that contains bin/nvcc.

    Sources: flashinfer/jit/cpp_ext.py (get_cuda_path), vllm#36077

    See also: nvcc-missing, path-not-shell-safe
    """
    found = toolkits.found
    name = found.found_by.variable if found else None
    if found is None or name is None:
        return
    # CUDA_PATH= leads FlashInfer to /bin/nvcc.
    value = "" if found.found_by is HomeFrom.EMPTY_CUDA_PATH else str(found.root)
    if ":" in value:
        why = Text("a list of folders; it must be one folder")
    elif not SHELL_SAFE.fullmatch(value):
        why = Text("FlashInfer passes it to a shell unquoted")
    elif value and not value.startswith("/"):
        why = Text("not an absolute path")
    elif found.nvcc_missing and found.compiler == found.root / "bin/nvcc":
        why = Text("{nvcc} does not exist", nvcc=found.compiler)
    else:
        return
    yield Finding(
        Text("{name}={value}: {why}", name=name, value=value, why=why),
        evidence=(Text("FlashInfer would run {nvcc}", nvcc=found.compiler),),
        fixes=(
            *use_wheels(kit, install=not _ready(toolkits.wheels)),
            Fix(
                Text("unset it, so that FlashInfer searches for nvcc itself"),
                (UnsetVariable(name),),
            ),
        ),
    )


def _ready(wheels: Toolkit | None) -> bool:
    return wheels is not None and coherent(wheels) and not wheels.missing_headers


@rule("path-not-shell-safe", Severity.ERROR, Stage.TOOLKIT)
def path_not_shell_safe(
    flashinfer: FlashInfer, interpreter: Interpreter, cache: KernelCache, jit: Jit
) -> Finding | None:
    """A path contains characters that break FlashInfer's build commands.

    The build stops with `ninja: error: '/tmp/a', needed by ..., missing`: FlashInfer writes its own
    folder, the folder of Python's headers and its cache unquoted into a ninja file and so into
    shell commands. A space, a bracket or a quote in one of them breaks every build.

    Manual: Recreate the environment in a folder with a plain name; if only the kernel cache is
    affected, `export FLASHINFER_WORKSPACE_BASE=/a/plain/folder`.

    Sources: flashinfer/jit/cpp_ext.py

    See also: cuda-home-bad-path
    """
    paths = {
        flashinfer.root: Text("FlashInfer: {path}", path=flashinfer.root),
        interpreter.include: Text("Python's headers: {path}", path=interpreter.include),
        cache.folder: Text("the kernel cache: {path}", path=cache.folder),
    }
    bad = [path for path in paths if not SHELL_SAFE.fullmatch(str(path))]
    if not bad:
        return None
    fix = Fix(
        Text("recreate the environment at a path without special characters"),
        (Command("python3 -m venv ~/vllm-env"),),
        Needs.PERSON,
    )
    if bad == [cache.folder]:
        fix = Fix(
            Text("move the cache to a path without special characters"),
            (Command("export FLASHINFER_WORKSPACE_BASE=/a/folder/of/yours"),),
            Needs.PERSON,
        )
    return Finding(
        Text("FlashInfer cannot build kernels below {path}", path=bad[0]),
        tuple(paths[path] for path in bad),
        (fix,),
    )


@rule("nvcc-missing", Severity.ERROR, Stage.TOOLKIT)
def nvcc_missing(toolkits: Toolkits, kit: WheelToolkit) -> Iterator[Finding]:
    """FlashInfer finds no nvcc to compile its kernels with.

    The wheels contain CUDA's runtime, and FlashInfer compiles its sampler at the first start of the
    server: `Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist`. It uses
    CUDA_HOME, else CUDA_PATH, else the nvcc on PATH, else /usr/local/cuda. It never looks into the
    wheels in site-packages, and a /usr/local/cuda without bin/nvcc (a runtime image) passes its
    check and fails later with `nvcc: not found`. flashinfer-cubin does not replace nvcc: it does
    not contain the sampler.

    Fix: Installs the compiler wheels of torch's own CUDA release
    (`cuda-toolkit[cccl,crt,cudart,curand,nvcc,nvvm]`) if they are missing or mixed, creates a CUDA
    home of links to them, and saves CUDA_HOME and PATH for the next start. Needs `--allow running`
    only for the install while a process uses the environment. For torch on CUDA 12 there is no
    wheel with nvcc: manual.

    Manual: For CUDA 12 install the toolkit of torch's minor (`apt-get install cuda-toolkit-12-8`,
    or conda) and set CUDA_HOME, or install FlashInfer's prebuilt kernels (`flashinfer-jit-cache`)
    from its own index. vLLM 0.33 and newer fetch those with `vllm download-kernels`; nothing is
    compiled then.

    Workaround: `VLLM_USE_FLASHINFER_SAMPLER=0`, and `--moe-backend triton` for a mixture of experts
    where FlashInfer would compile it: vLLM's own kernels, slower. Not enough where attention itself
    is compiled.

    Sources: flashinfer/jit/cpp_ext.py (get_cuda_path), docs.flashinfer.ai (installation),
    vllm#21960, vllm#49497, vllm#26642

    See also: nvcc-header-version-skew, pip-toolkit-lib-layout, cuda-home-bad-path,
    nvcc-wrapper-root
    """
    found, wheels = toolkits.found, toolkits.wheels
    if found is None:
        message = Text("FlashInfer finds no nvcc")
    elif found.nvcc is None and not (
        found.found_by.variable and found.nvcc_missing and found.compiler == found.root / "bin/nvcc"
    ):
        message = Text("{nvcc} does not work: {why}", nvcc=found.compiler, why=found.nvcc_error)
        if found.nvcc_missing:
            message = Text("{nvcc} does not exist", nvcc=found.compiler)
    else:
        return
    evidence = [toolkits.searched]
    if wheels and wheels.nvcc:
        evidence.append(
            Text(
                "nvcc {version} is in {root}, where FlashInfer does not search",
                version=minor(wheels.nvcc),
                root=wheels.root,
            )
        )
    yield Finding(message, tuple(evidence), use_wheels(kit, install=not _ready(wheels)))


@rule("nvcc-wrapper-root", Severity.ERROR, Stage.TOOLKIT)
def nvcc_wrapper_root(toolkits: Toolkits, kit: WheelToolkit) -> Iterator[Finding]:
    """The nvcc on PATH is a wrapper or link, so FlashInfer uses the wrong toolkit root.

    FlashInfer uses the folder two levels above `which nvcc`, without following links or wrappers.
    With /usr/local/bin/nvcc that makes /usr/local the toolkit: nvcc runs, but there are no headers
    and no libraries.

    Fix: Saves CUDA_HOME with the toolkit that the wrapper starts, for the next start; if that one
    is incomplete or unknown, same fix as nvcc-missing. Setting the variable needs no consent.

    Manual: `export CUDA_HOME=` the real toolkit, the folder that contains bin/nvcc, include and
    lib64.

    Sources: flashinfer/jit/cpp_ext.py (get_cuda_path)

    See also: nvcc-missing, cuda-headers-missing
    """
    found = toolkits.found
    if found is None or not _is_wrapper_root(found):
        return
    real = found.top if found.wrapper else found.real
    real = None if real == found.root else real
    evidence = [toolkits.searched]
    fixes: tuple[Fix, ...] = use_wheels(kit, install=not _ready(toolkits.wheels))
    if real:
        evidence.append(Text("it runs the nvcc of {top}", top=real))
        own = Fix(
            Text("set CUDA_HOME to that toolkit"),
            (SetVariable("CUDA_HOME", str(real)),),
        )
        # A wrapped nvcc has brought its headers along: what is missing here is missing there.
        fixes = fixes if found.wrapper and found.missing_headers else (own, *fixes)
    yield Finding(
        Text(
            "FlashInfer takes {root} for the CUDA toolkit, but it contains none",
            root=found.root,
        ),
        tuple(evidence),
        fixes,
    )


def _is_wrapper_root(kit: Toolkit) -> bool:
    """The root came from PATH, has no headers of its own, and a build would miss something."""
    elsewhere = kit.include is None or (kit.wrapper and kit.top != kit.root)
    broken = kit.missing_headers or "cudart" in kit.missing_libraries
    return bool(kit.found_by is HomeFrom.PATH and kit.nvcc and elsewhere and broken)


@rule("cuda-headers-missing", Severity.ERROR, Stage.COMPILE)
def cuda_headers_missing(
    toolkits: Toolkits, kit: WheelToolkit, mixes: MeasuredMixes, proof: Proof | None
) -> Iterator[Finding]:
    """The toolkit has nvcc but not the CUDA headers that FlashInfer includes.

    The build stops with `fatal error: curand.h: No such file or directory`: nvcc was installed
    without the development packages (apt's cuda-nvcc, a runtime image, conda). The headers in the
    wheels are not on nvcc's include path, and putting them there with CPATH breaks an nvcc of
    another minor.

    Fix: Same fix as nvcc-missing.

    Manual: Install the missing package of the system, for CUDA 13.0
    `apt-get install libcurand-dev-13-0`.

    Sources: flashinfer/sampling.cuh, flashinfer#4410, vllm#29590

    See also: nvcc-missing, nvcc-header-version-skew
    """
    for one, severity in judged(toolkits, mixes, proof):
        if not one.missing_headers or _is_wrapper_root(one):
            continue
        release = minor(one.nvcc)
        fixes = use_wheels(kit, install=one is toolkits.wheels or not _ready(toolkits.wheels))
        if not one.from_wheels and "curand.h" in one.missing_headers and release:
            package = f"libcurand-dev-{release.replace('.', '-')}"
            manual = Text("install the missing system package")
            line = Command(f"apt-get install {package}")
            fixes = (*fixes, Fix(manual, (line,), Needs.PERSON))
        yield Finding(
            Text("{root} has no {headers}", root=one.root, headers=one.missing_headers),
            (Text("nvcc {nvcc} is present ({by})", nvcc=one.nvcc, by=one.found_by),),
            unless_unused(severity, fixes),
            severity,
        )


@rule("nvcc-header-version-skew", Severity.ERROR, Stage.COMPILE)
def nvcc_header_version_skew(
    toolkits: Toolkits,
    kit: WheelToolkit,
    mixes: MeasuredMixes,
    env: LaunchEnv,
    proof: Proof | None,
) -> Iterator[Finding]:
    """nvcc and the CUDA headers it includes are of different minor releases.

    CCCL compares nvcc's major.minor with CUDART_VERSION of the first cuda_runtime_api.h on the
    include path and stops: `CUDA compiler and CUDA toolkit headers are incompatible`. A fresh
    `pip install vllm` causes this today: nothing pins nvcc, torch pins the headers (vLLM 0.22.0:
    nvcc 13.5 over headers 13.0). torch.version.cuda does not matter: a toolkit 13.2 with its own
    headers works with torch for CUDA 13.0. A warning if CCCL's check is switched off in nvcc's
    flags.

    Fix: If CPATH brings the wrong headers, saves CPATH without that folder for the next start;
    otherwise same fix as nvcc-missing: all compiler wheels of the release of torch's headers.

    Manual: Install nvcc, crt, nvvm and the headers of one minor:
    `pip install "cuda-toolkit[cccl,crt,cudart,curand,nvcc,nvvm]==13.0.2"`. Pin the compiler down to
    the headers, never the headers up: torch depends on them.

    Sources: CCCL cuda/std/__cccl/cuda_toolkit.h, 45 test builds with nvcc 13.0 / 13.2 / 13.5,
    vllm#44305, flashinfer#3493

    See also: nvvm-ptxas-skew, crt-skew, nvcc-missing, pip-toolkit-lib-layout
    """
    unchecked = any("CCCL_DISABLE_CTK_COMPATIBILITY_CHECK" in word for word in nvcc_flags(env))
    for one, severity in judged(toolkits, mixes, proof):
        if one.headers is None or minor(one.headers) == minor(one.nvcc):
            continue
        yield Finding(
            Text(
                "nvcc {nvcc} cannot use the CUDA {headers} headers in {include}",
                nvcc=minor(one.nvcc),
                headers=minor(one.headers),
                include=one.include,
            ),
            (
                Text("the toolkit: {root} ({by})", root=one.root, by=one.found_by),
                Text("nvcc --version: {nvcc}", nvcc=one.nvcc),
                Text("cuda_runtime_api.h: CUDA {headers}", headers=minor(one.headers)),
            ),
            unless_unused(severity, (*_without_cpath(one, env), *use_wheels(kit, install=True))),
            severity or (Severity.WARNING if unchecked else None),
        )


def _without_cpath(kit: Toolkit, env: LaunchEnv) -> tuple[Fix, ...]:
    """Where CPATH brings the wrong headers, reinstalling the right ones does not help."""
    folders = env.folders("CPATH")
    if kit.include not in folders:
        return ()
    rest = ":".join(str(f) for f in folders if f != kit.include)
    step = SetVariable("CPATH", rest) if rest else UnsetVariable("CPATH")
    return (Fix(Text("remove {folder} from CPATH", folder=kit.include), (step,)),)


def _skew(
    one: Toolkit,
    severity: Severity | None,
    mixes: MeasuredMixes,
    part: str,
    version: Version,
    kit: WheelToolkit,
) -> Finding | None:
    """The finding about one compiler part of another minor than nvcc's."""
    if minor(version) == minor(one.nvcc):
        return None
    verdict, words = mixes.of(one)
    fixes = use_wheels(kit, install=True)
    if verdict == "fails":
        said = Text("this combination was tested and fails: {words}", words=words)
    elif verdict == "compiles":
        said = Text("this combination was tested and works")
    else:
        said = Text("this combination is untested")
        fixes = (*fixes, prove_it())
    milder = None if verdict == "fails" else Severity.WARNING
    return Finding(
        Text(
            "{part} {version} does not match nvcc {nvcc}",
            part=part,
            version=version,
            nvcc=one.nvcc,
        ),
        (Text("the toolkit: {root} ({by})", root=one.root, by=one.found_by), said),
        unless_unused(severity, fixes),
        severity or milder,
    )


@rule("nvvm-ptxas-skew", Severity.ERROR, Stage.COMPILE)
def nvvm_ptxas_skew(
    toolkits: Toolkits, kit: WheelToolkit, mixes: MeasuredMixes, proof: Proof | None
) -> Iterator[Finding]:
    """cicc (nvidia-nvvm) is of a different minor release than nvcc and ptxas.

    The build stops with `ptxas fatal : Unsupported .version 9.5; current version is '9.0'`. cicc
    generates the PTX that ptxas assembles. The nvcc wheel requires nvidia-nvvm without a version,
    so `pip install cuda-toolkit[nvcc]==13.0.2` installs nvcc 13.0 and the newest nvvm, while
    `nvcc --version` and torch both say 13.0. An error for a mix that was measured to fail, a
    warning for one that was measured to compile or never tried.

    Fix: Same fix as nvcc-missing: all compiler wheels of one release.

    Manual: `pip install nvidia-nvvm==VERSION` with the version of nvidia-cuda-nvcc, or verify the
    mix with `vllm-doctor diagnose --deep`.

    Sources: Requires-Dist of nvidia-cuda-nvcc, 45 test builds with nvcc 13.0 / 13.2 / 13.5,
    FreeToken#167

    See also: nvcc-header-version-skew, crt-skew
    """
    for one, severity in judged(toolkits, mixes, proof):
        if _is_wrapper_root(one):
            continue
        if one.nvvm is None and not one.nvvm_error and not (proof and proof.ok):
            raise Missing(
                Text(
                    "the version of {top}/nvvm/bin/cicc is unknown: it belongs to the environment "
                    "but to no wheel, and such programs are not run",
                    top=one.top,
                )
            )
        if one.nvvm is None and one.nvvm_error:
            yield Finding(
                Text("nvcc {nvcc} has no working cicc: {why}", nvcc=one.nvcc, why=one.nvvm_error),
                (Text("{top}/nvvm/bin/cicc", top=one.top),),
                unless_unused(severity, use_wheels(kit, install=True)),
                severity,
            )
        elif one.nvvm and (found := _skew(one, severity, mixes, "cicc", one.nvvm, kit)):
            yield found


@rule("crt-skew", Severity.ERROR, Stage.COMPILE)
def crt_skew(
    toolkits: Toolkits, kit: WheelToolkit, mixes: MeasuredMixes, proof: Proof | None
) -> Iterator[Finding]:
    """The crt headers (nvidia-cuda-crt) are of a different minor release than nvcc.

    The build stops with `macro "__cudaLaunch" passed 2 arguments, but takes just 1`: the code that
    cicc (nvidia-nvvm) generates must match the crt headers, and the macro changed between 13.0 and
    13.1; later minors mix. The nvcc wheel requires both without a version.

    Fix: Same fix as nvcc-missing: all compiler wheels of one release.

    Manual: `pip install nvidia-cuda-crt==VERSION` with the version of nvidia-cuda-nvcc, or verify
    the mix with `vllm-doctor diagnose --deep`.

    Sources: Requires-Dist of nvidia-cuda-nvcc, 45 test builds with nvcc 13.0 / 13.2 / 13.5,
    FreeToken#167

    See also: nvvm-ptxas-skew, nvcc-header-version-skew
    """
    for one, severity in judged(toolkits, mixes, proof):
        if one.crt and (found := _skew(one, severity, mixes, "crt", one.crt, kit)):
            yield found


@rule("nvcc-too-old-for-arch", Severity.ERROR, Stage.COMPILE)
def nvcc_too_old_for_arch(
    toolkits: Toolkits, kit: WheelToolkit, mixes: MeasuredMixes, jit: Jit, proof: Proof | None
) -> Iterator[Finding]:
    """nvcc does not support a GPU architecture it has to compile for.

    The build stops with `nvcc fatal : Unsupported gpu architecture 'compute_90a'`: a distribution's
    old nvcc, or a new one that has dropped an old GPU. FLASHINFER_CUDA_ARCH_LIST, if set, decides
    what is compiled for, not the GPUs. On capability 12.x a vLLM that falls back to its own sampler
    makes it a warning.

    Fix: Same fix as nvcc-missing.

    Manual: Set CUDA_HOME to a toolkit that supports the GPU: 12.0 or newer for 90a, 12.8 for 100a,
    12.9 for 120f and 121a.

    Sources: `nvcc --list-gpu-arch`, CUDA release notes, flashinfer#1657, jetson-containers#1186

    See also: sm12x-nvcc-below-12-9, nvcc-too-old-for-flags, no-kernel-image
    """
    for one, severity in judged(toolkits, mixes, proof):
        if one.archs is None:
            if one is toolkits.found and not (proof and proof.ok):
                raise Missing(Text("{nvcc} does not list its architectures", nvcc=one.compiler))
            continue
        archs = jit.archs_of(one.nvcc) if one.archs else ()
        unknown = tuple(f"sm_{arch}" for arch in archs if not _knows(one, arch))
        if unknown and jit.arch_doubt:
            raise Missing(jit.arch_doubt)
        if unknown:
            evidence = [
                Text("required by {by}", by=jit.asked_by),
                Text("{root} supports {archs}", root=one.root, archs=one.archs),
            ]
            milder = severity
            if jit.falls_back and all(name.startswith("sm_12") for name in unknown):
                milder = severity or Severity.WARNING
                evidence.append(Text("this vLLM then uses its own, slower sampler"))
            yield Finding(
                Text("nvcc {nvcc} cannot compile for {archs}", nvcc=minor(one.nvcc), archs=unknown),
                tuple(evidence),
                unless_unused(severity, use_wheels(kit)),
                milder,
            )


def _knows(kit: Toolkit, arch: str) -> bool:
    base = arch.rstrip("af")
    # 90a came one release after sm_90, family targets such as 120f one after sm_120.
    since = Version("12.9") if arch.endswith("f") else Version("12.0") if arch == "90a" else None
    return base in (kit.archs or ()) and (since is None or kit.nvcc is None or kit.nvcc >= since)


@rule("nvcc-too-old-for-flags", Severity.ERROR, Stage.COMPILE)
def nvcc_too_old_for_flags(
    toolkits: Toolkits, kit: WheelToolkit, options: NvccOptions
) -> Iterator[Finding]:
    """nvcc does not support an option that FlashInfer passes to it.

    The build stops with `nvcc fatal : Unknown option '--compress-mode=size'`. FlashInfer passes it
    whatever the toolkit. A CUDA major other than torch's is not a fault by itself: CUDA 12.1
    compiles for torch 2.13 on CUDA 13.2 as long as every option is known.

    Fix: Same fix as nvcc-missing.

    Manual: Set CUDA_HOME to a toolkit of the release that the report names, or newer.

    Sources: flashinfer/jit/core.py, vllm#58236, flashinfer#1532, flashinfer#5479

    See also: nvcc-too-old-for-arch, toolkit-major-mismatch
    """
    found = toolkits.found
    if found is None or found.nvcc is None:
        return
    unknown = tuple(o for o, since in options.known_from.items() if found.nvcc < since)
    if unknown:
        newest = max(options.known_from[o] for o in unknown)
        yield Finding(
            Text("nvcc {nvcc} does not support {options}", nvcc=minor(found.nvcc), options=unknown),
            (
                Text("FlashInfer passes it to every nvcc"),
                Text("supported since nvcc {since}", since=newest),
            ),
            use_wheels(kit),
        )


@rule("pip-toolkit-lib-layout", Severity.ERROR, Stage.LINK)
def pip_toolkit_lib_layout(
    toolkits: Toolkits, kit: WheelToolkit, mixes: MeasuredMixes, proof: Proof | None
) -> Iterator[Finding]:
    """The linker cannot find libcudart.so or libcuda.so in the CUDA home.

    The build stops with `/usr/bin/ld: cannot find -lcudart` after everything was compiled.
    FlashInfer links with `-L$CUDA_HOME/lib64 -L$CUDA_HOME/lib64/stubs -lcudart -lcuda`; the wheels
    have only lib/, with libcudart.so.13 and no libcuda. LIBRARY_PATH or a `lib64` link alone do not
    help: the unversioned name is required.

    Fix: Same fix as nvcc-missing: a CUDA home of links with lib64, libcudart.so and
    stubs/libcuda.so.

    Manual: Create such a folder of links (the script of `vllm-doctor fix --script` shows every
    line) and set CUDA_HOME to it.

    Sources: flashinfer/jit/cpp_ext.py, flashinfer#5067, flashinfer#1143, unsloth-zoo#1099

    See also: nvcc-missing, nvcc-header-version-skew, triton-libcuda-unlinkable, cuda-home-outdated
    """
    for one, severity in judged(toolkits, mixes, proof):
        if not one.missing_libraries or _is_wrapper_root(one):
            continue
        flags = tuple(f"-l{name}" for name in one.missing_libraries)
        wheels = one if one.from_wheels else toolkits.wheels
        here = severity
        if flags == ("-lcuda",) and kit.libcuda is None and one is not toolkits.wheels:
            # No driver here, and the test build brought a stand-in: where the driver is, it may or
            # may not bring the libcuda.so that this toolkit lacks.
            here = Severity.WARNING
        yield Finding(
            Text("the linker cannot find {flags} for {root}", flags=flags, root=one.root),
            (
                Text("FlashInfer links with -L{root}/lib64 -L{root}/lib64/stubs", root=one.root),
                Text("the toolkit: {root} ({by})", root=one.root, by=one.found_by),
            ),
            unless_unused(here, use_wheels(kit, install=not _ready(wheels))),
            here,
        )


@rule("cuda-home-outdated", Severity.INFO, Stage.LINK)
def cuda_home_outdated(home: HomeOfLinks, kit: WheelToolkit) -> Iterator[Finding]:
    """The CUDA home created by an earlier fix is out of date.

    It is a folder of links. After an update of a wheel some of them point to nothing; and if there
    was no driver when it was created (an image built elsewhere), its libcuda.so is an empty stub.
    Kernels linked with the stub load the driver's library by its name all the same. What a build
    cannot work without is reported by the rules about the toolkit.

    Fix: Recreates the folder over the installed wheels. Needs no consent.

    See also: pip-toolkit-lib-layout, nvcc-missing
    """
    why = None
    if home.dangling:
        why = Text("dangling links: {names}", names=home.dangling)
    elif home.stand_in and kit.libcuda:
        why = Text(
            "its libcuda.so is a stub, but a driver is installed now: {path}", path=kit.libcuda
        )
    if why:
        yield Finding(
            Text("the CUDA home {folder} is out of date", folder=home.folder),
            (why,),
            (
                Fix(
                    Text("recreate it from the installed wheels"),
                    (CudaHome(home.folder, kit.root, kit.libcuda),),
                ),
            ),
        )


@rule("toolkit-major-mismatch", Severity.WARNING, Stage.LOAD)
def toolkit_major_mismatch(
    toolkits: Toolkits, torch: Torch, kit: WheelToolkit, proof: Proof | None
) -> Finding | None:
    """The CUDA toolkit is of a different major release than torch.

    Not a fault by itself: kernels of CUDA 12 run beside torch for CUDA 13. But they need
    libcudart.so.12, which torch does not include; the loader has to find it (LD_LIBRARY_PATH,
    ldconfig).

    Fix: Same fix as nvcc-missing.

    Manual: Verify with `vllm-doctor diagnose --deep`, which also loads the test kernel.

    Sources: flashinfer#5479, flashinfer#5145

    See also: flashinfer-stale-cache, multiple-libcudart, libcudart-major-mismatch
    """
    found = toolkits.found
    if found is None or found.nvcc is None or torch.cuda is None or proof:
        return None
    if found.nvcc.major == torch.cuda.major:
        return None
    return Finding(
        Text(
            "nvcc {nvcc} builds kernels for libcudart.so.{major}; torch has that of CUDA {cuda}",
            nvcc=minor(found.nvcc),
            major=found.nvcc.major,
            cuda=torch.cuda.major,
        ),
        (Text("the toolkit: {root} ({by})", root=found.root, by=found.found_by),),
        (*use_wheels(kit), prove_it()),
    )


@rule("deep-check-failed", Severity.ERROR, Stage.COMPILE)
def deep_check_failed(proof: Proof) -> Finding | None:
    """The test build failed for a reason that no other check explains.

    `--deep` compiles, links and loads a small kernel as FlashInfer would. It is decisive: where it
    fails, the server's own build fails too, whatever the other checks say.

    Manual: Read the last lines of the output in the report.

    Workaround: `--accept deep-check-failed` continues without the proof.

    See also: jit-build-failed, import-fails
    """
    if proof.ok or proof.ids:
        return None
    return Finding(
        Text("the test build failed at {stage}: {line}", stage=proof.stage, line=proof.line),
        tuple(Text("{line}", line=row) for row in proof.output.splitlines()[-5:] if row.strip()),
    )
