"""Real starts of vLLM whose logs were published, as questions to `fit`: what each line of
fixtures/fit/cases.jsonl says of the server and of what it printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from doctor.consumers.known_models import known_model
from doctor.consumers.model_config import ConfigJson
from doctor.fit.defaults import settled
from doctor.fit.layers import kv_layers
from doctor.fit.options import MemoryOptions, memory_options
from doctor.fit.pool import Pool, pool
from doctor.fit.releases import Release, release
from doctor.fit.sizes import GIB
from doctor.fit.verdict import FitQuestion, GpuMemory
from doctor.frozen import dataclass
from doctor.profile import Profile

FOLDER = Path(__file__).parent.parent / "fixtures" / "fit"
UNKNOWN_VERSION = "0.12"
"""Where a case does not say it: all of these are of 0.6 to 0.12."""
_OPTIONS = (
    "max_model_len",
    "block_size",
    "gpu_memory_utilization",
    "max_num_batched_tokens",
    "enforce_eager",
)
# Checkpoints that are not in the table of their model: what their own config.json would say.
_QUANTISED: dict[str, dict[str, Any]] = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False},
}


@dataclass(frozen=True)
class FitCase:
    """One start: `told` is what it says."""

    told: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.told["id"])

    def gib(self, name: str) -> int | None:
        """Bytes of a number that was printed in GiB."""
        return round(self.told[name] * GIB) if name in self.told else None

    @property
    def config(self) -> ConfigJson:
        row = known_model(self.told["config"].replace("__", "/", 1))
        assert row is not None
        values = {**row.values, "torch_dtype": self.told["dtype"], "dtype": self.told["dtype"]}
        quantised = _QUANTISED.get(self.told.get("quantization", ""))
        return ConfigJson({**values, "quantization_config": quantised} if quantised else values)

    @property
    def options(self) -> MemoryOptions:
        said = {name: self.told[name] for name in _OPTIONS if name in self.told}
        said |= {
            "pipeline_parallel_size": self.told["pp"],
            "data_parallel_size": self.told["dp"],
            "decode_context_parallel_size": self.told["dcp"],
            "enable_expert_parallel": self.told["ep"],
            "enable_lora": self.told.get("lora", False),
        }
        if self.told.get("quantization") == "fp8" and self.config.quantization is None:
            said["quantization"] = "fp8"
        return memory_options(Profile(tensor_parallel_size=self.told["tp"], options=said), said)

    @property
    def release(self) -> Release:
        return release(str(self.told.get("vllm_version", UNKNOWN_VERSION)).partition(" ")[0])

    @property
    def gpu(self) -> GpuMemory | None:
        total = self.gib("gpu_total_gib")
        return GpuMemory(self.told.get("gpu", "a GPU"), total) if total else None

    @property
    def length(self) -> int:
        said = self.told.get("max_model_len")
        found = self.config.length()
        return said or (found.tokens if found else 0)

    def question(self, *, available: int | None = None) -> FitQuestion:
        """All that the case says of the server and of its GPUs."""
        found = self.config.length()
        gpus = (self.gpu,) * self.told["gpus"] if self.gpu else ()
        return FitQuestion(
            self.told["model"],
            self.config,
            "the table of models",
            self.options,
            self.release,
            gpus,
            found.tokens if found else None,
            available=available,
        )

    @property
    def pool(self) -> Pool:
        config, options, rules = self.config, self.options, self.release
        layers = kv_layers(config, options, rules, None)
        return pool(layers, config, options, rules, settled(config, options, rules, self.gpu))


CASES = [
    FitCase(json.loads(line))
    for line in (FOLDER / "cases.jsonl").read_text(encoding="utf-8").splitlines()
]
