"""How FlashInfer looks for CUDA, names a GPU's architecture, links, and takes ready kernels.

Read in 0.6.6 to 0.7.2 (tests/assumptions): jit/cpp_ext.py, compilation_context.py, jit/env.py,
jit/fused_moe.py, jit/cubin_loader.py, artifacts.py.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

from packaging.version import Version

from doctor.consumers.conditions import Case, Raised, Undecided
from doctor.consumers.source import Source, Unreadable
from doctor.frozen import dataclass
from doctor.model import NotApplicable, Text
from doctor.probes.environment import LaunchEnv, which
from doctor.target import Target

_BUILD, _ENVIRONMENT = "jit/cpp_ext.py", "jit/env.py"
_CONTEXT = "compilation_context.py"


@dataclass(frozen=True)
class Home:
    """What FlashInfer takes for the CUDA toolkit: `path` None where it finds none, `found_by` what
    named it, `searched` how it was looked for."""

    path: str | None
    found_by: str
    searched: Text


def _named(target: Target, env: LaunchEnv) -> Home | None:
    """CUDA_HOME, else CUDA_PATH, unchecked."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        value = env.get(name)
        if value:
            return Home(value, name, Text("{name}={value}", name=name, value=value))
    if env.get("CUDA_PATH") == "":
        # `CUDA_HOME or CUDA_PATH` is then "", which is not None: FlashInfer starts /bin/nvcc.
        return Home("/", "CUDA_PATH", Text("CUDA_PATH is set and empty"))
    return None


def _on_path(target: Target, env: LaunchEnv) -> Home | None:
    """Two folders up from `which nvcc`, links and wrappers not followed."""
    if which(target, env, "which") is None:
        said = Text("CUDA_HOME is not set and there is no `which` to look for nvcc with")
        return Home(None, "", said)
    nvcc = which(target, env, "nvcc")
    if nvcc is None:
        return None
    said = Text("nvcc on PATH is {nvcc}", nvcc=nvcc)
    return Home(str(nvcc.parent.parent), "nvcc on PATH", said)


def _default(target: Target, env: LaunchEnv) -> Home | None:
    """/usr/local/cuda, where it exists."""
    if target.stat(Path("/usr/local/cuda")) is None:
        return None
    return Home("/usr/local/cuda", "the default", Text("the default is /usr/local/cuda"))


SEARCH: tuple[Callable[[Target, LaunchEnv], Home | None], ...] = (_named, _on_path, _default)
"""FlashInfer's search for CUDA, in its order; the first answer counts."""
# What its function names, in order: another name, or another order, is another search.
_SEARCHES = ("CUDA_HOME", "CUDA_PATH", "which", "nvcc", "/usr/local/cuda")
_SEARCHED = re.compile(r"[A-Z][A-Z_]+|/[\w./-]+|which|nvcc|bin/nvcc")


def cuda_home_searched(target: Target, env: LaunchEnv) -> Home:
    """What the search finds."""
    found = (step(target, env) for step in SEARCH)
    nowhere = Text("CUDA_HOME is not set, PATH has no nvcc, /usr/local/cuda does not exist")
    return next(filter(None, found), Home(None, "", nowhere))


def searches_as_known(source: Source) -> None:
    """Raises Unreadable where the installed FlashInfer looks for CUDA otherwise than `SEARCH`."""
    function = source.function(_BUILD, "get_cuda_path")
    texts = (n.value for n in _in_order(function) if isinstance(n, ast.Constant))
    names = tuple(t for t in texts if isinstance(t, str) and _SEARCHED.fullmatch(t))
    if names != _SEARCHES:
        raise Unreadable(source.root / _BUILD, "how it looks for CUDA")


def _in_order(function: ast.FunctionDef) -> list[ast.expr]:
    nodes = [node for node in ast.walk(function) if isinstance(node, ast.expr)]
    return sorted(nodes, key=lambda node: (node.lineno, node.col_offset))


def arch(source: Source, capability: tuple[int, int], nvcc: Version) -> str | None:
    """nvcc's name of what is compiled for a GPU, such as "90a", with that release of nvcc; None
    where FlashInfer refuses the GPU with it. Raises Unreadable."""
    major, minor = capability
    name = "_normalize_cuda_arch"
    if not source.has(_CONTEXT, rf"(?m)^    def {name}\("):
        least = source.target.search(
            source.root / _CONTEXT, r"if major >= (\d{1,2}):\s+minor = str"
        )
        if not least:
            raise Unreadable(source.root / _CONTEXT, "what it calls a GPU's architecture")
        return f"{major}{minor}{'a' if major >= int(least[0]) else ''}"
    function = source.function(_CONTEXT, name, inside=True)
    calls: dict[str, Callable[..., object]] = {
        "is_cuda_version_at_least": lambda least: nvcc >= Version(least),
        "str": str,
    }
    try:
        made = Case({"major": major, "minor": minor}, calls).returned(function)
        return f"{made[0]:d}{made[1]:s}"
    except Raised:
        return None
    except (Undecided, ValueError, TypeError, LookupError):
        raise Unreadable(source.root / _CONTEXT, name) from None


