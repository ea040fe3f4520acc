"""Makes rules/tables/vllm-names.toml out of vLLM's wheels: `python -m tests.mine_names [FILE]`.

Reads every release from 0.10.0 on, a minute and 25 MB in all. What took a name's place is said by
vLLM itself, before it takes the name away: in `deprecated_env` of envs.py, which is read here, or
in a sentence of its sources, and then it stands in `SAID` with the place.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from doctor.consumers import names
from tests import online

OLDEST = Version("0.10")
TABLE = Path(__file__).parent.parent / "rules/tables/vllm-names.toml"

_PROFILER = ("--profiler-config",)
_EPLB = "--eplb-config"
SAID: Mapping[str, Sequence[str]] = {
    # 0.14, config/attention.py, _set_from_env_if_set
    "VLLM_ATTENTION_BACKEND": ("--attention-backend",),
    "VLLM_DISABLE_FLASHINFER_PREFILL": ("--attention-config.disable_flashinfer_prefill",),
    "VLLM_FLASHINFER_DISABLE_Q_QUANTIZATION": (
        "--attention-config.disable_flashinfer_q_quantization",
    ),
    "VLLM_FLASH_ATTN_MAX_NUM_SPLITS_FOR_CUDA_GRAPH": (
        "--attention-config.flash_attn_max_num_splits_for_cuda_graph",
    ),
    "VLLM_FLASH_ATTN_VERSION": ("--attention-config.flash_attn_version",),
    "VLLM_USE_CUDNN_PREFILL": ("--attention-config.use_cudnn_prefill",),
    "VLLM_USE_TRTLLM_ATTENTION": ("--attention-config.use_trtllm_attention",),
    "VLLM_USE_TRTLLM_RAGGED_DEEPSEEK_PREFILL": (
        "--attention-config.use_trtllm_ragged_deepseek_prefill",
    ),
    "VLLM_V1_USE_PREFILL_DECODE_ATTENTION": ("--attention-config.use_prefill_decode_attention",),
    # 0.11, config/parallel.py
    "VLLM_ALL2ALL_BACKEND": ("--all2all-backend",),
    "--eplb-log-balancedness": (f"{_EPLB}.log_balancedness",),
    "--eplb-step-interval": (f"{_EPLB}.step_interval",),
    "--eplb-window-size": (f"{_EPLB}.window_size",),
    "--num-redundant-experts": (f"{_EPLB}.num_redundant_experts",),
    # 0.12, envs.py and config/profiler.py: "See also ... `--profiler-config` argument"
    "VLLM_PROFILER_DELAY_ITERS": _PROFILER,
    "VLLM_PROFILER_MAX_ITERS": _PROFILER,
    "VLLM_TORCH_CUDA_PROFILE": _PROFILER,
    "VLLM_TORCH_PROFILER_DIR": _PROFILER,
    "VLLM_TORCH_PROFILER_DISABLE_ASYNC_LLM": _PROFILER,
    "VLLM_TORCH_PROFILER_DUMP_CUDA_TIME_TOTAL": _PROFILER,
    "VLLM_TORCH_PROFILER_RECORD_SHAPES": _PROFILER,
    "VLLM_TORCH_PROFILER_USE_GZIP": _PROFILER,
    "VLLM_TORCH_PROFILER_WITH_FLOPS": _PROFILER,
    "VLLM_TORCH_PROFILER_WITH_PROFILE_MEMORY": _PROFILER,
    "VLLM_TORCH_PROFILER_WITH_STACK": _PROFILER,
    # 0.11, engine/arg_utils.py
    "VLLM_MM_INPUT_CACHE_GIB": ("--mm-processor-cache-gb",),
    "--cuda-graph-sizes": ("--cudagraph-capture-sizes",),
    "--disable-log-requests": ("--no-enable-log-requests",),
    "--disable-mm-preprocessor-cache": ("--mm-processor-cache-gb",),
    "--enable-multimodal-encoder-data-parallel": ("--mm-encoder-tp-mode",),
    "--guided-decoding-backend": ("--structured-outputs-config.backend",),
    "--guided-decoding-disable-additional-properties": (
        "--structured-outputs-config.disable_additional_properties",
    ),
    "--guided-decoding-disable-any-whitespace": (
        "--structured-outputs-config.disable_any_whitespace",
    ),
    "--guided-decoding-disable-fallback": ("--structured-outputs-config.disable_fallback",),
    # 0.11, config/model.py
    "--override-pooler-config": ("--pooler-config",),
    "--task": ("--runner", "--convert"),
    # The same words of the next release's envs.py and arg_utils.py under the new name.
    "GPT_OSS_SYSTEM_TOOL_MCP_LABELS": ("VLLM_GPT_OSS_SYSTEM_TOOL_MCP_LABELS",),
    "VLLM_DISABLE_NCCL_FOR_DP_SYNCHRONIZATION": ("--disable-nccl-for-dp-synchronization",),
    "VLLM_MM_HASHER_ALGORITHM": ("--mm-hasher-algorithm",),
    "VLLM_PREFIX_CACHE_RETENTION_INTERVAL": ("--prefix-cache-retention-interval",),
    "VLLM_ROCM_USE_AITER_MOE_SITUV2_A8W4": ("VLLM_ROCM_USE_AITER_MOE_SITUV2",),
    "VLLM_SKIP_DEEP_GEMM_WARMUP": ("VLLM_DEEP_GEMM_WARMUP",),
    "VLLM_TRITON_ATTN_USE_TD": ("VLLM_TRITON_USE_TD",),
    "VLLM_USE_AITER_UNIFIED_ATTENTION": ("VLLM_ROCM_USE_AITER_UNIFIED_ATTENTION",),
}
Lives = Mapping[str, frozenset[str]]
"""The names that each release declares, oldest first."""
# deprecated_env(NAME, version, "Use --moe-backend (e.g. ...).", ...), 0.22 and 0.23
_DEPRECATED = r'deprecated_env\(\s*("\w+",\s*"v[\d.]+",\s*(?:"[^"]*"\s*)+)'


@dataclass(frozen=True)
class Release:
    """What one release declares, and what it says is to be used instead of some of it."""

    version: str
    variables: frozenset[str]
    options: frozenset[str]
    instead: Mapping[str, Sequence[str]]


def read(version: str) -> Release:
    """Raises what `tests.online` and `doctor.consumers.names` do."""
    with online.wheel("vllm", version) as archive:
        search = online.search_in(archive, "vllm")
        variables = names.variables(search)
        instead = {}
        for said in search(names.ENVS, _DEPRECATED) or ():
            name, _, *sentence = re.findall(r'"([^"]*)"', said)
            instead[name] = re.findall(r"--[a-z][\w.-]*\w|\bVLLM_\w+", "".join(sentence))
        return Release(version, frozenset(variables), frozenset(names.options(search)), instead)


def rows(
    lives: Mapping[str, frozenset[str]], instead: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Of each name that a later release lacks: the first that had it, the last before it went."""
    versions = list(lives)
    for name in sorted(frozenset().union(*lives.values())):
        has = [name in lives[version] for version in versions]
        first = has.index(True)
        if all(has[first:]) or _is_told_by_another(name, lives):
            continue
        last = first + has[first:].index(False) - 1
        use = f", use = {_list(instead[name])}" if instead.get(name) else ""
        key = name if name.isidentifier() else f'"{name}"'
        yield f'{key} = {{ first = "{versions[first]}", last = "{versions[last]}"{use} }}'


