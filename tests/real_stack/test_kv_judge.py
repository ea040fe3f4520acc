"""vLLM as the judge of what each layer keeps: its own specs, of whole models, against `kv_layers`.

fixtures/models has real models, of which the first layers are taken; kv_models.py has other kinds.
By hand every model of a folder of OWNER__NAME.json files is tried in full depth:

    VLLM_DOCTOR_JUDGE_MODELS=FOLDER python -m pytest -n 0 -m newest_stack -k every_model
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from doctor.consumers.model_config import ConfigJson
from doctor.consumers.shares import Layout
from doctor.fit.kv import Keeps, KvLayer
from doctor.fit.layers import kv_layers
from doctor.fit.options import MemoryOptions
from doctor.fit.releases import release
from doctor.fit.sizes import NotKnown
from tests.real_stack import lab, verdicts
from tests.real_stack.conftest import MakeEnvironment, MakeHome
from tests.real_stack.kv_models import KINDS, LEFT_OUT

_SCRIPT = Path(__file__).with_name("kv_judge.py")
MANY = os.environ.get("VLLM_DOCTOR_JUDGE_MODELS")
_DEPTH = 8  # layers of a real model: their kinds alternate, the first are dense
_KEPT = {
    "FullAttentionSpec": Keeps.FULL,
    "MLAAttentionSpec": Keeps.MLA,
    "SlidingWindowSpec": Keeps.SLIDING,
    "ChunkedLocalAttentionSpec": Keeps.CHUNKED,
    "MambaSpec": Keeps.STATE,
    "CrossAttentionSpec": Keeps.CROSS,
}
# Whose text part is tried alone: their towers keep nothing.
_ALONE = {
    "gemma3_text": "Gemma3ForCausalLM",
    "gemma4_text": "Gemma4ForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
}


@dataclass(frozen=True)
class KvCase:
    """A model and what a server of it is told. `drafted`: tokens that its MTP layers draft."""

    model: str
    ranks: int = 1
    cache: str = "auto"
    drafted: int = 0
    capability: str = "9.0"

    def __str__(self) -> str:
        return f"{self.model} {' '.join(self.words)} on {self.capability}"

    @property
    def words(self) -> tuple[str, ...]:
        mtp = {"method": "mtp", "num_speculative_tokens": self.drafted}
        said = ("--speculative-config", json.dumps(mtp)) if self.drafted else ()
        return ("-tp", str(self.ranks), "--kv-cache-dtype", self.cache, *said)

    @property
    def options(self) -> MemoryOptions:
        mtp = {"method": "mtp", "num_speculative_tokens": self.drafted} if self.drafted else {}
        layout = Layout(tensor=self.ranks)
        return MemoryOptions(layout=layout, kv_cache_dtype=self.cache, speculative=mtp)


ALIKE = (
    *map(KvCase, KINDS),
    KvCase("Qwen/Qwen3-32B", 4, "fp8"),
    KvCase("Qwen/Qwen3-30B-A3B", 8),
    KvCase("Qwen/Qwen3-30B-A3B", 2, "fp8", capability="8.9"),
    KvCase("llama4_text", 4),
    KvCase("deepseek-ai/DeepSeek-R1", 8, "fp8", drafted=1),
    KvCase("deepseek-ai/DeepSeek-R1", capability="10.0"),
    KvCase("deepseek-ai/DeepSeek-V3.2", 8, "fp8"),
    KvCase("deepseek-ai/DeepSeek-V3.2", 8, "fp8", capability="10.0"),
    KvCase("openai/gpt-oss-20b", 2),
    KvCase("zai-org/GLM-4.5-Air", 2, drafted=1),
    KvCase("granitemoehybrid", 2),
    KvCase("jamba", 2),
    KvCase("falcon_h1", 2, "fp8"),
    KvCase("opt", cache="int8_per_token_head"),
)
"""What both releases can tell."""
NEWEST = (
    KvCase("Qwen/Qwen3.5-35B-A3B", 2, drafted=2),
    KvCase("Qwen/Qwen3.5-27B", 4, "fp8"),
    KvCase("google/gemma-4-26B-A4B", 2),
    KvCase("moonshotai/Kimi-K2.5", 8),
    KvCase("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 2),
    KvCase("zai-org/GLM-4.7-Flash", 2),
    KvCase("zai-org/GLM-4.7-Flash", 2, "fp8", drafted=1),
    KvCase("zai-org/GLM-5.1", 8),
)
"""Kinds that transformers 4.57 does not know, beside which 0.22.0 is installed."""


def values_of(model: str) -> dict[str, Any]:
    """The values of its config.json."""
    if model in KINDS:
        return KINDS[model]
    return first_layers(verdicts.values_of(model), _DEPTH)


def first_layers(values: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """The same of so many layers, in each part that has more."""
    size = values.get("num_hidden_layers")
    made = dict(values)
    for key, value in values.items():
        if isinstance(value, dict):
            made[key] = first_layers(value, depth)
        elif isinstance(value, (list, str)) and isinstance(size, int) and len(value) == size:
            made[key] = value[:depth]
    if isinstance(size, int):
        made["num_hidden_layers"] = min(size, depth)
    return made


def served(values: Mapping[str, Any]) -> dict[str, Any]:
    """As vLLM's own classes read them, with no code of the model's."""
    made = {key: value for key, value in values.items() if key != "auto_map"}
    if made.get("model_type") in _ALONE:
        made["architectures"] = [_ALONE[made["model_type"]]]
    return made


def judged(
    target: lab.Environment, home: Path, cases: Sequence[KvCase], values: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """What vLLM says of each case, in one run of the environment's interpreter."""
    folders = {
        name: verdicts.folder_of(name.replace(" ", "_"), served(said), home / "models")
        for name, said in values.items()
    }
    rows = [
        {
            "model": str(folders[case.model]),
            "arguments": [str(folders[case.model]), *_ALWAYS, *case.words],
            "capability": case.capability,
            "gpus": 8,
            "env": {},
        }
        for case in cases
    ]
    return verdicts.said_by(_SCRIPT, rows, target, home)


