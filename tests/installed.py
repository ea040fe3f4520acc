"""What the doctor reads of vLLM 0.22 and FlashInfer 0.6, in files of the same shape.

Each function says what the real one says of GPUs, in as few words; tests/assumptions holds the
readers against the real files of many releases.
"""

from __future__ import annotations

_ENVS = """\
if TYPE_CHECKING:
    VLLM_USE_FLASHINFER_SAMPLER: bool = True
    VLLM_USE_FLASHINFER_MOE_FP16: bool = False

environment_variables: dict[str, Callable[[], Any]] = {
    "VLLM_PORT": get_vllm_port,
    "VLLM_LOGGING_LEVEL": lambda: os.getenv("VLLM_LOGGING_LEVEL", "INFO").upper(),
    "VLLM_USE_FLASHINFER_SAMPLER": lambda: bool(
        int(os.environ["VLLM_USE_FLASHINFER_SAMPLER"])
    ) if "VLLM_USE_FLASHINFER_SAMPLER" in os.environ else True,
    "VLLM_USE_FLASHINFER_MOE_FP16": lambda: bool(
        int(os.getenv("VLLM_USE_FLASHINFER_MOE_FP16", "0"))
    ),
}
"""
_OPTIONS = """\
def _compute_kwargs(cls):
            elif name in (
                "max_num_batched_tokens",
            ):
                kwargs[name]["type"] = human_readable_int


class EngineArgs:
    enforce_eager: bool = ModelConfig.enforce_eager

        model_kwargs = get_kwargs(ModelConfig)
        group.add_argument("--model", **model_kwargs["model"])
        group.add_argument("--served-model-name", **model_kwargs["served_model_name"])
        group.add_argument("--max-model-len", **model_kwargs["max_model_len"])
        group.add_argument("--dtype", **model_kwargs["dtype"])
        group.add_argument("--enforce-eager", **model_kwargs["enforce_eager"])
        group.add_argument("--gpu-memory-utilization", **model_kwargs["gpu_memory_utilization"])
        group.add_argument(
            "--tensor-parallel-size", "-tp", **model_kwargs["tensor_parallel_size"]
        )
        group.add_argument("--reasoning-parser", **model_kwargs["parser"])
        group.add_argument("--reasoning-parser-plugin", **model_kwargs["parser"])
        group.add_argument("--moe-backend", **model_kwargs["parser"])
        group.add_argument("--model-impl", **model_kwargs["parser"])
        group.add_argument("--hf-token", **model_kwargs["hf_token"])
        group.add_argument("--hf-overrides", **model_kwargs["hf_overrides"])
        group.add_argument("--quantization", "-q", **model_kwargs["parser"])


class AsyncEngineArgs(EngineArgs):
    pass
"""
_CONFIG = """
from vllm.config.utils import config

ModelDType = Literal["auto", "half", "bfloat16", "float16"]


@config
class ModelConfig:
    model: str = "Qwen/Qwen3-0.6B"
    served_model_name: str | list[str] | None = None
    max_model_len: int = Field(default=None, ge=-1)
    dtype: ModelDType | torch.dtype = "auto"
    enforce_eager: bool = False
    gpu_memory_utilization: float = Field(default=0.92, gt=0, le=1)
    tensor_parallel_size: int = 1
    parser: str | None = None
    hf_token: bool | str | None = None
    hf_overrides: dict[str, Any] | Callable = field(default_factory=dict)
"""
_SERVER = """
@config
class FrontendArgs:
    host: str | None = None
    port: int = 8000
    api_key: list[str] | None = None
    enable_auto_tool_choice: bool = False
    tool_call_parser: str | None = None

            group.add_argument(*extra_flags, f"--{key.replace('_', '-')}", **value)
"""
_REGISTRY = """\
class AttentionBackendEnum(Enum):
    FLASH_ATTN = "vllm.v1.attention.backends.flash_attn.FlashAttentionBackend"
    FLASHINFER = "vllm.v1.attention.backends.flashinfer.FlashInferBackend"
    FLASHINFER_MLA = (
        "vllm.v1.attention.backends.mla.flashinfer_mla.FlashInferMLABackend"
    )
    TRITON_ATTN = "vllm.v1.attention.backends.mla.triton_mla.TritonAttentionBackend"
    TRITON_MLA = "vllm.v1.attention.backends.mla.triton_mla.TritonMLABackend"
"""
_PLATFORM = """\
def _get_backend_priorities(use_mla, device_capability, num_heads=None):
    if use_mla:
        return [AttentionBackendEnum.FLASHINFER_MLA, AttentionBackendEnum.TRITON_MLA]
    if device_capability.major == 10:
        return [AttentionBackendEnum.FLASHINFER, AttentionBackendEnum.FLASH_ATTN]
    return [
        AttentionBackendEnum.FLASH_ATTN,
        AttentionBackendEnum.FLASHINFER,
        AttentionBackendEnum.TRITON_ATTN,
    ]


def with_nvml_context(fn):
    return fn


class CudaPlatformBase:
    @classmethod
    def get_valid_backends(cls, device_capability):
        try:
            backend.get_class()
        except ImportError:
            pass
"""
_COMMUNICATOR = """\
class CudaCommunicator:
    def __init__(self):
        from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
"""
_ORACLE = """\
def _get_priority_backends(moe_config):
    def _move_to_back(backends, backend):
        backends.append(backends.pop(backends.index(backend)))

    if current_platform.is_rocm():
        rows = [UnquantizedMoeBackend.AITER]
    elif current_platform.is_cuda():
        rows = [
            UnquantizedMoeBackend.FLASHINFER_TRTLLM,
            UnquantizedMoeBackend.FLASHINFER_CUTLASS,
            UnquantizedMoeBackend.TRITON,
        ]
        if moe_config.moe_parallel_config.dp_size > 1:
            _move_to_back(rows, UnquantizedMoeBackend.FLASHINFER_CUTLASS)
    return rows
"""
_UTILITIES = """\
def has_flashinfer():
    if importlib.util.find_spec("flashinfer") is None:
        return False
    if not has_flashinfer_cubin() and shutil.which("nvcc") is None:
        return False
    return True
"""


