"""What of a server's options decides its memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from doctor.consumers.options import GivenOptions
from doctor.consumers.shares import Layout, layout_of
from doctor.frozen import dataclass
from doctor.numbers import number_of
from doctor.profile import Profile

_AUTO_LENGTHS = ("auto", "-1")


@dataclass(frozen=True)
class MemoryOptions:
    """As they were given; None where nothing is said, and the installed version decides.

    `max_model_len`: None also where vLLM is to find the longest that fits (`longest`);
    `utilization`: of each GPU's memory, 0 to 1; `kv_cache_bytes`: of --kv-cache-memory-bytes, of
    which 0 says nothing to vLLM either; `speculative`: the table of --speculative-config; `given`:
    all options by name, for what only one kind of model asks.
    """

    layout: Layout = Layout()
    decode_context: int = 1
    max_model_len: int | None = None
    longest: bool = False
    utilization: float | None = None
    kv_cache_dtype: str = "auto"
    kv_cache_bytes: int | None = None
    block_size: int | None = None
    eager: bool = False
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    quantization: str | None = None
    dtype: str = "auto"
    speculative: Mapping[str, Any] = field(default_factory=dict)
    lora: bool = False
    offload_gib: float = 0.0
    whole_tower: bool = False
    language_model_only: bool = False
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def drafted(self) -> int:
        """The tokens that speculative decoding drafts at once (num_speculative_tokens)."""
        said = self.speculative.get("num_speculative_tokens")
        return said if isinstance(said, int) and not isinstance(said, bool) and said > 0 else 0


def memory_options(profile: Profile, values: Mapping[str, Any]) -> MemoryOptions:
    """Of a server that is served so: the profile, and `values`, what was really said to vLLM by the
    options' names with underscores; what is not among them has vLLM's own default."""
    given = GivenOptions(values)
    length = values.get("max_model_len")
    utilization = values.get("gpu_memory_utilization")
    kv_bytes = values.get("kv_cache_memory_bytes")
    return MemoryOptions(
        layout=layout_of(profile),
        decode_context=given.size("decode_context_parallel_size"),
        max_model_len=given.count("max_model_len") or None,
        longest=str(length).lower() in _AUTO_LENGTHS,
        utilization=given.amount("gpu_memory_utilization") or None if utilization else None,
        kv_cache_dtype=given.word("kv_cache_dtype") or "auto",
        kv_cache_bytes=number_of(str(kv_bytes)) or None,  # 0 is as unsaid (gpu_worker.py)
        block_size=given.count("block_size") or None,
        eager=given.switch("enforce_eager"),
        max_num_seqs=given.count("max_num_seqs") or None,
        max_num_batched_tokens=given.count("max_num_batched_tokens") or None,
        quantization=given.word("quantization"),
        dtype=given.word("dtype") or "auto",
        speculative=given.table("speculative_config") or {},
        lora=given.switch("enable_lora"),
        offload_gib=given.amount("cpu_offload_gb"),
        whole_tower=given.word("mm_encoder_tp_mode") == "data",
        language_model_only=given.switch("language_model_only"),
        given=dict(values),
    )
