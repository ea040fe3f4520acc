"""What of a checkpoint's tensors one rank holds.

As vLLM's layers merge and split them (model_executor/layers/linear.py, vocab_parallel_embedding.py,
fused_moe, mla.py of 0.22.0 and 0.33.0).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping

from doctor.consumers.model_config import ConfigJson
from doctor.fit.allocator import allocated
from doctor.fit.asked import AskedModel
from doctor.fit.checkpoints import Loading, heads_of, tied
from doctor.fit.kv import stage_sizes
from doctor.fit.latent import indexed
from doctor.fit.lora import lora_bytes
from doctor.fit.options import MemoryOptions
from doctor.fit.releases import Release
from doctor.fit.rotary import rotary_bytes
from doctor.fit.sizes import GIB, NotKnown
from doctor.fit.verdict import Tensor
from doctor.frozen import dataclass
from doctor.model import Text
from doctor.safetensors import bits_of

# How the ranks share a layer, by the last part of its name.
_CUT = frozenset(
    [
        "q_proj",
        "gate_proj",
        "up_proj",
        "qkv_proj",
        "gate_up_proj",
        "q_b_proj",
        "kv_b_proj",
        "qkv",
        "Wqkv",
        "query_key_value",
        "c_attn",
        "c_fc",
        "fc1",
        "linear_fc1",
        "w1",
        "w3",
        "query",
        "key",
        "value",
        "dense_h_to_4h",
        "in_proj",
        "in_proj_qkv",
        "in_proj_z",
        "in_proj_qkvz",
        "in_proj_ba",
        "in_proj_a",
        "in_proj_b",
        "conv1d",
        "fc0",
        "wo",
        "wqkv",
        "o_proj",
        "down_proj",
        "out_proj",
        "proj",
        "fc2",
        "linear_fc2",
        "w2",
        "c_proj",
        "dense_4h_to_h",
        "dense",
    ]
)
_PAIRS = frozenset(("k_proj", "v_proj"))  # of as many heads as there are keys and values
_FIRST = frozenset(("embed_tokens", "embeddings", "word_embeddings", "wte", "embed_in"))
_LAST = frozenset(("lm_head", "embed_out"))
# Whole on every rank, and large.
_REPLICATED = frozenset(
    [
        "q_a_proj",
        "kv_a_proj_with_mqa",
        "gate",
        "eh_proj",
        "fc",
        "fc1_latent_proj",
        "fc2_latent_proj",
        "wpe",
        "embed_positions",
        "position_embeddings",
        "shared_expert_gate",
    ]
)
# What vLLM holds in one tensor.
_MERGED = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "query", "key", "value"), "qkv_proj"),
    **dict.fromkeys(("gate_proj", "up_proj", "w1", "w3"), "gate_up_proj"),
    **dict.fromkeys(("q_a_proj", "kv_a_proj_with_mqa"), "fused_qkv_a_proj"),
    **dict.fromkeys(("in_proj_qkv", "in_proj_z"), "in_proj_qkvz"),
    **dict.fromkeys(("in_proj_b", "in_proj_a"), "in_proj_ba"),
}
_LINEAR = (_CUT | _PAIRS | {"q_a_proj", "kv_a_proj_with_mqa"}) - {"conv1d"}
_WEIGHTS = frozenset(("weight", "qweight", "weight_packed"))
_Key = tuple[int | None, str, str]
_KNOWN = _CUT | _PAIRS | _FIRST | _LAST | _REPLICATED
_LAYER = re.compile(r"(?<![^.])(?:layers|layer|h)\.(\d{1,6})\.")
_EXPERT = re.compile(r"\.experts\.\d{1,6}(?=\.)")
_TOWER = re.compile(
    r"(?:^|\.)(?:visual|vision\w*|vit\w*|vpm|multi_modal_projector|mm_projector|audio\w*)\."
    r"|(?<![^.])encoder\.layers\."
)
_DRAFT = re.compile(r"(?:^|\.)mtp\w*\.")
_WHOLE = re.compile(r"\.(?:indexer|router)\.")  # of no rank a part
_NOT_LOADED = re.compile(
    r"^(?:talker|token2wav|code2wav)\.|rotary_emb\.inv_freq$|\.masked_bias$|\.attn\.bias$"
)
_NAME = re.compile(
    r"(?P<module>.+?)[._](?P<part>weight|bias|weight_scale_inv|weight_scale|weight_scale_2"
    r"|weight_packed|weight_shape|weight_global_scale|weight_zero_point|qweight|qzeros|scales"
    r"|g_idx|input_scale|input_global_scale|k_scale|v_scale|blocks|e_score_correction_bias)"
)
_ODD_PART = 100
# Whose classes share the tokens out (is_sequence_parallel, of 0.22 and 0.33).
_SEQUENCED = frozenset(
    [
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v32",
        "glm4_moe_lite",
        "glm_moe_dsa",
        "kimi_k2",
        "llama4_text",
        "nemotron_h",
        "qwen3_5_moe_text",
        "qwen3_next",
    ]
)
_PADDED = 64  # vocab_parallel_embedding.py (DEFAULT_VOCAB_PADDING_SIZE)
_FLOATS = frozenset(("F16", "BF16", "F32", "F64"))


def drafts(options: MemoryOptions) -> bool:
    """Whether layers of the model's own draft tokens (MTP). Raises NotKnown where another model
    does."""
    said = options.speculative
    method, model = said.get("method"), said.get("model")
    if not said or (isinstance(method, str) and method.startswith(("ngram", "suffix"))):
        return False
    own = model is None or model == options.given.get("model")
    if own and isinstance(method, str) and method.endswith("mtp"):
        return True
    raise NotKnown(Text("the weights of the model that drafts are not known"))


@dataclass(frozen=True)
class _Part:
    """What a rank has of a tensor. `module` and `part`: the tensor that vLLM makes of it and of
    others; `leaf`: the last part of the checkpoint's own name; `tower`, `draft`, `indexer`: what it
    is of; `odd`: it is taken for whole only because nothing is known of it."""

    module: str
    part: str
    leaf: str
    size: int
    tower: bool = False
    draft: bool = False
    indexer: bool = False
    odd: bool = False


@dataclass(frozen=True)
class WeightShare:
    """The share of one rank. `stage`: of the pipeline, from 0 on; `capability`: of the GPU, such as
    90, None where it is not known."""

    config: ConfigJson
    options: MemoryOptions
    loading: Loading
    release: Release
    stage: int
    capability: int | None = None

    def bytes_of(self, tensors: Iterable[Tensor]) -> int:
        """What torch counts for them on the rank, and for what vLLM makes of the configuration
        beside. Raises NotKnown."""
        merged: dict[_Key, int] = {}
        odd = 0
        for layer, part in self._held(tensors):
            key = layer, part.module, part.part
            merged[key] = merged.get(key, 0) + part.size
            odd += part.size if part.odd else 0
        if not merged:
            raise NotKnown(Text("the checkpoint's headers have no tensors of this model"))
        if self.options.layout.tensor > 1 and odd > sum(merged.values()) // _ODD_PART:
            raise NotKnown(Text("how ranks share the layers of this checkpoint is not known"))
        made = sum(map(allocated, merged.values()))
        made += rotary_bytes(self.config, self.loading.width, self.release)
        made += self._copies(merged)
        if self.options.lora:
            room = lora_bytes(self.config, self.options, self.loading.width)
            made += room * len(self._layers()) // (self.config.layers or 1)
        return self._offloaded(made)

    def _copies(self, merged: Mapping[_Key, int]) -> int:
        """MLA keeps a copy in the model's own type of each kv_b_proj that is not of it
        (mla_attention.py, process_weights_after_loading)."""
        config, names = self.config, ("qk_nope_head_dim", "v_head_dim")
        heads = sum(config.count(name) or 0 for name in names) * (config.attention_heads or 0)
        whole = heads * (config.count("kv_lora_rank") or 0) * self.loading.width
        whole //= self.options.layout.tensor
        weights = [
            size
            for (_, module, part), size in merged.items()
            if module.endswith(".kv_b_proj") and part in _WEIGHTS
        ]
        return sum(allocated(whole) for size in weights if size < whole)

    def _offloaded(self, size: int) -> int:
        """Less what --cpu-offload-gb puts into the machine's memory."""
        return max(0, size - int(min(self.options.offload_gib, size / GIB) * GIB))

    def _layers(self) -> range:
        """The decoder's layers of this stage. Raises NotKnown."""
        stages, layers = self.options.layout.pipeline, self.config.layers
        if layers is None:
            raise NotKnown(Text("config.json does not say {name}", name="num_hidden_layers"))
        if not 0 <= self.stage < stages <= layers:
            why = Text("{layers} layers make no {stages} stages", layers=layers, stages=stages)
            raise NotKnown(why)
        sizes = stage_sizes(layers, stages)
        first = sum(sizes[: self.stage])
        return range(first, first + sizes[self.stage])

    def _held(self, tensors: Iterable[Tensor]) -> Iterator[tuple[int | None, _Part]]:
        """What of them is on the rank, with the number of the layer."""
        mine = self._layers()
        # Layers are alike: what is one of them is found out once.
        known: dict[tuple[str, str, tuple[int, ...]], _Part] = {}
        for tensor in tensors:
            name = tensor.name
            layer = _LAYER.search(name)
            number = int(layer[1]) if layer else None
            if layer:
                name = f"{name[: layer.start(1)]}#{name[layer.end(1) :]}"
            kind = name, tensor.dtype, tensor.shape
            part = known.get(kind)
            if part is None:
                part = known[kind] = self._part(name, tensor, number)
            if part.size and self._is_here(part, number, mine):
                yield number, part

    def _part(self, name: str, tensor: Tensor, layer: int | None) -> _Part:
        name = _EXPERT.sub(".experts", name)
        found = _NAME.fullmatch(name)
        module, part = (found["module"], found["part"]) if found else (name, "weight")
        leaf = module.rpartition(".")[2]
        made = _Part(
            module[: len(module) - len(leaf)] + _MERGED.get(leaf, leaf),
            part,
            leaf,
            0,
            tower=_TOWER.search(name) is not None,
            draft=_DRAFT.search(name) is not None,
            indexer=".indexer." in name,
            odd=leaf not in _KNOWN and len(tensor.shape) > 1 and not _WHOLE.search(name),
        )
        if _NOT_LOADED.search(name):
            return made
        return dataclasses.replace(
            made, size=self._share(made, tensor, layer), odd=made.odd and not made.tower
        )

    def _is_here(self, part: _Part, layer: int | None, mine: range) -> bool:
        """Whether the stage, which has these layers, has it."""
        first = self.stage == 0
        last = self.stage == self.options.layout.pipeline - 1
        if part.tower:
            return not self.options.language_model_only
        if part.draft or (layer is not None and layer >= (self.config.layers or 0)):
            shared = part.leaf in _FIRST or part.leaf == "head"  # of the model itself
            return last and not shared and drafts(self.options)
        if layer is not None:
            return layer in mine and (not part.indexer or self._chooses(layer))
        if part.leaf in _FIRST:
            return first or (last and self._tied)
        return last and not (part.leaf in _LAST and self._tied)

    def _chooses(self, layer: int) -> bool:
        """Not where sparse attention takes over what another layer's indexer chose."""
        return indexed(AskedModel(self.config, self.options, self.release, self.capability), layer)

    @property
    def _tied(self) -> bool:
        """Where nothing says so, a head that is there is loaded."""
        try:
            return tied(self.config)
        except NotKnown:
            return False

    def _share(self, part: _Part, tensor: Tensor, layer: int | None) -> int:
        """Bytes of the tensor that the rank holds."""
        ranks, whole, leaf = self.options.layout.tensor, self._bytes(tensor, part), part.leaf
        if part.module.endswith(".experts") or ".experts." in part.module:
            return self._of_experts(whole)
        if (part.tower and self.options.whole_tower) or _WHOLE.search(f"{part.module}."):
            return whole
        if ".shared_expert" in part.module and self._sequences:
            return whole
        if leaf in _FIRST or leaf in _LAST:
            rows = tensor.shape[0] if tensor.shape else 1
            padded = -(-rows // _PADDED) * _PADDED
            return whole * padded // max(rows, 1) // ranks
        if leaf in _PAIRS and layer is not None and not part.tower:
            heads = heads_of(self.config, layer)
            times = 2 if heads.shared and leaf == "k_proj" else 1
            return times * whole * max(1, heads.pairs // ranks) // heads.pairs
        return whole // ranks if leaf in _CUT or leaf in _PAIRS else whole

    @property
    def _sequences(self) -> bool:
        """Whether ranks share the tokens of a layer with experts, and not its shared experts
        (use_sequence_parallel_moe, of its default all2all backend)."""
        layout = self.options.layout
        several = layout.experts_whole and layout.tensor > 1 and layout.data > 1
        return several and self.config.text_model_type in _SEQUENCED

    def _of_experts(self, whole: int) -> int:
        layout, experts = self.options.layout, self.config.experts
        ranks = layout.tensor * layout.data * layout.context
        if not layout.experts_whole:
            return self._padded(whole // ranks, ranks)
        if not experts:
            raise NotKnown(Text("config.json does not say {name}", name="num_experts"))
        return self._padded(whole * -(-experts // ranks) // experts, 1)

    def _padded(self, size: int, ranks: int) -> int:
        """Experts in mxfp4 have whole blocks of the kernels' own sizes
        (mxfp4_round_up_hidden_size_and_intermediate_size, and triton's own layout on 9.0)."""
        rows, hidden = self.config.expert_size, self.config.hidden_size
        if not self.loading.padded:
            return size
        if not rows or not hidden:
            raise NotKnown(Text("config.json does not say {name}", name="hidden_size"))
        rows, (row_block, block) = -(-rows // ranks), self._blocks()
        grown = -(-rows // row_block) * row_block * (-(-hidden // block) * block)
        return size * grown // (rows * hidden)

    def _blocks(self) -> tuple[int, int]:
        """Of an expert's rows and of the hidden size: those of triton on 9.0, of TRT-LLM on 10.0,
        and of Marlin; of a GPU that is not known, those of 9.0."""
        if self.capability is None or self.capability == 90:
            return 64, 256
        trtllm = self.capability // 10 == 10
        return 256 if trtllm and not self.release.since("0.33") else 128, 256

    def _bytes(self, tensor: Tensor, part: _Part) -> int:
        """Of the whole tensor once it is loaded."""
        bits = bits_of(tensor.dtype)
        if bits is None:
            why = Text("the headers have a type that is not known: {dtype}", dtype=tensor.dtype)
            raise NotKnown(why)
        if tensor.dtype in _FLOATS and part.part in ("weight", "bias"):
            bits = 8 * self.loading.width
            linear = part.leaf in _LINEAR
            if self.loading.online and part.part == "weight" and linear and not part.tower:
                bits = 8
        return math.prod(tensor.shape) * bits // 8