_CLASS = "class One:\n    @classmethod\n    def {}:\n        return {}\n"


def _serves(condition: str) -> str:
    return _CLASS.format("supports_compute_capability(cls, capability)", condition)


def _experts(condition: str) -> str:
    return _CLASS.format("_supports_current_device()", f"p.is_cuda() and ({condition})")


_EXPERTS = "vllm/model_executor/layers/fused_moe/"
_ATTENTION = "vllm/v1/attention/backends/"
VLLM_FILES = {
    "vllm/__init__.py": "",
    "vllm/envs.py": _ENVS,
    "vllm/engine/arg_utils.py": _OPTIONS,
    "vllm/entrypoints/openai/cli_args.py": _SERVER,
    "vllm/config/__init__.py": "\nfrom vllm.config.model import ModelConfig\n",
    "vllm/config/model.py": _CONFIG,
    "vllm/model_executor/models/registry.py": (
        "\n_TEXT_GENERATION_MODELS = {\n"
        '    "Glm4MoeLiteForCausalLM": ("glm4_moe_lite", "Glm4MoeLiteForCausalLM"),\n}\n'
        '_PREVIOUSLY_SUPPORTED_MODELS = {\n    "MotifForCausalLM": "0.10.2",\n}\n'
        "ModelRegistry = _ModelRegistry()\n"
    ),
    "vllm/transformers_utils/config.py": (
        "\n_CONFIG_REGISTRY: dict[str, type[PretrainedConfig]] = LazyConfigDict(\n"
        '    chatglm="ChatGLMConfig",\n    **{"unlimited-ocr": "UnlimitedOCRConfig"},\n)\n'
    ),
    "vllm/reasoning/__init__.py": (
        '\n_REASONING_PARSERS_TO_REGISTER = {\n    "deepseek_r1": (  # name\n    ),\n'
        '    "glm45": (\n    ),\n}\n'
    ),
    "vllm/tool_parsers/__init__.py": (
        '\n_TOOL_PARSERS_TO_REGISTER = {\n    "glm45": (\n    ),\n    "glm47": (\n    ),\n}\n'
    ),
    "vllm/platforms/cuda.py": _PLATFORM,
    "vllm/distributed/device_communicators/cuda_communicator.py": _COMMUNICATOR,
    "vllm/distributed/device_communicators/pynccl.py": "",
    "vllm/utils/flashinfer.py": _UTILITIES,
    "vllm/v1/sample/ops/topk_topp_sampler.py": "class TopKTopPSampler:\n    pass\n",
    f"{_EXPERTS}oracle/unquantized.py": _ORACLE,
    f"{_EXPERTS}experts/trtllm_bf16_moe.py": _experts("p.is_device_capability_family(100)"),
    f"{_EXPERTS}experts/flashinfer_cutlass_moe.py": _experts(
        "p.is_device_capability(90)\n"
        "            or p.is_device_capability_family(100)\n"
        "            or p.is_device_capability_family(120)"
    ),
    f"{_ATTENTION}registry.py": _REGISTRY,
    f"{_ATTENTION}flash_attn.py": _serves("capability >= DeviceCapability(8, 0)"),
    f"{_ATTENTION}flashinfer.py": _serves(
        "capability >= DeviceCapability(7, 5) and capability <= DeviceCapability(12, 1)"
    ),
    f"{_ATTENTION}mla/flashinfer_mla.py": _serves("capability.major == 10"),
    f"{_ATTENTION}mla/triton_mla.py": "class TritonMLABackend:\n    pass\n",
}

