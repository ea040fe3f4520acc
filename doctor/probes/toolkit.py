"""The CUDA toolkit that FlashInfer would compile with, and the one in the target's wheels.

FlashInfer's search is copied, its gaps included: a doctor that finds "an nvcc" is wrong where the
server would find another one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterable
from dataclasses import field
from pathlib import Path

from packaging.version import Version

from doctor import toml
from doctor.consumers import flashinfer as fi
from doctor.consumers.source import Source, parsed
from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact, Missing, Text
from doctor.numbers import cuda_version, number_of, version_of
from doctor.probes.driver import Driver
from doctor.probes.environment import HOME, LaunchEnv, child_env, which
from doctor.probes.host import HostCompilers, nvcc_flags, split_flags
from doctor.probes.interpreter import Interpreter, is_targets
from doctor.probes.jit import Jit, Workaround, linked_libraries
from doctor.probes.wheels import FlashInfer, Packages, Torch, Vllm
from doctor.redact import redact
from doctor.shipped import rules_folder
from doctor.tape import NotRecorded
from doctor.target import OWN, Target

# What --list-gpu-arch says, as [from, before) a release of nvcc, in its order: of CUDA's release
# notes, and read in the wheels from 13.0 on.
_EVER = Version("99")
_ARCHS = {
    arch: (Version(since), Version(before) if before else _EVER)
    for arch, since, before in (
        ("70", "9.0", "13.0"),
        ("72", "9.2", "13.0"),
        ("75", "10.0", ""),
        ("80", "11.0", ""),
        ("86", "11.1", ""),
        ("87", "11.4", ""),
        ("88", "13.0", ""),
        ("89", "11.8", ""),
        ("90", "11.8", ""),
        ("100", "12.8", ""),
        ("101", "12.8", "13.0"),
        ("110", "13.0", ""),
        ("103", "12.9", ""),
        ("120", "12.8", ""),
        ("121", "12.9", ""),
        ("107", "13.4", ""),
    )
}
_RELEASE = re.compile(r"release [0-9.]+, V([0-9.]+)")
# What the sources of FlashInfer's sampler include of a toolkit.
HEADERS = (
    "cuda_runtime_api.h",
    "cuda_runtime.h",
    "cuda_fp16.h",
    "cuda_fp8.h",
    "cooperative_groups.h",
    "crt/host_config.h",
    "curand.h",
    "curand_kernel.h",
)
_CRT = "crt/host_config.h"  # the compiler's own headers, of a wheel of their own since CUDA 13
_CRT_WHEELS = ("nvidia-cuda-crt", "nvidia-cuda-nvcc")
_CCCL = "nv/target"  # only where FlashInfer does not bring its own


@dataclass(frozen=True)
class Toolkit:
    """One CUDA toolkit, part by part; None is a part that is not there or cannot be asked.

    `root` is what FlashInfer calls cuda_home, `top` the root that nvcc itself works from: they
    differ where nvcc is a wrapper; `real` is the root of the file that a linked nvcc leads to.
    `archs` are those that nvcc compiles for, () where nobody asked, None where it does not say.
    `crt` None: no wheel's, it came with nvcc. `headers` is the
    CUDART_VERSION (major.minor) of the first cuda_runtime_api.h on the include path, `include` its
    folder. `unasked_libraries`: of those that may be linked, what an older snapshot does not tell.
    """

    root: Path
    found_by: str
    nvcc: Version | None = None
    nvcc_path: Path | None = None
    nvcc_error: str | None = None
    wrapper: bool = False
    top: Path | None = None
    real: Path | None = None
    nvvm: Version | None = None
    nvvm_error: str | None = None
    crt: Version | None = None
    headers: Version | None = None
    include: Path | None = None
    missing_headers: tuple[str, ...] = ()
    missing_libraries: tuple[str, ...] = ()
    unasked_libraries: tuple[str, ...] = ()
    from_wheels: bool = False
    archs: tuple[str, ...] | None = ()
    gcc_most: int | None = None
    clang_below: int | None = None
    rsqrt_guarded: bool | None = None
    sinpi_guarded: bool | None = None

    @property
    def compiler(self) -> Path:
        """The nvcc that FlashInfer starts."""
        return self.nvcc_path or self.root / "bin/nvcc"

    @property
    def parts(self) -> tuple[Version | None, ...]:
        """nvcc, nvvm, crt, headers: what has to go together."""
        return (self.nvcc, self.nvvm, self.crt, self.headers)


@dataclass(frozen=True)
class InstalledToolkits(Fact):
    """`found`: the one FlashInfer finds, None where it finds none, `searched` then says how it
    looked. `wheels`: the one in the target's wheels, the candidate for a fix; None where
    there is none or it is the one found."""

    found: Toolkit | None = None
    searched: Text = field(default_factory=lambda: Text(""))
    wheels: Toolkit | None = None


@dataclass(frozen=True)
class Toolkits(InstalledToolkits):
    """The same, by what this server compiles and links. `doubt`: why it is not sure that any is
    wanted."""

    doubt: Text | None = None


@probe
def toolkits(jit: Jit, installed: InstalledToolkits) -> Toolkits:
    """Not applicable, and then not looked for, where nothing is compiled (see Jit)."""
    return Toolkits(
        _used(installed.found, jit), installed.searched, _used(installed.wheels, jit), jit.doubt
    )


def _used(kit: Toolkit | None, jit: Jit) -> Toolkit | None:
    """Raises NotRecorded where a snapshot says nothing of what this server uses of the toolkit."""
    if kit is None:
        return None
    if unasked := [n for n in jit.libraries if n in kit.unasked_libraries]:
        raise NotRecorded(f"{kit.root}/lib64/lib{unasked[0]}.so")
    if jit.archs and kit.nvcc and kit.archs == ():
        raise NotRecorded(f"a run of {kit.compiler}")
    lacking = tuple(name for name in jit.libraries if name in kit.missing_libraries)
    return dataclasses.replace(kit, missing_libraries=lacking, archs=kit.archs if jit.archs else ())


@probe
def installed_toolkits(
    target: Target,
    env: LaunchEnv,
    torch: Torch,
    interpreter: Interpreter,
    packages: Packages,
    flashinfer: FlashInfer,
    hosts: HostCompilers,
) -> InstalledToolkits:
    """Both toolkits, whole: what of them counts hangs on the server."""
    look = _Look(target, env, interpreter, packages, flashinfer, hosts)
    with contextlib.suppress(NotRecorded):  # an older doctor knew FlashInfer 0.6 alone
        fi.searches_as_known(Source(target, flashinfer.root))
    home = fi.cuda_home_searched(target, env)
    found = look.at(Path(home.path), home.found_by) if home.path else None
    wheels = None
    folder = wheel_root(target, interpreter, torch)
    # A CUDA home of links has a root of its own and the wheels' nvcc: one compiler, judged once.
    if folder and not (found and _same(target, found.root / "bin/nvcc", folder / "bin/nvcc")):
        wheels = look.at(folder, "the target's wheels")
    return InstalledToolkits(found, home.searched, wheels)


def wheel_root(target: Target, interpreter: Interpreter, torch: Torch) -> Path | None:
    """The folder where CUDA 13 wheels lay their toolkit out, if an nvcc is in it. (The CUDA 12
    wheels hold ptxas and no nvcc.)"""
    major = torch.cuda.major if torch.cuda else 13
    for folder in (torch.root.parent, *interpreter.site_packages):
        root = folder / f"nvidia/cu{major}"
        if target.executable(root / "bin/nvcc"):
            return root
    return None


def _values(words: list[str], option: str) -> tuple[Path, ...]:
    """The folders given to an option, joined to it or as the next word."""
    found = []
    for word, following in zip(words, [*words[1:], ""], strict=False):
        value = following if word == option else word[len(option) :]
        if word.startswith(option) and value:
            found.append(Path(value.removeprefix("=")))
    return tuple(found)


def _same(target: Target, one: Path, other: Path) -> bool:
    return target.realpath(one) == target.realpath(other)


@dataclass(frozen=True)
class _Look:
    """Takes a toolkit apart where it lies."""

    target: Target
    env: LaunchEnv
    interpreter: Interpreter
    packages: Packages
    flashinfer: FlashInfer
    hosts: HostCompilers

    def at(self, root: Path, found_by: str) -> Toolkit:
        target = self.target
        nvcc_path = self._nvcc(root)
        nvcc, error = self._release(nvcc_path, "--version")
        wrapper, top = self._top(nvcc_path, nvcc)
        folders = self.include_folders(root, top)
        include = self._first(folders, "cuda_runtime_api.h")
        crt = self._first(folders, _CRT)
        number = include and target.search(
            include / "cuda_runtime_api.h", r"(?m)^#define CUDART_VERSION\s+(\d+)"
        )
        headers = number_of(number[0]) if number else None
        cicc = top / "nvvm/bin/cicc"
        nvvm, nvvm_error = self._owner(cicc, "nvidia-nvvm"), None
        if nvcc is not None and nvvm is None:
            nvvm, nvvm_error = self._nvvm(cicc)
        wanted = HEADERS if self.flashinfer.vendored_cccl else (*HEADERS, _CCCL)
        with_cccl = (*folders, *(f / "cccl" for f in folders))
        links = self._links(root)
        return Toolkit(
            root=root,
            found_by=found_by,
            nvcc=nvcc,
            nvcc_path=nvcc_path,
            nvcc_error=error,
            wrapper=wrapper,
            top=top if nvcc else None,
            real=target.realpath(nvcc_path).parent.parent if nvcc else None,
            nvvm=nvvm,
            nvvm_error=nvvm_error,
            crt=self._owner(crt / _CRT, *_CRT_WHEELS) if crt else None,
            headers=cuda_version(headers),
            include=include,
            missing_headers=tuple(h for h in wanted if not self._first(with_cccl, h)),
            missing_libraries=tuple(name for name, found in links.items() if found is False),
            unasked_libraries=tuple(name for name, found in links.items() if found is None),
            from_wheels=self._in_wheels(top if nvcc else root),
            archs=self._archs(nvcc_path, nvcc) if nvcc else (),
            gcc_most=self._host_limit(crt, r"(?m)^#if __GNUC__ > (\d+)"),
            # Two limits of clang stand there, by the libc; Linux takes the higher.
            clang_below=self._host_limit(crt, r"(?m)^#if \(?__clang_major__ >= (\d+)"),
            rsqrt_guarded=self._guarded(crt, "rsqrt"),
            sinpi_guarded=self._guarded(crt, "sinpi"),
        )

    def _nvcc(self, root: Path) -> Path:
        """FLASHINFER_NVCC is put into a shell's command: a bare name is looked up on PATH, and of
        several words ("ccache nvcc") the last is the compiler."""
        words = split_flags(self.env.get("FLASHINFER_NVCC") or "")
        if not words:
            return root / "bin/nvcc"
        return which(self.target, self.env, words[-1]) or Path(words[-1])

    def _release(self, program: Path, *arguments: str) -> tuple[Version | None, str | None]:
        """(version, None), or (None, why there is none)."""
        target = self.target
        # What a relative path leads to depends on who stands where: it is not started.
        stat = target.stat(program) if program.is_absolute() else None
        if stat is None:
            return None, "not found"
        if not target.executable(program):
            return None, "not executable"
        ran = target.run(str(program), *arguments, env=child_env(self.env))
        match = _RELEASE.search(ran.out)
        if version := version_of(match[1] if match else None):
            return version, None
        said = (ran.err or ran.out).strip().splitlines()
        return None, ran.failure or (redact(said[-1])[:200] if said else f"exit code {ran.code}")

    def _top(self, nvcc_path: Path, nvcc: Version | None) -> tuple[bool, Path]:
        """(it is a wrapper, the root nvcc works from). A real nvcc takes the folder above its own
        from argv[0], where a linked bin leads out of the root (tried); what a wrapper starts says
        its own place in a dry run."""
        beside = self.target.realpath(nvcc_path.parent).parent
        if nvcc is None or self.target.elf(nvcc_path) is not None:
            return False, beside
        if self._is_targets(nvcc_path):
            named = self.target.search(nvcc_path, r"(/[^\s\"'$]+)/bin/nvcc\b")
            return True, Path(os.path.normpath(named[0])) if named else beside
        ran = self.target.run(
            str(nvcc_path), "--dryrun", "-x", "cu", "-c", "/dev/null", env=child_env(self.env)
        )
        match = re.search(r"(?m)^#\$ TOP=(.+)$", ran.err)
        return True, Path(os.path.normpath(match[1])) if match else beside

    def include_folders(self, root: Path, top: Path) -> tuple[Path, ...]:
        """In gcc's order: -I, then CPATH, then -isystem. nvcc's own `-I TOP/include` counts only
        where it is no -isystem folder too (gcc drops the -I of such a folder)."""
        words = nvcc_flags(self.env)
        system = [root / "include", *self._targets(root)]
        own = [top / "include", *self._targets(top)]
        if root == Path("/usr"):
            system = []  # FlashInfer leaves /usr/include to the compiler (its issue 1793)
        first = [p for p in own if not any(_same(self.target, p, s) for s in system)]
        return (
            *_values(words, "-I"),
            *first,
            *self.env.folders("CPATH"),
            *system,
            *_values(words, "-isystem"),
            *self.env.folders("CPLUS_INCLUDE_PATH"),
            Path("/usr/local/include"),
            Path("/usr/include"),
        )

    def _targets(self, root: Path) -> list[Path]:
        names = self.target.listdir(root / "targets") or ()
        return [root / "targets" / n / "include" for n in names if n.endswith("-linux")]

    def _first(self, folders: Iterable[Path], header: str) -> Path | None:
        return next((f for f in folders if self.target.stat(f / header)), None)

    def _in_wheels(self, top: Path) -> bool:
        real = self.target.realpath(top / "bin")
        return real.parent.parent.name == "nvidia" and real.parent.name.startswith("cu")

    def _owner(self, path: Path, *wheels: str) -> Version | None:
        """The version of the wheel that put the file there; None where it is no wheel's."""
        if self.target.stat(path) is None:
            return None
        real = self.target.realpath(path)
        for name in wheels:
            one = self.packages.installed.get(name)
            if one and self.target.realpath(one.folder) in real.parents:
                return one.version
        return None

    def _is_targets(self, program: Path) -> bool:
        spellings = (program, self.target.realpath(program))
        return is_targets(self.target, self.interpreter, self.env.vars, *spellings)

    def _nvvm(self, cicc: Path) -> tuple[Version | None, str | None]:
        """(version, why there is none) of a cicc that is no wheel's. It has no --version: one of
        the target's is not started, and is then not known but from conda's records."""
        if self.target.stat(cicc) is None or not self._is_targets(cicc):
            return self._release(cicc, OWN + "probes/empty.ci", "-o", "-")
        records = self.target.listdir(self.interpreter.prefix / "conda-meta") or ()
        pattern = r"cuda-nvvm-(?:impl|tools)-([0-9]+\.[0-9]+)\."
        found = (version_of(m[1]) for name in records if (m := re.match(pattern, name)))
        return next(found, None), None

    def _archs(self, nvcc_path: Path, nvcc: Version) -> tuple[str, ...] | None:
        if self._is_targets(nvcc_path):
            known = tuple(a for a, (since, before) in _ARCHS.items() if since <= nvcc < before)
            return known or None
        try:
            ran = self.target.run(str(nvcc_path), "--list-gpu-arch", env=child_env(self.env))
        except NotRecorded:  # a doctor before 0.5 asked where the GPUs were known
            return ()
        return tuple(re.findall(r"(?m)^compute_(\w+)$", ran.out)) or None

    def _links(self, root: Path) -> dict[str, bool | None]:
        """Of each library that FlashInfer may link with, whether the linker would find it:
        -L$cuda_home/lib64 -L$cuda_home/lib64/stubs (flashinfer/jit/cpp_ext.py). None of one that a
        snapshot says nothing of: a doctor before 0.5 asked for those of its profile."""
        words = split_flags(self.env.get("FLASHINFER_EXTRA_LDFLAGS") or "")
        cxx = self.hosts.cxx.compiler
        default = ("/usr/local/lib64", "/usr/local/lib", "/lib64", "/lib", "/usr/lib64", "/usr/lib")
        folders = [
            root / "lib64",
            root / "lib64/stubs",
            *_values(words, "-L"),
            *self.env.folders("LIBRARY_PATH"),
            *(cxx.library_dirs if cxx else ()),
            *map(Path, default),
        ]
        made: dict[str, bool | None] = {}
        for name in linked_libraries(Source(self.target, self.flashinfer.root)):
            try:
                made[name] = any(self._is_library(f / f"lib{name}.so") for f in folders)
            except NotRecorded:
                made[name] = None
        return made

    def _is_library(self, path: Path) -> bool:
        stat = self.target.stat(path)
        if stat is None or stat.kind != "file":
            return False
        elf = self.target.elf(path)
        # A linker script (text) links as well; the linker skips a library of the other width.
        return elf is None or elf.bits == 64

    def _host_limit(self, include: Path | None, pattern: str) -> int | None:
        """The newest host compiler that crt/host_config.h admits."""
        found = self.target.search(include / _CRT, pattern) if include else None
        return max(filter(None, map(number_of, found or ())), default=None)

    def _guarded(self, include: Path | None, name: str) -> bool | None:
        """crt/math_functions.h declares the function as newer glibc headers do: with an exception
        specification behind its parameters."""
        if include is None:
            return None
        math = include / "crt/math_functions.h"
        rows = self.target.search(math, rf"(?m)^extern .* {name}\(double x\)(.*);")
        return bool(rows[0].strip()) if rows else None


