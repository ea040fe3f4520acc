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
from doctor.target import Ran, Target


@dataclass(frozen=True)
class Compiler:
    """A host compiler that works: its family, version, and the glibc whose headers it reads."""

    path: Path
    family: str  # "gcc" or "clang"
    version: Version
    glibc: Version | None = None
    library_dirs: tuple[Path, ...] = ()


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
    host = _ccbin(target, env) or cc or "gcc"
    c = _sought(target, env, triton, "c")
    return HostCompilers(
        c=c,
        cxx=_sought(target, env, env.get("CXX") or "c++", "c++", libraries=True),
        nvcc_host=c if host == triton else _sought(target, env, host, "c++"),
    )


def _ccbin(target: Target, env: LaunchEnv) -> str | None:
    """The -ccbin of nvcc's own variables; a folder means the g++ in it (nvcc's manual)."""
    words = []
    for name in ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"):
        words += split(env.get(name) or "")
    for i, word in enumerate(words):
        option, _, value = word.partition("=")
        if option in ("-ccbin", "--compiler-bindir"):
            found = value or (words[i + 1] if i + 1 < len(words) else "")
            break
    else:
        found = env.get("NVCC_CCBIN") or ""
    stat = target.stat(Path(found)) if found else None
    return f"{found}/g++" if stat and stat.kind == "dir" else found or None


def split(text: str) -> list[str]:
    """A variable's flags as words; as plain words where its quotes do not close."""
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def _sought(
    target: Target, env: LaunchEnv, name: str, language: str, libraries: bool = False
) -> Sought:
    path = which(target, env, name)
    if path is None:
        return Sought(name, error="not found")
    ran, macros = _macros(target, env, path, "c++")
    if not macros and language == "c":
        ran, macros = _macros(target, env, path, "c")
    if not macros:
        lines = [line for line in ran.err.splitlines() if "error" in line] or [ran.err.strip()]
        return Sought(name, error=ran.failure or lines[0][:200] or f"exit code {ran.code}")
    clang = "__clang_major__" in macros
    major, minor = ("__clang_major__", "__clang_minor__") if clang else ("__GNUC__", "__GNUC_MINOR__")
    glibc = None
    if "__GLIBC__" in macros and "__GLIBC_MINOR__" in macros:
        glibc = Version(f"{macros['__GLIBC__']}.{macros['__GLIBC_MINOR__']}")
    folders: tuple[Path, ...] = ()
    if libraries:
        listing = target.run(str(path), "-print-search-dirs", env=child_env(env)).out
        found = re.search(r"(?m)^libraries: =?(.*)$", listing)
        folders = tuple(Path(p) for p in found[1].split(":") if p) if found else ()
    version = Version(f"{macros[major]}.{macros[minor]}")
    return Sought(name, Compiler(path, "clang" if clang else "gcc", version, glibc, folders))


def _macros(
    target: Target, env: LaunchEnv, path: Path, language: str
) -> tuple[Ran, dict[str, str]]:
    """What the preprocessor defines, {} where it fails. features.h is the C library's, so that a
    compiler without its headers fails here as in a real build."""
    arguments = ("-dM", "-E", "-x", language, "-include", "features.h", "/dev/null")
    ran = target.run(str(path), *arguments, env=child_env(env))
    macros = dict(re.findall(r"(?m)^#define (__\w+__) (\d+)$", ran.out))
    return ran, macros if ran.ok and "__GNUC__" in macros else {}


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
