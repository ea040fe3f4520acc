"""Models of kinds that fixtures/models has none of: values of config.json, few layers of each.

The values are those of a model of that kind that people serve, but for the number of layers.
"""

from __future__ import annotations

from typing import Any

_COMMON: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "num_hidden_layers": 6,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "dtype": "bfloat16",
}
_MAMBA2: dict[str, Any] = {
    "mamba_d_conv": 4,
    "mamba_d_head": 64,
    "mamba_d_state": 128,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_n_heads": 64,
    "mamba_chunk_size": 256,
}
_EXPERTS: dict[str, Any] = {
    "num_experts": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 512,
}


def _model(kind: str, architecture: str, **values: Any) -> dict[str, Any]:
    return {**_COMMON, "model_type": kind, "architectures": [architecture], **values}


KINDS: dict[str, dict[str, Any]] = {
    "bamba": _model("bamba", "BambaForCausalLM", attn_layer_indices=[2, 5], **_MAMBA2),
    "bert": _model("bert", "BertModel", hidden_act="gelu", type_vocab_size=2),
    "cohere2": _model("cohere2", "Cohere2ForCausalLM", sliding_window=1024),
    "cohere2 with a pattern": _model(
        "cohere2", "Cohere2ForCausalLM", sliding_window=1024, sliding_window_pattern=3
    ),
    "exaone4": _model("exaone4", "Exaone4ForCausalLM", sliding_window=1024),
    "falcon_h1": _model("falcon_h1", "FalconH1ForCausalLM", mamba_d_ssm=4096, **_MAMBA2),
    "falcon_mamba": _model(
        "falcon_mamba", "FalconMambaForCausalLM", state_size=16, conv_kernel=4, expand=2
    ),
    "gemma2": _model("gemma2", "Gemma2ForCausalLM", head_dim=256, query_pre_attn_scalar=224),
    "gemma3_text": _model(
        "gemma3_text", "Gemma3ForCausalLM", head_dim=128, sliding_window=512, num_hidden_layers=8
    ),
    "gemma3n_text": _model(
        "gemma3n_text",
        "Gemma3nForCausalLM",
        head_dim=256,
        num_hidden_layers=10,
        num_kv_shared_layers=4,
        intermediate_size=[4096] * 10,
        activation_sparsity_pattern=[0.0] * 10,
        vocab_size_per_layer_input=32000,
        num_key_value_heads=2,
    ),
    "gemma4_text": _model(
        "gemma4_text",
        "Gemma4ForCausalLM",
        head_dim=256,
        global_head_dim=512,
        num_global_key_value_heads=2,
        attention_k_eq_v=True,
        num_hidden_layers=8,
        num_kv_shared_layers=2,
        sliding_window=512,
        hidden_size_per_layer_input=0,
    ),
    "gpt2": {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 4,
        "n_positions": 8192,
        "vocab_size": 32000,
        "torch_dtype": "float32",
    },
    "granitemoehybrid": _model(
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        layer_types=["mamba", "mamba", "attention", "mamba", "mamba", "attention"],
        shared_intermediate_size=1024,
        **_MAMBA2,
        **_EXPERTS,
    ),
    "jamba": _model(
        "jamba",
        "JambaForCausalLM",
        mamba_d_conv=4,
        mamba_d_state=16,
        mamba_dt_rank=128,
        mamba_expand=2,
        attn_layer_period=3,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        **_EXPERTS,
    ),
    "kimi_linear": _model(
        "kimi_linear",
        "KimiLinearForCausalLM",
        kv_lora_rank=512,
        q_lora_rank=None,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        head_dim=72,
        mla_use_nope=True,
        linear_attn_config={
            "full_attn_layers": [4],
            "kda_layers": [1, 2, 3, 5, 6],
            "head_dim": 128,
            "num_heads": 16,
            "short_conv_kernel_size": 4,
        },
        num_experts=8,
        num_experts_per_token=2,
        moe_intermediate_size=512,
        num_shared_experts=1,
        first_k_dense_replace=1,
        moe_layer_freq=1,
        routed_scaling_factor=1.0,
        moe_router_activation_func="sigmoid",
        moe_renormalize=True,
        num_expert_group=1,
        topk_group=1,
    ),
    "lfm2": _model(
        "lfm2",
        "Lfm2ForCausalLM",
        conv_L_cache=3,
        conv_dim=2048,
        block_dim=2048,
        layer_types=["conv", "conv", "full_attention", "conv", "conv", "full_attention"],
    ),
    "lfm2_moe": _model(
        "lfm2_moe",
        "Lfm2MoeForCausalLM",
        conv_L_cache=3,
        num_dense_layers=2,
        layer_types=["conv", "conv", "full_attention", "conv", "conv", "full_attention"],
        **_EXPERTS,
    ),
    "llama4_text": _model(
        "llama4_text",
        "Llama4ForCausalLM",
        head_dim=128,
        attention_chunk_size=1024,
        intermediate_size_mlp=4096,
        interleave_moe_layer_step=2,
        pad_token_id=0,
        **_EXPERTS,
    ),
    "llama with windows": _model(
        "llama",
        "LlamaForCausalLM",
        sliding_window=1024,
        layer_types=["sliding_attention", "full_attention"] * 3,
    ),
    "mamba": _model("mamba", "MambaForCausalLM", state_size=16, conv_kernel=4, expand=2),
    "mamba2": _model(
        "mamba2",
        "Mamba2ForCausalLM",
        state_size=128,
        conv_kernel=4,
        expand=2,
        n_groups=8,
        num_heads=64,
        head_dim=64,
    ),
    "minimax": _model(
        "minimax",
        "MiniMaxForCausalLM",
        head_dim=128,
        layer_types=["linear_attention", "linear_attention", "full_attention"] * 2,
        **_EXPERTS,
    ),
    "mistral with a window": _model("mistral", "MistralForCausalLM", sliding_window=4096),
    "olmo3": _model("olmo3", "Olmo3ForCausalLM", sliding_window=1024),
    "opt": _model(
        "opt", "OPTForCausalLM", num_key_value_heads=16, ffn_dim=4096, word_embed_proj_dim=2048
    ),
    "phi3": _model("phi3", "Phi3ForCausalLM", sliding_window=2047, pad_token_id=0),
    "qwen3 of compressed-tensors": _model(
        "qwen3",
        "Qwen3ForCausalLM",
        head_dim=128,
        quantization_config={
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
                    "input_activations": {
                        "num_bits": 8,
                        "type": "float",
                        "strategy": "token",
                        "dynamic": True,
                    },
                }
            },
            "ignore": ["lm_head"],
            "kv_cache_scheme": {
                "num_bits": 8,
                "type": "float",
                "strategy": "tensor",
                "dynamic": False,
                "symmetric": True,
            },
        },
    ),
    "smollm3": _model("smollm3", "SmolLM3ForCausalLM", use_sliding_window=False, pad_token_id=0),
    "starcoder2": _model("starcoder2", "Starcoder2ForCausalLM", sliding_window=4096),
    "whisper": {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "d_model": 512,
        "encoder_layers": 4,
        "decoder_layers": 4,
        "encoder_attention_heads": 8,
        "decoder_attention_heads": 8,
        "encoder_ffn_dim": 2048,
        "decoder_ffn_dim": 2048,
        "num_hidden_layers": 4,
        "max_source_positions": 1500,
        "max_target_positions": 448,
        "num_mel_bins": 80,
        "vocab_size": 51865,
        "torch_dtype": "float16",
    },
}

LEFT_OUT: dict[str, dict[str, str]] = {
    "0.22.0": {"gemma4_text": "transformers 4.57, beside which it is installed, has none"},
    "0.33.0": {
        "bamba": "vLLM has no class of its own for it since 0.24",
        "minimax": "vLLM has no class of its own for it since 0.24",
    },
}
"""What a release cannot make, and why."""
