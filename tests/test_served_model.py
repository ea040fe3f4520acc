"""What the installed software makes of the model that is served: read from files that say it as
those of vLLM 0.22.0 and 0.33.0 and transformers 4.57 and 5.20 do."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from doctor import toml
from doctor.consumers.options import GivenOptions
from doctor.consumers.parsers import PARSERS_TABLE, family_of
from doctor.model import Missing, NotApplicable, Text
from doctor.probes.capability import JudgedGpu
from doctor.probes.configuration import ModelConfiguration, ReadFrom
from doctor.probes.driver import Device, Gpus
from doctor.probes.models import (
    LengthLimits,
    RefuseFloat16,
    ServedModel,
    ServedQuantization,
    TransformersBackend,
    VllmModels,
)
from doctor.probes.served import Profile
from doctor.shipped import rules_folder
from tests.conftest import Environment, facts_of

LATER = ("gpus=later", "archs=9.0", "model=org/mine")


def configuration(**values: Any) -> ModelConfiguration:
    return ModelConfiguration(values, ReadFrom.FOLDER, Text("{path}", path=Path("/m/config.json")))


def write(environment: Environment, name: str, text: str) -> None:
    path = environment.site / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


# Options.


@pytest.mark.parametrize(
    ("value", "count", "amount", "switch"),
    [
        (2, 2, 2.0, False),
        ("2", 2, 2.0, False),
        (True, None, 0.0, True),
        ("True", None, 0.0, True),
        (-1, None, 0.0, False),
        ("1e9", None, 0.0, False),
        (2.5, None, 2.5, False),
        ("2.5", None, 2.5, False),
        ("²", None, 0.0, False),
        ([2], None, 0.0, False),
        (None, None, 0.0, False),
    ],
)
def test_an_option_of_another_type_is_not_said(
    value: Any, count: int | None, amount: float, switch: bool
) -> None:
    given = GivenOptions({"x": value})
    assert (given.count("x"), given.amount("x"), given.switch("x")) == (count, amount, switch)


@pytest.mark.parametrize("value", ['{"a": 1}', {"a": 1}])
def test_json_is_read_as_it_was_typed(value: Any) -> None:
    assert GivenOptions({"x": value}).table("x") == {"a": 1}


@pytest.mark.parametrize("value", ["{", "[1]", 1, "[" * 99999, None])
def test_what_is_no_json_object_is_none(value: Any) -> None:
    assert GivenOptions({"x": value}).table("x") is None


# What config.json says, with what was said on top.


def folder_of(tmp_path: Path, **values: Any) -> str:
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return f"model={tmp_path}"


def test_overrides_of_the_command_line_win(server: Environment, tmp_path: Path) -> None:
    over = json.dumps({"architectures": ["Qwen3ForCausalLM"], "text_config": {"n_positions": 9}})
    model = folder_of(tmp_path, architectures=["Mine"], text_config={"n_positions": 4, "n_ctx": 2})
    facts = facts_of(server, sets=(*LATER, model, f"hf_overrides={over}"))
    made = facts.get(ServedModel)
    assert made.config.architectures == ("Qwen3ForCausalLM",)
    assert made.values["text_config"] == {"n_positions": 9, "n_ctx": 2}
    assert facts.get(Profile).needs.architecture == "Qwen3ForCausalLM"


def test_a_model_that_overrides_cut_down_is_not_as_large_as_its_files(
    server: Environment, tmp_path: Path
) -> None:
    said = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "num_attention_heads": 4}
    said |= {"num_hidden_layers": 40, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    said |= {"vocab_size": 1000, "num_key_value_heads": 4, "dtype": "bfloat16"}
    said |= {"tie_word_embeddings": True}
    model = folder_of(tmp_path, **said)
    (tmp_path / "model.safetensors").write_bytes(bytes(1 << 20))

    def weights(changes: dict[str, Any]) -> int | None:
        sets = (*LATER, model, f"hf_overrides={json.dumps(changes)}")
        return facts_of(server, sets=sets).get(ModelConfiguration).weights

    whole, cut = weights({"rms_norm_eps": 1e-6}), weights({"num_hidden_layers": 1})
    assert whole == 1 << 20
    assert cut is not None
    assert cut < whole


def test_overrides_that_cannot_be_read_leave_it_open(server: Environment, tmp_path: Path) -> None:
    model = folder_of(tmp_path, architectures=["Mine"])
    facts = facts_of(server, sets=(*LATER, model, "hf_overrides={mine"))
    made = facts.get(ModelConfiguration)
    assert (made.values, str(made.why)) == ({}, "--hf-overrides is not a JSON object")
    assert facts.get(Profile).unknown()


# Classes.

AUTO = (
    'MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = OrderedDict(\n    [\n        ("odd", "OddForCausalLM"),\n'
)
MODELING = """
class OddAttention(nn.Module):
    pass