def _is_told_by_another(name: str, lives: Lives) -> bool:
    """--no-x by the row of --x; short ones have no rows, -O is taken apart before the parser."""
    positive = name.replace("--no-", "--", 1)
    other = positive != name and any(positive in names for names in lives.values())
    return other or bool(re.fullmatch(r"-\w+", name))


def _list(words: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{word}"' for word in words) + "]"


def table(releases: Sequence[Release]) -> str:
    """The file's text, from releases in their order."""
    instead = {k: v for release in releases for k, v in release.instead.items()} | dict(SAID)
    variables = {release.version: release.variables for release in releases}
    options = {release.version: release.options for release in releases}
    head = (
        "# What vLLM no longer declares: the first release that had it (0.10.0: or one before),\n"
        "# the last one, and what vLLM says to use instead. By `python -m tests.mine_names`.\n"
        f'newest = "{releases[-1].version}"\n'
    )
    parts = [head, "[variables]", *rows(variables, instead), "", "[options]"]
    return "\n".join([*parts, *rows(options, instead)]) + "\n"


def main() -> None:
    wanted = [str(v) for v in online.versions("vllm") if v >= OLDEST]
    with ThreadPoolExecutor(4) as pool:
        releases = list(pool.map(read, wanted))
    for one in releases:
        print(one.version, len(one.variables), len(one.options), len(one.instead))
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else TABLE
    path.write_text(table(releases), encoding="utf-8")


if __name__ == "__main__":
    main()
