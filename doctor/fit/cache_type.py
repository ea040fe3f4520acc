"""In which type the KV cache is kept, and what of it a token takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from doctor.consumers.model_config import ConfigJson
from doctor.fit.asked import AskedModel
from doctor.fit.sizes import NotKnown
from doctor.frozen import dataclass
from doctor.model import Text

_SCALE = 4  # bytes of a token's scale for one head
_WIDTHS = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}
_FP8 = frozenset(("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc", "fp8_ds_mla"))
_BY_TOKEN = frozenset(("int8_per_token_head", "fp8_per_token_head"))
# MODELOPT_TO_VLLM_KV_CACHE_DTYPE_MAP
_OF_MODELOPT = {"fp8": "fp8_e4m3", "nvfp4": "nvfp4"}


@dataclass(frozen=True)
class CacheType:
    """`name`: as --kv-cache-dtype has it, `auto` where it is that of the model; `width`: bytes of
    one number in the type of the model."""

    name: str
    width: int

    @property
    def quantized(self) -> bool:
        """is_quantized_kv_cache"""
        return self.name != "auto" and self.name not in _WIDTHS

    def bytes_of(self, numbers: int) -> int:
        """Of so many numbers in a row, such as one head's key."""
        if self.name == "nvfp4":  # nvfp4_kv_cache_full_dim
            return numbers // 2 + numbers // 16
        if self.quantized:
            return numbers
        return numbers * _WIDTHS.get(self.name, self.width)

    def pair(self, key: int, value: int) -> int:
        """Of one head of a token: its key and its value, with their scales."""
        scales = 2 * _SCALE if self.name in _BY_TOKEN else 0
        return self.bytes_of(key) + self.bytes_of(value) + scales


def cache_type(asked: AskedModel) -> CacheType:
    """As it is asked for, else as the checkpoint says (resolve_kv_cache_dtype_string, and what
    Attention makes of a quantisation's kv_cache_scheme)."""
    name = asked.options.kv_cache_dtype.lower()
    if name == "auto":
        name = _of_checkpoint(asked.config)
    if name not in ("auto", "nvfp4", *_WIDTHS, *_FP8, *_BY_TOKEN):
        raise NotKnown(Text("what a KV cache of the type {name} takes is not known", name=name))
    if asked.options.given.get("kv_cache_dtype_skip_layers"):
        raise NotKnown(Text("--kv-cache-dtype-skip-layers gives layers a KV cache of other types"))
    return CacheType(name, model_width(asked))


def model_width(asked: AskedModel) -> int:
    """Bytes of one number in the type in which the model runs: without a type that is asked for,
    float32 becomes one of two bytes (_find_dtype)."""
    name = asked.options.dtype
    if name == "auto":
        return 2
    if name not in _WIDTHS:
        raise NotKnown(Text("--dtype {name} is not known", name=name))
    return _WIDTHS[name]


def _of_checkpoint(config: ConfigJson) -> str:
    said = config.values.get("quantization_config")
    if not isinstance(said, dict):
        return _by_scheme(config)
    method = said.get("quant_method")
    if not isinstance(method, str):
        method = config.quantization.method if config.quantization else ""
    if not method.startswith("modelopt"):
        return _by_scheme(config)
    inner = said.get("quantization")
    tables = (inner if isinstance(inner, dict) else said, said)
    for name in ("kv_cache_scheme", "kv_cache_quant_algo"):
        for table in tables:
            if table.get(name):
                return _named(table[name])
    return "auto"


def _named(algorithm: Any) -> str:
    if isinstance(algorithm, dict):
        if _eight_bits(algorithm) and algorithm.get("dynamic") is False:
            return _OF_MODELOPT["fp8"]
        four = algorithm.get("num_bits") == 4 and algorithm.get("type") == "float"
        return "nvfp4" if four else "auto"
    return _OF_MODELOPT.get(algorithm.lower(), "auto") if isinstance(algorithm, str) else "auto"


def _eight_bits(scheme: Mapping[str, Any]) -> bool:
    return scheme.get("num_bits") == 8 and scheme.get("type") == "float"


def _by_scheme(config: ConfigJson) -> str:
    """compressed-tensors has a scheme of its own (get_cache_scale)."""
    kind = config.quantization
    if kind is None or kind.method != "compressed-tensors":
        return "auto"
    text = config.values.get("text_config")
    for part in (config.values, text if isinstance(text, dict) else {}):
        for key in ("quantization_config", "compression_config"):
            said = part.get(key)
            if isinstance(said, dict) and said.get("kv_cache_scheme") is not None:
                return "fp8"
    return "auto"
