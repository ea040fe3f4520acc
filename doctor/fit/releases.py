"""Which release of vLLM reckons how: the changes that matter to memory, and the first release that
has each."""

from __future__ import annotations

from packaging.version import Version

from doctor.frozen import dataclass
from doctor.model import Text
from doctor.numbers import version_of

_OLD = Version("0.11")
_FIRST_KNOWN = Version("0.19")  # below it the rules of 0.11 apply
NEWEST = Version("0.33.0")


@dataclass(frozen=True)
class Release:
    """`version`: as vLLM says it; `said`: what of it is taken from another release, where that is
    so. Each question about a change names the first release that has it, as its source shows:
    0.19.0, 0.20.2, 0.22.0, 0.24.0, 0.25.1, 0.26.0, 0.27.1 and each from 0.28.0 to 0.33.0 were
    read."""

    version: str
    rules: Version
    said: Text | None = None

    def since(self, first: str) -> bool:
        """Whether it has what this release brought."""
        return self.rules >= Version(first)

    @property
    def utilization(self) -> float:
        """--gpu-memory-utilization, where nothing is said."""
        return 0.92 if self.since("0.20") else 0.9

    @property
    def chunks_beside_others(self) -> bool:
        """Whether layers with chunked attention keep no more than they read, beside others
        (VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE is on)."""
        return self.since("0.19")

    @property
    def estimates_graphs(self) -> bool:
        """Whether what CUDA graphs may take is taken off the cache (VLLM_MEMORY_PROFILER_ESTIMATE_
        CUDAGRAPHS is on); by the V2 runner not before `v2_estimates_graphs`."""
        return self.since("0.20")

    @property
    def v2_estimates_graphs(self) -> bool:
        return self.since("0.29")

    @property
    def groups_layers(self) -> bool:
        """Whether a request is counted in blocks of all groups, padding among them, and kinds that
        are nearly as many as the smallest make no groups more; layer by layer before."""
        return self.since("0.19")

    @property
    def tokens_of_requests(self) -> bool:
        """Whether "GPU KV cache size" is concurrency x length; blocks // groups x block size
        before."""
        return self.since("0.20.2")

    @property
    def unifies_pages(self) -> bool:
        """Whether layers with fewer bytes a token get larger blocks; they were refused before."""
        return self.since("0.19")

    @property
    def pads_pages(self) -> bool:
        """Whether a page that does not divide the largest one is padded, MLA's excepted."""
        return self.since("0.24")

    @property
    def skips_indexers(self) -> bool:
        """Whether layers that take over another one's choice of tokens have no indexer."""
        return self.since("0.24")

    @property
    def reserves_for_media(self) -> bool:
        """Whether the IPC of multimodal inputs is taken off (reserve_mm_ipc_gpu_memory)."""
        return self.since("0.25")

    @property
    def counts_concurrent_batches(self) -> bool:
        """Whether a sliding window keeps the tokens of each batch that is scheduled at once."""
        return self.since("0.26")

    @property
    def context_by_decode_only(self) -> bool:
        """Whether positions are cut by decode context parallelism alone, not by prefill's too."""
        return self.since("0.26")

    @property
    def pads_states(self) -> bool:
        """Whether a recurrent layer's page is padded to a drafter's larger one."""
        return self.since("0.26")

    @property
    def counts_consumed(self) -> bool:
        """Whether what is not cache is all that is gone from the GPU ("consumed memory")."""
        return self.since("0.27")

    @property
    def mla_hybrids_aligned(self) -> bool:
        """Whether blocks of hybrids with MLA have a multiple of 128 tokens."""
        return self.since("0.27")

    @property
    def falls_back_to_whole(self) -> bool:
        """Whether windows beside MLA keep every token where pages cannot be made equal."""
        return self.since("0.27")

    @property
    def hybrid_prefix_caching(self) -> bool:
        """Whether prefixes of hybrids are cached without being asked."""
        return self.since("0.28")

    @property
    def largest_tier(self) -> bool:
        """Whether GPUs from 160 GiB on batch more tokens than others."""
        return self.since("0.28")

    @property
    def retains_for_drafters(self) -> bool:
        """Whether a window keeps what several layers of a drafter fill anew."""
        return self.since("0.28")

    @property
    def null_block(self) -> bool:
        """Whether the block that no request can have is taken off before the check."""
        return self.since("0.29")

    @property
    def packs_pages(self) -> bool:
        """Whether unlike pages lie side by side in one block, where a backend asks for it."""
        return self.since("0.29")

    @property
    def v2_runner(self) -> bool:
        """Whether the V2 model runner is the usual one of every model."""
        return self.since("0.29")

    @property
    def v2_dense(self) -> bool:
        """Whether the V2 model runner is the usual one of models without experts."""
        return self.since("0.26")

    @property
    def wide_fp8_blocks(self) -> bool:
        """Whether Hopper has a kernel for heads of 512 numbers in fp8, with blocks of 64 tokens."""
        return self.since("0.31")

    @property
    def mamba2_checkpoints(self) -> bool:
        """Whether layers of Mamba-2 keep a state from within a prefill."""
        return self.since("0.32")

    @property
    def delta_net_checkpoints(self) -> bool:
        """Whether gated delta nets keep a state from within a prefill."""
        return self.since("0.33")

    @property
    def blocks_at_checkpoints(self) -> bool:
        """Whether blocks of hybrids are aligned to those states."""
        return self.since("0.33")

    @property
    def names_gb10(self) -> bool:
        """Whether a GPU with the machine's memory says how much it has, of which compute capability
        12.1 batches as small ones do all the same; all of them did before."""
        return self.since("0.33")


def release(version: str) -> Release:
    """The rules of this version of vLLM. Raises ValueError for what is no version."""
    made = version_of(version)
    if made is None:
        raise ValueError(version)
    plain = Version(made.base_version)
    if plain < _FIRST_KNOWN:
        said = Text("the rules of vLLM 0.11 apply to {version}", version=version)
        return Release(version, _OLD, said)
    if plain > NEWEST:
        said = Text("the rules of vLLM {newest}, the newest known, apply", newest=NEWEST)
        return Release(version, plain, said)
    return Release(version, plain)