@dataclass(frozen=True)
class WheelToolkit(Fact):
    """What the index can give this target. `release`: of the cuda-toolkit metapackage for torch's
    CUDA, a version or "13.0.*" (None: CUDA 12, whose wheels hold no nvcc); `cuda` is torch's.
    `root`: where the wheels lay it out, `home`: the CUDA home of links that the doctor makes over
    it. `libcuda`: the driver's library. `too_old_for_glibc`: its headers declare rsqrt otherwise
    than the host's. `flashinfer`: the installed one, for which ready kernels can be had;
    `downloads_kernels`: the command of the installed vLLM that fetches them; `workaround`: how it
    does without them."""

    root: Path
    home: Path
    release: str | None = None
    cuda: Version | None = None
    libcuda: Path | None = None
    too_old_for_glibc: bool = False
    flashinfer: Version | None = None
    downloads_kernels: Path | None = None
    workaround: Workaround = field(default_factory=Workaround)


FIRST_WITH_NVCC = 13  # nvidia-cuda-nvcc-cu12 holds ptxas and no nvcc
# glibc 2.42 declares rsqrt noexcept; CUDA's headers agree from this minor on (read in the wheels).
RSQRT_GLIBC = Version("2.42")
_RSQRT_CUDA = Version("13.2")


@probe
def wheel_toolkit(
    target: Target,
    torch: Torch,
    vllm: Vllm,
    interpreter: Interpreter,
    hosts: HostCompilers,
    driver: Driver | None,
    flashinfer: FlashInfer | None,
    jit: Jit | None,
) -> WheelToolkit:
    cuda = torch.cuda or Version("13.0")
    host = hosts.nvcc_host.compiler
    glibc = host.glibc if host else None
    path = driver.libcuda.path if driver else None
    release = None
    if cuda.major >= FIRST_WITH_NVCC:
        release = str(torch.toolkit) if torch.toolkit else f"{minor(cuda)}.*"
    return WheelToolkit(
        release=release,
        cuda=cuda,
        root=torch.root.parent / f"nvidia/cu{cuda.major}",
        home=interpreter.prefix / HOME / f"cuda-{minor(cuda)}",
        # By its soname: the loader's answer has the driver's version in its name.
        libcuda=path.parent / "libcuda.so.1" if path else None,
        too_old_for_glibc=bool(glibc and glibc >= RSQRT_GLIBC and cuda < _RSQRT_CUDA),
        flashinfer=flashinfer.version if flashinfer else None,
        downloads_kernels=_downloader(target, interpreter, vllm),
        workaround=jit.workaround if jit else Workaround(),
    )


