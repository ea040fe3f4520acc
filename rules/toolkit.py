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
    """A fault that keeps nothing from working is told, and not repaired."""
    return () if severity is Severity.INFO else fixes


@rule("cuda-home-bad-path", Severity.ERROR, Stage.TOOLKIT)
def cuda_home_bad_path(toolkits: Toolkits, kit: WheelToolkit) -> Iterator[Finding]:
    """CUDA_HOME is no folder with bin/nvcc in it.

    FlashInfer takes CUDA_HOME, else CUDA_PATH, as it is and never checks it: a list of folders, a
    trailing /bin or a folder that is gone ends in `/bin/sh: .../bin/nvcc: not found`. It also puts
    the path unquoted into the commands that ninja gives to a shell, so a space breaks it.
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
    """FlashInfer lies below a folder whose name breaks its own build commands.

    `ninja: error: '/tmp/a', needed by ..., missing`: FlashInfer writes its own folder, Python's
    headers and its cache unquoted into a ninja file and so into a shell's commands. A space, a
    bracket or a quote in one of them ends every build.
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
    """FlashInfer finds no nvcc to build its kernels with.

    The wheels bring CUDA's runtime, and FlashInfer compiles its sampler at the server's first
    start. It takes CUDA_HOME, else CUDA_PATH, else the nvcc on PATH, else /usr/local/cuda. It
    never looks into the wheels in site-packages, and a /usr/local/cuda without bin/nvcc (a
    runtime image) passes its check and fails later with `nvcc: not found`.
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
    """The nvcc on PATH is a wrapper or a link, and FlashInfer takes its parent for the toolkit.

    FlashInfer takes the folder two up from `which nvcc`, links and wrappers not followed. With
    /usr/local/bin/nvcc that makes /usr/local the toolkit: nvcc runs, and neither headers nor
    libraries are there.
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
    """The toolkit has an nvcc but not the headers that FlashInfer includes.

    `fatal error: curand.h: No such file or directory`: nvcc came without the development packages
    (apt's cuda-nvcc, a runtime image, conda). The headers in the wheels are not on nvcc's path,
    and putting them there with CPATH breaks an nvcc of another minor.
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
    """nvcc and the CUDA headers it reads are of different minors.

    CCCL compares nvcc's major.minor with CUDART_VERSION of the first cuda_runtime_api.h on the
    include path and stops: `CUDA compiler and CUDA toolkit headers are incompatible`. A fresh
    `pip install vllm` gives this today: nothing pins nvcc, torch pins the headers. What
    torch.version.cuda says does not matter: a toolkit 13.2 with its own headers works with torch
    for CUDA 13.0.
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
    """The PTX generator (cicc, of nvidia-nvvm) is of another minor than nvcc and ptxas.

    `ptxas fatal : Unsupported .version 9.5; current version is '9.0'`. The nvcc wheel asks for
    nvidia-nvvm without a version, so `pip install cuda-toolkit[nvcc]==13.0.2` brings nvcc 13.0 and
    the newest nvvm; `nvcc --version` says 13.0 and torch says 13.0.
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
    """The compiler's own headers (nvidia-cuda-crt) are of another minor than nvcc.

    `macro "__cudaLaunch" passed 2 arguments, but takes just 1`: what cicc (nvidia-nvvm) generates
    and what the crt headers define have to fit, and the macro changed between 13.0 and 13.1; later
    minors mix. The nvcc wheel asks for both without a version.
    """
    for one, severity in judged(toolkits, mixes, proof):
        if one.crt and (found := _skew(one, severity, mixes, "crt", one.crt, kit)):
            yield found


@rule("nvcc-too-old-for-arch", Severity.ERROR, Stage.COMPILE)
def nvcc_too_old_for_arch(
    toolkits: Toolkits, kit: WheelToolkit, mixes: MeasuredMixes, jit: Jit, proof: Proof | None
) -> Iterator[Finding]:
    """nvcc does not know the architecture of a GPU it has to compile for.

    `nvcc fatal : Unsupported gpu architecture 'compute_90a'`: a distribution's old nvcc, or one
    that has dropped an old GPU. FLASHINFER_CUDA_ARCH_LIST, where set, decides what is compiled
    for, not the GPUs.
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
    """nvcc does not know an option that this FlashInfer passes it.

    `nvcc fatal : Unknown option '--compress-mode=size'`. Another major than torch's is no fault
    by itself: CUDA 12.1 compiles for torch 2.13 on CUDA 13.2 as long as every option is known.
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
    """The linker finds no libcudart.so or libcuda.so where FlashInfer points it.

    `/usr/bin/ld: cannot find -lcudart`, after everything compiled. FlashInfer links with
    `-L$CUDA_HOME/lib64 -L$CUDA_HOME/lib64/stubs -lcudart -lcuda`; the wheels have lib/ only, with
    libcudart.so.13 and no libcuda at all. LIBRARY_PATH or a `lib64` link alone do not help: the
    unversioned name has to be there.
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
    """The CUDA home that a fix made is older than what it leads to.

    A folder of links: where a wheel was updated, some lead to nothing; and where no driver was when
    it was made (an image built elsewhere), its libcuda.so is an empty stand-in. Kernels that were
    linked with the stand-in load the driver's library by its name all the same. What a build cannot
    do without is told by the rules about the toolkit; this one has the folder made anew.
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
    """The toolkit is of another CUDA major than torch.

    No fault by itself: kernels of CUDA 12 run beside torch for CUDA 13. But they need
    libcudart.so.12, which torch does not bring; the loader has to find it (LD_LIBRARY_PATH,
    ldconfig).
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
    """The test build failed in a way that no ailment here explains.

    `--deep` compiles, links and loads a small kernel as FlashInfer would. It is the judge: where it
    fails, the server's own build fails too, whatever the rules say.
    """
    if proof.ok or proof.ids:
        return None
    return Finding(
        Text("the test build failed at {stage}: {line}", stage=proof.stage, line=proof.line),
        tuple(Text("{line}", line=row) for row in proof.output.splitlines()[-5:] if row.strip()),
    )
