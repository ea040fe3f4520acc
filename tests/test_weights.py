"""How large a model's weights are once they are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from doctor.consumers.model_config import ConfigJson
from doctor.fit.weights import loaded_bytes

GIB = 1 << 30
MODELS = Path(__file__).parent.parent / "fixtures" / "models"
REAL = {
    one["model"]: one
    for one in (json.loads(path.read_text(encoding="utf-8")) for path in MODELS.glob("*.json"))
}


def gib(
    model: str, asked: str | None = None, dtype_asked: str = "auto", **more: Any
) -> float | None:
    size = loaded_bytes(ConfigJson({**REAL[model]["config"], **more}), asked, dtype_asked)
    return None if size is None else size / GIB


@pytest.mark.parametrize("model", [name for name, one in REAL.items() if "printed_gib" in one])
def test_they_are_what_vllm_printed(model: str) -> None:
    """`Model loading took ... GiB` at one rank."""
    size, printed = gib(model), REAL[model]["printed_gib"]
    assert size is not None
    assert size <= printed * 1.002
    assert size >= printed * 0.997


def test_the_default_model_has_what_its_profile_says() -> None:
    assert round(gib("zai-org/GLM-4.7-Flash") or 0, 1) == 55.8


@pytest.mark.parametrize(
    ("quantization", "printed"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 5.1811),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 5.29),
    ],
)
def test_so_they_are_at_four_bits(quantization: dict[str, Any], printed: float) -> None:
    """Measured for a Qwen2.5-7B of each kind."""
    size = gib("Qwen/Qwen2.5-7B-Instruct", quantization_config=quantization)
    assert size == pytest.approx(printed, rel=0.02)


def test_what_vllm_quantises_as_it_loads_is_smaller() -> None:
    assert gib("Qwen/Qwen2.5-7B-Instruct", "fp8") == pytest.approx(8.1426, rel=0.01)
    assert gib("Qwen/Qwen2.5-7B-Instruct", "bitsandbytes") is None


def test_another_type_has_another_size() -> None:
    plain = gib("Qwen/Qwen3-0.6B") or 0
    assert gib("Qwen/Qwen3-0.6B", None, "float32") == pytest.approx(2 * plain, rel=1e-3)
    assert gib("Qwen/Qwen3-0.6B", None, "half") == plain
    # A checkpoint of float32 is loaded as one of two bytes.
    assert gib("Qwen/Qwen3-0.6B", None, "auto", dtype="float32") == plain


def test_mla_keeps_a_copy_of_what_is_quantised() -> None:
    """79.739 GiB were printed for each of eight ranks; 7 x 0.86 GiB of it are query and latent
    projections that each holds whole, 7 x 0.2 routers."""
    size = gib("deepseek-ai/DeepSeek-R1") or 0
    assert (size + 7 * 0.86 + 7 * 0.2) / 8 == pytest.approx(79.739, rel=0.01)


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        ("Qwen/Qwen3-30B-A3B", 30.5),  # what their cards and names say
        ("Qwen/Qwen3.5-27B", 27.4),
        ("Qwen/Qwen3.5-35B-A3B", 35.1),
        ("mistralai/Mixtral-8x7B-v0.1", 46.7),
        ("deepseek-ai/DeepSeek-V2-Lite", 15.7),
        ("01-ai/Yi-34B", 34.4),
        ("Qwen/Qwen3-VL-8B-Instruct", 8.77),
    ],
)
def test_they_are_as_many_as_the_model_is_said_to_have(model: str, billions: float) -> None:
    size = gib(model)
    assert size is not None
    assert size * GIB / 2e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize(
    "model",
    [
        "nvidia/GLM-5-NVFP4",  # layers that are not quantised beside those that are
        "RedHatAI/Llama-4-Scout-17B-16E-Instruct-FP8-dynamic",
        "moonshotai/Kimi-K2.5",
        "google/gemma-4-26B-A4B",
        "nvidia/Llama-3_3-Nemotron-Super-49B-v1",
        "deepseek-ai/DeepSeek-V4-Flash",
    ],
)
def test_what_is_not_understood_is_not_known(model: str) -> None:
    assert gib(model) is None


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "num_hidden_layers", "head_dim"])
def test_nothing_is_guessed_for_what_is_not_said(key: str) -> None:
    for value in (None, "5120"):
        config = ConfigJson({**REAL["Qwen/Qwen3-32B"]["config"], key: value})
        assert loaded_bytes(config) is None


def test_nothing_is_known_of_a_tower_that_is_not_understood() -> None:
    assert gib("Qwen/Qwen3-32B", vision_config={"hidden_size": 8}) is None
    assert gib("Qwen/Qwen3-32B", audio_config={"hidden_size": 8}) is None


def test_tied_embeddings_count_once() -> None:
    model = "Qwen/Qwen3-32B"
    once = (gib(model) or 0) - (gib(model, tie_word_embeddings=True) or 0)
    assert once * GIB == pytest.approx(2 * 151936 * 5120, rel=1e-3)
    assert gib(model, tie_word_embeddings="false") is None
