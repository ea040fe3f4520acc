"""The state that a layer keeps of a whole sequence: Mamba, linear attention, short convolutions.

The shapes are those of vllm/model_executor/layers/mamba/mamba_utils.py, the sizes those that each
model's class gives it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from doctor.consumers.model_config import ConfigJson
from doctor.fit.asked import AskedModel, needed
from doctor.fit.cache_type import model_width
from doctor.fit.sizes import NotKnown
from doctor.frozen import dataclass
from doctor.model import Text

_WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2}


# Whose states have a row for each drafted token in every release.
_DRAFTED = frozenset(
    ("kimi_linear", "mamba2", "nemotron_h", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next")
)


@dataclass(frozen=True)
class StateShape:
    """Of one layer on one rank. `row`: numbers that the convolution keeps of each of `rows` tokens;
    `state`: numbers of the recurrent state; `key`: where config.json says its type, `type`: which
    the model's class takes otherwise; None is that of the convolution."""

    row: int
    rows: int
    state: int = 0
    key: str | None = None
    type: str | None = None


def state_bytes(asked: AskedModel) -> int:
    """Bytes of one layer's state on one rank, speculative rows in it."""
    if asked.options.given.get("use_replayssm") in (True, "true", "True"):
        raise NotKnown(Text("what a state takes with --use-replayssm is not known"))
    kind = asked.config.text_model_type or ""
    if asked.options.drafted and kind not in _DRAFTED:
        raise NotKnown(Text("what a state of {kind} takes with a drafter is not known", kind=kind))
    shape = _SHAPES[kind](asked)
    conv = _width(asked, "mamba_cache_dtype", None) or model_width(asked)
    said = asked.said(shape.key) if shape.key else None
    wide = _width(asked, "mamba_ssm_cache_dtype", shape.type if said is None else said) or conv
    return shape.row * shape.rows * conv + shape.state * wide


def _width(asked: AskedModel, option: str, otherwise: object) -> int | None:
    """Bytes of a number, by the option that says it; None where nothing does."""
    name = asked.options.given.get(option)
    name = otherwise if name in (None, "", "auto") else name
    if name in (None, "auto"):
        return None
    if not isinstance(name, str) or name not in _WIDTHS:
        raise NotKnown(Text("the type of the states, {name}, is not known", name=str(name)[:80]))
    return _WIDTHS[name]


@dataclass(frozen=True)
class _Mamba2:
    inner: int
    groups: int
    heads: int
    dim: int
    state: int
    kernel: int

    def shape(self, asked: AskedModel) -> StateShape:
        """Groups that the ranks do not divide are copied."""
        ranks, groups = asked.ranks, self.groups
        groups += 0 if groups % ranks == 0 else ranks - groups
        inner = self.inner + 2 * groups * self.state
        row = asked.part(inner, "the convolution of its Mamba layers")
        heads = asked.part(self.heads, "the heads of its Mamba layers")
        rows = self.kernel - 1 + asked.options.drafted
        return StateShape(row, rows, heads * self.dim * self.state)


def _nemotron_h(asked: AskedModel) -> StateShape:
    heads, dim = asked.count("mamba_num_heads"), asked.count("mamba_head_dim")
    made = _Mamba2(
        heads * dim,
        asked.count("n_groups"),
        heads,
        dim,
        asked.count("ssm_state_size"),
        asked.count("conv_kernel", default=4),
    )
    shape = made.shape(asked)
    if not asked.release.since("0.19"):
        return shape
    type_ = "float32" if asked.release.since("0.20") else "float16"
    return replace(shape, key="mamba_ssm_cache_dtype", type=type_)


def _granite(asked: AskedModel) -> StateShape:
    """Bamba and the hybrids of Granite."""
    inner = asked.count("mamba_expand", default=2) * needed(asked.config.hidden_size, "hidden_size")
    return _named_mamba2(asked, inner)


def _falcon_h1(asked: AskedModel) -> StateShape:
    if asked.said("mamba_d_ssm") is None:
        return _granite(asked)
    return _named_mamba2(asked, asked.count("mamba_d_ssm"))