_ALWAYS = ("--max-model-len", "400", "--language-model-only")
_Kept = Counter[tuple[Keeps | str, float, int, int | None, bool]]


def of_vllm(row: Mapping[str, Any]) -> _Kept:
    return Counter(
        (
            _KEPT.get(layer["type"], layer["type"]),
            layer.get("token_bytes", 0),
            layer.get("state_bytes", 0),
            layer.get("window"),
            layer["draft"],
        )
        for layer in row["layers"]
    )


def of_doctor(layers: Sequence[KvLayer]) -> _Kept:
    return Counter(
        (one.keeps, float(one.token_bytes), one.state_bytes, one.window, one.draft)
        for one in layers
        if one.keeps is not Keeps.NOTHING
    )


def difference(case: KvCase, values: Any, row: Mapping[str, Any], version: str) -> str | None:
    """What vLLM and the doctor say differently, None where they agree."""
    capability = int(case.capability.replace(".", ""))
    try:
        layers = kv_layers(ConfigJson(values), case.options, release(version), capability)
    except NotKnown as unknown:
        return None if case.model in LEFT_OUT.get(version, {}) else f"{case}: {unknown}"
    if "refused" in row:
        return f"{case}: vLLM: {row['refused']}"
    vllm, doctor = of_vllm(row), of_doctor(layers)
    if vllm == doctor and _blocks(row) == max(_aligned(layers), default=1):
        return None
    return f"{case}: {vllm - doctor} against {doctor - vllm}; blocks {_blocks(row)}"


def _aligned(layers: Sequence[KvLayer]) -> list[int]:
    return [one.align for one in layers if one.keeps not in (Keeps.NOTHING, Keeps.STATE)]


def _blocks(row: Mapping[str, Any]) -> int:
    """The least blocks of its backends."""
    return max((layer["align"] for layer in row["layers"] if "align" in layer), default=1)


def assert_kept_as_vllm_says(
    target: lab.Environment, home: Path, cases: Sequence[KvCase], version: str
) -> None:
    values = {case.model: values_of(case.model) for case in cases}
    rows = judged(target, home, cases, values)
    found = [
        difference(case, values[case.model], row, version)
        for case, row in zip(cases, rows, strict=True)
    ]
    print(*filter(None, found), sep="\n")
    assert not any(found)


def possible(cases: Sequence[KvCase], version: str) -> list[KvCase]:
    return [case for case in cases if case.model not in LEFT_OUT.get(version, {})]


@pytest.mark.real_stack
def test_layers_keep_what_vllm_says(environment: MakeEnvironment, new_home: MakeHome) -> None:
    cases = possible(ALIKE, "0.22.0")
    assert len(cases) >= 40
    assert_kept_as_vllm_says(environment(lab.REFERENCE), new_home(), cases, "0.22.0")


@pytest.mark.newest_stack
def test_layers_keep_what_the_newest_vllm_says(newest: lab.Environment, new_home: MakeHome) -> None:
    cases = possible((*ALIKE, *NEWEST), "0.33.0")
    assert len(cases) >= 40
    assert_kept_as_vllm_says(newest, new_home(), cases, "0.33.0")


@pytest.mark.skipif(not MANY, reason="VLLM_DOCTOR_JUDGE_MODELS is not set")
@pytest.mark.newest_stack
def test_every_model_of_a_folder(newest: lab.Environment, new_home: MakeHome) -> None:
    """What vLLM cannot make of such a file is said, and what is not known; nothing differs."""
    folder = Path(MANY or "")
    names = [path.stem.replace("__", "/", 1) for path in sorted(folder.glob("*.json"))]
    values = {name: verdicts.values_of(name, folder) for name in names}
    cases = [
        KvCase(name, ranks, cache) for name in names for ranks, cache in ((1, "auto"), (8, "fp8"))
    ]
    rows = judged(newest, new_home(), cases, values)
    found = [
        difference(case, values[case.model], row, "0.33.0")
        for case, row in zip(cases, rows, strict=True)
    ]
    print(*filter(None, found), sep="\n")
    assert not [one for one in found if one and " against " in one]
