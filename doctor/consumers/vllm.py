"""What vLLM has FlashInfer compile when it starts, for which GPUs, by its own files.

Read in 0.19.1 to 0.33.0 (tests/assumptions): the sampler (v1/sample/ops/topk_topp_sampler.py asks
FlashInferBackend), the experts of an unquantised mixture (fused_moe/oracle/unquantized.py, which
asks each kind of expert for its GPUs), attention (platforms/cuda.py).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from packaging.version import Version

from doctor.consumers.conditions import Case, ComputeCapability, Raised, Undecided
from doctor.consumers.source import Source, Unreadable
from doctor.frozen import dataclass
from doctor.tape import NotRecorded

CHECKED_UP_TO = "0.33.0"
"""The newest vLLM whose files were compared with all that is assumed here."""

_SAMPLER = "v1/attention/backends/flashinfer.py"
_EXPERTS = "model_executor/layers/fused_moe/"
_ORACLE = _EXPERTS + "oracle/unquantized.py"
_ORDERED = r"(?m)^def _get_priority_backends\("
_PLATFORM = "platforms/cuda.py"
_BACKENDS = "v1/attention/backends/registry.py"
_ENVS = "envs.py"
_UTILITIES = "utils/flashinfer.py"
# What a profile does not say: one data-parallel rank, experts with SiLU.
_MOE = {"moe_config.moe_parallel_config.dp_size": 1, "moe_config.activation": "SILU"}
GENERATED_EXPERTS = "FLASHINFER_TRTLLM"
"""Experts that FlashInfer takes as machine code of TensorRT-LLM's generator, not compiled."""
# Each of FlashInfer's kinds of experts, its class file.
_KINDS = {
    GENERATED_EXPERTS: "trtllm_bf16_moe.py",
    "FLASHINFER_CUTLASS": "flashinfer_cutlass_moe.py",
}


class Kernels(Protocol):
    """What FlashInfer compiles for a GPU of a compute capability."""

    def sampler(self, capability: tuple[int, int]) -> bool:
        """Its sampler serves this GPU, where it is on."""
        ...

    def experts(self, capability: tuple[int, int]) -> str | None:
        """Which of its kinds computes an unquantised mixture of experts there, unless told
        otherwise, such as "FLASHINFER_TRTLLM"; None where another's does."""
        ...

    def attention(self, capability: tuple[int, int]) -> bool | None:
        """Attention there is FlashInfer's by default; None where that depends on the model."""
        ...


@dataclass(frozen=True)
class Installed:
    """Kernels, read from the installed files. Every question raises Unreadable, which names the
    file, where it is not answered in a way that we can read."""

    source: Source

    def sampler(self, capability: tuple[int, int]) -> bool:
        return bool(self._ask(_SAMPLER, "supports_compute_capability", capability, inside=True))

    def experts(self, capability: tuple[int, int]) -> str | None:
        if not self.source.has(_ORACLE, _ORDERED):
            self._must_be_asked_for()
            return None
        for name in self._list(_ORACLE, "_get_priority_backends", capability, _MOE):
            if name not in _KINDS:
                return None  # Triton's, which serve every GPU
            if self._serves(name, capability):
                return str(name)
        return None

    def _must_be_asked_for(self) -> None:
        """Up to 0.19 FlashInfer's experts are taken only where a variable asks for them."""
        if not self.source.has(_ORACLE, r"and envs\.VLLM_USE_FLASHINFER_MOE_FP16\b"):
            raise Unreadable(self.source.root / _ORACLE, "which experts are taken")

    def _serves(self, kind: str, capability: tuple[int, int]) -> bool:
        file = _EXPERTS + "experts/" + _KINDS[kind]
        if self.source.target.stat(self.source.root / file) is None:
            file = _EXPERTS + _KINDS[kind]  # up to 0.20
        return bool(self._ask(file, "_supports_current_device", capability, inside=True))

    def attention(self, capability: tuple[int, int]) -> bool | None:
        answers = {self._first(capability, mla).startswith("FLASHINFER") for mla in (True, False)}
        return answers.pop() if len(answers) == 1 else None

    def _first(self, capability: tuple[int, int], mla: bool) -> str:
        """Of the backends in vLLM's order, the first that serves the GPU."""
        names = {"use_mla": mla, "device_capability": ComputeCapability(capability)}
        for backend in self._list(_PLATFORM, "_get_backend_priorities", capability, names):
            if self._attends(backend, capability):
                return backend
        raise Unreadable(self.source.root / _PLATFORM, "which attention serves this GPU")

    def _attends(self, backend: str, capability: tuple[int, int]) -> bool:
        """A class that says nothing serves every GPU (v1/attention/backend.py)."""
        row = rf'(?m)^    {re.escape(backend)} = \(?\s*"vllm\.(\w+(?:\.\w+)*)\.\w+"'
        modules = self.source.target.search(self.source.root / _BACKENDS, row)
        if not modules:
            raise Unreadable(self.source.root / _BACKENDS, backend)
        file, name = modules[0].replace(".", "/") + ".py", "supports_compute_capability"
        if not self.source.has(file, rf"(?m)^    def {name}\("):
            return True
        return bool(self._ask(file, name, capability, inside=True))

    def _list(
        self, file: str, name: str, capability: tuple[int, int], names: Mapping[str, Any]
    ) -> list[str]:
        made = self._ask(file, name, capability, names)
        if not isinstance(made, list) or not all(isinstance(row, str) for row in made):
            raise Unreadable(self.source.root / file, name)
        return made

    def _ask(
        self,
        file: str,
        name: str,
        capability: tuple[int, int],
        names: Mapping[str, Any] | None = None,
        inside: bool = False,
    ) -> Any:
        function = self.source.function(file, name, inside)
        known = {"capability": ComputeCapability(capability), **(names or {})}
        try:
            return Case(known, _calls(capability)).returned(function)
        except (Undecided, Raised):
            raise Unreadable(self.source.root / file, name) from None


