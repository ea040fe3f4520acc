"""The host's own tools: C and C++ compiler, glibc's headers, ninja, Python's headers."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from doctor.engine import probe
from doctor.model import Fact
from doctor.probes.environment import LaunchEnv, child_env, which
from doctor.probes.interpreter import Interpreter
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
class Sought:
    """What a consumer looks for: the name it would start, the compiler, or why there is none."""

    name: str
    compiler: Compiler | None = None
    error: str | None = None


@dataclass(frozen=True)
class HostCompilers(Fact):
    """One per consumer: Triton's C compiler, the C++ that FlashInfer links with, and the host
    compiler that nvcc calls."""

    c: Sought
    cxx: Sought
    nvcc_host: Sought


@probe
def host_compilers(target: Target, env: LaunchEnv) -> HostCompilers:
    """Triton: CC, else gcc, else clang (triton/runtime/build.py). FlashInfer: CXX, else c++; for
    nvcc CC as -ccbin (flashinfer/jit/cpp_ext.py); nvcc itself: NVCC_CCBIN, else gcc."""
    cc = env.get("CC")
    triton = cc or ("gcc" if which(target, env, "gcc") else "clang")
    if not cc and not which(target, env, triton):
        triton = "gcc"
    host = _host_of_nvcc(target, env)
    c = _sought(target, env, triton, "c")
    return HostCompilers(
        c=c,
        cxx=_sought(target, env, env.get("CXX") or "c++", "c++", libraries=True),
        nvcc_host=c if host == triton else _sought(target, env, host, "c++"),
    )


def _host_of_nvcc(target: Target, env: LaunchEnv) -> str:
    """The last -ccbin wins, in this order (tried): NVCC_APPEND_FLAGS, CC (by FlashInfer's command
    line), NVCC_PREPEND_FLAGS, NVCC_CCBIN. A folder means the g++ in it (nvcc's manual)."""
    found = (
        _ccbin(env.get("NVCC_APPEND_FLAGS"))
        or env.get("CC")
        or _ccbin(env.get("NVCC_PREPEND_FLAGS"))
        or env.get("NVCC_CCBIN")
        or "gcc"
    )
    stat = target.stat(Path(found)) if "/" in found else None
    return f"{found}/g++" if stat and stat.kind == "dir" else found


def _ccbin(flags: str | None) -> str | None:
    words = split(flags or "")
    found = None
    for word, following in zip(words, [*words[1:], ""], strict=False):
        option, _, value = word.partition("=")
        if option in ("-ccbin", "--compiler-bindir"):
            found = value or following or found
    return found


def split(text: str) -> list[str]:
    """A variable's flags as words; as plain words where its quotes do not close."""
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def _sought(
    target: Target, env: LaunchEnv, name: str, language: str, libraries: bool = False
) -> Sought:
    # FlashInfer puts CXX into a shell's command; CC is one word to nvcc and to Triton.
    first, *words = (split(name) if libraries else None) or [name]
    path = which(target, env, first)
    if path is None:
        return Sought(name, error="not found")
    command = (str(path), *words)
    ran, said = _asked(target, env, command, "c++")
    if "family" not in said and language == "c":
        ran, said = _asked(target, env, command, "c")
    if "family" not in said:
        lines = [line for line in ran.err.splitlines() if "error" in line] or [ran.err.strip()]
        return Sought(name, error=ran.failure or lines[0][:200] or f"exit code {ran.code}")
    folders: tuple[Path, ...] = ()
    if libraries:
        listing = target.run(*command, "-print-search-dirs", env=child_env(env)).out
        found = re.search(r"(?m)^libraries: =?(.*)$", listing)
        folders = tuple(Path(p) for p in found[1].split(":") if p) if found else ()
    family, version = said["family"]
    glibc = said["glibc"][1] if "glibc" in said else None
    return Sought(name, Compiler(path, family, version, glibc, folders, tuple(words)))


def _asked(
    target: Target, env: LaunchEnv, command: tuple[str, ...], language: str
) -> tuple[Ran, dict[str, tuple[str, Version]]]:
    """What the preprocessor makes of compiler.h; {} where it fails."""
    ran = target.run(*command, "-E", "-P", "-x", language, _QUESTION, env=child_env(env))
    rows = re.findall(r"(?m)^vllm_doctor (\w+) (\w+) (\d+) (\d+)$", ran.out) if ran.ok else []
    return ran, {kind: (name, Version(f"{a}.{b}")) for kind, name, a, b in rows}


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
def python_headers(target: Target, interpreter: Interpreter) -> PythonHeaders:
    folder = interpreter.include
    rows = target.search(folder / "patchlevel.h", r'(?m)^#define PY_VERSION\s+"([\d.]+)')
    found = target.stat(folder / "Python.h") is not None
    return PythonHeaders(folder, found, Version(rows[0]) if rows else None)
