"""What vLLM imports when it starts, and what of it dies without a GPU.

Read in 0.19.1 to 0.33.0. Nothing is listed that vLLM imports with `except Exception` around it
(vllm.third_party.deep_gemm, in utils/deep_gemm.py): whatever it dies of, the server goes on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from doctor.consumers.conditions import Case, ComputeCapability, Raised, Undecided
from doctor.consumers.source import Source, Unreadable
from doctor.frozen import dataclass

ROOTS = ("torch", "vllm")
"""What all the rest imports: where one of these dies, what the others die of says nothing."""

# The processes of `vllm serve`: its command line imports the first, each worker the second.
_SERVER = ("vllm.entrypoints.openai.api_server", "vllm.v1.worker.gpu_worker")
_MODELS = "vllm.model_executor.models."
_REGISTRY = "model_executor/models/registry.py"
_PLATFORM = "platforms/cuda.py"
_BACKENDS = "v1/attention/backends/registry.py"
_COMMUNICATORS = "vllm.distributed.device_communicators."
_COMMUNICATOR = "distributed/device_communicators/cuda_communicator.py"
_FLASHINFER = "vllm.v1.attention.backends.flashinfer"
# What compiles kernels of its own, and where vLLM imports it: only for some models, quantisations
# or GPUs, at the place of use; of deep_gemm it goes on after an ImportError (utils/deep_gemm.py).
_COMPILERS: dict[str, tuple[str, ...]] = {
    "deep_gemm": ("ImportError",),
    "tilelang": (),
    "humming": (),
    "cutlass": (),
    "quack": (),
}

WITHOUT_GPU = (
    # vllm/config/device.py, DeviceConfig
    "Failed to infer device type",
    # the loader, of vllm/_C*.so and the other extensions
    "libcuda.so.1: cannot open shared object file",
    # vllm/vllm_flash_attn/__init__.py, of extensions that the loader refused for that reason
    "requires the CUDA flash attention extensions",
    # torch/cuda/__init__.py, which mla/cutlass_mla.py asks, and mla/flashinfer_mla.py of 0.22
    "Found no NVIDIA driver on your system",
    "Unexpected error from cudaGetDeviceCount()",
    "No CUDA GPUs are available",
    # vllm/triton_utils/importing.py of 0.33 puts placeholders in Triton's place, which does without
    # its autotuner only where vLLM sees no GPU either (mamba/ops/ssd_chunk_scan.py)
    "'function' object has no attribute 'num_stages'",
)
"""What an import dies of in a known-good environment (0.22.0, 0.33.0) where torch can use no GPU:
it says nothing of the environment. Why there is none, the rules about the driver judge."""


@dataclass(frozen=True)
class Import:
    """A module that vLLM imports. `caught`: the exceptions after which vLLM goes on without it;
    `always`: every start of this server imports it, or else some models or GPUs do."""

    module: str
    caught: tuple[str, ...] = ()
    always: bool = True


@dataclass(frozen=True)
class Start:
    """The server that starts. `sampler`: FlashInfer's is used, whose import is not caught;
    `capabilities` of its GPUs, () where they are not known."""

    architecture: str | None
    capabilities: tuple[tuple[int, int], ...]
    ranks: int
    sampler: bool


def imports(source: Source, start: Start) -> Iterator[Import]:
    """What this start imports, in an order in which the first to die is the most telling: not all
    of it is there. `source` is the installed vLLM."""
    yield from map(Import, ROOTS)
    model = _model(source, start.architecture) if start.architecture else None
    mla = model is not None and _has_mla(source, model)
    backends = list(_attention(source, start, mla))
    first = next((b for b in backends if b.module == _FLASHINFER), None)
    if start.sampler:  # v1/sample/ops/topk_topp_sampler.py imports the backend itself
        first = Import(_FLASHINFER)
    if first:
        yield Import("flashinfer", first.caught)
        yield first
    yield from map(Import, _SERVER)
    if model:
        yield Import(model)
    yield from (b for b in backends if b.module != _FLASHINFER)
    if start.ranks > 1:
        yield from map(Import, _communicators(source))
    yield from (Import(name, caught, always=False) for name, caught in _COMPILERS.items())


def _model(source: Source, architecture: str) -> str | None:
    """The module of a class in vLLM's registry, None where it has no such class. Raises
    Unreadable."""
    path = source.root / _REGISTRY
    rows = source.target.search(path, rf'"{re.escape(architecture)}": *\(\s*"([\w.]+)"')
    if rows is None:
        raise Unreadable(path, architecture)
    if not rows:
        return None
    return rows[0] if rows[0].startswith("vllm.") else _MODELS + rows[0]


def _has_mla(source: Source, model: str) -> bool:
    file = model.removeprefix("vllm.").replace(".", "/") + ".py"
    return bool(source.target.search(source.root / file, r"\bkv_lora_rank\b"))


def _attention(source: Source, start: Start, mla: bool) -> Iterator[Import]:
    """All backends that vLLM would take for these GPUs: it imports each of them before it chooses
    (CudaPlatform.get_valid_backends). Raises Unreadable."""
    caught = _caught(source)
    names: dict[str, None] = {}
    for capability in start.capabilities or ((8, 0),):
        names.update(dict.fromkeys(_priorities(source, capability, mla)))
    rows = source.target.search(
        source.root / _BACKENDS, r'(?m)^    (\w+ = \(?\s*"vllm(?:\.[a-z_0-9]+)+)\.'
    )
    modules = dict(re.split(r'[ (="\s]+', row, maxsplit=1) for row in rows or ())
    for name in names:
        if name not in modules:
            raise Unreadable(source.root / _BACKENDS, name)
        yield Import(modules[name], caught)


def _priorities(source: Source, capability: tuple[int, int], mla: bool) -> list[str]:
    function = source.function(_PLATFORM, "_get_backend_priorities")
    names = {"use_mla": mla, "device_capability": ComputeCapability(capability)}
    try:
        return [str(name) for name in Case(names, {}).returned(function)]
    except (Undecided, Raised, ValueError, LookupError, TypeError):
        raise Unreadable(source.root / _PLATFORM, function.name) from None


def _caught(source: Source) -> tuple[str, ...]:
    """The exceptions after which vLLM leaves a backend out."""
    path = source.root / _PLATFORM
    pattern = r"(?s)def get_valid_backends\(.*?except \(?([\w, ]+?)\)?(?: as \w+)?:"
    rows = source.target.search(path, pattern)
    if not rows:
        raise Unreadable(path, "get_valid_backends")
    return tuple(name.strip() for name in rows[0].split(","))


def _communicators(source: Source) -> list[str]:
    """What joins the ranks of tensor parallelism: CudaCommunicator imports each of these when it is
    made. Raises Unreadable."""
    path = source.root / _COMMUNICATOR
    rows = source.target.search(path, r"from vllm\.distributed\.device_communicators\.(\w+) import")
    if not rows:
        raise Unreadable(path, "what it imports")
    return [_COMMUNICATORS + name for name in dict.fromkeys(("cuda_communicator", *rows))]
