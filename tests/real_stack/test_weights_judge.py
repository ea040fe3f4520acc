"""vLLM as the judge of weights: what its own classes allocate on a rank, model by model.

The models have few layers, whose kinds are those of the whole model. What is compared is the
estimate from config.json, and the one from the names and shapes that transformers' own class has
for the model.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from doctor.consumers.model_config import ConfigJson
from doctor.consumers.shares import Layout
from doctor.fit.allocator import allocated
from doctor.fit.options import MemoryOptions
from doctor.fit.releases import release
from doctor.fit.verdict import Tensor
from doctor.fit.weights import weights_on
from tests.real_stack import lab, verdicts
from tests.real_stack.conftest import MakeEnvironment, MakeHome

_SCRIPT = Path(__file__).with_name("weights_judge.py")
_LAYERS = ("num_hidden_layers", "depth")
_OF_EACH_LAYER = (
    "layer_types",
    "hybrid_layer_pattern",
    "moe_layer_freq",
    "hybrid_override_pattern",
)
_BYTES = {1: "U8", 2: "BF16", 4: "F32", 8: "I64"}
_FOUR_BITS = {"bits": 4, "group_size": 128}
_PLAIN = {"desc_act": False, "sym": True}
_NVFP4 = {
    "quant_method": "modelopt",
    "quant_algo": "NVFP4",
    "ignore": ["lm_head"],
    "producer": {"name": "modelopt"},
    "config_groups": {
        "group_0": {
            "weights": {"num_bits": 4, "type": "float", "group_size": 16},
            "input_activations": {"num_bits": 4, "type": "float", "group_size": 16},
            "targets": ["Linear"],
        }
    },
}


@dataclass(frozen=True)
class WeightsCell:
    """A model cut to so many layers, `changes` in its config.json, and what `vllm serve` is told.
    `published`: transformers has a class for it, and it is not quantised; `within`: how far the
    estimate may be off, a part of 1; `versions`: of vLLM."""

    model: str
    words: str = ""
    layers: int = 4
    changes: Mapping[str, Any] = field(default_factory=dict)
    published: bool = False
    within: float = 0.002
    capability: str = "9.0"
    versions: tuple[str, ...] = ("0.22.0", "0.33.0")

    @property
    def values(self) -> dict[str, Any]:
        made = {**shortened(verdicts.values_of(self.model), self.layers), **self.changes}
        return {name: value for name, value in made.items() if name != "auto_map"}

    @property
    def options(self) -> MemoryOptions:
        said = shlex.split(self.words)
        return MemoryOptions(
            layout=Layout(
                tensor=int(said[said.index("-tp") + 1]) if "-tp" in said else 1,
                experts_whole="--enable-expert-parallel" in said,
            ),
            dtype=said[said.index("--dtype") + 1] if "--dtype" in said else "auto",
            whole_tower="data" in said,
            language_model_only="--language-model-only" in said,
        )


_NEWEST = ("0.33.0",)  # whose transformers knows them, in the lab
CELLS = (
    WeightsCell("Qwen/Qwen3-0.6B", published=True),
    WeightsCell("Qwen/Qwen2.5-7B-Instruct", "-tp 4"),
    WeightsCell("meta-llama/Llama-3.1-8B-Instruct", "-tp 2 --dtype float16"),
    WeightsCell("01-ai/Yi-34B", "-tp 2"),
    WeightsCell("mistralai/Mixtral-8x7B-v0.1", "-tp 2"),
    WeightsCell("Qwen/Qwen3-30B-A3B", "-tp 8", published=True),
    WeightsCell("zai-org/GLM-4.5-Air", "-tp 2"),
    WeightsCell("zai-org/GLM-4.7-Flash", "-tp 1", versions=_NEWEST),
    WeightsCell("zai-org/GLM-4.7-Flash", "-tp 4", published=True, versions=_NEWEST),
    WeightsCell("zai-org/GLM-4.7-Flash", "-tp 4 --enable-expert-parallel", versions=_NEWEST),
    WeightsCell("zai-org/GLM-5.1", "-tp 8", within=0.01, versions=_NEWEST),  # a second table
    WeightsCell("deepseek-ai/DeepSeek-R1", "-tp 8", within=0.01),  # copies are made later
    WeightsCell("Qwen/Qwen3-235B-A22B-FP8", "-tp 4"),
    WeightsCell("Qwen/Qwen3-32B-FP8", "-tp 2"),
    WeightsCell("MiniMaxAI/MiniMax-M2.7", "-tp 4", within=0.003, versions=_NEWEST),
    WeightsCell("Qwen/Qwen3-VL-8B-Instruct", "-tp 2"),
    WeightsCell("Qwen/Qwen3-VL-8B-Instruct", "-tp 2 --mm-encoder-tp-mode data"),
    WeightsCell("Qwen/Qwen3-VL-8B-Instruct", "-tp 2 --language-model-only"),
    WeightsCell("Qwen/Qwen3.5-27B", "-tp 2"),
    WeightsCell("Qwen/Qwen3.5-35B-A3B", "-tp 2"),
    WeightsCell("Qwen/Qwen3.5-35B-A3B", "-tp 1", published=True, versions=_NEWEST),
    WeightsCell("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "-tp 2", layers=8, versions=_NEWEST),
    WeightsCell("openai/gpt-oss-20b", "-tp 2", capability="8.0"),
    WeightsCell(
        "Qwen/Qwen3-32B",
        "-tp 2",
        changes={"quantization_config": {"quant_method": "gptq", **_FOUR_BITS, **_PLAIN}},
        versions=_NEWEST,  # 0.22 looks into the weights for what is quantised
    ),
    WeightsCell("Qwen/Qwen3-32B", "-tp 2", changes={"quantization_config": _NVFP4}),
)


def shortened(values: Mapping[str, Any], most: int) -> dict[str, Any]:
    """The configuration of the first layers, in each of its parts."""
    made = dict(values)
    for name, value in values.items():
        if isinstance(value, dict):
            made[name] = shortened(value, most)
        elif name in _LAYERS and isinstance(value, int):
            made[name] = min(value, most)
        elif name in _OF_EACH_LAYER and not isinstance(value, int):
            made[name] = value[:most]
    return made


def judged(
    target: lab.Environment, home: Path, tried: tuple[WeightsCell, ...]
) -> list[dict[str, Any]]:
    """What the judge says of each cell, in one run of the environment's interpreter."""
    rows = []
    for number, cell in enumerate(tried):
        folder = verdicts.folder_of(f"cell-{number}", cell.values, home / "models")
        (folder / "model.safetensors").unlink()  # vLLM reads there which layers are not quantised
        row = {"model": str(folder), "arguments": [str(folder), *shlex.split(cell.words)]}
        more = {"capability": cell.capability, "gpus": 8, "published": cell.published, "env": {}}
        rows.append({**row, **more})
    return verdicts.said_by(_SCRIPT, rows, target, home)