def known_arch(capability: tuple[int, int], nvcc: Version) -> str | None:
    """The same, as 0.6.8 to 0.7.2 have it."""
    major, minor = capability
    if (major, minor) == (12, 0):
        return "120f" if nvcc >= Version("12.9") else "120a"
    return f"{major}{minor}{'a' if major >= 9 else ''}"


def libraries(source: Source, experts: bool) -> tuple[str, ...]:
    """What a kernel is linked with; `experts`: one of a mixture of experts. Raises Unreadable."""
    found = source.target.search(source.root / _BUILD, r'(?m)^ +"-l(\w+)",$')
    if not found:
        raise Unreadable(source.root / _BUILD, "what it links with")
    if experts:
        more = source.target.search(source.root / "jit/fused_moe.py", r'"-l(\w+)"')
        if more is None:
            raise Unreadable(source.root / "jit/fused_moe.py", "what it links with")
        found += more
    return tuple(dict.fromkeys(found))


_READY = {
    "flashinfer-cubin": ("_get_cubin_dir",),
    "flashinfer-jit-cache": ("_get_aot_dir", "_get_aot_providers"),
}


def refuses_other_versions(source: Source, what: str) -> bool:
    """Whether `import flashinfer` ends where this distribution of ready kernels is of another
    version; where not, it is ignored. Raises Unreadable."""
    for name in _READY[what]:
        if source.has(_ENVIRONMENT, rf"(?m)^def {name}\("):
            function = source.function(_ENVIRONMENT, name)
            nodes = list(ast.walk(function))
            if any(isinstance(n, ast.Try) for n in nodes):
                return False
            if any(isinstance(n, ast.Raise) for n in nodes):
                return True
    raise Unreadable(source.root / _ENVIRONMENT, f"what it does with another {what}")


def caches(env: LaunchEnv) -> Path:
    """The folder of its caches (jit/env.py). Raises Missing where no variable leads to one."""
    base = env.get("FLASHINFER_WORKSPACE_BASE") or env.get("HOME")
    if not base:
        raise NotApplicable(Text("neither HOME nor FLASHINFER_WORKSPACE_BASE is set"))
    return Path(base) / ".cache/flashinfer"


_ARTIFACTS, _LOADER = "artifacts.py", "jit/cubin_loader.py"
_PACKAGE_FIRST = ["has_flashinfer_cubin()", "os.getenv('FLASHINFER_CUBIN_DIR')"]
GENERATED = {"attention": "TRTLLM_GEN_FMHA", "experts": "TRTLLM_GEN_BMM"}
"""Kernels that it takes as machine code (cubins): what they compute, and their name in
artifacts.py."""
GENERATED_MAJOR = 10
"""The GPUs that TensorRT-LLM's generator made them for: capability 10.x (B200, GB200, B300)."""


def cubin_folder(source: Source, env: LaunchEnv, package: bool) -> Path | None:
    """Where it reads cubins and writes those that it downloads; None for flashinfer-cubin's own
    folder. `package`: one that it accepts is installed. Raises Unreadable, and Missing as `caches`
    does."""
    calls = [
        ast.unparse(node)
        for node in _in_order(source.function(_ENVIRONMENT, "_get_cubin_dir"))
        if isinstance(node, ast.Call)
    ]
    order = list(dict.fromkeys(call for call in calls if call in _PACKAGE_FIRST))
    if sorted(order) != sorted(_PACKAGE_FIRST):
        raise Unreadable(source.root / _ENVIRONMENT, "where it reads its cubins")
    named = env.get("FLASHINFER_CUBIN_DIR")
    if named and not (package and order == _PACKAGE_FIRST):
        return Path(named)
    return None if package else caches(env) / "cubins"


def cubin_manifest(source: Source, kernels: str) -> str:
    """The first file that it fetches of these kernels, a path below the folder of cubins and below
    the repository. Raises Unreadable."""
    name = GENERATED[kernels]
    row = rf'(?m)^    {name}: str = \(?\s*"([^"]+)/"'
    found = source.target.search(source.root / _ARTIFACTS, row)
    if not found:
        raise Unreadable(source.root / _ARTIFACTS, name)
    return f"{found[0]}/checksums.txt"


def cubin_repository(source: Source, env: LaunchEnv) -> str:
    """The URL, or the folder, that it fetches cubins from. Raises Unreadable."""
    row = r'(?s)"FLASHINFER_CUBINS_REPOSITORY",\s*"([^"]+)"'
    found = source.target.search(source.root / _LOADER, row)
    if not found:
        raise Unreadable(source.root / _LOADER, "where it fetches its cubins")
    told = env.get("FLASHINFER_CUBINS_REPOSITORY")
    return found[0] if told is None else told
