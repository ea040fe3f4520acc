"""Makes rules/tables/models.toml of a folder of config.json files.

    python -m tests.models_table FOLDER

Each is OWNER__NAME.json with `_source`, where its values were read; what is known from memory or
from the defaults of a class alone is left out. Of the values, those are taken that decide how a
server starts or how large the model is; names of modules in a quantisation stand without the
numbers of their layers, each once.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from doctor.consumers.known_models import NULLS
from doctor.shipped import rules_folder

TABLE = rules_folder() / "tables" / "models.toml"

HEADER = """\
# What the config.json of models says that people serve, the values that decide a start: read before
# a model is downloaded, and never where it is there. Made by `python -m tests.models_table`, which
# says what is left out. `source`: where the values were read, most in a copy of the hub's own file.
# `null`: the keys whose value is null there, which is not the same as absent; modules "...": those
# that the copy does not name.
"""

# When the commits are of that hold copies of the hub's files.
_DATES = {"f90a1e3a": "2026-08-22", "095f58a51": "2026-08-21"}
_COPY = re.compile(r"github:(\S+)@(\w+) (\S+)(?: \(a copy of the hub file\))?")
# Numbers of an index that nobody else has.
_PRIVATE = re.compile(r" \(?(?:code index )?ids? \d[^()]*\)|; \w+ from \d+$")
_NOT_ENOUGH = re.compile(r"general knowledge|from memory|use it for KV only")
_DEFAULTS = re.compile(r"configuration_\w+\.py defaults")

# These copies are not of the hub's form: of the first two vLLM 0.33 reads other sizes than they
# have; of the others no release knows the type or the class, and they name no code that would.
_DOUBTED = frozenset(
    (
        *("stepfun-ai/Step-3.7-Flash", "stepfun-ai/Step-3.7-Flash-FP8"),
        *("sgl-project/DeepSeek-V4-Flash-FP8", "sgl-project/DeepSeek-V4-Pro-FP8"),
        *("MiniMaxAI/MiniMax-M3", "XiaomiMiMo/MiMo-7B-Base"),
    )
)

NOT_COPIED = "..."

# Parts whose own values count.
PARTS = ("text_config", "llm_config", "language_config", "vision_config", "rope_parameters")

KEPT = frozenset(
    """architectures auto_map dtype model_type torch_dtype transformers_version
    add_full_attention_sink_bias add_swa_attention_sink_bias attention_bias attention_chunk_size
    attention_head_dim attention_k_eq_v attn_bias attn_output_gate attn_res_block_size
    attn_type_list audio_config block_configs chunk_size compress_ratios conv_kernel
    decoder_sparse_step deepstack_visual_indexes default_output_length dense_intermediate_size depth
    enable_moe_block expand expert_dtype expert_intermediate_size first_k_dense_replace
    full_attention_interval full_attn_layers global_head_dim hc_mult head_dim hidden_size
    hidden_size_per_layer_input hybrid_layer_pattern hybrid_override_pattern image_size
    img_token_compression_config in_channels index_head_dim index_n_heads
    index_share_for_mtp_iteration index_skip_topk_offset index_topk index_topk_freq
    index_topk_pattern indexer_types init_pos_emb_height init_pos_emb_time init_pos_emb_width
    interleave_moe_layer_step intermediate_size intermediate_size_mlp is_encoder_decoder
    kv_lora_rank language_model_only latent_moe_use_norm layer_types layers_block_type
    linear_attn_config linear_bias linear_conv_kernel_dim linear_key_head_dim linear_num_key_heads
    linear_num_value_heads linear_value_head_dim mamba_head_dim mamba_num_heads mamba_proj_bias
    mamba_ssm_cache_dtype mamba_ssm_dtype max_position_embeddings max_window_layers
    merge_kernel_size mla_use_output_gate mlp_bias mlp_layer_types mlp_only_layers mlp_type
    mm_hidden_size mm_projector_type model_max_length moe_intermediate_size moe_latent_size
    moe_layer_freq moe_layers_enum moe_shared_expert_intermediate_size moe_shared_expert_overlap
    mtp_hybrid_override_pattern mtp_layers_block_type mtp_num_hidden_layers mtp_transformer_layers
    mtp_use_dedicated_embeddings multi_modal_projector_bias multimodal_projector_bias n_group
    n_groups n_routed_experts n_shared_experts no_rope_layers num_attention_heads num_channels
    num_experts num_experts_per_tok num_experts_per_token num_global_key_value_heads num_hash_layers
    num_heads num_hidden_layers num_key_value_heads num_kv_shared_layers num_local_experts
    num_mtp_modules num_nextn_predict_layers num_position_embeddings num_shared_experts o_groups
    o_lora_rank original_max_position_embeddings out_hidden_size output_gate_type
    partial_rotary_factor patch_size pixel_shuffle_ratio pooling_kernel_size position_embedding_size
    projection_dim projector_hidden_size projector_input_dim projector_output_dim q_lora_rank
    qk_head_dim qk_nope_head_dim qk_norm_type qk_rope_head_dim qkv_bias qkv_hidden_size
    quantization_config rope_scaling rotary_dim routed_expert_hidden_size scoring_func
    shared_expert_intermediate_size shared_intermediate_size sliding_window sliding_window_pattern
    sliding_window_size sparse_attention_config spatial_merge_size ssm_state_size swa_head_dim
    swa_num_attention_heads swa_num_key_value_heads swa_v_head_dim temporal_patch_size
    text_hidden_size tie_word_embeddings top_k_experts topk_method use_bias
    use_bidirectional_attention use_conv_bias use_double_wide_mlp use_mtp use_qk_norm
    use_routing_bias use_sliding_window v_head_dim vision_feature_select_strategy vision_output_dim
    vision_soft_tokens_per_image vocab_size vocab_size_per_layer_input vt_hidden_size
    vt_intermediate_size vt_num_attention_heads vt_num_hidden_layers""".split()  # noqa: SIM905 - a list to read
)
_NAMES = ("exclude_modules", "ignore", "ignored_layers", "modules_to_not_convert", "targets")
# Of a quantisation, what only its own layers need.
_DROPPED = frozenset(("input_activations", "output_activations", "producer", "observer_kwargs"))


def essentials(values: dict[str, Any]) -> dict[str, Any]:
    """What of a config.json is shipped."""
    made = dict(values)
    separate = made.pop("_hf_quant_config", None)
    if separate and not made.get("quantization_config"):
        made["quantization_config"] = _whole(separate)
    return _kept(made)


def _whole(separate: dict[str, Any]) -> dict[str, Any]:
    """hf_quant_config.json, which modelopt alone writes, of a copy that has its algorithms alone:
    without the producer vLLM would take it for nothing, and which modules are left as they are is
    not said there."""
    if "producer" in separate:
        return separate
    inner = {"exclude_modules": [NOT_COPIED], **separate.get("quantization", {})}
    return {**separate, "producer": {"name": "modelopt"}, "quantization": inner}


def _kept(part: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in sorted(part.items()):
        if key in PARTS and isinstance(value, dict):
            made[key] = _plain(value) if key == "rope_parameters" else _kept(value)
        elif key == "quantization_config" and isinstance(value, dict):
            made[key] = _quantization(value)
        elif (key == "auto_map" and isinstance(value, dict)) or key in KEPT:
            made[key] = _plain(value)
    return {key: value for key, value in made.items() if value != {}}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in sorted(value.items()) if v is not None}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _quantization(value: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, one in sorted(value.items()):
        if key in _NAMES and isinstance(one, list):
            names = (re.sub(r"(?<=\.)\d+(?=[.*]|$)", "*", name) for name in one)
            made[key] = sorted(set(names))
        elif key == "quantized_layers" and isinstance(one, dict):
            continue
        elif key == "producer" and isinstance(one, dict):
            made[key] = {"name": one.get("name", "")}
        elif key not in _DROPPED and one is not None:
            made[key] = _quantization(one) if isinstance(one, dict) else _plain(one)
    return made


def source_of(said: str) -> str | None:
    """Where the values of a file were read; None where that is not enough to ship them."""
    if _NOT_ENOUGH.search(said):
        return None
    if _DEFAULTS.search(said) and "public copies of the hub file" not in said:
        return None
    if found := _COPY.fullmatch(said):
        return f"{found[1]}@{found[2]} of {_DATES[found[2]]}, {found[3]}"
    return _PRIVATE.sub("", re.sub(r"^code index id \d+ \(([^)]*)\)", r"\1", said))


def written(value: Any) -> str:
    """A value as TOML, in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)} = {written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def section(header: str, values: dict[str, Any]) -> Iterator[str]:
    """Its lines, the tables in it after it. TOML has no null: what is null is named by `null`."""
    yield f"[{header}]"
    tables = {k: v for k, v in values.items() if isinstance(v, dict)}
    if nulls := [key for key, value in values.items() if value is None]:
        yield f"{NULLS} = {written(nulls)}"
    for key, value in values.items():
        if key not in tables and value is not None:
            yield f"{_key(key)} = {written(value)}"
    for key, value in tables.items():
        yield ""
        yield from section(f"{header}.{_key(key)}", value)


def table(folder: Path) -> str:
    """The whole file."""
    made = [HEADER]
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stem.replace("__", "/", 1)):
        values = json.loads(path.read_text(encoding="utf-8"))
        name, source = path.stem.replace("__", "/", 1), source_of(values.pop("_source"))
        if source is not None and name not in _DOUBTED:
            lines = section(json.dumps(name), {"source": source, **essentials(values)})
            made.append("\n".join(lines) + "\n")
    return "\n".join(made)


if __name__ == "__main__":
    TABLE.write_text(table(Path(sys.argv[1])), encoding="utf-8")