def _calls(capability: tuple[int, int]) -> Mapping[str, Callable[..., Any]]:
    """What vLLM's platform answers on a GPU (platforms/interface.py), and how the oracle puts a
    list in order. FlashInfer's functions are there: that it is usable is asked elsewhere."""
    number = 10 * capability[0] + capability[1]

    def as_number(value: Any) -> int:
        return 10 * value[0] + value[1] if isinstance(value, tuple) else int(value)

    def to_back(rows: list[str], row: str) -> None:
        rows.append(rows.pop(rows.index(row)))

    return {
        "DeviceCapability": lambda major, minor: ComputeCapability((major, minor)),
        "is_device_capability": lambda value: number == as_number(value),
        "has_device_capability": lambda value: number >= as_number(value),
        "is_device_capability_family": lambda value: number // 10 == as_number(value) // 10,
        "is_cuda": lambda: True,
        "is_cuda_alike": lambda: True,
        **dict.fromkeys(("is_rocm", "is_xpu", "is_cpu", "is_tpu", "is_out_of_tree"), lambda: False),
        "_move_to_back": to_back,
        "has_flashinfer_cutlass_fused_moe": lambda: True,
        "has_flashinfer_trtllm_fused_moe": lambda: True,
    }


def kernels(source: Source, version: Version) -> Kernels:
    """Those of the installed vLLM. Raises NotRecorded for a snapshot that holds none of its files,
    but of 0.22.0."""
    try:
        source.target.search(source.root / _ORACLE, _ORDERED)
    except NotRecorded:
        if version.public != "0.22.0":
            raise
        return Of022()
    return Installed(source)


class Of022:
    """Kernels of vLLM 0.22.0, for snapshots that older doctors recorded: they knew that release,
    and looked into no file of it."""

    def sampler(self, capability: tuple[int, int]) -> bool:
        return (7, 5) <= capability <= (12, 1)

    def experts(self, capability: tuple[int, int]) -> str | None:
        if capability[0] == 10:
            return GENERATED_EXPERTS
        return "FLASHINFER_CUTLASS" if capability[0] in (9, 12) else None

    def attention(self, capability: tuple[int, int]) -> bool | None:
        return capability[0] == 10


_LOOKED_FOR = {
    "shutil.which('nvcc')": "PATH",
    "_flashinfer_nvcc_path()": "toolkit",
    "shutil.which('ninja')": "ninja",
}


def sampler_by_default(source: Source) -> bool | None:
    """Whether FlashInfer's sampler is on by default; None where envs.py does not say."""
    path = source.root / _ENVS
    name = "VLLM_USE_FLASHINFER_SAMPLER"
    try:
        rows = source.target.search(path, rf"\n    {name}: [^\n=]*= *(\w+)")
    except NotRecorded:  # as doctors before 0.4 asked
        rows = source.target.search(path, rf"{name}: .*= *(\w+)")
    return {"True": True, "False": False, "None": False}.get(rows[0]) if rows else None


def sampler_falls_back(source: Source) -> bool:
    """Whether vLLM takes its own sampler where FlashInfer cannot compile for the GPU (0.33 on);
    before, the server ends."""
    return source.has(
        "v1/sample/ops/topk_topp_sampler.py", r"(?m)^def _flashinfer_jit_unsupported_reason\("
    )


def needs_for_flashinfer(source: Source) -> frozenset[str]:
    """What `has_flashinfer` wants to find where no flashinfer-cubin is installed, of "PATH" (nvcc
    there), "toolkit" (nvcc where FlashInfer looks for it) and "ninja". Without it, vLLM takes its
    own kernels for all but the sampler. Raises Unreadable."""
    function = source.function(_UTILITIES, "has_flashinfer")
    calls = {ast.unparse(node) for node in ast.walk(function) if isinstance(node, ast.Call)}
    if unknown := {c for c in calls if c.startswith("shutil.") and c not in _LOOKED_FOR}:
        raise Unreadable(source.root / _UTILITIES, ", ".join(unknown))
    return frozenset(_LOOKED_FOR[call] for call in calls & set(_LOOKED_FOR))


def declares(source: Source, name: str) -> bool:
    """Whether vLLM knows the variable. Raises Unreadable."""
    return source.has(_ENVS, rf'(?m)^    "{name}":')