class OddPreTrainedModel({base}):
    {flag}
class OddForCausalLM(OddPreTrainedModel):
    pass
{interface}
"""
FLAG = "_supports_attention_backend = True"
INTERFACE = "attend = ALL_ATTENTION_FUNCTIONS.get_interface(config)"
SECOND = "    if not transformers_model_cls._can_set_attn_implementation():\n"


def odd_model(
    server: Environment, base: str = "PreTrainedModel", flag: str = "", interface: str = ""
) -> TransformersBackend:
    write(server, "transformers/models/auto/modeling_auto.py", AUTO)
    text = MODELING.format(base=base, flag=flag or "pass", interface=interface)
    write(server, "transformers/models/odd/modeling_odd.py", text)
    table = server.site / "transformers/models/auto/auto_mappings.py"
    said = table.read_text(encoding="utf-8")
    assert '("glm4_moe_lite", "Glm4MoeLiteConfig")' in said
    one = '("glm4_moe_lite", "Glm4MoeLiteConfig")'
    table.write_text(said.replace(one, f'("odd", "OddConfig"),\n        {one}'), encoding="utf-8")
    given = configuration(architectures=["OddForCausalLM"], model_type="odd")
    return facts_of(server, sets=LATER, given=[given]).get(TransformersBackend)


def test_transformers_class_that_takes_vllms_attention_runs(server: Environment) -> None:
    assert odd_model(server, flag=FLAG).takes is True


def test_a_class_without_the_flag_does_not_run_in_0_22(server: Environment) -> None:
    assert odd_model(server, interface=INTERFACE).takes is False


def test_a_later_vllm_asks_a_second_question(server: Environment) -> None:
    registry = server.site / "vllm/model_executor/models/registry.py"
    registry.write_text(registry.read_text(encoding="utf-8") + SECOND, encoding="utf-8")
    assert odd_model(server, interface=INTERFACE).takes is True


def test_what_a_class_has_of_another_file_is_not_known(server: Environment) -> None:
    made = odd_model(server, base="LlamaPreTrainedModel")
    assert made.takes is None
    assert "modeling_odd.py does not say whether vLLM can run OddForCausalLM" in str(made.why)


def test_of_a_type_that_transformers_lacks_there_is_no_class(server: Environment) -> None:
    given = configuration(architectures=["NewForCausalLM"], model_type="new")
    facts = facts_of(server, sets=LATER, given=[given])
    assert facts.get(TransformersBackend) == TransformersBackend(False)


def test_what_vllm_serves_itself_is_not_asked_for(server: Environment) -> None:
    name = next(iter(facts_of(server).get(VllmModels).architectures.names))
    facts = facts_of(server, sets=LATER, given=[configuration(architectures=[name])])
    assert facts.get(TransformersBackend) == TransformersBackend()


# Quantisation.

INDEX = """
QuantizationMethods = Literal[
    "fp8",
    "old",
    "shorthand",
    "computed",
]
DEPRECATED_QUANTIZATION_METHODS = [
    "old",
]


def get_quantization_config(quantization):
    from vllm.models.odd import ComputedConfig

    from .fp8 import (
        Fp8Config,
        OldConfig,
    )
    from .online.base import OnlineQuantizationConfig

    method_to_config: dict[str, type] = {
        "fp8": Fp8Config,
        "old": OldConfig,
        "computed": ComputedConfig,
    }
    for shorthand in _ONLINE_SHORTHANDS:
        method_to_config[shorthand] = OnlineQuantizationConfig
    return method_to_config[quantization]
