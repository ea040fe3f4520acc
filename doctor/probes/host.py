"""The host's own tools: C and C++ compiler, glibc's headers, ninja, Python's headers."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from packaging.version import Version

from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact
from doctor.numbers import version_of
from doctor.probes.environment import LaunchEnv, child_env, which
from doctor.probes.interpreter import Interpreter, is_targets
from doctor.redact import redact
from doctor.target import OWN, Ran, Target


@dataclass(frozen=True)
class Compiler:
    """A host compiler that works: its family, version, and the glibc whose headers it reads.
    `arguments` are the words behind its name where CXX has several ("ccache g++")."""

    path: Path
    family: str  # "gcc" or "clang"
    version: Version
    glibc: Version | None = None
    library_dirs: tuple[Path, ...] = ()
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class CompilerLookup:
    """What a consumer looks for: the name it would start, the compiler, or why there is none."""

    name: str
    compiler: Compiler | None = None
    error: str | None = None


@dataclass(frozen=True)
class HostCompilers(Fact):
    """One per consumer: Triton's C compiler, the C++ that FlashInfer links with, and the host
    compiler that nvcc calls. `unsupported_allowed`: nvcc is told not to mind its version."""

    c: CompilerLookup
    cxx: CompilerLookup
    nvcc_host: CompilerLookup
    unsupported_allowed: bool = False


@probe
def host_compilers(target: Target, env: LaunchEnv, interpreter: Interpreter) -> HostCompilers:
    """Triton: CC, else gcc, else clang (triton/runtime/build.py). FlashInfer: CXX, else c++; for
    nvcc CC as -ccbin (flashinfer/jit/cpp_ext.py); nvcc itself: NVCC_CCBIN, else gcc."""
    # A variable that is set and empty is a name to both, and names no compiler.
    triton = env.get("CC")
    if triton is None:
        clang = which(target, env, "clang") and not which(target, env, "gcc")
        triton = "clang" if clang else "gcc"
    host = _host_of_nvcc(target, env)
    look = _Look(target, env, interpreter)
    c = look.at(triton, "c")
    return HostCompilers(
        c=c,
        cxx=look.at(env.vars.get("CXX", "c++"), "c++", libraries=True),
        nvcc_host=c if host == triton else look.at(host, "c++"),
        unsupported_allowed="-allow-unsupported-compiler" in nvcc_flags(env),
    )


def nvcc_flags(env: LaunchEnv) -> list[str]:
    """The words that the server's variables add to nvcc's command line, in its order."""
    names = ("NVCC_PREPEND_FLAGS", "FLASHINFER_EXTRA_CUDAFLAGS", "NVCC_APPEND_FLAGS")
    return [word for name in names for word in split_flags(env.get(name) or "")]


def _host_of_nvcc(target: Target, env: LaunchEnv) -> str:
    """The last -ccbin wins (tried): of NVCC_APPEND_FLAGS, of FlashInfer's command line (its extra
    flags, before them CC), of NVCC_PREPEND_FLAGS, else NVCC_CCBIN. A folder means the g++ in it
    (nvcc's manual)."""
    named = (
        _ccbin(env.get("NVCC_APPEND_FLAGS")),
        _ccbin(env.get("FLASHINFER_EXTRA_CUDAFLAGS")),
        env.get("CC"),
        _ccbin(env.get("NVCC_PREPEND_FLAGS")),
        env.get("NVCC_CCBIN") or None,
        "gcc",
    )
    found = next(n for n in named if n is not None)
    stat = target.stat(Path(found)) if "/" in found else None
    return f"{found}/g++" if stat and stat.kind == "dir" else found


def _ccbin(flags: str | None) -> str | None:
    words = split_flags(flags or "")
    found = None
    for word, following in zip(words, [*words[1:], ""], strict=False):
        option, _, value = word.partition("=")
        if option in ("-ccbin", "--compiler-bindir"):
            found = value or following or found
    return found


def split_flags(text: str) -> list[str]:
    """A variable's flags as words; as plain words where its quotes do not close."""
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


_Said = dict[str, tuple[str, Version]]


@dataclass(frozen=True)
class _Look:
    """Asks compilers who they are."""

    target: Target
    env: LaunchEnv
    interpreter: Interpreter

    def at(self, name: str, language: str, libraries: bool = False) -> CompilerLookup:
        # FlashInfer puts CXX into a shell's command; CC is one word to nvcc and to Triton.
        first, *words = (split_flags(name) if libraries else None) or [name]
        path = which(self.target, self.env, first) if first else None
        if path is None:
            return CompilerLookup(
                name, error="not found" if name else "the variable that names it is empty"
            )
        command = (str(path), *words)
        targets = self._is_targets(command)
        ran, said = self._version(command) if targets else self._preprocessed(command, language)
        if "family" not in said:
            lines = [line for line in ran.err.splitlines() if "error" in line] or [ran.err.strip()]
            return CompilerLookup(
                name, error=ran.failure or redact(lines[0])[:200] or f"exit code {ran.code}"
            )
        folders: tuple[Path, ...] = ()
        if libraries:
            folders = (path.parent.parent / "lib",) if targets else self._library_dirs(command)
        family, version = said["family"]
        glibc = said["glibc"][1] if "glibc" in said else None
        return CompilerLookup(name, Compiler(path, family, version, glibc, folders, tuple(words)))

    def _is_targets(self, command: tuple[str, ...]) -> bool:
        """Also where another program is to start it, as ccache does."""
        found = [which(self.target, self.env, word) for word in command if word[:1] != "-"]
        paths = [path for path in found if path]
        return is_targets(self.target, self.interpreter, self.env.vars, *paths)

    def _version(self, command: tuple[str, ...]) -> tuple[Ran, _Said]:
        """What --version says, for a compiler of the target: its glibc is then not known."""
        ran = self.target.run(*command, "--version", env=child_env(self.env))
        clang = re.search(r"clang version ([0-9]+\.[0-9]+)", ran.out)
        gcc = re.search(r"\) ([0-9]+\.[0-9]+)\S*(?: .*)?\n.*Free Software Foundation", ran.out)
        found = clang or gcc
        version = version_of(found[1]) if ran.ok and found else None
        if version is None:
            return ran, {}
        return ran, {"family": ("clang" if clang else "gcc", version)}

    def _preprocessed(self, command: tuple[str, ...], language: str) -> tuple[Ran, _Said]:
        """What the preprocessor makes of compiler.h; {} where it fails."""
        for each in dict.fromkeys(("c++", language)):
            ran = self.target.run(
                *command, "-E", "-P", "-x", each, _QUESTION, env=child_env(self.env)
            )
            pattern = r"(?m)^vllm_doctor (\w+) (\w+) ([0-9]+) ([0-9]+)$"
            rows = re.findall(pattern, ran.out) if ran.ok else []
            found = ((kind, name, version_of(f"{a}.{b}")) for kind, name, a, b in rows)
            said = {kind: (name, version) for kind, name, version in found if version}
            if "family" in said:
                break
        return ran, said

    def _library_dirs(self, command: tuple[str, ...]) -> tuple[Path, ...]:
        listing = self.target.run(*command, "-print-search-dirs", env=child_env(self.env)).out
        found = re.search(r"(?m)^libraries: =?(.*)$", listing)
        return tuple(Path(p) for p in found[1].split(":") if p) if found else ()


_QUESTION = OWN + "probes/compiler.h"


@dataclass(frozen=True)
class Ninja(Fact):
    """`found`: the ninja on the server's PATH; `beside`: one in the target's own bin folder."""

    found: Path | None = None
    beside: Path | None = None


@probe
def ninja(target: Target, env: LaunchEnv, interpreter: Interpreter) -> Ninja:
    """FlashInfer starts `ninja` by its bare name (flashinfer/jit/cpp_ext.py)."""
    own = interpreter.prefix / "bin/ninja"
    return Ninja(which(target, env, "ninja"), own if target.executable(own) else None)


@dataclass(frozen=True)
class PythonHeaders(Fact):
    """`folder`: where the interpreter says its C headers are; `found`: Python.h is there;
    `version`: the Python that its patchlevel.h is for."""

    folder: Path
    found: bool
    version: Version | None = None


@probe
def python_headers(target: Target, interpreter: Interpreter, env: LaunchEnv) -> PythonHeaders:
    """Triton passes the interpreter's own folder with -I; gcc then reads CPATH and
    C_INCLUDE_PATH, where headers can stand in."""
    places = (*env.folders("CPATH"), *env.folders("C_INCLUDE_PATH"))
    folder = next(
        (f for f in (interpreter.include, *places) if target.stat(f / "Python.h")),
        interpreter.include,
    )
    rows = target.search(folder / "patchlevel.h", r'(?m)^#define PY_VERSION\s+"([\d.]+)')
    found = target.stat(folder / "Python.h") is not None
    return PythonHeaders(folder, found, version_of(rows[0]) if rows else None)
