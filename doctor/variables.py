"""The environment variables that are judged, one row each: what reads them, and what the doctor
does with them. (What is a fact about another program alone, such as the names that vLLM knows,
stands with that program in `doctor.consumers`.)
"""

from __future__ import annotations

from enum import Flag, auto
from typing import NamedTuple

from doctor.model import Text


class Trait(Flag):
    """What holds of a variable."""

    LIST = auto()
    """Folders, of which a part can be a fix's and the rest the shell's."""
    SET = auto()
    """A fix may set it, take it out or put a folder in front."""
    RECORDED = auto()
    """A snapshot has its value: a probe or a rule reads it."""
    BUILD = auto()
    """nvcc, c++, ld or the loader read it: part of the key of a test build."""
    IMPORT = auto()
    """It decides what is imported, and from where: part of the key of the imports."""
    CODE_FOLDERS = auto()
    """Folders, separated by : or ;, from which the loader or a compiler takes code."""
    CODE_FILES = auto()
    """Files of code, separated by : or blanks."""
    FLAGS = auto()
    """Arguments of nvcc, which may name files of code."""


class Variable(NamedTuple):
    """`why`: what it is for, and whose."""

    name: str
    why: Text
    traits: Trait


_READ = Trait.RECORDED
_BUILD = Trait.RECORDED | Trait.BUILD
_IMPORT = Trait.RECORDED | Trait.IMPORT

