"""What is read of quantisation, of types and of transformers' classes, against vLLM 0.22.0 itself:
one process answers for all."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from doctor import toml
from doctor.consumers import quantization, tables
from doctor.consumers.model_config import ConfigJson
from doctor.consumers.parsers import PARSERS_TABLE
from doctor.consumers.source import Source, Unreadable
from doctor.consumers.transformers import backend_takes
from doctor.probes.parsers import ReasoningParsers, ToolParsers
from doctor.shipped import rules_folder
from doctor.target import Live
from tests.conftest import Environment, facts_of
from tests.real_stack import lab

pytestmark = pytest.mark.real_stack

# On a CPU vLLM converts no AWQ, and cpu_awq takes it: those pairs are left out.
ASKED = """
import json, sys
from types import SimpleNamespace
import transformers
from vllm import platforms
from vllm.platforms.cpu import CpuPlatform
platforms._current_platform = CpuPlatform()
from vllm.config import model
from vllm.model_executor.layers import quantization as methods

asked = json.load(sys.stdin)

def ends(checkpoint, quantization, model_type):
    it = SimpleNamespace(
        quantization=quantization,
        model_arch_config=SimpleNamespace(quantization_config=dict(checkpoint)),
        hf_config=SimpleNamespace(model_type=model_type, architectures=["X"]),
        allow_deprecated_quantization=True,
    )
    try:
        model.ModelConfig._verify_quantization(it)
    except ValueError as error:
        return "does not match" in str(error)
    return False

def least(name):
    try:
        return methods.get_quantization_config(name).get_min_capability()
    except ImportError:
        return None

print("SAID" + json.dumps({
    "least": {name: least(name) for name in methods.QUANTIZATION_METHODS},
    "deprecated": methods.DEPRECATED_QUANTIZATION_METHODS,
    "float16": list(model._FLOAT16_NOT_SUPPORTED_MODELS),
    "ends": [ends(*pair) for pair in asked["pairs"]],
    "runs": {
        name: (one := getattr(transformers, name, None)) is not None and one.is_backend_compatible()
        for name in asked["classes"]
    },
}))
"""

CHECKPOINTS: tuple[dict[str, Any], ...] = (
    {"quant_method": "fp8"},
    {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False},
    {"quant_method": "compressed-tensors", "format": "float-quantized"},
    {"quant_method": "auto-round", "bits": 4},
    {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    {"quant_method": "modelopt", "quant_algo": "FP8"},
    {"quant_method": "mxfp4"},
    {"quant_method": "quark"},
)
TYPES = ("qwen3", "gpt_oss", "deepseek_v4")


@pytest.fixture(scope="module")
def installed() -> Environment:
    try:
        return Environment(lab.cpu_server().prefix)
    except lab.LabError as error:
        pytest.fail(str(error))


def sources(installed: Environment) -> tuple[Source, Source]:
    vllm = Path(next(installed.prefix.glob("lib/python3*/site-packages/vllm")))
    return Source(Live({}), vllm), Source(Live({}), vllm.parent / "transformers")


def test_vllm_says_the_same_of_itself(installed: Environment) -> None:
    vllm, files = sources(installed)
    known = sorted(tables.quantization_names(vllm).names)
    pairs = [(c, asked, kind) for c in CHECKPOINTS for asked in known for kind in TYPES]
    auto = (files.root / "models/auto/modeling_auto.py").read_text(encoding="utf-8")
    types = {c: t for t, c in re.findall(r'\("([\w-]+)", "(\w+ForCausalLM)"\)', auto)}
    has = tables.served_by(tables.architectures(vllm))
    classes = [name for name in types if not has(name)]
    asked = subprocess.run(
        [installed.python, "-c", ASKED],
        input=json.dumps({"pairs": pairs, "classes": classes}),
        capture_output=True,
        text=True,
        check=True,
        timeout=900,
    )
    said = json.loads(asked.stdout.rpartition("SAID")[2])

    assert quantization.deprecated_methods(vllm) == set(said["deprecated"])
    ours = quantization.least_capabilities(vllm, known)
    told = {name: least for name, least in ours.items() if least is not None}
    assert len(told) >= len(known) - 2
    assert told == {name: said["least"][name] for name in told}
    for (checkpoint, method, kind), ends in zip(pairs, said["ends"], strict=True):
        config = ConfigJson({"model_type": kind, "quantization_config": checkpoint})
        assert quantization.contradicts(method, config) == ends, (checkpoint, method, kind)
    assert len(classes) > 30
    for name in classes:
        try:
            assert backend_takes(vllm, files, name, types[name]) == said["runs"][name], name
        except Unreadable:
            assert name.startswith(("Aria", "Data2Vec", "Mega", "OpenLlama", "Speech2", "XLMP"))


def test_the_table_of_parsers_names_what_it_has(installed: Environment) -> None:
    """Every row has a parser of this release, but those of models that came later."""
    facts = facts_of(installed)
    reasoning, tools = facts.get(ReasoningParsers).names, facts.get(ToolParsers).names
    for row in toml.load_toml(rules_folder() / "tables" / PARSERS_TABLE)["family"]:
        assert not row.get("reasoning") or set(row["reasoning"]) & set(reasoning), row
        assert not row.get("tools") or set(row["tools"]) & set(tools), row