"""
FP8 = '''
class Base:
    @classmethod
    def get_min_capability(cls) -> int:
        # Turing
        return 75

class Fp8Config(Base):
    """Nothing of its own."""

class OldConfig(Base):
    @classmethod
    def get_min_capability(cls) -> int:
        return 80
'''
COMPUTED = """
class ComputedConfig:
    @classmethod
    def get_min_capability(cls) -> int:
        return 75 if current_platform.is_cuda() else -1
"""


@pytest.mark.parametrize(
    ("method", "found"),
    [
        ("fp8", ServedQuantization("fp8", False, 75)),
        ("old", ServedQuantization("old", True, 80)),
        ("shorthand", ServedQuantization("shorthand", False, 70)),
        ("computed", ServedQuantization("computed", False, None)),
    ],
)
def test_each_method_says_which_gpu_it_needs(
    server: Environment, method: str, found: ServedQuantization
) -> None:
    folder = "vllm/model_executor/layers/quantization"
    write(server, f"{folder}/__init__.py", INDEX)
    write(server, f"{folder}/fp8.py", FP8)
    online = FP8.replace("Base", "OnlineQuantizationConfig").replace("75", "70")
    write(server, f"{folder}/online/base.py", online)
    write(server, "vllm/models/odd.py", COMPUTED)
    sets = (*LATER, f"quantization={method}")
    assert facts_of(server, sets=sets, given=[configuration()]).get(ServedQuantization) == found
    given = configuration(quantization_config={"quant_method": method})
    assert facts_of(server, sets=LATER, given=[given]).get(ServedQuantization) == found


@pytest.mark.parametrize("sets", [LATER, (*LATER, "quantization=nosuch")])
def test_what_is_not_quantised_by_a_known_method_is_not_asked(
    server: Environment, sets: tuple[str, ...]
) -> None:
    write(server, "vllm/model_executor/layers/quantization/__init__.py", INDEX)
    with pytest.raises(NotApplicable):
        facts_of(server, sets=sets, given=[configuration()]).get(ServedQuantization)


# Types and lengths.

MODEL = """
_FLOAT16_NOT_SUPPORTED_MODELS = {
    "gemma3": "Numerical instability. Please use bfloat16 or float32 instead.",
    "glm4": "Numerical instability.",
}
def _get_and_verify_max_len():
            if rope_type not in (
                "su",
                "yarn",
            ):
                pass