def _downloader(target: Target, interpreter: Interpreter, vllm: Vllm) -> Path | None:
    """Of 0.33 on; FlashInfer's index, which it asks, is not the one of its wheels."""
    with contextlib.suppress(NotRecorded):
        if target.stat(vllm.root / "entrypoints/cli/download_kernels.py"):
            return interpreter.prefix / "bin/vllm"
    return None


@dataclass(frozen=True)
class MeasuredMixes(Fact):
    """Which parts of different CUDA minors were really compiled together, and what came of it:
    mixes as "nvcc/nvvm/crt/headers" minors, such as "13.0/13.0/13.0/13.0"."""

    compiles: frozenset[str]
    fails: dict[str, str]

    def of(self, kit: Toolkit) -> tuple[str, str | None]:
        """("compiles", None), ("fails", the compiler's words) or ("untried", None), for the parts
        of the compiler over headers that fit it: other headers are a fault of their own, which
        would hide what these parts do."""
        crt = kit.crt or kit.nvcc
        mix = "/".join(minor(p) or "-" for p in (kit.nvcc, kit.nvvm, crt, kit.nvcc))
        if mix in self.compiles:
            return "compiles", None
        if mix in self.fails:
            return "fails", self.fails[mix]
        return "untried", None


def minor(version: Version | None) -> str | None:
    """`major.minor` of a version."""
    return f"{version.major}.{version.minor}" if version else None


