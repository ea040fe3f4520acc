"""How the ranks of a server share a model, as vLLM asserts it.

Read in vLLM 0.22.0 and 0.33.0: config/model.py (verify_with_parallel_config), config/parallel.py,
engine/arg_utils.py, layers/linear.py, layers/fused_moe, layers/mamba, and
layers/quantization/utils/fp8_utils.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from doctor.consumers.model_config import ConfigJson
from doctor.consumers.options import GivenOptions
from doctor.frozen import dataclass
from doctor.model import Text
from doctor.profile import ModelNeeds, Profile


@dataclass(frozen=True)
class Layout:
    """Into how many parts a server's options cut its work: `tensor` parallel, `pipeline` stages,
    `context` (prefill context parallel), `data` replicas, `here` of which run on this node.
    `experts_whole`: each rank has whole experts. `elsewhere`: why it is not known how many ranks
    run on this node."""

    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    data: int = 1
    here: int = 1
    experts_whole: bool = False
    elsewhere: Text | None = None

    @property
    def beside(self) -> int:
        """The ranks of this node for each one of tensor parallelism."""
        return self.pipeline * self.context * self.here

    @property
    def ranks(self) -> int:
        """Those of this node, a GPU each."""
        return self.tensor * self.beside


def layout_of(profile: Profile) -> Layout:
    """As EngineArgs.create_engine_config counts them."""
    given = GivenOptions(profile.options)
    data = given.size("data_parallel_size")
    here = given.count("data_parallel_size_local")
    outside = given.says("data_parallel_rank") or given.switch("data_parallel_external_lb")
    return Layout(
        tensor=profile.tensor_parallel_size,
        pipeline=given.size("pipeline_parallel_size"),
        context=given.size("prefill_context_parallel_size"),
        data=data,
        here=1 if outside else data if here is None else here,
        experts_whole=given.switch("enable_expert_parallel"),
        elsewhere=_elsewhere(given),
    )


def _elsewhere(given: GivenOptions) -> Text | None:
    if (nodes := given.size("nnodes")) > 1:
        return Text("--nnodes {nodes}: the ranks are shared by several machines", nodes=nodes)
    for option in ("distributed_executor_backend", "data_parallel_backend"):
        if (word := given.word(option)) not in (None, "mp", "uni"):
            name = "--" + option.replace("_", "-")
            return Text("{name} {word}: others place the ranks", name=name, word=word)
    return None


# Whose vision tower is cut by heads, and by nothing that pads (dist_utils.divide).
_CUT_TOWERS = frozenset(
    ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
)
_PADDED = 64  # vocab_parallel_embedding.py (DEFAULT_VOCAB_PADDING_SIZE)
_MAMBA_HEADS = ("mamba_num_heads", "mamba_n_heads", "n_mamba_heads")
_MAMBA_GROUPS = ("n_groups", "mamba_n_groups", "mamba_ngroups")


@dataclass(frozen=True)
class SharedModel:
    """A model and the options that say how it is cut. `finest`: the smallest blocks into which this
    vLLM divides those of an expert in fp8, None where it divides none."""

    needs: ModelNeeds
    config: ConfigJson
    layout: Layout
    whole_tower: bool = False
    finest: int | None = None

    def undivided(self, ranks: int) -> tuple[Text, ...]:
        """What of it so many ranks of tensor parallelism cannot share."""
        return (*self.uneven(ranks), *self.unblocked(ranks))

    def uneven(self, ranks: int) -> tuple[Text, ...]:
        """The heads and rows that they cannot have equal parts of."""
        needs, experts = self.needs, self._expert_ranks(ranks)
        if experts != ranks:
            needs = dataclasses.replace(needs, moe_intermediate_size=None)
        return (*needs.undivided(ranks), *self._more(ranks, experts))

    def sizes(self, most: int) -> tuple[int, ...]:
        """The numbers of ranks, up to `most`, that can share it; where its heads are not known, one
        rank alone is sure to."""
        most = min(most, self.needs.attention_heads or 1)
        return tuple(n for n in range(1, most + 1) if not self.undivided(n))

    def _expert_ranks(self, ranks: int) -> int:
        """How many ranks cut each expert: data parallel ones too (FusedMoEParallelConfig)."""
        layout = self.layout
        return 1 if layout.experts_whole else ranks * layout.data * layout.context

    def _more(self, ranks: int, experts: int) -> Iterator[Text]:
        rows = self.needs.moe_intermediate_size
        if rows and experts != ranks and rows % experts:
            yield Text(
                "the {size} rows of each expert (moe_intermediate_size), which {ranks} ranks share "
                "with data parallelism",
                size=rows,
                ranks=experts,
            )
        config = self.config
        if (rows := config.vocabulary) and -(-rows // _PADDED) * _PADDED % ranks:
            yield Text("the {size} rows of the vocabulary (padded to a multiple of 64)", size=rows)
        if (heads := config.count("linear_num_value_heads")) and heads % ranks:
            yield Text("the {size} value heads of its linear attention", size=heads)
        if heads := config.count(*_MAMBA_HEADS):
            if heads % ranks:
                yield Text("the {size} heads of its Mamba layers", size=heads)
            if (groups := config.count(*_MAMBA_GROUPS)) and groups != 1 and groups % ranks:
                yield Text("the {size} groups of its Mamba layers", size=groups)
        tower = None if self.whole_tower else config.vision_heads
        if tower and config.model_type in _CUT_TOWERS and tower % ranks:
            yield Text("the {size} heads of its vision tower", size=tower)

    def unblocked(self, ranks: int) -> tuple[Text, ...]:
        """The quantised weights whose blocks or groups they would cut through."""
        return (*self._blocks(ranks, self._expert_ranks(ranks)), *self._groups(ranks))

    def _groups(self, ranks: int) -> Iterator[Text]:
        """The inputs of a dense layer's last matrix are cut: each part must be whole groups of
        weights that share a scale (awq.py; verify_marlin_supports_shape)."""
        group, rows = _group(self.config), self.needs.intermediate_size
        if group and rows and rows % group == 0 and rows % ranks == 0 and rows // ranks % group:
            yield Text(
                "the {size} inputs of each dense layer into whole groups of {group} (group_size)",
                size=rows,
                group=group,
            )

    def _blocks(self, ranks: int, experts: int) -> Iterator[Text]:
        """Where weights in fp8 have a scale for each block, a part must be whole blocks. Layers of
        several matrices in one are let off (allow_fp8_block_shape_mismatch), experts are not, but
        that later releases divide their blocks into finer ones."""
        block = _block(self.config)
        if block is None:
            return
        dense, expert = self.needs.intermediate_size, self.needs.moe_intermediate_size
        if dense and ranks > 1 and dense % ranks == 0 and dense // ranks % block:
            yield Text(
                "the {size} rows of each dense layer into whole blocks of {block} "
                "(weight_block_size)",
                size=dense,
                block=block,
            )
        least = self.finest or block
        if expert and expert % experts == 0 and math.gcd(expert // experts, block) < least:
            yield Text(
                "the {size} rows of each expert into whole blocks of {block} (weight_block_size)",
                size=expert,
                block=block,
            )


def _block(config: ConfigJson) -> int | None:
    """The side of a block of an fp8 checkpoint, where the blocks are square and no layer of the
    feed-forward part is left out of the quantisation."""
    said, made = config.values.get("quantization_config"), config.quantization
    if made is None or made.method != "fp8" or not isinstance(said, dict):
        return None
    match said.get("weight_block_size"):
        case [int(side), int(other)] if side == other and side > 0:
            return None if any(map(_fed_forward, made.ignored)) else side
    return None


def _group(config: ConfigJson) -> int | None:
    """How many weights share a scale in a checkpoint of 4 or 8 bits whose order of inputs is kept,
    and where no layer of the feed-forward part is left out of the quantisation."""
    said, made = config.values.get("quantization_config"), config.quantization
    if made is None or not isinstance(said, dict) or any(map(_fed_forward, made.ignored)):
        return None
    packed = made.method == "compressed-tensors" and made.algorithm == "pack-quantized"
    kept = made.method in _GROUPED and said.get("desc_act") is not True
    return made.group if packed or kept else None


_GROUPED = frozenset(("awq", "awq_marlin", "gptq", "gptq_marlin", "auto_awq", "auto_gptq"))


def _fed_forward(module: str) -> bool:
    """Whether a module that is not quantised may be one of the layers that are cut; routers are
    not."""
    name = module.rpartition(".")[2]
    return any(part in module for part in ("mlp", "experts", "ffn")) and name not in (
        "gate",
        "shared_expert_gate",
        "router",
        "e_score_correction_bias",
    )


def shared_model(profile: Profile, config: ConfigJson, finest: int | None) -> SharedModel:
    given = GivenOptions(profile.options)
    whole = given.word("mm_encoder_tp_mode") == "data" or given.switch("language_model_only")
    return SharedModel(profile.needs, config, layout_of(profile), whole, finest)


def context_groups(model: SharedModel, size: int) -> Text | None:
    """Why the ranks of tensor parallelism cannot be put into groups of `size` for decode context
    parallelism (0.22 and 0.33, where the prefill's context is not cut as well); None where they
    can, or that is not known."""
    tensor, heads = model.layout.tensor, model.needs.attention_heads
    shared = model.needs.key_value_heads
    if tensor % size:
        return Text("{tensor} ranks do not make groups of {size}", tensor=tensor, size=size)
    if model.config.mla or heads is None or shared is None:
        return None
    if tensor <= shared:
        return Text("it needs more than {shared} ranks: one for each key/value head", shared=shared)
    if size > tensor // shared:
        return Text("{most} ranks hold each key/value head", most=tensor // shared)
    if heads // shared % size:
        each = heads // shared
        return Text("each key/value head serves {each} attention heads", each=each)
    return None
