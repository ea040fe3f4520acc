"""What is read of each version that was looked at by a person: all of the first, then what changed.

What changed was looked up in the file when its row was written; what really happens in these
versions, tests/real_stack/versions.py measures.
"""

from __future__ import annotations

KNOWN: dict[str, dict[str, str]] = {
    "0.19.1": {
        "sampler by default": "False",
        "sampler": "7.5 8.0 8.6 8.7 8.9 9.0 10.0 10.3 11.0 12.0 12.1",
        "experts": "none",
        "attention": "10.0 10.3",
        "attention by the model": "7.5",
        "sampler falls back": "False",
        "has_flashinfer looks for": "PATH",
        "model_executor/models/registry.py is read whole": "True",
        "transformers_utils/config.py is read whole": "True",
        "model_executor/layers/quantization/__init__.py is read whole": "True",
        "reasoning/__init__.py is read whole": "True",
        "reasoning/__init__.py has glm4*": "glm45",
        "tool_parsers/__init__.py is read whole": "True",
        "tool_parsers/__init__.py has glm4*": "glm45 glm47",
        "vLLM has LlamaForCausalLM": "True",
        "vLLM has Qwen3MoeForCausalLM": "True",
        "vLLM has DeepseekV3ForCausalLM": "True",
        "vLLM has Glm4MoeLiteForCausalLM": "True",
        "variables": "VLLM_USE_FLASHINFER_SAMPLER VLLM_USE_FLASHINFER_MOE_FP16",
        "more than 100 variables": "True",
        "options that launch passes": "True",
        "--moe-backend": "True",
        "the table has these options": "True",
        "not understood": "lora_modules collect_detailed_traces",
        "torch": "2.10.0+cu128 cuda 12.8 toolkit None",
        "flashinfer": "0.6.6",
        "another search for CUDA": "None",
        "archs for nvcc 12.8": "75 80 86 87 89 90a 100a 103a 110a 120a 121a",
        "archs for nvcc 12.9": "75 80 86 87 89 90a 100a 103a 110a 120a 121a",
        "archs for nvcc 13.0": "75 80 86 87 89 90a 100a 103a 110a 120a 121a",
        "libraries": "cudart cuda nvrtc",
        "refuses another flashinfer-cubin": "True",
        "refuses another flashinfer-jit-cache": "True",
        "transformers knows llama": "True",
        "transformers knows qwen3_moe": "True",
        "transformers knows deepseek_v3": "True",
        "transformers knows glm4_moe_lite": "True",
    },
    "0.20.2": {
        "experts": "9.0 10.0 10.3 11.0 12.0 12.1",
        "torch": "2.11.0+cu130 cuda 13.0 toolkit 13.0.2",
        "flashinfer": "0.6.8.post1",
        "archs for nvcc 12.8": "75 80 86 87 89 90a 100a 103a 110a None None",
        "archs for nvcc 12.9": "75 80 86 87 89 90a 100a 103a 110a 120f 121a",
        "archs for nvcc 13.0": "75 80 86 87 89 90a 100a 103a 110a 120f 121a",
    },
    "0.22.0": {
        "sampler by default": "True",
        "experts": "9.0 10.0 10.3 12.0 12.1",
        "flashinfer": "0.6.11.post2",
    },
    "0.23.0": {
        "experts": "10.0 10.3 12.0 12.1",
        "flashinfer": "0.6.12",
    },
    "0.25.1": {
        "sampler": "8.0 8.6 8.7 8.9 9.0 10.0 10.3 11.0 12.0 12.1",
        "attention by the model": "none",
        "reasoning/__init__.py has glm4*": "glm45 glm47",
        "variables": "VLLM_USE_FLASHINFER_SAMPLER",
        "not understood": "lora_modules device_ids collect_detailed_traces",
        "flashinfer": "0.6.13",
    },
    "0.28.0": {
        "not understood": "lora_modules device_ids mm_processor_device collect_detailed_traces",
        "torch": "2.13.0+cu130 cuda 13.0 toolkit 13.0.3",
        "flashinfer": "0.6.16.post3",
    },
    "0.33.0": {
        "not understood": "lora_modules device_ids mm_processor_device log_config_file",
        "sampler falls back": "True",
        "has_flashinfer looks for": "ninja toolkit",
        "torch": "2.14.0+cu130 cuda 13.0 toolkit 13.0.3",
        "flashinfer": "0.7.2.post1",
        "archs for nvcc 12.8": "75 80 86 87 89 90a 100a 103a 110a 120a None",
        "refuses another flashinfer-cubin": "False",
        "refuses another flashinfer-jit-cache": "False",
    },
}


def expected(version: str) -> dict[str, str]:
    """Every answer of a known version."""
    made: dict[str, str] = {}
    for known, changed in KNOWN.items():
        made |= changed
        if known == version:
            return made
    raise LookupError(version)