def difference(cell: WeightsCell, said: dict[str, Any], version: str) -> str | None:
    """How an estimate differs from what vLLM allocates, None where it does not."""
    if said["refused"]:
        return f"{cell.model} {cell.words}: refused: {said['refused'][-300:]}"
    real = sum(allocated(math.prod(shape) * width) for _, shape, width in said["tensors"])
    published = said.get("published")
    headers = published and [Tensor(n, _BYTES[width], tuple(s)) for n, s, width in published]
    capability = int(cell.capability.replace(".", ""))
    for tensors in (None, headers) if headers else (None,):
        made = weights_on(
            ConfigJson(cell.values), tensors, cell.options, release(version), 0, capability
        )
        if abs(made.bytes / real - 1) > cell.within:
            return f"{cell.model} {cell.words}, {made.source.value}: {made.bytes} and not {real}"
    return None


def assert_judged_as_by_vllm(target: lab.Environment, home: Path, version: str) -> None:
    tried = tuple(cell for cell in CELLS if version in cell.versions)
    said = judged(target, home, tried)
    made = [difference(*pair, version) for pair in zip(tried, said, strict=True)]
    found = "\n".join(filter(None, made))
    assert not found, found


@pytest.mark.real_stack
def test_weights_are_what_vllm_allocates(environment: MakeEnvironment, new_home: MakeHome) -> None:
    assert_judged_as_by_vllm(environment(lab.REFERENCE), new_home(), "0.22.0")


@pytest.mark.newest_stack
def test_weights_are_what_the_newest_vllm_allocates(
    newest: lab.Environment, new_home: MakeHome
) -> None:
    assert_judged_as_by_vllm(newest, new_home(), "0.33.0")