"""


def test_the_models_that_refuse_float16_are_read(server: Environment) -> None:
    write(server, "vllm/config/model.py", MODEL)
    facts = facts_of(server, sets=(*LATER, "dtype=half"), given=[configuration()])
    assert facts.get(RefuseFloat16).types == ("gemma3", "glm4")
    with pytest.raises(NotApplicable):
        facts_of(server, sets=LATER, given=[configuration()]).get(RefuseFloat16)


def test_which_ropes_lengthen_a_model_is_read(server: Environment) -> None:
    write(server, "vllm/config/model.py", MODEL)
    given = configuration(rope_parameters={"rope_type": "yarn", "factor": 4.0})
    facts = facts_of(server, sets=(*LATER, "max_model_len=9"), given=[given])
    assert facts.get(LengthLimits) == LengthLimits(("su", "yarn"))


def test_where_it_cannot_be_read_nothing_is_assumed(server: Environment) -> None:
    write(server, "vllm/config/model.py", "")
    given = configuration(rope_scaling={"type": "linear", "factor": 4.0})
    facts = facts_of(server, sets=(*LATER, "max_model_len=9"), given=[given])
    with pytest.raises(Missing, match=r"config/model\.py does not say how long a model is"):
        facts.get(LengthLimits)


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ('{"model_max_length": 8192, "x": 1}', 8192),
        ('{"model_max_length": 1000000000000000019884624838656}', None),
        ('{"model_max_length": 8192.5}', None),
        ("{}", None),
        ("\0", None),
    ],
)
def test_the_tokenizers_length_is_read_beside_config_json(
    server: Environment, tmp_path: Path, text: str, length: int | None
) -> None:
    (tmp_path / "tokenizer_config.json").write_text(text, encoding="utf-8")
    place = Text("{path}", path=tmp_path / "config.json")
    sets = ("gpus=later", f"model={tmp_path}", "max_model_len=9")
    given = [ModelConfiguration({"n_positions": 9}, ReadFrom.FOLDER, place)]
    assert facts_of(server, sets=sets, given=given).get(LengthLimits).tokenizer == length
    table = [ModelConfiguration({"n_positions": 9}, ReadFrom.TABLE, place)]
    assert facts_of(server, sets=sets, given=table).get(LengthLimits).tokenizer is None


# The GPU.


def test_the_first_gpu_is_judged_or_the_oldest_that_will_come(server: Environment) -> None:
    later = facts_of(server, sets=("gpus=later", "archs=12.0, 7.5, 9.0"))
    assert later.get(JudgedGpu).capability == 75
    devices = tuple(Device(i, "GPU", f"GPU-{i}", c, 1, 1) for i, c in enumerate(("9.0", "7.0")))
    here = facts_of(server, sets=(), given=[Gpus(devices, 2)])
    assert here.get(JudgedGpu).capability == 90


@pytest.mark.parametrize("sets", [("device=cpu",), ("gpus=later", "archs=")])
def test_without_a_gpu_nothing_is_judged(server: Environment, sets: tuple[str, ...]) -> None:
    with pytest.raises(NotApplicable):
        facts_of(server, sets=sets).get(JudgedGpu)


# Families.


@pytest.mark.parametrize(
    ("model", "kind", "reasoning", "tools"),
    [
        ("zai-org/GLM-4.7-Flash", "glm4_moe_lite", "glm45", "glm47"),
        ("zai-org/GLM-4.6", "glm4_moe", "glm45", "glm45"),
        ("Qwen/Qwen3-32B-FP8", "qwen3", "qwen3", "hermes"),
        ("Qwen/Qwen3-235B-A22B-Thinking-2507", "qwen3_moe", "qwen3", "hermes"),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "qwen3_moe", None, "hermes"),
        ("Qwen/Qwen3-Coder-480B-A35B-Instruct", "qwen3_moe", None, "qwen3_xml"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2", None, "hermes"),
        ("deepseek-ai/DeepSeek-R1", "deepseek_v3", "deepseek_r1", None),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "qwen2", "deepseek_r1", None),
        ("deepseek-ai/DeepSeek-V3.1", "deepseek_v3", "deepseek_v3", "deepseek_v31"),
        ("moonshotai/Kimi-K2-Instruct", "kimi_k2", None, "kimi_k2"),
        ("MiniMaxAI/MiniMax-M2.5", "minimax_m2", "minimax_m2", "minimax_m2"),
        ("openai/gpt-oss-120b", "gpt_oss", None, "openai"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama", None, "llama3_json"),
        ("/srv/models/Llama-4-Scout-17B-16E-Instruct/", "llama4", None, "llama4_pythonic"),
    ],
)
def test_a_family_has_its_parsers(
    model: str, kind: str, reasoning: str | None, tools: str | None
) -> None:
    found = family_of(model, [kind, None])
    assert found is not None
    assert (next(iter(found.reasoning), None), next(iter(found.tools), None)) == (reasoning, tools)


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("Qwen/Qwen3-Embedding-4B", "qwen3"),
        ("Qwen/Qwen3-8B-Base", "qwen3"),
        ("meta-llama/Llama-3.1-8B", "llama"),
        ("org/mine", "llama"),
        ("zai-org/GLM-4.7", "another"),
        ("", None),
    ],
)
def test_of_other_models_no_parser_is_known(model: str, kind: str | None) -> None:
    assert family_of(model, [kind]) is None


def test_each_row_of_the_table_says_who_says_so() -> None:
    for row in toml.load_toml(rules_folder() / "tables" / PARSERS_TABLE)["family"]:
        assert set(row) <= {"types", "name", "reasoning", "tools", "source"}
        assert row["types"]
        assert row["source"].startswith(("docs.vllm.ai, ", "vllm/"))
        assert row.get("reasoning") or row.get("tools")
        re.compile(row.get("name", ""))