def _named_mamba2(asked: AskedModel, inner: int) -> StateShape:
    heads, dim = asked.count("mamba_n_heads"), asked.said("mamba_d_head")
    dim = inner // heads if dim in (None, "auto") else asked.count("mamba_d_head")
    dim = needed(dim, "mamba_d_head")
    state, kernel = asked.count("mamba_d_state"), asked.count("mamba_d_conv")
    made = _Mamba2(inner, asked.count("mamba_n_groups"), heads, dim, state, kernel)
    return made.shape(asked)


def _mamba2_alone(asked: AskedModel) -> StateShape:
    made = _Mamba2(
        asked.count("expand") * needed(asked.config.hidden_size, "hidden_size"),
        asked.count("n_groups"),
        asked.count("num_heads"),
        asked.count("head_dim"),
        asked.count("state_size"),
        asked.count("conv_kernel", default=4),
    )
    return made.shape(asked)


def _mamba1(asked: AskedModel) -> StateShape:
    inner = asked.part(asked.count("intermediate_size"), "the inner size of its Mamba layers")
    return StateShape(inner, asked.count("conv_kernel") - 1, inner * asked.count("state_size"))


def _jamba(asked: AskedModel) -> StateShape:
    inner = asked.count("mamba_expand") * needed(asked.config.hidden_size, "hidden_size")
    inner = asked.part(inner, "the inner size of its Mamba layers")
    return StateShape(inner, asked.count("mamba_d_conv") - 1, inner * asked.count("mamba_d_state"))


def _delta_net(asked: AskedModel) -> StateShape:
    keys, values = asked.count("linear_num_key_heads"), asked.count("linear_num_value_heads")
    key, value = asked.count("linear_key_head_dim"), asked.count("linear_value_head_dim")
    row = asked.part(2 * keys * key + values * value, "the convolution of its linear attention")
    heads = asked.part(values, "the value heads of its linear attention")
    rows = asked.count("linear_conv_kernel_dim") - 1 + asked.options.drafted
    of_file = None if asked.config.text_model_type == "qwen3_next" else "mamba_ssm_dtype"
    return StateShape(row, rows, heads * key * value, of_file)


def _kimi_delta(asked: AskedModel) -> StateShape:
    """Three convolutions, which have rows for drafted tokens from 0.27 on; the state is float32,
    from 0.30 on of another type where one is asked for."""
    said = asked.said("linear_attn_config")
    part = ConfigJson(said if isinstance(said, dict) else {})
    heads, dim = part.count("num_heads"), needed(part.count("head_dim"), "linear_attn_config")
    heads = asked.part(needed(heads, "linear_attn_config"), "the heads of its linear attention")
    rows = needed(part.count("short_conv_kernel_size"), "short_conv_kernel_size") - 1
    rows += asked.options.drafted if asked.release.since("0.27") else 0
    if not asked.release.since("0.30") and asked.options.given.get("mamba_ssm_cache_dtype"):
        raise NotKnown(Text("what --mamba-ssm-cache-dtype does to this model is not known"))
    return StateShape(3 * heads * dim, rows, heads * dim * dim, type="float32")


def _lightning(asked: AskedModel) -> StateShape:
    """MiniMax-Text-01: no convolution, and the state has its type."""
    heads = asked.part(asked.count("num_attention_heads"), "the heads of its linear attention")
    size = needed(asked.config.head_size, "head_dim")
    return StateShape(heads * size * size, 1)


def _short(asked: AskedModel) -> StateShape:
    wide = needed(asked.config.hidden_size, "hidden_size")
    if asked.config.text_model_type == "lfm2":
        wide = asked.count("conv_dim", default=wide)
    return StateShape(
        asked.part(wide, "the short convolutions"), asked.count("conv_L_cache", default=3) - 1
    )


_SHAPES: dict[str, Callable[[AskedModel], StateShape]] = {
    "bamba": _granite,
    "falcon_h1": _falcon_h1,
    "falcon_mamba": _mamba1,
    "granitemoehybrid": _granite,
    "jamba": _jamba,
    "kimi_linear": _kimi_delta,
    "lfm2": _short,
    "lfm2_moe": _short,
    "mamba": _mamba1,
    "mamba2": _mamba2_alone,
    "minimax": _lightning,
    "minimax_text_01": _lightning,
    "nemotron_h": _nemotron_h,
    "qwen3_5_moe_text": _delta_net,
    "qwen3_5_text": _delta_net,
    "qwen3_next": _delta_net,
}