VARIABLES = (
    Variable("CC", Text("the C compiler of Triton and of nvcc"), _BUILD | Trait.SET),
    Variable("COMPILER_PATH", Text("where gcc finds its parts"), Trait.CODE_FOLDERS),
    Variable(
        "CPATH",
        Text("folders of headers, before those that nvcc names"),
        _BUILD | Trait.SET | Trait.LIST | Trait.CODE_FOLDERS,
    ),
    Variable("CPLUS_INCLUDE_PATH", Text("folders of headers of g++"), _BUILD | Trait.CODE_FOLDERS),
    Variable("CUDA_DEVICE_ORDER", Text("how CUDA counts the GPUs"), _READ | Trait.SET),
    Variable(
        "CUDA_HOME",
        Text("where FlashInfer finds nvcc, its headers and its libraries"),
        _BUILD | Trait.SET,
    ),
    Variable(
        "CUDA_PATH", Text("where FlashInfer looks for nvcc without CUDA_HOME"), _BUILD | Trait.SET
    ),
    Variable("CUDA_VISIBLE_DEVICES", Text("the GPUs that the server sees"), _READ | Trait.SET),
    Variable("CXX", Text("the C++ compiler that FlashInfer links with"), _BUILD | Trait.SET),
    Variable(
        "C_INCLUDE_PATH",
        Text("folders of headers of gcc, for Python.h"),
        _READ | Trait.CODE_FOLDERS,
    ),
    Variable("FLASHINFER_CUBINS_REPOSITORY", Text("where FlashInfer's kernels come from"), _READ),
    Variable("FLASHINFER_CUBIN_DIR", Text("where FlashInfer has its downloaded kernels"), _READ),
    Variable(
        "FLASHINFER_CUDA_ARCH_LIST",
        Text("the architectures that FlashInfer compiles for"),
        _READ | Trait.SET,
    ),
    Variable(
        "FLASHINFER_DISABLE_VERSION_CHECK", Text("whether FlashInfer compares its wheels"), _READ
    ),
    Variable("FLASHINFER_EXTRA_CUDAFLAGS", Text("more arguments of FlashInfer's nvcc"), _BUILD),
    Variable("FLASHINFER_EXTRA_LDFLAGS", Text("more arguments of FlashInfer's linker"), _BUILD),
    Variable("FLASHINFER_NO_DOWNLOAD", Text("whether FlashInfer downloads kernels"), _READ),
    Variable("FLASHINFER_NVCC", Text("FlashInfer's nvcc"), _READ),
    Variable(
        "FLASHINFER_WORKSPACE_BASE",
        Text("where FlashInfer keeps the kernels that it built"),
        _READ | Trait.SET,
    ),
    Variable("GCC_EXEC_PREFIX", Text("where gcc finds its parts"), Trait.CODE_FOLDERS),
    Variable("HF_ENDPOINT", Text("whether the profile's mirror stands in for the hub"), _READ),
    Variable("HF_HOME", Text("where the hub's cache is"), _READ),
    Variable("HF_HUB_CACHE", Text("the hub's cache"), _READ),
    Variable(
        "HF_HUB_DISABLE_XET",
        Text("whether the hub's client keeps to plain HTTP"),
        _READ | Trait.SET,
    ),
    Variable("HF_HUB_OFFLINE", Text("whether the hub is asked at all"), _READ),
    Variable("HOME", Text("the caches; a snapshot calls it /home/user"), _READ),
    Variable("HUGGINGFACE_HUB_CACHE", Text("the hub's cache, by its old name"), _READ),
    Variable("LD_AUDIT", Text("what every process loads"), Trait.CODE_FILES),
    Variable(
        "LD_LIBRARY_PATH",
        Text("where the loader looks first for shared libraries"),
        _BUILD | _IMPORT | Trait.SET | Trait.LIST | Trait.CODE_FOLDERS,
    ),
    Variable("LD_PRELOAD", Text("what every process loads"), _IMPORT | Trait.CODE_FILES),
    Variable(
        "LIBRARY_PATH",
        Text("where the linker looks for libraries"),
        _BUILD | Trait.SET | Trait.LIST | Trait.CODE_FOLDERS,
    ),
    Variable("NVCC_APPEND_FLAGS", Text("nvcc's last arguments"), _BUILD | Trait.SET | Trait.FLAGS),
    Variable("NVCC_CCBIN", Text("nvcc's host compiler"), _BUILD),
    Variable("NVCC_PREPEND_FLAGS", Text("nvcc's first arguments"), _BUILD | Trait.FLAGS),
    Variable(
        "PATH",
        Text("where nvcc, ninja and the compilers are found by name"),
        _READ | Trait.SET | Trait.LIST,
    ),
    Variable("PYTHONNOUSERSITE", Text("where Python imports from"), _IMPORT),
    Variable("PYTHONPATH", Text("where Python imports from"), _IMPORT),
    Variable("TRANSFORMERS_OFFLINE", Text("the same of HF_HUB_OFFLINE, by its old name"), _READ),
    Variable("TRITON_LIBCUDA_PATH", Text("where Triton finds libcuda"), _READ | Trait.SET),
    Variable(
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN",
        Text("whether a context beyond the model's is let be"),
        _READ,
    ),
    Variable(
        "VLLM_HAS_FLASHINFER_CUBIN", Text("whether vLLM looks for FlashInfer's kernels"), _READ
    ),
    Variable(
        "VLLM_USE_FLASHINFER_MOE_FP16",
        Text("whether FlashInfer compiles the experts' kernels"),
        _READ | Trait.SET,
    ),
    Variable(
        "VLLM_USE_FLASHINFER_SAMPLER",
        Text("whether vLLM samples with FlashInfer's kernels"),
        _IMPORT | Trait.SET,
    ),
    Variable("VLLM_USE_MODELSCOPE", Text("whether ModelScope stands in for the hub"), _READ),
    Variable("XDG_CACHE_HOME", Text("where the hub's cache is"), _READ),
)


def names_with(trait: Trait) -> tuple[str, ...]:
    """Of the variables that have this trait, in the order of their names."""
    return tuple(one.name for one in VARIABLES if trait in one.traits)


SETTABLE = frozenset(names_with(Trait.SET))
PATH_LIKE = frozenset(names_with(Trait.LIST))
RECORDED = frozenset(names_with(Trait.RECORDED))
