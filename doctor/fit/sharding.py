"""What of a checkpoint's tensors one rank holds.

As vLLM's layers merge and split them (model_executor/layers/linear.py, vocab_parallel_embedding.py,
fused_moe, mla.py of 0.22.0 and 0.33.0).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping

from doctor.consumers.model_config import ConfigJson
from doctor.fit.allocator import allocated
from doctor.fit.checkpoints import Loading, tied
from doctor.fit.kv import stage_sizes
from doctor.fit.options import MemoryOptions
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
_FIRST = frozenset(("embed_tokens", "word_embeddings", "wte", "embed_in"))
_LAST = frozenset(("lm_head", "embed_out"))
# What vLLM holds in one tensor.
_MERGED = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "query", "key", "value"), "qkv_proj"),
    **dict.fromkeys(("gate_proj", "up_proj", "w1", "w3"), "gate_up_proj"),
    **dict.fromkeys(("q_a_proj", "kv_a_proj_with_mqa"), "fused_qkv_a_proj"),
    **dict.fromkeys(("in_proj_qkv", "in_proj_z"), "in_proj_qkvz"),
    **dict.fromkeys(("in_proj_b", "in_proj_a"), "in_proj_ba"),
}
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h)\.(\d{1,6})\.")
_EXPERT = re.compile(r"\.experts\.\d{1,6}(?=\.)")
_TOWER = re.compile(
    r"(?:^|\.)(?:visual|vision\w*|vit\w*|vpm|multi_modal_projector|mm_projector|audio\w*)\."
)
_DRAFT = re.compile(r"(?:^|\.)mtp\w*\.")
_NOT_LOADED = re.compile(r"rotary_emb\.inv_freq$|\.masked_bias$|\.attn\.bias$")
_NAME = re.compile(
    r"(?P<module>.+?)[._](?P<part>weight|bias|weight_scale_inv|weight_scale|weight_scale_2"
    r"|weight_packed|weight_shape|weight_global_scale|weight_zero_point|qweight|qzeros|scales"
    r"|g_idx|input_scale|input_global_scale|k_scale|v_scale|blocks|e_score_correction_bias)"
)
_PADDED = 64  # vocab_parallel_embedding.py (DEFAULT_VOCAB_PADDING_SIZE)
_FLOATS = frozenset(("F16", "BF16", "F32", "F64"))


@dataclass(frozen=True)
class _Held:
    """A tensor of the rank, or a part of one: `key` names the one that vLLM makes."""

    key: str
    size: int


@dataclass(frozen=True)
class WeightShare:
    """The share of one rank of a pipeline stage. `layers`: those of the stage."""

    config: ConfigJson
    options: MemoryOptions
    loading: Loading
    stage: int

    def bytes_of(self, tensors: Iterable[Tensor]) -> int:
        """What torch counts for them on the rank, and for what vLLM makes of the configuration
        beside. Raises NotKnown."""
        merged: dict[str, int] = {}
        for held in self._held(tensors):
            merged[held.key] = merged.get(held.key, 0) + held.size
        made = sum(map(allocated, merged.values())) + rotary_bytes(self.config, self.loading.width)
        if any(".kv_b_proj." in key for key in merged) and self._compressed(merged):
            made += self._copies()
        return self._offloaded(made)

    def _compressed(self, merged: Mapping[str, int]) -> bool:
        """Whether kv_b_proj is not of the model's own type: MLA then keeps a copy of it that is
        (mla_attention.py, process_weights_after_loading)."""
        whole = self._latent() * self.loading.width // self.options.layout.tensor
        return all(size < whole for key, size in merged.items() if ".kv_b_proj.weight" in key)

    def _latent(self) -> int:
        config, names = self.config, ("qk_nope_head_dim", "v_head_dim")
        sizes = [config.count(name) or 0 for name in names]
        return sum(sizes) * (config.attention_heads or 0) * (config.count("kv_lora_rank") or 0)

    def _copies(self) -> int:
        layers = len(self._layers())
        return layers * allocated(self._latent() * self.loading.width // self.options.layout.tensor)

    def _offloaded(self, size: int) -> int:
        """Less what --cpu-offload-gb puts into the machine's memory."""
        return max(0, size - int(self.options.offload_gib * GIB))

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

    def _held(self, tensors: Iterable[Tensor]) -> Iterator[_Held]:
        mine, stages = self._layers(), self.options.layout.pipeline
        ends = self.stage == 0, self.stage == stages - 1
        for tensor in tensors:
            held = self._one(tensor, mine, ends)
            if held is not None:
                yield held

    def _one(self, tensor: Tensor, mine: range, ends: tuple[bool, bool]) -> _Held | None:
        name = _EXPERT.sub(".experts", tensor.name)
        if _NOT_LOADED.search(name) or _DRAFT.search(name):
            return None
        found = _NAME.fullmatch(name)
        module, part = (found["module"], found["part"]) if found else (name, "weight")
        leaf = module.rpartition(".")[2]
        if _TOWER.search(name):
            if self.options.language_model_only:
                return None
        elif layer := _LAYER.search(name):
            if int(layer[1]) not in mine:
                return None
        elif leaf in _FIRST:
            if not (ends[0] or (ends[1] and self._tied)):
                return None
        elif (leaf in _LAST and self._tied) or not ends[1]:
            return None
        size = self._share(name, leaf, tensor, part)
        merged = _MERGED.get(leaf, leaf)
        return _Held(f"{module[: len(module) - len(leaf)]}{merged}.{part}", size)

    @property
    def _tied(self) -> bool:
        return tied(self.config)

    def _share(self, name: str, leaf: str, tensor: Tensor, part: str) -> int:
        """Bytes of the tensor that the rank holds."""
        ranks = self.options.layout.tensor
        whole = self._bytes(tensor, leaf, part)
        if ".experts." in name:
            return self._of_experts(whole)
        if _TOWER.search(name) and self.options.whole_tower:
            return whole
        if leaf in _FIRST or leaf in _LAST:
            rows = tensor.shape[0] if tensor.shape else 1
            padded = -(-rows // _PADDED) * _PADDED
            return whole * padded // max(rows, 1) // ranks
        if ".indexer." in name:
            return whole
        if leaf in _PAIRS and not _TOWER.search(name):
            heads = self.config.key_value_heads or ranks
            return whole * max(1, heads // ranks) // heads
        return whole // ranks if leaf in _CUT else whole

    def _of_experts(self, whole: int) -> int:
        layout, experts = self.options.layout, self.config.experts
        ranks = layout.tensor * layout.data * layout.context
        if not layout.experts_whole:
            return whole // ranks
        if not experts:
            raise NotKnown(Text("config.json does not say {name}", name="num_experts"))
        return whole * -(-experts // ranks) // experts

    def _bytes(self, tensor: Tensor, leaf: str, part: str) -> int:
        """Of the whole tensor once it is loaded."""
        bits = bits_of(tensor.dtype)
        if bits is None:
            why = Text("the headers have a type that is not known: {dtype}", dtype=tensor.dtype)
            raise NotKnown(why)
        if tensor.dtype in _FLOATS and part in ("weight", "bias"):
            bits = 8 * self.loading.width
            linear = leaf in _CUT or leaf in _PAIRS or leaf in ("q_a_proj", "kv_a_proj_with_mqa")
            if self.loading.online and part == "weight" and linear and leaf != "conv1d":
                bits = 8
        return math.prod(tensor.shape) * bits // 8


def rotary_bytes(config: ConfigJson, width: int) -> int:
    """The table of sines and cosines of all positions, which the layers share
    (rotary_embedding/base.py; mrope.py makes it four times as long)."""
    size = config.count("qk_rope_head_dim") if config.mla else config.head_size
    places = config.count("max_position_embeddings")
    if not size or not places or config.text_model_type in _NO_ROTARY:
        return 0
    tables = (*config.ropes, config.text)
    ropes = [rope for rope in tables if isinstance(rope, dict)]
    part = next((rope[_PART] for rope in ropes if rope.get(_PART) is not None), 1.0)
    if isinstance(part, (int, float)) and 0 < part <= 1 and not config.mla:
        size = int(size * part)
    inner = config.text.get("rope_parameters") or config.text.get("rope_scaling")
    sections = isinstance(inner, dict) and inner.get("mrope_section")
    return allocated(places * (4 if sections else 1) * size * width)


_PART = "partial_rotary_factor"
_NO_ROTARY = frozenset(("bert", "roberta", "xlm-roberta", "gpt2", "opt", "bloom", "nemotron_h"))