PARTS_TABLE = "compiler-parts.toml"


@probe
def measured_mixes() -> MeasuredMixes:
    """rules/tables/compiler-parts.toml, written by tests/benchmarks/compiler_parts.py."""
    path = rules_folder() / "tables" / PARTS_TABLE
    try:
        table = toml.load_toml(path)
        return MeasuredMixes(frozenset(table["compiles"]), dict(table["fails"]))
    except (OSError, ValueError, KeyError) as error:
        raise Missing(Text("{path} cannot be read: {error}", path=path, error=error)) from None


@dataclass(frozen=True)
class NvccOptions(Fact):
    """Options that this FlashInfer passes to every nvcc, each with the first nvcc that knows it."""

    known_from: dict[str, Version] = field(default_factory=dict)


# nvcc's release notes; vllm issue 58236 and flashinfer issue 1532 are what failing looks like.
_OPTION_SINCE = {
    "--compress-mode": Version("12.8"),
    "-static-global-template-stub": Version("12.8"),
    "--generate-dependencies-with-compile": Version("10.2"),
}


@probe
def nvcc_options(
    target: Target, flashinfer: FlashInfer, toolkits: InstalledToolkits
) -> NvccOptions:
    """The options in FlashInfer's flag builders that no version check guards; read only where
    the nvcc found is older than some of them."""
    nvcc = toolkits.found.nvcc if toolkits.found else None
    if nvcc is None or nvcc >= max(_OPTION_SINCE.values()):
        return NvccOptions()
    passed: set[str] = set()
    for name in ("cpp_ext.py", "core.py"):
        source = target.read(flashinfer.root / "jit" / name)
        passed |= _unguarded(source) if source else set()
    return NvccOptions({o: v for o, v in _OPTION_SINCE.items() if o in passed})


def _unguarded(source: bytes) -> set[str]:
    import ast

    tree = parsed(source)
    if tree is None:
        return set()
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "version" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    texts = (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in guarded
    )
    words = {word.partition("=")[0] for text in texts for word in text.split()}
    return words & set(_OPTION_SINCE)