_BUILD = """\
def get_cuda_path():
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home is None:
        found = subprocess.run(["which", "nvcc"], capture_output=True)
        home = two_up(found) if found.returncode == 0 else "/usr/local/cuda"
    return home


def generate_ninja_build_for_op():
    ldflags = [
        "-shared",
        "-lcudart",
        "-lcuda",
    ]
"""
_CONTEXT = """\
class CompilationContext:
    @staticmethod
    def _normalize_cuda_arch(major, minor):
        if major == 9:
            return (major, str(minor) + "a")
        elif major == 12:
            if is_cuda_version_at_least("12.9"):
                if minor == 0:
                    return (major, "0f")
                else:
                    return (major, str(minor) + "a")
            else:
                raise RuntimeError("SM 12.x requires CUDA >= 12.9")
        elif major >= 10:
            return (major, str(minor) + "a")
        return (major, str(minor))
"""
_READY = """\
def _get_cubin_dir():
    if has_flashinfer_cubin():
        if other() and not os.getenv("FLASHINFER_DISABLE_VERSION_CHECK"):
            raise RuntimeError("another version")
        return pathlib.Path(flashinfer_cubin.get_cubin_dir())
    env_dir = os.getenv("FLASHINFER_CUBIN_DIR")
    if env_dir:
        return pathlib.Path(env_dir)
    return FLASHINFER_CACHE_DIR / "cubins"


def _get_aot_dir():
    if other() and not os.getenv("FLASHINFER_DISABLE_VERSION_CHECK"):
        raise RuntimeError("another version")
    return there
"""
_LOADER = """\
FLASHINFER_CUBINS_REPOSITORY = os.environ.get(
    "FLASHINFER_CUBINS_REPOSITORY",
    "https://cubins.test/generic/",
)
"""
_ARTIFACTS = """\
class ArtifactPath:
    TRTLLM_GEN_FMHA: str = "158f6f/fmha/trtllm-gen/"
    TRTLLM_GEN_BMM: str = (
        "c21ddd/batched_gemm/"
    )


class CheckSumHash:
    TRTLLM_GEN_FMHA: str = (
        "c2d939"
    )
"""
FLASHINFER_FILES = {
    "flashinfer/__init__.py": "",
    "flashinfer/compilation_context.py": _CONTEXT,
    "flashinfer/jit/cpp_ext.py": _BUILD,
    "flashinfer/artifacts.py": _ARTIFACTS,
    "flashinfer/jit/cubin_loader.py": _LOADER,
    "flashinfer/jit/env.py": _READY,
    "flashinfer/jit/fused_moe.py": 'ldflags = ["-lnvrtc"]\n',
}
