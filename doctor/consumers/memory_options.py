"""The options of `vllm serve` by which its memory is reckoned, where no installed vLLM can be asked
for its own: the strings and types that they have in 0.19 to 0.33 (engine/arg_utils.py)."""

from __future__ import annotations

from doctor.consumers.server_options import OptionTable, ServerOption, Takes

_SWITCHES = (
    "async-scheduling",
    "data-parallel-external-lb",
    "disable-chunked-mm-input",
    "disable-custom-all-reduce",
    "disable-hybrid-kv-cache-manager",
    "enable-auto-tool-choice",
    "enable-chunked-prefill",
    "enable-eplb",
    "enable-lora",
    "enable-prefix-caching",
    "enable-sleep-mode",
    "enforce-eager",
    "language-model-only",
    "skip-mm-profiling",
    "trust-remote-code",
)
_INTEGERS = (
    "block-size",
    "data-parallel-rank",
    "data-parallel-size-local",
    "mamba-block-size",
    "max-lora-rank",
    "max-loras",
    "max-num-seqs",
    "num-gpu-blocks-override",
    "port",
    "pipeline-parallel-size",
    "prefill-context-parallel-size",
)
_SIZES = ("kv-cache-memory-bytes", "max-num-batched-tokens")
_NUMBERS = ("cpu-offload-gb", "mm-ipc-gpu-memory-gb", "swap-space")
_WORDS = (
    "attention-backend",
    "chat-template",
    "config-format",
    "convert",
    "data-parallel-backend",
    "distributed-executor-backend",
    "download-dir",
    "dtype",
    "hf-config-path",
    "host",
    "kv-cache-dtype",
    "load-format",
    "mamba-cache-dtype",
    "mamba-cache-mode",
    "mamba-ssm-cache-dtype",
    "mm-encoder-tp-mode",
    "moe-backend",
    "reasoning-parser",
    "revision",
    "runner",
    "task",
    "tokenizer",
    "tokenizer-mode",
    "tool-call-parser",
)
_TABLES = (
    "attention-config",
    "compilation-config",
    "kv-transfer-config",
    "limit-mm-per-prompt",
    "mm-processor-kwargs",
    "override-generation-config",
    "speculative-config",
)
# That their names are near to one of the others is no slip of the pen.
_OTHERS = (
    "data-parallel-multi-port-external-lb",
    "data-parallel-start-rank",
    "ec-transfer-config",
    "max-cpu-loras",
    "max-num-scheduled-tokens",
    "reasoning-parser-plugin",
    "weight-transfer-config",
)
_SHORT = {
    "attention-config": "-ac",
    "compilation-config": "-cc",
    "data-parallel-external-lb": "-dpe",
    "data-parallel-rank": "-dpn",
    "data-parallel-size-local": "-dpl",
    "pipeline-parallel-size": "-pp",
    "prefill-context-parallel-size": "-pcp",
    "speculative-config": "-sc",
    "data-parallel-backend": "-dpb",
}


def _option(name: str, takes: Takes) -> ServerOption:
    strings = (f"--{name}", *filter(None, (_SHORT.get(name),)))
    if takes is not Takes.PAIR:
        return ServerOption(strings, name.replace("-", "_"), takes)
    no = f"--no-{name}"
    return ServerOption((*strings, no), name.replace("-", "_"), takes, negative=(no,))


MEMORY_OPTIONS = OptionTable(
    (
        ServerOption(("--model",), "model"),
        ServerOption(("--served-model-name",), "served_model_name", many="+"),
        ServerOption(("--api-key",), "api_key", many="+"),
        ServerOption(("--hf-overrides",), "hf_overrides", Takes.TEXT_OR_JSON),
        ServerOption(
            ("--gpu-memory-utilization", "--device-memory-utilization"),
            "gpu_memory_utilization",
            Takes.FLOAT,
        ),
        ServerOption(("--max-model-len",), "max_model_len", Takes.LENGTH),
        ServerOption(("--quantization", "-q"), "quantization"),
        ServerOption(("--tensor-parallel-size", "-tp"), "tensor_parallel_size", Takes.INT),
        ServerOption(("--data-parallel-size", "-dp"), "data_parallel_size", Takes.INT),
        ServerOption(
            ("--decode-context-parallel-size", "-dcp"), "decode_context_parallel_size", Takes.INT
        ),
        ServerOption(("--nnodes", "-n"), "nnodes", Takes.INT),
        ServerOption(
            ("--enable-expert-parallel", "-ep", "--no-enable-expert-parallel"),
            "enable_expert_parallel",
            Takes.PAIR,
            negative=("--no-enable-expert-parallel",),
        ),
        *(_option(name, Takes.PAIR) for name in _SWITCHES),
        *(_option(name, Takes.INT) for name in _INTEGERS),
        *(_option(name, Takes.SIZE) for name in _SIZES),
        *(_option(name, Takes.FLOAT) for name in _NUMBERS),
        *(_option(name, Takes.TEXT) for name in _WORDS),
        *(_option(name, Takes.JSON) for name in _TABLES),
        *(_option(name, Takes.UNKNOWN) for name in _OTHERS),
    )
)
