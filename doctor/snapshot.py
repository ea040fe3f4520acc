"""What of a recording may leave the machine: no secret, no name of a person or a home, and of the
environment only what is judged."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from doctor import probes
from doctor.engine import Crashed, Facts
from doctor.model import Missing
from doctor.probes.driver import DeepAsked, InstalledDriver
from doctor.probes.host import HostCompilers
from doctor.probes.interpreter import Interpreter
from doctor.redact import redacted

# The variables whose values a probe or a rule reads, and what of the server reads them. Of all
# others at most the name is kept.
RECORDED = {
    "CC": "Triton's compiler, and nvcc's where FlashInfer calls it",
    "CPATH": "folders of headers: gcc, nvcc",
    "CPLUS_INCLUDE_PATH": "folders of headers: g++",
    "CUDA_HOME": "FlashInfer's toolkit",
    "CUDA_PATH": "FlashInfer's toolkit without CUDA_HOME",
    "CUDA_VISIBLE_DEVICES": "the GPUs that CUDA shows",
    "CXX": "the compiler that FlashInfer links with",
    "C_INCLUDE_PATH": "folders of headers: gcc, for Python.h",
    "FLASHINFER_CUBINS_REPOSITORY": "from where FlashInfer downloads kernels",
    "FLASHINFER_CUBIN_DIR": "where FlashInfer has its downloaded kernels",
    "FLASHINFER_CUDA_ARCH_LIST": "the architectures that FlashInfer compiles for",
    "FLASHINFER_DISABLE_VERSION_CHECK": "whether FlashInfer compares its wheels",
    "FLASHINFER_EXTRA_CUDAFLAGS": "FlashInfer's command line of nvcc",
    "FLASHINFER_EXTRA_LDFLAGS": "FlashInfer's command line of the linker",
    "FLASHINFER_NO_DOWNLOAD": "whether FlashInfer downloads kernels",
    "FLASHINFER_NVCC": "FlashInfer's nvcc",
    "FLASHINFER_WORKSPACE_BASE": "FlashInfer's cache",
    "HF_ENDPOINT": "whether the profile's mirror stands in for the hub",
    "HOME": "the caches; a recording calls it /home/user",
    "LD_LIBRARY_PATH": "the loader",
    "LD_PRELOAD": "what every process loads",
    "LIBRARY_PATH": "the linker",
    "NVCC_APPEND_FLAGS": "nvcc",
    "NVCC_CCBIN": "nvcc",
    "NVCC_PREPEND_FLAGS": "nvcc",
    "PATH": "programs that are found by name",
    "PYTHONNOUSERSITE": "where Python imports from",
    "PYTHONPATH": "where Python imports from",
    "TRITON_LIBCUDA_PATH": "Triton's libcuda",
    "VLLM_HAS_FLASHINFER_CUBIN": "whether vLLM looks for FlashInfer's kernels",
    "VLLM_USE_FLASHINFER_MOE_FP16": "which kernels vLLM takes",
    "VLLM_USE_FLASHINFER_SAMPLER": "which kernels vLLM takes",
}
# Who helps somebody wants to know that one of these was set.
_NAMED = re.compile(r"(?:VLLM|HF|CUDA|NCCL|GLOO|FLASHINFER)_\w+|TORCH\w*")

# A name ends where no further letter of a name follows.
_END = r"(?![\w-]|\.\w)"
# Folder names that say nothing of a person, also where a user is called so.
_PLAIN = frozenset(
    ("root", "nvidia", "python", "vllm", "torch", "lib", "bin", "opt", "usr", "user")
)


def ask_everything(facts: Facts) -> tuple[str, ...]:
    """Asks for every fact that can be found out without a proof, so that whoever judges the answers
    may ask for another model, other GPUs, or none; returns their names. `facts` were given Where
    and Profile. Raises Missing (NotPython) or Crashed where the interpreter does not answer."""
    facts = facts.given(DeepAsked(False))
    facts.ask_ahead(Interpreter, InstalledDriver, HostCompilers)
    facts.get(Interpreter)
    for module in pkgutil.iter_modules(probes.__path__):
        if not module.name.startswith("_"):  # those run in a child
            importlib.import_module(f"{probes.__name__}.{module.name}")
    registry = facts.registry
    proofs = {k for k in registry.kinds() if DeepAsked in (n for _, n, _ in registry.needs(k))}
    asked = [kind for kind in registry.kinds() if kind not in proofs]
    for kind in asked:
        with contextlib.suppress(Missing, Crashed):
            facts.get(kind)
    return tuple(sorted(kind.__name__ for kind in asked))


def shareable(recording: dict[str, Any], home: str | None) -> dict[str, Any]:
    """The recording without the values of variables that nothing reads, secrets, and the home's
    real name.

    A home is replaced everywhere by /home/user, so that paths still fit each other.
    """
    shell = recording["env"]
    env = {name: value for name, value in shell.items() if name in RECORDED}
    names = sorted(filter(_NAMED.fullmatch, shell))
    made: dict[str, Any] = _Nameless(home)({**recording, "env": env, "env_names": names})
    clean: dict[str, Any] = redacted(made)
    return clean


class _Nameless:
    """Data without the name of a home, and of other people's."""

    def __init__(self, home: str | None) -> None:
        self._rules: list[tuple[re.Pattern[str], str]] = []
        if home and len(Path(home).parts) > 1 and home != "/root":
            whole = re.escape(home.rstrip("/"))
            self._rules.append((re.compile(whole + _END), "/home/user"))
            name = Path(home).name
            if name not in _PLAIN and len(name) > 1:
                self._rules.append((re.compile(rf"(?<=/){re.escape(name)}{_END}"), "user"))
        self._rules.append((re.compile(rf"/home/(?!user{_END})[\w.-]*\w"), "/home/someone"))

    def __call__(self, value: Any) -> Any:
        if isinstance(value, str):
            for pattern, new in self._rules:
                value = pattern.sub(new, value)
            return value
        if isinstance(value, Mapping):
            return {self(k): self(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self(v) for v in value]
        return value
