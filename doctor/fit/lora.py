"""What a server keeps free on the GPU for LoRA adapters (vllm/lora/layers, 0.22.0 and 0.33.0)."""

from __future__ import annotations

from doctor.consumers.model_config import ConfigJson
from doctor.consumers.options import GivenOptions
from doctor.fit.allocator import allocated
from doctor.fit.checkpoints import Loading, checkpoint_of
from doctor.fit.options import MemoryOptions
from doctor.fit.sizes import NotKnown
from doctor.model import Text

_RANK = 16  # max_lora_rank, where nothing is said
_ROWS = frozenset(("o_proj", "down_proj"))  # cut by what they take, the others by what they give
_COLUMNS = frozenset(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"))
_MOST_RANK = 1 << 16


def lora_bytes(config: ConfigJson, options: MemoryOptions, width: int) -> int:
    """Of a rank with all layers: two matrices of `width` bytes a number for each linear layer and
    adapter. Raises NotKnown for models whose layers are not all plain ones."""
    if config.experts or config.mla:
        raise NotKnown(Text("the room for LoRA in a model with experts or MLA is not known"))
    given = GivenOptions(options.given)
    rank = min(given.count("max_lora_rank") or _RANK, _MOST_RANK)
    several, ranks = min(given.size("max_loras"), _MOST_RANK), options.layout.tensor
    size = 0
    for tensor in checkpoint_of(config, Loading(width)):
        leaf = tensor.name.removesuffix(".weight").rpartition(".")[2]
        if len(tensor.shape) != 2 or leaf not in _ROWS | _COLUMNS:
            continue
        rows, columns = tensor.shape
        if leaf in _ROWS:
            columns //= ranks
        else:
            rows //= ranks
        size += allocated(several * rank * rows * width)
        size += allocated(several * rank * columns * width)
    return size
